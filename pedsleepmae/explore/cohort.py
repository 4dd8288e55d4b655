"""Does a cohort lie apart from the other patients in the embedding space?

The silhouette stands beside what it is when the labels are shuffled over patients: epochs of one
patient resemble each other, so any two groups of patients lie somewhat apart.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import t
from sklearn.metrics import pairwise_distances_chunked
from tqdm import tqdm

from pedsleepmae.errors import bounded
from pedsleepmae.explore import diagnoses
from pedsleepmae.explore.maps import principal_parts
from pedsleepmae.probe.tables import FeatureTable

MAX_REST_PER_PATIENT = 10  # others per patient of the cohort; more cost time and add little
MAX_COHORT_EPOCHS = 20_000  # epochs that a comparison draws from
OUT = -1  # label of a patient who is left out of a labelling
COLUMNS_AT_A_TIME = 128  # labellings; bounds memory at N x 128 numbers


@dataclass
class CohortSettings:
    """Patients that are compared with all others: by ICD code, by a list, or both."""

    name: str = "Prader-Willi syndrome"
    """What the cohort is called in the report."""
    icd_codes: list[str] = field(default_factory=lambda: ["Q87.11", "Q87.1", "759.81"])
    """ICD-10 and ICD-9 codes, equal but for dots, blanks and case (Q87.1 does not find Q87.19); in
    quotes, for YAML takes 759.81 for a number."""
    name_holds: str = ""
    """Count only diagnoses whose DX_NAME holds this text, in any case (Q87.1 covers other
    syndromes too); empty: all."""
    source_types: list[str] = field(default_factory=list)
    """Count only diagnoses of these DX_SOURCE_TYPE (authors' rule: [Final Dx]); empty: all."""
    patient_ids: list[int] = field(default_factory=list)
    """Patients of the cohort besides those found by code."""
    patients_file: Path | None = None
    """CSV file with a column patient_id: more patients of the cohort."""
    min_patients: int = bounded(3, 2)
    """Fewer patients in one of the groups are not compared."""
    epochs_per_patient: int = bounded(30, 2)
    """30-s epochs of each patient in a draw; patients with fewer are left out and counted."""
    n_draws: int = bounded(50, 2)
    """Balanced draws of patients and epochs."""
    n_shuffles: int = bounded(999, 19)
    """Shuffles of the labels over the patients, behind the p-value."""
    controls_per_patient: int = bounded(4, 1)
    """Controls of nearest age for each patient of the cohort, where ages are known; fewer where
    they would take up more than half of the others."""


# ------------------------------------------------------------------ who is in it
@dataclass(frozen=True)
class Cohort:
    """Who the cohort is: ``members`` anywhere, and how many patients each code found anywhere."""

    name: str
    members: frozenset[int]
    n_by_code: dict[str, int]
    n_listed: int


def find_cohort(asked: CohortSettings, health_dir: Path | None) -> Cohort | None:
    """The cohort that the settings name; None when they name none.

    Raises DiagnosisError when a file that they name cannot be used.
    """
    listed = frozenset(asked.patient_ids)
    if asked.patients_file is not None:
        listed |= diagnoses.read_patient_list(asked.patients_file)
    if not listed and health_dir is None:
        return None
    found = {}
    if health_dir is not None and asked.icd_codes:
        found = diagnoses.read_diagnosed(
            health_dir, asked.icd_codes, asked.name_holds, asked.source_types
        )
    n_by_code = {code: len(patients) for code, patients in found.items()}
    return Cohort(asked.name, listed.union(*found.values()), n_by_code, len(listed))


# ------------------------------------------------------------------ the silhouette
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
    # Labellings side by side: the truth, its shuffles, and the truth without each patient or set.
    one_stratum = stratum_Q is None
    stratum_Q = np.zeros(n_patients, int) if one_stratum else np.asarray(stratum_Q)
    truth_Q = np.asarray(in_cohort_Q).astype(int)
    shuffled_QP = np.stack([_shuffle(truth_Q, stratum_Q, rng) for _ in range(n_shuffles)], axis=1)
    unit_Q = np.arange(n_patients) if one_stratum else np.unique(stratum_Q, return_inverse=True)[1]
    without_QU = np.where(unit_Q[:, None] == np.arange(unit_Q.max() + 1), OUT, truth_Q[:, None])
    label_QP = np.concatenate([truth_Q[:, None], shuffled_QP, without_QU], axis=1)
    rows = [np.flatnonzero(patient_N == patient) for patient in range(n_patients)]
    figures_RP = np.empty((n_draws, label_QP.shape[1]))
    for figures_P in tqdm(figures_RP, desc="balanced draws", unit="draw", leave=False):
        figures_P[:] = _one_draw(x_ND, rows, label_QP, stratum_Q, n_epochs, rng)
    # Over the draws, each labelling has one figure.
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


def _one_draw(
    x_ND: np.ndarray,
    rows: list[np.ndarray],
    label_QP: np.ndarray,
    stratum_Q: np.ndarray,
    n_epochs: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Silhouette of each labelling (P,) in one draw of epochs; ``rows``: those of each patient."""
    drawn_N = np.concatenate([rng.choice(mine, n_epochs, replace=False) for mine in rows])
    order_Q = rng.permutation(len(rows))
    sums_NQ = distance_sums(x_ND[drawn_N], len(rows))
    figures = []
    for start in range(0, label_QP.shape[1], COLUMNS_AT_A_TIME):
        part_QP = label_QP[:, start : start + COLUMNS_AT_A_TIME]
        drawn_QP = balance(part_QP, stratum_Q, order_Q)
        figures.append(silhouettes(sums_NQ, part_QP, drawn_QP))
    return np.concatenate(figures)


def distance_sums(x_ND: np.ndarray, n_patients: int) -> np.ndarray:
    """Sum of the Euclidean distances from each epoch to all epochs of each patient, (N, Q).

    The epochs stand patient by patient, equally many of each. Every labelling of the patients has
    its silhouette from these sums alone, which is what makes thousands of shuffles cheap.
    """

    def by_patient(distance_nN: np.ndarray, _start: int) -> np.ndarray:
        return distance_nN.reshape(len(distance_nN), n_patients, -1).sum(2)

    return np.concatenate(list(pairwise_distances_chunked(x_ND, reduce_func=by_patient)))


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


def match_by_age(age_years_Q: np.ndarray, in_cohort_Q: np.ndarray, n_controls: int) -> np.ndarray:
    """Matched sets: the number of its set for each patient (Q,), OUT for those in none.

    Each patient of the cohort gets the same number of controls, such that the sum of the
    differences in age is least (Rosenbaum 1989, optimal matching): ``n_controls``, or fewer, so
    that half of the others remain unchosen, for a match needs a choice; at least one. Patients of
    unknown age (NaN) are in no set.
    """
    known = np.isfinite(age_years_Q)
    cases, others = np.flatnonzero(known & in_cohort_Q), np.flatnonzero(known & ~in_cohort_Q)
    set_Q = np.full(len(age_years_Q), OUT)
    if not 0 < len(cases) <= len(others):
        return set_Q
    n_controls = min(n_controls, max(1, len(others) // (2 * len(cases))))
    seats = np.repeat(np.arange(len(cases)), n_controls)
    apart = np.abs(age_years_Q[cases][seats][:, None] - age_years_Q[others][None])
    seat, chosen = linear_sum_assignment(apart)
    set_Q[cases] = np.arange(len(cases))
    set_Q[others[chosen]] = seats[seat]
    return set_Q


def _shuffle(label_Q: np.ndarray, stratum_Q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels permuted within each stratum."""
    return pd.Series(label_Q).groupby(stratum_Q).transform(rng.permutation).to_numpy()


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


# ------------------------------------------------------------------ the cohort against others
@dataclass(frozen=True)
class Comparison:
    """The cohort against one set of other patients; ``separation`` is None for a ``reason``.

    Ages are medians, years, None where unknown; ``age_gap`` is the mean difference between a
    patient and the controls of its set, years. ``least_p`` is the smallest p-value that so few
    patients and shuffles allow.
    """

    against: str
    n_cohort: int
    n_rest: int
    epochs_per_patient: int
    age_cohort: float | None
    age_rest: float | None
    age_gap: float | None
    least_p: float | None
    separation: Separation | None
    reason: str = ""


def compare_cohort(
    asked: CohortSettings,
    table: FeatureTable,
    positions: np.ndarray,
    cohort: Cohort,
    age_years_N: np.ndarray,
    seed: int,
) -> list[Comparison]:
    """The cohort against all other patients, and against those of nearest age."""
    rng, patient_n = np.random.default_rng(seed), table.index.patient_ids[positions]
    by_patient = pd.Series(age_years_N[positions]).groupby(patient_n)
    people = pd.DataFrame({"age": by_patient.mean()})
    people["member"] = people.index.isin(list(cohort.members))
    people["epochs"] = [positions[by_patient.indices[patient]] for patient in people.index]
    people = people[people["epochs"].map(len) >= asked.epochs_per_patient]
    is_member_Q, age_Q = people["member"].to_numpy(), people["age"].to_numpy()
    members, others = np.flatnonzero(is_member_Q), np.flatnonzero(~is_member_Q)
    n_most = MAX_REST_PER_PATIENT * max(1, len(members))
    drawn = rng.choice(others, min(n_most, len(others)), replace=False)
    groups = {"other patients": people.iloc[np.sort(np.r_[members, drawn])]}
    if np.isfinite(age_Q[members]).any():
        set_Q = match_by_age(age_Q, is_member_Q, asked.controls_per_patient)
        groups["controls of nearest age"] = people.assign(set=set_Q)[set_Q != OUT]
    return [compare(asked, name, group, table, rng, seed) for name, group in groups.items()]


def compare(
    asked: CohortSettings,
    against: str,
    people: pd.DataFrame,
    table: FeatureTable,
    rng: np.random.Generator,
    seed: int,
) -> Comparison:
    """How far apart two groups of patients lie, or why that is not asked.

    ``people``, a row a patient: age, member (of the cohort), epochs (positions), set (if matched).
    """
    is_member_Q, age_Q = people["member"].to_numpy(), people["age"].to_numpy()
    set_Q = people["set"].to_numpy() if "set" in people else None
    age_cohort_n, age_rest_n = age_Q[is_member_Q], age_Q[~is_member_Q]
    n_cohort, n_rest, n_epochs = len(age_cohort_n), len(age_rest_n), asked.epochs_per_patient
    separation, least_p, age_gap, reason = None, None, None, ""
    if set_Q is not None and n_cohort:  # a set's number is the place of its patient of the cohort
        age_gap = float(np.abs(age_rest_n - age_cohort_n[set_Q[~is_member_Q]]).mean())
    if set_Q is not None and not n_cohort:
        reason = "fewer others of known age than patients of the cohort: nobody to match"
    elif min(n_cohort, n_rest) < asked.min_patients:
        reason = (
            f"{n_cohort} of the cohort and {n_rest} others have {n_epochs} epochs "
            f"or more; cohort.min_patients asks for {asked.min_patients} of each (split all has "
            "the most patients)"
        )
    else:
        n_most = max(n_epochs, MAX_COHORT_EPOCHS // len(is_member_Q))
        rows = [rng.choice(e, min(n_most, len(e)), replace=False) for e in people["epochs"]]
        patient_n = np.repeat(np.arange(len(rows)), [len(drawn) for drawn in rows])
        separation = separate_cohort(
            principal_parts(table, np.concatenate(rows), seed),
            patient_n,
            is_member_Q,
            set_Q,
            n_epochs=n_epochs,
            n_draws=asked.n_draws,
            n_shuffles=asked.n_shuffles,
            seed=seed,
        )
        least_p = max(1 / _n_labellings(is_member_Q, set_Q), 1 / (1 + asked.n_shuffles))
    age_cohort, age_rest = _median(age_cohort_n), _median(age_rest_n)
    return Comparison(
        against,
        n_cohort,
        n_rest,
        n_epochs,
        age_cohort,
        age_rest,
        age_gap,
        least_p,
        separation,
        reason,
    )


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _n_labellings(member_Q: np.ndarray, stratum_Q: np.ndarray | None) -> int:
    """How many silhouettes the labels can give within the strata.

    The silhouette does not know which group is which: where every stratum has as many of the one
    as of the other, two labellings share each.
    """
    strata = np.zeros(len(member_Q), int) if stratum_Q is None else stratum_Q
    parts = [member_Q[strata == stratum] for stratum in np.unique(strata)]
    n_labellings = math.prod(math.comb(len(part), int(part.sum())) for part in parts)
    return n_labellings // 2 if all(2 * part.sum() == len(part) for part in parts) else n_labellings


def comparison_figures(comparison: Comparison) -> dict:
    """A comparison as numbers, None where there are none."""
    figures = vars(comparison) | {"reason": comparison.reason or None}
    separation = figures.pop("separation")
    found = {} if separation is None else vars(separation)
    names = ("silhouette", "draws95", "ci95", "shuffled", "shuffled95", "p_value")
    return figures | {name: found.get(name) for name in names}
