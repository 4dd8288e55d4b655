"""The head of a simulated night: EEG, eyes and chin as the electrodes record them, in microvolts.

Axes: n samples, E electrodes, K control knots. Electrodes come first and the bipolar channels are
their differences, so that C3-M2 and CZ-O1 agree with each other as in a real head. Amplitudes
without a source are ours, chosen to look right on a technician's screen; sources are spelt out in
`norms`.
"""

from functools import partial

import numpy as np
from numpy.random import Generator

from pedsleepmae.simulate import norms
from pedsleepmae.simulate.night import Night
from pedsleepmae.simulate.norms import N1, N3, REM, WAKE
from pedsleepmae.simulate.waves import State, band_noise, scatter, slow_noise

MAINS_HZ = 60.0  # where no chain says otherwise
ELECTRODES = ("F3", "F4", "C3", "C4", "CZ", "O1", "O2", "M1", "M2", "E1", "E2")
_SCALP = ("C3-M2", "O1-M2", "O2-M1", "CZ-O1", "C4-M1", "F4-M1", "F3-M2")
BIPOLAR = {f"EEG {pair}": tuple(pair.split("-")) for pair in _SCALP}
BIPOLAR |= {"EOG LOC-M2": ("E1", "M2"), "EOG ROC-M1": ("E2", "M1")}
# How strongly each electrode sees a source (F3 F4 C3 C4 CZ O1 O2 M1 M2 E1 E2). The lower face
# sees frontal activity in both eye channels alike; the mastoids see a little of everything.
_MAP = {
    "frontal": (1.0, 1.0, 0.6, 0.6, 0.65, 0.15, 0.15, 0.1, 0.1, 0.65, 0.65),
    "central": (0.5, 0.5, 1.0, 1.0, 1.1, 0.35, 0.35, 0.1, 0.1, 0.3, 0.3),
    "occipital": (0.1, 0.1, 0.3, 0.3, 0.3, 1.0, 1.0, 0.2, 0.2, 0.05, 0.05),
    "left": (0.7, 0.1, 0.8, 0.1, 0.35, 0.6, 0.1, 0.25, 0.0, 0.3, 0.0),
    "right": (0.1, 0.7, 0.1, 0.8, 0.35, 0.1, 0.6, 0.0, 0.25, 0.0, 0.3),
    # E1 lies below the left eye and E2 above the right one: what the eyeballs do shows with
    # opposite sign (AASM), what the frontal lobe does with the same.
    "eyeballs": (-0.06, 0.06, -0.02, 0.02, 0, 0, 0, 0, 0, -0.95, 0.9),
    "lids": (0.3, 0.3, 0.08, 0.08, 0.08, 0, 0, 0, 0, -0.7, 0.8),
}
# Background bands: limits Hz, steepness of 1/f, RMS at C3 in W N1 N2 N3 R (uV, 8-year-old),
# and their sources.
_BANDS = (
    ((0.4, 4.0), 1.0, (15, 16, 24, 36, 14), ("frontal", "central", "occipital", "left", "right")),
    ((4.0, 8.0), 0.5, (9, 12, 11, 13, 11), ("central", "occipital", "left", "right")),
    ((8.0, 12.5), 0.0, (6, 5, 5, 5, 4.5), ("central", "left", "right")),
    ((12.5, 35.0), 1.0, (4.5, 3.2, 3.0, 2.6, 3.1), ("frontal", "left", "right")),
)
_SLOW_WAVE_UV = np.array((0.0, 2.0, 14.0, 62.0, 0.0))
_SCALP_TONE = np.array((1.0, 0.42, 0.08, 0.05, 0.2))  # of scalp muscle, relative to wake
_TONE_UV = np.array((15.0, 8.5, 6.5, 5.5, 2.2))  # chin EMG; atonia in R (AASM)


def on_map(name: str, gain: float = 1.0) -> np.ndarray:
    """Weights of a source at the electrodes, (E,) float32."""
    return (gain * np.array(_MAP[name])).astype(np.float32)


# ------------------------------------------------------------------ EEG
def brain_electrodes(night: Night, state: State, rng: Generator) -> np.ndarray:
    """Brain potentials at the electrodes, (E, n) float32."""
    x = np.zeros((len(ELECTRODES), state.n), np.float32)
    stream = rng.spawn(7)[6]  # the parts have the six after it
    slow = slow_oscillation(state, stream)
    parts = [_add_background, partial(_add_slow_waves, slow), _add_posterior_rhythm]
    parts += [partial(_add_spindles, slow), _add_sleep_waves, _add_arousals]
    for add_part, stream in zip(parts, rng.spawn(len(parts)), strict=True):
        add_part(x, night, state, stream)
    return x


def slow_oscillation(state: State, rng: Generator) -> np.ndarray:
    """Slow oscillation that the whole scalp shares, (n,) of RMS 1; its up-states are positive."""
    return state.noise(rng, (0.5, 2.0), 0.5)


def _add_noise(x: np.ndarray, noise: np.ndarray, weights: np.ndarray) -> None:
    """x (E, n) += weights (E,) x noise (n,), electrode by electrode: the same sum everywhere."""
    for row, weight in zip(x, weights, strict=True):
        if weight:
            row += weight * noise


def _add_background(x, night, state, rng) -> None:
    """1/f background whose bands depend on the stage; each source waxes and wanes by itself."""
    gain = night.child.eeg_gain * norms.background_gain(night.child.age_years)
    for band_hz, steepness, rms_uv, sources in _BANDS:
        at_c3 = np.sqrt(sum(_MAP[name][2] ** 2 for name in sources))
        for name in sources:
            wander = np.exp(0.3 * slow_noise(rng, state.n_knots, 15.0))
            level = state.by_stage(rms_uv) * wander * (1 - 0.4 * state.arousal * state.depth)
            noise = state.noise(rng, band_hz, steepness)
            noise *= state.spread(level * gain / at_c3)
            _add_noise(x, noise, on_map(name))


def _add_slow_waves(shared, x, night, state, rng) -> None:
    """Slow waves, 0.5 to 2 Hz, that travel from front to back in 50 ms; N3 is full of them.

    Their size and map follow age (Feinberg, Kurth). N3 needs 75 uV in a fifth of the epoch
    (AASM); a child's are often twice that.
    """
    child = night.child
    front = norms.slow_wave_anterior(child.age_years)
    level = state.by_stage(_SLOW_WAVE_UV * (1, 1, 1, 0, 1)) + _SLOW_WAVE_UV[N3] * state.depth
    level *= child.eeg_gain * norms.slow_wave_gain(child.age_years)
    level *= np.exp(0.25 * slow_noise(rng, state.n_knots, 12.0)) * (1 - 0.8 * state.arousal)
    curve = state.spread(level)
    for name, weight, delay_s in (
        ("frontal", 0.45 + 0.35 * front, 0.0),
        ("central", 0.6, 0.02),
        ("occipital", 0.65 - 0.35 * front, 0.05),
    ):
        own = state.noise(rng, (0.5, 2.0), 0.5)
        wave = 0.85 * np.roll(shared, round(delay_s * state.rate_hz)) + 0.5 * own
        _add_noise(x, wave * curve, on_map(name, weight))


def _add_posterior_rhythm(x, night, state, rng) -> None:
    """Posterior dominant rhythm: in wake with closed eyes, at the frequency of the age (AASM)."""
    child = night.child
    hz = norms.posterior_rhythm_hz(child.age_years) + child.posterior_shift_hz
    level = 32 * child.posterior_gain * child.eeg_gain * norms.background_gain(child.age_years)
    closed = state.stage[WAKE] - 0.9 * state.eyes_open + 0.25 * state.stage[N1]
    curve = level * np.clip(closed, 0, 1) * np.exp(0.45 * slow_noise(rng, state.n_knots, 4.0))
    curve = state.spread(curve)
    for name, weight in (("occipital", 0.85), ("left", 0.4), ("right", 0.4)):
        noise = state.noise(rng, (hz - 0.6, hz + 0.6))
        _add_noise(x, noise * curve, on_map(name, weight))


def _add_spindles(slow, x, night, state, rng) -> None:
    """Spindles in N2, fewer in N3: fast ones central, slow ones frontal (AASM).

    Rate, length and frequency follow age (`norms`). Three of four lie in an up-state of the slow
    oscillation ``slow`` (n,), as spindles are nested in it; the share is ours.
    """
    child = night.child
    slow_hz, fast_hz = norms.spindle_hz(child.age_years)
    per_minute, usual_s = (
        norms.spindles_per_minute(child.age_years),
        norms.spindle_s(child.age_years),
    )
    rate = per_minute * state.by_stage((0, 0.05, 1.0, 0.45, 0)) * (state.arousal < 0.1)
    gap_s = 1.4 * usual_s + 1
    rate = rate / (1 - per_minute * gap_s / 60)  # those that the gap takes away
    for start_s in scatter(rng, rate, least_gap_s=gap_s):
        fast = rng.random() < 0.6
        hz = (fast_hz if fast else slow_hz) + child.spindle_shift_hz + 0.25 * rng.normal()
        length_s = np.clip(usual_s * np.exp(0.25 * rng.normal()), 0.5, 4.5)
        if rng.random() < 0.75:
            start_s = _into_up_state(slow, start_s, length_s, state.rate_hz)
        t = state.times(length_s)
        size_uv = 36 * child.spindle_gain * np.exp(0.2 * rng.normal())
        slows = 0.25 / max(length_s, 1)  # spindles slow down a little as they go
        chirp = hz * t - slows * t * (t - length_s)
        wave = size_uv * np.sin(np.pi * t / length_s) ** 0.3 * np.sin(2 * np.pi * chirp)
        weights = on_map("central" if fast else "frontal")
        state.add_wave(x, start_s, wave, weights)


def _into_up_state(slow: np.ndarray, start_s: float, length_s: float, rate_hz: int) -> float:
    """The start at which a wave's middle lies on the highest up-state within 0.7 s of it."""
    first = max(round((start_s + length_s / 2 - 0.7) * rate_hz), 0)
    near = slow[first : first + round(1.4 * rate_hz)]
    if len(near) == 0:
        return start_s
    return (first + int(near.argmax())) / rate_hz - length_s / 2


def _add_sleep_waves(x, night, state, rng) -> None:
    """K-complexes (N2), vertex waves and hypnagogic hypersynchrony (N1), sawtooth waves (R).

    Shapes as in the AASM manual; hypersynchrony, bursts of high 3-4.5 Hz waves, is a child's way
    of falling asleep (Grigg-Damberger).
    """
    child = night.child
    gain = child.eeg_gain * norms.slow_wave_gain(child.age_years)
    quiet = state.arousal < 0.1
    frontal, central = on_map("frontal"), on_map("central")
    for start_s in scatter(rng, state.by_stage((0, 0.1, 1.3, 0.3, 0)) * quiet, 4.0):
        t = state.times(rng.uniform(0.7, 1.1))
        u = t / t[-1]
        shape = -np.exp(-0.5 * ((u - 0.25) / 0.09) ** 2)
        shape += 0.75 * np.exp(-0.5 * ((u - 0.58) / 0.15) ** 2)
        state.add_wave(x, start_s, gain * rng.uniform(110, 190) * shape, frontal)
    for start_s in scatter(rng, state.by_stage((0, 3.5, 0.3, 0, 0)), 1.0):
        t = state.times(0.3)
        shape = -np.sin(2 * np.pi * t / 0.4) * np.hanning(len(t))
        state.add_wave(x, start_s, gain * rng.uniform(50, 110) * shape, central)
    for start_s in scatter(rng, 2.0 * child.hypersynchrony * state.by_stage((0.1, 1, 0, 0, 0)), 5):
        t = state.times(rng.uniform(1.5, 4))
        shape = np.sin(2 * np.pi * rng.uniform(3, 4.5) * t) * np.hanning(len(t))
        wave = child.eeg_gain * rng.uniform(60, 130) * shape
        state.add_wave(x, start_s, wave, 0.6 * frontal + 0.6 * central)
    for start_s in scatter(rng, state.by_stage((0, 0, 0, 0, 0.9)), 6.0):
        t = state.times(rng.uniform(1.5, 4))
        cycles = rng.uniform(2.2, 4.5) * t
        saw = 2 * np.abs(2 * (cycles - np.floor(cycles + 0.5))) - 1
        state.add_wave(x, start_s, rng.uniform(18, 40) * saw * np.hanning(len(t)), central)


def _add_arousals(x, night, state, rng) -> None:
    """Arousals: an abrupt shift to alpha and beta for 3 to 15 s (AASM); alpha as of the age."""
    child = night.child
    alpha_hz = max(norms.posterior_rhythm_hz(child.age_years) + child.posterior_shift_hz, 5.0)
    curve = state.spread(state.arousal * np.exp(0.3 * slow_noise(rng, state.n_knots, 3.0)))
    for (low, high), size_uv, name in (
        ((alpha_hz - 1, alpha_hz + 1.5), 15.0, "central"),
        ((alpha_hz - 1, alpha_hz + 1.5), 13.0, "occipital"),
        ((16.0, 30.0), 9.0, "frontal"),
    ):
        noise = state.noise(rng, (low, high))
        _add_noise(x, noise * curve, on_map(name, size_uv * child.eeg_gain))


# ------------------------------------------------------------------ eyes
def eye_movements(night: Night, state: State, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """(eye, blink): potential of the eyeballs at the right eye and of blinks, (n,) uV each.

    Wake: saccades and blinks while the eyes are open. N1: slow rolling of 0.2-0.4 Hz. R: bursts
    of saccades, denser towards morning (Karamessinis). Each saccade is a step that the
    amplifier's high-pass lets decay.
    """
    eyes = np.zeros((2, state.n), np.float32)
    eye, blink = np.array((1, 0), np.float32), np.array((0, 1), np.float32)
    t = state.times(3)
    step = ((1 - np.exp(-t / 0.025)) * np.exp(-t / 0.7)).astype(np.float32)
    late = np.linspace(0.6, 1.3, state.n_knots)
    bursts = scatter(rng, 5.0 * state.stage[REM] * late)
    saccades = [start + np.cumsum(rng.gamma(2, 0.16, rng.integers(2, 9))) for start in bursts]
    saccades += [scatter(rng, 26 * state.eyes_open + 0.8 * state.stage[REM])]
    for time_s in np.concatenate(saccades):
        size_uv = rng.choice((-1, 1)) * rng.uniform(25, 130)
        state.add_wave(eyes, time_s, step, size_uv * eye)
    t = state.times(0.35)
    shape = (np.sin(np.pi * t / 0.35) ** 2).astype(np.float32)
    for time_s in scatter(rng, 15 * state.eyes_open, 0.6):
        state.add_wave(eyes, time_s, rng.uniform(70, 170) * shape, blink)
    drowsy = 9 * state.stage[N1] + 1.5 * np.clip(state.stage[WAKE] - state.eyes_open, 0, 1)
    for time_s in scatter(rng, drowsy, 3.0):
        t = state.times(rng.uniform(2.5, 6))
        wave = np.sin(2 * np.pi * rng.uniform(0.2, 0.4) * t) * np.hanning(len(t))
        size_uv = rng.choice((-1, 1)) * rng.uniform(35, 110)
        state.add_wave(eyes, time_s, size_uv * wave, eye)
    return eyes[0], eyes[1]


# ------------------------------------------------------------------ muscle
def chin_emg(night: Night, state: State, rng: Generator) -> np.ndarray:
    """Chin EMG, 10 to 100 Hz, (n,) uV: tone by stage, atonia with twitches in R (AASM).

    In R an arousal needs a rise of the chin EMG (AASM). The electrode's own noise, which differs
    between recordings, hides the atonia of some.
    """
    tone = state.by_stage(_TONE_UV) * np.exp(0.4 * slow_noise(rng, state.n_knots, 40.0))
    tone *= 1 + 1.6 * state.arousal + 4.0 * state.movement
    tone += 12 * state.arousal * state.stage[REM]
    floor = 2.0 * np.exp(0.6 * rng.standard_normal())
    level = np.sqrt((night.child.muscle_gain * tone) ** 2 + floor**2)
    x = (state.noise(rng, (10.0, 100.0), 0.4) * state.spread(level))[None]
    for time_s in scatter(rng, 6.0 * state.stage[REM] + 0.3):
        m = round(rng.uniform(0.08, 0.4) * state.rate_hz)
        burst = rng.uniform(6, 28) * rng.standard_normal(m) * np.hanning(m)
        state.add_wave(x, time_s, burst, np.ones(1, np.float32))
    return x[0]


# ------------------------------------------------------------------ electrodes as recorded
def derivations(electrodes: dict[str, np.ndarray], reference: str) -> dict[str, np.ndarray]:
    """The bipolar channels, (n,) uV each, against the mastoids or what stands in for them.

    ``reference``: "contralateral" as the names say (AASM); "linked" mastoids; "ipsilateral", the
    mastoid of the same side; "average" of the seven electrodes on the scalp.
    """
    mastoids = {name: electrodes[name] for name in ("M1", "M2")}
    if reference == "ipsilateral":
        mastoids = {"M1": electrodes["M2"], "M2": electrodes["M1"]}
    elif reference == "linked":
        mastoids = dict.fromkeys(mastoids, (electrodes["M1"] + electrodes["M2"]) / 2)
    elif reference == "average":
        scalp = sum(electrodes[name] for name in ELECTRODES[:7]) / np.float32(7)
        mastoids = dict.fromkeys(mastoids, scalp)
    seen = electrodes | mastoids
    return {name: seen[plus] - seen[minus] for name, (plus, minus) in BIPOLAR.items()}


def recorded_electrodes(
    night: Night, state: State, heart_n: np.ndarray, rng: Generator, mains_hz: float = MAINS_HZ
) -> dict[str, np.ndarray]:
    """What each electrode picks up, (n,) uV: brain, eyes, heart, movement, mains, poor contact."""
    streams = rng.spawn(4)
    x = brain_electrodes(night, state, streams[0])
    eye, blink = eye_movements(night, state, streams[1])
    _add_noise(x, eye, on_map("eyeballs", night.child.eye_gain))
    _add_noise(x, blink, on_map("lids", night.child.eye_gain))

    # What all electrodes see, each with a weight of its own.
    rng = streams[2]
    seconds = np.arange(state.n) / state.rate_hz
    mains = np.sin(2 * np.pi * (mains_hz * seconds % 1)).astype(np.float32)
    sway = state.spread(state.movement) * state.noise(rng, (0.3, 3.0), 1.0)
    muscle = state.noise(rng, (15.0, 90.0), 0.3)
    muscle *= state.spread(0.6 + 1.5 * state.stage[WAKE] + 14 * state.movement)
    beat = rng.uniform(0, 7)
    tension = scalp_muscle(night, state, streams[3])
    for row, name in zip(x, ELECTRODES, strict=True):
        row += np.float32(rng.uniform(20, 90) * rng.choice((-1, 1))) * sway
        row += np.float32(rng.uniform(0.15, 0.6)) * muscle
        row += np.float32(rng.gamma(1.2, 0.5)) * mains
        hiss_uv = np.float32(1.2 * np.exp(0.3 * rng.standard_normal()))
        white = rng.standard_normal(state.n, np.float32)
        row += hiss_uv * white
        if night.child.scalp_muscle_uv:  # the same draw serves both: nobody hears them apart
            share = 1.6 if name in ("E1", "E2") else 1.0
            white *= tension
            row += np.float32(share * np.exp(0.35 * streams[3].standard_normal())) * white
        if name in ("M1", "M2"):
            row += np.float32(beat * rng.uniform(0.5, 1.5)) * heart_n
        row *= np.float32(np.exp(0.08 * rng.standard_normal()))
    _spoil_electrodes(x, night, state, mains, rng)
    return dict(zip(ELECTRODES, x, strict=True))


def scalp_muscle(night: Night, state: State, rng: Generator) -> np.ndarray:
    """Level of the tone of scalp and face, (n,) uV of broad noise, which falls with sleep.

    Largest in wake; chewing and frowning come and go.
    """
    tone = state.by_stage(_SCALP_TONE) * np.exp(0.55 * slow_noise(rng, state.n_knots, 45.0))
    tone *= 1 + 1.5 * state.arousal + 4 * state.movement
    density = np.sqrt(state.rate_hz / 128)  # the same at every rate
    return state.spread(night.child.scalp_muscle_uv * density * tone)


def _spoil_electrodes(x, night, state, mains, rng) -> None:
    """Electrode pops (two an hour in the whole head) and, in some nights, one bad contact."""
    t = state.times(4)
    decay = np.exp(-t / 0.6).astype(np.float32)
    for time_s in rng.uniform(0, night.duration_s, rng.poisson(night.duration_s / 1800)):
        weights = np.zeros(len(x), np.float32)
        weights[rng.integers(len(x))] = rng.choice((-1, 1)) * rng.uniform(100, 700)
        state.add_wave(x, time_s, decay, weights)
    if rng.random() < 0.2:
        row = x[rng.integers(len(x))]
        first = int(rng.uniform(0, 0.8) * len(row))
        last = first + int(rng.uniform(120, 600) * state.rate_hz)
        part = row[first:last]
        part += np.float32(rng.uniform(8, 35)) * mains[first:last]
        part += 15 * band_noise(rng, len(part), state.rate_hz, (0.3, 2.0), 1.5)
