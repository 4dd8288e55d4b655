"""Many recordings in one call: each costs a row, none costs another, and none is scored twice."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import edfio
import pandas as pd
import pytest
from edf_files import nch_file, stage_rows, write_tsv
from matplotlib.figure import Figure
from small_probes import ROOT, fit_probes, run_script

from pedsleepmae import shipped
from pedsleepmae.errors import SettingsError
from pedsleepmae.score import files, nights, run
from pedsleepmae.score.night import load_scorer

FEW = ["EEG C4-M1", "EEG LOC-M2", "Resp Thoracic", "SPO2"]  # channels, to be quick


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return fit_probes(tmp_path_factory.mktemp("trained"), montage_epochs=0)


def options(trained: Path, output_dir: Path) -> list[str]:
    given = {"checkpoint": trained / "model.pt", "probes": trained / "results" / "probes.npz"}
    given["output_dir"] = output_dir
    return [word for key, path in given.items() for word in (f"--paths.{key}", str(path))]


def script_4(trained: Path, output_dir: Path, *argv) -> int:
    return run_script("4_score_recording.py", *argv, *options(trained, output_dir))


def write_edf(path: Path, seconds: int = 120, **fields) -> Path:
    return nch_file(seconds=seconds, labels=FEW, **fields).write(path)


def read_nights(output_dir: Path) -> pd.DataFrame:
    return pd.read_csv(output_dir / "nights.csv", index_col="recording", keep_default_na=False)


# ------------------------------------------------------------------ which recordings
def found(*words) -> list[str]:
    return [path.as_posix() for path in nights.find_recordings([str(word) for word in words])]


def annotations_alone(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    edfio.Edf([], annotations=[edfio.EdfAnnotation(0, 30, "Sleep stage W")]).write(path)


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Recordings in and below a folder, and what is none of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("one.edf", "study/b.EDF", "study/a.edf", "study/deep/c.edf", "x[1].edf"):
        write_edf(tmp_path / name, seconds=4)
    annotations_alone(tmp_path / "study" / "SC4001EC-Hypnogram.edf")
    annotations_alone(tmp_path / "study" / "out" / "a" / "annotations.edf")
    for name in ("study/.hidden.edf", "study/.cache/d.edf", "study/a.tsv", "study/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["one.edf"], ["one.edf"]),
        (["study"], ["study/a.edf", "study/b.EDF", "study/deep/c.edf"]),
        (["stud*"], ["study/a.edf", "study/b.EDF", "study/deep/c.edf"]),
        (["study/*.edf"], ["study/a.edf"]),
        (["**/c.edf"], ["study/deep/c.edf"]),
        (["x[1].edf"], ["x[1].edf"]),  # a file of that name comes before the pattern
        (["one.edf", "study/deep", "o*.edf"], ["one.edf", "study/deep/c.edf"]),
        (["study/deep/../a.edf", "study/a.edf"], ["study/deep/../a.edf"]),
        (["study/notes.txt", "one.edf"], ["study/notes.txt", "one.edf"]),  # named: told why not
        (["study/SC4001EC-Hypnogram.edf", "one.edf"], ["one.edf"]),
    ],
)
def test_files_folders_and_patterns_give_each_recording_once(tree, words, expected):
    assert found(*words) == expected


def test_what_was_left_out_is_told(tree, capsys):
    found("study")
    assert "annotations alone, which are no recordings: 2 left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["one.edf", "no*.edf"], "no EDF file matches the pattern no.*edf"),
        (["one.edf", "two.edf"], "there is no file two.edf"),
        (["study/.cache/../out"], "hold annotations alone"),
        (["study/deep/*.tsv"], "no EDF file matches"),
        ([""], "there is no file"),
    ],
)
def test_a_word_that_leads_to_no_recording_is_refused(tree, words, sentence):
    with pytest.raises(SettingsError, match=sentence):
        found(*words)


def test_links_in_a_circle_are_searched_once(tree):
    (tree / "study" / "deep" / "up").symlink_to(tree / "study")
    assert len(found("study")) == 3
    assert len(found("study/**/*.edf")) == 2


def test_recordings_of_one_name_get_folders_of_their_own_wherever_the_study_lies():
    names = []
    for root in ("/data", "/mnt/copy/of"):
        given = [Path(root) / name for name in ("B/x.edf", "A/x.edf", "A/X.EDF", "A/y.edf")]
        names.append([*files.name_folders(given).values()])
        # Another order, and other recordings beside them, change no name.
        more = files.name_folders([*reversed(given), Path(root) / "C/z.edf"])
        assert [more[path] for path in given] == [files.name_folders(given)[path] for path in given]
    assert names[0] == names[1]
    assert len({name.lower() for name in names[0]}) == 4
    assert sorted(names[0])[-1] == "y"
    assert all(re.fullmatch("(x|X|y)(_[0-9a-f]{8})?", name) for name in names[0])


@pytest.mark.parametrize("stem", ["nights.csv", "Nights.CSV", "a\udcff"])
def test_no_recording_takes_the_place_of_the_table(stem):
    assert re.fullmatch(r"[A-Za-z.]+_[0-9a-f]{8}", files.safe_name(stem))


# ------------------------------------------------------------------ a row each
@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory) -> Path:
    """A folder of recordings, two of which are good, scored into its sub-folder out."""
    folder = tmp_path_factory.mktemp("cohort")
    write_edf(folder / "good.edf")
    write_edf(folder / "site" / "good.edf", seconds=1260)
    write_tsv(folder / "site" / "good.tsv", stage_rows(0, "W" + "2" * 35 + "R" * 5))
    (folder / "damaged.edf").write_bytes(b"0" * 3000)
    (folder / "empty.edf").touch()
    (folder / "folder.edf").mkdir()
    os.mkfifo(folder / "pipe.edf")
    (folder / "lost.edf").symlink_to(folder / "nowhere.edf")
    nch_file(seconds=60, labels=["Nonsense"]).write(folder / "=no channel.edf")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.edf")).write_bytes(b"x")
    assert script_4(trained, folder / "out", folder) == 0
    return folder


def test_each_recording_costs_one_row_and_a_bad_one_says_why(scored):
    table = read_nights(scored / "out")
    assert len(table) == 9
    assert (table["status"] == "scored").sum() == 2
    reasons = dict(zip(table["file"].str.split("/").str[-1], table["reason"], strict=True))
    assert reasons.pop("good.edf") == ""
    for name, words in {
        "damaged.edf": "no readable EDF file",
        "empty.edf": "no readable EDF file",
        "folder.edf": "is a folder, not a file",
        "pipe.edf": "is a pipe, not a file",
        "lost.edf": "is a link to nothing",
        "=no channel.edf": "only 0 channels",
        "\\udcff.edf": "no readable EDF file",
    }.items():
        assert words in reasons.pop(name)
    assert not reasons


def test_a_row_holds_the_figures_of_the_summary(scored):
    table = read_nights(scored / "out")
    second = next(name for name in table.index if name.startswith("good_"))
    for name in ("good", second):
        summary = json.loads((scored / "out" / name / "summary.json").read_text())
        row = table.loc[name]
        assert (float(row["hours"]), int(row["epochs"])) == (
            summary["hours_recorded"],
            summary["n_epochs"],
        )
        assert int(row["n_cautions"]) == len(summary["cautions"])
        assert (int(row["n_channels"]), row["montage"]) == (4, summary["probes"]["montage"])
        assert float(row["far_share"]) == summary["far"]["share"]
        for quantity in summary["quantities"]:
            cell = row[quantity["name"]]
            assert (float(cell) if cell else None) == quantity["value"]
    assert table.loc[second, "sleep_min_scored"] == "20.0"  # 40 epochs
    assert table.loc["good", "sleep_min_scored"] == ""  # nobody scored it
    assert float(table.loc[second, "kappa"]) == summary["agreement"]["kappa"]
    assert "apnea_hypopnea_index_scored" not in table  # nobody scored an event of any
    units = pd.read_csv(scored / "out" / "nights_units.csv", index_col="quantity")["unit"]
    assert units["sleep_min"] == "min"
    assert list(units.index) == [quantity["name"] for quantity in summary["quantities"]]
    assert set(units.index) <= set(table)


def test_a_formula_in_a_name_is_a_text(scored):
    text = (scored / "out" / "nights.csv").read_text()
    assert "no medical device" in text
    assert not re.search(r"(^|,)=", text, re.MULTILINE)


def test_what_is_scored_is_not_scored_again(trained, scored, capsys, monkeypatch):
    before = (scored / "out" / "nights.csv").read_bytes()
    report = scored / "out" / "good" / "report.html"
    changed = report.stat().st_mtime_ns
    assert script_4(trained, scored / "out", scored) == 0
    told = capsys.readouterr()
    assert "2 of 9 recordings are scored already" in told.err
    assert "2 of 9 recordings are scored\n7 could not be scored" in told.out
    assert (scored / "out" / "nights.csv").read_bytes() == before
    assert report.stat().st_mtime_ns == changed
    assert script_4(trained, scored / "out", scored, "--strict") == 3


# ------------------------------------------------------------------ what is finished
@pytest.fixture
def two(tmp_path, monkeypatch) -> Path:
    """A folder with two recordings in in/; pages get no picture, to be quick."""
    monkeypatch.setattr(run.report, "draw_night", lambda *_: Figure((1, 1)))
    for name in ("a.edf", "b.edf"):
        write_edf(tmp_path / "in" / name, seconds=60)
    return tmp_path


def scored_now(trained, folder, monkeypatch, *argv) -> list[str]:
    """The recordings that a run on folder/in scores; the others are taken as they are."""
    names, score = [], run.score_recording

    def count(scorer, recording, *args, **kwargs):
        names.append(recording.name)
        return score(scorer, recording, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run, "score_recording", count)
        assert script_4(trained, folder / "out", folder / "in", *argv) == 0
    return names


def test_new_probes_that_ship_make_results_anew_from_any_folder(trained, tmp_path, monkeypatch):
    probes = tmp_path / "shipped" / "checkpoint" / "probes.npz"
    probes.parent.mkdir(parents=True)
    probes.write_bytes(b"old")
    monkeypatch.setattr(shipped, "shipped_path", lambda name: tmp_path / "shipped" / name)
    monkeypatch.chdir(tmp_path)
    scorer = load_scorer(trained / "model.pt", trained / "results" / "probes.npz")
    settings = run.ScoreSettings(use_annotations=False)
    assert not settings.paths.probes.exists()
    before = run.fingerprint(scorer, tmp_path / "a.edf", settings)
    probes.write_bytes(b"other")
    assert run.fingerprint(scorer, tmp_path / "a.edf", settings) != before


def test_what_a_result_depends_on_makes_it_anew(trained, two, monkeypatch):
    assert scored_now(trained, two, monkeypatch) == ["a.edf", "b.edf"]
    assert scored_now(trained, two, monkeypatch) == []
    write_tsv(two / "in" / "a.tsv", stage_rows(0, "W2"))
    assert scored_now(trained, two, monkeypatch) == ["a.edf"]
    os.utime(two / "in" / "b.edf", ns=(1, 1))
    assert scored_now(trained, two, monkeypatch) == ["b.edf"]
    (two / "out" / "a" / "epochs.csv").unlink()
    assert scored_now(trained, two, monkeypatch) == ["a.edf"]
    (two / "out" / "b" / ".state.json").write_text("{")
    assert scored_now(trained, two, monkeypatch) == ["b.edf"]
    assert scored_now(trained, two, monkeypatch, "--far_share", "0.05") == ["a.edf", "b.edf"]
    assert scored_now(trained, two, monkeypatch, "--far_share=0.05", "--batch_size=3") == []


def test_a_recording_scored_alone_under_other_settings_is_not_taken_for_finished(
    trained, two, monkeypatch
):
    scored_now(trained, two, monkeypatch)
    assert script_4(trained, two / "out", two / "in" / "a.edf", "--grid_offset_s", "10") == 0
    assert scored_now(trained, two, monkeypatch) == ["a.edf"]


def test_a_run_that_is_stopped_keeps_what_it_did_and_goes_on(trained, tmp_path):
    for k in range(6):
        write_edf(tmp_path / "in" / f"{k}.edf", seconds=60)
    table = tmp_path / "out" / "nights.csv"
    command = [sys.executable, "-W", "error", "4_score_recording.py", str(tmp_path / "in")]
    command += options(trained, tmp_path / "out")
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not table.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate(timeout=100)[1]
    assert process.returncode == 1
    assert "run it again: it goes on where it stopped" in stderr.splitlines()[-1]
    done = read_nights(tmp_path / "out")
    assert 1 <= len(done) < 6
    assert set(done["status"]) == {"scored"}
    first = tmp_path / "out" / "0" / "report.html"
    changed = first.stat().st_mtime_ns
    assert script_4(trained, tmp_path / "out", tmp_path / "in") == 0
    assert first.stat().st_mtime_ns == changed
    assert len(read_nights(tmp_path / "out")) == 6


def test_a_result_that_was_half_written_does_not_count(trained, two, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.report, "write_report", stop)
        assert script_4(trained, two / "out", two / "in") == 1
    assert (two / "out" / "a" / "epochs.csv").exists()
    assert scored_now(trained, two, monkeypatch) == ["a.edf", "b.edf"]


# ------------------------------------------------------------------ what goes wrong
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no GPU"), AttributeError("x")])
def test_what_nobody_foresaw_costs_one_row_and_leaves_where_it_happened(
    trained, two, monkeypatch, capsys, error
):
    read = run.open_edf

    def fail(path):
        if path.name == "a.edf":
            raise error
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(run, "open_edf", fail)
        assert script_4(trained, two / "out", two / "in") == 0
    table, log = read_nights(two / "out"), two / "out" / "a" / "traceback.txt"
    assert table["status"].tolist() == ["failed", "scored"]
    assert f"unforeseen {type(error).__name__}" in table.loc["a", "reason"]
    assert "a/traceback.txt" in table.loc["a", "reason"]
    assert "in fail" in log.read_text()
    assert "Traceback" not in capsys.readouterr().err
    assert script_4(trained, two / "out", two / "in") == 0
    assert not log.exists()


def test_a_disk_that_does_not_give_a_recording_costs_one_row(trained, two, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(run, "open_edf", fail)
    assert script_4(trained, two / "out", two / "in") == 1
    table = read_nights(two / "out")
    assert table.loc["a", "reason"] == "cannot be read (Input/output error)"


def test_a_file_where_a_folder_of_results_belongs_costs_one_row_and_stays(trained, two):
    (two / "out").mkdir()
    (two / "out" / "a").write_text("mine")
    assert script_4(trained, two / "out", two / "in") == 0
    assert "cannot be made or written" in read_nights(two / "out").loc["a", "reason"]
    assert (two / "out" / "a").read_text() == "mine"


def test_a_full_disk_stops_the_run_with_a_sentence(trained, two, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "epochs.csv")

    monkeypatch.setattr(run.files, "write_night", fail)
    assert script_4(trained, two / "out", two / "in") == 1
    *_, sentence = capsys.readouterr().err.strip().splitlines()
    assert "No space left on device" in sentence
    assert "it goes on where it stopped" in sentence
    assert not (two / "out" / "nights.csv").exists()


def test_without_any_scored_recording_the_run_has_failed(trained, tmp_path, capsys):
    for name in ("a.edf", "b.edf"):
        (tmp_path / name).write_bytes(b"no EDF")
    assert script_4(trained, tmp_path / "out", tmp_path) == 1
    *_, sentence = capsys.readouterr().err.strip().splitlines()
    assert "none of 2 recordings could be scored" in sentence
    assert "a.edf: no readable EDF file" in sentence
    assert len(read_nights(tmp_path / "out")) == 2


def test_one_scoring_for_several_recordings_is_a_bad_call(trained, two, capsys):
    scoring = write_tsv(two / "a.tsv", stage_rows(0, "W2"))
    with pytest.raises(SystemExit, match="2"):
        script_4(trained, two / "out", two / "in", "--paths.annotations", scoring)
    assert "found by their names" in capsys.readouterr().err
    assert not (two / "out").exists()
