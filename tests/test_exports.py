"""A scored night for other tools: YASA's hypnogram and the events of BIDS; paths as text too."""

import json
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
from edf_files import nch_file, stage_rows, write_tsv
from small_probes import run_script

import pedsleepmae
from pedsleepmae.prepare.annotations import AnnotationError
from pedsleepmae.prepare.layouts import read_annotations
from pedsleepmae.score import exports
from pedsleepmae.score.exports import describe_events, hypnogram, write_exports
from pedsleepmae.score.night import Night, annotation_rows, load_scorer
from pedsleepmae.score.summary import night_quantities
from pedsleepmae.tasks import NOTICE, STAGES

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoint" / "m15p8_checkpoint.pt"
PROBES = ROOT / "checkpoint" / "probes.npz"


def make_night(onsets_s, stages, **events) -> Night:
    """A night called with these stages (0 to 4), each at 0.6, and with these events."""
    prob = {"sleep": np.where(np.eye(5)[list(stages)] == 1, 0.6, 0.1)}
    for task, p in events.items():
        prob[task] = np.stack([1 - np.array(p), np.array(p)], axis=1)
    called = {task: prob_NK.argmax(axis=1) for task, prob_NK in prob.items()}
    return Night(np.array(onsets_s, float), prob, called, np.zeros(len(onsets_s)), None)


# ------------------------------------------------------------------ YASA
def test_the_hypnogram_holds_yasas_words_and_probabilities():
    found = hypnogram(make_night([0, 30, 60, 90, 120], [0, 1, 2, 3, 4]))
    assert found["values"] == ["WAKE", "N1", "N2", "N3", "REM"]
    assert found["proba"]["N2"] == [0.1, 0.1, 0.6, 0.1, 0.1]
    assert found["proba"]["UNS"] == [0.0] * 5
    # The keys that yasa.Hypnogram.from_dict reads (0.7.0 to 0.8.1), and two of ours.
    wanted = {"values", "n_stages", "freq", "start", "scorer", "proba"}
    assert set(found) == wanted | {"first_value_s", "notice"}
    assert (found["n_stages"], found["freq"], found["start"]) == (5, "30s", None)


@pytest.mark.parametrize(
    ("onsets_s", "words", "first_value_s"),
    [
        ([0, 30, 60], "N2 N2 N2", 0),
        ([90, 120], "UNS UNS UNS N2 N2", 0),  # a grid from 90 s on
        ([0, 120, 150], "N2 UNS UNS UNS N2 N2", 0),  # a stretch that was left out
        ([37.5, 67.5, 127.5], "UNS N2 N2 UNS N2", 7.5),
        ([12.5, 56.5, 86.5], "N2 N2 N2", 12.5),  # 14 s off the first one's grid
        ([12.5, 58.5, 88.5], "N2 UNS N2 N2", 12.5),  # 16 s off
        ([0.3, 45.3, 75.3], "N2 UNS N2 N2", 0.3),  # 15 s off, but for the decimals of 0.3
    ],
)
def test_what_was_not_scored_takes_its_time_in_the_hypnogram(onsets_s, words, first_value_s):
    found = hypnogram(make_night(onsets_s, [2] * len(onsets_s)))
    assert found["values"] == words.split()
    assert found["first_value_s"] == pytest.approx(first_value_s)
    unscored = [float(word == "UNS") for word in words.split()]
    assert found["proba"]["UNS"] == unscored


def test_no_epoch_of_an_uneven_night_is_lost_and_none_stands_far_off():
    rng = np.random.default_rng(0)
    gaps_s = np.where(rng.random(400) < 0.3, rng.choice([0, 15, 15.0000001, 44, 7.3], 400), 0)
    onsets_s = 3.7 + np.cumsum(30 + gaps_s)
    values = np.array(hypnogram(make_night(onsets_s, [2] * 400))["values"])
    starts_s = onsets_s[0] % 30 + 30 * np.flatnonzero(values == "N2")
    assert len(starts_s) == 400
    assert np.abs(starts_s - onsets_s).max() < 15.01


def test_without_a_probe_for_sleep_all_is_unscored():
    night = make_night([0, 30], [0, 0], arousal=[0.9, 0.2])
    night.prob.pop("sleep")
    night.called.pop("sleep")
    assert hypnogram(night)["values"] == ["UNS", "UNS"]
    assert exports.events(night)["trial_type"].tolist() == [NOTICE, "EEG arousal"]


def test_yasa_reads_the_file_and_finds_our_stages_and_minutes(tmp_path):
    yasa = pytest.importorskip("yasa", reason="yasa is not installed; requirements.txt names it")
    # 10 min awake, 5 in N1, 5 left out by the scorer, 20 in N2, 10 in N3, 5 in REM, 5 awake.
    stages = np.repeat([0, 1, 2, 3, 4, 0], [20, 10, 40, 20, 10, 10])
    onsets_s = 30.0 * np.delete(np.arange(120), np.arange(30, 40))
    night, scorer = make_night(onsets_s, stages), load_scorer(CHECKPOINT, PROBES)
    write_exports(tmp_path / "1_2", night)
    read = yasa.Hypnogram.from_json(tmp_path / "1_2" / "hypnogram.json")
    epochs = read.hypno.to_numpy()[(onsets_s / 30).astype(int)]
    assert epochs.tolist() == np.array(["WAKE", "N1", "N2", "N3", "REM"])[stages].tolist()
    assert read.as_events()["onset"].iloc[-1] == onsets_s[-1]
    assert (read.proba["N3"].to_numpy()[80:100] == 0.6).all()
    figures = read.sleep_statistics()
    wanted = {"TIB": 60, "TST": 40, "WAKE": 15, "N1": 5, "N2": 20, "N3": 10, "REM": 5, "UNS": 5}
    wanted |= {"SOL": 10, "Lat_REM": 50, "WASO": 0, "SPT": 45}
    assert {name: figures[name] for name in wanted} == wanted
    called = {q["name"]: q["called"] for q in night_quantities(scorer, night)}
    assert called["sleep_min"] == figures["TST"]
    for stage, word in zip(STAGES, ("WAKE", "N1", "N2", "N3", "REM"), strict=True):
        assert called[f"{stage}_min"] == figures[word]


# ------------------------------------------------------------------ BIDS
def test_the_table_of_events_by_hand():
    night = make_night([0, 30, 60, 120], [0, 2, 2, 4], apnea=[0.2, 0.7, 0.9, 0.6])
    table = exports.events(replace(night, distance_N=np.array([0, 0, 0, 2.0])))
    rows = table.astype(object).where(table.notna(), None).to_numpy().tolist()
    assert rows == [
        [0, 0, NOTICE, None],
        [0, 30, "Sleep stage W", 0.6],
        [30, 30, "Sleep stage N2", 0.6],
        [30, 60, "Apnea", pytest.approx(0.8)],  # two epochs
        [60, 30, "Sleep stage N2", 0.6],
        [120, 30, "Sleep stage R", 0.6],
        [120, 30, "Apnea", 0.6],
        [120, 30, "Far from the training data", None],
    ]


def test_the_files_are_as_bids_has_them(tmp_path):
    night = make_night([7.5, 37.5], [0, 4], arousal=[0.2, 0.7], desaturation=[0.9, 0.8])
    write_exports(tmp_path / "sub-01_task-sleep_eeg", replace(night, distance_N=np.ones(2) * 2))
    names = {path.name for path in (tmp_path / "sub-01_task-sleep_eeg").iterdir()}
    stem = "sub-01_task-sleep_events"  # the suffix in the place of that of the recording
    assert names == {"hypnogram.json", f"{stem}.tsv", f"{stem}.json"}
    text = (tmp_path / "sub-01_task-sleep_eeg" / f"{stem}.tsv").read_text("utf-8")
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0] == ["onset", "duration", "trial_type", "probability"]
    assert lines[1] == ["0.0", "0.0", NOTICE, "n/a"]
    onsets_s = [float(line[0]) for line in lines[1:]]
    assert onsets_s == sorted(onsets_s)
    assert all(all(cells) and len(cells) == 4 for cells in lines)
    told = json.loads((tmp_path / "sub-01_task-sleep_eeg" / f"{stem}.json").read_text("utf-8"))
    assert list(told) == lines[0]
    assert {line[2] for line in lines[1:]} <= set(told["trial_type"]["Levels"])
    assert "BIDS 1.11.2" in told["trial_type"]["Description"]


def test_every_text_that_a_night_can_hold_is_described():
    tasks = ("apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal")
    night = make_night(30 * np.arange(5), range(5), **{task: [0.9] * 5 for task in tasks})
    rows = annotation_rows(replace(night, distance_N=np.full(5, 2.0)))
    assert {text for *_, text in rows} == set(describe_events(night)["trial_type"]["Levels"])


def test_predictions_in_the_form_of_bids_are_refused_as_a_scorers(tmp_path):
    write_exports(tmp_path / "1_2", make_night([0, 30], [0, 2]))
    with pytest.raises(AnnotationError, match="own predictions"):
        read_annotations(tmp_path / "1_2" / "1_2_events.tsv")


# ------------------------------------------------------------------ script 4 and the API
def test_script_4_and_the_api_bring_out_the_same_night(tmp_path):
    yasa_words = {"W": "WAKE", "N1": "N1", "N2": "N2", "N3": "N3", "R": "REM"}
    path = nch_file(seconds=240, reserved="").write(tmp_path / "7_8.edf")
    write_tsv(tmp_path / "7_8.tsv", [*stage_rows(30, "WW"), *stage_rows(150, "22")])
    assert run_script("4_score_recording.py", path, "--paths.output_dir", tmp_path / "out") == 0
    folder = tmp_path / "out" / "7_8"
    table = pd.read_csv(folder / "epochs.csv")
    stored = json.loads((folder / "hypnogram.json").read_text("utf-8"))
    called = [yasa_words[stage] for stage in table["stage"]]
    assert stored["values"] == ["UNS", *called[:2], "UNS", "UNS", *called[2:]]
    raw = mne.io.read_raw_edf(path, preload=True, verbose="error")
    rows = [*stage_rows(30, "WW"), *stage_rows(150, "22")]
    raw.set_annotations(mne.Annotations(*zip(*rows, strict=True)))
    night = pedsleepmae.score_night(raw, CHECKPOINT, PROBES)
    assert pedsleepmae.hypnogram(night)["values"] == stored["values"]
    by_bids = pd.read_csv(folder / "7_8_events.tsv", sep="\t", na_values="n/a")
    found = pedsleepmae.events(night)
    assert found["trial_type"].tolist() == by_bids["trial_type"].tolist()
    np.testing.assert_allclose(found["probability"], by_bids["probability"], atol=0.02)
    texts = pedsleepmae.annotate(night).description.tolist()
    assert sorted(texts) == sorted(found["trial_type"])


@pytest.mark.parametrize("kind", [str, Path])
def test_public_functions_take_a_path_as_text_too(kind):
    checkpoint, probes = kind(CHECKPOINT), kind(PROBES)
    examples = pedsleepmae.examples_from_raw(short_raw())
    n_patches = pedsleepmae.load_model(checkpoint).n_patches
    encoder = pedsleepmae.PedSleepEncoder(checkpoint)
    assert encoder.fit_transform(examples.signals).shape == (2, 16 * n_patches)
    assert set(load_scorer(checkpoint, probes).probes) >= {"sleep", "apnea"}
    assert len(pedsleepmae.score_night(examples, checkpoint, probes)) == 2
    assert NOTICE in pedsleepmae.annotate(examples, checkpoint, probes).description


def short_raw() -> mne.io.BaseRaw:
    """A minute of noise in volts on six channels."""
    names = ["F4-M1", "C4-M1", "O2-M1", "C3-M2", "LOC-M2", "ROC-M1"]
    x = np.random.default_rng(0).normal(0, 3e-5, (6, 60 * 128))
    return mne.io.RawArray(x, mne.create_info(names, 128.0, "eeg"), verbose="error")
