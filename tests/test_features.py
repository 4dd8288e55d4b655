"""Hand-made features of signals whose answer is known."""

import numpy as np
import pytest

from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS, RATE_HZ
from pedsleepmae.probe.handmade import _measures, band_pass, handmade_features, window_rms

SILENCE = np.zeros((1, N_CHANNELS, EPOCH_SAMPLES), np.float32)
NAMES = [name for name, _, _ in _measures(SILENCE)]
TIME_S = np.arange(EPOCH_SAMPLES) / RATE_HZ
C3, SPO2, THORAX, ABDOMEN, FLOW, LEFT_EYE, RIGHT_EYE = 0, 8, 9, 10, 12, 13, 14


def tone(hz: float, amplitude: float = 1.0, phase: float = 0.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * TIME_S + phase)


def features_of(present: np.ndarray | None = None, **signals: np.ndarray) -> dict[str, float]:
    """Features by name of one epoch, with these signals by channel number, `c0=...`."""
    x_NCT = np.zeros((1, N_CHANNELS, EPOCH_SAMPLES))
    for name, signal in signals.items():
        x_NCT[0, int(name[1:])] = signal
    present_NC = np.ones((1, N_CHANNELS), bool) if present is None else present[None]
    return dict(zip(NAMES, handmade_features(x_NCT, present_NC)[0], strict=True))


@pytest.mark.parametrize(
    ("hz", "band"), [(0.75, "slow"), (2, "delta"), (6, "theta"), (9.5, "alpha"), (13, "sigma")]
)
def test_a_tone_has_its_power_in_its_band(hz, band):
    got = features_of(c0=tone(hz, amplitude=3.0))
    assert got[f"EEG C3-M2: share of power {band}"] > 0.8  # windows of 4 s blur by 0.25 Hz
    # The power of a sine is half of its squared amplitude.
    assert got[f"EEG C3-M2: log power {band}"] == pytest.approx(np.log(4.5), abs=0.25)
    others = [got[name] for name in NAMES if "C3-M2: share of power" in name and band not in name]
    assert sum(others) < 0.2


def test_band_pass_keeps_what_is_inside_and_removes_what_is_outside():
    x_T = tone(13, 2.0) + tone(5) + tone(40)
    assert band_pass(x_T, 11, 16) == pytest.approx(tone(13, 2.0), abs=1e-4)


def test_window_rms_of_two_levels_by_hand():
    x_T = np.repeat([2.0, -3.0], 64)
    assert window_rms(x_T, 0.5).tolist() == [2, 3]
    assert window_rms(np.append(x_T, np.ones(10)), 0.5).tolist() == [2, 3]  # the rest is left out


def test_a_spindle_stands_out_where_steady_sigma_of_equal_power_does_not():
    burst = tone(13) * ((TIME_S > 10) & (TIME_S < 11))
    noise = 0.02 * np.random.default_rng(0).standard_normal(EPOCH_SAMPLES)
    spindle = features_of(c0=burst + noise)
    steady = features_of(c0=tone(13, np.sqrt(1 / 30)) + noise)
    name = "EEG C3-M2: spindle burst over median"
    assert spindle[name] > 2 > 0.2 > steady[name]
    name = "EEG C3-M2: share of time in spindle bursts"
    assert 1 / 30 <= spindle[name] <= 4 / 30
    assert steady[name] == 0


def test_slow_waves_are_measured_peak_to_peak():
    got = features_of(c0=tone(1.0, 2.5))
    assert got["EEG C3-M2: largest slow wave"] == pytest.approx(np.log(5), abs=0.02)
    assert got["EEG C3-M2: median slow wave"] == pytest.approx(np.log(5), abs=0.02)


@pytest.mark.parametrize(
    ("phase", "in_phase", "quadrature"), [(0, 1, 0), (np.pi, -1, 0), (np.pi / 2, 0, 1)]
)
def test_paradoxical_breathing_is_out_of_phase(phase, in_phase, quadrature):
    got = features_of(c9=tone(0.3), c10=tone(0.3, 0.5, phase))
    assert got["thorax against abdomen: in phase"] == pytest.approx(in_phase, abs=1e-3)
    assert got["thorax against abdomen: in quadrature"] == pytest.approx(quadrature, abs=1e-3)


def test_eyes_that_move_against_each_other_correlate_negatively():
    got = features_of(c13=tone(2.0), c14=tone(2.0, -0.7))
    assert got["EOG: correlation of both eyes, rapid"] == pytest.approx(-1, abs=1e-3)


def test_an_obstructive_apnea_stops_flow_but_not_effort():
    stops = (TIME_S > 8) & (TIME_S < 22)
    flow = np.where(stops, 0, tone(0.3))
    apnea = features_of(c9=tone(0.3), c10=tone(0.3), c12=flow)
    breathing = features_of(c9=tone(0.3), c10=tone(0.3), c12=tone(0.3))
    name = "C-FLOW: log least over usual breath"
    assert apnea[name] < breathing[name] - 1
    name = "largest log effort over flow"
    assert apnea[name] > breathing[name] + 1
    name = "RESP THORACIC: log least over usual breath"
    assert apnea[name] == pytest.approx(breathing[name])


def test_a_desaturation_is_the_fall_from_earlier_to_later():
    falling = np.select([TIME_S < 10, TIME_S < 20], [97.0, 91.0], 95.0)
    got = features_of(c8=falling)
    assert got["SpO2: minimum"] == pytest.approx(91)
    assert got["SpO2: drop"] == pytest.approx(6)
    assert got["SpO2: recovery"] == pytest.approx(4)
    assert got["SpO2: end minus start"] == pytest.approx(-2)
    rising = features_of(c8=falling[::-1])
    assert rising["SpO2: drop"] == pytest.approx(4)


def test_co2_has_a_plateau_and_a_swing():
    square = np.where(np.sin(2 * np.pi * 0.3 * TIME_S) > 0, 40.0, 2.0)
    got = features_of(c7=square)
    assert got["CO2: plateau"] == pytest.approx(40)
    assert got["CO2: log usual swing"] == pytest.approx(np.log(38))


def test_features_of_an_absent_channel_are_unknown_and_no_others():
    present = np.ones(N_CHANNELS, bool)
    present[THORAX] = False
    got = features_of(present, c0=tone(5), c9=tone(0.3))
    unknown = {name for name, value in got.items() if np.isnan(value)}
    assert unknown == {
        "RESP THORACIC: log usual breath",
        "RESP THORACIC: log least over usual breath",
        "RESP THORACIC: log largest over least",
        "largest log effort over flow",
        "thorax against abdomen: in phase",
        "thorax against abdomen: in quadrature",
    }


def test_every_feature_has_its_own_name_and_silence_is_finite():
    assert len(set(NAMES)) == len(NAMES)
    assert all(np.isfinite(value) for value in features_of().values())


def test_samples_that_are_no_numbers_spoil_no_other_epoch():
    rng = np.random.default_rng(1)
    x_NCT = rng.standard_normal((3, N_CHANNELS, EPOCH_SAMPLES))
    clean = handmade_features(x_NCT, np.ones((3, N_CHANNELS), bool))
    x_NCT[1, :, 7] = np.nan
    x_NCT[1, 0, 9] = np.inf
    got = handmade_features(x_NCT, np.ones((3, N_CHANNELS), bool))
    assert np.isfinite(got).all()
    assert (got[[0, 2]] == clean[[0, 2]]).all()
