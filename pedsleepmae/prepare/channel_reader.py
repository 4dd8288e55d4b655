"""One channel's samples as a recording holds them, and why some are none: rates, units, gaps."""

from dataclasses import asdict, replace

import numpy as np

from pedsleepmae.channels import (
    CHANNEL_GROUPS,
    CHANNELS,
    EPOCH_S,
    Channel,
    SignalInfo,
    Source,
    unit_in_volts,
)
from pedsleepmae.prepare import readings
from pedsleepmae.prepare.recordings import Recording
from pedsleepmae.prepare.signals import (
    cut_epochs,
    flat_pieces,
    grid_start,
    measure_quality,
    percent_factor,
    resample,
)

FLAT_STRIDE = 4099
FILTER_TAIL_S = 10.0  # recorded after the last epoch, for the filter to run out

# What a channel can be, in its own unit; beyond it lies artefact (AASM: a 1-mV EEG is movement).
PLAUSIBLE = {"EEG": (-1e-3, 1e-3), "EOG": (-1e-3, 1e-3), "EMG": (-2e-3, 2e-3), "SPO2": (50, 100)}

# Whose preferred sensor must show breaths; a CO2 number and a microphone need not.
MOVED_BY_BREATHS = [CHANNELS[c] for group in ("effort", "flow") for c in CHANNEL_GROUPS[group]]


class UnusableRecording(ValueError):
    """A recording that can be read but gives no examples; the message is the reason."""


def read_channel(
    recording: Recording,
    channel: Channel,
    source: Source,
    span: slice = slice(None),
    breathing: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """A channel in its unit, (n,) float32; True where it is no reading, (n,); its quality.

    ``span``: of its native samples; ``breathing``: the share of them that must show breaths. Raises
    UnusableRecording when they do not, when an oximeter's numbers do not read as %, or when no
    electrode gives such a voltage.
    """
    digital = recording.read_digital(source.plus)
    x = recording.read_source(source, digital)[span]
    digital = digital[span]
    signal = recording.signals[source.plus]
    if not len(digital):
        raise UnusableRecording(f"{signal.label}: no samples in the scored part")
    if breathing and (share := readings.breathing_share(digital, source.rate_hz)) < breathing:
        raise UnusableRecording(f"{signal.label}: too little breathing ({share:.0%} of the time)")
    kind = "breaths" if channel in MOVED_BY_BREATHS else channel.name.split()[0]
    _judge_rate(recording, signal, source, kind)
    offset_off = False
    if channel.kind == "percent":
        _to_percent(x, signal, source)
    elif channel.kind == "voltage" and source.rate_hz >= readings.ENVELOPE_HZ:
        has_steps = np.issubdtype(digital.dtype, np.integer)  # an MNE Raw has none
        step_v = abs(signal.step * source.factor) if has_steps else 0.0
        offset_off = _judge_voltage(recording, x, signal, source, kind, step_v)
    n_piece = max(int(source.rate_hz * (300.0 if channel.kind == "percent" else 1.0)), 2)
    flat = flat_pieces(digital, n_piece)
    limits = (signal.digital_min, signal.digital_max)
    plausible = PLAUSIBLE.get(kind, (-np.inf, np.inf))
    monotone = source.minus is None and not offset_off
    quality = measure_quality(digital, x, source.rate_hz, flat, monotone, limits, plausible)
    missing = ~np.isfinite(x) if quality.missing else np.zeros(len(x), bool)
    if channel.kind == "percent":
        is_reading = readings.is_reading(x, source.rate_hz)
        x, missing = readings.hold_short_gaps(x, is_reading, source.rate_hz)
    elif channel.name != "SNORE":  # may be silent, to the last bit, for minutes
        missing |= readings.is_lost(flat, n_piece, len(x), source.rate_hz)
    mmhg_per_unit = readings.CO2_UNITS.get("".join(source.unit.lower().split()))
    if channel.name == "CAPNO" and mmhg_per_unit:
        missing |= readings.is_code(x * mmhg_per_unit)
    return x, missing, asdict(replace(quality, missing=float(missing.mean())))


def _judge_rate(recording: Recording, signal: SignalInfo, source: Source, kind: str) -> None:
    """UnusableRecording for a rate at which this kind shows nothing; a remark for a low one."""
    if kind in ("EEG", "EOG") and source.rate_hz < readings.SLOWEST_HZ:  # EMG may be an envelope
        raise UnusableRecording(f"{signal.label}: {source.rate_hz:.3g} Hz is too slow for {kind}")
    needed_hz, what = readings.NEEDED_HZ.get(kind, (0.0, ""))
    if source.rate_hz < needed_hz:
        recording.remarks.append(f"{signal.label}: {source.rate_hz:.3g} Hz does not show {what}")


def _to_percent(x: np.ndarray, signal: SignalInfo, source: Source) -> None:
    """Turns an oximeter's numbers (n,) into % saturation; UnusableRecording if they are none."""
    factor = percent_factor(x, unit_in_volts(source.unit))
    if factor is None:
        low, high = np.percentile(x, (5, 95))
        raise UnusableRecording(
            f"{signal.label}: does not read as % (5th to 95th percentile {low:.4g} to "
            f"{high:.4g} {source.unit or 'without unit'})"
        )
    x *= np.float32(factor)
    if readings.is_pulse_wave(x, source.rate_hz):
        raise UnusableRecording(f"{signal.label}: a pulse wave, no saturation")


def _judge_voltage(
    recording: Recording,
    x: np.ndarray,
    signal: SignalInfo,
    source: Source,
    kind: str,
    step_v: float,
) -> bool:
    """Whether an electrode's own voltage was taken off these volts (n,).

    ``step_v``: what one digital step is worth. UnusableRecording if no electrode gives such a
    voltage; what is odd about it goes to the remarks.
    """
    swing_v = readings.typical_swing(x, source.rate_hz)
    refused, remark = readings.judge_voltage(kind, swing_v, source.unit, step_v)
    if refused:
        raise UnusableRecording(f"{signal.label}: {refused}")
    baseline = readings.electrode_baseline(x, source.rate_hz)
    if baseline is not None:
        x -= baseline
        remark = remark or readings.offset_in_words(baseline)
    if remark:
        recording.remarks.append(f"{signal.label}: {remark}")
    return baseline is not None


def cut_channel(
    recording: Recording,
    channel: Channel,
    source: Source,
    breathing: float = 0.0,
    *,
    onsets_s: np.ndarray,
) -> tuple[np.ndarray, dict[str, float]]:
    """One channel's epochs at 128 Hz in its unit, (N, 3840) float32, and its quality.

    NaN where it is no reading. ``breathing``: as read_channel has it. Raises UnusableRecording when
    the channel holds no signal: the filter would turn one value into its own rounding, and scaling
    that into a signal, so it is the native samples that decide.
    """
    start = grid_start(float(onsets_s[0]), source.rate_hz)
    end = int((onsets_s[-1] + EPOCH_S + FILTER_TAIL_S) * source.rate_hz)
    x, missing, quality = read_channel(recording, channel, source, slice(start, end), breathing)
    first, last = (int(t * source.rate_hz) - start for t in (onsets_s[0], onsets_s[-1] + EPOCH_S))
    refuse_flat(recording, channel, source, x[first:last])
    is_code = channel.kind == "percent"
    night = resample(x, source.rate_hz, step_hold=is_code, finite=not quality["missing"])
    x_NT = cut_epochs(night, start / source.rate_hz, onsets_s)
    if quality["missing"]:
        gaps = resample(missing, source.rate_hz, step_hold=True)
        x_NT[cut_epochs(gaps, start / source.rate_hz, onsets_s) > 0] = np.nan
        quality["missing"] = float(np.isnan(x_NT).mean())
        if quality["missing"] == 1:
            raise UnusableRecording(f"{source.origin}: no reading in any epoch")
    refuse_flat(recording, channel, source, x_NT)
    return x_NT, quality


def refuse_flat(recording: Recording, channel: Channel, source: Source, x: np.ndarray) -> None:
    """UnusableRecording when all samples are one value; a steady oximeter is a reading."""
    few = x.ravel()[::FLAT_STRIDE]  # a look at these is enough for nearly all channels
    if channel.kind != "percent" and (few == few[:1]).all() and np.nanmin(x) == np.nanmax(x):
        label = recording.signals[source.plus].label
        raise UnusableRecording(f"{label}: flat, one value throughout")
