"""Recordings to examples: right on every known quirk, restartable, nothing lost or hidden."""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import edfio
import h5py
import numpy as np
import pandas as pd
import pytest
from edf_files import EdfFile, Signal, nch_file, nch_study, stage_rows, write_tsv

from pedsleepmae import machine, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.prepare import channel_reader, layouts, run, studies, tables
from pedsleepmae.prepare import recordings as prepare_recordings
from pedsleepmae.prepare.examples import ExampleSettings, UnusableRecording, build_examples
from pedsleepmae.prepare.inspection import inspect_recording
from pedsleepmae.prepare.recordings import open_edf
from pedsleepmae.prepare.signals import undo_standard
from pedsleepmae.prepare.studies import fingerprint, finished_outcome, prepare_study
from pedsleepmae.splits import SPLITS

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ExampleSettings(
    layout="nch",
    stand_ins={},
    min_channels=4,
    min_overlap_s=0.0,
    keep_unscored=False,
    wake_margin_min=None,
    scaling="policy",
    clip=20.0,
)


def only_study(folder: Path, layout="nch"):
    (study,) = layouts.find_studies(folder, layout)
    return study


def run_script(
    folder: Path, *options, recordings=None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "1_prepare_dataset.py")]
    command += ["--paths.recordings_dir", str(recordings or folder / "Sleep_Data")]
    command += ["--paths.examples_dir", str(folder / "examples")]
    command += ["--paths.batches_dir", str(folder / "batches"), "--n_workers", "1", *options]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | (env or {}),
    )


def contents(folder: Path) -> dict:
    """Every dataset of every HDF5 file below a folder, and the tables, as bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".hdf5":
            with h5py.File(path) as file:
                for dataset in file:
                    found[name, dataset] = file[dataset][()].tobytes()
                for attribute, value in file.attrs.items():
                    found[name, "@" + attribute] = np.asarray(value).tobytes()
        elif path.suffix == ".csv":
            found[name] = path.read_bytes()
    return found


# ------------------------------------------------------------------ signals of examples
def test_0_5_examples_are_cut_at_the_stage_onsets(tmp_path):
    # A ramp in the CO2 channel tells the time of every sample: 1 digital step in 1/256 s.
    file = nch_file(seconds=240)
    n = len(file.signals[7].digital)
    file.signals[7] = Signal(
        "Capno", (np.arange(n) // 4 - 8000).astype(np.int16), 1024, "mmHg", ("-32768", "32767")
    )
    file.write(tmp_path / "5_6.edf")
    first_s = 40.9609375
    write_tsv(tmp_path / "5_6.tsv", stage_rows(first_s, "W23"))
    examples, _ = build_examples(only_study(tmp_path), SETTINGS)
    ramp = undo_standard(examples.signals, examples.center, examples.scale)[:, 7]
    for k in range(3):
        expected = (first_s + 30 * k + np.arange(3840) / 128) * 64 - 8000
        np.testing.assert_allclose(ramp[k, 50:-50], expected[50:-50], atol=8)
    assert examples.onsets_s.tolist() == [first_s, first_s + 30, first_s + 60]


@pytest.mark.parametrize(
    ("date", "clock"), [(b"01.01.01", b"23.59.58"), (b"31.12.99", b"00.00.00"), (b"XX.XX.XX", b"")]
)
def test_0_4_onsets_count_from_the_start_whatever_the_header_calls_it(tmp_path, date, clock):
    nch_study(tmp_path / "a", "5_6")
    nch_study(tmp_path / "b", "5_6", header={"startdate": date, "starttime": clock})
    first, second = (build_examples(only_study(tmp_path / f), SETTINGS)[0] for f in "ab")
    assert second.onsets_s.tolist() == first.onsets_s.tolist()
    np.testing.assert_array_equal(second.signals, first.signals)


def test_0_12_a_400_hz_recording_brings_neither_alias_nor_shift_into_the_examples(tmp_path):
    seconds = 120
    t = np.arange(seconds * 400) / 400
    file = nch_file(seconds=seconds, rate_hz=400)
    file.signals[0].digital = np.round(3000 * np.sin(2 * np.pi * 10 * t)).astype(np.int16)
    file.signals[1].digital = np.round(3000 * np.sin(2 * np.pi * 100 * t)).astype(np.int16)
    file.write(tmp_path / "5_6.edf")
    first_s = 12.0025  # a native sample, between two of 128 Hz
    write_tsv(tmp_path / "5_6.tsv", stage_rows(first_s, "22"))
    examples, _ = build_examples(only_study(tmp_path), SETTINGS)
    uv = undo_standard(examples.signals, examples.center, examples.scale)[:, :2] * 1e6
    height = 3000 * 2 * 8711 / 65535
    at = first_s + np.arange(3840) / 128
    expected = -height * np.sin(2 * np.pi * 10 * at)  # inverted calibration
    np.testing.assert_allclose(uv[0, 0], expected, atol=2e-3 * height)
    assert np.abs(uv[:, 1]).max() < 1  # plain decimation would leave all 797 uV, at 28 Hz


def test_0_2_the_sign_of_inverted_calibration_reaches_the_examples(tmp_path):
    file = nch_file(seconds=120)
    halves = np.repeat([3000, -3000], 60 * 256)
    file.signals[0].digital = (halves + np.arange(len(halves)) % 7).astype(np.int16)
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "2222"))
    examples, _ = build_examples(only_study(tmp_path), SETTINGS)
    microvolt = undo_standard(examples.signals, examples.center, examples.scale)[:, 0] * 1e6
    assert np.median(microvolt[0]) == pytest.approx(-3003 * 2 * 8711 / 65535, rel=1e-3)
    assert np.median(microvolt[3]) == pytest.approx(2997 * 2 * 8711 / 65535, rel=1e-3)


def test_2_chin2_chin1_is_turned_round(tmp_path):
    same, turned = tmp_path / "a", tmp_path / "b"
    labels = list(CHANNEL_NAMES)
    nch_study(same, "1_2", labels=labels)
    labels[15] = "EMG Chin2-Chin1"
    nch_study(turned, "1_2", labels=labels)
    first, second = (build_examples(only_study(f), SETTINGS)[0] for f in (same, turned))
    step = undo_standard(first.signals, first.center, first.scale)[:, 15]
    other = undo_standard(second.signals, second.center, second.scale)[:, 15]
    np.testing.assert_allclose(step, -other, atol=2e-6)


def test_2_a_derived_channel_is_the_difference_of_its_electrodes(tmp_path):
    labels = ["EEG C3", "EEG M2", "EEG O1", "EEG Chest", "EEG Abd"]
    file = nch_file(seconds=120, labels=labels).write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "222"))
    examples, outcome = build_examples(only_study(tmp_path), SETTINGS)
    assert outcome.channels["EEG C3-M2"] == "EEG C3 - EEG M2"
    assert outcome.channels["EEG O1-M2"] == "EEG O1 - EEG M2"
    recording = open_edf(file)
    from pedsleepmae.prepare.signals import resample

    expected = resample(recording.read(0) - recording.read(1), 256.0, step_hold=False) * 1e-6
    undone = undo_standard(examples.signals, examples.center, examples.scale)[0, 0]
    np.testing.assert_allclose(undone, expected[:3840], atol=3e-7)


def test_3_absent_channels_keep_the_study_down_to_min_channels(tmp_path):
    nch_study(tmp_path, "5_6", labels=list(CHANNEL_NAMES[:5]))
    study = only_study(tmp_path)
    examples, outcome = build_examples(study, SETTINGS)
    assert examples.present[0].tolist() == [True] * 5 + [False] * 11
    assert not examples.signals[:, 5:].any()
    assert "CAPNO" in outcome.absent
    with pytest.raises(UnusableRecording, match="only 5 channels, min_channels is 6"):
        build_examples(study, replace(SETTINGS, min_channels=6))


def test_0_8_a_flat_channel_is_absent_and_says_so(tmp_path):
    edf, _ = nch_study(tmp_path, "5_6")
    file = nch_file(seconds=180)
    file.signals[12].digital[:] = 12  # C-FLOW of a child without CPAP
    file.write(edf)
    examples, outcome = build_examples(only_study(tmp_path), SETTINGS)
    assert not examples.present[0, 12]
    assert "flat" in outcome.absent["C-FLOW"]


@pytest.mark.parametrize("rate_hz", [256, 400])
@pytest.mark.parametrize("first_s", [0.5, 40.0])
def test_0_8_the_filter_makes_no_signal_of_a_flat_channel(tmp_path, rate_hz, first_s):
    # 400 Hz: soxr's phases sum to slightly different values; at the ends of the file it rings.
    file = nch_file(seconds=92 if first_s < 1 else 180, rate_hz=rate_hz)
    file.signals[12].digital[:] = 12
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(first_s, "WR2"))
    examples, outcome = build_examples(only_study(tmp_path), SETTINGS)
    assert len(examples) == 3
    assert not examples.present[:, 12].any()
    assert "flat" in outcome.absent["C-FLOW"]


def test_2_a_voltage_tagged_osat_counts_percent(tmp_path):
    file = nch_file(seconds=180)
    file.signals[8] = replace(file.signals[8], label="OSAT", unit="uV")
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "22"))
    examples, outcome = build_examples(only_study(tmp_path), SETTINGS)
    percent = undo_standard(examples.signals, examples.center, examples.scale)[:, 8]
    assert outcome.channels["SPO2"] == "OSAT"
    assert np.median(percent) == pytest.approx(95.8, abs=0.1)


def test_2_an_oximeter_that_reads_nonsense_is_absent(tmp_path):
    file = nch_file(seconds=180)
    file.signals[8] = replace(file.signals[8], physical=("0", "5"))
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "22"))
    _, outcome = build_examples(only_study(tmp_path), SETTINGS)
    assert "does not read as %" in outcome.absent["SPO2"]


# ------------------------------------------------------------------ what cannot be used
def reason(tmp_path, **changes) -> str:
    outcome = prepare_study(
        replace(only_study(tmp_path), **changes), SETTINGS, tmp_path / "examples"
    )
    assert not outcome.usable
    assert outcome.n_examples == 0
    assert not (tmp_path / "examples" / "5_6").exists()
    return outcome.reason


def test_0_8_a_nul_filled_tsv_is_a_reason(tmp_path):
    nch_study(tmp_path, "5_6")
    (tmp_path / "5_6.tsv").write_bytes(b"\0" * 1000)
    assert "only NUL bytes" in reason(tmp_path)


def test_0_8_a_study_without_scored_stage_is_a_reason(tmp_path):
    nch_study(tmp_path, "5_6", stages="????")
    assert "no scored 30-s epoch" in reason(tmp_path)


def test_0_8_a_recording_shorter_than_its_scoring_is_a_reason(tmp_path):
    nch_file(seconds=20).write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "22"))
    assert "no scored 30-s epoch inside the recording (2 scored stage rows" in reason(tmp_path)


def test_a_torn_edf_is_a_reason(tmp_path):
    edf, _ = nch_study(tmp_path, "5_6")
    edf.write_bytes(edf.read_bytes()[:3000])
    assert "5_6.edf" in reason(tmp_path)


def test_a_recording_without_annotations_is_a_reason(tmp_path):
    nch_file(seconds=60).write(tmp_path / "5_6.edf")
    assert reason(tmp_path) == "no .tsv beside it"


def test_what_nobody_foresaw_costs_one_recording_only(tmp_path, monkeypatch):
    nch_study(tmp_path, "5_6")

    def fail(*args, **kwargs):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(channel_reader, "resample", fail)
    assert "unforeseen ZeroDivisionError: surprise" in reason(tmp_path)


def test_the_traceback_of_what_nobody_foresaw_is_kept_beside_the_state(tmp_path, monkeypatch):
    nch_study(tmp_path, "5_6")

    name = "Jane Doe"

    def fail_deep_inside(*args, **kwargs):
        raise ZeroDivisionError(name)

    examples = tmp_path / "examples"
    with monkeypatch.context() as broken:
        broken.setattr(channel_reader, "resample", fail_deep_inside)
        outcome = prepare_study(only_study(tmp_path), SETTINGS, examples)
    assert ".prepared/5_6.traceback.txt" in outcome.reason
    log = examples / ".prepared" / "5_6.traceback.txt"
    assert "in cut_channel" in log.read_text()
    assert "in fail_deep_inside" in log.read_text()
    assert "Jane" not in log.read_text()  # a message may quote what a file says of a patient
    assert prepare_study(only_study(tmp_path), SETTINGS, examples).usable
    assert not log.exists()


def test_a_finished_recording_of_unchanged_settings_stays_finished(tmp_path):
    # Values of PREPARE_VERSION 6: were they others, all that is prepared would be made anew.
    for name, size in (("5_6.edf", 300), ("5_6.tsv", 20)):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    study = layouts.Study(tmp_path / "5_6.edf", tmp_path / "5_6.tsv", 5, 6)
    assert fingerprint(study, run.PrepareSettings()) == "3eefcd352649277b"
    settings = run.PrepareSettings(
        stand_ins={"EEG F4-M1": ["EEG F4-M2"]},
        scaling="fitted",
        wake_margin_min=30.0,
        min_overlap_s=0.5,
        keep_unscored=True,
        n_workers=7,
        seed=3,
    )
    fitted = {"EEG C3-M2": (1e-6, 2e-4), "SPO2": (96.5, 3.25)}
    assert fingerprint(study, settings, fitted) == "00a48c05f2163709"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"of": "another version"}'])
def test_a_damaged_state_of_a_recording_counts_as_not_there(tmp_path, content):
    nch_study(tmp_path, "5_6")
    study, examples = only_study(tmp_path), tmp_path / "examples"
    settings = run.PrepareSettings()
    made = prepare_study(study, settings, examples)
    state = examples / ".prepared" / "5_6.json"
    assert finished_outcome(study, settings, examples) == made
    state.write_bytes(content)
    assert finished_outcome(study, settings, examples) is None


def test_control_characters_of_a_label_never_reach_the_terminal(tmp_path):
    file = nch_file(seconds=60)
    file.signals[0].label = "EEG C3-M2\x1b[2J"
    inspection = inspect_recording(file.write(tmp_path / "5_6.edf"), SETTINGS)
    assert "\x1b" not in inspection.text


# ------------------------------------------------------------------ layouts
@pytest.mark.parametrize(
    ("sleep", "health"), [("Sleep_Data", "Health_Data"), ("sleep_data", "health_data")]
)
def test_0_11_both_spellings_of_the_folders(tmp_path, sleep, health):
    nch_study(tmp_path / sleep, "5_6")
    (tmp_path / sleep / "5_6.annot").write_text("Sleep stage W\t0\t30\n")
    (tmp_path / sleep / "5_6.atr").write_bytes(b"\1\2")
    (tmp_path / sleep / "SHA256SUMS.txt").write_text("x")
    (tmp_path / health).mkdir()
    assert [study.key for study in layouts.find_studies(tmp_path, "nch")] == ["5_6"]
    for start in (tmp_path, tmp_path / sleep):
        assert layouts.find_health_dir(start).name == health


def test_0_10_health_tables_are_latin_1_and_dates_are_not_needed(tmp_path):
    (tmp_path / "SLEEP_STUDY.csv").write_bytes(
        b"STUDY_PAT_ID,SLEEP_STUDY_ID,SLEEP_STUDY_START_DATETIME,AGE_AT_SLEEP_STUDY_DAYS\n"
        b"5,6,2017-09-05 19:55:45,2400\n7,8,9/5/2017,redacted\nx,9,,1\n"
    )
    (tmp_path / "DEMOGRAPHIC.csv").write_bytes(
        b"STUDY_PAT_ID,PCORI_GENDER_CD,LANGUAGE_DESCR\n5,F,Espa\xf1ol\n5,F,English\n7,UN,x\n"
    )
    health = layouts.read_health(tmp_path)
    assert health["patient_id"].tolist() == [5, 7]
    assert health["age_days"].iloc[0] == 2400
    assert np.isnan(health["age_days"].iloc[1])
    assert health["sex"].tolist() == ["F", ""]


@pytest.mark.parametrize(
    "name", ["5.edf", "5_x.edf", "a_b.edf", "5_6_7.edf", "..5_6.edf", "٣_٤.edf"]
)
def test_a_name_that_is_not_two_numbers_is_listed_and_reaches_no_path(tmp_path, name):
    nch_file(seconds=12).write(tmp_path / "Sleep_Data" / name)
    (study,) = layouts.find_studies(tmp_path, "nch") or [None] if name[0] != "." else [None]
    if study is not None:
        assert "two whole numbers" in study.problem
        outcome = prepare_study(study, SETTINGS, tmp_path / "examples")
        assert outcome.reason == study.problem
        assert not (tmp_path / "examples").exists()


def test_the_same_study_twice_is_used_once(tmp_path):
    nch_study(tmp_path / "a", "5_6")
    nch_study(tmp_path / "b", "5_6")
    problems = [study.problem for study in layouts.find_studies(tmp_path, "nch")]
    assert problems == ["", "same patient and study as a/5_6.edf"]


def test_a_duplicate_recording_does_not_touch_the_good_ones_examples(tmp_path):
    nch_study(tmp_path / "a", "5_6")
    nch_study(tmp_path / "b", "5_6")
    found = layouts.find_studies(tmp_path, "nch")
    for study in found:  # the duplicate comes last
        prepare_study(study, SETTINGS, tmp_path / "examples")
    assert len(list((tmp_path / "examples" / "5_6").iterdir())) == 5
    again = finished_outcome(found[0], SETTINGS, tmp_path / "examples")
    assert again.usable


def test_linked_folders_are_searched_once(tmp_path):
    nch_study(tmp_path / "disk", "5_6")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Sleep_Data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk")
    assert [study.problem for study in layouts.find_studies(tmp_path / "data", "nch")] == [""]


def test_of_two_signals_with_one_label_the_one_that_holds_a_signal_is_taken(tmp_path):
    file = nch_file(seconds=120, labels=[*CHANNEL_NAMES[:6], "EEG C3-M2"])
    file.signals[0].digital[:] = 0
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "222"))
    examples, _ = build_examples(only_study(tmp_path), SETTINGS)
    assert examples.present[0, 0]
    assert examples.signals[:, 0].any()


@pytest.mark.parametrize(("second", "told"), [("other", True), ("same", False), ("flat", False)])
def test_a_second_signal_of_one_label_is_told_where_it_holds_something_else(tmp_path, second, told):
    file = nch_file(seconds=120, labels=[*CHANNEL_NAMES[:6], "eeg_C3-M2"])
    if second != "other":
        file.signals[6].digital[:] = file.signals[0].digital if second == "same" else 0
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "222"))
    _, outcome = build_examples(only_study(tmp_path), SETTINGS)
    remarks = [text for text in outcome.remarks if "several different signals" in text]
    assert bool(remarks) == told
    assert all("EEG C3-M2" in text for text in remarks)


def test_a_second_signal_of_an_electrode_that_is_subtracted_is_told(tmp_path):
    file = nch_file(seconds=120, labels=["C3", "M2", *CHANNEL_NAMES[1:6], "M2"])
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "222"))
    examples, outcome = build_examples(only_study(tmp_path), SETTINGS)
    assert examples.present[0, 0]
    remarks = [text for text in outcome.remarks if "several different signals" in text]
    assert len(remarks) == 1
    assert "EEG C3-M2 is from the first" in remarks[0]
    assert "labelled M2" in remarks[0]


def test_an_oximeter_is_judged_where_the_night_is_scored(tmp_path):
    file = nch_file(seconds=600)
    file.signals[8].digital[: 480 * 256] = -32768  # off until the child sleeps
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(500.0, "222"))
    examples, _ = build_examples(only_study(tmp_path), SETTINGS)
    assert examples.present[0, 8]


def test_a_worker_whose_run_was_killed_replaces_nothing(tmp_path):
    nch_study(tmp_path, "5_6")
    study, examples_dir = only_study(tmp_path), tmp_path / "examples"
    with machine.only_run_in(examples_dir, "paths.examples_dir"):
        first = machine.holder(examples_dir)
    with machine.only_run_in(examples_dir, "paths.examples_dir"):
        second = machine.holder(examples_dir)
        assert first != second
        prepare_study(study, SETTINGS, examples_dir, second)
        wanted = contents(examples_dir)
        other = replace(SETTINGS, scaling="original")
        prepare_study(study, other, examples_dir, first)  # the orphan, late
    assert contents(examples_dir) == wanted
    assert finished_outcome(study, SETTINGS, examples_dir) is not None


def test_what_may_pass_is_tried_again(tmp_path, monkeypatch):
    nch_study(tmp_path, "5_6")
    study = only_study(tmp_path)

    def fail(*args):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(studies, "build_examples", fail)
        outcome = prepare_study(study, SETTINGS, tmp_path / "examples")
    assert "Input/output error" in outcome.reason
    assert finished_outcome(study, SETTINGS, tmp_path / "examples") is None


def test_annotations_without_a_recording_are_listed(tmp_path):
    write_tsv(tmp_path / "5_6.tsv", stage_rows(0, "2"))
    assert only_study(tmp_path).problem == "annotations without a recording"


def test_6_chat_annotations_without_a_recording_are_listed(tmp_path):
    (tmp_path / "chat-followup-300002-nsrr.xml").write_text("<PSGAnnotation/>")
    study = only_study(tmp_path, "nsrr")
    assert (study.patient_id, study.problem) == (300002, "annotations without a recording")


@pytest.mark.parametrize(
    ("layout", "recording", "annotations"),
    [
        ("nch", "5_6.EDF", "5_6.TSV"),
        ("nsrr", "chat-baseline-300001.EDF", "chat-baseline-300001-nsrr.XML"),
        ("sleep_edf", "SC4001E0-PSG.EDF", "SC4001EC-HYPNOGRAM.EDF"),
    ],
)
def test_files_whose_names_end_in_capitals_are_paired(tmp_path, layout, recording, annotations):
    for name in (recording, annotations):
        (tmp_path / name).write_bytes(b"held")
    (study,) = layouts.find_studies(tmp_path, layout)
    assert (study.edf.name, study.annotations.name, study.problem) == (recording, annotations, "")
    assert layouts.find_annotations(study.edf) == study.annotations
    assert layouts.find_annotations(tmp_path / "elsewhere" / recording) is None


def test_6_chat_files_are_paired_by_name(tmp_path):
    name = "chat-baseline-nonrandomized-300001"
    nch_file(seconds=60).write(tmp_path / "edfs" / f"{name}.edf")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / f"{name}-nsrr.xml").write_text(
        "<PSGAnnotation><ScoredEvents><ScoredEvent><EventConcept>Stage 2 sleep|2</EventConcept>"
        "<Start>0</Start><Duration>60</Duration></ScoredEvent></ScoredEvents></PSGAnnotation>"
    )
    (tmp_path / "xml" / f"{name}-profusion.xml").write_text("<x/>")
    study = only_study(tmp_path, "nsrr")
    assert (study.patient_id, study.study_id, study.problem) == (300001, 3, "")
    examples, _ = build_examples(study, replace(SETTINGS, layout="nsrr"))
    assert examples.labels["sleep"].tolist() == [2, 2]


def test_6_fpz_referenced_mixed_rate_chat_signals_become_channels(tmp_path):
    def chat(label, rate_hz, value=0, unit="uV", physical=("-312", "312")):
        rng = np.random.default_rng(list(label.encode()))
        digital = value + rng.normal(0, 50, 60 * rate_hz)
        return Signal(label, digital.astype(np.int16), rate_hz, unit, physical)

    signals = [chat(name, 200) for name in ("C3", "M2", "E1", "Lchin", "Rchin", "Snore")]
    signals += [chat(name, 32) for name in ("Chest", "ABD")]
    signals += [chat("SaO2", 10, 31_000, "%", ("0", "101"))]
    EdfFile(signals, record_s="1", reserved="").write(tmp_path / "chat-baseline-300001.edf")
    (tmp_path / "chat-baseline-300001-nsrr.xml").write_text(
        "<PSGAnnotation><ScoredEvents><ScoredEvent><EventConcept>REM sleep|5</EventConcept>"
        "<Start>0</Start><Duration>60</Duration></ScoredEvent></ScoredEvents></PSGAnnotation>"
    )
    examples, outcome = build_examples(
        only_study(tmp_path, "nsrr"), replace(SETTINGS, layout="nsrr")
    )
    assert outcome.rates_hz == [10.0, 32.0, 200.0]
    wanted = {"EEG C3-M2", "EOG LOC-M2", "EMG CHIN1-CHIN2", "SNORE", "SPO2"}
    assert set(outcome.channels) == wanted | {"RESP THORACIC", "RESP ABDOMINAL"}
    assert examples.labels["sleep"].tolist() == [4, 4]


# ------------------------------------------------------------------ the whole script
def cohort(folder: Path, n: int = 6) -> Path:
    """n small studies of n - 1 patients, one unusable, with health data."""
    for i in range(n):
        nch_study(
            folder / "Sleep_Data", f"{min(i, n - 2) + 1}_{i + 11}", stages="W123R" * (i % 2 + 1)
        )
    nch_study(folder / "Sleep_Data", "99_99", stages="??")
    rows = [f"{min(i, n - 2) + 1},{i + 11},{1000 * (i + 1)}" for i in range(n)]
    health = folder / "Health_Data"
    health.mkdir(parents=True)
    (health / "SLEEP_STUDY.csv").write_text(
        "\n".join(["STUDY_PAT_ID,SLEEP_STUDY_ID,AGE_AT_SLEEP_STUDY_DAYS", *rows])
    )
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = cohort(tmp_path_factory.mktemp("cohort"))
    run = run_script(folder)
    assert run.returncode == 0, run.stderr
    return folder, run


def test_8_every_recording_found_has_a_row_and_the_unusable_one_a_reason(prepared):
    folder, run = prepared
    table = pd.read_csv(folder / "batches" / "studies.csv", keep_default_na=False)
    assert len(table) == 7
    assert table["status"].value_counts().to_dict() == {"used": 6, "unusable": 1}
    bad = table[table["status"] == "unusable"].iloc[0]
    assert bad["patient_id"] == 99
    assert "no scored 30-s epoch" in bad["reason"]
    assert (bad["rates"], bad["n_channels"]) == (256, 16)  # its header can be read
    assert bad["channels"].startswith("EEG C3-M2 = ")
    assert bad["duration_h"] > 0
    good = table[table["status"] == "used"]
    assert (good["reason"] == "").all()
    assert (good["n_examples"] > 0).all()
    assert good["age_days"].tolist() == ["1000", "2000", "3000", "4000", "5000", "6000"]
    assert "6 of 7 recordings" in run.stdout
    assert "no scored 30-s epoch" in run.stdout


def test_8_the_report_stands_alone_and_names_what_was_left_out(prepared):
    page = (prepared[0] / "batches" / "prepare_report.html").read_text()
    assert "99_99.edf" in page
    assert "data:image/png;base64," in page
    assert "http://" not in page
    assert "https://" not in page


def test_7_repeat_studies_of_a_patient_stand_together(prepared):
    index = store.load_index(prepared[0] / "batches")
    assert index.patient_disjoint
    assert set(index.study_ids[index.patient_ids == 5]) == {15, 16}
    assert len(set(index.split[index.patient_ids == 5])) == 1
    assert len(index) == 6 * 5 + 3 * 5


def test_batch_files_hold_the_examples_unchanged_and_mixed(prepared):
    folder, _ = prepared
    index = store.load_index(folder / "batches")
    assert set(Counter(index.file_of).values()) <= set(range(1, 129))
    for i in range(0, len(index), 7):
        key = f"{index.patient_ids[i]}_{index.study_ids[i]}"
        paths = sorted(
            (folder / "examples" / key).iterdir(), key=lambda p: int(p.stem.split("_")[-1])
        )
        example = store.read_examples(paths)
        (k,) = np.flatnonzero(example.onsets_s == index.onsets_s[i])
        np.testing.assert_array_equal(store.read_signals(index, [i])[0], example.signals[k])
        assert index.labels["sleep"][i] == example.labels["sleep"][k]
    train = index.rows("train")
    assert len(set(index.study_ids[train][:8])) > 1


def test_9_a_second_run_reads_nothing_and_changes_nothing(prepared):
    folder, _ = prepared
    before = contents(folder)
    times = {p: p.stat().st_mtime_ns for p in (folder / "batches").rglob("*.hdf5")}
    run = run_script(folder)
    assert run.returncode == 0
    assert "Preparing" not in run.stderr
    assert contents(folder) == before
    assert {p: p.stat().st_mtime_ns for p in (folder / "batches").rglob("*.hdf5")} == times


def test_strict_ends_with_3_when_something_was_left_out(prepared):
    assert run_script(prepared[0], "--strict").returncode == 3


def copied(prepared, tmp_path) -> Path:
    shutil.copytree(prepared[0], tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy"


def test_9_a_changed_recording_is_made_anew_and_only_it(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    write_tsv(folder / "Sleep_Data" / "1_11.tsv", stage_rows(10.25, "RRR"))
    run = run_script(folder)
    assert run.returncode == 0, run.stderr
    assert "6 of 7 recordings are finished already" in run.stderr
    index = store.load_index(folder / "batches")
    assert index.labels["sleep"][index.patient_ids == 1].tolist() == [4, 4, 4]


def test_9_a_changed_setting_is_noticed(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    run = run_script(folder, "--scaling", "original")
    assert run.returncode == 0
    assert "finished already" not in run.stderr
    with h5py.File(next((folder / "batches" / "train").iterdir())) as file:
        assert file["scale"][0, 7] == 233451.1131535057
    assert store.load_index(folder / "batches").scaling == "original"
    assert store.load_index(prepared[0] / "batches").scaling == "policy"


def test_a_disk_that_fails_at_opening_costs_a_recording_this_run_only(tmp_path, monkeypatch):
    nch_study(tmp_path, "5_6")
    study, examples_dir = only_study(tmp_path), tmp_path / "examples"
    with monkeypatch.context() as patch:

        def stale(*_, **__):
            raise OSError(errno.ESTALE, "Stale file handle", str(study.edf))

        patch.setattr(open_edf.__globals__["edfio"], "read_edf", stale)
        outcome = prepare_study(study, SETTINGS, examples_dir)
    assert "cannot be read (Stale file handle)" in outcome.reason
    assert finished_outcome(study, SETTINGS, examples_dir) is None
    assert prepare_study(study, SETTINGS, examples_dir).usable


def test_a_sector_that_cannot_be_read_costs_a_recording_this_run_only(tmp_path, monkeypatch):
    nch_study(tmp_path, "5_6")
    study, examples_dir = only_study(tmp_path), tmp_path / "examples"

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    def open_failing(path, mode, buffering=-1):
        return Failing(path) if buffering == 0 else open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_recordings, "open", open_failing, raising=False)
        outcome = prepare_study(study, SETTINGS, examples_dir)
    assert outcome.reason == "5_6.edf: cannot be read (Input/output error)"
    assert prepare_study(study, SETTINGS, examples_dir).usable


def test_a_recording_that_kills_its_worker_is_listed_and_the_rest_goes_on(tmp_path):
    for stem in ("1_1", "2_2", "4_4"):
        nch_study(tmp_path / "Sleep_Data", stem)
    nch_study(tmp_path / "Sleep_Data", "3_3", stages="W123RW")  # 30 s longer
    # Stands for a library that crashes: read by every Python that starts with it in its path.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, soxr\n"
        "resample = soxr.resample\n"
        "def crash(x, *args, **kwargs):\n"
        "    if len(x) > 185 * 256:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return resample(x, *args, **kwargs)\n"
        "soxr.resample = crash\n"
    )
    run = run_script(tmp_path, "--n_workers", "2", env={"PYTHONPATH": str(tmp_path)})
    assert run.returncode == 0, run.stderr
    studies = pd.read_csv(tmp_path / "batches" / "studies.csv").set_index("study_id")
    assert studies.status.to_dict() == {1: "used", 2: "used", 3: "unusable", 4: "used"}
    assert "died more than once" in studies.reason[3]
    assert run_script(tmp_path).returncode == 0  # tried again, now without the crash
    studies = pd.read_csv(tmp_path / "batches" / "studies.csv").set_index("study_id")
    assert set(studies.status) == {"used"}


def test_a_folder_that_cannot_be_made_stops_with_2_and_names_the_settings(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    (folder / "file").write_text("no folder")
    run = run_script(folder, "--paths.examples_dir", str(folder / "file"))
    assert run.returncode == 2, run.stderr
    assert "paths.examples_dir" in run.stderr


def test_7_splits_csv_is_honoured_and_extended(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    splits = {1: "test", 2: "test", 3: "train", 4: "val", 5: "train"}
    lines = "".join(f"{patient},{split}\n" for patient, split in splits.items())
    (folder / "batches" / "splits.csv").write_text("patient_id,split\n" + lines)
    nch_study(folder / "Sleep_Data", "77_77")
    assert run_script(folder).returncode == 0
    index = store.load_index(folder / "batches")
    found = {p: SPLITS[s] for p, s in zip(index.patient_ids, index.split, strict=True)}
    assert {patient: found[patient] for patient in splits} == splits
    assert 77 in found
    assert 77 in tables.read_splits(folder / "batches")


def test_12_leaving_out_the_example_files_changes_no_byte_of_the_batches(prepared, tmp_path):
    folder = cohort(tmp_path / "cohort")
    run = run_script(folder, "--keep_examples", "false")
    assert run.returncode == 0
    assert list((folder / "examples").glob("*_*")) == []
    for path in sorted((prepared[0] / "batches").rglob("*.hdf5")):
        again = folder / "batches" / path.relative_to(prepared[0] / "batches")
        assert again.read_bytes() == path.read_bytes()
    assert "Preparing" not in run_script(folder, "--keep_examples", "false").stderr


def test_more_workers_give_the_same_files(prepared, tmp_path):
    folder = cohort(tmp_path / "cohort")
    assert run_script(folder, "--n_workers", "2").returncode == 0
    assert contents(folder) == contents(prepared[0])


def test_example_files_that_were_removed_are_made_again(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    wanted = contents(folder)
    shutil.rmtree(folder / "examples" / "1_11")
    assert run_script(folder).returncode == 0
    assert contents(folder) == wanted


def test_folders_that_hold_recordings_are_never_replaced(tmp_path):
    nch_study(tmp_path / "recordings" / "5_6", "5_6")
    before = sorted((tmp_path / "recordings").rglob("*"))
    command = [sys.executable, str(ROOT / "1_prepare_dataset.py")]
    for kind, name in (("recordings", "recordings"), ("examples", "recordings")):
        command += [f"--paths.{kind}_dir", str(tmp_path / name)]
    command += ["--paths.batches_dir", str(tmp_path / "batches")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "was not written by script 1" in run.stderr
    assert [p for p in before if not p.exists()] == []


def test_9_a_second_run_in_the_same_folder_stops_with_a_sentence(prepared):
    folder, _ = prepared
    with machine.only_run_in(folder / "batches", "paths.batches_dir"):
        run = run_script(folder)
    assert run.returncode == 1
    assert "another run is writing to" in run.stderr
    assert "Traceback" not in run.stderr


def test_9_killed_at_any_moment_it_goes_on_to_the_same_outcome(prepared, tmp_path):
    wanted = contents(prepared[0])
    folder = cohort(tmp_path / "cohort")
    chance = random.Random(0)
    command = [sys.executable, str(ROOT / "1_prepare_dataset.py"), "--n_workers", "1"]
    for kind in ("recordings", "examples", "batches"):
        name = "Sleep_Data" if kind == "recordings" else kind
        command += [f"--paths.{kind}_dir", str(folder / name)]
    n_killed = 0
    for _ in range(20):
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        # Start-up takes about a second and a half; the work is short, so aim at it.
        time.sleep(chance.uniform(1.0, 3.0))
        n_killed += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.wait()
        for path in folder.glob("examples/*_*/*.hdf5"):  # what has its name is whole
            store.read_examples([path])
            break
        if run.returncode == 0:  # done before the blow: begin anew
            assert contents(folder) == wanted
            shutil.rmtree(folder / "examples")
            shutil.rmtree(folder / "batches")
    assert n_killed >= 10
    assert run_script(folder).returncode == 0
    assert contents(folder) == wanted


def test_what_a_killed_run_left_half_written_is_removed(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    left = [folder / "batches" / "train" / ".combined_0.hdf5.0123abcd.partial"]
    left += [folder / "examples" / ".prepared" / ".1_11.json.0123abcd.partial"]
    left += [folder / "examples" / ".1_11.0123abcd.partial" / "1_11_sample_0.hdf5"]
    left += [folder / "batches" / ".events.csv.0123abcd.partial"]
    left[2].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    write_tsv(folder / "Sleep_Data" / "1_11.tsv", stage_rows(10.25, "RRR"))
    assert run_script(folder).returncode == 0
    assert [path for path in left if path.exists()] == []


def test_9_a_full_disk_stops_with_a_sentence_and_loses_nothing(prepared, tmp_path):
    folder = cohort(tmp_path / "cohort")
    # A limit on the size of a file is what a process can be given; it fails like a full disk.
    code = (
        "import resource, runpy, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY));"
        f"sys.argv = sys.argv[1:]; runpy.run_path({str(ROOT / '1_prepare_dataset.py')!r}, "
        "run_name='__main__')"
    )
    arguments = ["1_prepare_dataset.py", "--n_workers", "1"]
    for kind, name in (
        ("recordings", "Sleep_Data"),
        ("examples", "examples"),
        ("batches", "batches"),
    ):
        arguments += [f"--paths.{kind}_dir", str(folder / name)]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 1
    assert "it goes on where it stopped" in run.stderr
    assert "Traceback" not in run.stderr
    assert run_script(folder).returncode == 0
    assert contents(folder) == contents(prepared[0])


def test_nothing_usable_is_a_failure_that_says_why(tmp_path):
    nch_study(tmp_path / "Sleep_Data", "5_6", stages="??")
    run = run_script(tmp_path)
    assert run.returncode == 1
    assert "none of the 1 recordings found can be used" in run.stderr
    assert (tmp_path / "batches" / "studies.csv").exists()
    assert "no scored 30-s epoch" in (tmp_path / "batches" / "prepare_report.html").read_text()


def test_recordings_that_are_gone_cost_no_batch_file_of_an_earlier_run(tmp_path, prepared):
    folder = tmp_path / "work"
    shutil.copytree(prepared[0], folder)
    before = {path: path.read_bytes() for path in folder.glob("batches/*/*.hdf5")}
    for path in (folder / "Sleep_Data").glob("*.tsv"):
        path.unlink()
    assert run_script(folder).returncode == 1
    assert {path: path.read_bytes() for path in folder.glob("batches/*/*.hdf5")} == before


def test_a_missing_folder_is_a_bad_call(tmp_path):
    run = run_script(tmp_path, recordings=tmp_path / "nowhere")
    assert run.returncode == 2
    assert "paths.recordings_dir" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_2_inspect_prints_the_table_of_channels(prepared):
    edf = next((prepared[0] / "Sleep_Data").glob("*.edf"))
    run = run_script(prepared[0], "--inspect", str(edf))
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [
        line[: len(name)] for line, name in zip(lines[2:18], CHANNEL_NAMES, strict=True)
    ] == list(CHANNEL_NAMES)
    assert "256 Hz" in lines[2]
    assert lines[-1] == "16 of 16 channels found"


def test_2_inspect_says_why_a_channel_is_absent_as_preparation_does(tmp_path):
    nch_study(tmp_path, "5_6")
    file = nch_file(seconds=180, rate_hz=400)
    file.signals[12].digital[:] = 12
    file.signals[8].physical = ("0", "0.001")  # an oximeter in no unit that it could have
    file.write(tmp_path / "5_6.edf")
    lines = inspect_recording(tmp_path / "5_6.edf", SETTINGS).text.splitlines()
    _, outcome = build_examples(only_study(tmp_path), SETTINGS)
    for name, c in (("C-FLOW", 12), ("SPO2", 8)):
        assert lines[2 + c].startswith(name)
        assert lines[2 + c].endswith(f"absent: {outcome.absent[name]}")
    assert lines[18] == "14 of 16 channels found"


def test_5_fitted_statistics_standardise_the_training_patients(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    run = run_script(folder, "--scaling", "fitted", "--clip", "0")
    assert run.returncode == 0, run.stderr
    index = store.load_index(folder / "batches")
    signals = store.read_signals(index, index.rows("train"))
    np.testing.assert_allclose(signals.mean(axis=(0, 2)), 0, atol=0.01)
    np.testing.assert_allclose(signals.std(axis=(0, 2)), 1, atol=0.01)


def test_5_fitted_statistics_pass_over_duplicates_and_recordings_without_annotations(
    prepared, tmp_path
):
    folder = copied(prepared, tmp_path)
    assert run_script(folder, "--scaling", "fitted").returncode == 0
    with h5py.File(next((folder / "batches" / "train").iterdir())) as file:
        wanted = file["center"][0].tolist()
    for patient in range(1, 6):
        nch_file(seconds=60).write(folder / "Sleep_Data" / f"{patient}_77.edf")
        shutil.copytree(folder / "Sleep_Data", folder / "copies", dirs_exist_ok=True)
    shutil.move(folder / "copies", folder / "Sleep_Data" / "copies")
    run = run_script(folder, "--scaling", "fitted")
    assert run.returncode == 0, run.stderr
    with h5py.File(next((folder / "batches" / "train").iterdir())) as file:
        assert file["center"][0].tolist() == wanted


def test_the_state_holds_no_text_of_the_annotations(prepared):
    states = [path.read_text() for path in (prepared[0] / "examples" / ".prepared").iterdir()]
    assert len(states) >= 1
    for text in states:
        assert "Sleep stage" not in json.dumps(json.loads(text))


def test_10_a_dask_cluster_of_two_workers_gives_the_same_files(prepared, tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    folder = cohort(tmp_path / "cohort")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        run = run_script(folder, "--cluster.address", cluster.scheduler_address)
    assert run.returncode == 0, run.stderr
    assert contents(folder) == contents(prepared[0])


# ------------------------------------------------------------------ borders
def test_one_odd_file_costs_one_recording(tmp_path):
    folder = tmp_path / "Sleep_Data"
    for stem in ("1_1", "2_2", "3_3", "4_4", "5_5", "6_6", "7_7", "8_8"):
        nch_study(folder, stem)
    for name in ("2_2.edf", "3_3.tsv", "4_4.edf", "5_5.tsv", "6_6.edf", "7_7.tsv"):
        (folder / name).unlink()
    os.mkfifo(folder / "2_2.edf")
    os.mkfifo(folder / "3_3.tsv")
    (folder / "4_4.edf").mkdir()
    (folder / "5_5.tsv").symlink_to("5_5.tsv")
    (folder / "6_6.edf").symlink_to("/dev/zero")
    (folder / "7_7.tsv").symlink_to("not/fetched")
    for name in (b"9_9\xff", "²_1".encode(), b"9" * 13 + b"_1", b"\x1b[2J_1"):
        shutil.copy(folder / "1_1.edf", os.fsdecode(os.fsencode(folder) + b"/" + name + b".edf"))
    (tmp_path / "Health_Data").mkdir()
    os.mkfifo(tmp_path / "Health_Data" / "SLEEP_STUDY.csv")
    run = run_script(tmp_path, "--n_workers", "2")
    assert run.returncode == 0, run.stderr
    assert "SLEEP_STUDY.csv: is a pipe, not a file" in run.stderr
    assert "2 of 12 recordings give examples" in run.stdout
    table = pd.read_csv(tmp_path / "batches" / "studies.csv", keep_default_na=False)
    reasons = dict(zip(table.recording, table.reason, strict=True))
    assert reasons.pop("1_1.edf") == reasons.pop("8_8.edf") == ""
    assert reasons.pop("2_2.edf") == "2_2.edf: is a pipe, not a file"
    assert reasons.pop("3_3.edf") == "3_3.tsv: is a pipe, not a file"
    assert reasons.pop("4_4.edf") == "4_4.edf: is a folder, not a file"
    assert reasons.pop("5_5.edf") == "5_5.tsv: is a link to nothing"
    assert reasons.pop("6_6.edf") == "6_6.edf: is a device, not a file"
    assert reasons.pop("7_7.edf") == "7_7.tsv: is a link to nothing"
    odd = {"9_9\\udcff.edf", "²_1.edf", "9999999999999_1.edf", "\\x1b[2J_1.edf"}
    assert reasons.keys() == odd
    assert all("two whole numbers up to 12 digits" in reason for reason in reasons.values())
    page = (tmp_path / "batches" / "prepare_report.html").read_text(encoding="utf-8")
    assert "9_9\\udcff.edf" in page
    assert "\x1b" not in page + run.stdout + run.stderr


def test_a_recording_whose_name_is_no_utf8_is_used_where_its_numbers_are_known(tmp_path):
    edf, _ = nch_study(tmp_path / "a", "5_6")
    night = tmp_path / "Sleep_Data" / os.fsdecode(b"SC4001E\xff-PSG.edf")
    night.parent.mkdir()
    edf.rename(night)
    rows = [edfio.EdfAnnotation(*row) for row in stage_rows(10, "W12")]
    edfio.Edf([], annotations=rows).write(night.parent / "SC4001EC-Hypnogram.edf")
    options = ("--layout", "sleep_edf", "--wake_margin_min", "30")
    for _ in range(2):  # the second run reads the state
        run = run_script(tmp_path, *options)
        assert run.returncode == 0, run.stderr
        table = pd.read_csv(tmp_path / "batches" / "studies.csv")
        assert table.recording.tolist() == ["SC4001E\\udcff-PSG.edf"]
        assert table.n_examples.tolist() == [3]


def test_a_channel_without_samples_where_the_night_is_scored_is_absent(tmp_path):
    file = nch_file(seconds=240, record_s=240)
    file.signals[7].per_record, file.signals[7].digital = 1, file.signals[7].digital[:1]
    file.write(tmp_path / "5_6.edf")
    write_tsv(tmp_path / "5_6.tsv", stage_rows(100.0, "W23"))
    _, outcome = build_examples(only_study(tmp_path), SETTINGS)
    assert len(outcome.channels) == 15
    assert outcome.absent["CAPNO"]
    assert "unforeseen" not in outcome.absent["CAPNO"]


def test_inspecting_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "5_6.edf")
    run = run_script(tmp_path, "--inspect", str(tmp_path / "5_6.edf"))
    assert run.returncode == 2
    assert "inspect: there is no file" in run.stderr
