"""Labels and scores to figures: definitions, calibration, intervals by bootstrap over patients.

Axes: **N** epochs, **K** classes (2 for an event, 5 for the stages), **G** groups that are drawn
together (patients, or blocks of a night), **R** bootstrap draws, **Q** bins of a score.

A resample of patients changes no epoch's score, only how often it counts. So each patient is
reduced once to sums (confusion matrix, score histogram, calibration bins); a draw is then a
weighted sum of patients, and a thousand draws are one matrix product.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

CALIBRATION_BINS = 15  # equal-width bins of Guo et al. 2017 (arXiv 1706.04599)
SCORE_BINS = 2048  # bins of a score in the bootstrap; scores with fewer values stay exact
FEW_GROUPS = 8  # from here on percentile intervals covered 0.93 to 0.96 in simulation
BLOCK_S = 600.0  # length of a bootstrap block when there is one patient only, seconds
_BOTH_FIRST, _BOTH_LAST = ("accuracy", "balanced_accuracy"), ("kappa", "brier", "ece")
_OF_EVENTS = ("f1", "precision", "sensitivity", "specificity", "auroc", "auprc")
EVENT_FIGURES = (*_BOTH_FIRST, *_OF_EVENTS, *_BOTH_LAST)
STAGE_FIGURES = (*_BOTH_FIRST, "weighted_f1", "macro_f1", "weighted_auroc", *_BOTH_LAST)


def figure_names(n_classes: int) -> tuple[str, ...]:
    """The figures of an event (2 classes) or of the stages."""
    return EVENT_FIGURES if n_classes == 2 else STAGE_FIGURES


@dataclass(frozen=True)
class Sums:
    """What a bootstrap needs of each group: sums over its epochs, first axis G.

    ``confusion`` (G, K, K), rows true, columns predicted; ``squared`` (G,) Brier terms;
    ``bins`` (G, CALIBRATION_BINS, 3): epochs, sum of confidence, sum of correct;
    ``histograms`` one (G, Q, 2) for each scored class: others and members by bin of rising score.
    """

    confusion: np.ndarray
    squared: np.ndarray
    bins: np.ndarray
    histograms: list[np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one set of scores: values, intervals, why some are undefined, and the draws."""

    figures: dict[str, float | None]
    ci95: dict[str, list[float] | None]
    undefined: dict[str, str]
    draws: dict[str, np.ndarray]
    confusion: np.ndarray

    def as_dict(self) -> dict:
        """Plain figures with ``ci95`` and ``undefined``, as they stand in metrics.json."""
        return {**self.figures, "ci95": self.ci95, "undefined": self.undefined}


# ------------------------------------------------------------------ groups and draws
def bootstrap_groups(
    patient_ids: np.ndarray, study_ids: np.ndarray, onsets_s: np.ndarray
) -> tuple[np.ndarray, str]:
    """Number (0, 1, …) of the group of each epoch, (N,), and what a group is.

    Patients where there are two or more; else contiguous blocks of BLOCK_S of each night, because
    neighbouring epochs are no independent observations. Unknown onsets count as consecutive.
    """
    if len(np.unique(patient_ids)) > 1:
        return np.unique(patient_ids, return_inverse=True)[1], "patient"
    onsets_s = np.where(np.isnan(onsets_s), 30.0 * np.arange(len(onsets_s)), onsets_s)
    blocks = np.stack([study_ids.astype(np.float64), onsets_s // BLOCK_S])
    groups = np.unique(blocks, axis=1, return_inverse=True)[1].reshape(-1)
    return groups, f"{BLOCK_S / 60:g}-minute block"


def draw_weights(n_groups: int, n_draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn, (R, G): each draw takes n_groups with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), n_draws).astype(np.float64)


def interval(
    draws_R: np.ndarray, n_groups: int, value: float, bounds: tuple[float, float] = (0.0, 1.0)
) -> list[float] | None:
    """95 % interval of ``value`` from its bootstrap draws; None where too few are defined.

    From FEW_GROUPS groups on the expanded percentile interval: the plain one is too narrow by the
    factor that separates a t from a normal interval, so its percentiles are moved out accordingly
    (Hesterberg 2015, The American Statistician 69:371). Percentiles never leave the range of the
    groups, which holds the truth in 1 - 2^(1-n) of cases at most; so for fewer groups it is a t
    interval with the bootstrap's standard error, cut at ``bounds``.
    """
    defined = draws_R[np.isfinite(draws_R)]
    if n_groups < 2 or len(defined) < max(2, len(draws_R) / 2):
        return None
    widened = np.sqrt(n_groups / (n_groups - 1)) * t.ppf(0.975, n_groups - 1)
    if n_groups < FEW_GROUPS:
        reach = widened * defined.std()
        return [float(max(bounds[0], value - reach)), float(min(bounds[1], value + reach))]
    tail = float(norm.cdf(-widened))
    return [float(edge) for edge in np.quantile(defined, [tail, 1 - tail])]


def bootstrap_mean(
    value_N: np.ndarray,
    group_N: np.ndarray,
    weights_RG: np.ndarray,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> dict:
    """``value``, the mean over the epochs that have one (are not NaN), and its ``ci95``."""
    known, n_groups = np.isfinite(value_N), weights_RG.shape[1]
    if not known.any():
        return {"value": None, "ci95": None}
    count_G = np.bincount(group_N[known], minlength=n_groups)
    sum_R = weights_RG @ np.bincount(group_N[known], value_N[known], n_groups)
    n_R = weights_RG @ count_G
    draws_R = np.divide(sum_R, n_R, out=np.full(len(n_R), np.nan), where=n_R > 0)
    value = float(value_N[known].mean())
    return {"value": value, "ci95": interval(draws_R, (count_G > 0).sum(), value, bounds)}


# ------------------------------------------------------------------ sums and figures
def group_sums(
    label_N: np.ndarray,
    prob_NK: np.ndarray,
    predicted_N: np.ndarray,
    group_N: np.ndarray,
    n_groups: int,
) -> Sums:
    """Reduce the epochs of each group to the sums that every figure is made of."""
    n_classes = prob_NK.shape[1]

    def count(columns_N: np.ndarray, n_columns: int, weight_N=None) -> np.ndarray:
        flat = group_N * n_columns + columns_N
        return np.bincount(flat, weight_N, n_groups * n_columns).reshape(n_groups, n_columns)

    confusion = count(label_N * n_classes + predicted_N, n_classes**2)
    truth_NK = np.eye(n_classes)[label_N]
    if n_classes == 2:  # Brier (1950) as it is used for events: of the event's probability
        squared_N = (prob_NK[:, 1] - truth_NK[:, 1]) ** 2
        confidence_N, correct_N = prob_NK[:, 1], label_N == 1
        scored = [1]
    else:
        squared_N = ((prob_NK - truth_NK) ** 2).sum(1)
        confidence_N, correct_N = prob_NK.max(1), label_N == prob_NK.argmax(1)
        scored = range(n_classes)
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    weights = (None, confidence_N, correct_N.astype(np.float64))
    bins = [count(bin_N, CALIBRATION_BINS, weight_N) for weight_N in weights]
    histograms = []
    for k in scored:
        score_bin_N, n_bins = _bin_scores(prob_NK[:, k], label_N == k)
        histogram = count(score_bin_N * 2 + (label_N == k), n_bins * 2)
        histograms.append(histogram.reshape(n_groups, n_bins, 2).astype(np.float64))
    return Sums(
        confusion=confusion.reshape(n_groups, n_classes, n_classes).astype(np.float64),
        squared=np.bincount(group_N, squared_N, n_groups),
        bins=np.stack(bins, axis=-1).astype(np.float64),
        histograms=histograms,
    )


def figures_of_draws(sums: Sums, weights_RG: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure for every draw, each (R,), NaN where a draw leaves it undefined."""
    confusion_RKK = np.tensordot(weights_RG, sums.confusion, 1)
    n_R = confusion_RKK.sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = _confusion_figures(confusion_RKK)
        figures["brier"] = weights_RG @ sums.squared / n_R
        bins = np.tensordot(weights_RG, sums.bins, 1)
        figures["ece"] = np.abs(bins[..., 2] - bins[..., 1]).sum(1) / n_R
        ranked = [_ranking_figures(histogram, weights_RG) for histogram in sums.histograms]
        if len(ranked) == 1:
            figures["auroc"], figures["auprc"] = ranked[0]
        else:
            support_RK = confusion_RKK.sum(2)
            auroc_RK = np.stack([auroc for auroc, _ in ranked], axis=1)
            # A stage without epochs has no AUROC and no weight; one stage alone has no others.
            weighted = np.where(support_RK > 0, auroc_RK * support_RK, 0).sum(1) / n_R
            figures["weighted_auroc"] = weighted
    return figures


def _confusion_figures(confusion_RKK: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of predicted classes; a class that the truth lacks does not count in the means."""
    n_R = confusion_RKK.sum((1, 2))
    support_RK, predicted_RK = confusion_RKK.sum(2), confusion_RKK.sum(1)
    hit_RK = np.diagonal(confusion_RKK, axis1=1, axis2=2)
    recall_RK = np.where(support_RK > 0, hit_RK / support_RK, np.nan)
    f1_RK = np.where(support_RK > 0, 2 * hit_RK / (support_RK + predicted_RK), np.nan)
    accuracy = hit_RK.sum(1) / n_R
    by_chance = (support_RK * predicted_RK).sum(1) / n_R**2
    n_present_R = (support_RK > 0).sum(1)
    figures = {
        "accuracy": accuracy,
        "balanced_accuracy": np.nansum(recall_RK, 1) / n_present_R,
        "kappa": np.where(by_chance < 1, (accuracy - by_chance) / (1 - by_chance), np.nan),
    }
    if confusion_RKK.shape[1] == 2:
        figures["balanced_accuracy"] = recall_RK.mean(1)
        figures["f1"] = f1_RK[:, 1]
        figures["precision"] = hit_RK[:, 1] / predicted_RK[:, 1]
        figures["sensitivity"] = recall_RK[:, 1]
        figures["specificity"] = recall_RK[:, 0]
    else:
        figures["macro_f1"] = np.nansum(f1_RK, 1) / n_present_R
        figures["weighted_f1"] = np.nansum(f1_RK * support_RK, 1) / n_R
    return figures


def _ranking_figures(histogram_GQ2: np.ndarray, weights_RG: np.ndarray) -> tuple:
    """Area under the ROC curve and average precision, each (R,), from histograms of the score."""
    others_RQ, members_RQ = (weights_RG @ histogram_GQ2[..., i] for i in (0, 1))
    n_members_R, n_others_R = members_RQ.sum(1), others_RQ.sum(1)
    # Members at or above each bin; equal scores (same bin) count half in the AUROC.
    above_RQ = np.cumsum(members_RQ[:, ::-1], 1)[:, ::-1]
    pairs_R = (others_RQ * (above_RQ - members_RQ / 2)).sum(1)
    called_RQ = above_RQ + np.cumsum(others_RQ[:, ::-1], 1)[:, ::-1]
    precision_RQ = np.divide(above_RQ, called_RQ, out=np.zeros_like(above_RQ), where=called_RQ > 0)
    auprc_R = (members_RQ * precision_RQ).sum(1) / n_members_R
    return pairs_R / (n_members_R * n_others_R), auprc_R


def _bin_scores(score_N: np.ndarray, member_N: np.ndarray) -> tuple:
    """Bin of each score, rising, and the number of bins: one a value where there are few values.

    Else half of the edges are quantiles of the members and half of the others, so that a rare
    class is resolved as finely as the common one.
    """
    values = np.unique(score_N)
    if len(values) > SCORE_BINS:
        steps = np.linspace(0, 1, SCORE_BINS // 2)
        parts = [score_N[side] for side in (member_N, ~member_N) if side.any()]
        values = np.unique(np.concatenate([np.quantile(part, steps) for part in parts]))
    return np.maximum(np.searchsorted(values, score_N, side="right") - 1, 0), len(values)


# ------------------------------------------------------------------ one evaluation
def evaluate(
    label_N: np.ndarray,
    prob_NK: np.ndarray,
    predicted_N: np.ndarray,
    group_N: np.ndarray | None = None,
    weights_RG: np.ndarray | None = None,
) -> Evaluation:
    """Figures and 95 % intervals of one set of scores.

    ``label_N`` and ``predicted_N`` hold class numbers, ``prob_NK`` probabilities. Evaluations with
    the same groups and weights are paired draw by draw (:func:`difference`). An undefined figure
    is None, with its reason; so is an interval that the groups cannot carry. Without weights there
    are figures only, for which groups do not matter.
    """
    names = figure_names(prob_NK.shape[1])
    group_N = np.zeros(len(label_N), np.int64) if group_N is None else group_N
    n_groups = int(group_N.max(initial=-1)) + 1 if weights_RG is None else weights_RG.shape[1]
    sums = group_sums(label_N, prob_NK, predicted_N, group_N, n_groups)
    whole = figures_of_draws(sums, np.ones((1, n_groups)))
    values = {name: float(whole[name][0]) for name in names}
    values |= _exact_figures(label_N, prob_NK)
    reasons = _why_undefined(label_N, predicted_N, prob_NK.shape[1])
    for name in names:
        if name not in reasons and not np.isfinite(values[name]):
            reasons[name] = "one class only among the epochs"
    figures = {name: None if name in reasons else values[name] for name in names}
    confusion = sums.confusion.sum(0).astype(int)
    if weights_RG is None:
        return Evaluation(figures, {}, reasons, {}, confusion)
    draws = figures_of_draws(sums, weights_RG)
    # One group alone that holds a class says nothing of others.
    n_holders_K = (sums.confusion.sum(2) > 0).sum(0)
    carried = (n_holders_K >= 2).sum() >= 2
    ci95 = dict.fromkeys(names)
    for name in [name for name in names if name not in reasons]:
        if carried:
            ci95[name] = interval(draws[name], n_groups, values[name], _bounds(name))
        if ci95[name] is None:
            reasons[f"ci95.{name}"] = "fewer than 2 patients (or blocks) hold one of the classes"
    return Evaluation(figures, ci95, reasons, draws, confusion)


def _exact_figures(label_N: np.ndarray, prob_NK: np.ndarray) -> dict[str, float]:
    """Areas under curves of the scores themselves, where the draws use bins of them."""
    if len(label_N) == 0:
        return {}
    if prob_NK.shape[1] > 2:
        return {"weighted_auroc": weighted_auroc(label_N, prob_NK)}
    if not label_N.any() or label_N.all():
        return {}
    return {
        "auroc": float(roc_auc_score(label_N, prob_NK[:, 1])),
        "auprc": float(average_precision_score(label_N, prob_NK[:, 1])),
    }


def _why_undefined(label_N: np.ndarray, predicted_N: np.ndarray, n_classes: int) -> dict[str, str]:
    """Reason by figure, of those that these labels and calls leave undefined."""
    if len(label_N) == 0:
        return dict.fromkeys(figure_names(n_classes), "no epoch to score")
    reasons = {}
    if n_classes > 2:
        if len(np.unique(label_N)) < 2:
            needs_more = ("kappa", "balanced_accuracy", "weighted_auroc")
            reasons = dict.fromkeys(needs_more, "one stage only among the epochs")
        return reasons
    needs_both = ("auroc", "auprc", "balanced_accuracy", "kappa")
    if not label_N.any():
        reasons = dict.fromkeys((*needs_both, "f1", "sensitivity"), "no positive epoch")
    elif label_N.all():
        reasons = dict.fromkeys((*needs_both, "specificity"), "no negative epoch")
    if not predicted_N.any():
        reasons["precision"] = "no epoch called positive"
    return reasons


def difference(model: Evaluation, baseline: Evaluation, n_groups: int) -> dict:
    """Model minus baseline for each figure: value and paired 95 % interval, None if undefined."""
    result = {}
    for name, value in model.figures.items():
        other, gap, ci95 = baseline.figures.get(name), None, None
        if value is not None and other is not None:
            gap, (low, high) = value - other, _bounds(name)
            paired_R = model.draws[name] - baseline.draws[name]
            if model.ci95[name] is not None:
                ci95 = interval(paired_R, n_groups, gap, (low - high, high - low))
        result[name] = {"value": gap, "ci95": ci95}
    return result


def _bounds(name: str) -> tuple[float, float]:
    """Least and largest possible value of a figure."""
    return {"kappa": (-1.0, 1.0), "brier": (0.0, 2.0)}.get(name, (0.0, 1.0))


def weighted_auroc(label_N: np.ndarray, prob_NK: np.ndarray) -> float:
    """One-against-rest AUROC of each class that occurs, weighted by its share; NaN: one class."""
    count_K = np.bincount(label_N, minlength=prob_NK.shape[1])
    present = np.flatnonzero(count_K)
    if len(present) < 2:
        return float("nan")
    aurocs = [roc_auc_score(label_N == k, prob_NK[:, k]) for k in present]
    return float(np.average(aurocs, weights=count_K[present]))


# ------------------------------------------------------------------ decisions and calibration
def best_f1_threshold(label_N: np.ndarray, score_N: np.ndarray) -> float | None:
    """Score at and above which calling an epoch positive gives the best F1; None for one class."""
    if not 0 < np.sum(label_N) < len(label_N):
        return None
    precision, recall, threshold = precision_recall_curve(label_N, score_N)
    with np.errstate(invalid="ignore"):
        f1 = 2 * precision * recall / (precision + recall)
    return float(threshold[np.nanargmax(f1[:-1])])


def fit_calibration(label_N: np.ndarray, logit_NK: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope (above 0, so that ranks stay) and shift (K,) that make the logits calibrated.

    Platt scaling for two classes, temperature with a shift for each class for more; by maximum
    likelihood with a weak pull towards slope 1 and shift 0. Undoes the class weights as well.
    """
    n, n_classes = logit_NK.shape

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, shift_K = np.exp(parameters[0]), np.append(0.0, parameters[1:])
        logp_NK = log_softmax(slope * logit_NK + shift_K, axis=1)
        error_NK = np.exp(logp_NK)
        error_NK[np.arange(n), label_N] -= 1
        gradient = np.append(slope * (error_NK * logit_NK).sum(), error_NK.sum(0)[1:])
        value = -logp_NK[np.arange(n), label_N].sum()
        return value + 0.005 * (parameters @ parameters), gradient + 0.01 * parameters

    bounds = [(-6.0, 6.0)] + [(-20.0, 20.0)] * (n_classes - 1)
    fitted = minimize(loss, np.zeros(n_classes), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(fitted[0])), np.append(0.0, fitted[1:])


def calibrated(logit_NK: np.ndarray, slope: float, shift_K: np.ndarray) -> np.ndarray:
    """Probabilities (N, K) from logits and what :func:`fit_calibration` returned."""
    return softmax(slope * logit_NK + shift_K, axis=1)


def reliability(label_N: np.ndarray, prob_N: np.ndarray, n_bins: int = 10) -> np.ndarray:
    """Mean probability, observed share and epochs in bins of equal count, (bins, 3).

    Equal count, because nearly all probabilities of a rare event lie in the lowest equal-width bin.
    """
    order = np.argsort(prob_N, kind="stable")
    parts = [part for part in np.array_split(order, n_bins) if len(part)]
    return np.array([[prob_N[p].mean(), label_N[p].mean(), len(p)] for p in parts])


def bland_altman(predicted_n: np.ndarray, scored_n: np.ndarray) -> dict[str, float | int | None]:
    """Bias and 95 % limits of agreement of predicted minus scored (Bland & Altman 1986)."""
    gap = np.asarray(predicted_n, float) - np.asarray(scored_n, float)
    figures = {"n": len(gap), "bias": None, "lower": None, "upper": None}
    if len(gap) > 0:
        figures["bias"] = bias = float(gap.mean())
    if len(gap) > 1:
        spread = 1.96 * float(gap.std(ddof=1))
        figures |= {"lower": bias - spread, "upper": bias + spread}
    return figures


def absolute_agreement(pairs_N2: np.ndarray) -> float | None:
    """Intraclass correlation of two raters in absolute agreement, ICC(A,1) of McGraw & Wong 1996.

    From the mean squares of a two-way analysis of variance; None for fewer than two nights, or
    where nothing varies.
    """
    n = len(pairs_N2)
    if n < 2:
        return None
    mean = pairs_N2.mean()
    between_N = 2 * ((pairs_N2.mean(1) - mean) ** 2).sum() / (n - 1)
    between_raters = n * ((pairs_N2.mean(0) - mean) ** 2).sum()
    rest = ((pairs_N2 - pairs_N2.mean(1, keepdims=True) - pairs_N2.mean(0) + mean) ** 2).sum()
    rest /= n - 1
    whole = between_N + rest + 2 / n * (between_raters - rest)
    return float((between_N - rest) / whole) if whole > 0 else None
