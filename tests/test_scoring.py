"""One recording to stages and events: the same scores whatever the file, nothing hidden or told."""

import io
import json
import re
import warnings
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import edfio
import mne
import numpy as np
import pandas as pd
import pytest
from edf_files import nch_file, stage_rows, write_tsv
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, f1_score
from small_probes import fit_probes, paths, run_script, save_model, script_3

import pedsleepmae
from pedsleepmae import errors, store
from pedsleepmae.channels import ALL_CHANNELS, EPOCH_SAMPLES, MONTAGES, N_CHANNELS, RATE_HZ
from pedsleepmae.prepare.examples import ReadSettings, examples_to_score
from pedsleepmae.prepare.layouts import find_scoring
from pedsleepmae.prepare.recordings import RecordingError, open_edf
from pedsleepmae.probe.density import TrainingDensity, fit_density
from pedsleepmae.probe.files import load_basis, load_montages, load_probes
from pedsleepmae.probe.fitted import SavedReadOut
from pedsleepmae.probe.montages import better_on_val
from pedsleepmae.probe.nights import INDICES
from pedsleepmae.score import files, report, run
from pedsleepmae.score.night import (
    Night,
    Scorer,
    annotation_rows,
    event_rows,
    find_runs,
    load_scorer,
    score_examples,
)
from pedsleepmae.score.summary import cautions, night_quantities, stage_agreement
from pedsleepmae.tasks import NOTICE

OUTPUTS = ["epochs.csv", "summary.json", "summary.csv", "annotations.edf", "report.html"]
OUTPUTS += ["events.csv", "hypnogram.json", "9_8_events.tsv", "9_8_events.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return fit_probes(tmp_path_factory.mktemp("trained"), montage_epochs=60)


@pytest.fixture(scope="module")
def scorer(trained) -> Scorer:
    return load_scorer(trained / "model.pt", trained / "results" / "probes.npz")


def script_4(trained: Path, recording: Path, output_dir: Path, *argv) -> int:
    return run_script(
        "4_score_recording.py", recording, "--paths.checkpoint", trained / "model.pt",
        "--paths.probes", trained / "results" / "probes.npz", "--paths.output_dir", output_dir,
        *argv,
    )  # fmt: skip


def stored_examples(trained: Path, split: str) -> store.Examples:
    """The examples of a split as script 3 reads them."""
    index = store.load_index(trained / "batches")
    rows = index.rows(split)
    return store.Examples(
        signals=store.read_signals(index, rows),
        labels={name: codes[rows] for name, codes in index.labels.items()},
        patient_ids=index.patient_ids[rows],
        study_ids=index.study_ids[rows],
        onsets_s=index.onsets_s[rows],
        present=index.present[rows],
        center=np.zeros((len(rows), 16)),
        scale=np.ones((len(rows), 16)),
    )


def make_night(stages=(), **events) -> Night:
    """A night on a 30-s grid whose probabilities are 1 for these stages and these for events."""
    n = len(stages)
    prob = {"sleep": np.eye(5)[list(stages)]}
    for task, p in events.items():
        prob[task] = np.stack([1 - np.array(p), np.array(p)], axis=1)
    called = {task: (p[:, 1] >= 0.5).astype(int) for task, p in prob.items()}
    called["sleep"] = np.array(stages)
    return Night(30.0 * np.arange(n), prob, called, np.zeros(n), None)


# ------------------------------------------------------------------ the same scores
def test_epochs_that_script_3_scored_get_the_same_scores(trained, scorer):
    examples = stored_examples(trained, "test")
    night = score_examples(scorer, examples)
    tasks = json.loads((trained / "results" / "metrics.json").read_text())["tasks"]
    truth, called = night.scored["sleep"], night.called["sleep"]
    known = truth >= 0
    matrix = confusion_matrix(truth[known], called[known], labels=range(5))
    assert matrix.tolist() == tasks["sleep"]["test"]["confusion_matrix"]
    for task in ("apnea", "arousal"):
        assert (night.scored[task][~known] == -1).all()  # nobody looked for events there
        event_n, called_n = night.scored[task][known], night.called[task][known]
        f1 = f1_score(event_n, called_n)
        assert f1 == pytest.approx(tasks[task]["test"]["f1"], abs=1e-12)
        brier = ((night.prob[task][known, 1] - event_n) ** 2).mean()
        assert brier == pytest.approx(tasks[task]["test"]["brier"], abs=1e-9)
    agreement = stage_agreement(night)
    assert agreement["kappa"] == pytest.approx(tasks["sleep"]["test"]["kappa"], abs=1e-9)


def test_each_task_is_scored_by_the_features_that_its_own_probe_reads(trained, scorer, tmp_path):
    argv = [*paths(trained, trained / "batches", trained / "model.pt"), "--pooling", "time_std"]
    argv += ["--paths.output_dir", tmp_path / "other", "--tasks", "[arousal]", "--context", "0"]
    assert script_3(*argv, "--baselines", "[]", "--normalise", "night") == 0
    with np.load(tmp_path / "other" / "probes.npz") as file:
        arousal = {name: file[name] for name in file if name.startswith("arousal/")}
    with np.load(trained / "results" / "probes.npz") as file:
        whole = {name: file[name] for name in file if not name.startswith("montage/")}
    np.savez(tmp_path / "mixed.npz", **whole | arousal)
    mixed = load_scorer(trained / "model.pt", tmp_path / "mixed.npz")
    assert mixed.read_outs["arousal"] == SavedReadOut("time_std", "night")
    assert mixed.read_outs["sleep"].pooling == "time_abs"
    examples = stored_examples(trained, "test")
    night, before = score_examples(mixed, examples), score_examples(scorer, examples)
    other = load_scorer(trained / "model.pt", tmp_path / "other" / "probes.npz")
    by_itself = score_examples(other, examples)
    assert (night.prob["arousal"] == by_itself.prob["arousal"]).all()
    assert not (night.prob["arousal"] == before.prob["arousal"]).all()
    for task in ("sleep", "apnea"):
        assert night.prob[task] == pytest.approx(before.prob[task], abs=1e-6)
    assert (night.distance_N == before.distance_N).all()


def test_a_file_of_probes_of_version_2_scores_as_it_did(trained, scorer, tmp_path):
    """There one pooling and one way to standardise stood for all tasks."""
    with np.load(trained / "results" / "probes.npz") as file:
        arrays = dict(file)
    facts = json.loads(str(arrays["facts"])) | {"normalise": str(arrays["sleep/normalise"])}
    old = {n: a for n, a in arrays.items() if n.split("/")[-1] not in ("pooling", "normalise")}
    old |= {"version": np.array(2), "pooling": arrays["pooling"]}
    np.savez(tmp_path / "old.npz", **old | {"facts": np.array(json.dumps(facts))})
    again = load_scorer(trained / "model.pt", tmp_path / "old.npz")
    assert again.read_outs == scorer.read_outs
    examples = stored_examples(trained, "test")
    one, two = score_examples(scorer, examples), score_examples(again, examples)
    assert all((one.prob[task] == two.prob[task]).all() for task in one.prob)


def score_edf(scorer, path: Path) -> tuple[store.Examples, Night]:
    scoring_of_it = find_scoring(path)
    examples, _ = examples_to_score(open_edf(path), scoring_of_it, ReadSettings())
    return examples, score_examples(scorer, examples)


def test_the_layout_of_the_file_changes_no_score(tmp_path, scorer):
    first = nch_file(seconds=240, rate_hz=256, record_s=4)
    second = nch_file(seconds=240, rate_hz=256, record_s=12)
    spo2 = next(s for s in second.signals if s.label == "Spo2")
    held = np.repeat(spo2.digital[:: 256 * 4], 256 * 4)
    next(s for s in first.signals if s.label == "Spo2").digital = held
    spo2.digital, spo2.per_record = held[::64], 4 * 12  # an oximeter of its own rate, 4 Hz
    second.signals = second.signals[::-1]
    for signal in second.signals:
        signal.label = signal.label.replace("M1", "A1").upper()
    one, one_night = score_edf(scorer, first.write(tmp_path / "a.edf"))
    two, two_night = score_edf(scorer, second.write(tmp_path / "b.edf"))
    np.testing.assert_array_equal(one.present, two.present)
    np.testing.assert_array_equal(one.signals, two.signals)
    for task in one_night.prob:
        np.testing.assert_array_equal(one_night.prob[task], two_night.prob[task])
    assert len(one_night) == 8


def test_an_edf_file_and_its_mne_raw_score_alike(tmp_path, scorer):
    file = nch_file(seconds=240, reserved="")
    for signal in file.signals:
        signal.physical = ("-8711", "8711") if signal.unit == "uV" else signal.physical
    path = file.write(tmp_path / "a.edf")
    write_tsv(tmp_path / "a.tsv", stage_rows(10.25, "W22R3"))
    raw = mne.io.read_raw_edf(path, preload=True, verbose="error")
    rows = stage_rows(10.25, "W22R3")
    raw.set_annotations(mne.Annotations(*zip(*rows, strict=True)))
    from_file, night = score_edf(scorer, path)
    from_raw = pedsleepmae.examples_from_raw(raw)
    assert (
        from_raw.onsets_s.tolist()
        == from_file.onsets_s.tolist()
        == [10.25 + 30 * k for k in range(5)]
    )
    assert from_raw.labels["sleep"].tolist() == [0, 2, 2, 4, 3]
    np.testing.assert_array_equal(from_raw.present, from_file.present)
    np.testing.assert_allclose(
        from_raw.signals.astype(float), from_file.signals.astype(float), atol=2e-3
    )
    other = score_examples(scorer, from_raw)
    assert other.called["sleep"].tolist() == night.called["sleep"].tolist()
    np.testing.assert_allclose(other.prob["sleep"], night.prob["sleep"], atol=2e-3)
    cropped = pedsleepmae.examples_from_raw(raw.copy().crop(tmin=40.25))
    assert cropped.onsets_s.tolist() == [0.0, 30.0, 60.0, 90.0]


def test_predictions_come_back_as_mne_annotations(tmp_path, trained, scorer):
    path = nch_file(seconds=240, reserved="").write(tmp_path / "a.edf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MNE on the file's inverted calibration
        raw = mne.io.read_raw_edf(path, preload=True, verbose="error")
    found = pedsleepmae.annotate(raw, trained / "model.pt", trained / "results" / "probes.npz")
    night = score_examples(scorer, pedsleepmae.examples_from_raw(raw))
    expected = annotation_rows(night)
    rows = zip(found.onset, found.duration, found.description, strict=True)
    assert sorted(map(tuple, rows)) == sorted(expected)
    raw.set_annotations(found)
    stages = [text for text in raw.annotations.description if text.startswith("Sleep stage")]
    assert len(stages) == 8


# ------------------------------------------------------------------ what is written
def test_annotations_are_read_back_equal_by_edfio_and_by_mne(tmp_path):
    night = make_night([0, 1, 2, 3, 4, 2], apnea=[0, 1, 1, 0, 1, 0], arousal=[0] * 6)
    night = Night(
        night.onsets_s + 10.9609375, night.prob, night.called, np.array([0, 2, 0, 0, 0, 0]), None
    )
    files.write_edf_annotations(tmp_path / "a.edf", night)
    expected = sorted(
        [(0.0, 0.0, NOTICE)]
        + [
            (10.9609375 + 30 * k, 30.0, f"Sleep stage {stage}")
            for k, stage in enumerate(["W", "N1", "N2", "N3", "R", "N2"])
        ]
        + [(40.9609375, 60.0, "Apnea"), (130.9609375, 30.0, "Apnea")]
        + [(40.9609375, 30.0, "Far from the training data")]
    )
    by_edfio = edfio.read_edf(tmp_path / "a.edf").annotations
    assert sorted((row.onset, row.duration or 0.0, row.text) for row in by_edfio) == expected
    by_mne = mne.read_annotations(tmp_path / "a.edf")
    rows = zip(by_mne.onset, by_mne.duration, by_mne.description, strict=True)
    assert sorted((float(a), float(b), str(c)) for a, b, c in rows) == expected


def test_runs_join_adjoining_epochs_and_stop_at_gaps():
    onsets_s = np.array([0.0, 30, 60, 90, 150, 180])
    positive_N = np.array([1, 1, 0, 1, 1, 1], bool)
    runs = find_runs(onsets_s, positive_N, "x")
    assert runs == [(0.0, 60.0, "x"), (90.0, 30.0, "x"), (150.0, 60.0, "x")]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory) -> Path:
    """The output folder of a staged recording whose header names a patient."""
    folder = tmp_path_factory.mktemp("scored")
    header = {"patient": b"7654321 F 02-MAR-2011 Jane_Mustermann", "startdate": b"03.04.17"}
    file = nch_file(seconds=1500, header=header, recording="Startdate 03-APR-2017 PSG99 Dr_Smith X")
    file.write(folder / "9_8.edf")
    rows = [*stage_rows(12.5, "WW1223R2222" + "2" * 35), (60.0, 20.0, "Obstructive Apnea")]
    write_tsv(folder / "9_8.tsv", rows)
    left = folder / "out" / "9_8" / ".epochs.csv.0123abcd.partial"  # of a run that was killed
    left.parent.mkdir(parents=True)
    left.write_text("half")
    assert script_4(trained, folder / "9_8.edf", folder / "out") == 0
    return folder / "out" / "9_8"


def test_every_output_and_no_other_is_there_and_says_it_is_no_medical_device(scored):
    names = {path.name for path in scored.iterdir()} - {".lock", ".state.json"}
    assert names == set(OUTPUTS)
    for name in OUTPUTS:
        assert b"no medical device" in (scored / name).read_bytes(), name


@pytest.mark.parametrize(
    "secret", ["Mustermann", "7654321", "MAR-2011", "PSG99", "Smith", "APR-2017", "03.04.17"]
)
def test_nothing_of_the_header_reaches_an_output(scored, secret):
    for path in scored.iterdir():
        assert secret.encode() not in path.read_bytes(), path.name


def test_a_staged_recording_is_scored_at_its_epochs_beside_the_scorer(scored):
    epochs = pd.read_csv(scored / "epochs.csv", keep_default_na=False)
    assert epochs["onset_s"].tolist() == [12.5 + 30 * k for k in range(46)]
    assert "".join(epochs["scored_stage"]).startswith("WWN1N2N2N3RN2")
    # 60 to 80 s lies in the epochs from 42.5 and from 72.5.
    assert np.flatnonzero(epochs["scored_apnea"]).tolist() == [1, 2]
    columns = [f"p_{stage}" for stage in ("W", "N1", "N2", "N3", "R")]
    np.testing.assert_allclose(epochs[columns].sum(axis=1), 1, atol=1e-9)
    summary = json.loads((scored / "summary.json").read_text())
    quantities = {row["name"]: row for row in summary["quantities"]}
    assert quantities["sleep_min"]["scored"] == 22.0  # 44 epochs
    assert quantities["sleep_efficiency"]["scored"] == pytest.approx(100 * 44 / 46)
    # Of the two epochs with the apnea the first is wake.
    assert quantities["apnea_hypopnea_index"]["scored"] == pytest.approx(1 / (22 / 60))
    matching = (epochs["stage"] == epochs["scored_stage"]).mean()
    assert summary["agreement"]["accuracy"] == pytest.approx(matching)


def test_every_quantity_says_what_it_rests_on(scored, trained):
    summary = json.loads((scored / "summary.json").read_text())
    facts = load_basis(trained / "results" / "probes.npz").facts
    assert summary["checkpoint"]["file"] == "model.pt"
    assert summary["probes"]["n_patients"] == {"train": 4, "val": 2, "test": 3}
    assert any("simulated" in line for line in summary["cautions"])
    rests_on = {row["name"]: row["rests_on"] for row in summary["quantities"]}
    for name, task in (("sleep_min", "sleep"), ("apnea_hypopnea_index", "apnea_hypopnea")):
        assert rests_on[name]["calibration_slope"] == facts["tasks"][task]["calibration_slope"]
        assert rests_on[name]["n_val_patients"] == 2
        assert rests_on[name]["simulated"] is True
        assert rests_on[name]["error_on_test_nights"]["n"] == facts["nights"]["n"]
    # Desaturations never happen in the training cohort, so there is no probe to count them.
    assert rests_on["desaturation_index"] is None
    table = pd.read_csv(scored / "summary.csv")
    assert table["quantity"].tolist() == list(rests_on)


def test_the_page_stands_alone(scored):
    page = (scored / "report.html").read_text()
    assert "data:image/png;base64," in page
    for loaded in ('src="http', 'href="http', "<script", "@import"):
        assert loaded not in page


# ------------------------------------------------------------------ any recording
def test_without_annotations_epochs_lie_on_a_grid_from_the_offset(tmp_path, trained):
    path = nch_file(seconds=200).write(tmp_path / "night.edf")
    assert script_4(trained, path, tmp_path / "out", "--grid_offset_s", "7.5") == 0
    epochs = pd.read_csv(tmp_path / "out" / "night" / "epochs.csv")
    assert epochs["onset_s"].tolist() == [7.5, 37.5, 67.5, 97.5, 127.5, 157.5]
    summary = json.loads((tmp_path / "out" / "night" / "summary.json").read_text())
    assert summary["agreement"] is None
    assert not [name for name in epochs if name.startswith("scored")]


def test_a_recording_of_two_minutes_is_scored_without_indices(tmp_path, trained):
    path = nch_file(seconds=120).write(tmp_path / "short.edf")
    assert script_4(trained, path, tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "short" / "summary.json").read_text())
    assert summary["n_epochs"] == 4
    index = next(q for q in summary["quantities"] if q["name"] == "apnea_hypopnea_index")
    assert index["value"] is None
    assert index["reason"] == "less than 15 minutes of sleep"


def test_absent_channels_stop_nothing_and_are_told(tmp_path, trained):
    labels = ["EEG C4-M1", "EEG LOC-M2", "Resp Thoracic", "SPO2", "Nonsense"]
    path = nch_file(seconds=120, labels=labels).write(tmp_path / "few.edf")
    assert script_4(trained, path, tmp_path / "out") == 0
    summary = json.loads((tmp_path / "out" / "few" / "summary.json").read_text())
    assert sorted(summary["channels"]) == sorted(
        ["EEG C4-M1", "EOG LOC-M2", "RESP THORACIC", "SPO2"]
    )
    assert len(summary["absent"]) == 12


def test_stages_in_the_edf_file_itself_are_found(tmp_path):
    signal = edfio.EdfSignal(np.random.default_rng(0).normal(0, 30, 128 * 120), 128, label="C4-M1")
    rows = [edfio.EdfAnnotation(30.0 * k, 30.0, f"Sleep stage {s}") for k, s in enumerate("WNR")]
    edfio.Edf([signal], annotations=rows).write(tmp_path / "a.edf")
    found = find_scoring(tmp_path / "a.edf")
    assert found.stage_onsets_s.tolist() == [0.0, 60.0]  # "Sleep stage N" is no stage
    edfio.Edf([signal]).write(tmp_path / "b.edf")
    assert find_scoring(tmp_path / "b.edf") is None


@pytest.mark.parametrize("count", ["NA", "-1"])
def test_a_header_that_script_1_mends_stops_nothing(tmp_path, trained, count):
    file = nch_file(seconds=120, n_records=count, header={"header_bytes": b"0"})
    assert script_4(trained, file.write(tmp_path / "x.edf"), tmp_path / "out") == 0


def one_sentence(capsys, code) -> str:
    sentence = capsys.readouterr().err.strip()
    assert code in (1, 2)
    assert len(sentence.splitlines()) == 1
    assert "Traceback" not in sentence
    return sentence


@pytest.mark.parametrize("content", [b"", b"not an EDF file at all" * 100, b"\0" * 5000])
def test_a_file_that_is_no_edf_is_one_sentence(tmp_path, trained, capsys, content):
    (tmp_path / "x.edf").write_bytes(content)
    sentence = one_sentence(capsys, script_4(trained, tmp_path / "x.edf", tmp_path / "out"))
    assert "x.edf" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "argv", "words"),
    [
        (24, [], "no whole 30-s epoch"),
        (120, ["--grid_offset_s", "500"], "second 500"),
        (120, ["--min_channels", "16"], "min_channels is 16"),
    ],
)
def test_a_recording_that_gives_no_examples_is_one_sentence(
    tmp_path, trained, capsys, seconds, argv, words
):
    labels = ["EEG C4-M1", "EEG LOC-M2", "Resp Thoracic", "Resp Abdominal"]
    path = nch_file(seconds=seconds, labels=labels).write(tmp_path / "x.edf")
    assert words in one_sentence(capsys, script_4(trained, path, tmp_path / "out", *argv))


def test_annotations_that_stage_nothing_are_one_sentence_with_the_remedy(tmp_path, trained, capsys):
    path = nch_file(seconds=120).write(tmp_path / "1_2.edf")
    write_tsv(
        tmp_path / "1_2.tsv", [(10.0, 10.0, "Obstructive Apnea"), (0.0, 30.0, "Sleep stage ?")]
    )
    sentence = one_sentence(capsys, script_4(trained, path, tmp_path / "out"))
    assert "no scored 30-s epoch" in sentence
    assert "use_annotations" in sentence


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "recordings: none given"),
        (["nowhere.edf"], "nowhere.edf"),
        (["a.edf", "--paths.annotations", "no.tsv"], "no.tsv"),
        (["a.edf", "--far_share", "0"], "far_share is 0"),
        (["a.edf", "--paths.probes", "a.edf"], "no probes"),
    ],
)
def test_a_bad_call_is_one_sentence_with_exit_code_2(
    tmp_path, trained, capsys, monkeypatch, argv, words
):
    monkeypatch.chdir(tmp_path)
    nch_file(seconds=60).write(tmp_path / "a.edf")
    given = ["--paths.checkpoint", trained / "model.pt"]
    given += ["--paths.probes", trained / "results" / "probes.npz"]
    try:
        code = run_script("4_score_recording.py", *given, *argv)
    except SystemExit as stopped:  # by the settings' own bounds
        code = stopped.code
    assert code == 2
    assert words in one_sentence(capsys, code)


def test_an_error_that_nobody_foresaw_is_one_sentence_below_where_it_happened(
    tmp_path, trained, capsys, monkeypatch
):
    def divide(*_):
        return 1 / 0

    monkeypatch.setattr(run, "examples_to_score", divide)
    path = nch_file(seconds=60).write(tmp_path / "x.edf")
    assert script_4(trained, path, tmp_path / "out") == 1
    *where, sentence = capsys.readouterr().err.strip().splitlines()
    assert "x.edf: unforeseen ZeroDivisionError" in sentence
    assert any("in divide" in line for line in where)


def test_an_annotation_file_that_cannot_be_read_is_one_sentence_with_the_remedy(
    tmp_path, trained, capsys
):
    path = nch_file(seconds=120).write(tmp_path / "1_2.edf")
    (tmp_path / "1_2.tsv").write_bytes(b"\0" * 100)
    sentence = one_sentence(capsys, script_4(trained, path, tmp_path / "out"))
    assert "1_2.tsv" in sentence
    assert "--use_annotations false" in sentence
    assert script_4(trained, path, tmp_path / "out", "--use_annotations", "false") == 0


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("10000_17728", "10000_17728"),
        ("..", "recording_"),
        ("../../etc/passwd", "etc_passwd_"),
        ("a b;rm -rf $HOME", "a_b_rm_-rf_HOME_"),
        (".hidden", "hidden_"),
        ("Ü", "recording_"),
        ("x" * 300, "x" * 100 + "_"),
    ],
)
def test_a_file_name_becomes_a_plain_folder_name(stem, name):
    got = files.safe_name(stem)
    assert re.fullmatch(re.escape(name) + "([0-9a-f]{8})?", got)
    assert (got == stem) == (name == stem)


def test_two_file_names_stay_two_folders():
    names = {files.safe_name(stem) for stem in ("a b", "a_b", "a;b", "Ü", "Ö", "recording")}
    assert len(names) == 6


# ------------------------------------------------------------------ whose probes
def test_probes_of_another_encoder_are_refused(tmp_path, trained, capsys):
    other = save_model(tmp_path / "other.pt", [], seed=1)
    probe_file = trained / "results" / "probes.npz"
    with pytest.raises(errors.ProbeError, match="fitted on another encoder"):
        load_scorer(other, probe_file)
    path = nch_file(seconds=120).write(tmp_path / "x.edf")
    code = script_4(trained, path, tmp_path / "out", "--paths.checkpoint", other)
    assert code == 2
    assert "other.pt" in one_sentence(capsys, code)
    again = save_model(tmp_path / "copy.pt", [], seed=0)  # another file, the same encoder
    assert load_scorer(again, probe_file).read_outs["sleep"].pooling == "time_abs"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": np.array("mean")}, "density reads .* pooling mean"),
        ({"sleep/pooling": np.array("mean")}, "probe of sleep reads .* pooling mean"),
        ({"sleep/pooling": np.array("time_abs@9")}, "no block 9"),
        ({"sleep/pooling": np.array("median")}, "median"),
        ({"sleep/pooling": np.array("time_abs@x")}, "sleep/pooling names no pooling"),
        ({"pooling": np.array("../x")}, "pooling names no pooling"),
        ({"sleep/normalise": np.array("twice")}, "neither none nor night"),
        ({"sleep/normalise": None}, "sleep/normalise"),
        ({"facts": None}, "which encoder"),
        ({"version": np.array(99)}, "update the code"),
        ({"density/axes_KF": None}, "which encoder"),
        ({"sleep/weight": np.zeros((3, 5))}, r"sleep/weight has the shape \(3, 5\)"),
        ({"sleep/bias": np.full(5, np.nan)}, "sleep/bias .* not finite"),
        ({"sleep/slope": np.array(np.inf)}, "sleep/slope .* not finite"),
        ({"sleep/slope": np.array("1")}, "sleep/slope holds no numbers"),
        ({"sleep/classes": np.arange(1, 6)}, "sleep/classes"),
        ({"sleep/shift": np.zeros(4)}, r"sleep/shift has the shape \(4,\)"),
        ({"density/rest_variance": np.array(0.0)}, "density/rest_variance .* above 0"),
        ({"density/quantile_Q": np.array([2.0, 1.0])}, "no quantiles"),
        ({"facts": np.array("[1]")}, "no mapping"),
        ({"facts": np.array("{")}, "which encoder"),
        ({"facts": np.array('{"n_features": NaN}')}, "the number NaN"),
        ({"facts": np.array('{"checkpoint": "x"}')}, "encoder_sha256 is missing"),
        ({"pooling": np.array("median")}, "median"),
    ],
)
def test_a_probe_file_that_does_not_fit_is_refused(tmp_path, trained, change, words):
    with np.load(trained / "results" / "probes.npz") as file:
        arrays = dict(file) | change
    np.savez(tmp_path / "p.npz", **{name: a for name, a in arrays.items() if a is not None})
    with pytest.raises(errors.ProbeError, match=words):
        load_scorer(trained / "model.pt", tmp_path / "p.npz")


def test_a_probe_file_holds_no_pickle(trained, tmp_path):
    with np.load(trained / "results" / "probes.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file)
    np.savez(tmp_path / "bad.npz", version=np.array([{}], dtype=object))
    with pytest.raises(errors.ProbeError, match="no probes of script 3"):
        load_probes(tmp_path / "bad.npz")


def test_an_archive_of_probes_that_claims_more_than_it_holds_is_not_unpacked(tmp_path):
    path = tmp_path / "p.npz"
    np.savez_compressed(path, version=np.array(2), pooling=np.zeros(100_000))
    with pytest.raises(errors.ProbeError, match="compressed"):
        load_probes(path)
    header = io.BytesIO()
    claimed = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, claimed)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version.npy", header.getvalue())
    with pytest.raises(errors.ProbeError, match="more numbers than it holds"):
        load_probes(path)


# ------------------------------------------------------------------ far from the training data
def test_a_planted_example_is_flagged_and_hardly_any_other(trained, scorer):
    examples = stored_examples(trained, "test")
    scorer = replace(scorer, far_share=0.05)
    usual = score_examples(scorer, examples)
    assert 0 < usual.far_N.mean() <= 0.12  # 144 epochs of three new patients
    examples.signals[7] = examples.signals[7, ::-1].copy()  # the channels in the wrong order
    examples.signals[8] *= 20
    examples.signals[9] = np.nan
    examples.present[7:10] = True  # the last a defect: claimed as recorded
    night = score_examples(scorer, examples)
    assert night.far_N[7:10].all()
    others = np.setdiff1d(np.arange(len(night)), [7, 8, 9])
    np.testing.assert_array_equal(night.far_N[others], usual.far_N[others])


class Drawn:
    """A table of features in memory, with what fit_density asks of one."""

    def __init__(self, x_NF):
        self.x_NF = x_NF

    def read(self, positions):
        return self.x_NF[positions].astype(np.float32)

    def chunks(self, positions, rows):
        yield slice(0, len(positions)), self.read(positions)


def test_the_flagged_share_of_new_draws_is_the_one_asked_for():
    rng = np.random.default_rng(0)
    spread = np.diag([5.0, 2, 1, 1, 1, 1]) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    x_NF = 3 + rng.normal(size=(30_000, 6)) @ spread
    density = fit_density(Drawn(x_NF), np.arange(4000), np.arange(4000, 24_000))
    distance_N = density.distance(x_NF[24_000:])
    for share in (0.01, 0.05, 0.2):
        assert (distance_N > density.threshold(share)).mean() == pytest.approx(share, rel=0.25)


def test_distance_is_counted_in_spreads_along_each_axis():
    density = TrainingDensity(
        mean_F=np.array([1.0, 0, 0, 0]),
        scale_F=np.array([2.0, 1, 1, 1]),
        axes_KF=np.array([[1.0, 0, 0, 0]]),
        variance_K=np.array([9.0]),
        rest_variance=np.array(0.25),
        quantile_Q=np.array([0.0, 1.0, 4.0]),
    )
    x_NF = np.array([[1.0, 0, 0, 0], [13, 0, 0, 0], [1, 0, 2, 0], [np.nan, 0, 0, 0]])
    # (13 - 1) / 2 = 6, which is 2 sd of 3; 2 is 4 sd of 0.5; over the root of four features.
    np.testing.assert_allclose(density.distance(x_NF), [0, 1, 2, np.inf])
    assert density.threshold(0.5) == 1.0
    assert density.threshold(0.25) == 2.5


# ------------------------------------------------------------------ figures of the night
def test_the_figures_of_a_night_by_hand(scorer):
    # 20 epochs awake, 40 in N2: 20 minutes of sleep; 8 epochs at 0.75, so 6 expected.
    night = make_night([0] * 20 + [2] * 40, apnea_hypopnea=[0.0] * 52 + [0.75] * 8)
    rows = {row["name"]: row for row in night_quantities(scorer, night)}
    assert rows["analysed_min"]["value"] == 30.0
    assert rows["sleep_min"]["value"] == rows["sleep_min"]["called"] == 20.0
    assert rows["sleep_efficiency"]["value"] == pytest.approx(100 * 2 / 3)
    assert rows["N2_min"]["value"] == 20.0
    index = rows["apnea_hypopnea_index"]
    assert index["value"] == pytest.approx(18.0)  # 6 epochs in a third of an hour
    assert index["called"] == pytest.approx(24.0)
    # Events of 30 s touch 2 epochs, of 10 s 4/3.
    assert index["events_per_hour"] == pytest.approx([9.0, 13.5])
    assert rows["arousal_index"]["value"] is None


def test_indices_count_events_where_the_probes_know_events_for_an_epoch(scorer):
    facts = scorer.basis.facts
    known = {"events_per_epoch": {"apnea_hypopnea_index": 0.5}}
    basis = replace(scorer.basis, facts=facts | {"nights": facts["nights"] | known})
    night = make_night([0] * 20 + [2] * 40, apnea_hypopnea=[0.0] * 52 + [0.75] * 8)
    labels = {task: np.zeros(60, int) for task in ("apnea", "hypopnea", "desaturation", "arousal")}
    labels |= {"sleep": night.called["sleep"], "apnea_hypopnea": np.arange(60) % 2}
    labels["apnea"] = np.arange(60) % 2
    begun = {kind: np.zeros(60, int) for kind in ("apnea", "hypop", "desat", "eeg")}
    begun["apnea"][[5, 30, 31]], begun["hypop"][40] = (4, 2, 1), 1  # four of them in wake
    night = replace(night, scored=labels, begun=begun)
    rows = night_quantities(replace(scorer, basis=basis), night)
    index = next(row for row in rows if row["name"] == "apnea_hypopnea_index")
    assert index["unit"] == "events per hour of sleep"
    assert index["value"] == pytest.approx(9.0)  # 6 epochs, 3 events, in a third of an hour
    assert index["called"] == pytest.approx(12.0)
    assert index["scored"] == pytest.approx(12.0)  # 3 apneas and a hypopnea
    assert "events_per_hour" not in index


def test_a_figure_that_cannot_be_had_says_why(scorer):
    no_sleep = make_night([0] * 40, apnea_hypopnea=[0.5] * 40)
    rows = {row["name"]: row for row in night_quantities(scorer, no_sleep)}
    assert rows["apnea_hypopnea_index"]["reason"] == "no sleep"
    assert rows["desaturation_index"]["reason"] == "the probe file holds no probe for it"
    events = {"apnea_hypopnea": no_sleep.prob["apnea_hypopnea"]}
    called = {"apnea_hypopnea": no_sleep.called["apnea_hypopnea"]}
    no_stages = Night(no_sleep.onsets_s, events, called, np.zeros(40), None)
    rows = {row["name"]: row for row in night_quantities(scorer, no_stages)}
    assert rows["sleep_min"]["reason"] == "the probe file holds no probe for it"
    assert "no time of sleep" in rows["apnea_hypopnea_index"]["reason"]
    assert len(annotation_rows(no_stages)) == 2


def test_an_event_of_d_seconds_touches_one_plus_d_over_30_epochs():
    rng = np.random.default_rng(0)
    for seconds in (3.0, 10.0, 30.0, 60.0):
        start_s = rng.uniform(0, 30, 100_000)
        touched = np.ceil((start_s + seconds) / 30)
        assert touched.mean() == pytest.approx(1 + seconds / 30, rel=0.01)


def test_a_night_unlike_the_training_data_is_cautioned_against():
    read_outs = {"sleep": {"pooling": "mean", "normalise": "night"}}
    read = {"read_outs": read_outs, "montage": ALL_CHANNELS}
    content = {
        "n_epochs": 900,
        "probes": {"simulated": False, "patient_disjoint": True, **read},
        "checkpoint": {"simulated": False},
        "recording_simulated": False,
        "far": {"share": 0.4, "expected_share": 0.01},
        "absent": [],
        "epochs": "at the scored rows",
        "lights": {"off_s": None, "on_s": None, "not_analysed_min": None},
    }
    (line,) = cautions(content)
    assert "do not rely" in line
    content["far"]["share"] = 0.02
    assert cautions(content) == []
    content["n_epochs"] = 60
    (line,) = cautions(content)
    assert "0.5 hours of it are little to rest on" in line
    content["n_epochs"], content["absent"] = 900, ["SPO2"]
    assert "montage_epochs" in cautions(content)[1]
    read["montage"] = "no chin"
    content["probes"] |= read
    assert "those for the montage “no chin”" in cautions(content)[1]


def test_a_sine_has_its_power_at_its_frequency():
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    hz, power_NM = report.power_density(20 * np.sin(2 * np.pi * 10 * time_s)[None])
    near = np.abs(hz - 10) <= 1
    step_hz = hz[1] - hz[0]
    assert power_NM[0, near].sum() * step_hz == pytest.approx(20**2 / 2, rel=0.01)
    assert power_NM[0, ~near].sum() < 1e-3 * power_NM[0, near].sum()


def test_a_gap_in_the_eeg_costs_the_spectrogram_that_epoch_alone(trained):
    examples = stored_examples(trained, "test")
    examples.signals[1, 4, :300] = np.nan
    figure = Figure()
    ax = figure.subplots()
    report._draw_spectrogram(figure, ax, examples.onsets_s / 3600, examples, 4)
    (mesh, *_) = [part for part in ax.get_children() if isinstance(part, QuadMesh)]
    low, high = mesh.get_clim()
    clean = examples.signals[:, 4].astype(float) * 1e6  # stored_examples has scale 1
    _, power_NM = report.power_density(np.delete(clean, 1, axis=0))
    assert low < 10 * np.log10(np.median(power_NM)) < high


def test_recordings_of_mne_refuse_what_gives_no_examples():
    info = mne.create_info(["EEG C4-M1", "nothing"], 128.0, "eeg")
    raw = mne.io.RawArray(
        np.random.default_rng(0).normal(0, 1e-5, (2, 128 * 60)), info, verbose="error"
    )
    with pytest.raises(RecordingError, match="only 1 channels"):
        pedsleepmae.examples_from_raw(raw)
    examples = pedsleepmae.examples_from_raw(raw, min_channels=1)
    assert np.isnan(examples.signals[:, 0]).all()
    assert np.isfinite(examples.signals[:, 4]).all()


# ------------------------------------------------------------------ montages
def test_probes_of_every_montage_come_back_and_the_table_shows_them(trained):
    content = json.loads((trained / "results" / "metrics.json").read_text("utf-8"))
    found = load_montages(trained / "results" / "probes.npz")
    assert set(found) == set(MONTAGES) - {ALL_CHANNELS}
    assert all(set(probes) == set(found["no EEG"]) for probes in found.values())
    rows = pd.DataFrame(content["montages"])
    assert set(rows["montage"]) == set(MONTAGES)
    ways = {"as fitted on all channels", "chosen for this montage"}
    assert set(rows["probes"]) == ways
    assert rows.set_index(["montage", "task", "probes"]).index.is_unique
    assert "With fewer channels" in (trained / "results" / "report.html").read_text("utf-8")


def test_a_task_that_cannot_be_refitted_for_a_montage_keeps_its_probe():
    choice = namedtuple("Choice", "probe score")
    kept = {task: choice(f"kept {task}", 0.8) for task in ("sleep", "apnea", "arousal")}
    refitted = {"sleep": choice("new sleep", 0.9), "arousal": choice("new arousal", None)}
    found = better_on_val(refitted, kept)
    assert found == {"sleep": "new sleep", "apnea": "kept apnea", "arousal": "kept arousal"}


def test_a_recording_is_scored_by_the_probes_of_its_own_montage(trained, scorer):
    examples = stored_examples(trained, "test")
    shown = np.isin(np.arange(N_CHANNELS), MONTAGES["effort, flow, SpO2"])
    few = replace(examples, present=examples.present & shown)
    assert score_examples(scorer, examples).montage == ALL_CHANNELS
    night = score_examples(scorer, few)
    assert night.montage == "effort, flow, SpO2"
    without = score_examples(replace(scorer, montages={}), few)
    assert without.montage == ALL_CHANNELS
    assert not np.allclose(night.prob["sleep"], without.prob["sleep"])
    lost = few.present.copy()  # electrodes that fell off after the first epoch
    lost[0] = True
    assert score_examples(scorer, replace(few, present=lost)).montage == "effort, flow, SpO2"
    # What the channels that are not there hold has no say.
    few.signals[:, ~shown] = 7
    again = score_examples(scorer, few)
    np.testing.assert_allclose(again.prob["sleep"], night.prob["sleep"], atol=1e-6)


@pytest.mark.parametrize(
    ("recorded", "not_counted"),
    [
        (range(N_CHANNELS), {}),
        (
            MONTAGES["two EEG, one EOG, chin, flow"],
            {"desaturation_index": "no SpO2 recorded"},
        ),
        (
            (0, 13, 15),
            {
                "apnea_hypopnea_index": "no flow or effort or SpO2 recorded",
                "desaturation_index": "no SpO2 recorded",
            },
        ),
    ],
)
def test_events_whose_sensor_was_not_recorded_are_not_counted(
    trained, scorer, recorded, not_counted
):
    examples = stored_examples(trained, "test")
    shown = np.isin(np.arange(N_CHANNELS), recorded)
    night = score_examples(scorer, replace(examples, present=examples.present & shown))
    everywhere = {task: np.ones(len(night), int) for task in INDICES.values()}
    sure = {task: np.tile([0.0, 1.0], (len(night), 1)) for task in INDICES.values()}
    night = replace(night, prob=night.prob | sure, called=night.called | everywhere)
    rows = {row["name"]: row for row in night_quantities(scorer, night)}
    kinds = {task for _, _, task, _ in event_rows(night)}
    for index, task in INDICES.items():
        row, reason = rows[index], not_counted.get(index)
        assert (task in kinds) == (reason is None)
        if reason:
            assert (row["value"], row["called"]) == (None, None)
            assert row["reason"] == row["called_reason"] == reason


def test_a_montage_that_nobody_knows_is_refused(trained, tmp_path):
    path = tmp_path / "probes.npz"
    with np.load(trained / "results" / "probes.npz") as arrays:
        named = {k.replace("no chin", "no legs"): v for k, v in arrays.items()}
    np.savez(path, **named)
    with pytest.raises(errors.ProbeError, match="there is no montage no legs"):
        load_scorer(trained / "model.pt", path)
