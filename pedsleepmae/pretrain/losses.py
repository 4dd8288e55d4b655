"""The parts of the loss: weighed, added up, and told by group of channels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pedsleepmae.channels import CHANNEL_GROUPS


def balanced(error_LBC: Tensor, weight_C: Tensor) -> Tensor:
    """The model's errors with the first part's, of samples, times each channel's weight."""
    return torch.cat([error_LBC[:1] * weight_C, error_LBC[1:]])


def total(error_LX: Any, parts: Mapping[str, float]) -> Any:
    """Errors of the parts (name -> weight) added up, each by its weight; the shape of one part."""
    weighted = [weight * error for weight, error in zip(parts.values(), error_LX, strict=True)]
    return sum(weighted[1:], weighted[0])


def losses_by_group(
    error_LC: Sequence[np.ndarray], count_C: np.ndarray, parts: Mapping[str, float]
) -> dict[str, Any]:
    """``loss`` and ``loss_by_group`` from sums of errors by part and channel, and counts, (16,).

    Where the loss has several ``parts`` (name -> weight), these are the weighted sums, and each
    part stands beside them as it is: ``loss_wave``, ``loss_wave_by_group`` and so on. A group whose
    channels were never present has the loss None.
    """
    figures = _means("loss", total(error_LC, parts), count_C)
    if len(parts) > 1:
        for part, error_C in zip(parts, error_LC, strict=True):
            figures |= _means(f"loss_{part}", error_C, count_C)
    return figures


def _means(name: str, error_C: np.ndarray, count_C: np.ndarray) -> dict[str, Any]:
    """The mean over all channels present, and over each group's."""
    groups = {}
    for group, channels in CHANNEL_GROUPS.items():
        count = count_C[list(channels)].sum()
        groups[group] = float(error_C[list(channels)].sum() / count) if count else None
    total = count_C.sum()
    return {name: float(error_C.sum() / total) if total else None, f"{name}_by_group": groups}
