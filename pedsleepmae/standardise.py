"""Physical values to standardised float16 and back, by a policy for each channel.

Axes: N epochs, C 16 channels, T 3,840 samples.
"""

from collections.abc import Mapping

import numpy as np
import torch

from pedsleepmae.channels import CHANNELS, N_CHANNELS, Channel

_QUARTILES_PER_SD = 1.3489795  # of a normal distribution: 2 x 0.6744898
LARGEST_STANDARDISED = 6e4  # float16 ends at 65,504
_CACHED_EPOCHS = 32  # 0.5 MB of float32: stays in the processor's cache from step to step


def population_standard(channel: Channel) -> tuple[float, float]:
    """(center, scale) of a channel: the original authors' NCH-wide mean and sd."""
    return channel.mean, channel.sd


def robust_standard(x_NT: np.ndarray) -> tuple[float, float]:
    """(center, scale) of a channel from the scored epochs of its own recording.

    For effort belts, snore, flow and CO2, whose gain is set by the technician or unknown: the
    median, and the quartile distance as a standard deviation. Where half the night is one value
    (a cannula that was off) the quartiles say nothing, and the 1st and 99th percentile count.
    """
    # Every 8th sample: quantiles of a night to three digits, at an eighth of the sorting.
    p1, p25, p50, p75, p99 = np.percentile(x_NT[:, ::8], (1, 25, 50, 75, 99))
    spread = (p75 - p25) / _QUARTILES_PER_SD
    if spread < 0.01 * (p99 - p1):
        spread = (p99 - p1) / 4
    return float(p50), float(spread or x_NT.std() or 1.0)


def choose_standard(
    channel: Channel,
    x_NT: np.ndarray,
    scaling: str,
    fitted: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[float, float]:
    """(center, scale) of a channel under the setting ``scaling`` (policy, original, fitted)."""
    if scaling == "fitted":
        return (fitted or {}).get(channel.name) or population_standard(channel)
    if scaling == "policy" and channel.scaling == "robust":
        return robust_standard(x_NT)
    return population_standard(channel)


def standardise(
    channel: Channel, x_NT: np.ndarray, center: float, scale: float, clip: float, out_NT: np.ndarray
) -> None:
    """Standardise a channel's epochs ``x_NT`` (float32) into ``out_NT`` (float16).

    ``clip`` (0: never) bounds the channels of arbitrary gain; beyond it lie artefacts only.
    Physical channels are not clipped, so that every sample can be undone.
    """
    bound = clip if clip and channel.scaling == "robust" else LARGEST_STANDARDISED
    for first in range(0, len(x_NT), _CACHED_EPOCHS):
        rows = slice(first, first + _CACHED_EPOCHS)
        z_NT = torch.from_numpy(x_NT[rows]).sub(np.float32(center)).mul_(np.float32(1 / scale))
        # torch rounds to float16 in the processor's own instruction, numpy value by value: a
        # sixth of the time, of what was the costliest step of preparation after resampling.
        torch.from_numpy(out_NT[rows]).copy_(z_NT.clamp_(-bound, bound))


def standardise_epochs(
    x_NCT: np.ndarray, present_NC: np.ndarray, *, scaling: str = "policy", clip: float = 20.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(signals_NCT float16, center_NC, scale_NC) of one recording's epochs in physical units.

    Absent channels are 0 with center 0 and scale 1.
    """
    n = len(x_NCT)
    signals_NCT = np.zeros(x_NCT.shape, np.float16)
    center_NC, scale_NC = np.zeros((n, N_CHANNELS)), np.ones((n, N_CHANNELS))
    for c, channel in enumerate(CHANNELS):
        rows = np.flatnonzero(present_NC[:, c])
        if len(rows):
            x_NT = x_NCT[rows, c].astype(np.float32)
            center, scale = choose_standard(channel, x_NT, scaling)
            z_NT = np.empty(x_NT.shape, np.float16)
            standardise(channel, x_NT, center, scale, clip, out_NT=z_NT)
            signals_NCT[rows, c] = z_NT
            center_NC[rows, c], scale_NC[rows, c] = center, scale
    return signals_NCT, center_NC, scale_NC


def undo_standard(
    signals_NCT: np.ndarray, center_NC: np.ndarray, scale_NC: np.ndarray
) -> np.ndarray:
    """Physical values (volts, %, or the file's unit) of standardised signals, float64."""
    return signals_NCT.astype(np.float64) * scale_NC[..., None] + center_NC[..., None]
