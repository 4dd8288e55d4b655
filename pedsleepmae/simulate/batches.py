"""Simulated children straight to batch files, without EDF."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from pedsleepmae.channels import CHANNEL_NAMES, CHANNELS, EPOCH_SAMPLES, N_CHANNELS, RATE_HZ
from pedsleepmae.prepare import annotations
from pedsleepmae.prepare.signals import standardise_epochs
from pedsleepmae.simulate.cohort import SimulateSettings, Visit, visit_night
from pedsleepmae.simulate.draw import scored_rows
from pedsleepmae.simulate.night import Night
from pedsleepmae.simulate.signals import simulate_signals
from pedsleepmae.splits import SPLITS, split_hash, split_patients
from pedsleepmae.store import (
    BATCH_EXAMPLES,
    Examples,
    batch_path,
    read_splits,
    write_batch,
    write_grouping_state,
    write_table,
)
from pedsleepmae.tasks import EVENT_COUNTS, LABELS

VISITS_IN_MEMORY = 16  # nights whose examples are mixed at a time when batch files are written


def simulate_examples(
    night: Night, rng: np.random.Generator, present_C: np.ndarray | None = None
) -> tuple[np.ndarray, annotations.EpochLabels, np.ndarray]:
    """(x_NCT, labels, present_NC): the scored epochs of a night, straight at 128 Hz.

    ``x_NCT`` (N, 16, 3840) float32 in each channel's physical unit (volts, % for SPO2, the
    sensor's own unit for the rest), as `prepare` has it before standardising; absent channels are
    0. ``present_C`` (16,) says which channels the recording has; none given: all.
    """
    present_C = np.ones(N_CHANNELS, bool) if present_C is None else np.asarray(present_C, bool)
    signals = simulate_signals(night, int(RATE_HZ), rng)
    labels = annotations.label_epochs(
        annotations.scoring_from_rows(scored_rows(night)), night.duration_s
    )
    first_N = np.round(labels.onsets_s * RATE_HZ).astype(np.int64)
    x_NCT = np.zeros((len(first_N), N_CHANNELS, EPOCH_SAMPLES), np.float32)
    for c, channel in enumerate(CHANNELS):
        if present_C[c]:
            windows = np.lib.stride_tricks.sliding_window_view(signals[channel.name], EPOCH_SAMPLES)
            volts_per_uv = 1e-6 if channel.kind == "voltage" else 1.0
            x_NCT[:, c] = windows[first_N] * np.float32(volts_per_uv)
    return x_NCT, labels, np.broadcast_to(present_C, (len(first_N), N_CHANNELS)).copy()


def visit_examples(visit: Visit, settings: SimulateSettings) -> tuple[Examples, dict[str, int]]:
    """Standardised examples of a visit, simulated straight at 128 Hz; its events by kind."""
    present_C = np.array([name not in visit.absent for name in CHANNEL_NAMES])
    grid_s = round(visit.first_onset_s * RATE_HZ) / RATE_HZ
    night = visit_night(replace(visit, first_onset_s=grid_s), settings)
    rng = np.random.default_rng((*visit.stream, 2))
    x_NCT, labels, present_NC = simulate_examples(night, rng, present_C)
    signals_NCT, center_NC, scale_NC = standardise_epochs(x_NCT, present_NC)
    examples = Examples(
        signals=signals_NCT,
        labels={"sleep": labels.sleep, **labels.events},
        patient_ids=np.full(len(x_NCT), visit.patient_id),
        study_ids=np.full(len(x_NCT), visit.study_id),
        onsets_s=labels.onsets_s,
        present=present_NC,
        center=center_NC,
        scale=scale_NC,
    )
    return examples, labels.n_events


def write_batches(visits: list[Visit], settings: SimulateSettings) -> Iterator[int]:
    """Write train/, val/, test/ and the tables to ``settings.batches_dir``; yields n examples.

    Yields once for each visit. Examples are mixed over 16 visits at a time, so that memory stays
    bounded however large the cohort is. A splits.csv that is there stands for its patients. A
    folder that is not finished is refused by readers.
    """
    batches_dir = Path(settings.batches_dir)
    assignment = split_patients(
        {visit.patient_id for visit in visits},
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
        keep=read_splits(batches_dir),
    )
    for name in SPLITS:
        shutil.rmtree(batches_dir / name, ignore_errors=True)
    _write_state(batches_dir, visits, complete=False)
    table = pd.DataFrame(sorted(assignment.items()), columns=["patient_id", "split"])
    write_table(batches_dir / "splits.csv", table)
    facts = {
        "split_hash": split_hash(assignment),
        "patient_disjoint": True,
        "simulated": True,
        "scaling": "policy",
    }
    rng = np.random.default_rng((settings.seed, 3))
    waiting: dict[str, list[Examples]] = {name: [] for name in SPLITS}
    n_files, counts = dict.fromkeys(SPLITS, 0), []
    run = joblib.Parallel(n_jobs=settings.n_workers, return_as="generator")
    done = run(joblib.delayed(visit_examples)(visit, settings) for visit in visits)
    for i, (visit, (examples, n_events)) in enumerate(zip(visits, done, strict=True), start=1):
        waiting[assignment[visit.patient_id]].append(examples)
        if i % VISITS_IN_MEMORY == 0 or i == len(visits):
            for name, parts in waiting.items():
                rest = _write_full_batches(
                    batches_dir, name, parts, n_files, rng, facts, everything=i == len(visits)
                )
                waiting[name] = rest
        by_column = {column: n_events[kind] for kind, column in EVENT_COUNTS.items()}
        counts.append({"n_examples": len(examples), **by_column})
        yield len(examples)
    write_table(batches_dir / "studies.csv", _studies_table(visits, assignment, counts))
    _write_state(batches_dir, visits, complete=True)


def _studies_table(
    visits: list[Visit], assignment: dict[int, str], counts: list[dict[str, int]]
) -> pd.DataFrame:
    """A row for each visit, with those columns of script 1's studies.csv that it can fill."""
    return pd.DataFrame(
        {
            "patient_id": [visit.patient_id for visit in visits],
            "study_id": [visit.study_id for visit in visits],
            "split": [assignment[visit.patient_id] for visit in visits],
            "status": "used",
            "reason": "",
            **pd.DataFrame(counts),
            "rates": f"{RATE_HZ:g}",
            "n_channels": [N_CHANNELS - len(visit.absent) for visit in visits],
            "channels_absent": ["; ".join(visit.absent) for visit in visits],
            "remarks": "simulated, never an EDF file",
            "duration_h": [round(visit.duration_s / 3600, 3) for visit in visits],
            "age_days": [visit.age_days for visit in visits],
            "sex": [visit.child.sex for visit in visits],
        }
    )


def _write_full_batches(
    batches_dir: Path,
    split: str,
    parts: list[Examples],
    n_files: dict[str, int],
    rng: np.random.Generator,
    facts: dict,
    *,
    everything: bool,
) -> list[Examples]:
    """Write the examples of ``parts`` in random order; returns what does not fill a file."""
    if not parts:
        return []
    rows = np.array([(p, k) for p, part in enumerate(parts) for k in range(len(part))])
    rows = rng.permutation(rows)
    n_full = len(rows) // BATCH_EXAMPLES * BATCH_EXAMPLES
    end = len(rows) if everything else n_full
    for first in range(0, end, BATCH_EXAMPLES):
        chosen = rows[first : min(first + BATCH_EXAMPLES, end)]
        write_batch(batch_path(batches_dir, split, n_files[split]), _take(parts, chosen), **facts)
        n_files[split] += 1
    return [_take(parts, rows[end:])] if end < len(rows) else []


def _take(parts: list[Examples], rows: np.ndarray) -> Examples:
    """Examples at these (part, k) rows, in their order."""

    def column(values) -> np.ndarray:
        return np.stack([values(parts[p])[k] for p, k in rows])

    return Examples(
        signals=column(lambda part: part.signals),
        labels={name: column(lambda part, name=name: part.labels[name]) for name in LABELS},
        patient_ids=column(lambda part: part.patient_ids),
        study_ids=column(lambda part: part.study_ids),
        onsets_s=column(lambda part: part.onsets_s),
        present=column(lambda part: part.present),
        center=column(lambda part: part.center),
        scale=column(lambda part: part.scale),
    )


def _write_state(batches_dir: Path, visits: list[Visit], *, complete: bool) -> None:
    streams = json.dumps([(visit.key, visit.stream) for visit in visits])
    fingerprint = f"simulated-{hashlib.sha256(streams.encode()).hexdigest()[:16]}"
    write_grouping_state(batches_dir, fingerprint, complete=complete)
