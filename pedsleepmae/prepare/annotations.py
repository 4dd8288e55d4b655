"""Scored stages and events of a night, and the labels that they give each epoch.

Readers for NCH's .tsv and NSRR's .xml turn a file into a :class:`Scoring`; Sleep-EDF's hypnogram
rows come through :func:`scoring_from_rows` as well. :func:`label_epochs` is the rule of the labels.
Which words are stages and which events stands in :mod:`stages` and :mod:`event_words`.
"""

import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pedsleepmae.channels import EPOCH_S
from pedsleepmae.errors import UserError, printable
from pedsleepmae.foreign import decode, file_problem, plain_name
from pedsleepmae.prepare.cells import as_clock, as_decimal, counts_thousands, is_blank
from pedsleepmae.prepare.event_words import (
    CHAT_EVENTS,
    EVENTS,
    NSRR_EVENTS,
    UNSURE_IS_HYPOPNEA,
    events_by_text,
)
from pedsleepmae.prepare.stages import (
    GRID_ROWS,
    LONGEST_S,
    LONGEST_WORD,
    TOLD_WORDS,
    TOLERANCE_S,
    epochs_of_rows,
    stage_rows,
)
from pedsleepmae.tasks import EVENT_KINDS, EVENT_NAMES, NOTICE, UNSCORED

# Bytes of a .tsv or .xml: NCH's and CHAT's have under 2 MB, and rows grow tenfold in memory.
LARGEST_FILE = 32_000_000
# Lengths of an epoch in milliseconds. No night has five rows of 10,000 s, or so far apart.
EPOCHS_MS = (10_000, 20_000, 30_000)
# No apnea, hypopnea or arousal lasts longer, a desaturation hardly; programs write thousands of
# seconds where they count milliseconds, or where nobody set the end.
LONGEST_EVENT_S = {"apnea": 1800.0, "hypop": 1800.0, "eeg": 1800.0, "desat": 7200.0}
ROUNDING_S = 1e-6  # onsets are decimal text: sums of them are off by less than this
# Rows of a technician, in many words and cases; EDF+ may add "@@" and a channel.
_LIGHTS = re.compile(r"lights?[ _-]?(off|out|on)(@@.*)?")
# What an event's name holds in any language of the field; with a duration it is hardly a note.
_EVENT = re.compile(r"apn|hypop|d[eé]sat|entsätt|arous|^unsure$", re.IGNORECASE)
# NSRR: the part of EventConcept before "|".
NSRR_STAGES = {f"stage {k} sleep": min(k, 3) for k in (1, 2, 3, 4)}
NSRR_STAGES |= {"wake": 0, "rem sleep": 4, "movement": UNSCORED, "unscored": UNSCORED}


class AnnotationError(UserError):
    """An annotation file cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Event:
    """One scored event; ``kind`` is one of EVENT_KINDS, ``code`` its label value."""

    onset_s: float
    duration_s: float
    kind: str
    code: int


@dataclass(frozen=True)
class Scoring:
    """A night's scoring: 30-s stage rows in time order, events, and what was odd in the file.

    ``stage_onsets_s`` and ``stages`` are (M,); a stage is 0 to 4 (W N1 N2 N3 R) or UNSCORED.
    ``lights_off_s`` and ``lights_on_s``: of the rows that say so, of which there may be several.
    ``start_clock_s``: the time of day at which the file says that the recording starts.
    """

    stage_onsets_s: np.ndarray
    stages: np.ndarray
    events: list[Event]
    remarks: list[str] = field(default_factory=list)
    lights_off_s: list[float] = field(default_factory=list)
    lights_on_s: list[float] = field(default_factory=list)
    start_clock_s: float | None = field(default=None, repr=False)


@dataclass(frozen=True)
class EpochLabels:
    """Labels of the kept epochs: ``onsets_s`` (N,), ``sleep`` (N,), codes by kind of event (N,).

    ``n_events``: by kind, the scored events that begin in a kept epoch of sleep, which is what the
    indices of a night (AHI, ODI, arousal index) count. ``scored``: all events as they stand.
    """

    onsets_s: np.ndarray
    sleep: np.ndarray
    events: dict[str, np.ndarray]
    n_events: dict[str, int]
    scored: list[Event]


# ------------------------------------------------------------------ readers
def read_tsv(path: Path) -> Scoring:
    """Scoring of an NCH .tsv: onset, duration, description; tabs, seconds from EDF start.

    Descriptions hold commas and quotes, may be blank, and are no UTF-8 in some files. Rows whose
    onset is no number are counted and left out. Raises AnnotationError when no row can be read.
    """
    name, raw = _read_file(path)
    if not raw.strip(b"\0 \r\n\t"):
        what = "only NUL bytes" if raw.strip(b" \r\n\t") else "nothing"
        raise AnnotationError(f"{name}: the file holds {what}; fetch it again")
    rows, onsets, places = [], [], range(3)
    for number, line in enumerate(re.split(r"\r\n|\n|\r", decode(raw))):
        fields = line.split("\t")
        if number == 0 and "onset" in (names := [plain_name(field) for field in fields]):
            places = _places_of_columns(name, names)
        elif line.strip(" \t"):
            fields = [fields[i] for i in places if i < len(fields)]
            rows.append(_read_row(fields))
            onsets += fields[:1] if rows[-1] else []
    if counts_thousands(onsets):
        raise AnnotationError(
            f"{name}: its onsets have commas between thousands; write them without"
        )
    if not any(rows):
        raise AnnotationError(
            f"{name}: no row with a numeric onset and duration; expected the columns "
            "onset, duration, description separated by tabs"
        )
    return scoring_from_rows(rows)


def _places_of_columns(name: str, header: list[str]) -> list[int]:
    """Where onset, duration and description stand; AnnotationError for a header of others."""
    wanted = ["onset", "duration", "description"]
    if all(header.count(column) == 1 for column in wanted):
        return [header.index(column) for column in wanted]
    if header[:2] == wanted[:2] or header == ["onset"]:
        return [0, 1, 2]
    raise AnnotationError(
        f"{name}: its header has not the columns onset, duration, description; rename them, or say "
        "which they are with --layout table and annotation_table"
    )


def _read_file(path: Path) -> tuple[str, bytes]:
    """Name, as it can be printed, and content; AnnotationError where no such file can be read."""
    name = printable(Path(path).name)
    if problem := file_problem(path, LARGEST_FILE):
        raise AnnotationError(f"{name}: {problem}")
    return name, Path(path).read_bytes()


def _read_row(fields: list[str]) -> tuple[float, float, str] | None:
    """(onset_s, duration_s, description), None when the times are no numbers."""
    onset_s = _as_number(fields[0])
    duration_s = 0.0 if len(fields) < 2 or is_blank(fields[1]) else _as_number(fields[1])
    if onset_s is None or duration_s is None:
        return None
    return onset_s, duration_s, fields[2].strip(' "') if len(fields) > 2 else ""


def _as_number(text: str) -> float | None:
    """A number, with a decimal comma, too; None for any other text."""
    try:
        return float(text)
    except ValueError:
        return as_decimal(text)


def read_nsrr_xml(path: Path) -> Scoring:
    """Scoring of an NSRR annotation file (CHAT): stages are run-length merged and are expanded.

    Raises AnnotationError when the file is no such XML.
    """
    path = Path(path)
    name, raw = _read_file(path)
    try:
        root = ET.fromstring(raw)
    except (ET.ParseError, LookupError, ValueError) as error:  # the latter: of odd encodings
        reason = printable(error)
        raise AnnotationError(f"{name}: no readable XML ({reason})") from error
    rows, start_clock_s = [], None
    for event in root.iter("ScoredEvent"):
        tags = ("Start", "Duration", "EventConcept", "EventType")
        start, duration, concept, kind = (event.findtext(tag) or "" for tag in tags)
        concept = concept.split("|")[0].strip()
        if concept.lower() == "recording start time":  # 00.00.00 22.15.00: a date and a time
            clock = (event.findtext("ClockTime") or "").split()[-1:]
            start_clock_s = as_clock(clock[0].replace(".", ":")) if clock else None
        if kind.lower().startswith("stages") and concept.lower() not in NSRR_STAGES:
            concept = f"Sleep stage {concept}"  # so that it is told as an unknown one
        rows.append(_read_row([start, duration, concept]))
    if not any(rows):
        raise AnnotationError(
            f"{name}: no ScoredEvent with Start and Duration; expected NSRR's "
            "annotations-events-nsrr XML"
        )
    others = path.name.lower().startswith(UNSURE_IS_HYPOPNEA)
    events = NSRR_EVENTS if others else CHAT_EVENTS
    scoring = scoring_from_rows(rows, stages=NSRR_STAGES, events=events)
    return replace(scoring, start_clock_s=start_clock_s)


def scoring_from_rows(
    rows: Iterable[tuple[float, float, str] | None],
    *,
    stages: Mapping[str, int] | None = None,
    events: Mapping[str, tuple[str, int]] = EVENTS,
    own_stages: Mapping[str, int] = MappingProxyType({}),
) -> Scoring:
    """Scoring of (onset_s, duration_s, description) rows in any order; None: cannot be read.

    Exact duplicates count once. ``stages``: those of a format with a vocabulary of its own;
    without, the words that :mod:`stages` knows, whose epochs_of_rows has the rule of the epochs.
    ``own_stages``: those of a laboratory's own words, besides.
    """
    rows = list(rows)
    readable = [row for row in rows if row is not None]
    if any(text == NOTICE for _, _, text in readable):
        raise AnnotationError(
            "these annotations are script 4's own predictions, not a scorer's; give a scorer's, or "
            "--use_annotations false (use_annotations=False)"
        )
    remarks = Counter()
    if len(readable) < len(rows):
        remarks["rows without a numeric onset and duration left out"] = len(rows) - len(readable)

    readable = _in_seconds(readable, remarks)
    named = events_by_text(readable, events)
    found_events, others = [], []
    lights_s: dict[bool, list[float]] = {True: [], False: []}  # on, off
    for onset_s, duration_s, description in dict.fromkeys(readable):
        name = " ".join(description.lower().split())
        if lights := _LIGHTS.fullmatch(name):
            lights_s[lights[1] == "on"].append(onset_s)
        elif description not in named or (name not in events and duration_s == 0):
            others.append((onset_s, duration_s, description))
        elif abs(onset_s) <= LONGEST_S and 0 <= duration_s <= LONGEST_S:
            event = Event(onset_s, duration_s, *named[description])
            if duration_s > LONGEST_EVENT_S[event.kind]:
                remarks["events last too long to be any: each marks the epoch of its onset"] += 1
                event = replace(event, duration_s=0.0)
            found_events.append(event)
        else:
            remarks["stage or event rows with an impossible time left out"] += 1
    staged = stage_rows(others, stages, remarks, own_stages)
    onsets_s, scored = epochs_of_rows(staged, remarks)
    _tell_unknown_events(others, remarks)
    found_events.sort(key=lambda event: (event.onset_s, event.duration_s, event.kind, event.code))
    told = [f"{n} {what}" for what, n in remarks.items()]
    return Scoring(onsets_s, scored, found_events, told, lights_s[False], lights_s[True])


def _in_seconds(
    rows: list[tuple[float, float, str]], remarks: Counter
) -> list[tuple[float, float, str]]:
    """Rows in seconds where they count milliseconds, each of the two times for itself."""
    spans = [(onset, d) for onset, d, _ in rows if abs(onset) < 1e9 and 0 <= d <= max(EPOCHS_MS)]
    ((usual, n),) = Counter(d for _, d in spans).most_common(1) or [(0, 0)]
    duration_in_s = 1000 if usual in EPOCHS_MS and n >= GRID_ROWS else 1
    onsets = sorted({onset for onset, d in spans if d == usual})  # of stages, which most rows are
    steps = Counter(round(later - onset) for onset, later in itertools.pairwise(onsets))
    ((step, n),) = steps.most_common(1) or [(0, 0)]
    onset_in_s = 1000 if step in EPOCHS_MS and n >= GRID_ROWS else 1
    if duration_in_s == onset_in_s == 1:
        return rows
    what = {(1000, 1): "onsets", (1, 1000): "durations"}.get((onset_in_s, duration_in_s), "times")
    remarks[f"rows whose {what} are taken for milliseconds"] = len(rows)
    return [(onset / onset_in_s, duration / duration_in_s, text) for onset, duration, text in rows]


def _tell_unknown_events(rows: Iterable[tuple[float, float, str]], remarks: Counter) -> None:
    """Tell rows that last and speak of an event in words that are none of the known ones.

    Rare words may be a technician's note on the patient and are only counted.
    """
    found = Counter(text for _, duration_s, text in rows if duration_s > 0 and _EVENT.search(text))
    if found:
        told = [f"{t[:LONGEST_WORD]!r} ({n})" for t, n in found.most_common(TOLD_WORDS)]
        told = told[: sum(n >= GRID_ROWS for n in found.values())]
        words = f": {', '.join(told)}" if told else ""
        remarks[f"rows whose words are no known event left out{words}"] = found.total()


def named_events(events: Iterable[Event]) -> list[tuple[str, float, float]]:
    """Scored events as events.csv has them: (kind of EVENT_NAMES, onset_s, duration_s)."""
    return [(EVENT_NAMES[e.kind, e.code], e.onset_s, e.duration_s) for e in events]


# ------------------------------------------------------------------ labels
def label_epochs(
    scoring: Scoring,
    recording_s: float,
    *,
    min_overlap_s: float = 0.0,
    keep_unscored: bool = False,
) -> EpochLabels:
    """Labels of every scored epoch whose 30 s lie inside the recording (0 to ``recording_s``).

    An event marks an epoch when they overlap by more than ``min_overlap_s``; one of zero duration
    marks the epoch that holds its onset; of several types in one epoch the longest overlap wins,
    at equal overlap the earlier one. Events in unscored stretches mark nothing.
    """
    onsets_s, stages = scoring.stage_onsets_s, scoring.stages
    kept = is_inside(onsets_s, recording_s) & ((stages != UNSCORED) | keep_unscored)
    onsets_s, stages = onsets_s[kept], stages[kept]
    codes = {kind: np.zeros(len(onsets_s), np.int64) for kind in EVENT_KINDS}
    longest_s = {kind: np.full(len(onsets_s), -1.0) for kind in EVENT_KINDS}
    for event in scoring.events:
        end_s = event.onset_s + event.duration_s
        first = np.searchsorted(onsets_s, event.onset_s - EPOCH_S, side="right")
        last = np.searchsorted(onsets_s, end_s, side="left" if event.duration_s else "right")
        here = slice(first, last)
        starts_s = onsets_s[here]
        overlap_s = np.minimum(end_s, starts_s + EPOCH_S) - np.maximum(event.onset_s, starts_s)
        marks = (overlap_s > min_overlap_s + ROUNDING_S) | (event.duration_s == 0)
        marks &= (stages[here] != UNSCORED) & (overlap_s > longest_s[event.kind][here])
        longest_s[event.kind][here][marks] = overlap_s[marks]
        codes[event.kind][here][marks] = event.code
    begun = count_onsets(scoring.events, onsets_s)
    n_events = {kind: int(begun[kind][stages > 0].sum()) for kind in EVENT_KINDS}
    return EpochLabels(onsets_s, stages, codes, n_events, scoring.events)


def is_inside(onsets_s: np.ndarray, recording_s: float) -> np.ndarray:
    """True for epochs, (N,), whose 30 s lie inside a recording (0 to ``recording_s``)."""
    # The tolerance is far below a sample: a record duration such as 3.59766 s is rounded text.
    return (onsets_s >= 0) & (onsets_s + EPOCH_S <= recording_s + 1e-3)


def count_onsets(events: Iterable[Event], onsets_s: np.ndarray) -> dict[str, np.ndarray]:
    """By kind how many events begin in each epoch, (N,); ``onsets_s`` (N,) of these, ascending."""
    begun = {kind: np.zeros(len(onsets_s), np.int64) for kind in EVENT_KINDS}
    for event in events:
        place = np.searchsorted(onsets_s, event.onset_s + ROUNDING_S, side="right") - 1
        if place >= 0 and event.onset_s < onsets_s[place] + EPOCH_S:
            begun[event.kind][place] += 1
    return begun


def grid_labels(recording_s: float, offset_s: float = 0.0) -> EpochLabels:
    """Unscored epochs back to back from ``offset_s`` on, as many as lie inside the recording."""
    onsets_s = offset_s + EPOCH_S * np.arange(recording_s // EPOCH_S + 1)
    scoring = Scoring(onsets_s, np.full(len(onsets_s), UNSCORED), [])
    return label_epochs(scoring, recording_s, keep_unscored=True)


def within_lights(scoring: Scoring, off_s: float, on_s: float) -> Scoring:
    """Without the epochs that do not lie whole between lights off and lights on, and with a remark.

    AASM scores and counts from lights out to lights on; events outside then mark nothing.
    """
    starts_s, ends_s = scoring.stage_onsets_s, scoring.stage_onsets_s + EPOCH_S
    inside = (starts_s >= off_s - TOLERANCE_S) & (ends_s <= on_s + TOLERANCE_S)
    remarks = list(scoring.remarks)
    if n := int((~inside & (scoring.stages >= 0)).sum()):
        remarks.append(f"{n} scored epochs left out that do not lie between lights off and on")
    return Scoring(starts_s[inside], scoring.stages[inside], scoring.events, remarks)


def trim_wake(labels: EpochLabels, margin_min: float) -> EpochLabels:
    """Without the wake that lies more than ``margin_min`` minutes from the sleep period.

    A home recording such as Sleep-EDF's holds the day before and after the night.
    """
    asleep = labels.onsets_s[labels.sleep > 0]
    if not len(asleep):
        return labels
    first_s, last_s = asleep[0] - margin_min * 60, asleep[-1] + margin_min * 60
    kept = (labels.onsets_s >= first_s) & (labels.onsets_s <= last_s)
    return EpochLabels(
        labels.onsets_s[kept],
        labels.sleep[kept],
        {kind: codes[kept] for kind, codes in labels.events.items()},
        labels.n_events,  # the wake that goes holds none of them
        labels.scored,
    )
