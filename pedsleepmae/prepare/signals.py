"""Arrays in, arrays out: resample a whole night, cut it at the epochs' onsets, judge it.

Axes: n samples of a night, N epochs, T 3,840 samples of an epoch at 128 Hz.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pedsleepmae.channels import CHANNELS, EPOCH_SAMPLES, N_CHANNELS, RATE_HZ, Channel

_QUARTILES_PER_SD = 1.3489795  # of a normal distribution: 2 x 0.6744898
LARGEST_STANDARDISED = 6e4  # float16 ends at 65,504
_CACHED_EPOCHS = 32  # 0.5 MB of float32: stays in the processor's cache from step to step

_LEAD_S = 10.0  # recorded before the first epoch, for the filter to run in
# Native samples among which the one is sought that brings the 128-Hz grid onto the epochs'.
_LARGEST_SHIFT = 4096


@dataclass(frozen=True)
class ChannelQuality:
    """What is wrong with one channel of a recording; shares of its samples, 0 to 1.

    ``flat``: in stretches without any change (a second; an oximeter's code may stand for minutes).
    ``clipped``: at the ends of the digital range. ``missing``: not finite. ``out_of_range``: beyond
    what the channel can be (SPO2 outside 50-100 %, |EEG/EOG| > 1 mV, |EMG| > 2 mV). ``mains``:
    share of the power above 20 Hz at 50 or 60 Hz +- 1 Hz, 0 where the rate is too low to show it.
    """

    flat: float
    clipped: float
    missing: float
    out_of_range: float
    mains: float


# ------------------------------------------------------------------ resampling
def grid_start(onset_s: float, rate_hz: float) -> int:
    """Native sample from which a 128-Hz grid passes through ``onset_s``, some 10 s before it.

    NCH's onsets are multiples of one native sample, not of 1/128 s: resampling from sample 0 and
    cutting at the nearest output sample would be off by up to 3.9 ms. Of the samples in reach the
    first with the least remainder is taken. What lies before it is never cut (NCH records an hour
    before the first scored epoch), so it need not be resampled.
    """
    # Rates without a common grid leave the least remainder at the onset itself: keep a second.
    last = int(max(onset_s - 1, 0) * rate_hz) or int(max(onset_s, 0) * rate_hz)
    first = max(0, int((onset_s - _LEAD_S) * rate_hz))
    shifts = np.arange(first, min(first + _LARGEST_SHIFT, last) + 1)
    position = (onset_s - shifts / rate_hz) * RATE_HZ
    off = np.round(np.abs(position - np.round(position)), 6)
    return int(shifts[np.argmin(off)])


def resample(x: np.ndarray, rate_hz: float, *, step_hold: bool, finite: bool = False) -> np.ndarray:
    """One channel of a night, (n_native,), at 128 Hz, float32; sample 0 stays sample 0.

    Band-limited by soxr's high-quality linear-phase filter: what lies above 64 Hz is more than
    100 dB down. ``step_hold`` is for SpO2 and other numbers that an oximeter holds between its
    updates: each output sample is the last native one, for a filter would ring at every step.
    ``finite``: the caller has seen that all samples are; others would reach far through the filter.
    """
    import soxr  # here, so that simulated arrays are standardised where it is not installed

    if step_hold:
        n_out = int(np.ceil(len(x) * RATE_HZ / rate_hz - 1e-6))
        held = np.floor(np.arange(n_out) * (rate_hz / RATE_HZ) + 1e-6).astype(np.int64)
        return x[np.minimum(held, len(x) - 1)].astype(np.float32)
    x = np.asarray(x, np.float32)
    if not finite and not np.isfinite(x.sum()):
        x = np.nan_to_num(x, posinf=0.0, neginf=0.0)
    if rate_hz == RATE_HZ:
        return x
    return soxr.resample(x, rate_hz, RATE_HZ, quality="HQ")


def cut_epochs(x: np.ndarray, start_s: float, onsets_s: np.ndarray) -> np.ndarray:
    """Epochs at ``onsets_s`` (N,) of one channel, (N, T); ``start_s`` is the time of x[0].

    A channel that ends a little before the recording does (its rate is low, or the resampler
    rounded) is continued with its last value; the caller has seen to it that the epochs lie
    inside the recording.
    """
    first = np.round((onsets_s - start_s) * RATE_HZ).astype(np.int64)
    missing = max(int(first.max(initial=0)) + EPOCH_SAMPLES - len(x), 0)
    if missing:
        x = np.concatenate([x, np.full(missing, x[-1])])
    return np.lib.stride_tricks.sliding_window_view(x, EPOCH_SAMPLES)[np.maximum(first, 0)]


# ------------------------------------------------------------------ scale
def percent_factor(x: np.ndarray, volts_per_unit: float | None) -> float | None:
    """Factor that turns an oximeter's numbers into %, or None when no reading makes sense.

    Montage B tags OSAT with a voltage unit: some such signals count % all the same, others are an
    analogue output of 1 V for 100 %. A probe that is off reads 0 or a code above 100, so the
    middle of the plausible values decides, not their ends.
    """
    factors = [1.0, 100.0] + ([100 * volts_per_unit] if volts_per_unit else [])
    for factor in factors:
        percent = x * factor
        on_finger = (percent > 40) & (percent < 101.5)
        # Most of the night has a reading; and a fraction (0.97) times 1 is none.
        if on_finger.mean() > 0.3:
            return factor
    return None


def flat_pieces(digital: np.ndarray, n_piece: int) -> np.ndarray:
    """True for each ``n_piece`` samples of ``digital`` (n,) that are all one value."""
    pieces = digital[: len(digital) // n_piece * n_piece].reshape(-1, n_piece)
    # Few have equal ends and middle: only those are looked at sample by sample.
    ends = pieces[:, [0, 1, n_piece // 2, -1]]
    flat = (ends == ends[:, :1]).all(axis=1)
    candidates = pieces[flat]
    flat[flat] = (candidates == candidates[:, :1]).all(axis=1)
    return flat


def measure_quality(
    digital: np.ndarray,
    x: np.ndarray,
    rate_hz: float,
    flat: np.ndarray,
    monotone: bool,
    digital_range: tuple[float, float],
    plausible: tuple[float, float],
) -> ChannelQuality:
    """Quality of one channel from its samples, digital and physical, both (n,).

    ``flat``: its flat_pieces. ``monotone``: x rises (or falls) with digital, so that their extremes
    stand at the same places.
    """
    lowest, highest = digital.argmin(), digital.argmax()  # of NaN, should there be any
    extremes = np.sort(x[[lowest, highest]]) if monotone else (x.min(), x.max())
    return ChannelQuality(
        flat=float(flat.mean()) if len(flat) else 0.0,
        clipped=_share_outside(
            digital,
            (digital[lowest], digital[highest]),
            (min(digital_range) + 1, max(digital_range) - 1),
        ),
        missing=0.0 if np.isfinite(extremes).all() else float(1 - np.isfinite(x).mean()),
        out_of_range=_share_outside(x, extremes, plausible),
        mains=_mains_share(x, rate_hz),
    )


def _share_outside(
    x: np.ndarray, extremes: tuple[float, float], bounds: tuple[float, float]
) -> float:
    """Share of samples outside ``bounds``, NaN counted inside; ``extremes``: of x."""
    low, high = bounds
    if low <= extremes[0] and extremes[1] <= high:  # the usual case needs no look at the samples
        return 0.0
    return float(((x < low) | (x > high)).mean())


def _mains_share(x: np.ndarray, rate_hz: float) -> float:
    """Share of the power above 20 Hz at 50 or 60 Hz, from 60 stretches of 4 s over the night."""
    n = int(4 * rate_hz)
    if rate_hz < 125 or len(x) < n:
        return 0.0
    starts = np.linspace(0, len(x) - n, 60).astype(np.int64)
    pieces = np.nan_to_num(x[starts[:, None] + np.arange(n)].astype(np.float64))
    window = np.hanning(n)
    power = (np.abs(np.fft.rfft((pieces - pieces.mean(1, keepdims=True)) * window)) ** 2).mean(0)
    hz = np.fft.rfftfreq(n, 1 / rate_hz)
    total = power[hz > 20].sum()
    return float(max(power[np.abs(hz - f) <= 1].sum() for f in (50, 60)) / total) if total else 0.0


def robust_standard(x_NT: np.ndarray) -> tuple[float, float]:
    """(center, scale) of a channel from the scored epochs of its own recording.

    For effort belts, snore, flow and CO2, whose gain is set by the technician or unknown: the
    median, and the quartile distance as a standard deviation. Where half the night is one value
    (a cannula that was off) the quartiles say nothing, and the 1st and 99th percentile count.
    """
    # Every 8th sample: quantiles of a night to three digits, at an eighth of the sorting.
    few = x_NT[:, ::8]
    few = few[np.isfinite(few)]
    p1, p25, p50, p75, p99 = np.percentile(few, (1, 25, 50, 75, 99))
    spread = (p75 - p25) / _QUARTILES_PER_SD
    if spread < 0.01 * (p99 - p1):
        spread = (p99 - p1) / 4
    return float(p50), float(spread or few.std() or 1.0)


def choose_standard(
    channel: Channel,
    x_NT: np.ndarray,
    scaling: str,
    fitted: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[float, float]:
    """(center, scale) of a channel under the setting ``scaling``, as script 1 has it.

    Where nothing else is asked for or known: the original authors' NCH-wide mean and sd.
    """
    if scaling in ("policy", "robust") and channel.scaling == "robust":
        return robust_standard(x_NT)
    if scaling == "robust" and channel.kind == "voltage":
        center, spread = robust_standard(x_NT)
        return center, spread / channel.usual_spread
    population = (channel.mean, channel.sd)
    return (fitted or {}).get(channel.name, population) if scaling == "fitted" else population


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
