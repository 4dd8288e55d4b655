"""Means decoded, examples retrieved, outliers ranked: what the embedding space holds as signals.

Axes: **N** examples, **F** features of a pooled embedding, **Q** queries, **K** neighbours,
**S** patches, **E** width of a patch's feature.

Distances are Euclidean between pooled embeddings whose features are standardised by the train
examples. Tables of features stay on disk and are read in pieces of BLOCK_ROWS, so that memory does
not grow with the cohort.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from pedsleepmae import data, metrics, store
from pedsleepmae.channels import EPOCH_S, N_CHANNELS
from pedsleepmae.errors import GenerationError
from pedsleepmae.probe.fitted import scale_features
from pedsleepmae.probe.tables import FeatureTable, column_moments
from pedsleepmae.tasks import CLASSES, class_members

BLOCK_ROWS = 4096
OUTLIER_NEIGHBOUR = 10


# ------------------------------------------------------------------ the space
class Space:
    """Pooled embeddings of a cohort, standardised by its train examples as they are read."""

    def __init__(self, table: FeatureTable):
        self.index, self.table = table.index, table
        self.night_N = self.index.nights()
        self.mean_F, self.sd_F, _ = column_moments(table, self.index.rows("train"), BLOCK_ROWS)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Standardised features (n, F) float32 of these positions of the index."""
        return scale_features(self.table.read(positions), self.mean_F, self.sd_F)

    def pieces(self, title: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(positions, standardised features) of all examples, at most BLOCK_ROWS at a time."""
        everyone = np.arange(len(self.index))
        with tqdm(total=len(everyone), desc=title, unit="ex", leave=False) as bar:
            for piece, x_NF in self.table.chunks(everyone, BLOCK_ROWS):
                yield everyone[piece], scale_features(x_NF, self.mean_F, self.sd_F)
                bar.update(len(x_NF))

    def channel_of_feature(self) -> np.ndarray:
        """Channel of each feature, (F,): every pooling lists its features channel by channel."""
        parts = self.table.name.split("+")
        widths = [next(iter(self.table.places.values()))[part][0][1] for part in parts]
        channels = [np.repeat(np.arange(N_CHANNELS), width // N_CHANNELS) for width in widths]
        return np.concatenate(channels)


def nearest_examples(
    space: Space,
    query_QF: np.ndarray,
    own_Q: np.ndarray,
    pieces: Iterable[tuple[np.ndarray, np.ndarray]],
    k: int,
    *,
    exclude_own_night: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (Q, k) of the nearest examples and their distances, nearest first.

    ``own_Q`` is each query's own position (-1: none), which never counts, nor with
    ``exclude_own_night`` its whole night. ``pieces`` as of Space.pieces. Where fewer than k
    examples are left the position is -1 and the distance infinite.
    """
    best_at = np.full((len(query_QF), k), -1, np.int64)
    best = np.full((len(query_QF), k), np.inf, np.float32)
    square_Q1 = (query_QF**2).sum(axis=1, keepdims=True)
    night_Q = np.where(own_Q >= 0, space.night_N[own_Q], -1)
    for positions, x_NF in pieces:
        # By one matrix product; rounding can leave 0 at 1e-6.
        squared_QN = square_Q1 + (x_NF**2).sum(axis=1) - 2 * (query_QF @ x_NF.T)
        squared_QN = np.maximum(squared_QN, 0).astype(np.float32)
        squared_QN[own_Q[:, None] == positions] = np.inf
        if exclude_own_night:
            squared_QN[night_Q[:, None] == space.night_N[positions]] = np.inf
        few = min(k, len(positions))
        columns = np.argpartition(squared_QN, few - 1, axis=1)[:, :few]
        found = np.concatenate([best, np.take_along_axis(squared_QN, columns, axis=1)], axis=1)
        found_at = np.concatenate([best_at, positions[columns]], axis=1)
        order = np.argsort(found, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(found, order, axis=1)
        best_at = np.where(np.isinf(best), -1, np.take_along_axis(found_at, order, axis=1))
    return best_at, np.sqrt(best)


def by_distance_to_mean(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows from the one nearest to the mean of all to the farthest, and each row's distance."""
    distance_N = np.linalg.norm(x_NF - x_NF.mean(axis=0), axis=1)
    return np.argsort(distance_N, kind="stable"), distance_N


# ------------------------------------------------------------------ neighbours
def parse_queries(index: store.ExampleIndex, names: Sequence[str]) -> dict[str, int]:
    """Position of each example that is named ``patient/study/onset in seconds``.

    An onset means the epoch that holds it. GenerationError names what is not there.
    """
    queries = {}
    for name in names:
        try:
            patient, study, onset = name.split("/")
            patient, study, onset_s = int(patient), int(study), float(onset)
        except ValueError:
            raise GenerationError(
                f"neighbours_of: {name!r} is no example; give patient/study/onset in seconds, such "
                "as 900001/900001/1230"
            ) from None
        since_s = onset_s - index.onsets_s
        here = (index.patient_ids == patient) & (index.study_ids == study)
        here = np.flatnonzero(here & (since_s >= 0) & (since_s < EPOCH_S))
        if not len(here):
            raise GenerationError(
                f"neighbours_of: paths.batches_dir holds no epoch {name} (patient/study/onset in "
                "seconds); see studies.csv for the recordings, and give a second that was scored"
            )
        queries[f"query {len(queries) + 1}"] = int(here[0])
    return queries


def typical_examples(space: Space, sample: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Of each class the example nearest to the mean of its examples in ``sample``."""
    typical = {}
    for name, drawn in sample.items():
        if name != "all" and len(drawn):
            order, _ = by_distance_to_mean(space.read(drawn))
            typical[name] = int(drawn[order[0]])
    return typical


def find_neighbours(
    space: Space, queries: np.ndarray, k: int, *, exclude_own_night: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest examples of the whole cohort: positions (Q, k) and distances, as nearest_examples."""
    x_QF, pieces = space.read(queries), space.pieces("neighbours")
    return nearest_examples(space, x_QF, queries, pieces, k, exclude_own_night=exclude_own_night)


@dataclass(frozen=True)
class Neighbours:
    """An example's position, and its nearest others with their distances, nearest first."""

    query: int
    found: np.ndarray
    distance: np.ndarray


def neighbours_by_name(
    space: Space, queries: Mapping[str, int], k: int, *, exclude_own_night: bool
) -> dict[str, Neighbours]:
    """Of each query at most ``k`` neighbours, fewer where no more examples are left."""
    found_QK, distance_QK = find_neighbours(
        space, np.array(list(queries.values())), k, exclude_own_night=exclude_own_night
    )
    near = {}
    for (name, at), found_K, distance_K in zip(queries.items(), found_QK, distance_QK, strict=True):
        n = (found_K >= 0).sum()
        near[name] = Neighbours(at, found_K[:n], distance_K[:n])
    return near


def neighbour_agreement(
    index: store.ExampleIndex,
    sample: Mapping[str, np.ndarray],
    queries: np.ndarray,
    neighbours_QK: np.ndarray,
    n_draws: int,
    seed: int,
) -> dict[str, dict]:
    """Of each class: the share of its examples' neighbours that are of the class as well.

    Beside the share that drawing at random from the cohort would give, with a 95 % interval by
    bootstrap over the queries' patients. ``queries`` are sorted positions.
    """
    members, result = class_members(index.labels), {}
    for name in CLASSES[1:]:
        rows = sample[name]
        if not len(rows):
            continue
        found_QK = neighbours_QK[np.searchsorted(queries, rows)]
        is_same_QK = members[name][found_QK] & (found_QK >= 0)
        share_Q = is_same_QK.sum(1) / (found_QK >= 0).sum(1).clip(1)
        group_N, _ = metrics.bootstrap_groups(
            index.patient_ids[rows], index.study_ids[rows], index.onsets_s[rows]
        )
        weights_RG = metrics.draw_weights(group_N.max() + 1, n_draws, seed)
        share = metrics.bootstrap_mean(share_Q, group_N, weights_RG)
        result[name] = {
            "n": len(rows),
            "n_patients": len(np.unique(index.patient_ids[rows])),
            "share": share["value"],
            "ci95": share["ci95"],
            "by_chance": float(members[name].mean()),
        }
    return result


# ------------------------------------------------------------------ outliers
@dataclass(frozen=True)
class Outliers:
    """``score_N`` of every example (NaN: none), and each one's channel that stands out most."""

    score_N: np.ndarray
    channel_N: np.ndarray
    n_reference: int

    def ranking(self) -> np.ndarray:
        """Positions from the most unusual example on; those without a score are left out."""
        known = np.flatnonzero(np.isfinite(self.score_N))
        return known[np.argsort(-self.score_N[known], kind="stable")]

    def top_of_nights(self, night_N: np.ndarray, n: int) -> np.ndarray:
        """The ``n`` nights' most unusual examples, one a night: an odd montage fills no page."""
        order = self.ranking()
        _, first = np.unique(night_N[order], return_index=True)
        return order[np.sort(first)[:n]]


def find_outliers(space: Space, n_reference: int, seed: int) -> Outliers:
    """Distance to the OUTLIER_NEIGHBOUR-th nearest train example of other nights, relative.

    Divided by the median over the train examples: 1 is as usual as half of them. Embeddings of
    sleep form many clusters (stages, people, montages): a Gaussian would call a rare but well-known
    stage unusual and miss what lies between clusters, while the k-th distance assumes nothing and
    detects foreign examples better (Sun et al. 2022, arXiv 2204.06507). The 10th, so that a handful
    of alike artefacts do not vouch for each other; other nights only, since neighbours in time are
    alike whatever they are. What is common in train is not foreign: an artefact in several per cent
    of its epochs scores low. At most ``n_reference`` train examples, drawn by the seed, are held
    against; without OUTLIER_NEIGHBOUR of them in other nights an example has no score.
    """
    index, channel_F = space.index, space.channel_of_feature()
    reference = data.fixed_sample(index.rows("train"), n_reference, seed)
    known_NF = space.read(reference)
    starts = range(0, len(reference), BLOCK_ROWS)
    known = [(reference[i : i + BLOCK_ROWS], known_NF[i : i + BLOCK_ROWS]) for i in starts]
    score_N = np.full(len(index), np.nan, np.float32)
    channel_N = np.zeros(len(index), np.int64)
    for positions, x_NF in space.pieces("outliers"):
        nearest, distance = nearest_examples(
            space, x_NF, positions, known, OUTLIER_NEIGHBOUR, exclude_own_night=True
        )
        last = distance[:, -1]
        score_N[positions] = np.where(np.isfinite(last), last, np.nan)
        places = np.searchsorted(reference, np.maximum(nearest[:, 0], reference[0]))
        channel_N[positions] = standing_out(x_NF - known_NF[places], channel_F)
    train = score_N[index.rows("train")]
    train = train[np.isfinite(train)]  # none where train is one night
    usual = np.median(train) if len(train) else 0
    return Outliers(score_N / (usual if usual > 0 else 1), channel_N, len(reference))


def standing_out(gap_NF: np.ndarray, channel_F: np.ndarray) -> np.ndarray:
    """The channel with the largest mean square of ``gap_NF`` over its features, (N,)."""
    squares = [(gap_NF[:, channel_F == c] ** 2).mean(axis=1) for c in range(N_CHANNELS)]
    return np.argmax(squares, axis=0)
