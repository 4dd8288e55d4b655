"""`probes.npz`: fitted probes as they are stored, published and read back."""

import contextlib
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pedsleepmae import disk
from pedsleepmae.channels import ALL_CHANNELS, MONTAGES
from pedsleepmae.checkpoints import check_archive, check_sum, forget_sum, list_sums
from pedsleepmae.errors import ProbeError, printable
from pedsleepmae.model import split_layer
from pedsleepmae.probe.fitted import (
    LinearProbe,
    SavedReadOut,
    StepProbe,
    TaskProbe,
    TrainingDensity,
)
from pedsleepmae.probe.spans import SpanRule
from pedsleepmae.probe.steps import pooling_of
from pedsleepmae.tasks import EVENT_TEXTS, N_CLASSES

# 3: each task reads a pooling of its own. 2: all the same; with what they rest on. 1 cannot score
# a recording.
PROBE_FILE_VERSION = 3
MONTAGE = "montage"  # what the arrays of probes for fewer channels begin with
STEPS = "events"  # … and those of probes of single events
LINEAR_ARRAYS = ("classes", "mean", "scale", "weight", "bias")  # LinearProbe's fields, in order

SMALL, LARGE = 1e-30, 1e30  # beyond these float32 has nothing left to compute with


@dataclass(frozen=True)
class Basis:
    """What probes rest on: ``facts`` for those who read their scores, and the training density.

    ``facts`` (plain values, see report.probe_basis) name the encoder, how many patients chose
    and judged what, whether these were simulated, and the figures on val and test. ``pooling``:
    whose features the density is of.
    """

    facts: dict
    density: TrainingDensity
    pooling: str


@dataclass(frozen=True)
class EventProbes:
    """Probes of single events by montage and kind; ``pooling``: that of steps.pooling_of."""

    pooling: str
    by_montage: Mapping[str, Mapping[str, StepProbe]]


def save_probes(
    path: Path,
    read_outs: Mapping[str, SavedReadOut],
    probes: Mapping[str, TaskProbe],
    basis: Basis,
    montages: Mapping[str, Mapping[str, TaskProbe]] | None = None,
    event_probes: EventProbes | None = None,
) -> None:
    """Write probes as plain arrays (.npz, no pickle), so that a recording can be scored later.

    ``read_outs``: what the probe of each task reads, those of ``montages`` (by name, for fewer
    channels) as well.
    """
    arrays = {
        "version": np.array(PROBE_FILE_VERSION),
        "pooling": np.array(basis.pooling),
        "facts": np.array(json.dumps(basis.facts, sort_keys=True, allow_nan=False)),
    }
    arrays |= {f"density/{name}": values for name, values in vars(basis.density).items()}
    for task, probe in probes.items():
        arrays |= _arrays_of(probe, task)
        arrays |= {f"{task}/{name}": np.array(text) for name, text in vars(read_outs[task]).items()}
    for montage, its_probes in (montages or {}).items():
        for task, probe in its_probes.items():
            arrays |= _arrays_of(probe, f"{MONTAGE}/{montage}/{task}")
    if event_probes is not None:
        arrays[f"{STEPS}/pooling"] = np.array(event_probes.pooling)
        for montage, by_kind in event_probes.by_montage.items():
            for kind, probe in by_kind.items():
                arrays |= _arrays_of_steps(probe, f"{_steps_of(montage)}/{kind}")
    with disk.write_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _steps_of(montage: str) -> str:
    """What the arrays of a montage's probes of single events begin with."""
    return STEPS if montage == ALL_CHANNELS else f"{STEPS}/{montage}"


def _arrays_of_steps(probe: StepProbe, prefix: str) -> dict[str, np.ndarray]:
    own = {"weight": probe.weight_F, "bias": probe.bias, "strength": probe.strength}
    own["rule"] = list(vars(probe.rule).values())
    return {f"{prefix}/{name}": np.array(value) for name, value in own.items()}


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


def load_probes(path: Path) -> tuple[dict[str, SavedReadOut], dict[str, TaskProbe]]:
    """What they read and the probes, by task, from :func:`save_probes`; ProbeError names a file
    that is none, CheckpointError one that was changed since it was published.

    With ``x = model.embed(...)``: ``probe.probabilities(probe.linear.logits(x))``, then ``decide``.
    """
    arrays = _read_arrays(path)
    with _reading(path):
        tasks = [name for name in N_CLASSES if f"{name}/weight" in arrays]
        read_outs = {task: _read_out_of(arrays, task) for task in tasks}
        return read_outs, {task: _read_probe(arrays, task) for task in tasks}


def _read_out_of(arrays: Mapping[str, np.ndarray], task: str) -> SavedReadOut:
    if f"{task}/pooling" not in arrays:  # version 2: one for all tasks
        normalise = _read_facts(arrays).get("normalise")
        if normalise not in ("none", "night", None):
            raise ValueError("normalise is neither none nor night")
        return SavedReadOut(_pooling(arrays, "pooling"), normalise)
    normalise = _text(arrays, f"{task}/normalise")
    if normalise not in ("none", "night"):
        raise ValueError(f"{task}/normalise is neither none nor night")
    return SavedReadOut(_pooling(arrays, f"{task}/pooling"), normalise)


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


def load_event_probes(path: Path) -> EventProbes | None:
    """Probes of single events; None where script 3 was not asked for them."""
    arrays, found = _read_arrays(path), {}
    with _reading(path):
        for montage in MONTAGES:
            prefix = _steps_of(montage)
            kinds = [kind for kind in EVENT_TEXTS if f"{prefix}/{kind}/weight" in arrays]
            if kinds:
                found[montage] = {k: _read_step_probe(arrays, f"{prefix}/{k}") for k in kinds}
        if not found:
            return None
        if f"{STEPS}/pooling" in arrays:
            return EventProbes(_pooling(arrays, f"{STEPS}/pooling"), found)
        _, layer = split_layer(_pooling(arrays, "pooling"))  # version 2: the block of the epochs
        return EventProbes(pooling_of(layer), found)


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
        facts = _read_facts(arrays)
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
        return Basis(facts, density, _pooling(arrays, "pooling"))


def _read_facts(arrays: Mapping[str, np.ndarray]) -> dict:
    facts = json.loads(_text(arrays, "facts"), parse_float=_finite, parse_constant=_finite)
    if not isinstance(facts, dict):
        raise ValueError("its facts are no mapping")
    return facts


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


def _pooling(arrays: Mapping[str, np.ndarray], name: str) -> str:
    text = _text(arrays, name)
    if not re.fullmatch(r"[a-z_]+(\+[a-z_]+)*(@[0-9]{1,4})?", text):
        raise ValueError(f"{name} names no pooling")
    return text


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
