"""Events as spans: seconds to events, one-to-one matching, chance, stages."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pedsleepmae.prepare.annotations import label_epochs, named_events, read_tsv
from pedsleepmae.probe.events import count_by_stage
from pedsleepmae.probe.spans import (
    SpanRule,
    epochs_as_spans,
    find_spans,
    intersection_over_union,
    match_spans,
    merge_spans,
    shift_spans,
)
from pedsleepmae.tasks import SCORED_KINDS

UCDDB = Path(__file__).resolve().parents[2] / "shared" / "psg" / "ucddb_tsv"
BREATHING = SCORED_KINDS["apnea_hypopnea"]


def spans(*pairs) -> np.ndarray:
    return np.array(pairs, float).reshape(-1, 2)


def drawn_night(rng, n: int) -> np.ndarray:
    onset_s = np.sort(rng.integers(0, 60, n)).astype(float)
    return np.stack([onset_s, onset_s + rng.integers(1, 25, n)], axis=1)


def brute_force(true, found, least_iou) -> tuple[int, float]:
    """Most pairs of any one-to-one matching, and of these the largest overlap in all."""
    iou = intersection_over_union(true, found)
    if len(true) > len(found):
        iou = iou.T
    best = (0, 0.0)
    for columns in itertools.permutations(range(iou.shape[1]), iou.shape[0]):
        chosen = [iou[i, j] for i, j in enumerate(columns) if iou[i, j] >= least_iou]
        best = max(best, (len(chosen), round(sum(chosen), 9)))
    return best


@pytest.mark.parametrize("least_iou", [0.2, 0.5])
def test_the_matching_is_that_of_brute_force_on_500_nights_each(least_iou):
    rng = np.random.default_rng(5)
    for _ in range(500):
        true, found = drawn_night(rng, rng.integers(0, 6)), drawn_night(rng, rng.integers(0, 5))
        pairs = match_spans(true, found, least_iou)
        assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)
        iou = intersection_over_union(true, found)[pairs[:, 0], pairs[:, 1]]
        assert (iou >= least_iou).all()
        assert (len(pairs), round(iou.sum(), 9)) == brute_force(true, found, least_iou)


def test_truth_against_itself_matches_every_event():
    true = drawn_night(np.random.default_rng(1), 40)
    assert len(match_spans(true, true, 1.0)) == 40
    point = spans((5, 5))
    assert len(match_spans(point, point, 0.5)) == 1  # an event without duration


def test_the_overlap_ratio_by_hand():
    found = intersection_over_union(spans((0, 10)), spans((5, 15), (0, 10), (10, 12), (20, 30)))
    np.testing.assert_allclose(found, [[5 / 15, 1, 0, 0]])


def test_more_pairs_win_over_one_larger_overlap():
    true, found = spans((0, 10), (10, 30)), spans((0, 22), (22, 60))
    # (0,10)-(0,22) 10/22; (10,30)-(0,22) 12/30; (10,30)-(22,60) 8/50
    assert match_spans(true, found, 0.15).tolist() == [[0, 0], [1, 1]]
    assert match_spans(true, found, 0.3).tolist() == [[0, 0]]


def test_an_event_opens_at_the_high_threshold_and_lasts_to_the_low_one():
    prob = np.array([0, 0.3, 0.9, 0.4, 0, 0, 0.6, 0, 0.9, 0.9])
    onset = np.array([0, 1, 2, 3, 4, 5, 6, 7, 20, 21.0])  # 8 to 20 s were not scored
    assert find_spans(prob, onset, 1.0, SpanRule(0.8, 0.3, 0, 1)).tolist() == [[1, 4], [20, 22]]
    assert find_spans(prob, onset, 1.0, SpanRule(0.5, 0.5, 0, 1)).tolist() == [
        [2, 3],
        [6, 7],
        [20, 22],
    ]
    assert find_spans(prob, onset, 1.0, SpanRule(0.5, 0.5, 3, 1)).tolist() == [[2, 7], [20, 22]]
    assert find_spans(prob, onset, 1.0, SpanRule(0.5, 0.5, 0, 2)).tolist() == [[20, 22]]
    assert len(find_spans(prob, onset, 1.0, SpanRule(0.95, 0.5, 0, 1))) == 0


def test_a_gap_in_the_scoring_ends_an_event():
    found = find_spans(np.ones(4), np.array([0, 1, 60, 61.0]), 1.0, SpanRule(0.5, 0.5, 0, 1))
    assert found.tolist() == [[0, 2], [60, 62]]


def test_spans_that_touch_or_hold_each_other_merge():
    assert merge_spans(spans((5, 9), (0, 4), (4, 5), (20, 30), (21, 22))).tolist() == [
        [0, 9],
        [20, 30],
    ]
    assert merge_spans(spans((0, 1), (3, 4)), gap_s=2).tolist() == [[0, 4]]


def test_truth_moved_on_is_what_chance_gives():
    true = spans((10, 20), (900, 930))
    moved = shift_spans(true, 500, 0, 1000)
    assert moved.tolist() == [[400, 430], [510, 520]]
    assert len(match_spans(true, moved, 0.2)) == 0
    assert shift_spans(moved, 500, 0, 1000).tolist() == true.tolist()


def test_positive_epochs_that_adjoin_are_one_event():
    onsets = np.array([0, 30, 60, 120, 150.0])
    found = epochs_as_spans(np.array([1, 1, 0, 1, 1]), onsets, 30.0)
    assert found.tolist() == [[0, 60], [120, 180]]


def test_events_of_all_stages_add_up():
    onsets, stages = np.array([0, 30, 60, 120.0]), np.array([0, 2, 4, -1])
    # Before the first epoch; in W, N2, R; in the gap from 90 to 120; in the unscored epoch.
    true = spans((-5, 3), (29, 40), (30, 45), (61, 62), (95, 130), (130, 140))
    counts = count_by_stage(true, onsets, stages)
    assert counts == {"wake": 2, "nrem": 1, "rem": 1, "unscored": 2}
    assert sum(counts.values()) == len(true)


@pytest.mark.skipif(not UCDDB.exists(), reason="no ../shared/psg: 25 nights of real scoring absent")
def test_on_25_real_scorings_truth_finds_itself_and_chance_little():
    found_by_chance, n_true = 0, 0
    for path in sorted(UCDDB.glob("*.tsv")):
        scoring = read_tsv(path)
        labels = label_epochs(scoring, 1e6)
        named = named_events(labels.scored)
        true = np.array([(on, on + s) for kind, on, s in named if kind in BREATHING])
        true = true.reshape(-1, 2)
        assert len(match_spans(true, true, 0.999)) == len(true)
        counts = count_by_stage(true, labels.onsets_s, labels.sleep)
        assert sum(counts.values()) == len(true)
        in_sleep = labels.n_events["apnea"] + labels.n_events["hypop"]
        begins_in_epoch = counts["rem"] + counts["nrem"]
        assert begins_in_epoch >= in_sleep  # and those that reach into sleep from a gap before
        last_s = labels.onsets_s[-1] + 30
        moved = shift_spans(true, last_s / 2, 0, last_s)
        found_by_chance += len(match_spans(true, moved, 0.2))
        n_true += len(true)
    assert n_true > 2000
    assert found_by_chance / n_true < 0.25
