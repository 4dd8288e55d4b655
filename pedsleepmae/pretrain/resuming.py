"""What checkpoint_last.pt holds to go on, looked at before it is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pedsleepmae import checkpoints
from pedsleepmae.channels import N_CHANNELS
from pedsleepmae.errors import LARGEST


def check_resumable(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
    """Raise ValueError or KeyError for what a checkpoint holds to resume and does not fit."""
    progress = state["progress"]
    for name in ("step", "position", "n_skipped", "n_skipped_in_row", "n_bad_values"):
        if not 0 <= progress.get(name, 0) < LARGEST:
            raise ValueError(f"progress.{name} is below 0 or too large")
    _check_tensor(state["channel_weights"], (N_CHANNELS,), "channel_weights")
    of_adam = state["optimizer"]["state"]
    if set(of_adam) - set(range(len(parameters))):
        raise ValueError("optimizer has a state of other weights")
    for number, moments in of_adam.items():
        shape = tuple(parameters[number].shape)
        for name, wanted in (("step", ()), ("exp_avg", shape), ("exp_avg_sq", shape)):
            _check_tensor(moments[name], wanted, f"optimizer {number}.{name}")


def _check_tensor(value: Any, shape: tuple[int, ...], name: str) -> None:
    if not checkpoints.is_plain_tensor(value) or tuple(value.shape) != shape:
        raise ValueError(f"{name} is no tensor of the shape {shape}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds numbers that are not finite")
