"""Scored stages and events of a night, and the labels that they give each epoch.

Readers for NCH's .tsv and NSRR's .xml turn a file into a :class:`Scoring`; Sleep-EDF's hypnogram
rows come through :func:`scoring_from_rows` as well. :func:`label_epochs` is the rule of the labels.
Event names are matched whole, after lower-casing and stripping: technicians' notes such as
"not a desat" or "possible obstructive apnea" contain the words and are no scored events.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pedsleepmae.channels import EPOCH_S
from pedsleepmae.errors import UserError
from pedsleepmae.tasks import EVENT_KINDS, NOTICE, UNSCORED

ROUNDING_S = 1e-6  # onsets are decimal text: sums of them are off by less than this
LONGEST_ROW_S = 48 * 3600.0  # a longer stage run or event is a writing error

# AASM stages, and Rechtschaffen & Kales' (1, 2, 3, 4) as older NCH studies and Sleep-EDF have
# them; 3 and 4 together are N3. `Movement time` has no AASM counterpart.
STAGES = {"sleep stage w": 0, "sleep stage r": 4}
STAGES |= {"sleep stage ?": UNSCORED, "movement time": UNSCORED}
STAGES |= {f"sleep stage n{k}": k for k in (1, 2, 3)}
STAGES |= {f"sleep stage {k}": min(k, 3) for k in (1, 2, 3, 4)}
# Scored event -> (label, code), the codes of the original authors. Central and mixed hypopneas,
# which they left out, are hypopneas that are not called obstructive: code 2.
_RESPIRATORY = {
    "central apnea": ("apnea", 1),
    "obstructive apnea": ("apnea", 2),
    "mixed apnea": ("apnea", 3),
    "obstructive hypopnea": ("hypop", 1),
    "hypopnea": ("hypop", 2),
    "central hypopnea": ("hypop", 2),
}
EVENTS = _RESPIRATORY | {
    "mixed hypopnea": ("hypop", 2),
    "oxygen desaturation": ("desat", 1),
    "eeg arousal": ("eeg", 1),
}
# NSRR: the part of EventConcept before "|". CHAT scored mixed apneas as `Unsure`.
NSRR_STAGES = {f"stage {k} sleep": min(k, 3) for k in (1, 2, 3, 4)}
NSRR_STAGES |= {"wake": 0, "rem sleep": 4, "movement": UNSCORED, "unscored": UNSCORED}
NSRR_EVENTS = _RESPIRATORY | {
    "unsure": ("apnea", 3),
    "spo2 desaturation": ("desat", 1),
    "arousal": ("eeg", 1),
    "asda arousal": ("eeg", 1),
}


class AnnotationError(UserError):
    """An annotation file cannot be used; the message says which and why."""


@dataclass(frozen=True)
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
    """

    stage_onsets_s: np.ndarray
    stages: np.ndarray
    events: list[Event]
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EpochLabels:
    """Labels of the kept epochs: ``onsets_s`` (N,), ``sleep`` (N,), codes by kind of event (N,).

    ``n_events``: by kind, the scored events that begin in a kept epoch of sleep, which is what the
    indices of a night (AHI, ODI, arousal index) count.
    """

    onsets_s: np.ndarray
    sleep: np.ndarray
    events: dict[str, np.ndarray]
    n_events: dict[str, int]


# ------------------------------------------------------------------ readers
def read_tsv(path: Path) -> Scoring:
    """Scoring of an NCH .tsv: onset, duration, description; tabs, seconds from EDF start.

    Descriptions hold commas and quotes, may be blank, and are no UTF-8 in some files. Rows whose
    onset is no number are counted and left out. Raises AnnotationError when no row can be read.
    """
    raw = Path(path).read_bytes()
    if not raw.strip(b"\0 \r\n\t"):
        what = "only NUL bytes" if raw.strip(b" \r\n\t") else "nothing"
        raise AnnotationError(f"{Path(path).name}: the file holds {what}; fetch it again")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    rows = []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text)):
        fields = line.strip("\0").split("\t")
        is_header = number == 0 and fields[0].strip().lower() == "onset"
        if line.strip("\0 \t") and not is_header:
            rows.append(_read_row(fields))
    if not any(rows):
        raise AnnotationError(
            f"{Path(path).name}: no row with a numeric onset and duration; expected the columns "
            "onset, duration, description separated by tabs"
        )
    return scoring_from_rows(rows)


def _read_row(fields: list[str]) -> tuple[float, float, str] | None:
    """(onset_s, duration_s, description), None when the times are no numbers."""
    try:
        onset_s = float(fields[0])
        duration_s = float(fields[1]) if len(fields) > 1 and fields[1].strip() else 0.0
    except ValueError:
        return None
    return onset_s, duration_s, fields[2].strip(' "') if len(fields) > 2 else ""


def read_nsrr_xml(path: Path) -> Scoring:
    """Scoring of an NSRR annotation file (CHAT): stages are run-length merged and are expanded.

    Raises AnnotationError when the file is no such XML.
    """
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise AnnotationError(f"{Path(path).name}: no readable XML ({error})") from error
    rows = []
    for event in root.iter("ScoredEvent"):
        names = ("Start", "Duration", "EventConcept")
        start, duration, concept = (event.findtext(name) or "" for name in names)
        rows.append(_read_row([start, duration, concept.split("|")[0]]))
    if not any(rows):
        raise AnnotationError(
            f"{Path(path).name}: no ScoredEvent with Start and Duration; expected NSRR's "
            "annotations-events-nsrr XML"
        )
    return scoring_from_rows(rows, stages=NSRR_STAGES, events=NSRR_EVENTS)


def scoring_from_rows(
    rows: Iterable[tuple[float, float, str] | None],
    *,
    stages: Mapping[str, int] = STAGES,
    events: Mapping[str, tuple[str, int]] = EVENTS,
) -> Scoring:
    """Scoring of (onset_s, duration_s, description) rows in any order; None: cannot be read.

    Exact duplicates count once. A stage row longer than 30 s is a run of epochs, which a row of its
    own at one of their onsets overrules. Where two stage rows at one onset disagree, a scored one
    goes before `?`; two scored ones are both left out, for neither can be trusted.
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

    # Stages by onset, those of rows and those that a longer row runs on to.
    stage_rows, run_rows, found_events = {}, {}, []
    for onset_s, duration_s, description in dict.fromkeys(readable):
        name = " ".join(description.lower().split())
        if name not in stages and name not in events:
            continue
        if not (math.isfinite(onset_s) and 0 <= duration_s <= LONGEST_ROW_S):
            remarks["stage or event rows with an impossible time left out"] += 1
        elif name in stages:
            stage_rows.setdefault(onset_s, set()).add(stages[name])
            for i in range(1, int(duration_s / EPOCH_S + ROUNDING_S)):
                run_rows.setdefault(onset_s + i * EPOCH_S, set()).add(stages[name])
        else:
            found_events.append(Event(onset_s, duration_s, *events[name]))

    # One stage an onset, in time order.
    codes = {t: scored - {UNSCORED} or scored for t, scored in (run_rows | stage_rows).items()}
    clear = {onset_s: scored.pop() for onset_s, scored in codes.items() if len(scored) == 1}
    if len(clear) < len(codes):
        remarks["epochs scored twice and differently left out"] = len(codes) - len(clear)
    onsets_s = np.array(sorted(clear), float)
    scored = np.array([clear[onset_s] for onset_s in onsets_s], np.int64)
    if overlapping := int((np.diff(onsets_s) < EPOCH_S - 1e-3).sum()):
        remarks["stage rows that begin within 30 s of the one before"] = overlapping
    found_events.sort(key=lambda event: (event.onset_s, event.duration_s, event.kind, event.code))
    return Scoring(onsets_s, scored, found_events, [f"{n} {what}" for what, n in remarks.items()])


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
    # The tolerance is far below a sample: a record duration such as 3.59766 s is rounded text.
    inside = (onsets_s >= 0) & (onsets_s + EPOCH_S <= recording_s + 1e-3)
    kept = inside & ((stages != UNSCORED) | keep_unscored)
    onsets_s, stages = onsets_s[kept], stages[kept]
    codes = {kind: np.zeros(len(onsets_s), np.int64) for kind in EVENT_KINDS}
    longest_s = {kind: np.full(len(onsets_s), -1.0) for kind in EVENT_KINDS}
    n_events = dict.fromkeys(EVENT_KINDS, 0)
    for event in scoring.events:
        place = np.searchsorted(onsets_s, event.onset_s + ROUNDING_S, side="right") - 1
        if place >= 0 and stages[place] > 0 and event.onset_s < onsets_s[place] + EPOCH_S:
            n_events[event.kind] += 1
        end_s = event.onset_s + event.duration_s
        first = np.searchsorted(onsets_s, event.onset_s - EPOCH_S, side="right")
        last = np.searchsorted(onsets_s, end_s, side="left" if event.duration_s else "right")
        for epoch in range(first, last):
            if stages[epoch] == UNSCORED:
                continue
            start_s = onsets_s[epoch]
            overlap_s = min(end_s, start_s + EPOCH_S) - max(event.onset_s, start_s)
            marks = overlap_s > min_overlap_s + ROUNDING_S or event.duration_s == 0
            if marks and overlap_s > longest_s[event.kind][epoch]:
                longest_s[event.kind][epoch] = overlap_s
                codes[event.kind][epoch] = event.code
    return EpochLabels(onsets_s, stages, codes, n_events)


def grid_labels(recording_s: float, offset_s: float = 0.0) -> EpochLabels:
    """Unscored epochs back to back from ``offset_s`` on, as many as lie inside the recording."""
    onsets_s = offset_s + EPOCH_S * np.arange(recording_s // EPOCH_S + 1)
    scoring = Scoring(onsets_s, np.full(len(onsets_s), UNSCORED), [])
    return label_epochs(scoring, recording_s, keep_unscored=True)


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
    )
