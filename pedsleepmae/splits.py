"""Patients to train, val and test: the draw and its hash; age bands; blocks of a night."""

import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np

SPLITS = ("train", "val", "test")
# Completed years: name of a band, and the age below which it ends.
AGE_BANDS = (("<1", 1), ("1-2", 3), ("3-5", 6), ("6-12", 13), ("13-18", 19), ("older", math.inf))
DAYS_PER_YEAR = 365.25


def split_patients(
    patient_ids: Iterable[int],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    keep: Mapping[int, str] | None = None,
    strata: Mapping[int, str] | None = None,
) -> dict[int, str]:
    """Assign every patient to one split.

    ``keep`` holds assignments that stand (from an earlier run); only the others are drawn, so
    that a growing cohort never moves a patient. ``strata`` (patient -> band, such as an age band)
    makes the shares hold within each band. As long as there are three patients, no split whose
    fraction is above 0 stays empty.
    """
    keep = dict(keep or {})
    fractions = {"val": val_fraction, "test": test_fraction}
    fractions = {"train": 1 - val_fraction - test_fraction} | fractions
    assignment = dict(keep)
    here = set(map(int, patient_ids))  # splits.csv may name patients whose recordings are gone
    open_patients = sorted(here - set(keep))
    rng = np.random.default_rng(seed)
    rng.shuffle(open_patients)
    if strata:  # stable: patients of a band stand together, in drawn order
        open_patients.sort(key=lambda patient: strata.get(patient, ""))
    counts = {split: list(assignment.values()).count(split) for split in SPLITS}
    for patient in open_patients:
        # The split that lacks most; walking band by band spreads each band over the splits.
        total = sum(counts.values()) + 1
        lack = {split: fractions[split] * total - counts[split] for split in SPLITS}
        chosen = max(SPLITS, key=lambda split: (fractions[split] > 0, lack[split]))
        assignment[patient] = chosen
        counts[chosen] += 1
    _fill_empty_splits(assignment, fractions, here, movable=open_patients)
    return dict(sorted(assignment.items()))


def _fill_empty_splits(
    assignment: dict[int, str], fractions: dict[str, float], here: set[int], movable: list[int]
) -> None:
    """Move a newly drawn train patient into val or test if no patient ``here`` stands there."""
    for split in ("test", "val"):
        in_train = [patient for patient in movable if assignment[patient] == "train"]
        taken = {assignment[patient] for patient in here}
        if fractions[split] > 0 and split not in taken and len(in_train) > 1:
            assignment[in_train[-1]] = split


def age_band(age_days: float) -> str | None:
    """Band of AGE_BANDS that an age in days falls into; None when it is unknown (not finite)."""
    if not math.isfinite(age_days):
        return None
    years = int(age_days / DAYS_PER_YEAR)
    return next(name for name, below in AGE_BANDS if years < below)


def count_patients_in_two_splits(patient_ids: np.ndarray, split: np.ndarray) -> int:
    """Number of patients with examples in more than one split; both arguments (N,)."""
    pairs = np.unique(np.stack([patient_ids, split]), axis=1)
    return int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def split_hash(assignment: Mapping[int, str]) -> str:
    """16 hexadecimal digits that identify who is in which split."""
    lines = "".join(f"{patient},{split}\n" for patient, split in sorted(assignment.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def split_blocks(
    n_blocks: int, *, val_fraction: float, test_fraction: float, seed: int
) -> np.ndarray:
    """Split number (0 train, 1 val, 2 test) of each contiguous block of a night, (n_blocks,).

    The blocks of each split are spread over the night at random, so that every part of the sleep
    cycle has its share in each.
    """
    n_val, n_test = round(n_blocks * val_fraction), round(n_blocks * test_fraction)
    numbers = np.repeat([1, 2, 0], [n_val, n_test, n_blocks - n_val - n_test])
    np.random.default_rng(seed).shuffle(numbers)
    return numbers
