"""Whether a cohort of patients lies apart from the others in the embedding space.

Axes: **N** epochs, **D** dimensions, **Q** patients, **R** draws, **P** labellings of the patients.

Figure: the silhouette (Rousseeuw 1987) of cohort against rest over balanced draws, as in the
original's analysis of Prader-Willi syndrome: as many patients of the cohort as of the rest, as many
epochs of each. Test: the same figure with the labels shuffled over the *patients*. Epochs of one
patient resemble each other, so labels shuffled over epochs would find any two groups of patients
apart; Winkler et al., NeuroImage 2015;123:253, on exchangeability blocks.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import t
from sklearn.metrics import pairwise_distances
from tqdm import tqdm

OUT = -1  # label of a patient who is left out of a labelling
COLUMNS_AT_A_TIME = 128  # labellings; bounds memory at N x 128 numbers


@dataclass(frozen=True)
class Separation:
    """Silhouette of cohort against rest, -1 to 1, and what it is for shuffled patients.

    ``silhouette`` is the mean over the draws, ``draws95`` the range of 95 % of them (other epochs,
    other patients of the rest); ``ci95`` the interval over patients (jackknife), None where a group
    has one. ``shuffled`` and ``shuffled95``: mean and 95 % of the shuffled figures. ``p_value``:
    share of shuffles (the truth among them) that reach the silhouette.
    """

    silhouette: float
    draws95: list[float]
    ci95: list[float] | None
    shuffled: float
    shuffled95: list[float]
    p_value: float
    silhouette_R: np.ndarray
    shuffled_P: np.ndarray


def separate_cohort(
    x_ND: np.ndarray,
    patient_N: np.ndarray,
    in_cohort_Q: np.ndarray,
    stratum_Q: np.ndarray | None = None,
    *,
    n_epochs: int,
    n_draws: int,
    n_shuffles: int,
    seed: int,
) -> Separation:
    """Separation of the patients ``in_cohort_Q`` (Q,) bool from the others.

    ``patient_N`` (N,) numbers 0 to Q - 1, each patient with ``n_epochs`` epochs or more.
    ``stratum_Q`` (Q,): labels are balanced and shuffled within strata only (matched sets of
    :func:`match_by_age`); none: all patients are one stratum.
    """
    rng = np.random.default_rng(seed)
    n_patients = len(in_cohort_Q)
    one_stratum = stratum_Q is None
    stratum_Q = np.zeros(n_patients, int) if one_stratum else np.asarray(stratum_Q)
    truth_Q = np.asarray(in_cohort_Q).astype(int)
    shuffled_QP = np.stack([_shuffle(truth_Q, stratum_Q, rng) for _ in range(n_shuffles)], axis=1)
    unit_Q = np.arange(n_patients) if one_stratum else np.unique(stratum_Q, return_inverse=True)[1]
    without_QU = np.where(unit_Q[:, None] == np.arange(unit_Q.max() + 1), OUT, truth_Q[:, None])
    label_QP = np.concatenate([truth_Q[:, None], shuffled_QP, without_QU], axis=1)
    rows = [np.flatnonzero(patient_N == patient) for patient in range(n_patients)]
    figures_RP = np.empty((n_draws, label_QP.shape[1]))
    for r in tqdm(range(n_draws), desc="balanced draws", unit="draw", leave=False):
        drawn_N = np.concatenate([rng.choice(mine, n_epochs, replace=False) for mine in rows])
        order_Q = rng.permutation(n_patients)
        sums_NQ = distance_sums(x_ND[drawn_N], n_patients)
        for start in range(0, label_QP.shape[1], COLUMNS_AT_A_TIME):
            part_QP = label_QP[:, start : start + COLUMNS_AT_A_TIME]
            drawn_QP = balance(part_QP, stratum_Q, order_Q)
            figures_RP[r, start : start + part_QP.shape[1]] = silhouettes(
                sums_NQ, part_QP, drawn_QP
            )
    mean_P = figures_RP.mean(0)
    value, shuffled_P = float(mean_P[0]), mean_P[1 : 1 + n_shuffles]
    reached = (shuffled_P >= value - 1e-12).sum()
    group_U = truth_Q if one_stratum else np.zeros(without_QU.shape[1], int)
    return Separation(
        silhouette=value,
        draws95=np.quantile(figures_RP[:, 0], [0.025, 0.975]).tolist(),
        ci95=_jackknife_interval(value, mean_P[1 + n_shuffles :], group_U),
        shuffled=float(shuffled_P.mean()),
        shuffled95=np.quantile(shuffled_P, [0.025, 0.975]).tolist(),
        p_value=float((1 + reached) / (1 + n_shuffles)),
        silhouette_R=figures_RP[:, 0],
        shuffled_P=shuffled_P,
    )


def distance_sums(x_ND: np.ndarray, n_patients: int) -> np.ndarray:
    """Sum of the Euclidean distances from each epoch to all epochs of each patient, (N, Q).

    The epochs stand patient by patient, equally many of each. Every labelling of the patients has
    its silhouette from these sums alone, which is what makes thousands of shuffles cheap.
    """
    sums_NQ = np.empty((len(x_ND), n_patients))
    n_rows = max(1, 20_000_000 // len(x_ND))
    for start in range(0, len(x_ND), n_rows):
        piece = pairwise_distances(x_ND[start : start + n_rows], x_ND)
        sums_NQ[start : start + n_rows] = piece.reshape(len(piece), n_patients, -1).sum(2)
    return sums_NQ


def balance(label_QP: np.ndarray, stratum_Q: np.ndarray, order_Q: np.ndarray) -> np.ndarray:
    """Who takes part in a draw, (Q, P) bool: in each stratum as many of the one label as of the
    other, those that come first in ``order_Q`` (a permutation of the patients)."""
    drawn_QP = np.zeros(label_QP.shape, bool)
    for stratum in np.unique(stratum_Q):
        here = order_Q[stratum_Q[order_Q] == stratum]
        sides = [label_QP[here] == label for label in (0, 1)]
        n_P = np.minimum(*(side.sum(0) for side in sides))
        for side in sides:
            drawn_QP[here] |= side & (np.cumsum(side, axis=0) <= n_P)
    return drawn_QP


def silhouettes(sums_NQ: np.ndarray, label_QP: np.ndarray, drawn_QP: np.ndarray) -> np.ndarray:
    """Mean silhouette of the drawn patients' epochs for each labelling, (P,); NaN without two.

    ``sums_NQ`` from :func:`distance_sums`. s = (b - a) / max(a, b), with a the mean distance of an
    epoch to the others of its group and b that to the other group.
    """
    n_epochs = len(sums_NQ) // len(label_QP)
    members = [(drawn_QP & (label_QP == label)).astype(float) for label in (0, 1)]
    to_0, to_1 = (sums_NQ @ member for member in members)
    n_0, n_1 = (n_epochs * member.sum(0) for member in members)
    in_1 = np.repeat(label_QP == 1, n_epochs, axis=0)
    taken = np.repeat(drawn_QP, n_epochs, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        a = np.where(in_1, to_1 / (n_1 - 1), to_0 / (n_0 - 1))
        b = np.where(in_1, to_0 / n_0, to_1 / n_1)
        s = np.where(taken, (b - a) / np.maximum(a, b), 0.0)
        return s.sum(0) / taken.sum(0)


def match_by_age(
    age_years_Q: np.ndarray, in_cohort_Q: np.ndarray, n_controls: int
) -> tuple[np.ndarray, int]:
    """Matched sets: the number of its set for each patient (Q,), OUT for those in none; and the
    controls in each.

    Each patient of the cohort gets the same number of controls, such that the sum of the
    differences in age is least (Rosenbaum 1989, optimal matching): ``n_controls``, or fewer, so
    that half of the others remain unchosen, for a match needs a choice; at least one. Patients of
    unknown age (NaN) are in no set.
    """
    known = np.isfinite(age_years_Q)
    cases, others = np.flatnonzero(known & in_cohort_Q), np.flatnonzero(known & ~in_cohort_Q)
    set_Q = np.full(len(age_years_Q), OUT)
    if not 0 < len(cases) <= len(others):
        return set_Q, 0
    n_controls = min(n_controls, max(1, len(others) // (2 * len(cases))))
    seats = np.repeat(np.arange(len(cases)), n_controls)
    apart = np.abs(age_years_Q[cases][seats][:, None] - age_years_Q[others][None])
    seat, chosen = linear_sum_assignment(apart)
    set_Q[cases] = np.arange(len(cases))
    set_Q[others[chosen]] = seats[seat]
    return set_Q, n_controls


def _shuffle(label_Q: np.ndarray, stratum_Q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels permuted within each stratum."""
    shuffled_Q = label_Q.copy()
    for stratum in np.unique(stratum_Q):
        here = np.flatnonzero(stratum_Q == stratum)
        shuffled_Q[here] = rng.permutation(label_Q[here])
    return shuffled_Q


def _jackknife_interval(
    value: float, without_U: np.ndarray, group_U: np.ndarray
) -> list[float] | None:
    """95 % interval from the figures without each unit (patient or matched set).

    A t interval with the jackknife's standard error, groups taken one by one (Efron & Stein 1981),
    and the degrees of freedom of the smallest group. The bootstrap would draw patients twice, and
    an epoch's distance to its own copy is 0.
    """
    groups = [without_U[group_U == group] for group in np.unique(group_U)]
    fewest = min(map(len, groups))
    if fewest < 2 or not np.isfinite(without_U).all():
        return None
    variance = sum((len(g) - 1) / len(g) * ((g - g.mean()) ** 2).sum() for g in groups)
    reach = t.ppf(0.975, fewest - 1) * np.sqrt(variance)
    return [float(max(-1.0, value - reach)), float(min(1.0, value + reach))]
