"""Resampling, cutting and judging arrays; standardising them and back."""

import numpy as np
import pytest

from pedsleepmae.channels import CHANNEL_NAMES, CHANNELS
from pedsleepmae.prepare.signals import (
    choose_standard,
    cut_epochs,
    flat_pieces,
    grid_start,
    measure_quality,
    percent_factor,
    resample,
    robust_standard,
    standardise_epochs,
    undo_standard,
)

C3, SPO2, BELT = (CHANNEL_NAMES.index(name) for name in ("EEG C3-M2", "SPO2", "RESP THORACIC"))


def tone(hz, rate_hz, seconds=120):
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


def middle(x):
    """Without 10 s at each end, where a filter sees the edge."""
    return x[1280:-1280]


# ------------------------------------------------------------------ resampling
@pytest.mark.parametrize("rate_hz", [256.0, 400.0, 512.0])
def test_4_a_100_hz_tone_is_100_db_down(rate_hz):
    left = middle(resample(tone(100, rate_hz), rate_hz, step_hold=False))
    assert 20 * np.log10(np.abs(left).max()) < -100


@pytest.mark.parametrize("rate_hz", [100.0, 200.0, 255.99973, 256.0, 400.0, 512.0])
def test_4_a_30_hz_tone_keeps_its_height_and_its_time(rate_hz):
    x = middle(resample(tone(30, rate_hz), rate_hz, step_hold=False)).astype(float)
    t = np.arange(1280, 1280 + len(x)) / 128
    sine, cosine = 2 * np.mean(x * np.sin(60 * np.pi * t)), 2 * np.mean(x * np.cos(60 * np.pi * t))
    assert abs(20 * np.log10(np.hypot(sine, cosine))) < 0.1
    assert abs(np.arctan2(cosine, sine)) / (60 * np.pi) < 1e-3


@pytest.mark.parametrize("rate_hz", [1.0, 3.0, 128.0, 256.0, 400.0])
def test_4_a_code_is_held_and_never_rings(rate_hz):
    codes = np.repeat([97.0, 88.0, 97.0, 91.0], int(10 * rate_hz))
    held = resample(codes, rate_hz, step_hold=True)
    assert len(held) == 4 * 10 * 128
    assert set(np.unique(held)) == {97.0, 88.0, 91.0}
    steps_s = (np.flatnonzero(np.diff(held)) + 1) / 128
    np.testing.assert_allclose(steps_s, [10.0, 20.0, 30.0], atol=1 / 128)


def test_values_that_are_not_finite_do_not_spread():
    x = tone(5, 256.0)
    x[1000] = np.nan
    assert np.isfinite(resample(x, 256.0, step_hold=False)).all()


@pytest.mark.parametrize("rate_hz", [100.0, 200.0, 256.0, 400.0, 512.0])
def test_0_5_the_grid_meets_an_onset_on_any_native_sample(rate_hz):
    # An impulse at the native sample of the onset is the first sample of its epoch.
    for native in (7_777, 12_345, 12_346):
        onset_s = native / rate_hz
        x = np.zeros(int(200 * rate_hz))
        x[native] = 1.0
        start = grid_start(onset_s, rate_hz)
        position = (onset_s - start / rate_hz) * 128
        assert abs(position - round(position)) < 1e-4
        night = resample(x[start:], rate_hz, step_hold=False)
        epoch = cut_epochs(night, start / rate_hz, np.array([onset_s]))[0]
        assert np.argmax(epoch) == 0
        # Symmetric about the onset: sub-sample exact. Neighbours before it are outside.
        whole = cut_epochs(night, start / rate_hz, np.array([onset_s - 15.0]))[0]
        np.testing.assert_allclose(whole[1920 - 9 : 1920], whole[1921 : 1921 + 9][::-1], atol=2e-3)


def test_epochs_are_cut_at_their_onsets():
    x = np.arange(128 * 100, dtype=np.float32)
    epochs = cut_epochs(x, 0.0, np.array([0.0, 10.5, 70.0]))
    assert epochs.shape == (3, 3840)
    assert epochs[:, 0].tolist() == [0.0, 1344.0, 8960.0]
    assert epochs[2, -1] == 12799.0


def test_a_channel_that_ends_early_is_continued_with_its_last_value():
    epoch = cut_epochs(np.arange(3838.0), 0.0, np.array([0.0]))[0]
    assert epoch[-3:].tolist() == [3837.0, 3837.0, 3837.0]


# ------------------------------------------------------------------ scale
@pytest.mark.parametrize(
    ("numbers", "volts_per_unit", "factor"),
    [
        ([97.0, 95.0, 0.0, 127.0], None, 1.0),
        ([97.0, 95.0, 101.0, 99.0], None, 1.0),
        ([0.97, 0.95, 0.0, 0.93], None, 100.0),
        ([97.0, 95.0, 96.0, 0.0], 1e-6, 1.0),  # OSAT tagged uV that counts %
        ([970_000.0, 950_000.0, 0.0, 0.0], 1e-6, 1e-4),  # an output of 1 V for 100 %, in uV
        ([3.0, 2.0, 5.0, 4.0], None, None),
        ([0.0, 0.0, 0.0, 0.0], None, None),
    ],
)
def test_2_an_oximeter_is_read_as_percent_or_refused(numbers, volts_per_unit, factor):
    found = percent_factor(np.array(numbers), volts_per_unit)
    assert found == (None if factor is None else pytest.approx(factor))


def quality(digital, x=None, rate_hz=128.0):
    monotone = x is None
    x = digital.astype(float) if monotone else x
    return measure_quality(
        digital,
        x,
        rate_hz,
        flat=flat_pieces(digital, 128),
        monotone=monotone,
        digital_range=(-100, 100),
        plausible=(-50, 50),
    )


@pytest.mark.parametrize("factor", [0.5, -2.0])
def test_8_quality_of_a_signal_that_rises_or_falls_with_its_digits_is_that_of_its_samples(factor):
    digital = np.random.default_rng(0).integers(-60, 60, 1280)
    both = [
        measure_quality(
            digital,
            digital * factor + 5,
            128.0,
            flat=flat_pieces(digital, 128),
            monotone=monotone,
            digital_range=(-100, 100),
            plausible=(-20, 30),
        )
        for monotone in (True, False)
    ]
    assert both[0] == both[1]
    assert both[0].out_of_range > 0


def test_8_quality_tells_flat_clipped_missing_and_out_of_range():
    digital = np.tile([10, -10], 128 * 5)  # ten seconds
    digital[: 128 * 3] = 7  # three of them flat
    digital[-128:] = 100  # one second at the end of the range, and flat
    x = digital.astype(float)
    x[200:264] = np.nan
    found = quality(digital, x)
    assert found.flat == pytest.approx(0.4)
    assert found.clipped == pytest.approx(0.1)
    assert found.missing == pytest.approx(64 / 1280)
    assert found.out_of_range == pytest.approx(0.1)


@pytest.mark.parametrize(("hz", "share"), [(60, 1.0), (50, 1.0), (35, 0.0)])
def test_8_quality_tells_mains(hz, share):
    x = 40 * tone(hz, 256.0)
    assert quality(x.astype(int), x, 256.0).mains == pytest.approx(share, abs=0.02)


# ------------------------------------------------------------------ standardising
def epochs(seed=0):
    """Two epochs of 16 channels in physical units; only three channels recorded."""
    rng = np.random.default_rng(seed)
    x = np.zeros((2, 16, 3840))
    present = np.zeros((2, 16), bool)
    present[:, [C3, SPO2, BELT]] = True
    x[:, C3] = rng.normal(0, 40e-6, (2, 3840))
    x[:, SPO2] = rng.choice([94.0, 95.5, 97.0], (2, 3840))
    x[:, BELT] = 5 + 3 * tone(0.3, 128.0, 60).reshape(2, 3840)
    return x, present


def test_5_physical_channels_take_population_statistics():
    x, present = epochs()
    signals, center, scale = standardise_epochs(x, present)
    assert (center[0, C3], scale[0, C3]) == (CHANNELS[C3].mean, CHANNELS[C3].sd)
    expected = (x[:, SPO2] - CHANNELS[SPO2].mean) / CHANNELS[SPO2].sd
    np.testing.assert_allclose(signals[:, SPO2], expected, atol=1e-3)


def test_5_channels_of_arbitrary_gain_do_not_depend_on_it():
    x, present = epochs()
    louder = x.copy()
    louder[:, BELT] = 1000 * louder[:, BELT] - 70_000
    first, second = (standardise_epochs(each, present)[0][:, BELT] for each in (x, louder))
    np.testing.assert_allclose(first, second, atol=2e-3)
    assert 0.5 < first.astype(float).std() < 2


def test_5_outliers_are_clipped_and_leave_the_scale_alone():
    x, present = epochs()
    spoilt = x.copy()
    spoilt[0, BELT, 800:810] = 1e9  # the calibration outliers of CAPNO, SNORE and C-FLOW
    clean, dirty = (standardise_epochs(each, present, clip=20.0)[0] for each in (x, spoilt))
    assert dirty[0, BELT, 800:810].tolist() == [20.0] * 10
    np.testing.assert_allclose(dirty[1, BELT], clean[1, BELT], atol=0.02)


def test_5_a_cannula_that_is_off_half_the_night_still_has_a_scale():
    x = np.zeros((4, 3840))
    x[0] = 38 * (tone(0.3, 128.0, 30) > 0)
    _, scale = robust_standard(x)
    assert 5 < scale < 20


def test_5_the_original_scaling_is_the_table_for_all():
    x, present = epochs()
    _, center, scale = standardise_epochs(x, present, scaling="original")
    assert (center[0, BELT], scale[0, BELT]) == (CHANNELS[BELT].mean, CHANNELS[BELT].sd)


def test_5_fitted_statistics_are_taken_where_there_are_any():
    fitted = {"EEG C3-M2": (1e-6, 3e-5)}
    x = np.zeros((1, 3840))
    assert choose_standard(CHANNELS[C3], x, "fitted", fitted) == (1e-6, 3e-5)
    assert choose_standard(CHANNELS[SPO2], x, "fitted", fitted)[0] == CHANNELS[SPO2].mean


def test_5_an_undone_float16_signal_agrees_with_the_recording_to_the_edf_step():
    # 8711 uV / 32768 is NCH's step; |z| < 4 is where float16 is finer.
    step = 2 * 8711e-6 / 65535
    x, present = epochs()
    x[:, C3] = np.round(x[:, C3] / step) * step
    signals, center, scale = standardise_epochs(x, present)
    assert np.abs(signals[:, C3]).max() < 4
    undone = undo_standard(signals, center, scale)
    assert np.abs(undone[:, C3] - x[:, C3]).max() < step / 2
    assert np.abs(undone[:, SPO2] - x[:, SPO2]).max() < 0.01


def test_5_absent_channels_are_zero():
    signals, center, scale = standardise_epochs(*epochs())
    absent = [c for c in range(16) if c not in (C3, SPO2, BELT)]
    assert not signals[:, absent].any()
    assert (center[:, absent] == 0).all()
    assert (scale[:, absent] == 1).all()


def test_0_3_a_rate_without_a_common_grid_keeps_a_second_before_the_first_epoch():
    rate_hz = 921 / 3.59766
    for native in (80_000, 80_001, 81_234):
        onset_s = native / rate_hz
        assert onset_s - grid_start(onset_s, rate_hz) / rate_hz >= 1
