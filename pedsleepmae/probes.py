"""Linear probes: features of a frozen encoder to six tasks, chosen on val, judged on test once.

Axes: **N** epochs, **F** features, **K** classes, **R** draws, **G** groups of the bootstrap.

Each probe is scikit-learn's StandardScaler and LogisticRegression (class-weighted) on the train
patients. The val patients choose the strength of regularisation, the pooling, the recalibration
and the threshold; the test patients are read once, for what has been chosen.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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

from pedsleepmae import metrics, solvers, store
from pedsleepmae.checkpoints import check_sum, forget_sum, hash_patient, list_sums
from pedsleepmae.embeddings import FeatureTable, column_moments
from pedsleepmae.model import POOLINGS
from pedsleepmae.out_of_distribution import TrainingDensity

STAGES = ("W", "N1", "N2", "N3", "R")
N_CLASSES = {
    "sleep": 5,
    "apnea": 2,
    "hypopnea": 2,
    "apnea_hypopnea": 2,
    "desaturation": 2,
    "arousal": 2,
}
MAX_STEPS = 1000
COPIES_IN_MEMORY = 3  # features as read, scaled, and the solver's work (or the next chunk)
PROBE_FILE_VERSION = 2  # 2: with what they rest on; 1 cannot score a recording


class ProbeError(ValueError):
    """The probes cannot be run on these data; the message says why and what to do."""


# ------------------------------------------------------------------ tasks and guards
def task_labels(index: store.ExampleIndex, task: str) -> np.ndarray:
    """Class of each epoch, (N,), -1 for epochs that the task leaves out.

    Types of event are collapsed to 0 and 1, as in the paper; unscored epochs have no stage.
    """
    labels = index.labels
    if task == "sleep":
        return np.where(labels["sleep"] < N_CLASSES["sleep"], labels["sleep"], -1)
    apnea, hypopnea = labels["apnea"] > 0, labels["hypop"] > 0
    events = {
        "apnea": apnea,
        "hypopnea": hypopnea,
        "apnea_hypopnea": apnea | hypopnea,
        "desaturation": labels["desat"] > 0,
        "arousal": labels["eeg"] > 0,
    }
    return events[task].astype(np.int64)


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


def count_seen_patients(index: store.ExampleIndex, seen: Sequence[str] | None) -> int | None:
    """Patients of val and test among the hashed patients of pretraining; None when unknown."""
    if seen is None:
        return None
    judged = np.unique(index.patient_ids[np.isin(index.split, (1, 2))])
    return len({hash_patient(patient) for patient in judged} & set(seen))


def check_seen_patients(
    index: store.ExampleIndex, seen: Sequence[str] | None, allowed: bool
) -> int | None:
    """Number of judged patients that pretraining saw (None: unknown); ProbeError unless allowed.

    A cohort that is split in time holds every patient on both sides anyway and says so.
    """
    n_seen = count_seen_patients(index, seen)
    if n_seen and index.patient_disjoint and not allowed:
        raise ProbeError(
            f"paths.checkpoint: its pretraining saw {n_seen} of the val and test patients of "
            "paths.batches_dir, so scores would be flattered; give a checkpoint pretrained on "
            "these train patients, or set allow_seen_patients to true and the report says so"
        )
    return n_seen


def check_poolings(pooling: str, candidates: Sequence[str]) -> list[str]:
    """The poolings to compute: the candidates for "best", else the one; ProbeError names a bad."""
    wanted = list(dict.fromkeys(candidates)) if pooling == "best" else [pooling]
    for name in wanted:
        for part in name.split("+"):
            if part not in POOLINGS:
                raise ProbeError(
                    f"pooling: there is no {part!r}; give best, one of {', '.join(POOLINGS)}, or "
                    "several of them joined by +"
                )
    return wanted


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


def scale_features(x_NF: np.ndarray, mean_F: np.ndarray, scale_F: np.ndarray) -> np.ndarray:
    """Standardised features, float32, 0 where they are not finite."""
    scaled_NF = (x_NF - mean_F.astype(np.float32)) / scale_F.astype(np.float32)
    return np.nan_to_num(scaled_NF, copy=False, nan=0, posinf=0, neginf=0)


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


# ------------------------------------------------------------------ probes on disk
@dataclass(frozen=True)
class Basis:
    """What probes rest on: ``facts`` for those who read their scores, and the training density.

    ``facts`` (plain values, see evaluation.probe_basis) name the encoder, how many patients chose
    and judged what, whether these were simulated, and the figures on val and test.
    """

    facts: dict
    density: TrainingDensity


def save_probes(path: Path, pooling: str, chosen: Mapping[str, Chosen], basis: Basis) -> None:
    """Write probes as plain arrays (.npz, no pickle), so that a recording can be scored later."""
    facts = json.dumps(basis.facts, sort_keys=True, allow_nan=False)
    arrays = {
        "version": np.array(PROBE_FILE_VERSION),
        "pooling": np.array(pooling),
        "facts": np.array(facts),
    }
    arrays |= {f"density/{name}": values for name, values in basis.density.as_arrays().items()}
    for task, one in chosen.items():
        threshold = np.nan if one.threshold is None else one.threshold
        arrays |= {
            f"{task}/classes": one.probe.classes,
            f"{task}/mean": one.probe.mean_F,
            f"{task}/scale": one.probe.scale_F,
            f"{task}/weight": one.probe.weight_FK,
            f"{task}/bias": one.probe.bias_K,
            f"{task}/slope": np.array(one.slope),
            f"{task}/shift": one.shift_K,
            f"{task}/threshold": np.array(threshold),
            f"{task}/strength": np.array(one.strength),
        }
    with store.write_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def publish(source: Path, target: Path) -> Path:
    """Copy a file of probes to where it ships, with its line in the SHA256SUMS there."""
    forget_sum(target)  # the old line would call the new file damaged
    with store.write_whole(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    list_sums(target)
    return target


def load_probes(path: Path) -> tuple[str, dict[str, Chosen]]:
    """Pooling and probes by task from :func:`save_probes`; ProbeError names a file that is none,
    CheckpointError one that was changed since it was published.

    With ``x = model.embed(...)``: ``probe.probabilities(probe.probe.logits(x))``, then ``decide``.
    """
    arrays = _read_arrays(path)
    try:
        pooling = str(arrays["pooling"])
        chosen = {}
        for task in [name for name in N_CLASSES if f"{name}/weight" in arrays]:
            names = ("classes", "mean", "scale", "weight", "bias")
            probe = LinearProbe(*(arrays[f"{task}/{name}"] for name in names))
            threshold = float(arrays[f"{task}/threshold"])
            chosen[task] = Chosen(
                task=task,
                features=pooling,
                strength=float(arrays[f"{task}/strength"]),
                probe=probe,
                classes=probe.classes,
                slope=float(arrays[f"{task}/slope"]),
                shift_K=arrays[f"{task}/shift"],
                threshold=None if np.isnan(threshold) else threshold,
                val_score=None,
                val_logit_NK=np.zeros((0, len(probe.classes))),
            )
    except (KeyError, ValueError, TypeError) as error:
        raise ProbeError(f"{path}: no probes of script 3 ({error}); run script 3 again") from error
    return pooling, chosen


def load_basis(path: Path) -> Basis:
    """What the probes of a file rest on; ProbeError for a file that does not say it."""
    arrays = _read_arrays(path)
    try:
        density = TrainingDensity.from_arrays(
            {name.removeprefix("density/"): values for name, values in arrays.items()}
        )
        return Basis(json.loads(str(arrays["facts"])), density)
    except (KeyError, ValueError) as error:
        raise ProbeError(
            f"{path}: does not say which encoder its probes belong to ({error}; file version "
            f"{arrays.get('version', 'unknown')}); run script 3 again"
        ) from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    check_sum(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        version = int(arrays["version"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ProbeError(f"{path}: no probes of script 3 ({error}); run script 3 again") from error
    if version > PROBE_FILE_VERSION:
        raise ProbeError(
            f"{path}: version {version}, this code reads up to {PROBE_FILE_VERSION}; update the "
            "code"
        )
    return arrays
