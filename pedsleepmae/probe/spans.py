"""Events as spans of time: seconds to events, events matched one to one, chance.

A span is (onset_s, end_s); spans of a night are (n, 2) float64, sorted by onset. Axes: **S** steps
of a night.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

STEP_S = 1.0  # events are found second by second
NO_SPANS = np.zeros((0, 2))


@dataclass(frozen=True)
class SpanRule:
    """How probabilities of steps become events.

    An event holds a step of at least ``high`` and goes on while steps have at least ``low``
    (hysteresis: Canny 1986). Events that lie up to ``gap_s`` apart are one; what is then shorter
    than ``least_s`` is none.
    """

    high: float
    low: float
    gap_s: float
    least_s: float


def find_spans(
    prob_S: np.ndarray, onset_S: np.ndarray, step_s: float, rule: SpanRule
) -> np.ndarray:
    """Events in the probabilities of steps that begin at ``onset_S``, (n, 2).

    Steps that do not adjoin (a stretch that was not scored) end an event.
    """
    is_on = prob_S >= rule.low
    apart = np.r_[True, np.abs(np.diff(onset_S) - step_s) > step_s / 2]
    begins = is_on & (~np.r_[False, is_on[:-1]] | apart)
    run_S = np.cumsum(begins) - 1
    n = int(begins.sum())
    if not n:
        return NO_SPANS
    run_S, peak_S, at_S = run_S[is_on], prob_S[is_on], onset_S[is_on]
    peaks = np.full(n, -np.inf)
    np.maximum.at(peaks, run_S, peak_S)
    last = np.r_[np.flatnonzero(np.diff(run_S)), len(run_S) - 1]
    spans = np.stack([onset_S[begins], at_S[last] + step_s], axis=1)[peaks >= rule.high]
    spans = merge_spans(spans, rule.gap_s)
    return spans[spans[:, 1] - spans[:, 0] >= rule.least_s - 1e-9]


def merge_spans(spans: np.ndarray, gap_s: float = 0.0) -> np.ndarray:
    """Sorted spans without overlap: those up to ``gap_s`` apart are one."""
    if len(spans) < 2:
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    end = np.maximum.accumulate(spans[:, 1])
    first = np.r_[True, spans[1:, 0] - end[:-1] > gap_s + 1e-9]
    last = np.r_[np.flatnonzero(first)[1:] - 1, len(spans) - 1]
    return np.stack([spans[first, 0], end[last]], axis=1)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each span of ``a`` with each of ``b``, (len(a), len(b)).

    Two events without duration at one place are the same: their ratio is 1.
    """
    start = np.maximum(a[:, None, 0], b[None, :, 0])
    shared_s = np.minimum(a[:, None, 1], b[None, :, 1]) - start
    union_s = np.maximum(a[:, None, 1], b[None, :, 1]) - np.minimum(a[:, None, 0], b[None, :, 0])
    same = (union_s == 0) & (shared_s == 0)
    shared_s = np.maximum(shared_s, 0)
    return np.where(same, 1.0, shared_s / np.where(union_s > 0, union_s, 1))


def match_spans(true: np.ndarray, found: np.ndarray, least_iou: float) -> np.ndarray:
    """Pairs (row of ``true``, row of ``found``) of a one-to-one matching, (n, 2) int.

    Only pairs of at least ``least_iou`` (intersection over union) count; of all such matchings one
    with the most pairs, and of these the largest overlap in all (an assignment problem).
    """
    if not len(true) or not len(found):
        return np.zeros((0, 2), np.int64)
    iou = intersection_over_union(true, found)
    may = (iou >= least_iou - 1e-12) & (iou > 0)
    if not may.any():
        return np.zeros((0, 2), np.int64)
    # A pair more outweighs all overlap that it could cost.
    value = np.where(may, 1 + iou / (1 + min(iou.shape)), 0)
    rows, columns = linear_sum_assignment(value, maximize=True)
    kept = may[rows, columns]
    return np.stack([rows[kept], columns[kept]], axis=1)


def shift_spans(spans: np.ndarray, shift_s: float, first_s: float, last_s: float) -> np.ndarray:
    """Spans moved on by ``shift_s`` around the stretch from ``first_s`` to ``last_s``: chance.

    An event that would cross the end begins anew at the start, with its length.
    """
    length_s = spans[:, 1] - spans[:, 0]
    onset_s = first_s + (spans[:, 0] - first_s + shift_s) % (last_s - first_s)
    moved = np.stack([onset_s, onset_s + length_s], axis=1)
    return moved[np.argsort(onset_s, kind="stable")]


def epochs_as_spans(positive_N: np.ndarray, onsets_s: np.ndarray, epoch_s: float) -> np.ndarray:
    """Runs of adjoining epochs that hold an event, as events: what epoch labels know of them."""
    rule = SpanRule(0.5, 0.5, 0.0, 0.0)
    return find_spans(positive_N.astype(float), onsets_s, epoch_s, rule)
