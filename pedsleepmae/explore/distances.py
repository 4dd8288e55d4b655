"""Whether epochs that are near each other in the embedding space are near as signals.

Axes: **N** epochs, **T** samples, **M** pairs, **R** draws, **G** groups of the bootstrap.
All distances are Euclidean, those between signals sample by sample.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm import tqdm

from pedsleepmae import metrics, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.errors import bounded
from pedsleepmae.probe.tables import FeatureTable

DEFAULT_CHANNELS = ("EEG C3-M2", "EOG LOC-M2", "EMG CHIN1-CHIN2", "SPO2", "RESP THORACIC")


@dataclass
class DistanceSettings:
    """Distances in the embedding space against distances between the signals."""

    channels: list[str] = field(default_factory=lambda: list(DEFAULT_CHANNELS))
    """Which of the 16 channels; empty: none are compared."""
    n_epochs: int = bounded(600, 10)
    """Epochs between which pairs are drawn, of at most 30 nights."""
    n_pairs: int = bounded(2000, 10)
    """Pairs within a night, and as many between patients."""
    bootstrap_draws: int = bounded(500, 100)
    """Resamples of patients behind each 95 % interval."""


WITHIN, BETWEEN = "within a night", "between patients"
MAX_NIGHTS = 30  # nights that the epochs are drawn from, as evenly as they come
TOGETHER = "all of them"  # the channels' distances joined
EUCLIDEAN = "Euclidean"  # what explore.json and the tables call the distance between signals


def draw_epochs(night_N: np.ndarray, n_epochs: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers (sorted) of about ``n_epochs`` epochs, equally many of at most MAX_NIGHTS nights."""
    nights = rng.permutation(np.unique(night_N))[:MAX_NIGHTS]
    share = max(2, -(-n_epochs // len(nights)))
    drawn = []
    for night in nights:
        here = np.flatnonzero(night_N == night)
        drawn.append(rng.choice(here, min(share, len(here)), replace=False))
    return np.sort(np.concatenate(drawn))


def draw_pairs(
    night_N: np.ndarray, patient_N: np.ndarray, n_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``n_pairs`` different pairs of each kind, those of a kind equally likely.

    Pairs (M, 2) as numbers 0 to N - 1, and whether each lies within one night (M,); the others are
    of two patients. Pairs of two nights of one patient are neither.
    """
    first, second = np.triu_indices(len(night_N), k=1)
    ends, within = [], []
    for is_within, mask in (
        (True, night_N[first] == night_N[second]),
        (False, patient_N[first] != patient_N[second]),
    ):
        here = np.flatnonzero(mask)
        here = rng.choice(here, min(n_pairs, len(here)), replace=False)
        ends.append(np.stack([first[here], second[here]], axis=1))
        within.append(np.full(len(here), is_within))
    return np.concatenate(ends), np.concatenate(within)


def euclidean(x_NT: np.ndarray, ends_M2: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pair of rows, (M,)."""
    pieces = np.array_split(ends_M2, range(512, len(ends_M2), 512))
    gaps = (x_NT[ends[:, 0]].astype(np.float64) - x_NT[ends[:, 1]] for ends in pieces)
    return np.concatenate([np.linalg.norm(gap_NT, axis=1) for gap_NT in gaps])


def signal_distances(
    x_NCT: np.ndarray, present_NC: np.ndarray, names: list[str], ends_M2: np.ndarray
) -> dict[str, np.ndarray]:
    """Distance of each pair (M,) by channel, and last of all channels together.

    A distance is NaN where one of the two epochs lacks the channel. Together: the root of the sum
    of squares, each channel's distance divided by its median so that all count alike; NaN where
    one of the channels is lacking, else pairs of fewer channels would be the nearer ones.
    """
    distances, scaled = {}, []
    for c, name in enumerate(tqdm(names, desc="signal distances", unit="channel", leave=False)):
        both = present_NC[ends_M2, c].all(1)
        distance_M = np.full(len(ends_M2), np.nan)
        distance_M[both] = euclidean(x_NCT[:, c], ends_M2[both])
        median = np.median(distance_M[both]) if both.any() else 0.0
        scaled.append(distance_M / (median if median > 0 else 1.0))
        distances[name] = distance_M
    return distances | {TOGETHER: np.linalg.norm(scaled, axis=0)}


def spearman(x_M: np.ndarray, y_M: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant."""
    if not np.ptp(x_M) or not np.ptp(y_M):
        return float("nan")
    return float(spearmanr(x_M, y_M).statistic)


def rank_correlation(
    x_M: np.ndarray, y_M: np.ndarray, group_M2: np.ndarray, n_groups: int, n_draws: int, seed: int
) -> tuple[float | None, list[float] | None]:
    """Spearman's correlation of two distances over the same pairs, and its 95 % interval.

    ``group_M2`` (M, 2) is the group (patient) of each end. Groups are resampled: a pair counts as
    often as both its ends are drawn, a pair within a group as often as the group is. None where it
    is undefined or fewer than two groups carry it.
    """
    value = spearman(x_M, y_M) if len(x_M) > 2 else float("nan")
    if not np.isfinite(value):
        return None, None
    weights_RG = metrics.draw_weights(n_groups, n_draws, seed).astype(int)
    inside = group_M2[:, 0] == group_M2[:, 1]
    draws_R = np.full(n_draws, np.nan)
    for r, weight_G in enumerate(weights_RG):
        first, second = weight_G[group_M2].T
        rows = np.repeat(np.arange(len(x_M)), np.where(inside, first, first * second))
        if len(rows) > 2:
            draws_R[r] = spearman(x_M[rows], y_M[rows])
    n_holding = len(np.unique(group_M2))
    return value, metrics.interval(draws_R, n_holding, value, (-1.0, 1.0))


@dataclass(frozen=True)
class Distances:
    """Correlations (a row a channel and kind of pair) and the pairs behind the joint ones.

    ``pairs`` has a row a pair: kind, embedding, Euclidean (all channels together).
    """

    correlations: pd.DataFrame
    pairs: pd.DataFrame
    n_epochs: int
    n_patients: int
    resampled_over: str


def compare_distances(
    asked: DistanceSettings, table: FeatureTable, positions: np.ndarray, seed: int
) -> Distances:
    """Rank correlation of distances between embeddings and between signals, over drawn pairs.

    Embeddings as they are, without scaling: the distance that a search for similar epochs uses.
    """
    index, night_N, rng = table.index, table.index.nights(), np.random.default_rng(seed)
    epochs = positions[draw_epochs(night_N[positions], asked.n_epochs, rng)]
    patient_N, study_N = index.patient_ids[epochs], index.study_ids[epochs]
    ends_M2, within_M = draw_pairs(night_N[epochs], patient_N, asked.n_pairs, rng)
    group_N, unit = metrics.bootstrap_groups(patient_N, study_N, index.onsets_s[epochs])
    group_M2, n_groups = group_N[ends_M2], int(group_N.max()) + 1
    x_NF = np.nan_to_num(table.read(epochs), posinf=0, neginf=0)
    embedding_M = euclidean(x_NF, ends_M2)
    channels = [CHANNEL_NAMES.index(name) for name in asked.channels]
    x_NCT = store.read_signals(index, epochs)[:, channels]
    present_NC = index.present[epochs][:, channels]
    signals = signal_distances(x_NCT, present_NC, asked.channels, ends_M2)

    rows = []
    for channel, signal_M in signals.items():
        for kind, is_kind_M in ((WITHIN, within_M), (BETWEEN, ~within_M)):
            here = is_kind_M & np.isfinite(signal_M)
            x_M, y_M, n_draws = embedding_M[here], signal_M[here], asked.bootstrap_draws
            value, ci95 = rank_correlation(x_M, y_M, group_M2[here], n_groups, n_draws, seed)
            low, high = ci95 or (None, None)
            row = {"measure": EUCLIDEAN, "channel": channel, "pairs": kind}
            row |= {"n_pairs": int(here.sum()), "spearman": value}
            rows.append(row | {"ci95_low": low, "ci95_high": high})
    kind_M = np.where(within_M, WITHIN, BETWEEN)
    columns = {"pairs": kind_M, "embedding": embedding_M, EUCLIDEAN: signals[TOGETHER]}
    return Distances(
        pd.DataFrame(rows), pd.DataFrame(columns), len(epochs), len(np.unique(patient_N)), unit
    )
