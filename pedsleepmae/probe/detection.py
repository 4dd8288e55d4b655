"""Single events by linear probes on seconds: fitted on train, rules chosen on val.

One scikit-learn logistic regression a kind of event, on the features of :mod:`steps`. Axes: **S**
steps of a night, **F** features, **R** rows kept for fitting.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pedsleepmae.probe.fitted import StepProbe
from pedsleepmae.probe.spans import NO_SPANS, STEP_S, SpanRule, find_spans, match_spans
from pedsleepmae.probe.truth import KINDS

# Shortest event, s, that val may choose. AASM: an arousal lasts 3 s, an apnea or hypopnea two
# missed breaths (or 10 s); a desaturation has no least duration, a fall of 3 % takes some seconds.
LEAST_S = {"arousal": (2.0, 3.0), "desaturation": (3.0, 6.0, 10.0)}
LEAST_BREATHS_S = (3.0, 5.0, 8.0)
HIGHS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LOW_SHARES = (1.0, 0.7, 0.5, 0.3)  # of the high threshold
GAPS_S = (0.0, 2.0, 5.0)
CHOSEN_AT = 0.2  # the intersection over union at which val's F1 chooses, as DOSED and MSED report
MAX_STEPS = 200


@dataclass(frozen=True)
class NightSteps:
    """One night to find events in: step onsets (S,), features (S, F), and its scored events.

    ``true``: by kind, (n, 2) spans in s; None where nobody scored events.
    """

    onset_S: np.ndarray
    x_SF: np.ndarray
    true: Mapping[str, np.ndarray] | None


def find_events(probes: Mapping[str, StepProbe], night: NightSteps) -> dict[str, np.ndarray]:
    """Events of each kind in a night, (n, 2) spans."""
    return {
        kind: find_spans(probe.probabilities(night.x_SF), night.onset_S, STEP_S, probe.rule)
        for kind, probe in probes.items()
    }


# ------------------------------------------------------------------ truth
def steps_in(spans: np.ndarray, onset_S: np.ndarray) -> np.ndarray:
    """True for the steps whose middle lies in one of the spans, (S,)."""
    middle_S, inside_S = onset_S + STEP_S / 2, np.zeros(len(onset_S), bool)
    for onset_s, end_s in spans:
        inside_S |= (middle_S >= onset_s) & (middle_S < max(end_s, onset_s + STEP_S))
    return inside_S


def touching(spans: np.ndarray, onset_S: np.ndarray) -> np.ndarray:
    """The spans that share time with a step, in their order."""
    if not len(spans) or not len(onset_S):
        return NO_SPANS
    next_S = np.searchsorted(onset_S, spans[:, 0] - STEP_S, side="right")
    held = next_S < len(onset_S)
    held[held] = onset_S[next_S[held]] <= np.maximum(spans[held, 1] - 1e-9, spans[held, 0])
    return spans[held]


# ------------------------------------------------------------------ fitting
def keep_rows(
    nights: Iterable[NightSteps], n_rows: int, n_steps: int, event_share: float, seed: int
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Steps of these nights to fit on: features (R, F), by kind 0 or 1 (R,), weights (R,).

    About half of ``n_rows`` lie in an event and half in none; a row counts for those that were left
    out, so that probabilities are those of all ``n_steps``. ``event_share``: of the steps, known
    before they are read. Memory is that of the rows that are kept.
    """
    n_events = max(1.0, n_steps * event_share)
    share = {True: min(1.0, n_rows / 2 / n_events)}
    share[False] = min(1.0, (n_rows - share[True] * n_events) / max(1.0, n_steps - n_events))
    rng = np.random.default_rng(seed)
    x_RF, labels, weight_R = [], {kind: [] for kind in KINDS}, []
    for night in nights:
        inside = {kind: steps_in(night.true[kind], night.onset_S) for kind in KINDS}
        any_S = np.logical_or.reduce(list(inside.values()))
        share_S = np.where(any_S, share[True], share[False])
        kept = np.flatnonzero(rng.random(len(any_S)) < share_S)
        x_RF.append(night.x_SF[kept])
        weight_R.append(1 / share_S[kept])
        for kind in KINDS:
            labels[kind].append(inside[kind][kept])
    targets = {kind: np.concatenate(parts).astype(np.int64) for kind, parts in labels.items()}
    return np.concatenate(x_RF), targets, np.concatenate(weight_R)


def fit_steps(
    x_RF: np.ndarray,
    targets: Mapping[str, np.ndarray],
    weight_R: np.ndarray,
    strengths: Sequence[float],
) -> dict[str, dict[float, tuple[np.ndarray, float]]]:
    """By kind and strength C weights (F,) and intercept; kinds that train lacks are left out."""
    fitted = {}
    for kind, target_R in targets.items():
        if len(np.unique(target_R)) < 2:
            continue
        regression = LogisticRegression(max_iter=MAX_STEPS, tol=1e-3, warm_start=True)
        fitted[kind] = {}
        for strength in sorted(strengths):  # each start is the solution before
            with warnings.catch_warnings():  # the val patients judge what came out
                warnings.simplefilter("ignore", ConvergenceWarning)
                regression.set_params(C=strength).fit(x_RF, target_R, sample_weight=weight_R)
            weight_F = regression.coef_[0].astype(np.float32)
            fitted[kind][strength] = weight_F, float(regression.intercept_[0])
    return fitted


# ------------------------------------------------------------------ choosing
def choose_rules(
    fitted: Mapping[str, Mapping[float, tuple[np.ndarray, float]]],
    val_nights: Iterable[NightSteps],
) -> dict[str, tuple[StepProbe, float]]:
    """By kind the strength and rule with the best F1 over the val nights' events, and that F1.

    Nights are read once; what is kept of them are probabilities.
    """
    kept, probs = [], {(kind, c): [] for kind, by_c in fitted.items() for c in by_c}
    for night in val_nights:
        kept.append((night.onset_S, night.true))
        for kind, c in probs:
            weight_F, bias = fitted[kind][c]
            probs[kind, c].append(expit(night.x_SF @ weight_F + bias))
    chosen = {}
    for (kind, c), prob_of_night in probs.items():
        for rule in rules_of(kind):
            counts = np.zeros(3)
            for (onset_S, true), prob_S in zip(kept, prob_of_night, strict=True):
                found = find_spans(prob_S, onset_S, STEP_S, rule)
                counts += count_matches(touching(true[kind], onset_S), found, CHOSEN_AT)
            f1 = f1_score(counts)
            if kind not in chosen or f1 > chosen[kind][1]:
                chosen[kind] = StepProbe(*fitted[kind][c], c, rule), f1
    return chosen


def rules_of(kind: str) -> Iterator[SpanRule]:
    """The rules that val chooses from."""
    least = LEAST_S.get(kind, LEAST_BREATHS_S)
    for high, share, gap_s, least_s in itertools.product(HIGHS, LOW_SHARES, GAPS_S, least):
        yield SpanRule(high, high * share, gap_s, least_s)


def count_matches(true: np.ndarray, found: np.ndarray, least_iou: float) -> np.ndarray:
    """(matched, scored, found) numbers of events, (3,)."""
    return np.array([len(match_spans(true, found, least_iou)), len(true), len(found)], float)


def f1_score(counts: np.ndarray) -> np.ndarray | float:
    """Harmonic mean of sensitivity and precision of (…, 3) counts; 0 without any event."""
    both = counts[..., 1] + counts[..., 2]
    return 2 * counts[..., 0] / np.maximum(both, 1)
