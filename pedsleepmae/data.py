"""Batch files to training batches: every example once an epoch, seeded, resumable at any step.

The order is an endless stream of examples, epoch after epoch; a batch is the next B of them, so
that a position in the stream is all that has to be remembered. Each process of a parallel run
reads its own contiguous share of every batch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.machine import in_advance
from pedsleepmae.store import ExampleIndex, map_signals

VARIANCE_SAMPLE = 512  # training examples; enough for a variance within some per cent
LEAST_VARIANCE = 1e-3  # of a standardised channel; below, it is constant but for rounding

# Files whose examples are mixed with each other: 64 x 128 examples, a gigabyte of float16, which
# the page cache holds while the pool is read, so that each file comes from the disk once.
POOL_FILES = 64
OPEN_FILES = POOL_FILES + 16
AHEAD = 4  # batches read while the model computes
FLOAT16_EXPONENT = np.uint16(0x7C00)  # all of these bits set: infinite or not a number


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch of ``batch_size`` examples; B is the length of the share.

    ``x_BCT`` float16 as stored (float32 from wider files), values that were not finite counted in
    ``n_bad`` and filled by fill_gaps; ``present_BC`` bool; ``rows`` the places of these examples
    in the whole batch; ``n_present`` the present channels of the whole batch; ``end`` the stream
    position after it; ``positions`` the whole batch's, in the index.
    """

    x_BCT: Tensor
    present_BC: Tensor
    rows: slice
    batch_size: int
    n_present: int
    end: int
    n_bad: int
    positions: np.ndarray


# ------------------------------------------------------------------ parts of an index
def keep_files(index: ExampleIndex, kept: np.ndarray) -> ExampleIndex:
    """The part of an index that lies in these of its files (their numbers)."""
    kept = np.unique(kept)
    rows = np.isin(index.file_of, kept)
    columns = ("row_of", "split", "patient_ids", "study_ids", "onsets_s", "present")
    return replace(
        index,
        files=[index.files[i] for i in kept],
        file_of=np.searchsorted(kept, index.file_of[rows]),
        labels={name: label_N[rows] for name, label_N in index.labels.items()},
        **{name: getattr(index, name)[rows] for name in columns},
    )


def files_of_split(index: ExampleIndex, split: str) -> ExampleIndex:
    """The part of an index whose files hold examples of this split, whole files."""
    return keep_files(index, index.file_of[index.rows(split)])


# ------------------------------------------------------------------ order
def epoch_order(file_of: np.ndarray, epoch: int, seed: int) -> np.ndarray:
    """Order in which examples are seen in an epoch: a permutation of ``arange(len(file_of))``.

    The files (``file_of``: each example's file) are shuffled and taken POOL_FILES at a time; the
    examples of such a pool are shuffled with each other.
    """
    rng = np.random.default_rng([seed, epoch])
    files, file_number = np.unique(file_of, return_inverse=True)
    pool_of_file = rng.permutation(len(files)) // POOL_FILES
    return np.lexsort((rng.random(len(file_of)), pool_of_file[file_number]))


def stream(file_of: np.ndarray, *, start: int, length: int, seed: int) -> Iterator[np.ndarray]:
    """The endless stream of examples from position ``start`` on, ``length`` at a time.

    A batch may end one epoch and begin the next, so that all batches are full.
    """
    n_examples, orders = len(file_of), {}
    while True:
        taken = []
        while (missing := length - sum(map(len, taken))) > 0:
            epoch, first = divmod(start, n_examples)
            if epoch not in orders:
                orders = {epoch: epoch_order(file_of, epoch, seed)}
            taken.append(orders[epoch][first : first + missing])
            start += len(taken[-1])
        yield np.concatenate(taken)


def share_of(batch_size: int, rank: int, world_size: int) -> slice:
    """Places in a batch that belong to process ``rank`` of ``world_size``."""
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


# ------------------------------------------------------------------ batches
def training_batches(
    index: ExampleIndex,
    positions: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    n_threads: int = 2,
    pin: bool = False,
) -> Iterator[Batch]:
    """Endless batches of these positions of the index, from stream position ``start`` on.

    ``n_threads`` read AHEAD batches in advance; ``pin`` puts them into page-locked memory for
    transfers to a GPU. The order depends on the seed alone, not on the number of processes.
    """
    rows = share_of(batch_size, rank, world_size)
    map_file = functools.lru_cache(maxsize=OPEN_FILES)(map_signals)
    chosen = stream(index.file_of[positions], start=start, length=batch_size, seed=seed)

    def read(job: tuple[int, np.ndarray]) -> Batch:
        number, whole = job
        whole = positions[whole]
        x_BCT, present_BC, n_bad = _read_signals(index, whole[rows], map_file, pin)
        n_present = int(index.present[whole].sum())
        end = start + (number + 1) * batch_size
        return Batch(x_BCT, present_BC, rows, batch_size, n_present, end, n_bad, whole)

    yield from in_advance(read, enumerate(chosen), n_threads, AHEAD)


def sample_batches(
    index: ExampleIndex, positions: np.ndarray, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """These positions of the index once, in their order: (``x_BCT``, ``present_BC``) each."""
    map_file = functools.lru_cache(maxsize=OPEN_FILES)(map_signals)

    def read(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        return _read_signals(index, chosen, map_file, pin=False)[:2]

    parts = (positions[i : i + batch_size] for i in range(0, len(positions), batch_size))
    yield from in_advance(read, parts, n_threads=1, ahead=2)


def fixed_sample(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """At most ``n`` of these positions, drawn by the seed, in ascending order."""
    if n >= len(positions):
        return np.sort(positions)
    return np.sort(np.random.default_rng(seed).choice(positions, n, replace=False))


# ------------------------------------------------------------------ reading
def _read_signals(
    index: ExampleIndex, positions: np.ndarray, map_file: Callable, pin: bool
) -> tuple[Tensor, Tensor, int]:
    """Signals (B, 16, 3840) copied once, from the mapped file into the batch; present_BC; n_bad.

    A channel without a finite value is absent, whatever the index says.
    """
    files = [map_file(index.files[file]) for file in index.file_of[positions]]
    narrow = all(signals.dtype == np.float16 for signals in files)
    shape = len(positions), N_CHANNELS, EPOCH_SAMPLES
    x_BCT = torch.empty(shape, dtype=torch.float16 if narrow else torch.float32, pin_memory=pin)
    out = x_BCT.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # float64 beyond float32: replaced below
        for i, (signals, row) in enumerate(zip(files, index.row_of[positions], strict=True)):
            out[i] = signals[row]
    n_bad, empty_BC = fill_gaps(out)
    return x_BCT, torch.from_numpy(index.present[positions] & ~empty_BC), n_bad


def fill_gaps(x_BCT: np.ndarray) -> tuple[int, np.ndarray]:
    """Hold values that are not finite at the last one before them, or the first after, in place.

    So a gap in a reading is a level, and no fall that looks like an event. Returns their number,
    and True for the channels without any other value, (B, C), which become 0.
    """
    if x_BCT.dtype == np.float16:  # numpy's isfinite is slow for float16
        bad_BCT = (x_BCT.view(np.uint16) & FLOAT16_EXPONENT) == FLOAT16_EXPONENT
    else:
        bad_BCT = ~np.isfinite(x_BCT)
    empty_BC = bad_BCT.all(axis=2)
    for at in map(tuple, np.argwhere(bad_BCT.any(axis=2) & ~empty_BC)):
        good = np.flatnonzero(~bad_BCT[at])
        before = np.searchsorted(good, np.arange(x_BCT.shape[2]), side="right") - 1
        x_BCT[at] = x_BCT[at][good[np.maximum(before, 0)]]
    x_BCT[empty_BC] = 0
    return int(np.count_nonzero(bad_BCT)), empty_BC


def channel_variances(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Variance of each channel, (16,) float32, over the (``x_BCT``, ``present_BC``) where present.

    At least LEAST_VARIANCE; 1 for a channel that is never present.
    """
    sums_C = torch.zeros(3, N_CHANNELS, dtype=torch.float64)
    for x_BCT, present_BC in batches:
        x_BCT = x_BCT.double() * present_BC[:, :, None]
        sums_C[0] += x_BCT.sum(dim=(0, 2))
        sums_C[1] += x_BCT.square().sum(dim=(0, 2))
        sums_C[2] += present_BC.sum(dim=0) * x_BCT.shape[2]
    mean_C, mean_square_C = sums_C[:2] / sums_C[2].clamp(min=1)
    variance_C = (mean_square_C - mean_C.square()).clamp(min=LEAST_VARIANCE)
    return torch.where(sums_C[2] > 0, variance_C, 1).float()
