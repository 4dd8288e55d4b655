"""What script 3 has fitted, as script 4 applies it: linear probes, their decisions, the density.

Axes: **N** epochs, **F** features, **K** classes or principal axes, **Q** quantiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from pedsleepmae import metrics
from pedsleepmae.probe.spans import SpanRule
from pedsleepmae.tasks import N_CLASSES

# A feature that varies less within a night, relative to its mean, varies by float16's rounding.
LEAST_SPREAD = float(np.finfo(np.float16).eps) / 2


# ------------------------------------------------------------------ within a night
def spread_in_night(sd: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Standard deviations to divide by, 1 where a feature is constant through the night."""
    return np.where(sd > LEAST_SPREAD * np.abs(mean), sd, 1)


def standardise_night(x_NF: np.ndarray) -> np.ndarray:
    """One night's features over their own mean and standard deviation; NaN stays.

    Of n epochs no value can lie farther than the root of n - 1 from 0.
    """
    known_NF = np.isfinite(x_NF)
    n_F = np.maximum(known_NF.sum(0), 1)
    mean_F = np.where(known_NF, x_NF, 0).sum(0, dtype=np.float64) / n_F
    squares_F = np.where(known_NF, x_NF - mean_F, 0) ** 2
    sd_F = np.sqrt(squares_F.sum(0) / n_F)
    return ((x_NF - mean_F) / spread_in_night(sd_F, mean_F)).astype(np.float32)


# ------------------------------------------------------------------ one linear probe
@dataclass(frozen=True)
class LinearProbe:
    """Standardisation and linear map; ``classes`` are those that the train patients show.

    ``weight_FK`` and ``bias_K`` have a column for each class but, for two classes, one only.
    """

    classes: np.ndarray
    mean_F: np.ndarray
    scale_F: np.ndarray
    weight_FK: np.ndarray
    bias_K: np.ndarray

    def logits(self, x_NF: np.ndarray) -> np.ndarray:
        """Logits (N, classes); features that are not finite count as the train mean."""
        return predict_features(x_NF, {"this": self})["this"]


def predict_features(x_NF: np.ndarray, probes: Mapping) -> dict[object, np.ndarray]:
    """Logits (N, classes) of every probe on features in memory, as `linear.predict` has them."""
    first = next(iter(probes.values()))  # probes on one table share its standardisation
    weights = [probe.weight_FK for probe in probes.values()]
    scaled_NF = scale_features(x_NF, first.mean_F, first.scale_F)
    output_NK = (scaled_NF @ np.concatenate(weights, axis=1)).astype(np.float64)
    ends = np.cumsum([weight_FK.shape[1] for weight_FK in weights])[:-1]
    logits = {}
    for key, columns_NK in zip(probes, np.split(output_NK, ends, axis=1), strict=True):
        columns_NK = columns_NK + probes[key].bias_K
        if len(probes[key].classes) == 2:  # the first's logit is 0
            columns_NK = np.concatenate([np.zeros_like(columns_NK), columns_NK], axis=1)
        logits[key] = columns_NK
    return logits


def scale_features(x_NF: np.ndarray, mean_F: np.ndarray, scale_F: np.ndarray) -> np.ndarray:
    """Standardised features, float32, 0 where they are not finite."""
    scaled_NF = (x_NF - mean_F.astype(np.float32)) / scale_F.astype(np.float32)
    return np.nan_to_num(scaled_NF, copy=False, nan=0, posinf=0, neginf=0)


# ------------------------------------------------------------------ what val decided
@dataclass(frozen=True)
class TaskProbe:
    """A task's probe with what val decided: strength C, recalibration, threshold of an event.

    ``linear`` is None for the baseline that has no features.
    """

    task: str
    strength: float | None
    linear: LinearProbe | None
    classes: np.ndarray
    slope: float
    shift_K: np.ndarray
    threshold: float | None

    def uncalibrated(self) -> "TaskProbe":
        """Its probabilities are those before recalibration: class-weighted, too high for events."""
        return replace(self, slope=1.0, shift_K=np.zeros(len(self.classes)))

    def probabilities(self, logit_NK: np.ndarray) -> np.ndarray:
        """Recalibrated probabilities of all classes of the task, (N, K)."""
        full_NK = np.zeros((len(logit_NK), N_CLASSES[self.task]))
        full_NK[:, self.classes] = metrics.calibrated(logit_NK, self.slope, self.shift_K)
        return full_NK

    def decide(self, prob_NK: np.ndarray) -> np.ndarray:
        """Classes (N,): by the threshold for an event, the most probable stage for sleep."""
        if prob_NK.shape[1] == 2:
            threshold = 0.5 if self.threshold is None else self.threshold
            return (prob_NK[:, 1] >= threshold).astype(np.int64)
        return prob_NK.argmax(1)


@dataclass(frozen=True)
class SavedReadOut:
    """What a task's probe reads: a pooling (`@k` at its end: of block k), and how it is
    standardised: none or night; None: as it comes, without marks of the channels present (probes of
    older files)."""

    pooling: str
    normalise: str | None


# ------------------------------------------------------------------ how far from training
@dataclass(frozen=True)
class TrainingDensity:
    """The Gaussian of the training embeddings, and ``quantile_Q`` of the val epochs' distances.

    ``mean_F`` and ``scale_F`` standardise; ``rest_variance`` () is that across the ``axes_KF``.
    """

    mean_F: np.ndarray
    scale_F: np.ndarray
    axes_KF: np.ndarray
    variance_K: np.ndarray
    rest_variance: np.ndarray
    quantile_Q: np.ndarray

    def distance(self, x_NF: np.ndarray) -> np.ndarray:
        """Mahalanobis distance over the root of F, (N,): about 1 for a training epoch.

        Infinite where a feature is not finite.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # such rows are told as infinite
            z_NF = ((x_NF - self.mean_F) / self.scale_F).astype(np.float64)
            along_NK = z_NF @ self.axes_KF.T
            rest_N = np.maximum((z_NF**2).sum(1) - (along_NK**2).sum(1), 0)
            squared_N = (along_NK**2 / self.variance_K).sum(1) + rest_N / self.rest_variance
            distance_N = np.sqrt(squared_N / len(self.mean_F))
        return np.where(np.isfinite(distance_N), distance_N, np.inf)

    def threshold(self, share: float) -> float:
        """Distance that the given share of the val epochs exceeded."""
        places = np.linspace(0, 1, len(self.quantile_Q))
        return float(np.interp(1 - share, places, self.quantile_Q))


# ------------------------------------------------------------------ single events
@dataclass(frozen=True)
class StepProbe:
    """A kind of event: logistic regression on steps, and how its probabilities become events."""

    weight_F: np.ndarray
    bias: float
    strength: float
    rule: SpanRule

    def probabilities(self, x_SF: np.ndarray) -> np.ndarray:
        """Of each step that it lies in such an event, (S,)."""
        return expit(x_SF @ self.weight_F + self.bias)
