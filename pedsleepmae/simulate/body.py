"""The body of a simulated night: breathing, flow, CO2, snoring, oxygen, heart.

Axes: n samples, K control knots, S seconds. The events of the night command the breathing; every
sensor looks at the same breaths with a gain of its own. Amplitudes without a source are ours;
sources are spelt out in `norms`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter

from pedsleepmae.simulate import norms, oxygen
from pedsleepmae.simulate.night import RESPIRATORY, Event, Night
from pedsleepmae.simulate.norms import REM, WAKE
from pedsleepmae.simulate.waves import (
    KNOT_HZ,
    State,
    look_up,
    pulse,
    scatter,
    slow_noise,
    soften,
    spread_phase,
)

PHASES = np.arange(2048) / 2048  # of one breath or heartbeat, where their tables have a value


# ------------------------------------------------------------------ breathing
@dataclass(frozen=True)
class Breathing:
    """Curves of knots of the breathing: cycles breathed so far, and amplitudes (1: quiet sleep).

    ``paradox`` is the phase by which the abdomen lags the chest, in cycles: 0.5 is opposite;
    ``phase_n`` (n,) where each sample is in its breath, 0 to 1.
    """

    cycles: np.ndarray
    per_minute: np.ndarray
    flow: np.ndarray
    chest: np.ndarray
    abdomen: np.ndarray
    paradox: np.ndarray
    snore: np.ndarray
    phase_n: np.ndarray


def breathe(night: Night, state: State, rng: Generator) -> Breathing:
    """Breathing of a night as its events command.

    Regular in N3, irregular in R and wake. Obstructive: flow stops, effort goes on, grows and
    turns paradoxical, snoring before. Central: flow and effort stop. Mixed: first central, then
    obstructive. Hypopnea: flow falls to the event's size, with or without the effort. Breaths
    after an event are deeper (definitions: AASM). Infants breathe paradoxically in R as a rule
    (Grigg-Damberger). What is no event happens too: a sigh with a pause of one breath after it,
    and shallow breathing without any consequence.
    """
    child, n_knots, asleep = night.child, state.n_knots, 1 - state.stage[WAKE]
    rate = norms.breaths_per_minute(child.age_years) * child.breath_factor
    irregular = state.by_stage((0.16, 0.09, 0.05, 0.025, 0.15))
    per_minute = rate * state.by_stage((1.15, 1.03, 1.0, 0.98, 1.06))
    per_minute *= np.exp(irregular * slow_noise(rng, n_knots, 8.0)) * (1 + 0.15 * state.arousal)
    size = np.exp(1.3 * irregular * slow_noise(rng, n_knots, 6.0)) * (1 + 0.5 * state.arousal)

    # Sighs with their pause, and shallow breathing, which are no events.
    flow, chest, abdomen = np.ones((3, n_knots))
    breath_s = 60 / rate
    for sigh_s in scatter(rng, 0.2 * asleep, 30.0):
        sigh = slice(round(sigh_s * KNOT_HZ), round((sigh_s + breath_s) * KNOT_HZ))
        pause = slice(sigh.stop, sigh.stop + round(rng.uniform(0.6, 1.3) * breath_s * KNOT_HZ))
        for curve in (flow, chest, abdomen):
            curve[sigh], curve[pause] = rng.uniform(1.5, 2.2), rng.uniform(0.03, 0.2)
    for shallow_s in scatter(rng, 0.15 * asleep, 40.0):
        end_s = shallow_s + rng.uniform(6, 20)
        flow[round(shallow_s * KNOT_HZ) : round(end_s * KNOT_HZ)] *= rng.uniform(0.45, 0.85)

    # The events, deeper breaths after them, snoring around the obstructive ones.
    young = np.clip((3 - child.age_years) / 3, 0, 1)
    paradox = 0.03 + 0.2 * young * state.stage[REM]
    snore = 0.5 * child.snoring * state.by_stage((0, 0.3, 0.8, 1.0, 0.5))
    for event in night.events:
        if event.name not in RESPIRATORY:
            continue
        first = round(event.onset_s * KNOT_HZ)
        last = max(round(event.end_s * KNOT_HZ), first + 1)
        recovery = slice(last, last + round(rng.uniform(5, 9) * KNOT_HZ))
        _command(event, slice(first, last), (flow, chest, abdomen, paradox, snore), rng)
        deeper = rng.uniform(1.15, 1.6)
        for curve in (flow, chest, abdomen):
            curve[recovery] *= deeper
        if event.name.startswith("Obstructive"):
            before = slice(max(first - round(rng.uniform(8, 25) * KNOT_HZ), 0), first)
            snore[before] = np.maximum(snore[before], rng.uniform(0.25, 0.9))
            snore[recovery] = np.maximum(snore[recovery], rng.uniform(0.3, 1.2))
    cycles = np.cumsum(per_minute) / (60 * KNOT_HZ)
    return Breathing(
        cycles=cycles,
        per_minute=per_minute,
        flow=soften(flow, 0.75) * size,
        chest=soften(chest, 0.75) * size,
        abdomen=soften(abdomen, 0.75) * size * np.exp(0.1 * slow_noise(rng, n_knots, 60.0)),
        paradox=soften(paradox, 1.5),
        snore=soften(snore, 1.5) * np.exp(0.4 * slow_noise(rng, n_knots, 5.0)),
        phase_n=spread_phase(cycles, state.rate_hz),
    )


def _command(event: Event, inside: slice, curves: tuple[np.ndarray, ...], rng) -> None:
    """Set the curves (flow, chest, abdomen, paradox, snore) of one respiratory event."""
    flow, chest, abdomen, paradox, snore = curves
    length = inside.stop - inside.start
    if event.name == "Hypopnea":
        flow[inside] = event.size
        chest[inside] = abdomen[inside] = np.clip(event.size + rng.uniform(0, 0.2), 0, 0.9)
        snore[inside] *= 0.4
        return
    if event.name == "Obstructive Hypopnea":
        flow[inside] = event.size
        chest[inside] = abdomen[inside] = rng.uniform(0.75, 1.1)
        paradox[inside] = rng.uniform(0.1, 0.38)
        snore[inside] = np.maximum(snore[inside], rng.uniform(0.2, 0.9))
        return
    flow[inside] = rng.uniform(0.0, 0.05)
    snore[inside] = 0.0
    central = {"Central Apnea": length, "Mixed Apnea": round(0.45 * length)}.get(event.name, 0)
    still = slice(inside.start, inside.start + central)
    chest[still] = abdomen[still] = rng.uniform(0.01, 0.06)
    rest = slice(still.stop, inside.stop)
    effort = np.linspace(rng.uniform(0.55, 0.8), rng.uniform(0.9, 1.4), length)[central:]
    chest[rest] = effort[: len(chest[rest])]
    abdomen[rest] = effort[: len(abdomen[rest])]
    paradox[rest] = rng.uniform(0.42, 0.55)


def breath_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(volume, flow, CO2) over one breath, (2048,) each: inspiration is the first 40 %.

    Volume -1 to 1, flow 1 at peak inspiration and negative in expiration with a pause at its
    end, CO2 0 in inspiration and a plateau that rises a little in expiration (1 at its end).
    """
    inspiration, out = PHASES < 0.4, (PHASES - 0.4) / 0.6
    half_in, half_out = np.pi * PHASES / 0.4, np.pi * np.clip(out / 0.85, 0, 1)
    volume = np.where(inspiration, (1 - np.cos(half_in)) / 2, (1 + np.cos(half_out)) / 2)
    flow = np.where(inspiration, np.sin(half_in), -0.8 * np.sin(half_out))
    rise = 1 / (1 + np.exp(-(out - 0.14) / 0.03))
    fall = 1 / (1 + np.exp((PHASES - 0.03) / 0.008))  # the last breath's gas is still washed out
    co2 = np.where(inspiration, fall, rise * (0.93 + 0.07 * np.clip(out, 0, 1)))
    return 2 * volume - 1, flow, co2


def effort_belts(
    night: Night, state: State, breath: Breathing, heart_n: np.ndarray, rng
) -> tuple[np.ndarray, np.ndarray]:
    """(chest, abdomen) belts, (n,) uV each: arbitrary gain, posture steps, heartbeat, movement."""
    volume, _, _ = breath_tables()
    moved = state.spread(state.movement)
    postures = np.sort(rng.uniform(0, night.duration_s, rng.poisson(night.duration_s / 3000)))
    belts = []
    for amplitude, lag in ((breath.chest, 0.0), (breath.abdomen, breath.paradox)):
        posture = np.ones(state.n_knots)
        for time_s in postures:
            posture[round(time_s * KNOT_HZ) :] = np.exp(0.35 * rng.standard_normal())
        shifted = spread_phase(breath.cycles - lag, state.rate_hz)
        x = look_up(volume, shifted) * state.spread(amplitude * soften(posture, 3))
        x += 0.025 * heart_n + 0.02 * rng.standard_normal(len(x), np.float32)
        x += 0.25 * state.spread(slow_noise(rng, state.n_knots, 20.0))
        x += 2.5 * moved * state.noise(rng, (0.2, 3.0), 1.0)
        belts.append(np.float32(110 * np.exp(0.6 * rng.standard_normal())) * x)
    return belts[0], belts[1]


def flow_sensors(state: State, breath: Breathing, rng: Generator) -> dict[str, np.ndarray]:
    """C-FLOW, RESP PTAF (nasal pressure) and RESP AIRFLOW (thermistor), (n,) each, any gain.

    In one recording of eight C-FLOW is not connected and shows noise, as in NCH's studies
    without positive pressure.
    """
    _, flow, _ = breath_tables()
    amplitude = state.spread(breath.flow)
    moved = state.spread(state.movement)
    clean = look_up(flow, breath.phase_n) * amplitude
    mouth = state.spread(np.clip(0.9 + 0.3 * slow_noise(rng, state.n_knots, 120.0), 0.25, 1.2))
    noise = rng.standard_normal((3, len(clean)), np.float32)
    bumps = moved * state.noise(rng, (0.3, 4.0), 1.0)
    c_flow = clean * mouth + 0.03 * noise[0] + 0.8 * bumps
    if rng.random() < 1 / 8:
        c_flow = 0.03 * noise[0] + 0.01 * clean
    ptaf = np.sign(clean) * np.sqrt(np.abs(clean)) * mouth + 0.04 * noise[1] + 0.6 * bumps
    delayed = np.roll(clean, round(0.25 * state.rate_hz))
    thermistor = look_up(np.sin(2 * np.pi * PHASES - 0.4), breath.phase_n)
    thermistor = thermistor * np.sqrt(np.abs(amplitude)) * 0.8 + 0.3 * delayed + 0.03 * noise[2]
    gains = np.exp(0.7 * rng.standard_normal(3)).astype(np.float32)
    return {
        "C-FLOW": 25 * gains[0] * c_flow,
        "RESP PTAF": 150 * gains[1] * ptaf,
        "RESP AIRFLOW": 90 * gains[2] * thermistor,
    }


def capnography(
    night: Night, state: State, breath: Breathing, rng
) -> tuple[np.ndarray, np.ndarray]:
    """(CAPNO, ETCO2): the CO2 wave and its end-tidal value, (n,) mmHg each.

    A plateau of about 40 mmHg at each expiration; no expired gas, no CO2. The gas reaches the
    instrument 1 to 2 s late; a mouth-breather's plateau is low.
    """
    _, _, co2 = breath_tables()
    plateau = rng.uniform(37, 44) + 1.2 * slow_noise(rng, state.n_knots, 200.0)
    plateau *= np.clip(0.97 + 0.1 * slow_noise(rng, state.n_knots, 150.0), 0.5, 1.05)
    # A breath that only washes the dead space brings no alveolar gas, and a shallow one little.
    alveolar = np.clip(
        (breath.flow - 0.6 * oxygen.DEAD_SPACE) / (1 - 0.6 * oxygen.DEAD_SPACE), 0, 2
    )
    reach = alveolar**2 / (alveolar**2 + 0.1**2)
    late = round(rng.uniform(1.0, 2.0) * state.rate_hz)
    level = state.spread(plateau * reach)
    capno = np.roll(look_up(co2, breath.phase_n) * level, late)
    # The chamber and line smear the edges: 10 to 90 % of a step take 0.15 to 0.45 s.
    kept = np.exp(-2.2 / (rng.uniform(0.15, 0.45) * state.rate_hz))
    capno = lfilter([1 - kept], [1, -kept], capno).astype(np.float32)
    capno += 0.4 * rng.standard_normal(len(capno), np.float32)
    if rng.random() < 0.12:  # cannula out of the nose for a while
        first = rng.uniform(0.1, 0.8) * night.duration_s
        gone = pulse(state.n_knots, [first], [first + rng.uniform(60, 400)])
        capno *= 1 - 0.97 * state.spread(gone)
    end_tidal = np.repeat((plateau * np.clip(reach * 1.02, 0, 1))[:-1:KNOT_HZ], state.rate_hz)
    return capno, np.roll(end_tidal, late).astype(np.float32)


def snore_microphone(state: State, breath: Breathing, rng: Generator) -> np.ndarray:
    """Snore sensor, (n,) uV of arbitrary gain: 20-100 Hz vibration in inspiration, room noise."""
    window = np.where(breath.phase_n < 0.4, np.sin(np.pi * breath.phase_n / 0.4), 0.08)
    loud = state.spread(breath.snore * breath.flow) * window.astype(np.float32) ** 2
    loud += state.spread(0.5 * state.movement)
    buzz = state.noise(rng, (20.0, 100.0), 1.0)
    hiss = rng.standard_normal(state.n, np.float32)
    gain = 60 * np.exp(0.8 * rng.standard_normal())
    return np.float32(gain) * (buzz * loud + np.float32(rng.uniform(0.01, 0.05)) * hiss)


# ------------------------------------------------------------------ oxygen and heart
def oximeter(night: Night, state: State, rng: Generator) -> np.ndarray:
    """SpO2 in percent, one value a second, (S,).

    What the breathing events take away is the balance of `oxygen`; a probe that is off reads 0. The
    baseline wanders by half a percent.
    """
    spo2 = night.child.spo2_percent + 0.35 * slow_noise(rng, state.n_knots, 90.0)
    spo2 += 0.2 * slow_noise(rng, state.n_knots, 15.0)
    spo2 += oxygen.night_saturation(night.child, night.events, state.n_knots)
    spo2 = np.clip(spo2 + 0.1 * rng.standard_normal(state.n_knots), 40, 100)[:-1:KNOT_HZ]
    spo2 = np.round(spo2, 1)
    for start_s in scatter(rng, 0.012 + 0.12 * state.movement):
        spo2[int(start_s) : int(start_s + rng.gamma(2.0, 7.0)) + 1] = 0.0
    return spo2


def heart(
    night: Night, state: State, breath: Breathing, rng: Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(ECG (n,) with R waves of 1, beats a minute (K,)).

    Rate by age, faster in wake and R, in step with breathing, and up with each arousal.
    """
    rate = norms.beats_per_minute(night.child.age_years) * night.child.heart_factor
    bpm = rate * state.by_stage((1.12, 1.02, 1.0, 0.98, 1.05))
    bpm *= np.exp(0.03 * slow_noise(rng, state.n_knots, 10.0))
    bpm *= 1 + 0.05 * np.sin(2 * np.pi * breath.cycles) + 0.15 * soften(state.arousal, 4)
    waves = ((0.20, 0.025, 0.12), (0.345, 0.008, -0.12), (0.36, 0.010, 1.0), (0.378, 0.009, -0.25))
    table = sum(size * np.exp(-0.5 * ((PHASES - at) / sd) ** 2) for at, sd, size in waves)
    table = table + 0.28 * np.exp(-0.5 * ((PHASES - 0.62) / 0.045) ** 2)
    return look_up(table, spread_phase(np.cumsum(bpm) / (60 * KNOT_HZ), state.rate_hz)), bpm
