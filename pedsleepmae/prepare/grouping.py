"""Example files of many studies to batch files of 128, mixed within the split; and the tables.

Which example stands where is drawn from the seed alone; memory holds one batch file at a time.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import joblib
import numpy as np
import pandas as pd

from pedsleepmae import disk, hdf5, splits, store
from pedsleepmae.errors import bounded
from pedsleepmae.machine import holder
from pedsleepmae.prepare import tables
from pedsleepmae.prepare.outcome import Outcome
from pedsleepmae.prepare.tables import write_splits, write_studies
from pedsleepmae.prepare.workers import Workers
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import EVENT_COUNTS

GROUPING_VERSION = 1


@dataclass
class SplitSettings:
    """How examples are divided into train, val and test."""

    by: Literal["patient", "time"] = "patient"
    """patient: each patient in one split only. time: contiguous blocks of each night, for a cohort
    of one person; everything downstream then says patient_disjoint: false."""
    val_fraction: float = bounded(0.1, 0, 1)
    """Share of the patients (or blocks) for choices: epoch, threshold, regularisation."""
    test_fraction: float = bounded(0.1, 0, 1)
    """Share of the patients (or blocks) touched once, at the end."""
    block_minutes: float = bounded(10.0, 0.5, 1440)
    """Length of a block when split.by is time, minutes."""


class Grouping:
    """The plan of the batch files: which example goes to which row of which file.

    ``rows`` holds, by split, an array (n, 2) of (position in ``studies``, k). ``fingerprint``
    identifies all that the batch files depend on.
    """

    def __init__(
        self,
        studies: Sequence[Outcome],
        assignment: dict[int, str],
        split: SplitSettings,
        seed: int,
        scaling: str,
    ):
        self.studies = sorted(studies, key=lambda study: (study.patient_id, study.study_id))
        self.scaling = scaling
        self.patient_disjoint = split.by == "patient"
        self.simulated = any(study.simulated for study in self.studies)
        if self.patient_disjoint:
            self.split_hash = splits.split_hash(assignment)
        else:
            blocks = [split.by, split.val_fraction, split.test_fraction, split.block_minutes, seed]
            self.split_hash = _hash([blocks, [study.key for study in self.studies]])
        # Each split's examples study by study, then in an order of its own that the seed draws.
        parts = {name: [np.zeros((0, 2), np.int64)] for name in SPLITS}
        for i, study in enumerate(self.studies):
            if self.patient_disjoint:
                by_split = {assignment[study.patient_id]: np.arange(study.n_examples)}
            else:
                by_split = _split_night(study, split, seed)
            for name, ks in by_split.items():
                parts[name].append(np.stack([np.full(len(ks), i), ks], axis=1))
        self.rows = {}
        for number, name in enumerate(SPLITS):
            rows = np.concatenate(parts[name])
            self.rows[name] = np.random.default_rng((seed, number)).permutation(rows)
        depends = [GROUPING_VERSION, self.split_hash, seed]
        depends += [(study.key, study.fingerprint, study.n_examples) for study in self.studies]
        self.fingerprint = _hash(depends)

    @property
    def n_files(self) -> int:
        return sum(-(-len(rows) // store.BATCH_EXAMPLES) for rows in self.rows.values())


def _hash(depends: list) -> str:
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]


def _split_night(study: Outcome, split: SplitSettings, seed: int) -> dict[str, np.ndarray]:
    """Numbers k of a study's examples by split, whole blocks of the night together."""
    onsets_s = np.array(study.onsets_s)
    block = ((onsets_s - onsets_s[0]) // (split.block_minutes * 60)).astype(int)
    n_blocks = block.max() + 1
    numbers = splits.split_blocks(
        n_blocks, val_fraction=split.val_fraction, test_fraction=split.test_fraction, seed=seed
    )
    return {name: np.flatnonzero(numbers[block] == k) for k, name in enumerate(SPLITS)}


def assign_patients(
    patient_ids: Iterable[int],
    batches_dir: Path,
    split: SplitSettings,
    seed: int,
    health: pd.DataFrame | None,
) -> dict[int, str]:
    """Split of every patient: those of splits.csv stand, new ones are drawn.

    Where ages are known the draw is stratified by the patient's age band at the first study.
    """
    bands = {}
    if health is not None:
        known = health.dropna(subset=["age_days"]).sort_values("study_id", ascending=False)
        bands = {row.patient_id: splits.age_band(row.age_days) for row in known.itertuples()}
    return splits.split_patients(
        patient_ids,
        val_fraction=split.val_fraction,
        test_fraction=split.test_fraction,
        seed=seed,
        keep=tables.read_splits(batches_dir) if split.by == "patient" else None,
        strata=bands,
    )


# ------------------------------------------------------------------ batch files
def is_grouped(plan: Grouping, batches_dir: Path) -> bool:
    """True when the batch files of exactly this plan are there, all of them."""
    state = store.read_grouping_state(batches_dir)
    if state.get("fingerprint") != plan.fingerprint or not state.get("complete"):
        return False
    return all(path.exists() for path, _ in _files(plan, batches_dir))


def foreign_file(batches_dir: Path) -> Path | None:
    """A file that script 1 would replace and that is not of its making; None: there is none.

    Batch files are ours by the state of the folder or, where it does not know them, by content.
    """
    if table := tables.foreign_table(batches_dir):
        return table
    n_files = store.read_grouping_state(batches_dir).get("n_files", {})
    for split in SPLITS:
        for i, path in store.numbered_files(batches_dir / split).items():
            if i < n_files.get(split, 0):
                continue
            try:
                with hdf5.open_file(path) as file:
                    if not {"format_version", "split_hash"} <= set(file.attrs):
                        return path
            except hdf5.Hdf5Error:
                return path
    return None


def write_batches(
    workers: Workers, plan: Grouping, examples_dir: Path, batches_dir: Path
) -> Iterator[int]:
    """Write the batch files of a plan; yields each one's number of examples.

    Files that an interrupted run of the same plan left whole stay; those of another plan go
    first. Until the last one is there the folder counts as unfinished, and readers refuse it.
    """
    if store.read_grouping_state(batches_dir).get("fingerprint") != plan.fingerprint:
        # From here on the old files count no more.
        store.write_grouping_state(batches_dir, "", complete=False)
        for name in SPLITS:
            for path in store.numbered_files(batches_dir / name).values():
                path.unlink()
        store.write_grouping_state(batches_dir, plan.fingerprint, complete=False)
    disk.remove_partial(batches_dir, "*/.combined_*.partial")
    facts = ("split_hash", "patient_disjoint", "simulated", "scaling")
    facts = {name: getattr(plan, name) for name in facts}
    work = partial(_write_batch, facts=facts, batches_dir=batches_dir, run=holder(batches_dir))
    todo = [(path, rows) for path, rows in _files(plan, batches_dir) if not path.exists()]
    calls = (
        joblib.delayed(work)(
            path, [_example_path(plan.studies[i], k, examples_dir) for i, k in rows]
        )
        for path, rows in todo
    )
    yield from workers.run(calls)
    store.write_grouping_state(batches_dir, plan.fingerprint, complete=True)


def _files(plan: Grouping, batches_dir: Path) -> Iterator[tuple[Path, np.ndarray]]:
    for name, rows in plan.rows.items():
        for i in range(-(-len(rows) // store.BATCH_EXAMPLES)):
            place = slice(i * store.BATCH_EXAMPLES, (i + 1) * store.BATCH_EXAMPLES)
            yield store.batch_path(batches_dir, name, i), rows[place]


def _example_path(study: Outcome, k: int, examples_dir: Path) -> Path:
    folder = store.example_folder(examples_dir, study.patient_id, study.study_id)
    return folder / store.example_name(folder.name, k)


def _write_batch(
    path: Path, example_paths: list[Path], facts: dict, batches_dir: Path, run: str
) -> int:
    examples = store.read_examples(example_paths)
    if holder(batches_dir) == run:  # else this worker's run was killed and another holds the folder
        store.write_batch(path, examples, **facts)
    return len(example_paths)


# ------------------------------------------------------------------ tables
def write_tables(
    outcomes: Sequence[Outcome],
    assignment: dict[int, str],
    by: str,
    health: pd.DataFrame | None,
    batches_dir: Path,
) -> None:
    """Write studies.csv and events.csv, and splits.csv where patients are split.

    studies.csv has one row for every recording found, the unusable ones with their reason;
    events.csv the scored events of those that are used.
    """
    ages = {}
    if health is not None:
        ages = {(r.patient_id, r.study_id): (r.age_days, r.sex) for r in health.itertuples()}
    rows = []
    for outcome in outcomes:
        age_days, sex = ages.get((outcome.patient_id, outcome.study_id), (None, ""))
        in_split = assignment.get(outcome.patient_id, "") if by == "patient" else "time"
        rows.append(
            {
                "patient_id": outcome.patient_id,
                "study_id": outcome.study_id,
                "split": in_split if outcome.usable else "",
                "status": "used" if outcome.usable else "unusable",
                "reason": outcome.reason,
                "n_examples": outcome.n_examples,
                **{name: outcome.event_counts.get(kind) for kind, name in EVENT_COUNTS.items()},
                "rates": " ".join(f"{rate:.8g}" for rate in outcome.rates_hz),
                "n_channels": len(outcome.channels),
                "channels": "; ".join(f"{n} = {origin}" for n, origin in outcome.channels.items()),
                "channels_absent": "; ".join(f"{n}: {why}" for n, why in outcome.absent.items()),
                "remarks": "; ".join(outcome.remarks),
                "duration_h": round(outcome.duration_s / 3600, 3),
                "age_days": None if age_days is None or np.isnan(age_days) else int(age_days),
                "sex": sex,
                "recording": outcome.recording,
            }
        )
    write_studies(batches_dir, rows)
    used = (outcome for outcome in outcomes if outcome.usable)
    tables.write_events(batches_dir, ((o.patient_id, o.study_id, o.events) for o in used))
    if by == "patient":
        write_splits(batches_dir, assignment)
