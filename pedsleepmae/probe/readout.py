"""Features as probes read them: absent channels left out and marked, standardised within the night.

Axes: **N** epochs, **F** features, **C** 16 channels, **G** nights.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from pedsleepmae.channels import N_CHANNELS
from pedsleepmae.machine import in_advance
from pedsleepmae.probe.fitted import spread_in_night, standardise_night
from pedsleepmae.probe.tables import FeatureTable, neighbours
from pedsleepmae.store import ExampleIndex

ROWS = 2048  # read at a time for the nights' moments


@dataclass(frozen=True)
class ReadOut:
    """One set of features: the table it is read from, and whether it is standardised by night."""

    table: FeatureTable
    normalise: str  # none or night

    def __str__(self) -> str:
        return self.table.name + (", by night" if self.normalise == "night" else "")


def tasks_by_features(features_of: Mapping[str, Hashable]) -> dict[Hashable, list[str]]:
    """The tasks that read the same features, so that these are read once for all of them."""
    found: dict[Hashable, list[str]] = {}
    for task, features in features_of.items():
        found.setdefault(features, []).append(task)
    return found


# ------------------------------------------------------------------ within a night
def channel_of_features(part_lengths: Sequence[int]) -> np.ndarray:
    """Channel of each feature, (F,): every pooling lists its features channel by channel."""
    channels = np.arange(N_CHANNELS)
    return np.concatenate([np.repeat(channels, n // N_CHANNELS) for n in part_lengths])


def hide_absent(x_NF: np.ndarray, channel_F: np.ndarray, present_NC: np.ndarray) -> np.ndarray:
    """Features, NaN where their channel was not recorded: to a probe, the mean of training."""
    return np.where(present_NC[:, channel_F], x_NF, np.nan).astype(np.float32, copy=False)


def night_rows(
    x_NF: np.ndarray, part_lengths: Sequence[int], present_NC: np.ndarray, normalise: str
) -> np.ndarray:
    """What probes read of one night's features, (N, F + 16), as a ProbeTable gives it.

    ``part_lengths``: how many features each part of the pooling has.
    """
    x_NF = hide_absent(x_NF, channel_of_features(part_lengths), present_NC)
    if normalise == "night":
        x_NF = standardise_night(x_NF)
    return np.concatenate([x_NF, present_NC], axis=1, dtype=np.float32)


class NightMoments:
    """Mean and spread of each feature in each night, learnt split by split when first asked for.

    So a test night is not looked at before it is judged; and a night that was split in time counts
    as one in each split, so that no test epoch has a say in how a training epoch is read.
    """

    def __init__(self, index: ExampleIndex, n_features: int):
        pairs = np.stack([index.nights(), index.split])
        groups, night_N = np.unique(pairs, axis=1, return_inverse=True)
        self.split_N, self.night_N = index.split, night_N.ravel()
        shape = groups.shape[1], n_features
        self.mean_GF, self.spread_GF = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        self.known: set[int] = set()

    def standardise(self, x_NF: np.ndarray, positions: np.ndarray, read: Callable) -> np.ndarray:
        """``x_NF``, the features at these positions, within their nights; ``read`` gives others."""
        for split in set(self.split_N[positions].tolist()) - self.known:
            self._learn(np.flatnonzero(self.split_N == split), read)
            self.known.add(split)
        night_N = self.night_N[positions]
        return (x_NF - self.mean_GF[night_N]) / self.spread_GF[night_N]

    def _learn(self, positions: np.ndarray, read: Callable) -> None:
        """One pass over these positions, in the order in which they lie on the disk."""
        nights_G = np.unique(self.night_N[positions])
        shape = len(nights_G), self.mean_GF.shape[1]
        n_GF, sum_GF, squares_GF = (np.zeros(shape) for _ in range(3))
        pieces = np.array_split(positions, -(-len(positions) // ROWS))
        for rows, x_NF in in_advance(lambda rows: (rows, read(rows)), pieces, 1, 1):
            night_N = np.searchsorted(nights_G, self.night_N[rows])
            here, place_N = np.unique(night_N, return_inverse=True)
            member_GN = csr_array((np.ones(len(rows)), (place_N, np.arange(len(rows)))))
            known_NF = np.isfinite(x_NF)
            x_NF = np.where(known_NF, x_NF, 0).astype(np.float64)
            n_GF[here] += member_GN @ known_NF
            sum_GF[here] += member_GN @ x_NF
            squares_GF[here] += member_GN @ x_NF**2
        n_GF = np.maximum(n_GF, 1)
        mean_GF = sum_GF / n_GF
        sd_GF = np.sqrt(np.maximum(squares_GF / n_GF - mean_GF**2, 0))
        self.mean_GF[nights_G] = mean_GF
        self.spread_GF[nights_G] = spread_in_night(sd_GF, mean_GF)


# ------------------------------------------------------------------ tables for probes
class ProbeTable:
    """Rows for probes: one or more sets of features side by side, then which channels are present.

    ``present_NC``: of the index, or fewer, to try a montage. With ``context`` k a row also holds
    the k epochs before and after it in the same night and split; where there is none, NaN.
    """

    def __init__(self, read_outs: Sequence[ReadOut], present_NC: np.ndarray | None = None):
        self.read_outs, self.index = list(read_outs), read_outs[0].table.index
        self.present_NC = self.index.present if present_NC is None else present_NC
        self.name = " with ".join(map(str, self.read_outs))
        self.n_single = sum(item.table.n_features for item in read_outs) + N_CHANNELS
        self.context, self.neighbours = 0, None
        self._moments = [
            NightMoments(self.index, item.table.n_features) if item.normalise == "night" else None
            for item in self.read_outs
        ]

    def with_context(self, k: int) -> "ProbeTable":
        """The same rows with the k neighbours on each side."""
        wide = copy.copy(self)
        wide.context, wide.neighbours = k, neighbours(self.index, k)
        return wide

    @property
    def n_features(self) -> int:
        return self.n_single * (2 * self.context + 1)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Rows of these positions of the index, (n, F) float32, in their order."""
        if self.neighbours is None:
            return self._read_single(positions)
        columns = []
        for positions_n in self.neighbours[positions].T:
            known = positions_n >= 0
            values = np.full((len(positions), self.n_single), np.nan, np.float32)
            values[known] = self._read_single(positions_n[known])
            columns.append(values)
        return np.concatenate(columns, axis=1)

    def chunks(self, positions: np.ndarray, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(slice into ``positions``, rows) of consecutive pieces of at most ``rows`` rows.

        The next piece is read while the caller works on one.
        """
        pieces = [slice(start, start + rows) for start in range(0, len(positions), rows)]
        yield from in_advance(lambda p: (p, self.read(positions[p])), pieces, 1, 1)

    def _read_part(self, i: int, positions: np.ndarray) -> np.ndarray:
        table = self.read_outs[i].table
        x_NF = table.read(positions)
        if table.is_by_channel:
            channel_F = channel_of_features(table.part_lengths)
            x_NF = hide_absent(x_NF, channel_F, self.present_NC[positions])
        return x_NF

    def _read_single(self, positions: np.ndarray) -> np.ndarray:
        columns = []
        for i, moments in enumerate(self._moments):
            x_NF = self._read_part(i, positions)
            if moments is not None:
                x_NF = moments.standardise(x_NF, positions, partial(self._read_part, i))
            columns.append(x_NF)
        columns.append(self.present_NC[positions].astype(np.float32))
        return np.concatenate(columns, axis=1)


def restrict(index: ExampleIndex, present_NC: np.ndarray) -> ExampleIndex:
    """The index of the same examples, as if only these channels had been recorded."""
    return replace(index, present=index.present & present_NC)
