"""Stage rows on any grid and in any words become 30-s epochs that never overlap."""

from collections import Counter

import numpy as np
import pytest

from pedsleepmae.prepare.annotations import label_epochs, scoring_from_rows
from pedsleepmae.prepare.stages import epochs_of_rows, stage_of

STAGE = ["Sleep stage W", "Sleep stage N1", "Sleep stage N2", "Sleep stage N3", "Sleep stage R"]


def epochs(rows):
    scoring = scoring_from_rows(rows)
    return scoring.stage_onsets_s.tolist(), scoring.stages.tolist(), scoring.remarks


# ------------------------------------------------------------------ grids
@pytest.mark.parametrize("step_s", [1, 5, 10, 20])
def test_rows_on_a_finer_grid_become_epochs_of_30_s(step_s):
    rows = [(step_s * i, step_s, STAGE[step_s * i // 60 % 5]) for i in range(600 // step_s)]
    onsets_s, stages, (remark,) = epochs(rows)
    assert onsets_s == [30.0 * i for i in range(20)]
    assert stages == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] * 2
    assert f"{len(rows)} stage rows on a grid finer than 30 s combined to 20 epochs" in remark


def test_the_stage_of_most_of_an_epoch_counts_and_the_earlier_one_on_a_tie():
    # 20-s rows W, R, R, N2: the first epoch is 20 s W and 10 s R, the second 10 s R, 20 s N2 ...
    assert epochs([(20 * i, 20, STAGE[s]) for i, s in enumerate([0, 4, 2])])[1] == [0, 2]
    assert epochs([(15 * i, 15, STAGE[s]) for i, s in enumerate([3, 1])])[1] == [3]
    assert epochs([(10 * i, 10, STAGE[s]) for i, s in enumerate([3, 1, 1])])[1] == [1]


def test_what_is_left_of_a_finer_grid_is_no_epoch():
    assert epochs([(20 * i, 20, STAGE[2]) for i in range(4)])[0] == [0.0, 30.0]  # 80 s


def test_a_gap_begins_a_new_grid():
    rows = [(20 * i, 20, STAGE[2]) for i in range(3)] + [
        (107 + 20 * i, 20, STAGE[3]) for i in range(3)
    ]
    assert epochs(rows)[0] == [0.0, 30.0, 107.0, 137.0]


def test_rows_without_a_duration_last_until_the_next():
    assert epochs([(10.0 * i, 0.0, STAGE[2]) for i in range(6)])[:2] == ([0.0, 30.0], [2, 2])
    assert epochs([(30.0 * i, 0.0, STAGE[2]) for i in range(2)])[0] == [0.0, 30.0]


def test_a_stray_row_inside_an_epoch_is_part_of_it():
    rows = [(30.0 * i, 30.0, STAGE[2]) for i in range(4)] + [(72.0, 18.0, STAGE[4])]
    assert epochs(rows)[:2] == ([0.0, 30.0, 60.0, 90.0], [2, 2, 4, 2])


def test_a_second_of_unscored_time_is_weighed_like_a_stage():
    rows = [(10 * i, 10, text) for i, text in enumerate(["Sleep stage ?"] * 2 + [STAGE[2]] * 4)]
    assert epochs(rows)[1] == [-1, 2]


def test_epochs_of_random_rows_never_overlap():
    rng = np.random.default_rng(0)
    for _ in range(500):
        n = rng.integers(1, 25)
        rows = zip(
            np.where(rng.random(n) < 0.5, rng.integers(0, 400, n), rng.uniform(0, 400, n).round(2)),
            rng.choice([0, 1, 10, 20, 30, 60, 300], n),
            rng.integers(-1, 5, n),
            strict=True,
        )
        onsets_s, stages = epochs_of_rows(rows, Counter())
        assert (np.diff(onsets_s) >= 30 - 2e-3).all()
        assert len(onsets_s) == len(stages)


def test_rows_that_claim_days_cost_no_memory():
    rows = [(0.37 * i, 48 * 3600.0, STAGE[2]) for i in range(3000)]
    onsets_s, _, _ = epochs(rows)
    assert len(onsets_s) < 6000
    assert len(epochs([(1e9 * i, 48 * 3600.0, STAGE[2]) for i in range(300)])[0]) == 5760


def test_events_mark_combined_epochs():
    rows = [(20 * i, 20, STAGE[2]) for i in range(6)] + [(35.0, 10.0, "Central Apnea")]
    assert label_epochs(scoring_from_rows(rows), 120.0).events["apnea"].tolist() == [0, 1, 0, 0]


# ------------------------------------------------------------------ words
@pytest.mark.parametrize(
    ("text", "stage"),
    [("Stage 2", 2), ("N2", 2), ("REM", 4), ("Wake", 0), ("S3", 3), ("NREM 3", 3), ("NREM 1", 1),
     ("nrem-2", 2), ("NREM2", 2), ("S4", 3), ("Stage R", 4), ("stage: w", 0), ("REM sleep", 4),
     ("Stage 1 sleep", 1), ("SLEEP-S2", 2), ("SLEEP-REM", 4), ("non-REM 2", 2), ("Awake", 0),
     ("W", 0), ("Movement time", -1), ("unscored", -1)],
)  # fmt: skip
def test_other_words_for_a_stage_are_known(text, stage):
    assert stage_of(text, strict=False) == stage
    assert epochs([(30.0 * i, 30.0, text) for i in range(3)])[1] == [stage] * 3


@pytest.mark.parametrize("text", ["2", "3", "stage two", "not REM", "wake up call", "N", "T", "5"])
def test_what_may_mean_anything_is_no_stage(text):
    assert stage_of(text, strict=False) is None


def test_notes_in_the_same_words_are_no_stages_where_the_file_says_sleep_stage():
    rows = [(30.0 * i, 30.0, STAGE[2]) for i in range(3)]
    notes = [(35.0, 0.0, "REM"), (62.0, 5.0, "awake"), (40.0, 0.0, "stage 2")]
    assert epochs([*rows, *notes]) == ([0.0, 30.0, 60.0], [2, 2, 2], [])
    assert epochs([(35.0, 0.0, "REM"), (62.0, 0.0, "awake")])[0] == []


def test_rows_with_unknown_words_are_counted_and_named():
    rows = [(30.0 * i, 30.0, "Tiefschlaf") for i in range(15)]
    rows += [(450.0 + 30 * i, 30.0, "Sleep stage W") for i in range(5)] + [
        (600.0, 30.0, "Sleep stage XY")
    ]
    _, stages, (remark,) = epochs(rows)
    assert stages == [0] * 5
    assert remark == (
        "16 rows whose words are no known stage left out: 'Tiefschlaf' (15), 'Sleep stage XY' (1)"
    )


# ------------------------------------------------------------------ two scorings, numbers
@pytest.mark.parametrize("later_s", [0.01, 15.0])
def test_of_two_scorings_in_one_file_no_disputed_epoch_is_kept(later_s):
    rows = [(30.0 * i, 30.0, STAGE[2]) for i in range(4)]
    other = [(30.0 * i + later_s, 30.0, STAGE[0]) for i in range(3)]
    onsets_s, stages, remarks = epochs(rows + other)
    assert stages == [2] * len(onsets_s)
    assert len(onsets_s) <= 2
    assert any("scored twice and differently left out" in remark for remark in remarks)


def test_onsets_that_count_epochs_are_no_seconds():
    assert epochs([(float(i), 30.0, STAGE[i % 5]) for i in range(20)])[1] == []


def test_a_number_that_may_be_deep_sleep_or_rem_is_left_out_and_told():
    def stages_of(numbers):
        return epochs([(30.0 * i, 30.0, f"Sleep stage {n}") for i, n in enumerate(numbers)])

    _, stages, (remark,) = stages_of("01234")
    assert stages == [1, 2, 3]
    assert "'Sleep stage 4' (1)" in remark
    assert stages_of("1234R")[1] == [1, 2, 3, 3, 4]
    assert stages_of("02345")[1] == [2, 3, 3]


def test_noxturnal_and_german_words_for_wake_are_wake():
    rows = [(30.0 * i, 30.0, text) for i, text in enumerate(["Éveil", "N2", "REM", "Wach"])]
    assert epochs(rows)[1:] == ([0, 2, 4, 0], [])


def test_a_rare_row_that_fills_the_time_between_stages_is_told_without_its_words():
    rows = [(0.0, 30.0, "N2"), (30.0, 60.0, "Veglia"), (90.0, 30.0, "N2"), (93.0, 9.0, "Marke")]
    _, stages, remarks = epochs(rows)
    assert stages == [2, 2]
    assert remarks == ["1 rows between stages whose words are no known stage left out"]
