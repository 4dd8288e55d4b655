"""What a training run writes down as it goes: metrics.jsonl and TensorBoard, both offline."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from pedsleepmae.channels import CHANNEL_GROUPS
from pedsleepmae.store import write_whole


class Logbook:
    """Lines of ``<run_dir>/metrics.jsonl`` and the same numbers in ``<run_dir>/tensorboard``.

    A line is a JSON object with ``step`` (optimiser steps done), ``split`` (train, val or probe)
    and figures; those of a run on simulated data say ``"simulated": true``. A resumed run first
    drops the lines after ``step``, which an interrupted one wrote beyond its last checkpoint.
    """

    def __init__(self, run_dir: Path, *, step: int, simulated: bool):
        self.path = Path(run_dir) / "metrics.jsonl"
        self.simulated = simulated
        kept = [line for line in read_metrics(run_dir) if 0 < line["step"] <= step]
        with write_whole(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept), "utf-8")
        self._tensorboard = SummaryWriter(Path(run_dir) / "tensorboard", purge_step=step + 1)

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite become null, since JSON has no name for them."""
        line = {"step": step, "split": split, **_plain(figures)}
        if self.simulated:
            line["simulated"] = True
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in _flat(figures):
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._tensorboard.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, oldest first; none when there is no such file.

    A last line cut short by a crash is left out.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def losses_by_group(error_C: np.ndarray, count_C: np.ndarray) -> dict[str, Any]:
    """``loss`` and ``loss_by_group`` from sums of squared error and counts by channel, (16,).

    A group whose channels were never present has the loss None.
    """
    groups = {}
    for name, channels in CHANNEL_GROUPS.items():
        count = count_C[list(channels)].sum()
        groups[name] = float(error_C[list(channels)].sum() / count) if count else None
    total = count_C.sum()
    return {"loss": float(error_C.sum() / total) if total else None, "loss_by_group": groups}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _flat(figures: Mapping[str, Any], prefix: str = ""):
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, value
