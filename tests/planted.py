"""Cohorts with a known truth for the tests of embeddings, probes and the report."""

from pathlib import Path

import h5py
import numpy as np

from pedsleepmae import splits, store, tasks
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS, RATE_HZ
from pedsleepmae.probe import embeddings, tables

SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}


def planted_index(
    folder: Path, patients: dict[str, int], n_epochs: int, seed: int, n_files: int = 3
) -> store.ExampleIndex:
    """An index of ``patients`` by split, ``n_epochs`` each, spread over files without signals.

    Every label is drawn at random: stages uniform, events with prevalence 0.3.
    """
    rng = np.random.default_rng(seed)
    n = sum(patients.values()) * n_epochs
    patient_N = np.repeat(np.arange(sum(patients.values())) + 100, n_epochs)
    split_of_patient = np.repeat([SPLIT_NUMBERS[s] for s in patients], list(patients.values()))
    split_N = split_of_patient[patient_N - 100]
    file_N = split_N * n_files + rng.integers(0, n_files, n)
    files = []
    for number in range(3 * n_files):
        path = folder / splits.SPLITS[number // n_files] / f"combined_{number % n_files}.hdf5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["stands for signals"] = rng.random(1000)
        files.append(path)
    onset_N = np.tile(np.arange(n_epochs) * 30.0, sum(patients.values()))
    order = rng.permutation(n)
    order = order[np.argsort(file_N[order], kind="stable")]
    row_N = np.concatenate([np.arange(c) for c in np.bincount(file_N, minlength=3 * n_files)])
    events = {name: (rng.random(n) < 0.3).astype(np.int64) for name in tasks.LABELS}
    return store.ExampleIndex(
        files=files,
        file_of=file_N[order],
        row_of=row_N,
        split=split_N[order].astype(np.int8),
        labels=events | {"sleep": rng.integers(0, 5, n)},
        patient_ids=patient_N[order],
        study_ids=patient_N[order] * 10,
        onsets_s=onset_N[order],
        present=np.ones((n, N_CHANNELS), bool),
        split_hash="feedfacefeedface",
        patient_disjoint=True,
        simulated=True,
    )


def planted_table(
    index: store.ExampleIndex, folder: Path, **features: np.ndarray
) -> dict[str, tables.FeatureTable]:
    """Tables of these features (N, F), rows as in the index, written as script 3 writes them."""
    for i in range(len(index.files)):
        here = np.flatnonzero(index.file_of == i)
        rows = {name: embeddings.as_float16(x_NF[here]) for name, x_NF in features.items()}
        embeddings.write_features(folder, index, i, rows)
    return tables.open_tables(index, folder, list(features))


def write_cohort(
    folder: Path,
    n_epochs: int = 24,
    patients=(("train", 4), ("val", 2), ("test", 3)),
    *,
    patient_disjoint: bool = True,
    simulated: bool = True,
) -> Path:
    """Batch files with signals, whose stage is in the EEG's frequency and whose apneas stop flow.

    Desaturations never happen, hypopneas in test patients only, and channel 11 is never recorded.
    """
    rng = np.random.default_rng(0)
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    patient = 500
    for split, n_patients in patients:
        n = n_patients * n_epochs
        stage_N = np.tile(np.arange(n_epochs) * 5 // n_epochs, n_patients)
        apnea_N = (rng.random(n) < 0.25).astype(np.int64) * 2
        arousal_N = (rng.random(n) < 0.2).astype(np.int64)
        signals = 0.3 * rng.standard_normal((n, N_CHANNELS, EPOCH_SAMPLES)).astype(np.float32)
        rate_N = np.array([20.0, 9.0, 13.0, 1.0, 6.0])[stage_N]
        signals[:, :7] += np.sin(2 * np.pi * rate_N[:, None] * time_s)[:, None]
        breath_NT = np.sin(2 * np.pi * 0.25 * time_s) * np.ones((n, 1))
        stops = (time_s > 8) & (time_s < 20)
        signals[:, 9:11] += breath_NT[:, None]
        signals[:, 12] += np.where(stops & (apnea_N[:, None] > 0), 0, breath_NT)
        signals[:, 15] *= 1 + 3 * arousal_N[:, None]
        present = np.ones((n, N_CHANNELS), bool)
        present[:, 11] = False
        signals[:, 11] = 0
        patient_N = patient + np.repeat(np.arange(n_patients), n_epochs)
        patient += n_patients if patient_disjoint else 0
        order = rng.permutation(n)
        examples = store.Examples(
            signals=signals[order].astype(np.float16),
            labels={
                "sleep": np.where(np.arange(n) % 17 == 3, -1, stage_N)[order],
                "apnea": apnea_N[order],
                "hypop": (rng.random(n) < 0.2 * (split == "test")).astype(np.int64)[order],
                "desat": np.zeros(n, np.int64),
                "eeg": arousal_N[order],
            },
            patient_ids=patient_N[order],
            study_ids=(patient_N * 10 + (0 if patient_disjoint else len(split)))[order],
            onsets_s=np.tile(np.arange(n_epochs) * 30.0 + 7, n_patients)[order],
            present=present[order],
            center=np.zeros((n, N_CHANNELS)),
            scale=np.ones((n, N_CHANNELS)),
        )
        for i, start in enumerate(range(0, n, 50)):
            rows = slice(start, start + 50)
            part = store.Examples(
                **{
                    name: {k: v[rows] for k, v in values.items()}
                    if isinstance(values, dict)
                    else values[rows]
                    for name, values in vars(examples).items()
                }
            )
            store.write_batch(
                store.batch_path(folder, split, i),
                part,
                split_hash="feedfacefeedface",
                patient_disjoint=patient_disjoint,
                simulated=simulated,
            )
    return folder
