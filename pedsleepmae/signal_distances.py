"""Whether epochs that are near each other in the embedding space are near as signals.

Axes: **N** epochs, **T** samples, **M** pairs, **R** draws, **G** groups of the bootstrap. Two
distances between signals: Euclidean, sample by sample; and dynamic time warping, which forgives
shifts up to a band (Sakoe & Chiba 1978), computed in C by dtaidistance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from dtaidistance import dtw
from scipy.signal import resample_poly
from scipy.stats import rankdata
from tqdm import tqdm

from pedsleepmae import metrics
from pedsleepmae.channels import RATE_HZ

WITHIN, BETWEEN = "within a night", "between patients"
MAX_NIGHTS = 30  # nights that the epochs are drawn from, as evenly as they come
TOGETHER = "all of them"  # the channels' distances joined


@dataclass(frozen=True)
class Pairs:
    """Pairs of epochs (M, 2), as numbers 0 to N - 1, and whether each lies within one night (M,).

    The others are of two patients; pairs of two nights of one patient are neither.
    """

    ends: np.ndarray
    within: np.ndarray

    def of_kind(self, kind: str) -> np.ndarray:
        return self.within if kind == WITHIN else ~self.within


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
) -> Pairs:
    """At most ``n_pairs`` different pairs of each kind, those of a kind equally likely."""
    first, second = np.triu_indices(len(night_N), k=1)
    kinds = (
        (True, night_N[first] == night_N[second]),
        (False, patient_N[first] != patient_N[second]),
    )
    ends, within = [], []
    for is_within, mask in kinds:
        here = np.flatnonzero(mask)
        here = rng.choice(here, min(n_pairs, len(here)), replace=False)
        ends.append(np.stack([first[here], second[here]], axis=1))
        within.append(np.full(len(here), is_within))
    return Pairs(np.concatenate(ends), np.concatenate(within))


def euclidean(x_NT: np.ndarray, ends_M2: np.ndarray) -> np.ndarray:
    """Euclidean distance of each pair of rows, (M,)."""
    out = np.empty(len(ends_M2))
    for start in range(0, len(ends_M2), 512):
        i, j = ends_M2[start : start + 512].T
        out[start : start + 512] = np.linalg.norm(
            x_NT[i].astype(np.float64) - x_NT[j].astype(np.float64), axis=1
        )
    return out


def time_warped(x_NT: np.ndarray, ends_M2: np.ndarray, band: int) -> np.ndarray:
    """Dynamic-time-warping distance of each pair, (M,): root of the least sum of squares over
    alignments that shift by ``band`` samples at most; 0 is the Euclidean distance."""
    x_NT = np.ascontiguousarray(x_NT, np.float64)
    # The library's window counts the diagonal; its pruning calls two flat signals infinitely far.
    how = {"window": band + 1, "use_pruning": False}
    return np.array([dtw.distance_fast(x_NT[i], x_NT[j], **how) for i, j in ends_M2])


def lower_rate(x_NT: np.ndarray, rate_hz: float) -> np.ndarray:
    """Signals of 128 Hz at a rate that divides it, low-pass filtered first."""
    return resample_poly(x_NT, 1, round(RATE_HZ / rate_hz), axis=1, padtype="line")


def signal_distances(
    x_NCT: np.ndarray,
    present_NC: np.ndarray,
    names: list[str],
    ends_M2: np.ndarray,
    *,
    dtw_rate_hz: float,
    dtw_band_s: float,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(measure, channel, distance (M,)) for each of the channels, then for all of them together.

    A distance is NaN where one of the two epochs lacks the channel. Together: the root of the sum
    of squares, each channel's distance divided by its median so that all count alike; NaN where
    one of the channels is lacking, else pairs of fewer channels would be the nearer ones.
    """
    band = round(dtw_band_s * dtw_rate_hz)
    scaled: dict[str, list[np.ndarray]] = {"Euclidean": [], "time-warped": []}
    for c, name in enumerate(tqdm(names, desc="signal distances", unit="channel", leave=False)):
        both = present_NC[ends_M2, c].all(1)
        slow_NT = lower_rate(x_NCT[:, c], dtw_rate_hz)
        for measure, compute in (
            ("Euclidean", lambda ends, c=c: euclidean(x_NCT[:, c], ends)),
            ("time-warped", lambda ends, x=slow_NT: time_warped(x, ends, band)),
        ):
            distance_M = np.full(len(ends_M2), np.nan)
            distance_M[both] = compute(ends_M2[both])
            median = np.median(distance_M[both]) if both.any() else 0.0
            scaled[measure].append(distance_M / (median if median > 0 else 1.0))
            yield measure, name, distance_M
    for measure, parts in scaled.items():
        yield measure, TOGETHER, np.linalg.norm(parts, axis=0)


def spearman(x_M: np.ndarray, y_M: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant."""
    rank_x, rank_y = rankdata(x_M), rankdata(y_M)
    rank_x, rank_y = rank_x - rank_x.mean(), rank_y - rank_y.mean()
    scale = np.sqrt((rank_x @ rank_x) * (rank_y @ rank_y))
    return float(rank_x @ rank_y / scale) if scale > 0 else float("nan")


def rank_correlation(
    x_M: np.ndarray,
    y_M: np.ndarray,
    group_M2: np.ndarray,
    n_groups: int,
    *,
    n_draws: int,
    seed: int,
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
