"""The recording chain: it changes how a night looks, never what happened in it."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.signal import welch

from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.simulate import batches, chain, cohort, head, waves
from pedsleepmae.simulate.signals import simulate_signals

RATE = 128


def settings(variation, **options):
    plain = {"n_patients": 4, "n_repeat_studies": 0, "hours": 0.25, "seed": 3}
    return cohort.SimulateSettings(variation=variation, **(plain | options))


def drawn(variation, n=300):
    return [chain.draw_chain(np.random.default_rng(i), variation) for i in range(n)]


def rms_of_tone(hz, *corners, **options):
    """RMS of a sine of 1 V after an amplifier, in the middle of a minute, over its RMS before."""
    x = np.sin(2 * np.pi * hz * np.arange(60 * RATE) / RATE).astype(np.float32)
    y = chain.filtered(x, chain.amplifier(len(x), RATE, *corners, **options))
    return y[20 * RATE : 40 * RATE].std() / x[20 * RATE : 40 * RATE].std()


# ------------------------------------------------------------------ what is drawn
def test_without_variation_there_is_no_chain_and_the_child_stays():
    child = cohort.plan_cohort(settings("none"))[0].child
    assert chain.draw_chain(np.random.default_rng(0), "none") is None
    assert chain.vary_child(child, np.random.default_rng(0), "none") is child


def test_wide_chains_reach_beyond_realistic_ones_in_every_number():
    realistic, wide = drawn("realistic"), drawn("wide")
    for field in ("head_gain", "tilt", "mains_uv", "sweat_uv", "pops", "high_pass_hz", "step_uv"):
        span = [np.ptp([getattr(each, field) for each in many]) for many in (realistic, wide)]
        assert span[1] > span[0], field
    for each in realistic:
        assert 0.1 <= each.high_pass_hz <= 0.5
        assert 30 <= each.low_pass_hz <= 70
    assert {each.mains_hz for each in realistic} == {50.0, 60.0}
    assert {each.reference for each in wide} == set(chain.REFERENCES)
    assert 0 < np.mean([each.inverted_head for each in realistic]) < 0.1


def test_stages_and_events_are_those_of_the_same_cohort_without_variation():
    plans = {name: cohort.plan_cohort(settings(name)) for name in ("none", "realistic", "wide")}
    for plain, *varied in zip(*plans.values(), strict=True):
        truth = cohort.visit_night(plain, settings("none"))
        for visit in varied:
            night = cohort.visit_night(visit, settings("wide"))
            assert night.events == truth.events
            assert night.scored_events == truth.scored_events
            np.testing.assert_array_equal(night.scored_stages, truth.scored_stages)


def test_the_seed_decides_the_chain():
    once, again = (cohort.plan_cohort(settings("wide")) for _ in range(2))
    assert once == again
    assert len({visit.chain for visit in once}) == len(once)


def test_wide_variation_takes_whole_groups_away():
    many = {name: cohort.plan_cohort(settings(name, n_patients=120)) for name in ("none", "wide")}
    without_eeg = {
        name: np.mean(["EEG C3-M2" in visit.absent for visit in visits])
        for name, visits in many.items()
    }
    assert without_eeg["none"] == 0
    assert 0.02 < without_eeg["wide"] < 0.25


@pytest.mark.parametrize("variation", ["realistic", "wide"])
def test_no_recording_lacks_everything(variation):
    lacking = settings(variation, n_patients=400, absent_group_fraction=1.0)
    absent = [len(visit.absent) for visit in cohort.plan_cohort(lacking)]
    assert 10 < max(absent) < len(CHANNEL_NAMES)


# ------------------------------------------------------------------ the amplifier
def test_a_corner_frequency_passes_seven_tenths_and_the_middle_all():
    assert rms_of_tone(0.5, 0.5, 30.0) == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert rms_of_tone(30.0, 0.5, 30.0) == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert rms_of_tone(5.0, 0.5, 30.0) == pytest.approx(1, abs=0.01)
    assert rms_of_tone(60.0, 0.5, 30.0) == pytest.approx(1 / np.sqrt(17), abs=0.01)
    assert rms_of_tone(0.25, 0.0, 0.0) == pytest.approx(1, abs=1e-4)


def test_a_tilt_bends_the_power_by_its_power_of_the_frequency():
    powers = [rms_of_tone(hz, 0.0, 0.0, tilt=0.5) ** 2 for hz in (2.0, 8.0, 32.0)]
    np.testing.assert_allclose(powers, (0.25**0.5, 1, 4**0.5), rtol=0.01)


# ------------------------------------------------------------------ references
def test_references_are_differences_of_electrodes():
    level = {name: np.array([2.0**i]) for i, name in enumerate(head.ELECTRODES)}
    c3, m1, m2 = (level[name] for name in ("C3", "M1", "M2"))
    average = sum(level[name] for name in head.ELECTRODES[:7]) / 7
    expected = {"contralateral": c3 - m2, "ipsilateral": c3 - m1, "linked": c3 - (m1 + m2) / 2}
    for reference, value in (expected | {"average": c3 - average}).items():
        made = head.derivations(level, reference)
        np.testing.assert_allclose(made["EEG C3-M2"], value, rtol=1e-6)
        np.testing.assert_array_equal(made["EEG CZ-O1"], level["CZ"] - level["O1"])


# ------------------------------------------------------------------ on signals
@pytest.fixture(scope="module")
def night():
    visit = cohort.plan_cohort(settings("none"))[1]
    return cohort.visit_night(visit, settings("none"))


def quiet_chain(**options):
    """A chain that does next to nothing but what the options say."""
    base = drawn("realistic", 1)[0]
    nothing = {field.name: 0.0 for field in fields(base) if field.type is float}
    nothing |= {"head_gain": 1.0, "clip_uv": 1e9, "step_uv": 1e-3, "mains_hz": head.MAINS_HZ}
    nothing |= {"reference": "contralateral", "inverted_head": False, "inverted": ()}
    return replace(base, harmonics=(0.0, 0.0), **(nothing | options))


def signals_of(night, each=None):
    return simulate_signals(night, RATE, np.random.default_rng(1), chain=each)


def test_polarity_gain_range_and_steps_are_as_drawn(night):
    plain = signals_of(night)["EEG C3-M2"]
    turned = quiet_chain(inverted_head=True, head_gain=0.5, clip_uv=40.0, step_uv=2.0)
    x = signals_of(night, turned)["EEG C3-M2"]
    assert np.abs(x).max() == 40
    assert (x % 2 == 0).all()
    free = np.abs(plain) < 70
    np.testing.assert_allclose(x[free], -0.5 * plain[free], atol=1.01)


def test_a_chain_that_does_nothing_leaves_every_signal_as_it_was(night):
    plain, through = signals_of(night), signals_of(night, quiet_chain())
    for name in ("EEG F4-M1", "EOG LOC-M2"):
        np.testing.assert_allclose(through[name], plain[name], atol=0.01)
    np.testing.assert_array_equal(through["SPO2"], plain["SPO2"])
    for name in ("RESP THORACIC", "C-FLOW"):
        assert np.corrcoef(plain[name], through[name])[0, 1] == pytest.approx(1, abs=1e-5)


def test_mains_stand_at_their_frequency_and_belts_are_clipped_and_turned(night):
    loud = quiet_chain(mains_hz=50.0, mains_uv=20.0, belt_clip=1.0, inverted=("RESP THORACIC",))
    plain, made = signals_of(night), signals_of(night, loud)
    spectrum = np.abs(np.fft.rfft(made["EEG O1-M2"])) ** 2
    hz = np.fft.rfftfreq(len(made["EEG O1-M2"]), 1 / RATE)
    added = spectrum - np.abs(np.fft.rfft(plain["EEG O1-M2"])) ** 2
    assert hz[np.abs(added).argmax()] == pytest.approx(50, abs=0.01)
    belt = made["RESP THORACIC"]
    assert np.corrcoef(belt, plain["RESP THORACIC"])[0, 1] < -0.8
    assert (belt == belt.max()).mean() > 0.02  # held at its range


@pytest.mark.parametrize(("mains_hz", "other_hz"), [(50.0, 60.0), (60.0, 50.0)])
def test_a_recording_hums_at_the_mains_of_its_laboratory_alone(night, mains_hz, other_hz):
    made = signals_of(night, quiet_chain(mains_hz=mains_hz, mains_uv=2.0))
    for name in ("EEG O1-M2", "EOG LOC-M2"):
        hz, density = welch(made[name], RATE, nperseg=8 * RATE)
        usual = np.median(density[(hz > 45) & (hz < 63)])
        assert density[hz == mains_hz] > 10 * usual
        assert density[hz == other_hz] < 3 * usual


def test_lost_oximeters_read_0_or_127_and_the_rest_is_the_truth_in_steps(night):
    plain = signals_of(night)["SPO2"]
    lossy = quiet_chain(spo2_loss=60.0, spo2_step=1.0, spo2_lost_as=127.0)
    x = signals_of(night, lossy)["SPO2"]
    lost = x == 127
    assert 0.02 < lost.mean() < 0.9
    assert (x[~lost] % 1 == 0).all()
    assert np.abs(x[~lost] - plain[~lost]).max() <= 0.51


def test_gaps_of_a_sensor_leave_what_is_asked_and_are_as_frequent_as_asked():
    visit = cohort.plan_cohort(settings("none", hours=4.0))[0]
    long = cohort.visit_night(visit, settings("none", hours=4.0))
    state = waves.night_state(long, 4, np.random.default_rng(0))
    draws = [chain._connected(1.0, state, np.random.default_rng(i), 0.1) for i in range(40)]
    assert {0.1, 1.0} == {round(float(v), 3) for draw in draws for v in np.unique(draw)}
    gone = np.mean([np.mean(draw < 0.5) for draw in draws])
    assert gone == pytest.approx(180 / 3600, rel=0.4)  # one gap an hour of three minutes


def test_varied_examples_are_standardised_and_miss_no_more_than_an_oximeters_gaps():
    for visit in cohort.plan_cohort(settings("wide", n_patients=2)):
        examples, _ = batches.visit_examples(visit, settings("wide"))
        known = np.isfinite(examples.signals)
        spo2 = CHANNEL_NAMES.index("SPO2")
        assert known[:, np.arange(16) != spo2].all()
        assert known[:, spo2].mean() > 0.5
        assert np.nanstd(examples.signals.astype(np.float32)) > 0.1
