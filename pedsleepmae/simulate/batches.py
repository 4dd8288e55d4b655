"""Simulated children straight to batch files, without EDF."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace

import joblib
import numpy as np
from numpy.random import Generator

from pedsleepmae import store
from pedsleepmae.channels import CHANNEL_NAMES, CHANNELS, EPOCH_SAMPLES, N_CHANNELS, RATE_HZ
from pedsleepmae.prepare import annotations, readings, tables
from pedsleepmae.prepare.signals import standardise_epochs
from pedsleepmae.prepare.tables import write_splits, write_studies
from pedsleepmae.simulate.chain import Chain
from pedsleepmae.simulate.cohort import SimulateSettings, Visit, visit_night
from pedsleepmae.simulate.events import scored_rows
from pedsleepmae.simulate.night import Night
from pedsleepmae.simulate.signals import simulate_signals
from pedsleepmae.splits import SPLITS, split_hash, split_patients
from pedsleepmae.tasks import EVENT_COUNTS, LABELS

VISITS_IN_MEMORY = 16  # nights whose examples are mixed at a time when batch files are written


def simulate_examples(
    night: Night, present_C: np.ndarray, rng: Generator, chain: Chain | None = None
) -> tuple[np.ndarray, annotations.EpochLabels, np.ndarray]:
    """(x_NCT, labels, present_NC): the scored epochs of a night, straight at 128 Hz.

    ``x_NCT`` (N, 16, 3840) float32 in each channel's physical unit (volts, % for SPO2, the
    sensor's own unit for the rest), as script 1 has it before standardising; absent channels are
    0. ``present_C`` (16,) says which channels the recording has. An oximeter's gaps are held or
    missing, as script 1 has them.
    """
    signals = simulate_signals(night, int(RATE_HZ), rng, chain=chain)
    scoring = annotations.scoring_from_rows(scored_rows(night))
    labels = annotations.label_epochs(scoring, night.duration_s)
    first_N = np.round(labels.onsets_s * RATE_HZ).astype(np.int64)
    x_NCT = np.zeros((len(first_N), N_CHANNELS, EPOCH_SAMPLES), np.float32)
    present_NC = np.broadcast_to(present_C, (len(first_N), N_CHANNELS)).copy()
    for c, channel in enumerate(CHANNELS):
        if not present_C[c]:
            continue
        x = signals[channel.name]
        if channel.kind == "percent":
            is_reading = readings.is_reading(x, RATE_HZ)
            x, missing = readings.hold_short_gaps(x, is_reading, RATE_HZ)
            x[missing] = np.nan
        windows = np.lib.stride_tricks.sliding_window_view(x, EPOCH_SAMPLES)
        volts_per_uv = 1e-6 if channel.kind == "voltage" else 1.0
        x_NCT[:, c] = windows[first_N] * np.float32(volts_per_uv)
        present_NC[:, c] = np.isnan(x_NCT[:, c]).mean(axis=1) <= readings.MOST_MISSING
    return x_NCT, labels, present_NC


def visit_examples(
    visit: Visit, settings: SimulateSettings
) -> tuple[store.Examples, annotations.EpochLabels]:
    """Standardised examples of a visit, simulated straight at 128 Hz, and their labels."""
    present_C = np.array([name not in visit.absent for name in CHANNEL_NAMES])
    grid_s = round(visit.first_onset_s * RATE_HZ) / RATE_HZ
    night = visit_night(replace(visit, first_onset_s=grid_s), settings)
    rng = np.random.default_rng((*visit.stream, 2))
    x_NCT, labels, present_NC = simulate_examples(night, present_C, rng, visit.chain)
    signals_NCT, center_NC, scale_NC = standardise_epochs(
        x_NCT, present_NC, scaling=settings.scaling
    )
    examples = store.Examples(
        signals=signals_NCT,
        labels={"sleep": labels.sleep, **labels.events},
        patient_ids=np.full(len(x_NCT), visit.patient_id),
        study_ids=np.full(len(x_NCT), visit.study_id),
        onsets_s=labels.onsets_s,
        present=present_NC,
        center=center_NC,
        scale=scale_NC,
    )
    return examples, labels


def write_batches(visits: list[Visit], settings: SimulateSettings) -> Iterator[int]:
    """Write train/, val/, test/ and the tables to ``settings.batches_dir``; yields n examples.

    Yields once for each visit. Examples are mixed over 16 visits at a time, so that memory stays
    bounded however large the cohort is. A splits.csv that is there stands for its patients. A
    folder that is not finished is refused by readers.
    """
    batches_dir = settings.batches_dir
    assignment = split_patients(
        {visit.patient_id for visit in visits},
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
        keep=tables.read_splits(batches_dir),
    )
    facts = [settings.scaling] + [settings.variation] * (settings.variation != "none")
    streams = json.dumps([(visit.key, visit.stream) for visit in visits] + facts)
    fingerprint = f"simulated-{hashlib.sha256(streams.encode()).hexdigest()[:16]}"
    for name in SPLITS:
        shutil.rmtree(batches_dir / name, ignore_errors=True)
    store.write_grouping_state(batches_dir, fingerprint, complete=False)
    write_splits(batches_dir, assignment)
    facts = {"split_hash": split_hash(assignment), "patient_disjoint": True}
    facts |= {"simulated": True, "scaling": settings.scaling}

    rng = np.random.default_rng((settings.seed, 3))
    waiting: dict[str, list[store.Examples]] = {name: [] for name in SPLITS}
    n_files, studies, events = dict.fromkeys(SPLITS, 0), [], []
    in_parallel = joblib.Parallel(n_jobs=settings.n_workers, return_as="generator")
    made = in_parallel(joblib.delayed(visit_examples)(visit, settings) for visit in visits)
    for number, (visit, (examples, labels)) in enumerate(zip(visits, made, strict=True), start=1):
        split, is_last = assignment[visit.patient_id], number == len(visits)
        waiting[split].append(examples)
        studies.append(_study_row(visit, split, len(examples), labels.n_events))
        named = annotations.named_events(labels.scored)
        events.append((visit.patient_id, visit.study_id, named))
        if number % VISITS_IN_MEMORY == 0 or is_last:
            for name, parts in waiting.items():
                waiting[name] = []
                for rows in _shuffled_batches(parts, rng):
                    batch = _take(parts, rows)
                    if len(batch) < store.BATCH_EXAMPLES and not is_last:
                        waiting[name] = [batch]  # to be mixed with the next visits
                        continue
                    path = store.batch_path(batches_dir, name, n_files[name])
                    store.write_batch(path, batch, **facts)
                    n_files[name] += 1
        yield len(examples)
    write_studies(batches_dir, studies)
    tables.write_events(batches_dir, events)
    store.write_grouping_state(batches_dir, fingerprint, complete=True)


def _study_row(visit: Visit, split: str, n_examples: int, n_events: dict[str, int]) -> dict:
    """A row of studies.csv: those columns of script 1's that a simulated visit can fill."""
    return {
        "patient_id": visit.patient_id,
        "study_id": visit.study_id,
        "split": split,
        "status": "used",
        "reason": "",
        "n_examples": n_examples,
        **{column: n_events[kind] for kind, column in EVENT_COUNTS.items()},
        "rates": f"{RATE_HZ:g}",
        "n_channels": N_CHANNELS - len(visit.absent),
        "channels_absent": "; ".join(visit.absent),
        "remarks": "simulated, never an EDF file",
        "duration_h": round(visit.duration_s / 3600, 3),
        "age_days": visit.age_days,
        "sex": visit.child.sex,
    }


def _shuffled_batches(parts: list[store.Examples], rng: Generator) -> list[np.ndarray]:
    """Rows (part, k) of all examples in random order, 128 at a time; the last may be fewer."""
    rows = [(p, k) for p, part in enumerate(parts) for k in range(len(part))]
    if rows:
        rows = rng.permutation(rows)
    return [rows[i : i + store.BATCH_EXAMPLES] for i in range(0, len(rows), store.BATCH_EXAMPLES)]


def _take(parts: list[store.Examples], rows: np.ndarray) -> store.Examples:
    """Examples at these (part, k) rows, in their order."""
    names = {item.name for item in fields(store.Examples)} - {"labels"}
    return store.Examples(
        labels={name: np.stack([parts[p].labels[name][k] for p, k in rows]) for name in LABELS},
        **{name: np.stack([getattr(parts[p], name)[k] for p, k in rows]) for name in names},
    )
