"""Linear probes: features of a frozen encoder to six tasks, chosen on val, judged on test once.

Axes: **N** epochs, **F** features, **K** classes, **R** draws, **G** groups of the bootstrap.

Each probe is scikit-learn's StandardScaler and LogisticRegression (class-weighted) on the train
patients. The val patients choose the strength of regularisation, the pooling, the recalibration
and the threshold; the test patients are read once, for what has been chosen.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import joblib
import numpy as np
import sklearn
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from pedsleepmae import metrics, store
from pedsleepmae.errors import ProbeError
from pedsleepmae.probe import solvers
from pedsleepmae.probe.embeddings import FeatureTable, column_moments, scale_features
from pedsleepmae.tasks import N_CLASSES

MAX_STEPS = 1000
COPIES_IN_MEMORY = 3  # features as read, scaled, and the solver's work (or the next chunk)


def check_index(index: store.ExampleIndex) -> None:
    """ProbeError when a split is empty, or patients stand in two splits of a claimed clean one."""
    shared = store.count_patients_in_two_splits(index.patient_ids, index.split)
    if shared and index.patient_disjoint:
        raise ProbeError(
            f"{shared} patients stand in more than one of train, val and test; run script 1 again"
        )
    for split in ("train", "val", "test"):
        if not len(index.rows(split)):
            raise ProbeError(
                f"paths.batches_dir holds no {split} examples; run script 1 with more patients or "
                "larger split fractions (for one person: --split.by time)"
            )


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
        scaled_NF = scale_features(x_NF, self.mean_F, self.scale_F)
        return self.complete((scaled_NF @ self.weight_FK).astype(np.float64) + self.bias_K)

    def complete(self, output_NK: np.ndarray) -> np.ndarray:
        """Logits of all classes: for two, the first is 0 and the output is the second's."""
        if len(self.classes) > 2:
            return output_NK
        return np.concatenate([np.zeros_like(output_NK), output_NK], axis=1)


@dataclass(frozen=True)
class FitSettings:
    """How probes are fitted: strengths C to try, memory bound (GB), threads, device.

    ``array_api``: scikit-learn computes on torch tensors on ``device``; worth it on a GPU, and
    needs SCIPY_ARRAY_API=1 in the environment before SciPy is loaded.
    """

    strengths: Sequence[float]
    memory_gb: float = 4.0
    n_workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    array_api: bool = False

    def fits_in_memory(self, n_rows: int, n_features: int) -> bool:
        return n_rows * n_features * 4 * COPIES_IN_MEMORY <= self.memory_gb * 1e9

    def chunk_rows(self, n_features: int) -> int:
        """Rows of features that are held at a time when they do not all fit."""
        return max(1, int(self.memory_gb * 1e9 / (n_features * 4 * COPIES_IN_MEMORY)))


def fit_probes(
    table: FeatureTable, rows: np.ndarray, targets: Mapping[str, np.ndarray], how: FitSettings
) -> tuple[dict[str, dict[float, LinearProbe]], int]:
    """Probes by task and strength, and the number of rows with features that are not finite.

    ``rows`` are positions of the train epochs, ``targets`` for each task their classes (-1: left
    out), in that order. Tasks with one class only are left out. In memory with scikit-learn where
    the features fit ``how.memory_gb`` (on a GPU by its array API); else by passes over the disk.
    """
    targets = {t: y for t, y in targets.items() if len(np.unique(y[y >= 0])) > 1}
    if how.fits_in_memory(len(rows), table.n_features):
        return _fit_in_memory(table.read(rows), targets, how)
    return _fit_by_passes(table, rows, targets, how)


def _fit_in_memory(x_NF: np.ndarray, targets: Mapping[str, np.ndarray], how: FitSettings):
    n_bad = int((~np.isfinite(x_NF).all(1)).sum())
    x_NF[:, ~np.isfinite(x_NF).any(0)] = 0  # StandardScaler warns of features that nobody has
    x_NF[np.isinf(x_NF)] = np.nan  # … and passes over NaN alone
    with sklearn.config_context(array_api_dispatch=how.array_api):
        if how.array_api:
            x_NF = torch.from_numpy(x_NF).to(how.device)
        scaler = make_pipeline(StandardScaler(), FunctionTransformer(_fill_unknown))
        x_NF = scaler.fit_transform(x_NF)
    mean_F, scale_F = (_to_numpy(a) for a in (scaler[0].mean_, scaler[0].scale_))
    basis_FD = None
    if x_NF.shape[0] < x_NF.shape[1] and not how.array_api:
        x_NF, basis_FD = rotate(x_NF)

    def fit_task(target_N: np.ndarray) -> dict[float, LinearProbe]:
        used = np.flatnonzero(target_N >= 0)
        x, y = (x_NF, target_N) if len(used) == len(target_N) else (x_NF[used], target_N[used])
        y = torch.from_numpy(y).to(how.device) if how.array_api else y
        regression = LogisticRegression(
            class_weight="balanced", tol=solvers.TOLERANCE, max_iter=MAX_STEPS, warm_start=True
        )
        fitted = {}
        for strength in sorted(how.strengths):  # each start is the solution before
            regression.set_params(C=strength).fit(x, y)
            weight_KF, bias_K = _to_numpy(regression.coef_), _to_numpy(regression.intercept_)
            weight_FK = weight_KF.T.copy() if basis_FD is None else basis_FD @ weight_KF.T
            classes = _to_numpy(regression.classes_)
            fitted[strength] = LinearProbe(classes, mean_F, scale_F, weight_FK, bias_K.copy())
        return fitted

    jobs = (joblib.delayed(_in_context)(how.array_api, fit_task, y) for y in targets.values())
    # Side by side, a thread for each task: BLAS's own threads would wait for each other.
    with threadpool_limits(1):
        results = joblib.Parallel(how.n_workers, prefer="threads")(jobs)
    return dict(zip(targets, results, strict=True)), n_bad


def rotate(x_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the rows in the space they span, (N, D), and its orthonormal basis (F, D).

    With fewer rows than features a ridge-penalised solution lies in that space, and the penalty
    does not see rotations, so the problem is the same with N instead of F weights a class.
    """
    gram_NN = x_NF.astype(np.float64) @ x_NF.T.astype(np.float64)
    with threadpool_limits(1):  # LAPACK's small steps wait longer for threads than they compute
        squared_D, left_ND = np.linalg.eigh(gram_NN)
    kept = squared_D > squared_D[-1] * len(x_NF) * np.finfo(np.float64).eps
    spread_D, left_ND = np.sqrt(squared_D[kept]), left_ND[:, kept]
    basis_FD = x_NF.T.astype(np.float64) @ (left_ND / spread_D)
    return (left_ND * spread_D).astype(np.float32), basis_FD.astype(np.float32)


def _in_context(array_api: bool, function: Callable, *arguments):
    """scikit-learn's settings belong to a thread; each worker enters them anew."""
    with sklearn.config_context(array_api_dispatch=array_api), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the val patients judge what came out
        return function(*arguments)


def _fill_unknown(x_NF):
    """0, the mean, where a standardised feature is unknown; NumPy arrays and torch tensors."""
    if isinstance(x_NF, torch.Tensor):
        return torch.nan_to_num(x_NF, nan=0.0)
    return np.nan_to_num(x_NF, copy=False, nan=0.0)


def _to_numpy(values) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _fit_by_passes(
    table: FeatureTable, rows: np.ndarray, targets: Mapping[str, np.ndarray], how: FitSettings
):
    chunk_rows = how.chunk_rows(table.n_features)
    mean_F, scale_F, n_bad = column_moments(table, rows, chunk_rows)
    problems, places = [], []
    for task, target_N in targets.items():
        classes = np.unique(target_N[target_N >= 0])
        numbered_N = np.where(target_N >= 0, np.searchsorted(classes, target_N), -1)
        for strength in how.strengths:
            problems.append(solvers.Problem(numbered_N, len(classes), strength))
            places.append((task, strength, classes))
    title = f"probes on {table.name}"
    solutions = solvers.fit_by_passes(
        lambda: table.chunks(rows, chunk_rows), problems, mean_F, scale_F, how.device, title
    )
    probes = {task: {} for task in targets}
    for (task, strength, classes), solution in zip(places, solutions, strict=True):
        weight_FK = solution[:-1].astype(np.float32)
        probes[task][strength] = LinearProbe(classes, mean_F, scale_F, weight_FK, solution[-1])
    return probes, n_bad


def predict(
    table: FeatureTable, rows: np.ndarray, probes: Mapping, how: FitSettings
) -> dict[object, np.ndarray]:
    """Logits (n, classes) of every probe at these positions, by the probes' keys; one reading."""
    if not probes:
        return {}
    weight_FK = _all_weights(probes)
    output_NK = np.empty((len(rows), weight_FK.shape[1]))
    for piece, x_NF in table.chunks(rows, how.chunk_rows(table.n_features)):
        output_NK[piece] = _scaled(x_NF, probes) @ weight_FK
    return _logits_by_key(output_NK, probes)


def predict_features(x_NF: np.ndarray, probes: Mapping) -> dict[object, np.ndarray]:
    """Logits (N, classes) of every probe on features in memory, as :func:`predict` has them."""
    if not probes:
        return {}
    output_NK = (_scaled(x_NF, probes) @ _all_weights(probes)).astype(np.float64)
    return _logits_by_key(output_NK, probes)


def _all_weights(probes: Mapping) -> np.ndarray:
    return np.concatenate([probe.weight_FK for probe in probes.values()], axis=1)


def _scaled(x_NF: np.ndarray, probes: Mapping) -> np.ndarray:
    first = next(iter(probes.values()))  # probes on one table share its standardisation
    return scale_features(x_NF, first.mean_F, first.scale_F)


def _logits_by_key(output_NK: np.ndarray, probes: Mapping) -> dict[object, np.ndarray]:
    outputs, column = {}, 0
    for key, probe in probes.items():
        columns = slice(column, column := column + probe.weight_FK.shape[1])
        outputs[key] = probe.complete(output_NK[:, columns] + probe.bias_K)
    return outputs


# ------------------------------------------------------------------ choosing on val
@dataclass(frozen=True)
class Chosen:
    """A probe with all that the val patients decide, and the score that chose it."""

    task: str
    features: str
    strength: float | None
    probe: LinearProbe | None
    classes: np.ndarray
    slope: float
    shift_K: np.ndarray
    threshold: float | None
    val_score: float | None
    val_logit_NK: np.ndarray

    def probabilities(self, logit_NK: np.ndarray) -> np.ndarray:
        """Recalibrated probabilities of all classes of the task, (N, K)."""
        return self._spread(metrics.calibrated(logit_NK, self.slope, self.shift_K))

    def raw_probabilities(self, logit_NK: np.ndarray) -> np.ndarray:
        """Probabilities before recalibration, (N, K): class-weighted, so too high for events."""
        return self._spread(metrics.calibrated(logit_NK, 1.0, np.zeros_like(self.shift_K)))

    def decide(self, prob_NK: np.ndarray) -> np.ndarray:
        """Classes (N,): by the threshold for an event, the most probable stage for sleep."""
        if prob_NK.shape[1] == 2:
            threshold = 0.5 if self.threshold is None else self.threshold
            return (prob_NK[:, 1] >= threshold).astype(np.int64)
        return prob_NK.argmax(1)

    def _spread(self, prob_NK: np.ndarray) -> np.ndarray:
        full_NK = np.zeros((len(prob_NK), N_CLASSES[self.task]))
        full_NK[:, self.classes] = prob_NK
        return full_NK


def score(
    task: str, label_N: np.ndarray, logit_NK: np.ndarray, classes: np.ndarray
) -> float | None:
    """What choices go by: AUROC of an event, weighted AUROC of the stages; None when undefined."""
    if len(np.unique(label_N)) < 2:
        return None
    if N_CLASSES[task] == 2:
        return float(roc_auc_score(label_N, logit_NK[:, 1]))
    prob_NK = np.zeros((len(logit_NK), N_CLASSES[task]))
    prob_NK[:, classes] = metrics.calibrated(logit_NK, 1.0, np.zeros(len(classes)))
    return metrics.weighted_auroc(label_N, prob_NK)


def choose(
    task: str,
    features: str,
    label_N: np.ndarray,
    candidates: Mapping[float | None, tuple[LinearProbe | None, np.ndarray, np.ndarray]],
) -> Chosen:
    """The best candidate on val, recalibrated and with its threshold.

    ``candidates``: strength -> (probe, its classes, its logits at the val epochs). Without a
    defined score (val shows one class) the middle strength is taken, with threshold 0.5.
    """
    scores = {
        c: score(task, label_N, logit, classes) for c, (_, classes, logit) in candidates.items()
    }
    defined = [c for c, value in scores.items() if value is not None]
    strength = max(defined, key=scores.get) if defined else list(scores)[len(scores) // 2]
    probe, classes, logit_NK = candidates[strength]
    slope, shift_K, threshold = 1.0, np.zeros(len(classes)), None
    known = np.isin(label_N, classes)  # a stage that train lacks cannot be calibrated
    if len(np.unique(label_N[known])) > 1:
        target_N = np.searchsorted(classes, label_N[known])
        slope, shift_K = metrics.fit_calibration(target_N, logit_NK[known])
    if N_CLASSES[task] == 2:
        prob_N = metrics.calibrated(logit_NK, slope, shift_K)[:, 1]
        threshold = metrics.best_f1_threshold(label_N, prob_N)
    return Chosen(
        task,
        features,
        strength,
        probe,
        classes,
        slope,
        shift_K,
        threshold,
        scores[strength],
        logit_NK,
    )
