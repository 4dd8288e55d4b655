"""What a signal looks like: some minutes of it, and whether they speak for a kind of channel.

Bands of the field: breath 0.1 to 0.7 Hz (6 to 42 a minute, from adults to infants), muscle and
snoring above 20 Hz (AASM filters EMG from 10 Hz on), an oximeter's number held between its updates.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.signal import welch

from pedsleepmae.channels import SignalInfo, unit_in_volts
from pedsleepmae.prepare import readings
from pedsleepmae.prepare.recordings import Recording
from pedsleepmae.prepare.signals import percent_factor

LOOK_S, N_LOOKS = 60.0, 5  # five minutes of a night, from its first to its last tenth
BREATH_HZ = (0.1, 0.7)
FAST_HZ = 20.0
MAINS_HZ = (50.0, 60.0)
SHOWS_BREATH_HZ = 4.0  # rates below hold little but the band of breath: any noise would fit
SHOWS_FAST_HZ = 2.5 * FAST_HZ
FEWEST_SAMPLES = 32  # in a look, for a spectrum
# Of two real nights: belts and flow have 82 to 99 % of their power in the band of breath, EEG and
# EOG 26 to 65 %; chin EMG and snoring 20 to 78 % above 20 Hz, EEG and EOG 4 to 17 %.
BREATH_SHARE, FAST_SHARE = 0.6, 0.15
HELD_SHARE = 0.3

Kind = Literal["EEG", "EOG", "EMG", "SPO2", "effort", "flow", "CO2", "SNORE"]
Verdict = Literal["agrees", "cannot tell", "speaks against"]


@dataclass(frozen=True)
class Look:
    """Some minutes of a signal; ``low`` and ``high``: their 1st and 99th percentile, its unit.

    ``held``: share of samples that repeat the one before. ``breath``: share of the power above 0.05
    Hz that lies at 0.1 to 0.7 Hz. ``fast``: share of that above 1 Hz, mains left out, that lies
    above 20 Hz. NaN where the rate is too low to show it. ``swing``: typical sd within a second.
    ``percent``: a third of it or more can be an oximeter's reading, in some unit.
    """

    signal: SignalInfo
    low: float
    high: float
    held: float
    breath: float
    fast: float
    swing: float
    percent: bool

    @property
    def flat(self) -> bool:
        return self.held == 1

    @property
    def in_steps(self) -> bool:
        return self.held >= HELD_SHARE

    def in_words(self) -> str:
        if self.flat:
            return "one value throughout"
        if self.percent and self.in_steps:
            return "within 50-100 % and in steps"
        if self.breath >= BREATH_SHARE:
            return f"{self.breath:.0%} of its power at 0.1-0.7 Hz"
        if self.fast >= FAST_SHARE:
            return f"{self.fast:.0%} of its power above 20 Hz"
        return "in steps" if self.in_steps else ""


def look_at(recording: Recording, i: int) -> Look | None:
    """A look at signal ``i`` of an EDF file; None where its header gives it no values."""
    signal = recording.signals[i]
    length_s = min(LOOK_S, recording.duration_s)
    if signal.problem or int(length_s * signal.rate_hz) < 2:
        return None
    starts_s = np.linspace(0.1, 0.9, N_LOOKS) * (recording.duration_s - length_s)
    pieces = [recording.read_digital(i, start_s, start_s + length_s) for start_s in starts_s]
    n = min(map(len, pieces))
    digital_LT = np.array([piece[:n] for piece in pieces])
    x_LT = recording.read(i, digital_LT.ravel()).reshape(digital_LT.shape).astype(np.float64)
    if not np.isfinite(x_LT).all():  # a physical range beyond float32
        return None
    low, high = np.percentile(x_LT, (1, 99))
    breath, fast = _shares(x_LT, signal.rate_hz)
    return Look(
        signal=signal,
        low=float(low),
        high=float(high),
        held=float((digital_LT[:, 1:] == digital_LT[:, :-1]).mean()),
        breath=breath,
        fast=fast,
        swing=readings.typical_swing(x_LT.ravel(), signal.rate_hz),
        percent=_reads_as_percent(x_LT, signal.unit),
    )


def _reads_as_percent(x_LT: np.ndarray, unit: str) -> bool:
    """Whether a third of the samples at least can be an oximeter's reading."""
    factor = percent_factor(x_LT, unit_in_volts(unit))
    if factor is None:
        return False
    low, high = readings.READING_PERCENT
    return bool(((x_LT * factor >= low) & (x_LT * factor <= high)).mean() > 0.3)


def _shares(x_LT: np.ndarray, rate_hz: float) -> tuple[float, float]:
    """(breath, fast) of a :class:`Look`; the median over looks keeps a movement in one out."""
    n = x_LT.shape[1]
    if n < FEWEST_SAMPLES:
        return np.nan, np.nan
    hz, power_LF = welch(x_LT, rate_hz, nperseg=n, detrend="linear")
    power_F = np.median(power_LF, axis=0)

    def share(band_F, whole_F) -> float:
        whole = power_F[whole_F].sum()
        return float(power_F[band_F & whole_F].sum() / whole) if whole else 0.0

    is_mains = np.any([np.abs(hz - mains_hz) <= 1 for mains_hz in MAINS_HZ], axis=0)
    breath = share((hz >= BREATH_HZ[0]) & (hz <= BREATH_HZ[1]), hz >= 0.05)
    fast = share(hz >= FAST_HZ, (hz >= 1) & ~is_mains)
    return (
        breath if rate_hz >= SHOWS_BREATH_HZ else np.nan,
        fast if rate_hz >= SHOWS_FAST_HZ else np.nan,
    )


# ------------------------------------------------------------------ does it look like that?
def judge(look: Look, kind: Kind) -> tuple[Verdict, str]:
    """Whether a look speaks for a kind of channel, and why in a few words."""
    if kind == "SPO2":
        return _judge_oximeter(look)
    if kind in ("effort", "flow", "CO2"):
        return _judge_breath(look)
    if kind == "SNORE":
        return _judge_snore(look)
    return _judge_voltage(look, kind)


def _judge_oximeter(look: Look) -> tuple[Verdict, str]:
    if not look.percent:
        return "speaks against", "does not read as %"
    if look.in_steps:
        return "agrees", "within 50-100 % and in steps"
    return "cannot tell", "within 50-100 %, but not in steps"


def _judge_breath(look: Look) -> tuple[Verdict, str]:
    rate_hz = look.signal.rate_hz
    if np.isnan(look.breath):
        return "cannot tell", f"{rate_hz:.3g} Hz is too slow to tell breaths from noise"
    words = f"{look.breath:.0%} of its power at 0.1-0.7 Hz"
    if look.breath >= BREATH_SHARE:
        return "agrees", words
    return ("cannot tell" if look.breath >= BREATH_SHARE / 2 else "speaks against"), f"only {words}"


def _judge_snore(look: Look) -> tuple[Verdict, str]:
    if np.isnan(look.fast):
        return "cannot tell", f"{look.signal.rate_hz:.3g} Hz shows the loudness, not the sound"
    words = f"{look.fast:.0%} of its power above 20 Hz"
    return ("agrees", words) if look.fast >= FAST_SHARE else ("cannot tell", f"only {words}")


def _judge_voltage(look: Look, kind: Kind) -> tuple[Verdict, str]:
    signal = look.signal
    if signal.rate_hz < readings.ENVELOPE_HZ:
        return "speaks against", f"at {signal.rate_hz:.3g} Hz an envelope, not the wave"
    if factor := unit_in_volts(signal.unit):
        refused, _ = readings.judge_voltage(kind, look.swing * factor, signal.unit)
        if refused:
            return "speaks against", refused
    if np.isnan(look.fast):
        return "cannot tell", f"{signal.rate_hz:.3g} Hz is slow for {kind}"
    words = f"{look.fast:.0%} of its power above 20 Hz"
    if kind == "EMG":
        verdict = "agrees" if look.fast >= FAST_SHARE else "cannot tell"
        return (
            ("speaks against", f"only {words}") if look.fast < FAST_SHARE / 3 else (verdict, words)
        )
    if look.fast >= 0.5:
        return "speaks against", f"{words}, as EMG has"
    if look.breath >= 0.85:
        return "speaks against", "swings as breath does"
    return "agrees", words
