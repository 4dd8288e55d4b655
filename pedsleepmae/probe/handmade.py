"""Hand-made features of an epoch: what sleep laboratories measured before networks did.

The baseline beside every probe. Axes: **N** epochs, **C** 16 channels, **T** 3,840 samples at
128 Hz, **W** windows. All measures work on standardised signals, so amplitudes are relative to
the channel's standardisation; logarithms make the linear probe's weights ratios. Features of a
channel that was not recorded are NaN.
"""

from collections.abc import Iterator

import numpy as np
from scipy.signal import welch

from pedsleepmae.channels import CHANNEL_GROUPS, CHANNEL_NAMES, RATE_HZ

FEATURES_VERSION = 1  # raise it when a definition changes: features on disk are then made anew

# Bands in Hz: AASM manual for stages and spindles; the others as in Prerau et al. 2017.
EEG_BANDS = {
    "slow": (0.5, 1.0),
    "delta": (1.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 11.0),
    "sigma": (11.0, 16.0),
    "beta": (16.0, 30.0),
}
EOG_BANDS = {"slow": (0.3, 1.0), "rapid": (1.0, 5.0)}
SLOW_WAVE_HZ = (0.5, 2.0)  # AASM: slow waves of N3
SPINDLE_HZ = (11.0, 16.0)
BREATH_HZ = (0.12, 1.0)  # 7 to 60 breaths a minute, from adolescents to infants
EMG_HZ = (10.0, 60.0)
WELCH_S = 4.0
SPINDLE_WINDOW_S = 0.5  # the shortest spindle
BREATH_WINDOW_S = 5.0  # about one breath or more in each; an apnea spans two missed breaths
TINY = 1e-8  # floor of a logarithm, standardised units

EEG, EFFORT = CHANNEL_GROUPS["EEG"], CHANNEL_GROUPS["effort"]
EOG_LEFT, EOG_RIGHT = CHANNEL_GROUPS["EOG"]
(EMG,), (FLOW,), (SNORE,) = (CHANNEL_GROUPS[name] for name in ("EMG", "flow", "snore"))
(CO2,), (SPO2,) = (CHANNEL_GROUPS[name] for name in ("CO2", "SpO2"))


def handmade_features(x_NCT: np.ndarray, present_NC: np.ndarray) -> np.ndarray:
    """Features of standardised epochs (N, 16, 3840), (N, F) float32, in the order of _measures."""
    x_NCT = np.nan_to_num(np.asarray(x_NCT, np.float32), posinf=0, neginf=0)
    columns = []
    for _, channels, values_N in _measures(x_NCT):
        known_N = present_NC[:, list(channels)].all(1)
        columns.append(np.where(known_N, values_N, np.nan).astype(np.float32))
    return np.stack(columns, axis=1)


def band_pass(x_XT: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """The part of a signal between two frequencies (last axis time), by zeroing its spectrum."""
    spectrum = np.fft.rfft(x_XT, axis=-1)
    hz = np.fft.rfftfreq(x_XT.shape[-1], 1 / RATE_HZ)
    spectrum[..., (hz < low_hz) | (hz > high_hz)] = 0
    return np.fft.irfft(spectrum, x_XT.shape[-1], axis=-1).astype(np.float32)


def window_rms(x_XT: np.ndarray, window_s: float) -> np.ndarray:
    """Root mean square of consecutive windows along the last axis, (…, W)."""
    return np.sqrt(np.mean(_windows(x_XT, window_s) ** 2, axis=-1))


def _windows(x_XT: np.ndarray, window_s: float) -> np.ndarray:
    n = round(window_s * RATE_HZ)
    n_windows = x_XT.shape[-1] // n
    return x_XT[..., : n_windows * n].reshape(*x_XT.shape[:-1], n_windows, n)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, TINY))


# Each measure: its name, the channels it needs, its value for each epoch.
def _measures(x_NCT: np.ndarray) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    yield from _eeg(x_NCT)
    yield from _eyes_and_chin(x_NCT)
    yield from _breathing(x_NCT)
    yield from _gases(x_NCT)


def _eeg(x_NCT: np.ndarray) -> Iterator:
    """Band powers; spindles as short bursts of sigma; slow waves as large slow swings."""
    x_NET = x_NCT[:, list(EEG)]
    n_window = round(WELCH_S * RATE_HZ)
    hz, power_NEF = welch(x_NET, RATE_HZ, nperseg=n_window, noverlap=n_window // 2)
    total_NE = power_NEF[..., (hz >= 0.5) & (hz <= 30)].sum(-1)
    powers = {}
    for band, (low, high) in EEG_BANDS.items():
        powers[band] = power_NEF[..., (hz >= low) & (hz < high)].sum(-1) * (hz[1] - hz[0])
    spindle_NEW = window_rms(band_pass(x_NET, *SPINDLE_HZ), SPINDLE_WINDOW_S)
    slow_NET = band_pass(x_NET, *SLOW_WAVE_HZ)
    swing_NEW = np.ptp(_windows(slow_NET, 2.0), axis=-1)  # 2 s hold a whole slow wave
    for e, channel in enumerate(EEG):
        label = CHANNEL_NAMES[channel]
        total_N = total_NE[:, e] * (hz[1] - hz[0])
        for band, power_NE in powers.items():
            yield f"{label}: log power {band}", (channel,), _log(power_NE[:, e])
            share_N = power_NE[:, e] / np.maximum(total_N, TINY)
            yield f"{label}: share of power {band}", (channel,), share_N
        spindle_NW, swing_NW = spindle_NEW[:, e], swing_NEW[:, e]
        median_N = np.median(spindle_NW, 1)
        yield f"{label}: largest spindle burst", (channel,), _log(spindle_NW.max(1))
        burst_N = _log(spindle_NW.max(1)) - _log(median_N)
        yield f"{label}: spindle burst over median", (channel,), burst_N
        bursts_N = (spindle_NW > 2 * median_N[:, None]).mean(1)
        yield f"{label}: share of time in spindle bursts", (channel,), bursts_N
        yield f"{label}: largest slow wave", (channel,), _log(swing_NW.max(1))
        yield f"{label}: median slow wave", (channel,), _log(np.median(swing_NW, 1))


def _eyes_and_chin(x_NCT: np.ndarray) -> Iterator:
    """Slow and rapid eye movements, whether the eyes move together, muscle tone and its bursts."""
    eyes = (EOG_LEFT, EOG_RIGHT)
    x_N2T = x_NCT[:, list(eyes)]
    for band, limits in EOG_BANDS.items():
        moved_N2T = band_pass(x_N2T, *limits)
        rms_N2W = window_rms(moved_N2T, 1.0)
        for e, channel in enumerate(eyes):
            label = f"{CHANNEL_NAMES[channel]}: {band} movement"
            yield f"{label}, log median", (channel,), _log(np.median(rms_N2W[:, e], 1))
            yield f"{label}, log largest", (channel,), _log(rms_N2W[:, e].max(1))
        left_NT, right_NT = moved_N2T[:, 0], moved_N2T[:, 1]
        norm_N = np.sqrt((left_NT**2).sum(1) * (right_NT**2).sum(1))
        together_N = (left_NT * right_NT).sum(1) / np.maximum(norm_N, TINY)
        yield f"EOG: correlation of both eyes, {band}", eyes, together_N
    tone_NW = window_rms(band_pass(x_NCT[:, EMG], *EMG_HZ), 1.0)
    for share in (0.05, 0.5, 0.95):
        quantile_N = np.quantile(tone_NW, share, axis=1)
        yield f"EMG: log tone, {share:.0%} quantile", (EMG,), _log(quantile_N)


def _breathing(x_NCT: np.ndarray) -> Iterator:
    """Size of breaths, their least against their usual size, phase of thorax against abdomen."""
    moving = (FLOW, *EFFORT)
    breath_NBT = band_pass(x_NCT[:, list(moving)], *BREATH_HZ)
    size_NBW = window_rms(breath_NBT, BREATH_WINDOW_S)
    for b, channel in enumerate(moving):
        label, size_NW = CHANNEL_NAMES[channel], size_NBW[:, b]
        least_N, usual_N = _log(size_NW.min(1)), _log(np.median(size_NW, 1))
        yield f"{label}: log usual breath", (channel,), usual_N
        yield f"{label}: log least over usual breath", (channel,), least_N - usual_N
        yield f"{label}: log largest over least", (channel,), _log(size_NW.max(1)) - least_N
    flow_NW, thorax_NW, abdomen_NW = (size_NBW[:, b] for b in range(3))
    effort_NW = _log(thorax_NW + abdomen_NW)
    without_N = (effort_NW - _log(flow_NW)).max(1)  # obstruction: effort without flow
    yield "largest log effort over flow", (*EFFORT, FLOW), without_N
    spectrum_N2F = np.fft.rfft(breath_NBT[:, 1:], axis=-1)
    cross_N = (spectrum_N2F[:, 0] * spectrum_N2F[:, 1].conj()).sum(1)
    norm_N = np.sqrt((np.abs(spectrum_N2F) ** 2).sum(2).prod(1))
    cross_N = cross_N / np.maximum(norm_N, TINY)
    yield "thorax against abdomen: in phase", EFFORT, cross_N.real  # -1: paradoxical breathing
    yield "thorax against abdomen: in quadrature", EFFORT, np.abs(cross_N.imag)
    snore_NW = window_rms(x_NCT[:, SNORE] - x_NCT[:, SNORE].mean(1, keepdims=True), 1.0)
    yield "snore: log median", (SNORE,), _log(np.median(snore_NW, 1))
    yield "snore: log largest", (SNORE,), _log(snore_NW.max(1))


def _gases(x_NCT: np.ndarray) -> Iterator:
    """Saturation: least, drop, trend; CO2: plateau (largest), mean and swing of the breaths."""
    spo2_NW = _windows(x_NCT[:, SPO2], 1.0).mean(-1)
    yield "SpO2: mean", (SPO2,), spo2_NW.mean(1)
    yield "SpO2: minimum", (SPO2,), spo2_NW.min(1)
    # Largest fall from an earlier to a later second, and largest rise.
    fall_N = (np.maximum.accumulate(spo2_NW, 1) - spo2_NW).max(1)
    rise_N = (spo2_NW - np.minimum.accumulate(spo2_NW, 1)).max(1)
    yield "SpO2: drop", (SPO2,), fall_N
    yield "SpO2: recovery", (SPO2,), rise_N
    yield "SpO2: end minus start", (SPO2,), spo2_NW[:, -5:].mean(1) - spo2_NW[:, :5].mean(1)
    co2_NW = np.quantile(_windows(x_NCT[:, CO2], BREATH_WINDOW_S), [0.05, 0.95], axis=-1)
    swing_NW = co2_NW[1] - co2_NW[0]
    yield "CO2: plateau", (CO2,), np.median(co2_NW[1], 1)
    yield "CO2: mean", (CO2,), x_NCT[:, CO2].mean(1)
    yield "CO2: log usual swing", (CO2,), _log(np.median(swing_NW, 1))
    least_N = _log(swing_NW.min(1)) - _log(np.median(swing_NW, 1))
    yield "CO2: log least over usual swing", (CO2,), least_N
