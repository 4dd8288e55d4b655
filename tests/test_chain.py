"""The recording chain: what it does to a tone, and what it must leave alone."""

from dataclasses import replace

import numpy as np
import pytest

from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.simulate import cohort
from pedsleepmae.simulate.chain import (
    AS_IT_IS,
    FLOWS,
    HEAD,
    Chain,
    draw_chain,
    drop_readings,
    filter_head,
    pass_amplifier,
)
from pedsleepmae.simulate.signals import simulate_signals

RATE_HZ = 128


def tone(hz: float, seconds: int = 200) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(seconds * RATE_HZ) / RATE_HZ).astype(np.float32)


def gain_at(hz: float, *filters) -> float:
    inner = slice(20 * RATE_HZ, -20 * RATE_HZ)  # the ends wrap around
    return filter_head(tone(hz), RATE_HZ, *filters)[inner].std() / tone(hz)[inner].std()


@pytest.mark.parametrize(
    ("hz", "filters", "wanted"),
    [
        (10, (0.3, 35.0, 0.0), 1.0),
        (0.5, (0.5, 35.0, 0.0), 0.5**0.5),
        (35, (0.5, 35.0, 0.0), 0.5**0.5),
        (40, (None, None, 0.5), 4**-0.25),
        (2.5, (None, None, 0.5), 4**0.25),
    ],
)
def test_filters_have_half_the_power_at_their_corners_and_a_tilt_its_slope(hz, filters, wanted):
    assert gain_at(hz, *filters) == pytest.approx(wanted, rel=0.01)


@pytest.fixture(scope="module")
def visit_and_settings():
    settings = cohort.SimulateSettings(n_patients=1, n_repeat_studies=0, hours=0.25, seed=3)
    return cohort.plan_cohort(settings)[0], settings


def signals_through(visit, settings, chain):
    rng = np.random.default_rng((*visit.stream, 2))
    return simulate_signals(cohort.visit_night(visit, settings), RATE_HZ, rng, chain=chain)


@pytest.mark.parametrize("variation", ["realistic", "wide"])
def test_stages_and_events_are_the_same_whatever_records_them(visit_and_settings, variation):
    visit, settings = visit_and_settings
    plain = cohort.visit_night(visit, settings)
    varied = cohort.visit_night(visit, replace(settings, variation=variation))
    assert plain.events == varied.events
    assert plain.scored_events == varied.scored_events
    np.testing.assert_array_equal(plain.scored_stages, varied.scored_stages)


def test_without_variation_nothing_is_drawn_and_nothing_changes():
    rng = np.random.default_rng(0)
    assert draw_chain("none", rng) is AS_IT_IS
    assert rng.random() == np.random.default_rng(0).random()
    signals = {name: tone(3, 4) for name in CHANNEL_NAMES}
    pass_amplifier(signals, AS_IT_IS, RATE_HZ, rng)
    assert all(np.array_equal(x, tone(3, 4)) for x in signals.values())


def test_mains_of_50_hz_stand_at_50_hz(visit_and_settings):
    visit, settings = visit_and_settings
    signals = signals_through(visit, settings, Chain(mains_hz=50.0, mains=8.0))
    power = np.abs(np.fft.rfft(signals["EEG C3-M2"])) ** 2
    hz = np.fft.rfftfreq(len(signals["EEG C3-M2"]), 1 / RATE_HZ)
    assert hz[20:][power[20:][hz[20:] > 40].argmax() + (hz[20:] <= 40).sum()] == pytest.approx(50)


def test_the_same_night_differs_in_size_by_the_gain_of_head_channels_alone(visit_and_settings):
    plain = signals_through(*visit_and_settings, AS_IT_IS)
    louder = signals_through(*visit_and_settings, Chain(gain=2.0))
    for name, x in plain.items():
        factor = 2.0 if name in HEAD else 1.0
        if not name.startswith("EMG"):  # which has a high-pass of its own
            assert louder[name].std() == pytest.approx(factor * x.std(), rel=0.02)


def test_a_lost_sensor_is_silent_while_it_is_off_and_a_belt_keeps_within_its_limit():
    rng = np.random.default_rng(0)
    signals = {name: rng.standard_normal(4000).astype(np.float32) for name in CHANNEL_NAMES}
    chain = Chain(lost=(("SNORE", 0.25, 0.5),), belt_limit=0.5, inverted=(FLOWS[0],))
    before = {name: x.copy() for name, x in signals.items()}
    pass_amplifier(signals, chain, RATE_HZ, rng)
    assert signals["SNORE"][1000:2000].std() < 0.05
    np.testing.assert_array_equal(signals["SNORE"][2000:], before["SNORE"][2000:])
    limit = 0.5 * np.quantile(np.abs(before["RESP ABDOMINAL"]), 0.9)
    assert np.abs(signals["RESP ABDOMINAL"]).max() == pytest.approx(limit)
    np.testing.assert_array_equal(signals[FLOWS[0]], -before[FLOWS[0]])


def test_rounded_and_clipped_signals_take_few_values():
    rng = np.random.default_rng(0)
    signals = {name: 300 * rng.standard_normal(4000).astype(np.float32) for name in CHANNEL_NAMES}
    pass_amplifier(signals, Chain(clip_uv=200.0, step_uv=0.5), RATE_HZ, rng)
    x = signals["EEG C3-M2"]
    assert np.abs(x).max() == 200.0
    np.testing.assert_array_equal(x, np.round(2 * x) / 2)


def test_an_oximeter_that_falls_off_reads_0_and_whole_percents_are_whole():
    spo2_S = np.full(7200, 96.4)
    dropped = drop_readings(
        spo2_S.copy(),
        Chain(oximeter_off_per_hour=5.0, spo2_step_percent=1.0),
        np.random.default_rng(1),
    )
    assert set(dropped) == {0.0, 96.0}
    assert 3 <= (np.diff((dropped == 0).astype(int)) == 1).sum() <= 20
