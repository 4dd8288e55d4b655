"""Features on disk as tables: rows read as they are asked for, their moments, their neighbours."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from pedsleepmae import hdf5, store
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.machine import in_advance
from pedsleepmae.model import POOLINGS, split_layer


def feature_path(folder: Path, batch_file: Path) -> Path:
    """Where the features of a batch file stand."""
    return Path(folder) / f"{batch_file.parent.name}_{batch_file.name}"


def parts_of(name: str) -> list[str]:
    """ "time_mean+class@2" -> the names under which its parts are stored, each with its block."""
    pooling, at, layer = name.partition("@")
    return [f"{part}{at}{layer}" for part in pooling.split("+")]


def open_tables(
    index: store.ExampleIndex, folder: Path, names: Sequence[str]
) -> dict[str, "FeatureTable"]:
    """Tables of these features, by name; the files are looked at once for all of them."""
    parts = {part for name in names for part in parts_of(name)}
    places = {}
    for path in [feature_path(folder, source) for source in index.files]:
        with hdf5.open_file(path) as file:
            places[path] = {part: place_of(file, part) for part in parts}
    return {name: FeatureTable(index, places, name) for name in names}


def place_of(file: h5py.File, part: str) -> tuple[tuple[int, int], int]:
    """Shape (n, F) of a pooling's features in a file, and where in it their bytes begin."""
    features = hdf5.dataset(file, f"features/{part}")
    offset = features.id.get_offset()
    if features.ndim != 2 or features.dtype != np.float16 or (offset is None and features.size):
        raise hdf5.Hdf5Error(f"its features/{part} are no table of float16")
    return features.shape, offset


class FeatureTable:
    """Features of all examples of an index, left on disk; rows are read as they are asked for.

    ``name`` is a pooling (parts joined by + stand side by side; `@k` at its end: read from block k)
    or "handmade"; ``places``: for each file, in the order of the index, name -> (shape, place in
    the file).
    """

    def __init__(self, index: store.ExampleIndex, places: dict, name: str):
        self.index, self.places, self.name = index, places, name
        self.paths = list(places)
        self._parts = [[places[path][part] for part in parts_of(name)] for path in self.paths]
        self.part_lengths = [shape[1] for shape, _ in self._parts[0]]

    @property
    def n_features(self) -> int:
        return sum(self.part_lengths)

    @property
    def is_by_channel(self) -> bool:
        """True when every part lists features channel by channel, as poolings do."""
        return set(split_layer(self.name)[0].split("+")) <= set(POOLINGS)

    def chunks(self, positions: np.ndarray, rows: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(slice into ``positions``, features) of consecutive pieces of at most ``rows`` rows.

        The next piece is read while the caller works on one.
        """
        pieces = [slice(start, start + rows) for start in range(0, len(positions), rows)]
        yield from in_advance(lambda p: (p, self.read(positions[p])), pieces, 1, 1)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Features of these positions of the index, (n, F) float32, in their order."""
        out = np.empty((len(positions), self.n_features), np.float32)
        file_of, row_of = self.index.file_of[positions], self.index.row_of[positions]
        order = np.argsort(file_of, kind="stable")
        bounds = np.flatnonzero(np.diff(file_of[order], prepend=-1, append=-1))
        for here in np.split(order, bounds[1:-1]) if len(order) else []:
            i, column = file_of[here[0]], 0
            for shape, place in self._parts[i]:
                part = np.memmap(self.paths[i], np.float16, "r", place, shape)
                out[here, column : column + shape[1]] = part[row_of[here]]
                column += shape[1]
        return out


class HeldTable(FeatureTable):
    """As a FeatureTable, of features held in memory, of these ``positions`` of the index alone.

    ``x_NF`` float16, in the order of ``positions``; ``part_lengths`` of the pooling's parts.
    """

    def __init__(
        self,
        index: store.ExampleIndex,
        name: str,
        part_lengths: Sequence[int],
        positions: np.ndarray,
        x_NF: np.ndarray,
    ):
        self.index, self.name, self.part_lengths = index, name, list(part_lengths)
        self._x_NF = x_NF
        self._row_of = np.full(len(index), -1)
        self._row_of[positions] = np.arange(len(positions))

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Features of these positions of the index, (n, F) float32, in their order."""
        rows = self._row_of[positions]
        assert (rows >= 0).all(), "a position whose features are not held"
        return self._x_NF[rows].astype(np.float32)


def neighbours(index: store.ExampleIndex, k: int) -> np.ndarray:
    """Positions of the epochs from k before to k after each epoch, (N, 2k + 1), -1 for none.

    Same study and same split, exactly 30 s apart from one to the next: a gap in the scoring ends
    the run, and a test epoch is never read for a training epoch.
    """
    n = len(index)
    result = np.full((n, 2 * k + 1), -1, np.int64)
    result[:, k] = np.arange(n)
    night_N = index.nights()
    order = np.lexsort([index.onsets_s, index.split, night_N])
    for step in range(1, k + 1):
        early, late = order[:-step], order[step:]
        same = (night_N[early] == night_N[late]) & (index.split[early] == index.split[late])
        same &= np.abs(index.onsets_s[late] - index.onsets_s[early] - step * EPOCH_S) < 0.5
        result[late[same], k - step] = early[same]
        result[early[same], k + step] = late[same]
    return result


def column_moments(
    table: FeatureTable, positions: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation of each feature, (F,) float64, and the count of rows that hold
    a number that is not finite (left out feature by feature). One pass over these positions.

    A feature without spread gets standard deviation 1, as in scikit-learn's StandardScaler.
    """
    n_F, mean_F, spread_F = (np.zeros(table.n_features) for _ in range(3))
    n_bad = 0
    for _, x_NF in table.chunks(positions, rows):
        finite_NF = np.isfinite(x_NF)
        n_bad += int((~finite_NF.all(1)).sum())
        x_NF = np.where(finite_NF, x_NF, 0).astype(np.float64)
        n_new_F = finite_NF.sum(0)
        mean_new_F = x_NF.sum(0) / np.maximum(n_new_F, 1)
        squares_F = (np.where(finite_NF, x_NF - mean_new_F, 0) ** 2).sum(0)
        n_both_F = np.maximum(n_F + n_new_F, 1)  # Chan, Golub & LeVeque 1983: merge two moments
        spread_F += squares_F + (mean_new_F - mean_F) ** 2 * n_F * n_new_F / n_both_F
        mean_F += (mean_new_F - mean_F) * n_new_F / n_both_F
        n_F += n_new_F
    return mean_F, spread_or_one(np.sqrt(spread_F / np.maximum(n_F, 1)), mean_F), n_bad


def spread_or_one(sd_F: np.ndarray, mean_F: np.ndarray) -> np.ndarray:
    """Standard deviations, 1 for a feature without spread beyond float32's rounding of its mean."""
    return np.where(sd_F > 10 * np.finfo(np.float32).eps * np.abs(mean_F), sd_F, 1)
