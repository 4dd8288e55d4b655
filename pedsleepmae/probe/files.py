"""`probes.npz`: fitted probes as they are stored, published and read back."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pedsleepmae import disk
from pedsleepmae.checkpoints import check_sum, forget_sum, list_sums
from pedsleepmae.errors import ProbeError
from pedsleepmae.probe.density import TrainingDensity
from pedsleepmae.probe.linear import LinearProbe, TaskProbe
from pedsleepmae.tasks import N_CLASSES

PROBE_FILE_VERSION = 2  # 2: with what they rest on; 1 cannot score a recording
LINEAR_ARRAYS = ("classes", "mean", "scale", "weight", "bias")  # LinearProbe's fields, in order


@dataclass(frozen=True)
class Basis:
    """What probes rest on: ``facts`` for those who read their scores, and the training density.

    ``facts`` (plain values, see report.probe_basis) name the encoder, how many patients chose
    and judged what, whether these were simulated, and the figures on val and test.
    """

    facts: dict
    density: TrainingDensity


def save_probes(path: Path, pooling: str, probes: Mapping[str, TaskProbe], basis: Basis) -> None:
    """Write probes as plain arrays (.npz, no pickle), so that a recording can be scored later."""
    arrays = {
        "version": np.array(PROBE_FILE_VERSION),
        "pooling": np.array(pooling),
        "facts": np.array(json.dumps(basis.facts, sort_keys=True, allow_nan=False)),
    }
    arrays |= {f"density/{name}": values for name, values in vars(basis.density).items()}
    for task, probe in probes.items():
        values = zip(LINEAR_ARRAYS, vars(probe.linear).values(), strict=True)
        arrays |= {f"{task}/{name}": value for name, value in values}
        arrays[f"{task}/slope"] = np.array(probe.slope)
        arrays[f"{task}/shift"] = probe.shift_K
        threshold = np.nan if probe.threshold is None else probe.threshold
        arrays[f"{task}/threshold"] = np.array(threshold)
        arrays[f"{task}/strength"] = np.array(probe.strength)
    with disk.write_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


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
    try:
        probes = {}
        for task in [name for name in N_CLASSES if f"{name}/weight" in arrays]:
            linear = LinearProbe(*(arrays[f"{task}/{name}"] for name in LINEAR_ARRAYS))
            numbers = (float(arrays[f"{task}/{n}"]) for n in ("strength", "slope", "threshold"))
            strength, slope, threshold = numbers
            threshold, shift_K = None if np.isnan(threshold) else threshold, arrays[f"{task}/shift"]
            probes[task] = TaskProbe(
                task, strength, linear, linear.classes, slope, shift_K, threshold
            )
        return str(arrays["pooling"]), probes
    except (KeyError, ValueError, TypeError) as error:
        raise ProbeError(f"{path}: no probes of script 3 ({error}); run script 3 again") from error


def load_basis(path: Path) -> Basis:
    """What the probes of a file rest on; ProbeError for a file that does not say it."""
    arrays = _read_arrays(path)
    try:
        names = [item.name for item in fields(TrainingDensity)]
        density = TrainingDensity(*(arrays[f"density/{name}"] for name in names))
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
