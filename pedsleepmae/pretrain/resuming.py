"""What checkpoint_last.pt holds to go on, looked at before it is used."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pedsleepmae.channels import N_CHANNELS
from pedsleepmae.errors import LARGEST
from pedsleepmae.optim import check_adam_state, check_tensor


def check_resumable(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
    """Raise ValueError or KeyError for what a checkpoint holds to resume and does not fit."""
    progress = state["progress"]
    for name in ("step", "position", "n_skipped", "n_skipped_in_row", "n_bad_values"):
        if not 0 <= progress.get(name, 0) < LARGEST:
            raise ValueError(f"progress.{name} is below 0 or too large")
    check_tensor(state["channel_weights"], (N_CHANNELS,), "channel_weights")
    check_adam_state(state["optimizer"]["state"], parameters)
