"""What a laboratory does to a night: amplifiers, electrodes, belts, mains and their faults.

Physiology comes first (`head`, `body`); here its signals pass a recording chain that is drawn once
for a recording. Nothing here moves an event or a stage, so that the truth stays known. Axes: n
samples, K control knots. Ranges without a source are ours: ``realistic`` is what laboratories have
(filters as the AASM manual asks for, EEG 0.3 to 35 Hz, and what older and other devices give),
``wide`` goes beyond it on purpose, so that real recordings lie inside.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from pedsleepmae.simulate.night import Child
from pedsleepmae.simulate.norms import WAKE
from pedsleepmae.simulate.waves import State, pulse, scatter, slow_noise, soften

Variation = Literal["none", "realistic", "wide"]
REFERENCES = ("contralateral", "linked", "ipsilateral", "average")
_WIDTH = {"realistic": 1.0, "wide": 2.0}  # of each spread, and of how often something happens
_AIRWAY = ("C-FLOW", "RESP PTAF", "RESP AIRFLOW")
_BELTS = ("RESP THORACIC", "RESP ABDOMINAL")


# ------------------------------------------------------------------ what is drawn
@dataclass(frozen=True)
class Chain:
    """One recording's chain. Sizes in uV at the electrode, times in seconds, 0: not there.

    ``gain`` (natural logarithm's sd between channels) and ``head_gain`` are factors; ``tilt`` is
    the power of the frequency by which the EEG's power spectrum is bent around 8 Hz;
    ``loss`` and its neighbours are how often an hour something happens.
    """

    reference: str
    head_gain: float
    gain_sd: float
    inverted_head: bool
    inverted: tuple[str, ...]
    high_pass_hz: float
    low_pass_hz: float
    emg_high_pass_hz: float
    belt_high_pass_hz: float
    tilt: float
    mains_hz: float
    mains_uv: float
    harmonics: tuple[float, ...]
    ecg_uv: float
    sweat_uv: float
    movement_uv: float
    pops: float
    loss: float
    clip_uv: float
    step_uv: float
    belt_clip: float
    belt_loss: float
    spo2_loss: float
    spo2_step: float
    spo2_lost_as: float


def draw_chain(rng: Generator, variation: Variation) -> Chain | None:
    """The chain of a recording; None without variation, where signals stay as they are made."""
    if variation == "none":
        return None
    width = _WIDTH[variation]
    wide = variation == "wide"

    def happens(share: float) -> bool:
        return bool(rng.random() < share * width)

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    other = ("C-FLOW", "RESP PTAF", "RESP AIRFLOW", *_BELTS)
    return Chain(
        reference=str(rng.choice(REFERENCES[1:])) if happens(0.15) else REFERENCES[0],
        head_gain=float(np.exp(0.15 * width * rng.standard_normal())),
        gain_sd=float(0.08 * width * rng.random()),
        inverted_head=happens(0.04),
        inverted=tuple(name for name in other if happens(0.15)),
        high_pass_hz=log_uniform(0.1, 0.5 if not wide else 0.7),
        low_pass_hz=log_uniform(30 if not wide else 25, 70),
        emg_high_pass_hz=float(rng.uniform(5, 20)) if wide else 10.0,
        belt_high_pass_hz=log_uniform(0.03, 0.1) if happens(0.4) else 0.0,
        tilt=float(0.3 * width * rng.standard_normal()),
        mains_hz=50.0 if rng.random() < 0.5 else 60.0,
        mains_uv=log_uniform(0.2, 4.0 * width**2),
        harmonics=tuple(float(x) for x in rng.uniform(0, 0.5, 2)),
        ecg_uv=log_uniform(2, 20 * width) if happens(0.35) else 0.0,
        sweat_uv=log_uniform(20, 100 * width) if happens(0.15) else 0.0,
        movement_uv=log_uniform(5, 60 * width),
        pops=float(rng.gamma(1.0, 3.0 * width)),
        loss=float(rng.gamma(1.0, 0.05 * width)),
        clip_uv=log_uniform(200 if wide else 400, 4000),
        step_uv=log_uniform(0.02, 0.5 * width),
        belt_clip=float(rng.uniform(0.9 if wide else 1.3, 2.5)) if happens(0.15) else 0.0,
        belt_loss=float(rng.gamma(1.0, 0.2 * width)) if happens(0.3) else 0.0,
        spo2_loss=float(rng.gamma(1.0, 1.0 * width)),
        spo2_step=float(rng.choice((0.0, 0.1, 0.5, 1.0))),
        spo2_lost_as=float(rng.choice((0.0, 0.0, 0.0, 127.0))) if wide else 0.0,
    )


def vary_child(child: Child, rng: Generator, variation: Variation) -> Child:
    """The child with levels that vary as between people and electrode places.

    Medians are set so that a healthy adult's Fpz-Cz (rms in N3 half, in N1 and R less than half of
    what `head` makes of an 8-year-old; in wake as large, by muscle, and flatter) lies inside.
    """
    if variation == "none":
        return child
    width = _WIDTH[variation]
    eeg = float(np.exp(-0.3 + 0.3 * width * rng.standard_normal()))
    return replace(
        child,
        eeg_gain=child.eeg_gain * eeg,
        spindle_gain=child.spindle_gain * eeg,
        posterior_gain=float(child.posterior_gain * np.exp(0.3 * width * rng.standard_normal())),
        muscle_gain=float(child.muscle_gain * np.exp(0.3 * width * rng.standard_normal())),
        eye_gain=float(np.exp(0.95 + 0.4 * width * rng.standard_normal())),
        scalp_muscle_uv=float(4.0 * np.exp(0.55 * width * rng.standard_normal())),
    )


# ------------------------------------------------------------------ what it does
def through_chain(
    signals: dict[str, np.ndarray], chain: Chain, state: State, heart_n: np.ndarray, rng: Generator
) -> None:
    """Pass the signals (n,) of a recording through its chain, in place."""
    hum = mains_hum(chain, state)
    eye = amplifier(state.n, state.rate_hz, chain.high_pass_hz, chain.low_pass_hz)
    emg_high_hz = max(chain.low_pass_hz, 60.0)
    responses = {
        "EEG": eye * amplifier(state.n, state.rate_hz, 0.0, 0.0, chain.tilt),
        "EOG": eye,
        "EMG": amplifier(state.n, state.rate_hz, chain.emg_high_pass_hz, emg_high_hz),
    }
    for name, stream in zip(signals, rng.spawn(len(signals)), strict=True):
        x, kind = signals[name], name[:3]
        if kind in responses:
            x = _at_the_electrodes(x, hum, heart_n, chain, state, stream)
            signals[name] = _recorded(filtered(x, responses[kind]), chain, state, stream)
        elif name == "SPO2":
            signals[name] = _oximeter(x, chain, state, stream)
        elif name in _BELTS or name in _AIRWAY:
            signals[name] = _breathing(name, x, chain, state, stream)
        elif name in ("SNORE", "CAPNO"):
            signals[name] = x * _connected(chain.belt_loss, state, stream, 0.02)


def _at_the_electrodes(x, hum, heart_n, chain: Chain, state: State, rng) -> np.ndarray:
    """What a pair of electrodes catches besides its signal, (n,) uV."""
    moved = chain.movement_uv * rng.uniform(0.3, 1.5) * state.movement
    drift = moved * slow_noise(rng, state.n_knots, 1.5)
    if chain.sweat_uv:
        damp = np.clip(slow_noise(rng, state.n_knots, 900.0), 0, None)
        drift += chain.sweat_uv * rng.uniform(0.2, 1.5) * damp * slow_noise(rng, state.n_knots, 3.0)
    x = x + state.spread(drift)
    x += np.float32(chain.mains_uv * rng.gamma(1.0, 1.0)) * hum
    if chain.ecg_uv:
        x += np.float32(chain.ecg_uv * rng.uniform(-1, 1)) * heart_n
    _pop(x, chain, state, rng)
    return x


def mains_hum(chain: Chain, state: State) -> np.ndarray:
    """Hum of amplitude 1, (n,) float32, with the harmonics that the rate can hold."""
    cycles = chain.mains_hz * np.arange(state.n) / state.rate_hz % 1
    turns = (np.float32(2 * np.pi) * cycles).astype(np.float32)
    hum = np.zeros(state.n, np.float32)
    for order, share in enumerate((1.0, *chain.harmonics), start=1):
        if order * chain.mains_hz < state.rate_hz / 2:
            hum += np.float32(share) * np.sin(np.float32(order) * turns)
    return hum


def amplifier(
    n: int, rate_hz: float, high_pass_hz: float, low_pass_hz: float, tilt: float = 0.0
) -> np.ndarray:
    """Response of a first-order high-pass and a second-order Butterworth low-pass, for `filtered`.

    Complex, at the frequencies of a signal of n samples. A corner of 0 or one beyond the Nyquist
    frequency leaves its filter out. ``tilt`` bends the power spectrum between 1 and 60 Hz by
    f^tilt, with 8 Hz held.
    """
    hz = rfftfreq(next_fast_len(n, real=True), 1 / rate_hz).astype(np.float32)
    response = np.ones(len(hz), np.complex64)
    if high_pass_hz > 0:
        s = 1j * hz / np.float32(high_pass_hz)
        response *= s / (1 + s)
    if 0 < low_pass_hz < rate_hz / 2:
        s = 1j * hz / np.float32(low_pass_hz)
        response /= 1 + np.float32(np.sqrt(2)) * s + s * s
    if tilt:
        response *= (np.clip(hz, 1, 60) / 8) ** np.float32(tilt / 2)
    return response


def filtered(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The signal (n,) after an amplifier of this response, (n,) float32."""
    n_fft = next_fast_len(len(x), real=True)
    spectrum = rfft(x, n_fft)
    spectrum *= response
    return irfft(spectrum, n_fft, overwrite_x=True)[: len(x)].astype(np.float32, copy=False)


def _recorded(x: np.ndarray, chain: Chain, state: State, rng) -> np.ndarray:
    """Polarity, gain, contact, range and steps of one channel of the head, (n,) float32."""
    sign = -1.0 if chain.inverted_head else 1.0
    x *= np.float32(sign * chain.head_gain * np.exp(chain.gain_sd * rng.standard_normal()))
    x *= _connected(chain.loss, state, rng, 0.0)
    step = np.float32(chain.step_uv)
    x = np.rint(x / step, out=x)
    x *= step
    return np.clip(x, -chain.clip_uv, chain.clip_uv, out=x)


def _pop(x: np.ndarray, chain: Chain, state: State, rng) -> None:
    """Electrode pops: a jump that decays, ``chain.pops`` an hour in each channel, in place."""
    hours = state.n / state.rate_hz / 3600
    for start_s in rng.uniform(0, 3600 * hours, rng.poisson(chain.pops * hours)):
        t = state.times(4)
        jump = rng.choice((-1, 1)) * rng.uniform(60, 600) * np.exp(-t / rng.uniform(0.1, 1.0))
        state.add_wave(x[None], start_s, jump, np.ones(1, np.float32))


def _connected(per_hour: float, state: State, rng, left: float) -> np.ndarray | np.float32:
    """1 while a sensor is connected, ``left`` in gaps of minutes, (n,) float32; 1 without gaps."""
    hours = state.n / state.rate_hz / 3600
    n_gaps = rng.poisson(per_hour * hours)
    if not n_gaps:
        return np.float32(1)
    first_s = rng.uniform(0, 3600 * hours, n_gaps)
    gone = pulse(state.n_knots, first_s, first_s + rng.gamma(1.5, 120.0, n_gaps))
    return state.spread(1 - (1 - left) * gone)


def _breathing(name, x, chain: Chain, state: State, rng) -> np.ndarray:
    """Belts and flow: gain, polarity, high-pass, a range that clips belts, gaps."""
    if chain.belt_high_pass_hz:
        x = filtered(x, amplifier(state.n, state.rate_hz, chain.belt_high_pass_hz, 0.0))
    if name in _BELTS and chain.belt_clip:
        middle, spread = np.median(x), x.std()
        x = np.clip(x, middle - chain.belt_clip * spread, middle + chain.belt_clip * spread)
    sign = -1.0 if name in chain.inverted else 1.0
    gain = np.float32(sign * np.exp(0.3 * rng.standard_normal()))
    return gain * x * _connected(chain.belt_loss, state, rng, 0.02)


def _oximeter(x, chain: Chain, state: State, rng) -> np.ndarray:
    """Further drop-outs of the oximeter, in wake and movement above all, and its steps."""
    rate = chain.spo2_loss / 60 * (1 + 2 * state.stage[WAKE] + 20 * soften(state.movement, 4))
    seconds = x[:: state.rate_hz].copy()
    if chain.spo2_step:
        step = np.float32(chain.spo2_step)
        seconds = np.rint(seconds / step) * step
    for start_s in scatter(rng, rate):
        seconds[int(start_s) : int(start_s + rng.gamma(1.5, 10.0)) + 1] = 0.0
    seconds[seconds == 0] = chain.spo2_lost_as
    return np.repeat(seconds, state.rate_hz).astype(np.float32)
