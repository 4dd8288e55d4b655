"""The signals of a simulated night at any sampling rate: the head's, the body's, and the devices'.

What is in them is made in `head` and `body`; here they come together under the names of the 16
channels and of the other signals in NCH's montages.
"""

import numpy as np
from numpy.random import Generator

from pedsleepmae.simulate import body, head, waves
from pedsleepmae.simulate.chain import Chain, through_chain
from pedsleepmae.simulate.night import Night
from pedsleepmae.simulate.norms import WAKE


def simulate_signals(
    night: Night,
    rate_hz: int,
    rng: Generator,
    *,
    all_sensors: bool = False,
    chain: Chain | None = None,
) -> dict[str, np.ndarray]:
    """Signals of a night at ``rate_hz`` (a multiple of 4), each (n,) float32, by upper-case name.

    The 16 channels, voltages in uV, SPO2 in %, CAPNO in mmHg; with ``all_sensors`` also the other
    signals of NCH's montages (ECG, legs, thermistor, numbers of the devices). ``SPO2`` is held
    for a second between updates and 0 while the probe is off. What the laboratory's ``chain`` does
    comes last; None: nothing.
    """
    if rate_hz % waves.KNOT_HZ:
        raise ValueError(f"rate_hz is {rate_hz}; give a multiple of {waves.KNOT_HZ}")
    streams = rng.spawn(11)
    state = waves.night_state(night, rate_hz, streams[0])
    breath = body.breathe(night, state, streams[1])
    heart_n, bpm = body.heart(night, state, breath, streams[2])
    mains_hz = chain.mains_hz if chain else head.MAINS_HZ
    electrodes = head.recorded_electrodes(night, state, heart_n, streams[3], mains_hz)
    signals = head.derivations(electrodes, chain.reference if chain else "contralateral")
    signals["EMG CHIN1-CHIN2"] = head.chin_emg(night, state, streams[4])
    signals["EMG CHIN1-CHIN2"] += np.float32(streams[4].uniform(0, 5)) * heart_n
    chest, abdomen = body.effort_belts(night, state, breath, heart_n, streams[5])
    signals |= {"RESP THORACIC": chest, "RESP ABDOMINAL": abdomen}
    signals |= body.flow_sensors(state, breath, streams[6])
    signals["CAPNO"], end_tidal = body.capnography(night, state, breath, streams[7])
    signals["SNORE"] = body.snore_microphone(state, breath, streams[8])
    signals["SPO2"] = np.repeat(body.oximeter(night, state, streams[9]), rate_hz).astype(np.float32)
    if chain is not None:
        through_chain(signals, chain, state, heart_n, streams[10])
    if all_sensors:
        signals["ETCO2"] = end_tidal
        signals |= _other_sensors(night, state, breath, signals, heart_n, bpm, rng)
    return signals


def _other_sensors(night, state, breath, signals, heart_n, bpm, rng) -> dict[str, np.ndarray]:
    """The signals of NCH's montages that are none of the 16, (n,) float32 each."""
    rate_hz, n = state.rate_hz, state.n

    def held(knots_K: np.ndarray, every_s: int) -> np.ndarray:
        numbers = knots_K[: -1 : waves.KNOT_HZ * every_s].astype(np.float32)
        return np.repeat(numbers, rate_hz * every_s)[:n]

    legs = {}
    for name in ("EMG LLEG", "EMG RLEG"):
        kicks = waves.scatter(rng, 0.2 + 0.4 * state.stage[WAKE])
        kicking = waves.soften(waves.pulse(state.n_knots, kicks, kicks + 1.5), 0.5)
        level = 3 + 60 * kicking + 30 * state.movement
        legs[name] = state.noise(rng, (10.0, 100.0), 0.4) * state.spread(level)
    belts = signals["RESP THORACIC"] + signals["RESP ABDOMINAL"]
    quiet = rng.standard_normal((3, n), np.float32)
    pressed = np.zeros(n, np.float32)  # the button of the patient event
    for start in (rng.uniform(0, 0.95, rng.poisson(2)) * n).astype(int):
        pressed[start : start + rate_hz // 2] = 1.0
    return {
        **legs,
        "ECG": 900 * heart_n + 8 * quiet[0],
        "RATE": held(bpm, 1),
        "RESP RATE": held(breath.per_minute * (breath.flow > 0.15), 2),
        "TIDAL VOL": held(6 * (15 + 3 * night.child.age_years) * breath.flow, 2),
        "TCCO2": held(42 + 2 * waves.slow_noise(rng, state.n_knots, 600.0), 4),
        "PRESSURE": 0.05 * quiet[1],
        "XFLOW": np.gradient(belts).astype(np.float32) * np.float32(rate_hz / 4),
        "SNORE_DR": 0.5 * np.abs(signals["SNORE"]),
        "FLOW_DR": 0.7 * signals["RESP PTAF"] + 2 * quiet[2],
        "PATIENT EVENT": pressed,
    }
