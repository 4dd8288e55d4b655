"""Frozen encoder (or hand-made features) to features on disk, computed once.

One HDF5 file for each batch file, `<output_dir>/embeddings/<key>/<split>_combined_<i>.hdf5`:

| dataset | shape, type | meaning |
| --- | --- | --- |
| `features/<name>` | (n, F) float16 | a pooling (`@k`: of block k), or `handmade`; NaN: unknown |
| `patient_ids`, `study_ids` | (n,) int64 | as in the batch file |
| `onsets_s` | (n,) float64 | epoch start, seconds from the start of the recording |
| `sleep_labels`, `apnea_labels`, … | (n,) int64 | as in the batch file |
| `channels_present` | (n, 16) bool | as in the batch file |
| attributes | | `source` (fingerprint of the batch file), `key`, `format_version` |

The key names what computed them: the checkpoint's SHA-256, the encoder (pretrained, or untrained
with its seed), the split hash and the precision. A file whose batch file has changed, or that
lacks a pooling, is computed again; all others are left alone, so an interrupted run goes on.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import h5py
import joblib
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pedsleepmae import disk, hdf5, machine, store, tasks
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.data import fill_gaps, sample_batches
from pedsleepmae.probe.handmade import handmade_features
from pedsleepmae.probe.tables import (
    FeatureTable,
    feature_path,
    open_tables,
    parts_of,
    place_of,
)

ALONE = machine.World()
FORMAT_VERSION = 1
FLOAT16_MAX = float(np.finfo(np.float16).max)
FINGERPRINT_BLOCKS, FINGERPRINT_BYTES = 16, 4096


# ------------------------------------------------------------------ keys
def embedding_key(checkpoint_sha256: str, encoder: str, split_hash: str, precision: str) -> str:
    """Folder name of what this encoder makes of this split."""
    return f"{encoder}_{checkpoint_sha256[:16]}_{split_hash or 'nosplit'}_{precision}"


def fingerprint(path: Path) -> str:
    """Identifies a batch file's content: the hash that script 1 stored with its signals (without
    one, the time of change), its size and 16 blocks spread over it.

    Reading whole files only to see that they are unchanged would take as long as embedding them.
    The hash tells that one example of 128 is another; the blocks, that somebody else wrote here.
    """
    stat = path.stat()
    size = stat.st_size
    with store.open_batch(path) as file:
        made = hdf5.attribute(file, "signals_hash", "") or stat.st_mtime_ns
    digest = hashlib.sha256(f"{size} {made}".encode())
    with open(path, "rb") as file:
        for i in range(FINGERPRINT_BLOCKS):
            file.seek(i * max(0, size - FINGERPRINT_BYTES) // (FINGERPRINT_BLOCKS - 1))
            digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:32]


# ------------------------------------------------------------------ computing
def open_features(
    index: store.ExampleIndex,
    checkpoint: Checkpoint,
    folder: Path,
    poolings: Sequence[str],
    compute: machine.Compute,
    *,
    untrained_seed: int | None = None,
    title: str = "embeddings",
    world: machine.World = ALONE,
) -> dict[str, FeatureTable]:
    """Tables of a frozen encoder's features by pooling; what ``folder`` lacks is computed first.

    ``untrained_seed``: of the same encoder with fresh weights, drawn by this seed. A large cohort
    is embedded by script 3 under torchrun, each process of ``world`` its share of the files.
    """
    encoder, model = "pretrained", checkpoint.build_model()
    if untrained_seed is not None:
        encoder, model = f"untrained{untrained_seed}", untrained_twin(checkpoint, untrained_seed)
    key = embedding_key(checkpoint.sha256, encoder, index.split_hash, compute.precision)
    embed_files(index, model, Path(folder) / key, poolings, compute, title, world)
    return open_tables(index, Path(folder) / key, poolings)


def untrained_twin(checkpoint: Checkpoint, seed: int) -> nn.Module:
    """The same encoder with fresh weights, drawn by this seed, on the CPU."""
    model = checkpoint.build_model().cpu()
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def embed_files(
    index: store.ExampleIndex,
    model: nn.Module,
    folder: Path,
    poolings: Sequence[str],
    compute: machine.Compute,
    title: str,
    world: machine.World = ALONE,
) -> int:
    """Embed all batch files that are not embedded yet; returns how many were done.

    ``model`` offers ``embed_many(x_BCT, poolings, present)``. Each process of ``world`` takes its
    share of the files and waits for the others, so that all find the folder complete.
    """
    model = model.to(compute.device).eval()
    parts = sorted({part for name in poolings for part in parts_of(name)})
    todo = _files_to_do(index, folder, parts)
    world.meet()  # all have looked before anyone writes: they share the same list
    mine = todo[world.rank :: world.size]
    n_examples = int(np.isin(index.file_of, mine).sum())
    with tqdm(total=n_examples, desc=title, unit="ex", disable=not world.is_first) as bar:
        for i in mine:
            pieces = []
            rows = np.flatnonzero(index.file_of == i)
            for x_BCT, present_BC in sample_batches(index, rows, compute.batch_size):
                features = embed_batch(model, x_BCT, present_BC, parts, compute)
                pieces.append({name: as_float16(values) for name, values in features.items()})
                bar.update(len(x_BCT))
            features = {name: np.concatenate([piece[name] for piece in pieces]) for name in parts}
            write_features(folder, index, i, features)
    world.meet()
    return len(mine)


def embed_batch(
    model: nn.Module,
    x_BCT: torch.Tensor,
    present_BC: torch.Tensor,
    poolings: Sequence[str],
    compute: machine.Compute,
) -> dict[str, np.ndarray]:
    """Features of one batch by pooling (`@k` at its end: of block k), each (B, F) float32.

    ``model`` is on compute's device.
    """
    x_BCT, present_BC = x_BCT.to(compute.device).float(), present_BC.to(compute.device)
    with compute.autocast():
        features = model.embed_many(x_BCT, poolings, present=present_BC)
    return {name: values.float().cpu().numpy() for name, values in features.items()}


def embed_arrays(
    model: nn.Module,
    signals_NCT: np.ndarray,
    present_NC: np.ndarray,
    poolings: Sequence[str],
    compute: machine.Compute,
    title: str | None = None,
) -> dict[str, np.ndarray]:
    """Features of examples in memory by pooling, (N, F) float32; ``title``: of a progress bar."""
    model, pieces = model.to(compute.device).eval(), []
    with tqdm(total=len(signals_NCT), desc=title, unit="epoch", disable=title is None) as bar:
        for start in range(0, len(signals_NCT), compute.batch_size):
            rows = slice(start, start + compute.batch_size)
            x_BCT = np.array(signals_NCT[rows], np.float32)
            _, empty_BC = fill_gaps(x_BCT)
            x_BCT, present_BC = map(torch.from_numpy, (x_BCT, present_NC[rows] & ~empty_BC))
            pieces.append(embed_batch(model, x_BCT, present_BC, poolings, compute))
            bar.update(len(x_BCT))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in poolings}


def compute_handmade(index: store.ExampleIndex, folder: Path, n_workers: int) -> int:
    """Hand-made features of all batch files that lack them; returns how many files were done."""
    todo = _files_to_do(index, folder, ["handmade"])

    def compute(i: int) -> None:
        rows = np.flatnonzero(index.file_of == i)
        ((x_NCT, present_NC),) = sample_batches(index, rows, len(index))
        features = handmade_features(x_NCT.numpy(), present_NC.numpy())
        write_features(folder, index, i, {"handmade": as_float16(features)})

    jobs = joblib.Parallel(n_workers, return_as="generator_unordered", prefer="threads")(
        joblib.delayed(compute)(i) for i in todo
    )
    for _ in tqdm(jobs, total=len(todo), desc="hand-made features", unit="file"):
        pass
    return len(todo)


def as_float16(values: np.ndarray) -> np.ndarray:
    """Rounded to half precision; finite values beyond its range become its largest."""
    return np.clip(values, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)


def write_features(
    folder: Path, index: store.ExampleIndex, i: int, features: dict[str, np.ndarray]
) -> None:
    """Write the features of the i-th batch file of the index, whole or not at all.

    Features that the file already holds under other names, from the same batch file, stay.
    """
    path, source = feature_path(folder, index.files[i]), fingerprint(index.files[i])
    rows = np.flatnonzero(index.file_of == i)
    with contextlib.suppress(hdf5.Hdf5Error), hdf5.open_file(path) as file:  # none, or damaged
        if hdf5.attribute(file, "source", "") == source:
            old = {name: hdf5.dataset(file, f"features/{name}")[()] for name in file["features"]}
            features = old | features
    with disk.write_whole(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in features.items():
            file[f"features/{name}"] = values
        file["patient_ids"], file["study_ids"] = index.patient_ids[rows], index.study_ids[rows]
        file["onsets_s"], file["channels_present"] = index.onsets_s[rows], index.present[rows]
        for name, (_, dataset) in tasks.LABELS.items():
            file[dataset] = index.labels[name][rows]
        file.attrs["source"], file.attrs["key"] = map(np.bytes_, (source, Path(folder).name))
        file.attrs["format_version"] = FORMAT_VERSION


def _files_to_do(index: store.ExampleIndex, folder: Path, names: Sequence[str]) -> list[int]:
    """Numbers of the batch files whose features are missing, damaged or out of date."""

    def is_current(i: int) -> bool:
        try:
            with hdf5.open_file(feature_path(folder, index.files[i])) as file:
                lengths = {place_of(file, name)[0][0] for name in names}
                source = hdf5.attribute(file, "source", "")
        except hdf5.Hdf5Error:
            return False
        n_examples = np.count_nonzero(index.file_of == i)
        return lengths == {n_examples} and source == fingerprint(index.files[i])

    return [i for i in range(len(index.files)) if not is_current(i)]
