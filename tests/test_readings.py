"""What is no reading is never a signal: wrong units, an oximeter that is off, lost belts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edf_files import Signal, nch_file, stage_rows, write_tsv

from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.prepare import layouts
from pedsleepmae.prepare.annotations import scoring_from_rows
from pedsleepmae.prepare.examples import ExampleSettings, build_examples, choose_epochs
from pedsleepmae.prepare.readings import (
    electrode_baseline,
    hold_short_gaps,
    is_reading,
    judge_voltage,
    runs_of,
)
from pedsleepmae.prepare.recordings import Recording
from pedsleepmae.prepare.signals import undo_standard

SPO2, CAPNO, CHEST, EEG = (
    CHANNEL_NAMES.index(n) for n in ("SPO2", "CAPNO", "RESP THORACIC", "EEG C3-M2")
)
SECONDS = 600


def examples_of(folder: Path, file, **settings):
    file.write(folder / "5_6.edf")
    write_tsv(folder / "5_6.tsv", stage_rows(0.0, "23" * 10))
    (study,) = layouts.find_studies(folder, "nch")
    return build_examples(study, ExampleSettings(**settings))


def with_signal(channel: int, x: np.ndarray, unit: str, low: float, high: float):
    """A file of noise whose ``channel`` holds ``x`` at 4 samples a second."""
    file = nch_file(seconds=SECONDS)
    digital = np.round((x - low) / (high - low) * 65535 - 32768).astype(np.int16)
    label = file.signals[channel].label
    file.signals[channel] = Signal(label, digital, 16, unit, (f"{low:g}", f"{high:g}"))
    return file


def in_units(file, unit: str, physical: tuple[str, str]):
    for signal in file.signals:
        if signal.label.startswith(("EEG", "EOG", "EMG")):
            signal.unit, signal.physical = unit, physical
    return file


# ------------------------------------------------------------------ voltages
@pytest.mark.parametrize(
    ("unit", "physical", "likely"),
    [("V", ("8711", "-8711"), "uV"), ("mV", ("8711", "-8711"), "uV"),
     ("uV", ("0.00871", "-0.00871"), "V"), ("uV", ("8.711", "-8.711"), "mV")],
)  # fmt: skip
def test_numbers_that_no_electrode_gives_are_absent_with_the_likely_unit(
    tmp_path, unit, physical, likely
):
    file = in_units(nch_file(seconds=SECONDS), unit, physical)
    examples, outcome = examples_of(tmp_path, file)
    for name in CHANNEL_NAMES:
        if name.startswith(("EEG", "EOG", "EMG")):
            assert f"under {likely}; the setting units puts it right" in outcome.absent[name]
    assert examples.present.sum(axis=1).tolist() == [6] * 20
    wrong = examples.signals[:, EEG]
    assert not wrong.any()


def test_the_setting_units_puts_a_wrong_unit_right(tmp_path):
    right, _ = examples_of(tmp_path / "a", nch_file(seconds=SECONDS))
    file = in_units(nch_file(seconds=SECONDS), "V", ("8711", "-8711"))
    units = {"EEG": "uV", "EOG": "uV", "EMG CHIN1-CHIN2": "uV"}
    mended, outcome = examples_of(tmp_path / "b", file, units=units)
    assert not outcome.absent
    np.testing.assert_array_equal(mended.signals, right.signals)


@pytest.mark.parametrize(
    ("swing_v", "used"), [(3e-7, True), (1e-3, True), (1.5e-5, True), (5e-8, False)]
)
def test_between_usual_and_impossible_a_channel_is_used_and_remarked_on(swing_v, used):
    refused, remark = judge_voltage("EEG", swing_v, "uV")
    assert bool(refused) is not used
    assert bool(remark) is (used and not 5e-7 <= swing_v <= 5e-4)


# ------------------------------------------------------------------ oximeter
@pytest.mark.parametrize("code", [0.0, 0.1, 102.0, 127.0])
def test_an_oximeter_that_is_off_is_missing_and_no_desaturation(tmp_path, code):
    t = np.arange(SECONDS * 4) / 4
    x = np.where((t // 60) % 3 == 1, code, 96 + np.sin(t / 40))
    examples, outcome = examples_of(tmp_path, with_signal(SPO2, x, "%", 0, 130))
    percent = undo_standard(examples.signals, examples.center, examples.scale)[:, SPO2]
    off = (30 * np.arange(20) // 60) % 3 == 1
    assert examples.present[:, SPO2].tolist() == (~off).tolist()
    assert np.nanmin(percent[~off]) > 94.5
    assert np.nanmax(percent[~off]) < 97.5
    assert outcome.quality["SPO2"]["missing"] == pytest.approx(off.mean(), abs=0.02)


def test_a_gap_within_an_epoch_is_marked_and_a_short_one_held(tmp_path):
    t = np.arange(SECONDS * 4) / 4
    x = np.full(len(t), 97.0)
    x[(t >= 32) & (t < 44)] = 0.0  # 12 s: missing
    x[(t >= 65) & (t < 70)] = 127.0  # 5 s: held
    examples, _ = examples_of(tmp_path, with_signal(SPO2, x, "%", 0, 130))
    percent = undo_standard(examples.signals, examples.center, examples.scale)[:, SPO2]
    missing = np.isnan(percent)
    assert missing[1].sum() == 12 * 128
    assert missing[1, 2 * 128 : 14 * 128].all()
    assert not missing[2].any()
    np.testing.assert_allclose(percent[2], 97, atol=0.1)
    assert examples.present[:3, SPO2].all()


def test_a_step_that_no_blood_makes_is_no_reading_but_a_deep_desaturation_is():
    x = np.full(600 * 4, 97.0)
    x[400:640] = 70.0  # a jump of 27 % within a sample
    x[1200:1280] = 97 - np.arange(80) / 4  # 1 % a second, down to 77 %
    x[1280:1360] = 77 + np.arange(80) / 4
    assert [(a // 4, b // 4) for a, b in runs_of(~is_reading(x, 4.0))] == [(99, 160)]


def test_a_level_that_stays_is_believed():
    x = np.full(900, 97.0)
    x[300:] = 80.0
    assert is_reading(x, 1.0).all()


def test_gaps_are_held_at_the_reading_before_them():
    x = np.array([95.0, 96, 0, 0, 97, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 98])
    held, missing = hold_short_gaps(x, x > 50, rate_hz=1.0)
    assert held[:5].tolist() == [95, 96, 96, 96, 97]
    assert np.flatnonzero(missing).tolist() == list(range(5, 16))


# ------------------------------------------------------------------ lost channels
@pytest.mark.parametrize("channel", [CAPNO, CHEST, EEG])
def test_a_channel_that_is_lost_for_minutes_is_missing_there(tmp_path, channel):
    rng = np.random.default_rng(0)
    t = np.arange(SECONDS * 4) / 4
    x = np.where((t >= 120) & (t < 240), 0.0, 50 * np.sin(t * 2) + rng.normal(0, 20, len(t)))
    examples, outcome = examples_of(tmp_path, with_signal(channel, x, "uV", -500, 500))
    assert examples.present[:, channel].tolist() == [not 4 <= i < 8 for i in range(20)]
    assert not examples.signals[4:8, channel].any()
    name = CHANNEL_NAMES[channel]
    assert outcome.quality[name]["missing"] == pytest.approx(0.2, abs=0.02)


def test_the_flat_line_of_an_apnea_is_a_signal(tmp_path):
    t = np.arange(SECONDS * 4) / 4
    x = np.where((t >= 120) & (t < 160), 0.0, 38 * (np.sin(t * 2) > 0))
    examples, _ = examples_of(tmp_path, with_signal(CAPNO, x, "mmHg", -10, 100))
    assert examples.present[:, CAPNO].all()
    assert np.isfinite(examples.signals[:, CAPNO]).all()


# ------------------------------------------------------------------ other units, slow signals
@pytest.mark.parametrize("unit", ["microV", "uVolt", "u V", "Microvolts"])
def test_a_unit_that_is_written_out_is_that_unit(tmp_path, unit):
    right, _ = examples_of(tmp_path / "a", nch_file(seconds=SECONDS))
    file = in_units(nch_file(seconds=SECONDS), unit, ("8711", "-8711"))
    same, outcome = examples_of(tmp_path / "b", file)
    assert not outcome.absent
    np.testing.assert_array_equal(same.signals, right.signals)


@pytest.mark.parametrize(("unit", "scale"), [("mm Hg", 1), ("Torr", 1), ("kPa", 1 / 7.5)])
def test_a_code_of_a_capnograph_is_missing_in_any_unit_of_pressure(tmp_path, unit, scale):
    t = np.arange(SECONDS * 4) / 4
    x = np.where((t >= 120) & (t < 150), 999, 38 * (np.sin(np.pi * t / 2) > 0) + np.sin(t)) * scale
    limit = round(1000 * scale)
    file = with_signal(CHANNEL_NAMES.index("CAPNO"), x, unit, -limit, limit)
    examples, _ = examples_of(tmp_path, file)
    assert examples.present[:, CHANNEL_NAMES.index("CAPNO")].tolist() == [i != 4 for i in range(20)]


def test_a_signal_too_slow_for_an_eeg_is_none(tmp_path):
    file = nch_file(seconds=SECONDS)
    file.signals[0].digital, file.signals[0].per_record = file.signals[0].digital[::256], 4
    examples, outcome = examples_of(tmp_path, file)
    assert "1 Hz is too slow for EEG" in outcome.absent["EEG C3-M2"]
    assert not examples.present[:, 0].any()


# ------------------------------------------------------------------ annotations of another night
def scored(folder: Path, rows: list, **fields):
    nch_file(seconds=300, **fields).write(folder / "1_2.edf")
    write_tsv(folder / "1_2.tsv", rows)
    (study,) = layouts.find_studies(folder, "nch")
    return build_examples(study, ExampleSettings())


def test_epochs_and_events_outside_the_recording_are_told(tmp_path):
    rows = [*stage_rows(0, "2" * 12), (500, 20, "Central Apnea")]
    examples, outcome = scored(tmp_path, rows)
    assert len(examples) == 10
    assert "2 scored epochs left out that do not lie inside the recording" in outcome.remarks
    assert "1 scored events lie outside the recording and mark nothing" in outcome.remarks


def test_annotations_of_which_most_lie_outside_are_doubted_and_a_piece_of_a_night_is_kept(tmp_path):
    examples, outcome = scored(tmp_path, stage_rows(0, "2" * 60))
    assert len(examples) == 10
    (remark,) = [remark for remark in outcome.remarks if "inside the recording" in remark]
    assert remark.startswith("50 scored epochs left out that do not lie inside the recording, and")
    assert "only 10 do: are the annotations another recording's" in remark


# ------------------------------------------------------------------ amplifiers and exports
def with_physical(channel: int, digital: np.ndarray, unit: str, physical: tuple[str, str]):
    """A file of noise whose ``channel`` has these samples at 256 Hz."""
    file = nch_file(seconds=SECONDS)
    label = file.signals[channel].label
    file.signals[channel] = Signal(label, digital.astype(np.int16), 1024, unit, physical)
    return file


def test_the_electrodes_own_voltage_is_taken_off_a_signal_that_passes_direct_current(tmp_path):
    n = 256 * SECONDS
    eeg = np.random.default_rng(0).normal(0, 20, n)  # steps of 1 uV
    drift = 5000 + 400 * np.sin(2 * np.pi * np.arange(n) / n)  # 5 mV would be 34 sd of EEG
    physical = ("-32768", "32767")
    wanted, _ = examples_of(tmp_path / "a", with_physical(EEG, eeg, "uV", physical))
    found, outcome = examples_of(tmp_path / "b", with_physical(EEG, eeg + drift, "uV", physical))
    off = found.signals[:, EEG].astype(float) - wanted.signals[:, EEG]
    assert np.abs(off[1:-1]).max() < 0.1  # of 1.5e-4 V
    assert np.abs(off).max() < 0.5  # at the ends the drift, 4 uV a second, is not known
    assert any("voltage of 5 mV is taken off" in remark for remark in outcome.remarks)
    assert outcome.quality["EEG C3-M2"]["out_of_range"] == 0


def test_what_moves_by_millivolts_in_minutes_is_no_voltage_of_electrodes():
    rate_hz, n = 64, 64 * 600
    ramp = np.linspace(-3e-3, 3e-3, n)
    assert electrode_baseline(ramp, rate_hz) is None
    for seconds in (600, 40, 10):
        steady = np.full(rate_hz * seconds, 5e-3)
        assert electrode_baseline(steady, rate_hz) == pytest.approx(5e-3)


def test_steps_coarser_than_the_signal_leave_no_signal(tmp_path):
    eeg = np.random.default_rng(0).normal(0, 20e-6, 256 * SECONDS)
    digital = np.round(eeg / 100e-6)  # what a writer makes whose range holds an offset of 3 V
    file = with_physical(EEG, digital, "uV", ("-3276800", "3276700"))
    examples, outcome = examples_of(tmp_path, file)
    assert "one digital step is 100 uV" in outcome.absent["EEG C3-M2"]
    assert not examples.present[:, EEG].any()


def test_a_pulse_wave_under_an_oximeters_name_is_no_saturation(tmp_path):
    t = np.arange(256 * SECONDS) / 256
    wave = 50 + 45 * np.sin(2 * np.pi * 1.3 * t) ** 3
    digital = wave / 100 * 65535 - 32768
    examples, outcome = examples_of(tmp_path, with_physical(SPO2, digital, "%", ("0", "100")))
    assert outcome.absent["SPO2"] == "Spo2: a pulse wave, no saturation"
    assert not examples.present[:, SPO2].any()


def test_a_second_signal_under_the_oximeters_name_is_read_where_the_first_is_its_wave(tmp_path):
    file = nch_file(seconds=SECONDS)
    wave = 20_000 * np.sin(2 * np.pi * 1.3 * np.arange(256 * SECONDS) / 256)
    file.signals.insert(0, Signal("SpO2", wave.astype(np.int16), 1024, "%", ("0", "100")))
    examples, outcome = examples_of(tmp_path, file)
    assert outcome.channels["SPO2"]
    percent = undo_standard(examples.signals, examples.center, examples.scale)[:, SPO2]
    assert np.median(percent) == pytest.approx(95.8, abs=0.1)


@pytest.mark.parametrize(("n", "events", "told"), [(130, [], 1), (110, [], 0), (130, [5.0], 0)])
def test_hours_of_sleep_without_any_event_are_told(n, events, told):
    night = Recording("1_2.edf", 1e4, [], read_digital=None)
    rows = [*stage_rows(0.0, "2" * n), *((onset_s, 3.0, "EEG arousal") for onset_s in events)]
    choose_epochs(night, scoring_from_rows(rows), wake_margin_min=None)
    assert len(night.remarks) == told
    assert all("no event is scored in 1.1 h of sleep" in remark for remark in night.remarks)


@pytest.mark.parametrize(
    ("name", "rate_hz", "told"),
    [("EMG CHIN1-CHIN2", 1, "1 Hz does not show muscle"), ("EMG CHIN1-CHIN2", 64, ""),
     ("EEG C3-M2", 16, "16 Hz does not show spindles"), ("EEG C3-M2", 64, ""),
     ("EOG LOC-M2", 8, "8 Hz does not show eye movements"),
     ("RESP THORACIC", 1, "1 Hz does not show breaths"), ("RESP THORACIC", 4, "")],
)  # fmt: skip
def test_a_rate_too_low_for_what_is_scored_is_told(tmp_path, name, rate_hz, told):
    file, place = nch_file(seconds=SECONDS), CHANNEL_NAMES.index(name)
    digital = file.signals[place].digital[: SECONDS * rate_hz]
    file.signals[place] = replace(file.signals[place], digital=digital, per_record=4 * rate_hz)
    examples, outcome = examples_of(tmp_path, file)
    assert examples.present[:, place].all()
    found = [remark for remark in outcome.remarks if "does not show" in remark]
    assert len(found) == bool(told)
    assert all(told in remark for remark in found)
