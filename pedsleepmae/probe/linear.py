"""Linear probes: features of a frozen encoder to six tasks, chosen on val, judged on test once.

Axes: **N** epochs, **F** features, **K** classes, **R** draws, **G** groups of the bootstrap.

Each probe is scikit-learn's StandardScaler and LogisticRegression (class-weighted) on the train
patients. The val patients choose the strength of regularisation, the pooling, the recalibration
and the threshold; the test patients are read once, for what has been chosen.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import joblib
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pedsleepmae import metrics
from pedsleepmae.probe import solvers
from pedsleepmae.probe.fitted import LinearProbe, TaskProbe, predict_features
from pedsleepmae.probe.tables import FeatureTable, column_moments
from pedsleepmae.tasks import N_CLASSES

CPU = torch.device("cpu")
MAX_STEPS = 1000
COPIES_IN_MEMORY = 3  # features as read, scaled, and the solver's work (or the next chunk)


# ------------------------------------------------------------------ fitting
@dataclass(frozen=True)
class FitSettings:
    """How probes are fitted: strengths C to try, memory bound (GB), threads, device."""

    strengths: Sequence[float]
    memory_gb: float = 4.0
    n_workers: int = 1
    device: torch.device = CPU

    def chunk_rows(self, n_features: int) -> int:
        """Rows of features that are held at a time when they do not all fit."""
        return max(1, int(self.memory_gb * 1e9 / (n_features * 4 * COPIES_IN_MEMORY)))


def fit_probes(
    table: FeatureTable, rows: np.ndarray, targets: Mapping[str, np.ndarray], fitting: FitSettings
) -> tuple[dict[str, dict[float, LinearProbe]], int]:
    """Probes by task and strength, and the number of rows with features that are not finite.

    ``rows`` are positions of the train epochs, ``targets`` for each task their classes (-1: left
    out), in that order. Tasks with one class only are left out. With scikit-learn on a CPU where
    the features fit ``fitting.memory_gb``; on a GPU, or where they do not fit, by passes.
    """
    targets = {t: y for t, y in targets.items() if len(np.unique(y[y >= 0])) > 1}
    if fitting.device.type == "cpu" and len(rows) <= fitting.chunk_rows(table.n_features):
        return _fit_in_memory(table.read(rows), targets, fitting)
    return _fit_by_passes(table, rows, targets, fitting)


def _fit_in_memory(x_NF: np.ndarray, targets: Mapping[str, np.ndarray], fitting: FitSettings):
    n_bad = int((~np.isfinite(x_NF).all(1)).sum())
    x_NF[:, ~np.isfinite(x_NF).any(0)] = 0  # StandardScaler warns of features that nobody has
    x_NF[np.isinf(x_NF)] = np.nan  # … and passes over NaN alone
    scaler = StandardScaler()
    x_NF = np.nan_to_num(scaler.fit_transform(x_NF), copy=False, nan=0)
    basis_FD = None
    if x_NF.shape[0] < x_NF.shape[1]:
        x_NF, basis_FD = rotate(x_NF)

    def fit_task(target_N: np.ndarray) -> dict[float, LinearProbe]:
        used = np.flatnonzero(target_N >= 0)
        x, y = (x_NF, target_N) if len(used) == len(target_N) else (x_NF[used], target_N[used])
        regression = LogisticRegression(
            class_weight="balanced", tol=solvers.TOLERANCE, max_iter=MAX_STEPS, warm_start=True
        )
        fitted = {}
        for strength in sorted(fitting.strengths):  # each start is the solution before
            regression.set_params(C=strength).fit(x, y)
            classes, bias_K = regression.classes_, regression.intercept_.copy()
            weight_FK = regression.coef_.T
            weight_FK = weight_FK.copy() if basis_FD is None else basis_FD @ weight_FK
            fitted[strength] = LinearProbe(classes, scaler.mean_, scaler.scale_, weight_FK, bias_K)
        return fitted

    # Side by side, a thread for each task: BLAS's own threads would wait for each other.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the val patients judge what came out
        jobs = (joblib.delayed(fit_task)(target_N) for target_N in targets.values())
        results = joblib.Parallel(fitting.n_workers, prefer="threads")(jobs)
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


def _fit_by_passes(
    table: FeatureTable, rows: np.ndarray, targets: Mapping[str, np.ndarray], fitting: FitSettings
):
    chunk_rows = fitting.chunk_rows(table.n_features)
    mean_F, scale_F, n_bad = column_moments(table, rows, chunk_rows)
    problems, places = [], []
    for task, target_N in targets.items():
        classes = np.unique(target_N[target_N >= 0])
        numbered_N = np.where(target_N >= 0, np.searchsorted(classes, target_N), -1)
        for strength in fitting.strengths:
            problems.append(solvers.Problem(numbered_N, len(classes), strength))
            places.append((task, strength, classes))

    kept = None  # read once, to where the passes are computed, if it fits there
    if len(rows) <= chunk_rows:
        kept = torch.from_numpy(table.read(rows)).to(fitting.device)

    def read_chunks() -> Iterable:
        return table.chunks(rows, chunk_rows) if kept is None else [(slice(None), kept)]

    title = f"probes on {table.name}"
    solutions = solvers.fit_by_passes(read_chunks, problems, mean_F, scale_F, fitting.device, title)
    probes = {task: {} for task in targets}
    for (task, strength, classes), solution in zip(places, solutions, strict=True):
        weight_FK = solution[:-1].astype(np.float32)
        probes[task][strength] = LinearProbe(classes, mean_F, scale_F, weight_FK, solution[-1])
    return probes, n_bad


def predict(
    table: FeatureTable, rows: np.ndarray, probes: Mapping, fitting: FitSettings
) -> dict[object, np.ndarray]:
    """Logits (n, classes) of every probe at these positions, by the probes' keys; one reading."""
    if not probes:
        return {}
    chunks = table.chunks(rows, fitting.chunk_rows(table.n_features))
    pieces = [predict_features(x_NF, probes) for _, x_NF in chunks]
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in probes}


# ------------------------------------------------------------------ choosing on val
@dataclass(frozen=True)
class Choice:
    """A probe and what speaks for it on val: its score, None where undefined, and its logits."""

    probe: TaskProbe
    score: float | None
    logit_NK: np.ndarray


def choose(
    task: str,
    label_N: np.ndarray,
    classes: np.ndarray,
    candidates: Mapping[float | None, tuple[LinearProbe | None, np.ndarray]],
) -> Choice:
    """The best candidate on val, recalibrated and with its threshold.

    ``candidates``: strength -> (probe, its logits at the val epochs). The best has the largest
    AUROC, for the stages weighted over them; where that is not defined (val shows one class) the
    middle strength is taken, with threshold 0.5.
    """
    plain = _plain(task, classes)
    scores = {
        strength: ranking(task, label_N, classes, logit_NK)
        for strength, (_, logit_NK) in candidates.items()
    }
    defined = [c for c, value in scores.items() if value is not None]
    strength = max(defined, key=scores.get) if defined else list(scores)[len(scores) // 2]
    linear, logit_NK = candidates[strength]
    probe = replace(plain, strength=strength, linear=linear)
    known = np.isin(label_N, classes)  # a stage that train lacks cannot be calibrated
    if len(np.unique(label_N[known])) > 1:
        target_N = np.searchsorted(classes, label_N[known])
        slope, shift_K = metrics.fit_calibration(target_N, logit_NK[known])
        probe = replace(probe, slope=slope, shift_K=shift_K)
    if N_CLASSES[task] == 2:
        prob_N = probe.probabilities(logit_NK)[:, 1]
        probe = replace(probe, threshold=metrics.best_f1_threshold(label_N, prob_N))
    return Choice(probe, scores[strength], logit_NK)


def ranking(
    task: str, label_N: np.ndarray, classes: np.ndarray, logit_NK: np.ndarray
) -> float | None:
    """AUROC of logits of these classes, for the stages weighted over them; None: not defined."""
    if len(np.unique(label_N)) < 2:
        return None
    if N_CLASSES[task] == 2:
        return float(roc_auc_score(label_N, logit_NK[:, 1]))
    return metrics.weighted_auroc(label_N, _plain(task, classes).probabilities(logit_NK))


def _plain(task: str, classes: np.ndarray) -> TaskProbe:
    """A probe of which val has not decided anything."""
    return TaskProbe(task, None, None, classes, 1.0, np.zeros(len(classes)), None)
