"""Which rows of an annotation file are stages, and the 30-s epochs that they make, on any grid.

Laboratories write stages in many words ("Sleep stage N2", "Stage 2", "S2", "NREM 2") and on other
grids than 30 s: 20 s under Rechtschaffen & Kales, 1 s from some exports, runs of many epochs.
Whatever the rows are, the epochs that come out last 30 s and never overlap.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from pedsleepmae.channels import EPOCH_S
from pedsleepmae.tasks import STAGES, UNSCORED

LONGEST_S = 48 * 3600.0  # longer rows, and onsets farther off, are writing errors
TOLERANCE_S = 1e-3  # below a sample: onsets and record durations are rounded text
SAME_ONSET_S = 0.1  # between two scorers' rounding of one onset; no grid is as fine
LEFT_OUT = -2  # two scored rows disagree: neither can be trusted
N_CODES = len(STAGES) - LEFT_OUT
GRID_ROWS = 5  # so many rows of 30 s with one unknown word are no notes: they may be stages
TOLD_WORDS, LONGEST_WORD = 5, 24  # unknown words that are told, and characters of each

# What may stand behind "Sleep stage": AASM's names and those of Rechtschaffen & Kales, whose 3
# and 4 together are N3. Movement time has no counterpart at AASM.
_NAMES = {
    **dict.fromkeys(("w", "wake", "awake", "wakefulness", "s0", "wach", "éveil"), 0),
    **dict.fromkeys(("n1", "1", "s1", "nrem1"), 1),
    **dict.fromkeys(("n2", "2", "s2", "nrem2"), 2),
    **dict.fromkeys(("n3", "3", "s3", "nrem3", "n4", "4", "s4", "nrem4"), 3),
    **dict.fromkeys(("r", "rem"), 4),
    **dict.fromkeys(("?", "unscored", "unknown", "undefined", "movement", "mt"), UNSCORED),
}
# Words that are a stage without "stage" before them; a bare number is not one.
_BARE = {name for name in _NAMES if len(name) > 1} | {"w", "r"}
_PREFIX = re.compile(r"^(sleep ?stage[ :_-]+|sleep[_-]+|stage[ :_-]+)")
_FULL_PREFIX = re.compile(r"^sleep ?(stage[ :_]|[_-])")
_SUFFIX = re.compile(r"[ _-](sleep|stage)$")
_SPACED = re.compile(r"^(n|s|nrem|non-?rem)[ _-](?=\d$)")


# ------------------------------------------------------------------ words
def stage_of(description: str, *, strict: bool) -> int | None:
    """Stage that a description names, UNSCORED for unscored; None when it names none.

    ``strict``: only behind "Sleep stage", as EDF+ and NCH have it. A technician's note may say
    "REM" or "awake" and is no scoring.
    """
    name = " ".join(description.lower().split())
    if name == "movement time":
        return UNSCORED
    rest = _PREFIX.sub("", name)
    if strict and not _FULL_PREFIX.match(name):
        return None
    if rest == name and _SUFFIX.sub("", rest) not in _BARE and not _SPACED.match(rest):
        return None
    rest = _SPACED.sub(lambda match: match[1].replace("on-", "").replace("on", ""), rest)
    return _NAMES.get(_SUFFIX.sub("", rest))


def stage_rows(
    rows: Sequence[tuple[float, float, str]],
    words: Mapping[str, int] | None,
    remarks: Counter,
    own_words: Mapping[str, int] = MappingProxyType({}),
) -> list[tuple[float, float, int]]:
    """(onset_s, duration_s, stage) of the (onset_s, duration_s, description) rows that are stages.

    ``words``: stages by description, lower-case, of a format with a vocabulary of its own. Without,
    bare words count only where no row says "Sleep stage", and only with a duration, which notes
    do not have. ``own_words``: stages by the words of a laboratory, lower-case; these always count.
    ``remarks`` gets what is left out.
    """
    texts = {text for _, _, text in rows}
    own = {text: own_words.get(" ".join(text.lower().split())) for text in texts}
    own = {text: stage for text, stage in own.items() if stage is not None}
    if words is not None:
        known = {text: words.get(" ".join(text.lower().split())) for text in texts}
    else:
        known = {text: stage_of(text, strict=True) for text in texts}
        if not any(stage is not None and stage >= 0 for stage in known.values()):
            known = {text: stage_of(text, strict=False) for text in texts}
            notes = {text for text in texts if known[text] is not None and text not in own}
            rows = [row for row in rows if row[1] > 0 or row[2] not in notes]
    if words is None:
        known |= dict.fromkeys(_ambiguous_numbers(known))
    known |= own
    found, others, unknown = [], [], Counter()
    for onset_s, duration_s, text in rows:
        if known[text] is None:
            unknown[text] += bool(_FULL_PREFIX.match(text.lower())) or duration_s == EPOCH_S
            others.append((onset_s, duration_s, text))
        elif not (abs(onset_s) <= LONGEST_S and 0 <= duration_s <= LONGEST_S):
            remarks["stage or event rows with an impossible time left out"] += 1
        else:
            found.append((onset_s, duration_s, known[text]))
    for text in [
        t for t in unknown if unknown[t] < GRID_ROWS and not _FULL_PREFIX.match(t.lower())
    ]:
        del unknown[text]
    if unknown:
        told = ", ".join(f"{t[:LONGEST_WORD]!r} ({n})" for t, n in unknown.most_common(TOLD_WORDS))
        remarks[f"rows whose words are no known stage left out: {told}"] = sum(unknown.values())
    if n := _n_between(found, [row for row in others if row[2] not in unknown]):
        remarks["rows between stages whose words are no known stage left out"] = n
    starts_s = sorted({onset_s for onset_s, _, _ in found})
    alone_s = {a for a, b in itertools.pairwise(starts_s) if b - a > EPOCH_S + TOLERANCE_S}
    if n := sum(duration_s == 0 and onset_s in alone_s for onset_s, duration_s, _ in found):
        remarks["stage rows without a duration taken for 30 s though the next begins later"] = n
    return found


def _n_between(
    staged: Iterable[tuple[float, float, int]], others: Iterable[tuple[float, float, str]]
) -> int:
    """How many of the ``others`` fill the time between two stages, from end to onset.

    So no note does, and few events: they are stages in words of their own, too rare to be quoted.
    """
    staged = list(staged)
    begun = {round(onset_s, 3) for onset_s, _, _ in staged}
    ended = {round(onset_s + duration_s, 3) for onset_s, duration_s, _ in staged} - begun
    return sum(
        duration_s > 0 and round(onset_s, 3) in ended and round(onset_s + duration_s, 3) in begun
        for onset_s, duration_s, _ in others
    )


def _ambiguous_numbers(known: Mapping[str, int | None]) -> set[str]:
    """Texts "Sleep stage 4" that may be N3 or R.

    Stages in numbers are 0 to 5 under Rechtschaffen & Kales (4: deep sleep, 5: REM) and 0 to 4 in
    many programs (4: REM): where W is 0 and R has neither a 5 nor a word, nobody can tell.
    """
    numbers = {text: _PREFIX.sub("", " ".join(text.lower().split())) for text in known}
    tells_rem = "5" in numbers.values() or 4 in known.values()
    if tells_rem or "0" not in numbers.values():
        return set()
    return {text for text, number in numbers.items() if number == "4"}


# ------------------------------------------------------------------ the grid
class _Stretch(NamedTuple):
    """Time that one row stages; ``fine``: the row is shorter than an epoch."""

    start_s: float
    end_s: float
    stage: int
    fine: bool


def epochs_of_rows(
    rows: Iterable[tuple[float, float, int]], remarks: Counter
) -> tuple[np.ndarray, np.ndarray]:
    """(onsets_s (M,), stages (M,)) of stage rows (onset_s, duration_s, stage); none overlap.

    A row is an epoch of 30 s from its onset, also where it is shorter. A longer one is a run of
    epochs; a row inside it goes before it from onset to end. Rows that begin within 30 s of each
    other are on a finer grid and are combined: 30 s from the first of them on, each with the stage
    that covers most of it, on a tie the earlier one; less than 30 s at their end are left out. Of
    two stages at one onset a scored one goes before unscored; two scored ones are left out.
    """
    onsets_s, stages = [], []
    n_fine = n_combined = 0
    for group in _groups(_stretches(_one_row_each_onset(rows))):
        start_s, end_s = group[0].start_s, group[-1].end_s
        n = int((end_s - start_s + TOLERANCE_S) / EPOCH_S)
        onsets_s += [start_s + i * EPOCH_S for i in range(n)]
        if group[0].fine:
            stages += _stages_of_epochs(group, n)
            n_fine, n_combined = n_fine + len(group), n_combined + n
        else:
            stages += [group[0].stage] * n
    onsets_s, stages = np.array(onsets_s, float), np.array(stages, np.int64)
    if n_fine:
        rule = "the stage of most of each, the earlier one on a tie"
        what = f"stage rows on a grid finer than 30 s combined to {n_combined} epochs ({rule})"
        remarks[what] = n_fine
    if n_left_out := int((stages == LEFT_OUT).sum()):
        remarks["epochs scored twice and differently left out"] = n_left_out
    return onsets_s[stages != LEFT_OUT], stages[stages != LEFT_OUT]


def _one_row_each_onset(rows: Iterable[tuple[float, float, int]]) -> list[tuple]:
    """(onset_s, duration_s, stage) in time order, each onset once, LEFT_OUT where rows disagree."""
    by_onset: dict[float, tuple[float, set[int]]] = {}
    first_s = -np.inf
    for onset_s, duration_s, stage in sorted(rows):
        if onset_s - first_s > SAME_ONSET_S:
            first_s = onset_s
        longest_s, found = by_onset.get(first_s, (0.0, set()))
        by_onset[first_s] = max(longest_s, duration_s), found | {stage}
    merged = []
    for onset_s, (duration_s, found) in sorted(by_onset.items()):
        scored = found - {UNSCORED} or found
        merged.append((onset_s, duration_s, scored.pop() if len(scored) == 1 else LEFT_OUT))
    return merged


def _stretches(rows: list[tuple]) -> list[_Stretch]:
    """What each row stages, without overlap: a later row goes before an earlier, longer one."""
    stretches: list[_Stretch] = []
    runs: list[tuple[float, int]] = []  # (end, stage) of longer rows that a later row interrupted
    claims: list[tuple[float, int]] = []  # (end, stage) of rows of one whole epoch
    before_s = step_s = np.inf  # from the row before to this one
    for i, (onset_s, duration_s, stage) in enumerate(rows):
        next_s = rows[i + 1][0] if i + 1 < len(rows) else np.inf
        before_s, step_s = step_s, next_s - onset_s
        shorter = EPOCH_S - TOLERANCE_S
        fine = step_s < shorter or (before_s < shorter and 0 <= duration_s < shorter)
        if step_s < shorter:
            end_s = max(next_s, onset_s + duration_s)
        elif fine:  # the last of its grid
            end_s = onset_s + (duration_s or min(before_s, step_s))
        else:
            end_s = onset_s + max(duration_s, EPOCH_S)
        shown = stage
        if abs(duration_s - EPOCH_S) <= TOLERANCE_S:
            claims = [claim for claim in claims if claim[0] > onset_s]
            if _is_disputed(claims, onset_s, min(end_s, next_s), stage):
                shown = LEFT_OUT
            claims.append((onset_s + duration_s, stage))
        stretches.append(_Stretch(onset_s, min(end_s, next_s), shown, fine))
        if end_s > next_s + TOLERANCE_S and duration_s > EPOCH_S:
            runs.append((end_s, stage))
        time_s = min(end_s, next_s)
        while runs and time_s < next_s - TOLERANCE_S:  # what is left of the runs until the next row
            run_end_s, run_stage = runs[-1]
            if run_end_s > time_s + TOLERANCE_S:
                stretches.append(_Stretch(time_s, min(run_end_s, next_s), run_stage, False))
                time_s = min(run_end_s, next_s)
            if run_end_s <= time_s + TOLERANCE_S:
                runs.pop()
    return stretches


def _is_disputed(
    claims: Iterable[tuple[float, int]], start_s: float, end_s: float, stage: int
) -> bool:
    """Whether a whole epoch that began before has most of this time under another scored stage.

    So it is where two scorings on different grids stand in one file, or onsets count epochs.
    """
    until_s = max((end for end, other in claims if 0 <= other != stage), default=start_s)
    return stage >= 0 and min(until_s, end_s) - start_s > (end_s - start_s) / 2


def _groups(stretches: list[_Stretch]) -> Iterator[list[_Stretch]]:
    """Fine stretches that follow each other without a gap together; every other one alone."""
    group: list[_Stretch] = []
    for stretch in stretches:
        joins = group and group[-1].fine and stretch.fine
        if group and not (joins and stretch.start_s - group[-1].end_s < TOLERANCE_S):
            yield group
            group = []
        group.append(stretch)
    if group:
        yield group


def _stages_of_epochs(group: list[_Stretch], n: int) -> list[int]:
    """The stage of most of each of the n epochs of a group, on a tie the earlier one."""
    starts_s = np.array([stretch.start_s for stretch in group])
    edges_s = starts_s[0] + EPOCH_S * np.arange(n + 1)
    pieces_s = np.union1d(starts_s[starts_s < edges_s[-1]], edges_s)
    stage_n = np.array([stretch.stage for stretch in group])
    place = (
        np.searchsorted(edges_s, pieces_s[:-1], side="right") - 1,
        stage_n[np.searchsorted(starts_s, pieces_s[:-1], side="right") - 1] - LEFT_OUT,
    )
    seconds, first_s = np.zeros((n, N_CODES)), np.full((n, N_CODES), np.inf)
    np.add.at(seconds, place, np.diff(pieces_s))
    np.minimum.at(first_s, place, pieces_s[:-1])
    seconds = seconds.round(6)
    first_s[seconds < seconds.max(axis=1, keepdims=True)] = np.inf
    return (first_s.argmin(axis=1) + LEFT_OUT).tolist()
