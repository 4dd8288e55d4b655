"""Speed of the loader of training batches beside the file system's own rate and a naive loader.

    python benchmarks/bench_loader.py                           # 16 files of 128 examples in /tmp
    python benchmarks/bench_loader.py --folder /scratch --n_files 200

Cold: after the kernel was asked to forget the files (it may decline, as on a memory file system);
warm: read before. The naive loader opens the HDF5 file for each example, as one would write it
first. Training needs a third of the warm rate at most: compare bench_pretrain.py's examples/s. The
last line is a row for benchmarks/RESULTS.md.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pedsleepmae import data
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.store import (
    BATCH_EXAMPLES,
    ExampleIndex,
    Examples,
    batch_path,
    load_index,
    write_batch,
)
from pedsleepmae.tasks import LABELS

EXAMPLE_BYTES = N_CHANNELS * EPOCH_SAMPLES * 2
BLOCK_BYTES = 1 << 22


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write the files; none: /tmp")
    parser.add_argument("--n_files", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--n_threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for i in range(options.n_files):
            write_file(Path(folder), i)
        index = load_index(folder)
        n = len(index) // options.batch_size * options.batch_size
        loader = {"cold": 0.0, "warm": 0.0}
        disk = dict(loader)
        for state in loader:
            disk[state] = rate(lambda: read_files(index), len(index), index, state)
            loader[state] = rate(lambda: load(index, n, options), n, index, state)
        n_naive = min(256, n)
        naive = rate(lambda: load_naively(index, n_naive), n_naive, index, "warm")
    for state in loader:
        print(
            f"{state}: files alone {disk[state]:,.0f} examples/s "
            f"({disk[state] * EXAMPLE_BYTES / 1e9:.2f} GB/s), loader {loader[state]:,.0f} "
            f"examples/s, share {loader[state] / disk[state]:.2f}"
        )
    print(f"naive loader, warm: {naive:,.0f} examples/s, ours {loader['warm'] / naive:.1f} x")
    print(
        f"| bench_loader | {options.n_threads} threads, batch {options.batch_size}, "
        f"{options.n_files} files | cold {loader['cold']:,.0f}, warm {loader['warm']:,.0f} "
        f"examples/s | files alone {disk['cold']:,.0f}, {disk['warm']:,.0f} | naive {naive:,.0f} |"
    )


def rate(read: Callable[[], None], n: int, index: ExampleIndex, state: str) -> float:
    """Examples a second: the only cold time, or the best of three warm ones."""
    times = []
    for _ in range(1 if state == "cold" else 3):
        if state == "cold":
            forget(index)
        begin = time.perf_counter()
        read()
        times.append(time.perf_counter() - begin)
    return n / min(times)


def write_file(folder: Path, i: int) -> None:
    rng = np.random.default_rng(i)
    n = BATCH_EXAMPLES
    signals = rng.standard_normal((n, N_CHANNELS, EPOCH_SAMPLES), np.float32).astype(np.float16)
    ones = np.ones((n, N_CHANNELS))
    examples = Examples(
        signals=signals,
        labels={name: np.zeros(n, np.int64) for name in LABELS},
        patient_ids=np.full(n, i),
        study_ids=np.full(n, i),
        onsets_s=np.arange(n) * 30.0,
        present=ones.astype(bool),
        center=0 * ones,
        scale=ones,
    )
    path = batch_path(folder, "train", i)
    write_batch(path, examples, split_hash="", patient_disjoint=True, simulated=True)


def forget(index: ExampleIndex) -> None:
    """Ask the kernel to drop the files' pages."""
    for path in index.files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------ three ways to read
def read_files(index: ExampleIndex) -> None:
    """The file system's own rate: all bytes in order into one buffer."""
    buffer = bytearray(BLOCK_BYTES)
    for path in index.files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def load(index: ExampleIndex, n: int, options: argparse.Namespace) -> None:
    """``n`` examples in training batches."""
    batches = data.training_batches(
        index,
        index.rows("train"),
        batch_size=options.batch_size,
        seed=0,
        n_threads=options.n_threads,
    )
    for _ in itertools.islice(batches, n // options.batch_size):
        pass
    batches.close()


def load_naively(index: ExampleIndex, n: int) -> None:
    """``n`` examples at random, each from a newly opened file, to float32."""
    for position in np.random.default_rng(0).permutation(len(index))[:n]:
        with h5py.File(index.files[index.file_of[position]], "r") as file:
            torch.from_numpy(file["signals"][index.row_of[position]]).float()


if __name__ == "__main__":
    main()
