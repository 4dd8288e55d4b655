"""The recording chain: what electrodes, amplifier and sensors make of one and the same night.

The physiology of `head` and `body` is a child's; what a laboratory records of it differs by skin,
gel, amplifier, filters, country and mishap. A chain is drawn for each recording; all of it leaves
stages and events, the truth, as they are.

Spreads are ours, set so that the one real night at hand lies within: beside simulated children its
EEG has half the size in sleep and more muscle in wake (benchmarks/check_simulation.py).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from pedsleepmae.channels import CHANNEL_GROUPS, CHANNEL_NAMES

Variation = Literal["none", "realistic", "wide"]
SPREAD = {"realistic": 1.0, "wide": 1.7}  # of every quantity's own deviation
MUSCLE_UV = (2.1, 0.6, 0.6, 0.6, 0.6)  # W N1 N2 N3 R, at an electrode that sees it whole
TILT_HZ = (1.0, 10.0)  # a tilted spectrum is level below the first and unchanged at the second
REFERENCES = {"contralateral": {}, "linked": {"M1": ("M1", "M2"), "M2": ("M1", "M2")}}

HEAD = [CHANNEL_NAMES[i] for group in ("EEG", "EOG", "EMG") for i in CHANNEL_GROUPS[group]]
BELTS = [CHANNEL_NAMES[i] for i in CHANNEL_GROUPS["effort"]]
FLOWS = [CHANNEL_NAMES[i] for i in CHANNEL_GROUPS["flow"]]


@dataclass(frozen=True)
class Chain:
    """One recording's chain; the defaults change nothing. Factors are relative to those of `head`.

    ``lost``: sensors that fall off, with the shares of the night between which they are.
    ``clip_uv``, ``step_uv``, ``belt_limit``: None where nothing is clipped or rounded; the limit of
    a belt is a factor on the size that a tenth of its samples exceed.
    """

    background: float = 1.0
    eyes: float = 1.0
    muscle_uv: tuple[float, ...] = MUSCLE_UV
    muscle_wander: float = 0.0
    movement: float = 1.0
    heart: float = 1.0
    hiss: float = 1.0
    pops_per_hour: float = 2.0
    sweat_uv: float = 0.0
    mains_hz: float = 60.0
    mains: float = 1.0
    third_harmonic: float = 0.0
    reference: str = "contralateral"
    gain: float = 1.0
    inverted: tuple[str, ...] = ()
    high_pass_hz: float | None = None
    low_pass_hz: float | None = None
    tilt: float = 0.0
    clip_uv: float | None = None
    step_uv: float | None = None
    belt_limit: float | None = None
    lost: tuple[tuple[str, float, float], ...] = ()
    oximeter_off_per_hour: float = 0.0
    spo2_step_percent: float | None = None


AS_IT_IS = Chain()


def draw_chain(variation: Variation, rng: Generator) -> Chain:
    """A recording's chain; "none" draws nothing and gives the defaults."""
    if variation == "none":
        return AS_IT_IS
    spread = SPREAD[variation]

    def factor(median: float, log_sd: float) -> float:
        return float(median * np.exp(spread * log_sd * rng.standard_normal()))

    def happens(share: float) -> bool:
        return rng.random() < spread * share

    names = [*HEAD, *BELTS, *FLOWS, "CAPNO", "SNORE"]
    lost = [name for name in names if happens(0.02)]
    starts = rng.uniform(0, 0.9, len(lost))
    return Chain(
        background=factor(0.65, 0.4),
        eyes=factor(1.3, 0.5),
        muscle_uv=tuple(factor(2.2, 0.8) * np.array((2.1, 1.1, 0.6, 0.5, 0.7))),
        muscle_wander=rng.uniform(0, 0.5 * spread),
        movement=factor(1.0, 0.5),
        heart=factor(1.0, 0.7),
        hiss=factor(1.0, 0.4),
        pops_per_hour=factor(2.0, 0.7),
        sweat_uv=factor(40, 0.5) if happens(0.15) else 0.0,
        mains_hz=float(rng.choice((50.0, 60.0))),
        mains=factor(1.0, 0.9),
        third_harmonic=rng.uniform(0, 0.3),
        reference="linked" if happens(0.15) else "contralateral",
        gain=factor(1.0, 0.2),
        inverted=tuple(name for name in names if happens(0.1 if name not in HEAD else 0.02)),
        high_pass_hz=float(rng.choice((0.1, 0.16, 0.3, 0.5))),
        low_pass_hz=float(rng.choice((30.0, 35.0, 50.0, 70.0), p=(0.1, 0.4, 0.2, 0.3))),
        tilt=0.25 * spread * float(rng.standard_normal()),
        clip_uv=rng.uniform(150, 500) if happens(0.08) else None,
        step_uv=float(rng.choice((0.05, 0.1, 0.2, 0.5))) * (1 if spread == 1 else 3),
        belt_limit=rng.uniform(0.5, 1.2) if happens(0.08) else None,
        lost=tuple(
            (name, start, start + rng.uniform(0.03, 0.3 * spread))
            for name, start in zip(lost, starts.tolist(), strict=True)
        ),
        oximeter_off_per_hour=factor(1.5, 0.8),
        spo2_step_percent=1.0 if rng.random() < 0.6 else None,
    )


def pass_amplifier(
    signals: dict[str, np.ndarray], chain: Chain, rate_hz: int, rng: Generator
) -> None:
    """Filters, gain, polarity, limits, rounding and lost sensors, in place; (n,) float32 each."""
    if chain == AS_IT_IS:
        return
    for name in HEAD:
        low_cut_hz = 8.0 if name.startswith("EMG") else chain.high_pass_hz
        tilt = 0.0 if name.startswith("EMG") else chain.tilt
        signals[name] = filter_head(
            signals[name], rate_hz, low_cut_hz, chain.low_pass_hz, tilt
        ) * np.float32(chain.gain)
    for name, first, last in chain.lost:
        x = signals[name]
        part = x[int(first * len(x)) : int(last * len(x))]
        part[:] = 0.02 * x.std() * rng.standard_normal(len(part), np.float32)
    if chain.belt_limit is not None:
        for name in BELTS:
            limit = chain.belt_limit * np.quantile(np.abs(signals[name]), 0.9)
            np.clip(signals[name], -limit, limit, out=signals[name])
    for name in chain.inverted:
        np.negative(signals[name], out=signals[name])
    for name in HEAD:
        if chain.clip_uv is not None:
            np.clip(signals[name], -chain.clip_uv, chain.clip_uv, out=signals[name])
        if chain.step_uv is not None:
            signals[name] = np.float32(chain.step_uv) * np.round(
                signals[name] * np.float32(1 / chain.step_uv)
            )


def drop_readings(spo2_S: np.ndarray, chain: Chain, rng: Generator) -> np.ndarray:
    """An oximeter's readings, one a second, as shown: rounded, more of them 0 (probe off)."""
    if chain.spo2_step_percent is not None:
        spo2_S = chain.spo2_step_percent * np.round(spo2_S / chain.spo2_step_percent)
    for _ in range(rng.poisson(chain.oximeter_off_per_hour * len(spo2_S) / 3600)):
        first = int(rng.integers(len(spo2_S)))
        spo2_S[first : first + 1 + int(rng.gamma(2.0, 12.0))] = 0.0
    return spo2_S


def filter_head(
    x: np.ndarray, rate_hz: int, high_pass_hz: float | None, low_pass_hz: float | None, tilt: float
) -> np.ndarray:
    """A channel behind first-order high-pass and fourth-order low-pass, its spectrum tilted.

    ``tilt``: exponent that the power density's fall gains between TILT_HZ and the top. Without
    phase, as digital filters run forth and back have none.
    """
    n = next_fast_len(len(x), real=True)
    hz = rfftfreq(n, 1 / rate_hz).astype(np.float32)
    response = (np.maximum(hz, TILT_HZ[0]) / TILT_HZ[1]) ** np.float32(-tilt / 2)
    if high_pass_hz is not None:
        response *= hz / np.hypot(hz, high_pass_hz)
    if low_pass_hz is not None:
        response /= np.sqrt(1 + (hz / low_pass_hz) ** 8)
    return irfft(rfft(x, n) * response, n)[: len(x)]
