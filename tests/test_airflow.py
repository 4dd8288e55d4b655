"""Of several flow sensors the first that shows breaths is the airflow, scaled by itself."""

import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pytest
from edf_files import Signal, nch_file, stage_rows, write_tsv

from pedsleepmae import examples_from_raw
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.prepare import layouts
from pedsleepmae.prepare.examples import ExampleSettings, build_examples
from pedsleepmae.prepare.readings import BREATHING, breathing_share, shows_breaths
from pedsleepmae.prepare.studies import fingerprint

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FLOW = CHANNEL_NAMES.index("C-FLOW")
RATE_HZ, SECONDS = 64, 600
PREFER = {"C-FLOW": ["Resp PTAF", "Resp Airflow"]}


def breaths(per_minute=18.0, amplitude=3000.0, noise=300.0, rate_hz=RATE_HZ, seconds=SECONDS):
    """A sine in white noise, digital, (n,) int16; ``noise``: its sd were the rate 256 Hz."""
    t_s = np.arange(seconds * rate_hz) / rate_hz
    noise *= np.sqrt(rate_hz / 256)
    x = amplitude * np.sin(2 * np.pi * per_minute / 60 * t_s)
    return np.rint(x + np.random.default_rng(1).normal(0, noise, len(t_s))).astype(np.int16)


def last_digits(largest=1, n=SECONDS * RATE_HZ):
    """A device that is on and measures nothing: digits that flicker around zero."""
    return np.random.default_rng(2).integers(-largest, largest + 1, n).astype(np.int16)


def until(share: float, x: np.ndarray, rest: np.ndarray | int = 0) -> np.ndarray:
    """``x`` for the first share of the time, then ``rest``."""
    return np.where(np.arange(len(x)) < share * len(x), x, rest).astype(np.int16)


# ------------------------------------------------------------------ what carries signal
@pytest.mark.parametrize("per_minute", [7, 12, 20, 40, 58])
@pytest.mark.parametrize("rate_hz", [10, 25, 256, 512])
def test_breaths_in_noise_are_seen_at_every_usual_rate(per_minute, rate_hz):
    assert breathing_share(breaths(per_minute, rate_hz=rate_hz), rate_hz) == 1


def test_a_silent_device_shows_no_breath():
    rng = np.random.default_rng(3)
    n = SECONDS * RATE_HZ
    slow_digit = np.rint(2 * np.sin(2 * np.pi * 0.3 * np.arange(n) / RATE_HZ))  # -2 to 2
    silent = {
        "flat": np.full(n, 7),
        "last digit": last_digits(),
        "last digits, in the rhythm of breaths": slow_digit,
        "open input": rng.normal(0, 400, n),
        "drift": np.cumsum(rng.normal(0, 30, n)),
        "mains": 900 * np.sin(2 * np.pi * 25 * np.arange(n) / RATE_HZ),
    }
    shares = {what: breathing_share(np.rint(x), RATE_HZ) for what, x in silent.items()}
    assert shares == dict.fromkeys(silent, 0)


def test_the_share_is_that_of_the_time_with_breaths():
    assert breathing_share(until(0.5, breaths()), RATE_HZ) == 0.5  # 10 of 20 half minutes
    assert breathing_share(until(0.3, breaths(), last_digits()), RATE_HZ) == pytest.approx(0.3)


def test_half_a_minute_with_an_apnea_of_15_s_still_shows_the_breaths_around_it():
    x = breaths(noise=60.0, seconds=30)
    x[7 * RATE_HZ : 22 * RATE_HZ] = 0
    assert shows_breaths(x[None], RATE_HZ).all()


def test_gain_and_offset_of_the_sensor_do_not_matter():
    x = np.stack([breaths(seconds=30), last_digits(400, 30 * RATE_HZ)]).astype(np.float64)
    for gain, offset in ((1e-7, 0.0), (-1e-7, 2e-4), (1e4, -1e7)):
        assert shows_breaths(gain * x + offset, RATE_HZ).tolist() == [True, False]


# ------------------------------------------------------------------ which sensor is taken
def study_of(folder: Path, **sensors):
    """A recording with the 16 channels as noise and flow sensors as given, of 20 scored epochs."""
    file = nch_file(seconds=SECONDS, rate_hz=RATE_HZ)
    names = {"c_flow": "C-FLOW", "ptaf": "Resp PTAF", "airflow": "Resp Airflow"}
    file.signals = [s for s in file.signals if s.label != "C-FLOW"]
    for name, digital in sensors.items():
        file.signals.append(Signal(names[name], digital, 4 * RATE_HZ))
    file.write(folder / "5_6.edf")
    write_tsv(folder / "5_6.tsv", stage_rows(0.0, "23" * 10))
    (study,) = layouts.find_studies(folder, "nch")
    return study


def examples_of(study, prefer=PREFER, **settings):
    return build_examples(study, ExampleSettings(prefer=prefer, **settings))


def test_the_first_sensor_that_shows_breaths_is_taken_and_the_others_are_told(tmp_path):
    sensors = {"c_flow": last_digits(), "ptaf": last_digits(), "airflow": breaths()}
    examples, outcome = examples_of(study_of(tmp_path, **sensors))
    assert outcome.channels["C-FLOW"] == "preferred Resp Airflow"
    assert outcome.remarks == [
        "C-FLOW is from preferred Resp Airflow: Resp PTAF: too little breathing (0% of the time)"
    ]
    sine = np.sin(2 * np.pi * 0.3 * np.arange(3840) / 128)  # 18 a minute: 9 whole breaths an epoch
    for x_T in examples.signals[:, FLOW].astype(float):
        assert abs(np.corrcoef(x_T, sine)[0, 1]) > 0.98


def test_without_the_setting_the_channel_is_what_the_paper_took(tmp_path):
    study = study_of(tmp_path, c_flow=last_digits(), ptaf=breaths(), airflow=breaths())
    examples, outcome = examples_of(study, prefer={})
    assert outcome.channels["C-FLOW"] == "C-FLOW"
    assert not outcome.remarks
    assert examples.present[:, FLOW].all()


def test_a_sensor_of_most_of_the_night_goes_before_one_of_the_smaller_part(tmp_path):
    sensors = {"ptaf": until(0.4, breaths(), last_digits(30)), "airflow": breaths()}
    _, outcome = examples_of(study_of(tmp_path, **sensors))
    assert outcome.channels["C-FLOW"] == "preferred Resp Airflow"
    assert "Resp PTAF: too little breathing (40% of the time)" in outcome.remarks[0]


def test_a_sensor_of_the_smaller_part_goes_before_none_and_is_missing_where_it_is_flat(tmp_path):
    sensors = {"c_flow": last_digits(), "ptaf": until(0.4, breaths()), "airflow": last_digits()}
    examples, outcome = examples_of(study_of(tmp_path, **sensors))
    assert outcome.channels["C-FLOW"] == "preferred Resp PTAF"
    assert "Resp PTAF: too little breathing (40% of the time)" in outcome.remarks[0]
    assert examples.present[:, FLOW].tolist() == [True] * 8 + [False] * 12


def test_the_channel_itself_is_taken_where_no_preferred_sensor_breathes(tmp_path):
    _, outcome = examples_of(study_of(tmp_path, c_flow=breaths(), ptaf=last_digits()))
    assert outcome.channels["C-FLOW"] == "C-FLOW"
    assert outcome.remarks == [
        "C-FLOW is from C-FLOW: Resp PTAF: too little breathing (0% of the time)"
    ]


def test_where_nothing_breathes_the_channel_is_absent_and_each_sensor_that_was_tried_is_named(
    tmp_path,
):
    sensors = {"c_flow": last_digits(), "ptaf": last_digits(200), "airflow": last_digits(0)}
    examples, outcome = examples_of(study_of(tmp_path, **sensors))
    assert not examples.present[:, FLOW].any()
    assert outcome.absent["C-FLOW"] == "; ".join(
        f"{label}: too little breathing (0% of the time)"
        for label in ("Resp PTAF", "Resp Airflow", "C-FLOW")
    )


def test_only_flow_and_effort_must_show_breaths(tmp_path):
    study = study_of(tmp_path, ptaf=breaths())
    _, outcome = examples_of(study, prefer={"SNORE": ["EEG C3-M2"], "RESP THORACIC": ["CAPNO"]})
    assert outcome.channels["SNORE"] == "preferred EEG C3-M2"
    assert "CAPNO: too little breathing" in outcome.absent["RESP THORACIC"]


# ------------------------------------------------------------------ scale
@pytest.mark.parametrize("scaling", ["policy", "robust", "original", "fitted"])
def test_whatever_the_scaling_a_preferred_sensor_has_the_scale_of_its_own_breaths(
    tmp_path, scaling
):
    # It falls off at half time and leaves noise of a thirtieth. The quartiles of a sine are
    # +-0.7071 of its amplitude, so the amplitude becomes 1.3490 / 1.4142 = 0.954.
    ptaf = until(0.5, breaths(noise=20.0), last_digits(100))
    study = study_of(tmp_path, ptaf=ptaf, airflow=last_digits())
    settings = ExampleSettings(prefer=PREFER, scaling=scaling)
    examples, outcome = build_examples(study, settings, {"C-FLOW": (40.0, 1700.0)})
    assert outcome.channels["C-FLOW"] == "preferred Resp PTAF"
    x_NT = examples.signals[:, FLOW].astype(float)
    amplitude_N = np.sqrt(2) * x_NT.std(axis=1)
    np.testing.assert_allclose(amplitude_N[:10], 0.954, atol=0.02)
    assert amplitude_N[10:].max() < 0.05
    in_volts = examples.scale[0, FLOW] * 0.954  # 3000 digits of 2 * 8711 uV / 65535
    assert in_volts == pytest.approx(3000 * 2 * 8711e-6 / 65535, rel=0.02)


# ------------------------------------------------------------------ where it shows
def test_a_changed_preference_makes_a_finished_recording_anew(tmp_path):
    study = study_of(tmp_path, ptaf=breaths())
    marks = {
        fingerprint(study, ExampleSettings(prefer=prefer))
        for prefer in ({}, PREFER, {"C-FLOW": ["Resp Airflow", "Resp PTAF"]})
    }
    assert len(marks) == 3


def test_the_inspection_says_which_sensor_was_taken_and_why_not_another(tmp_path):
    study = study_of(tmp_path, c_flow=last_digits(), ptaf=last_digits(), airflow=breaths())
    command = [sys.executable, ROOT / "1_prepare_dataset.py", "--inspect", study.edf]
    command += ["--config", ROOT / "configs" / "prepare_airflow.yaml"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    row = next(line for line in told.splitlines() if line.startswith("C-FLOW "))
    assert "preferred Resp Airflow" in row
    assert "Resp PTAF: too little breathing" in told


def test_a_raw_of_mne_gives_the_same_airflow_as_its_file(tmp_path):
    study = study_of(tmp_path, c_flow=last_digits(), ptaf=last_digits(), airflow=breaths())
    raw = mne.io.read_raw_edf(study.edf, preload=True, verbose="error")
    plain, chosen = (examples_from_raw(raw, prefer=prefer) for prefer in (None, PREFER))
    from_file, _ = examples_of(study)
    np.testing.assert_allclose(chosen.signals[:, FLOW], from_file.signals[:, FLOW], atol=0.01)
    assert np.abs(plain.signals[:, FLOW] - chosen.signals[:, FLOW]).max() > 1


@pytest.mark.skipif(not (SHARED / "psg").exists(), reason="no ../shared/psg: recording absent")
def test_a_real_cannula_and_real_belts_show_breaths_and_real_eeg_and_light_do_not():
    from pedsleepmae.prepare.recordings import open_edf

    recording = open_edf(SHARED / "psg" / "nox_a1_rsleep" / "subject1.edf")
    shares = {
        signal.label: breathing_share(recording.read_digital(i), signal.rate_hz)
        for i, signal in enumerate(recording.signals)
        if not signal.problem and signal.rate_hz >= 1
    }
    for label in ("Nasal Pressure", "Airflow", "Chest", "Abdomen", "RIP Flow"):
        assert shares[label] > BREATHING[0]
    for label in ("Light", "Snoring", "C3-M2", "Activity", "Voltage (core)"):
        assert shares[label] < BREATHING[1]
