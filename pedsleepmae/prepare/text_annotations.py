"""Annotations that are a table in text, with the columns and the words of any laboratory."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pedsleepmae.channels import EPOCH_S
from pedsleepmae.errors import SettingsError, printable
from pedsleepmae.foreign import TableError, one_spelling, plain_name
from pedsleepmae.prepare.annotations import (
    LARGEST_FILE,
    AnnotationError,
    Scoring,
    scoring_from_rows,
)
from pedsleepmae.prepare.cells import as_onset, counts_thousands, is_blank, is_clock
from pedsleepmae.prepare.delimited import read_delimited
from pedsleepmae.prepare.event_words import EVENTS
from pedsleepmae.prepare.recordings import read_start_clock
from pedsleepmae.prepare.stages import GRID_ROWS, LONGEST_WORD, TOLD_WORDS, stage_of
from pedsleepmae.tasks import STAGES, UNSCORED

CLOCK_ROUNDING_S = 1.5  # of two times of day that are told in seconds
STAGE_CODES = {stage: code for code, stage in enumerate(STAGES)} | {"?": UNSCORED}
EVENT_CODES = {  # kind of the files -> (label, code)
    "central_apnea": EVENTS["central apnea"],
    "obstructive_apnea": EVENTS["obstructive apnea"],
    "mixed_apnea": EVENTS["mixed apnea"],
    "obstructive_hypopnea": EVENTS["obstructive hypopnea"],
    "hypopnea": EVENTS["hypopnea"],
    "desaturation": EVENTS["oxygen desaturation"],
    "arousal": EVENTS["eeg arousal"],
}


@dataclass
class AnnotationTable:
    """Annotations that are a table in text (.csv, .tsv, .txt), and the laboratory's own words.

    Encoding, delimiter and decimal comma are found. A .tsv is read as NCH's where nothing of this
    is set and the layout is not table.
    """

    onset: str = "onset"
    """Column of the onsets: seconds from recording start, or times such as 22:15:00."""
    duration: str = "duration"
    """Column of the durations, seconds. Where no stage has one, it lasts as long as it is from one
    to the next most often, 30 s at most; an event without one marks the epoch of its onset."""
    text: str = "description"
    """Column of the stages' and events' names."""
    times: Literal["clock", "elapsed"] = "clock"
    """What an onset such as 22:15:00 is. clock: a time of day, counted from the start time in the
    recording's header, past midnight. elapsed: hours, minutes, seconds since the start."""
    stage_words: dict[str, str] = field(default_factory=dict)
    """Stages (W, N1, N2, N3, R, or ? for unscored) by the laboratory's words, in any case, such as
    {"Wach": W, "4": N3}, also in EDF+; besides "Sleep stage N2", "N2", "Stage 2", "REM", ..."""
    event_words: dict[str, str] = field(default_factory=dict)
    """Events by the laboratory's words, such as {"Hypopnoe": hypopnea}, also in EDF+, besides NCH's
    words: central_apnea, obstructive_apnea, mixed_apnea, obstructive_hypopnea, hypopnea,
    desaturation, arousal."""

    def check(self) -> None:
        """Raise SettingsError for a word that stands for nothing, or for two things."""
        stages = self.stages()
        events = _by_plain_word(self.event_words, EVENT_CODES, "event_words")
        if both := stages.keys() & events.keys():
            raise SettingsError(
                f"annotation_table: {min(both)!r} stands in stage_words and in event_words; keep "
                "one of them"
            )

    def scoring(self, rows: Iterable[tuple[float, float, str] | None]) -> Scoring:
        """Scoring of (onset_s, duration_s, text) rows by these words beside the common ones."""
        return scoring_from_rows(rows, own_stages=self.stages(), events=self.events())

    def names_stage(self, text: str) -> bool:
        """True for a stage's name, of the laboratory's words or the common ones."""
        return plain_name(text) in self.stages() or stage_of(text, strict=False) is not None

    def stages(self) -> dict[str, int]:
        """Stage by plain word of the laboratory's."""
        return _by_plain_word(self.stage_words, STAGE_CODES, "stage_words")

    def events(self) -> dict[str, tuple[str, int]]:
        """(label, code) by plain word, NCH's and the laboratory's."""
        return EVENTS | _by_plain_word(self.event_words, EVENT_CODES, "event_words")


def _by_plain_word(words: Mapping[str, str], codes: Mapping, key: str) -> dict:
    found = {}
    for word, target in words.items():
        if target not in codes:
            raise SettingsError(
                f"annotation_table.{key}: {word!r} cannot be {target!r}; give one of "
                f"{', '.join(codes)}"
            )
        if found.setdefault(plain_name(word), codes[target]) != codes[target]:
            raise SettingsError(f"annotation_table.{key}: {word!r} stands for two things")
    return found


def read_text_annotations(path: Path, table: AnnotationTable, recording: Path | None) -> Scoring:
    """Scoring of a table in text; ``recording``: the EDF file whose start times of day count from.

    Rows without a readable onset or duration, or with more cells than the header, are counted and
    left out. Raises AnnotationError, or RecordingError where the header tells no start.
    """
    name = printable(path.name)
    lines = _read_lines(path, table)
    start_s = None
    if table.times == "clock" and any(cells and is_clock(cells[0]) for cells in lines):
        if recording is None:
            raise AnnotationError(f"{name}: its onsets are times of day; give the recording, too")
        start_s = read_start_clock(recording)
    rows = [cells and _read_row(*cells, start_s) for cells in lines]
    stages = [row for row in rows if row and table.names_stage(row[2])]
    if not stages:
        raise AnnotationError(f"{name}: {_no_stage_in_words(rows)}")
    if start_s is not None and _changes_the_clock(stages):
        raise AnnotationError(
            f"{name}: its times of day jump by an hour (was the clock changed that night?); give "
            "seconds from recording start"
        )
    if counts_thousands([cells[0] for cells in lines if cells and table.names_stage(cells[2])]):
        raise AnnotationError(
            f"{name}: its onsets have commas between thousands; write them without"
        )
    if any(duration_s > 0 for _, duration_s, _ in stages):
        return table.scoring(rows)
    epoch_s = _usual_step(onset_s for onset_s, _, _ in stages)
    events = table.events()
    scoring = table.scoring(
        row and (row[0], row[1] if plain_name(row[2]) in events else epoch_s, row[2])
        for row in rows
    )
    scoring.remarks.append(
        f"no stage has a duration (column {printable(table.duration)!r}): {epoch_s:g} s are taken"
    )
    return scoring


def _read_lines(path: Path, table: AnnotationTable) -> list[tuple[str, str, str] | None]:
    """(onset, duration, text) of each row, None for one that has more cells than the header."""
    try:
        header, rows = read_delimited(path, (table.onset, table.text), LARGEST_FILE)
        rows = [cells for _, cells in rows]
    except TableError as error:
        remedy = "annotation_table.onset, .duration and .text name the columns"
        raise AnnotationError(f"{error}; {remedy}") from error
    names = [plain_name(name) for name in (table.onset, table.duration, table.text)]
    places = [header.index(name) if name in header else len(header) for name in names]
    lines = []
    for cells in rows:
        if any(cells[len(header) :]):  # a delimiter inside a text: which cell is which is unknown
            lines.append(None)
        else:
            cells = cells[: len(header)] + [""] * (len(header) + 1 - len(cells))
            lines.append(tuple(one_spelling(cells[place]) for place in places))
    return lines


def _read_row(
    onset: str, duration: str, text: str, start_s: float | None
) -> tuple[float, float, str] | None:
    """(onset_s, duration_s, text), None when the times are no numbers; a blank duration is 0."""
    onset_s = as_onset(onset, start_s)
    duration_s = 0.0 if is_blank(duration) else as_onset(duration, None)
    return None if onset_s is None or duration_s is None else (onset_s, duration_s, text)


def _changes_the_clock(stages: list[tuple[float, float, str]]) -> bool:
    """Whether rows in the order of the file go on an hour too late or too early somewhere."""
    onsets_s = np.array([onset_s for onset_s, _, _ in stages])
    lasts_s = np.array([duration_s for _, duration_s, _ in stages])
    lasts_s = np.where(lasts_s > 0, lasts_s, _usual_step(onsets_s))
    off_s = np.abs(np.diff(onsets_s) - lasts_s[:-1])
    return bool((np.abs(off_s - 3600) < CLOCK_ROUNDING_S).any())


def _usual_step(onsets_s: Iterable[float]) -> float:
    """Seconds from a stage to the next that are most frequent, 30 at most."""
    steps_s = Counter(np.diff(sorted(set(onsets_s))).round(3).tolist())
    return min([EPOCH_S, *(step_s for step_s, _ in steps_s.most_common(1))])


def _no_stage_in_words(rows: list[tuple[float, float, str] | None]) -> str:
    """What is wrong, with the most frequent texts; a rare one may be a note on the patient."""
    found = Counter(row[2] for row in rows if row)
    told = [
        f"{printable(text)[:LONGEST_WORD]!r} ({n})"
        for text, n in found.most_common(TOLD_WORDS)
        if n >= GRID_ROWS
    ]
    frequent = f"; the most frequent texts: {', '.join(told)}" if told else ""
    return (
        "no row whose times can be read names a stage; annotation_table.stage_words names those of "
        f"other words{frequent}"
    )
