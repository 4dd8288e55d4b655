"""Script 1 replaces what it wrote itself, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from edf_files import nch_study

ROOT = Path(__file__).resolve().parents[1]


def prepare(folder: Path, *options: str, examples: str = "examples") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "1_prepare_dataset.py"), "--n_workers", "1"]
    command += ["--paths.recordings_dir", str(folder / "recordings")]
    command += ["--paths.examples_dir", str(folder / examples)]
    command += ["--paths.batches_dir", str(folder / "batches"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.fixture
def folder(tmp_path):
    for patient in (5, 6, 7):
        nch_study(tmp_path / "recordings", f"{patient}_1")
    return tmp_path


@pytest.fixture
def prepared(folder):
    run = prepare(folder)
    assert run.returncode == 0, run.stderr
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(folder: Path, run: subprocess.CompletedProcess, name: str) -> None:
    assert run.returncode == 2, run.stderr
    assert name in run.stderr
    assert "was not written by script 1" in run.stderr
    assert "Traceback" not in run.stderr


def put_note(folder: Path) -> Path:
    path = folder / "examples" / "5_1" / "note.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("look at epoch 7")
    return path


def put_original_example(folder: Path) -> Path:
    """As the original authors' script names and writes it."""
    path = folder / "examples" / "5_1" / "5_1_sample_0.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["signal"] = np.zeros((16, 3840))
    return path


def put_link(folder: Path) -> Path:
    """A folder of elsewhere in the place of a study's examples."""
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "5_1_sample_0.hdf5").write_bytes(b"x")
    (folder / "examples").mkdir()
    path = folder / "examples" / "5_1"
    path.symlink_to(folder / "elsewhere")
    return path


def put_batch_file(folder: Path) -> Path:
    path = folder / "batches" / "train" / "combined_3.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["signals"] = np.zeros((2, 16, 3840))
    return path


def put_no_hdf5(folder: Path) -> Path:
    path = folder / "batches" / "val" / "combined_0.hdf5"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    return path


def put_table(folder: Path) -> Path:
    path = folder / "batches" / "studies.csv"
    path.parent.mkdir()
    path.write_text("study,remark\n1,good\n")
    return path


def put_events(folder: Path) -> Path:
    path = folder / "batches" / "events.csv"
    path.parent.mkdir()
    path.write_text("onset,duration,trial_type\n1,2,good\n")
    return path


@pytest.mark.parametrize(
    "put",
    [put_events, put_note, put_original_example, put_link, put_batch_file, put_no_hdf5, put_table],
)
def test_what_stands_in_the_way_is_named_and_left_alone(folder, put):
    path = put(folder)
    before = everything(folder)
    run = prepare(folder)
    assert_refused(folder, run, str(path))
    after = everything(folder)
    assert before.items() <= after.items()


def test_recordings_that_are_links_lose_nothing_beside_them(tmp_path):
    """examples_dir is the recordings' folder; the EDF is a link to a disk that is read only."""
    beside = tmp_path / "recordings" / "5_1"
    nch_study(beside, "5_1")
    (tmp_path / "disk").mkdir()
    (beside / "5_1.edf").rename(tmp_path / "disk" / "5_1.edf")
    (beside / "5_1.edf").symlink_to(tmp_path / "disk" / "5_1.edf")
    (beside / "note.txt").write_text("keep")
    before = everything(tmp_path)
    run = prepare(tmp_path, examples="recordings")
    assert_refused(tmp_path, run, str(beside))
    assert before.items() <= everything(tmp_path).items()


def test_a_file_that_was_put_beside_finished_examples_stops_what_would_replace_them(prepared):
    put_note(prepared)
    before = everything(prepared)
    assert_refused(prepared, prepare(prepared, "--clip", "10"), "note.txt")
    assert before.items() <= everything(prepared).items()


def test_a_foreign_batch_file_that_was_added_stops_what_would_replace_it(prepared):
    path = prepared / "batches" / "train" / "combined_9.hdf5"
    with h5py.File(path, "w") as file:
        file["signals"] = np.zeros((2, 16, 3840))
    before = everything(prepared)
    assert_refused(prepared, prepare(prepared, "--clip", "10"), "combined_9.hdf5")
    assert before.items() <= everything(prepared).items()


def test_our_own_files_are_known_without_their_state(prepared):
    before = everything(prepared)
    shutil.rmtree(prepared / "examples" / ".prepared")
    (prepared / "batches" / ".grouping.json").unlink()
    run = prepare(prepared)
    assert run.returncode == 0, run.stderr
    after = everything(prepared)
    hdf5 = [name for name in before if name.endswith(".hdf5")]
    assert {name: before[name] for name in hdf5} == {name: after[name] for name in hdf5}


def test_a_damaged_example_costs_one_recording_prepared_anew(prepared):
    before = everything(prepared)
    shutil.rmtree(prepared / "batches")
    path = prepared / "examples" / "6_1" / "6_1_sample_1.hdf5"
    size = path.stat().st_size
    with h5py.File(path, "a") as file:
        del file["signal"]
        file["signal"] = np.zeros((16, 100), np.float16)
    os.truncate(path, size)  # has_examples looks at sizes, grouping at the content
    run = prepare(prepared)
    assert run.returncode == 0, run.stderr
    assert "6_1_sample_1.hdf5" in run.stderr
    assert "prepared anew" in run.stderr
    after = everything(prepared)
    hdf5 = [name for name in before if name.endswith(".hdf5")]
    assert {name: before[name] for name in hdf5} == {name: after[name] for name in hdf5}


def test_temporary_names_of_other_programs_are_left_alone(prepared):
    other = prepared / "examples" / ".download.partial"
    other.write_text("half of it")
    ours = prepared / "examples" / ".5_1.0123abcd.partial"
    ours.mkdir()
    run = prepare(prepared, "--clip", "10")
    assert run.returncode == 0, run.stderr
    assert other.exists()
    assert not ours.exists()


def test_a_splits_csv_that_says_the_same_is_not_rewritten(prepared):
    path = prepared / "batches" / "splits.csv"
    text = "".join(f"{line},x\n" for line in path.read_text().splitlines())
    path.write_text(text)  # a column of the user's
    assert prepare(prepared, "--clip", "10").returncode == 0
    assert path.read_text() == text
