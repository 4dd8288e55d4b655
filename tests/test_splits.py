"""Patients to splits."""

from collections import Counter

import numpy as np
import pytest

from pedsleepmae.splits import age_band, split_blocks, split_hash, split_patients


def draw(n, seed=0, **options):
    fractions = {"val_fraction": 0.1, "test_fraction": 0.2} | options
    return split_patients(range(1, n + 1), seed=seed, **fractions)


def test_every_patient_is_in_one_split_and_the_shares_hold():
    assignment = draw(1000)
    assert sorted(assignment) == list(range(1, 1001))
    assert Counter(assignment.values()) == {"train": 700, "val": 100, "test": 200}


def test_the_draw_depends_on_the_seed_and_on_nothing_else():
    assert draw(50) == draw(50)
    assert draw(50) != draw(50, seed=1)
    reversed_ids = split_patients(range(50, 0, -1), val_fraction=0.1, test_fraction=0.2, seed=0)
    assert reversed_ids == draw(50)


@pytest.mark.parametrize("n", [3, 4, 5, 7])
def test_three_patients_are_enough_for_three_splits(n):
    assert set(draw(n).values()) == {"train", "val", "test"}


def test_one_patient_goes_to_train():
    assert set(draw(1).values()) == {"train"}


def test_7_a_growing_cohort_moves_no_patient():
    first = draw(20)
    grown = split_patients(range(1, 201), val_fraction=0.1, test_fraction=0.2, seed=0, keep=first)
    assert {patient: grown[patient] for patient in first} == first
    counts = Counter(grown.values())
    assert abs(counts["val"] - 20) <= 2
    assert abs(counts["test"] - 40) <= 2


def test_7_val_patients_whose_recordings_are_gone_leave_no_empty_val():
    gone = dict.fromkeys(range(100, 120), "val")
    assignment = draw(6, keep=gone)
    assert {assignment[patient] for patient in range(1, 7)} >= {"train", "val", "test"}


def test_7_each_age_band_has_its_share():
    strata = {patient: "infant" if patient <= 60 else "teen" for patient in range(1, 301)}
    assignment = draw(300, strata=strata)
    for band, n in (("infant", 60), ("teen", 240)):
        counts = Counter(assignment[p] for p, b in strata.items() if b == band)
        assert abs(counts["val"] - 0.1 * n) <= 1
        assert abs(counts["test"] - 0.2 * n) <= 1


def test_the_hash_tells_who_is_in_which_split():
    assignment = draw(10)
    moved = assignment | {1: "val" if assignment[1] != "val" else "test"}
    assert split_hash(dict(reversed(assignment.items()))) == split_hash(assignment)
    assert split_hash(moved) != split_hash(assignment)


def test_blocks_of_a_night_have_their_shares():
    numbers = split_blocks(50, val_fraction=0.2, test_fraction=0.2, seed=3)
    assert np.bincount(numbers).tolist() == [30, 10, 10]
    assert (np.diff(numbers) != 0).sum() > 15  # spread over the night, not three pieces


@pytest.mark.parametrize(
    ("years", "band"),
    [
        *((0.99, "<1"), (1.01, "1-2"), (2.99, "1-2"), (3.01, "3-5"), (12.99, "6-12")),
        *((13.01, "13-18"), (18.99, "13-18"), (19.01, "older"), (np.nan, None)),
    ],
)
def test_age_bands_are_completed_years(years, band):
    assert age_band(years * 365.25) == band
