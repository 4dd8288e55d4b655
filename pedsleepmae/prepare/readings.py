"""What is a reading and what is none: scale of a voltage, an oximeter that is off, a lost channel.

A file can say one thing and mean another: numbers of microvolts under the unit V, 0 % where the
oximeter was off, one value for hours where a belt came loose. None of it may pass for a signal.
"""

import numpy as np

from pedsleepmae.channels import EPOCH_S, VOLTS, unit_in_volts

# Typical swing (sd within a second, median over the night), volts. EEG and EOG of sleep have 5 to
# 100 uV (AASM scores slow waves above 75 uV peak to peak), chin EMG 1 to 50; an amplifier's own
# noise is 0.2 to 1 uV. Beyond USED_VOLTS no electrode is behind the numbers, for a wrong unit is
# off by 1,000 at least; outside USUAL_VOLTS a channel is used and remarked on.
USED_VOLTS = (1e-7, 2e-3)
USUAL_VOLTS = (5e-7, 5e-4)
TYPICAL_VOLTS = (2e-6, 2e-4)  # what the likely unit would bring it to
ENVELOPE_HZ = 10.0  # a "voltage" of a lower rate is an envelope, whose swing says nothing
SLOWEST_HZ = 4.0  # EEG and EOG of a lower rate show not even the slow waves (up to 2 Hz)
# Rates below which a channel loses what it is scored by, and what that is; told, but used.
NEEDED_HZ = {
    "EEG": (32.0, "spindles"),
    "EOG": (12.0, "eye movements"),
    "EMG": (40.0, "muscle, but its envelope at most"),
    "breaths": (2.0, "breaths of up to 60 a minute"),
}
LOOKS = 400  # seconds of the night that are looked at
FEWEST_SAMPLES = 32  # in a look

# Beyond this no brain, eye or chin moves a signal for long: it is the electrodes' own voltage, up
# to 300 mV, which amplifiers that pass direct current record with it. It drifts over minutes.
OFFSET_V = 1e-3
BASELINE_S = 30.0
STEADY = 0.05  # of it, from one BASELINE_S to the next: what moves more is a signal
# A digital step above this and above the signal's own swing leaves two or three levels of it. NCH's
# steps are 0.27 uV; writers that fit the range of a file to its largest offset reach 100 uV.
FINE_STEP_V = 2e-6

# Oximeters show 50 to 100 %; 0 and 0.1 are "off", 102 and 127 are codes.
READING_PERCENT = (50.0, 101.0)
STEP_PERCENT = 10.0  # within a second; in the deepest apneas saturation falls by 3 % a second
STEP_BACK_S = 180.0  # after which a new level is believed
HELD_S = 10.0  # a gap up to this long is held: no shorter desaturation is scored (AASM)
WAVE_PERCENT = 5.0  # typical swing (sd) within a second, which only a pulse wave has
WAVE_HZ = 8.0  # below, a second shows no wave
CO2_MMHG = (-15.0, 150.0)
CO2_UNITS = {"mmhg": 1.0, "torr": 1.0, "kpa": 7.50062, "%": 7.6, "vol%": 7.6}  # mmHg, at 760
LOST_S = 60.0  # no breath, heart or brain leaves an amplifier at one value for so long
MOST_MISSING = 0.5  # an epoch that misses more of a channel does not have it

# Breaths are 6 to 60 a minute, from the slow sleeper to the infant. They are sought in the slope of
# the signal, up to the rate at which no harmonic of them is left: there they hold 0.5 to 0.99 of
# the power (real and simulated belts, cannulas, thermistors, 30 s at a time), the white noise of an
# open input 0.02, pink noise 0.1, the random walk of a drifting one 0.26, seldom above 0.36.
BREATH_HZ = (0.1, 1.0)
NOISE_HZ = 4.0
BREATH_SHARE = 0.4
FEWEST_VALUES = 6  # in 30 s; the last digits of a silent device, two to either side, make five
# Share of the time in which a sensor must show breaths to be preferred: most of it; where none
# does, a tenth, below which movements alone can look like breaths.
BREATHING = (0.5, 0.1)


# ------------------------------------------------------------------ voltages
def typical_swing(x: np.ndarray, rate_hz: float) -> float:
    """Median of the sd within a second, in the unit of ``x`` (n_native,): drift does not count."""
    n = max(int(rate_hz), FEWEST_SAMPLES)
    looks = x[: len(x) // n * n].reshape(-1, n) if len(x) >= n else x[None]
    swing = looks[:: max(len(looks) // LOOKS, 1)].std(axis=1, dtype=np.float64)
    return float(np.median(swing[swing > 0])) if (swing > 0).any() else 0.0


def judge_voltage(kind: str, swing_v: float, unit: str, step_v: float = 0.0) -> tuple[str, str]:
    """(why it is no electrode's signal, what is remarkable), each "" where there is nothing.

    ``kind`` is EEG, EOG or EMG; ``swing_v`` a typical swing in volts (0 for a flat signal, which
    others judge); ``unit`` the one that the file states, for the likely one beside it; ``step_v``
    the size of one digital step.
    """
    if step_v > FINE_STEP_V and 0 < swing_v < step_v:
        step, swing = _in_volts(step_v), _in_volts(swing_v)
        return f"one digital step is {step}, its typical swing {swing}: nothing is left of it", ""
    if swing_v == 0 or USUAL_VOLTS[0] <= swing_v <= USUAL_VOLTS[1]:
        return "", ""
    text = f"a typical swing of {_in_volts(swing_v)} under the unit {unit or 'blank'}"
    stated = unit_in_volts(unit) or VOLTS["uV"]
    low, high = TYPICAL_VOLTS
    likely = [name for name, v in VOLTS.items() if low <= swing_v / stated * v <= high]
    if likely:
        text += f", as {kind} has under {likely[0]}; the setting units puts it right"
    return ("", text) if USED_VOLTS[0] <= swing_v <= USED_VOLTS[1] else (text, "")


def electrode_baseline(x: np.ndarray, rate_hz: float) -> np.ndarray | None:
    """The electrodes' own voltage below a signal in volts, (n,); None where it is small or moves.

    Medians of BASELINE_S, joined by straight lines: what is slower than a minute, no brain wave.
    """
    n = min(round(BASELINE_S * rate_hz), len(x))
    medians = np.median(x[: len(x) // n * n].reshape(-1, n)[:, ::8], axis=1)
    offset_v = np.median(np.abs(medians))
    steps_v = np.abs(np.diff(medians, prepend=medians[:1]))  # a short recording has one median
    if not offset_v > OFFSET_V or np.median(steps_v) > STEADY * offset_v:
        return None
    middles = n * np.arange(len(medians)) + n / 2
    return np.interp(np.arange(len(x)), middles, medians).astype(np.float32)


def offset_in_words(baseline: np.ndarray) -> str:
    offset_v = float(np.median(np.abs(baseline)))
    return f"an electrode's own voltage of {_in_volts(offset_v)} is taken off"


def _in_volts(value: float) -> str:
    units = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "nV": 1e-9, "pV": 1e-12}
    name = next((name for name, factor in units.items() if value >= factor), "pV")
    return f"{value / units[name]:.3g} {name}"


# ------------------------------------------------------------------ oximeter
def is_reading(percent: np.ndarray, rate_hz: float) -> np.ndarray:
    """True where an oximeter's numbers, (n_native,) in %, are a reading.

    Not outside what it can show, and not between a fall that no blood makes and the return from it.
    """
    ok = (percent >= READING_PERCENT[0]) & (percent <= READING_PERCENT[1])
    n = max(round(rate_hz), 1)
    if rate_hz < 0.9:  # values that are minutes apart may differ by anything
        return ok
    second_s = np.where(ok, percent, np.nan)[::n]
    for fall in np.flatnonzero(second_s[:-1] - second_s[1:] > STEP_PERCENT):
        if np.isnan(second_s[fall]):
            continue  # within a fall before
        after_s = second_s[fall + 1 : fall + 1 + int(STEP_BACK_S)]
        back = np.flatnonzero(after_s > second_s[fall] - STEP_PERCENT / 2)
        if len(back):
            second_s[fall + 1 : fall + 1 + back[0]] = np.nan
            ok[fall * n + 1 : (fall + 1 + back[0]) * n] = False  # also what lies between two looks
    return ok


def is_pulse_wave(percent: np.ndarray, rate_hz: float) -> bool:
    """Whether an "oximeter" moves within most seconds as no saturation does: a plethysmogram."""
    n = round(rate_hz)
    if rate_hz < WAVE_HZ or len(percent) < n:
        return False
    seconds = percent[: len(percent) // n * n].reshape(-1, n)
    return bool(np.median(seconds[:: max(len(seconds) // LOOKS, 1)].std(axis=1)) > WAVE_PERCENT)


def hold_short_gaps(x: np.ndarray, ok: np.ndarray, rate_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """``x`` (n,) with gaps up to HELD_S at the last reading before them; True in longer gaps."""
    held, missing = x.copy(), np.zeros(len(x), bool)
    for first, end in runs_of(~ok):
        if first > 0 and end - first <= HELD_S * rate_hz:
            held[first:end] = x[first - 1]
        else:
            missing[first:end] = True
    return held, missing


# ------------------------------------------------------------------ breathing
def breathing_share(digital: np.ndarray, rate_hz: float) -> float:
    """Share of 30-s pieces of ``digital`` (n_native,), of a flow or effort sensor, with breaths."""
    n = min(round(EPOCH_S * rate_hz), len(digital))
    return float(shows_breaths(digital[: len(digital) // n * n].reshape(-1, n), rate_hz).mean())


def shows_breaths(x_NT: np.ndarray, rate_hz: float) -> np.ndarray:
    """True for pieces of a flow or effort signal, (N, T) in any unit, that show breaths; (N,).

    More than a flicker of digits, and slow for most of it; an apnea leaves breaths beside it in
    half a minute. Rates below 2 Hz show no noise: there the digits alone decide.
    """
    few_NT = np.sort(x_NT[:, :: max(int(rate_hz / 32), 1)], axis=1)
    n_values_N = 1 + (np.diff(few_NT, axis=1) != 0).sum(axis=1)
    n_mean = max(int(rate_hz / 16), 1)  # means at some 16 Hz leave NOISE_HZ as it is
    n_pieces, n = x_NT.shape
    x_NT = x_NT[:, : n // n_mean * n_mean].reshape(n_pieces, -1, n_mean).mean(2, dtype=np.float64)
    x_NT = (x_NT - x_NT.mean(axis=1, keepdims=True)) * np.hanning(x_NT.shape[1])
    hz = np.fft.rfftfreq(x_NT.shape[1], n_mean / rate_hz)
    power_NF = (np.abs(np.fft.rfft(x_NT)) * hz) ** 2
    slow_N, all_N = (
        power_NF[:, (hz >= BREATH_HZ[0]) & (hz <= last)].sum(axis=1)
        for last in (BREATH_HZ[1], NOISE_HZ)
    )
    return (n_values_N >= FEWEST_VALUES) & (slow_N > BREATH_SHARE * all_N)


# ------------------------------------------------------------------ lost channels
def is_lost(flat: np.ndarray, n_piece: int, n: int, rate_hz: float) -> np.ndarray:
    """True for samples, (n,), in LOST_S or more of one value; ``flat``: by ``n_piece`` samples."""
    lost = np.zeros(n, bool)
    for first, end in runs_of(flat):
        if (end - first) * n_piece >= LOST_S * rate_hz:
            lost[first * n_piece : end * n_piece] = True
    return lost


def is_code(mmhg: np.ndarray) -> np.ndarray:
    """True where CO2, (n,), is none; nowhere when most of it is so: then the scale is another."""
    outside = (mmhg < CO2_MMHG[0]) | (mmhg > CO2_MMHG[1])
    return outside & (outside.mean() < 0.5)


def runs_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """(first, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
