"""`probes.npz`: fitted probes as they are stored, published and read back."""

import contextlib
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pedsleepmae import disk
from pedsleepmae.checkpoints import check_archive, check_sum, forget_sum, list_sums
from pedsleepmae.errors import ProbeError, printable
from pedsleepmae.probe.fitted import LinearProbe, StepProbe, TaskProbe, TrainingDensity
from pedsleepmae.probe.spans import SpanRule
from pedsleepmae.tasks import EVENT_TEXTS, N_CLASSES

PROBE_FILE_VERSION = 2  # 2: with what they rest on; 1 cannot score a recording
STEPS = "events"  # … and those of probes of single events
MONTAGE = "montage"  # what the arrays of probes for fewer channels begin with
LINEAR_ARRAYS = ("classes", "mean", "scale", "weight", "bias")  # LinearProbe's fields, in order

SMALL, LARGE = 1e-30, 1e30  # beyond these float32 has nothing left to compute with


@dataclass(frozen=True)
class Basis:
    """What probes rest on: ``facts`` for those who read their scores, and the training density.

    ``facts`` (plain values, see report.probe_basis) name the encoder, how many patients chose
    and judged what, whether these were simulated, and the figures on val and test.
    """

    facts: dict
    density: TrainingDensity


def save_probes(
    path: Path,
    pooling: str,
    probes: Mapping[str, TaskProbe],
    basis: Basis,
    montages: Mapping[str, Mapping[str, TaskProbe]] | None = None,
    step_probes: Mapping[str, StepProbe] | None = None,
) -> None:
    """Write probes as plain arrays (.npz, no pickle), so that a recording can be scored later.

    ``montages``: by name, the probes fitted for fewer channels. ``step_probes``: of single events.
    """
    arrays = {
        "version": np.array(PROBE_FILE_VERSION),
        "pooling": np.array(pooling),
        "facts": np.array(json.dumps(basis.facts, sort_keys=True, allow_nan=False)),
    }
    arrays |= {f"density/{name}": values for name, values in vars(basis.density).items()}
    for task, probe in probes.items():
        arrays |= _arrays_of(probe, task)
    for montage, its_probes in (montages or {}).items():
        for task, probe in its_probes.items():
            arrays |= _arrays_of(probe, f"{MONTAGE}/{montage}/{task}")
    for kind, probe in (step_probes or {}).items():
        own = {"weight": probe.weight_F, "bias": probe.bias, "strength": probe.strength}
        own["rule"] = list(vars(probe.rule).values())
        arrays |= {f"{STEPS}/{kind}/{name}": np.array(value) for name, value in own.items()}
    with disk.write_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _arrays_of(probe: TaskProbe, prefix: str) -> dict[str, np.ndarray]:
    values = zip(LINEAR_ARRAYS, vars(probe.linear).values(), strict=True)
    arrays = {f"{prefix}/{name}": value for name, value in values}
    threshold = np.nan if probe.threshold is None else probe.threshold
    arrays |= {f"{prefix}/slope": np.array(probe.slope), f"{prefix}/shift": probe.shift_K}
    arrays |= {f"{prefix}/threshold": np.array(threshold)}
    return arrays | {f"{prefix}/strength": np.array(probe.strength)}


def publish(source: Path, target: Path) -> Path:
    """Copy a file of probes to where it ships, with its line in the SHA256SUMS there."""
    forget_sum(target)  # the old line would call the new file damaged
    with disk.write_whole(target) as temporary:
        temporary.write_bytes(source.read_bytes())
    list_sums(target)
    return target


def load_probes(path: Path) -> tuple[str, dict[str, TaskProbe]]:
    """Pooling and probes by task from :func:`save_probes`; ProbeError names a file that is none,
    CheckpointError one that was changed since it was published.

    With ``x = model.embed(...)``: ``probe.probabilities(probe.linear.logits(x))``, then ``decide``.
    """
    arrays = _read_arrays(path)
    with _reading(path):
        tasks = [name for name in N_CLASSES if f"{name}/weight" in arrays]
        return _text(arrays, "pooling"), {task: _read_probe(arrays, task) for task in tasks}


def load_montages(path: Path) -> dict[str, dict[str, TaskProbe]]:
    """Probes fitted for fewer channels, by montage and task; {} where there are none."""
    arrays, found = _read_arrays(path), {}
    with _reading(path):
        for name in arrays:
            if name.startswith(f"{MONTAGE}/") and name.endswith("/weight"):
                _, montage, task, _ = name.split("/")
                if task not in N_CLASSES:
                    raise ValueError(f"{task} is no task")
                prefix = f"{MONTAGE}/{montage}/"
                own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
                found.setdefault(montage, {})[task] = _read_probe(own, task)
    return found


def load_step_probes(path: Path) -> dict[str, StepProbe]:
    """Probes of single events, by kind; {} where script 3 was not asked for them."""
    arrays = _read_arrays(path)
    with _reading(path):
        kinds = [kind for kind in EVENT_TEXTS if f"{STEPS}/{kind}/weight" in arrays]
        return {kind: _read_step_probe(arrays, f"{STEPS}/{kind}") for kind in kinds}


def _read_step_probe(arrays: Mapping[str, np.ndarray], prefix: str) -> StepProbe:
    high, low, gap_s, least_s = _numbers(arrays, f"{prefix}/rule", (4,)).tolist()
    if not (0 < low <= high <= 1 and gap_s >= 0 and least_s >= 0):
        raise ValueError(f"{prefix}/rule is none")
    return StepProbe(
        _numbers(arrays, f"{prefix}/weight", (None,)).astype(np.float32),
        float(_numbers(arrays, f"{prefix}/bias", ())),
        float(_numbers(arrays, f"{prefix}/strength", ())),
        SpanRule(high, low, gap_s, least_s),
    )


def _read_probe(arrays: Mapping[str, np.ndarray], task: str) -> TaskProbe:
    """A task's probe; ValueError says what of it is none."""
    classes = _numbers(arrays, f"{task}/classes", (None,))
    k = len(classes)
    if not 2 <= k <= N_CLASSES[task] or not np.isin(classes, range(N_CLASSES[task])).all():
        raise ValueError(f"{task}/classes are not those of the task")
    if (np.diff(classes) <= 0).any():
        raise ValueError(f"{task}/classes are not sorted")
    n_columns = 1 if k == 2 else k
    mean_F = _numbers(arrays, f"{task}/mean", (None,))
    n_features = len(mean_F)
    linear = LinearProbe(
        classes.astype(np.int64),
        mean_F,
        _above_0(arrays, f"{task}/scale", (n_features,)),
        _numbers(arrays, f"{task}/weight", (n_features, n_columns)),
        _numbers(arrays, f"{task}/bias", (n_columns,)),
    )
    threshold = float(_array(arrays, f"{task}/threshold", ()))
    return TaskProbe(
        task,
        float(_numbers(arrays, f"{task}/strength", ())),
        linear,
        linear.classes,
        float(_numbers(arrays, f"{task}/slope", ())),
        _numbers(arrays, f"{task}/shift", (k,)),
        None if np.isnan(threshold) else threshold,
    )


def load_basis(path: Path) -> Basis:
    """What the probes of a file rest on; ProbeError for a file that does not say it."""
    arrays = _read_arrays(path)
    with _reading(path, "does not say which encoder its probes belong to"):
        facts = json.loads(_text(arrays, "facts"), parse_float=_finite, parse_constant=_finite)
        if not isinstance(facts, dict):
            raise ValueError("its facts are no mapping")
        mean_F = _numbers(arrays, "density/mean_F", (None,))
        variance_K = _above_0(arrays, "density/variance_K", (None,))
        quantile_Q = _numbers(arrays, "density/quantile_Q", (None,))
        if len(quantile_Q) < 2 or quantile_Q[0] < 0 or (np.diff(quantile_Q) < 0).any():
            raise ValueError("density/quantile_Q are no quantiles")
        density = TrainingDensity(
            mean_F,
            _above_0(arrays, "density/scale_F", mean_F.shape),
            _numbers(arrays, "density/axes_KF", (len(variance_K), len(mean_F))),
            variance_K,
            _above_0(arrays, "density/rest_variance", ()),
            quantile_Q,
        )
        return Basis(facts, density)


# ------------------------------------------------------------------ reading
@contextlib.contextmanager
def _reading(path: Path, problem: str = "no probes of script 3") -> Iterator[None]:
    """Tell what is wrong with a file as a ProbeError that names it."""
    try:
        yield
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        reason = printable(error)[:200]
        raise ProbeError(f"{path}: {problem} ({reason}); run script 3 again") from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    check_sum(path)
    try:
        check_archive(path)
        _check_headers(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive fails in every way there is
        reason = printable(error)[:200]
        raise ProbeError(f"{path}: no probes of script 3 ({reason}); run script 3 again") from error
    with _reading(path):
        version = int(_numbers(arrays, "version", ()))
    if version > PROBE_FILE_VERSION:
        raise ProbeError(
            f"{path}: version {version}, this code reads up to {PROBE_FILE_VERSION}; update the "
            "code"
        )
    return arrays


def _check_headers(path: Path) -> None:
    """Raise ValueError for an array that states more numbers than its member holds."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if math.prod(shape) * max(1, dtype.itemsize) > member.file_size:
                raise ValueError(f"{member.filename} states more numbers than it holds")


def _text(arrays: Mapping[str, np.ndarray], name: str) -> str:
    array = arrays[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind != "U" or array.shape:
        raise ValueError(f"{name} is no text")
    return str(array)


def _array(arrays: Mapping[str, np.ndarray], name: str, shape: tuple) -> np.ndarray:
    """Real numbers of a shape, in which None stands for any length but 0."""
    array = arrays[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise ValueError(f"{name} holds no numbers")
    fits = len(array.shape) == len(shape) and all(
        n == wanted if wanted is not None else n > 0
        for n, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has the shape {array.shape}")
    return array


def _numbers(arrays: Mapping[str, np.ndarray], name: str, shape: tuple) -> np.ndarray:
    """As _array, all of them finite."""
    array = _array(arrays, name, shape)
    if not (np.abs(array) < LARGE).all():  # NaN neither
        raise ValueError(f"{name} holds numbers that are not finite, or too large")
    return array


def _above_0(arrays: Mapping[str, np.ndarray], name: str, shape: tuple) -> np.ndarray:
    """As _numbers, all of them above 0."""
    array = _numbers(arrays, name, shape)
    if not (array > SMALL).all():
        raise ValueError(f"{name} holds numbers that are not above 0")
    return array


def _finite(text: str) -> float:
    """A number of the facts, which JSON lets be NaN or 1e999."""
    if not math.isfinite(float(text)):
        raise ValueError(f"its facts hold the number {text}")
    return float(text)
