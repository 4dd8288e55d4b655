"""Files written whole or not at all, and read back as they were written."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from pedsleepmae import disk, splits, store
from pedsleepmae.store import Examples, StoreError
from pedsleepmae.tasks import LABELS


def make_examples(n=5, patients=(3, 7), seed=0):
    rng = np.random.default_rng(seed)
    return Examples(
        signals=rng.normal(size=(n, 16, 3840)).astype(np.float16),
        labels={name: rng.integers(-1, 5, n) for name in LABELS},
        patient_ids=np.resize(patients, n),
        study_ids=np.resize((11, 13, 17), n),
        onsets_s=rng.uniform(0, 1e5, n),
        present=rng.random((n, 16)) < 0.7,
        center=rng.normal(size=(n, 16)),
        scale=rng.random((n, 16)),
    )


def write_folder(folder, split_patients, **facts):
    facts = {"split_hash": "abc", "patient_disjoint": True, "simulated": False} | facts
    for split, patients in split_patients.items():
        examples = make_examples(4, patients)
        store.write_batch(store.batch_path(folder, split, 0), examples, **facts)


def test_an_example_file_holds_what_the_contract_says(tmp_path):
    examples = make_examples()
    store.write_examples([tmp_path / f"{i}.hdf5" for i in range(5)], examples)
    with h5py.File(tmp_path / "1.hdf5") as file:
        np.testing.assert_array_equal(file["signal"][()], examples.signals[1])
        assert file["signal"].dtype == np.float16
        for name, dataset in (
            ("sleep", "sleep_label"),
            ("apnea", "apnea_label"),
            ("hypop", "hypop_label"),
            ("desat", "desat_label"),
            ("eeg", "eeg_label"),
        ):
            assert file[dataset][()] == examples.labels[name][1]
            assert file[dataset].shape == ()
        assert (file["patID"][()], file["studID"][()]) == (7, 13)
        assert file.attrs["onset_s"] == examples.onsets_s[1]
        np.testing.assert_array_equal(file.attrs["channels_present"], examples.present[1])
        assert file.attrs["channels_present"].dtype == bool
        np.testing.assert_array_equal(file.attrs["center"], examples.center[1])
        np.testing.assert_array_equal(file.attrs["scale"], examples.scale[1])
        assert file.attrs["format_version"] == store.FORMAT_VERSION


def test_example_files_are_read_back_as_they_were_written(tmp_path):
    examples = make_examples()
    paths = [tmp_path / f"{i}.hdf5" for i in range(5)]
    store.write_examples(paths, examples)
    order = [3, 0, 4]
    back = store.read_examples([paths[i] for i in order])
    np.testing.assert_array_equal(back.signals, examples.signals[order])
    np.testing.assert_array_equal(back.present, examples.present[order])
    np.testing.assert_array_equal(back.labels["eeg"], examples.labels["eeg"][order])


def test_a_torn_example_file_is_named(tmp_path):
    path = tmp_path / "3_11_sample_0.hdf5"
    store.write_examples([path], make_examples(1))
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(StoreError, match="3_11_sample_0"):
        store.read_examples([path])


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_and_fail():
        with disk.write_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_batch_files_hold_what_the_contract_says(tmp_path):
    write_folder(tmp_path, {"train": (1,)})
    with h5py.File(tmp_path / "train" / "combined_0.hdf5") as file:
        names = "signals sleep_labels apnea_labels desat_labels eeg_labels hypop_labels"
        names += " patient_ids study_ids onsets_s channels_present"
        assert set(names.split()) <= set(file)
        assert file["signals"].shape == (4, 16, 3840)
        assert file["channels_present"].shape == (4, 16)
        assert file["signals"].id.get_offset() is not None  # contiguous: can be mapped


def test_signals_come_in_the_order_asked_for(tmp_path):
    write_folder(tmp_path, {"train": (1,), "val": (2,), "test": (3,)})
    index = store.load_index(tmp_path)
    assert len(index) == 12
    whole = np.concatenate([store.map_signals(path) for path in index.files])
    order = [7, 0, 11, 3]
    np.testing.assert_array_equal(store.read_signals(index, order), whole[order])


def test_threads_that_write_leave_nothing_writable_for_everybody(tmp_path, monkeypatch):
    set_umask = os.umask

    def slowly(mask):  # whoever changes the mask for a moment is seen by the other threads
        before = set_umask(mask)
        time.sleep(0.002)
        return before

    def write_many(thread):
        for i in range(20):
            with disk.write_whole(tmp_path / f"{thread}_{i}") as temporary:
                temporary.write_bytes(b"")

    before = set_umask(0o027)
    monkeypatch.setattr(os, "umask", slowly)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write_many, range(4)))
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
    finally:
        left = set_umask(before)
    assert left == 0o027


def test_7_a_patient_in_two_splits_is_refused_with_the_count(tmp_path):
    write_folder(tmp_path, {"train": (1, 2, 3), "val": (3,), "test": (2,)})
    with pytest.raises(StoreError, match="2 patients stand in more than one"):
        store.load_index(tmp_path)


def test_a_split_in_time_says_so(tmp_path):
    write_folder(tmp_path, {"train": (1,), "test": (1,)}, patient_disjoint=False)
    assert not store.load_index(tmp_path).patient_disjoint


def test_files_of_two_runs_are_not_mixed(tmp_path):
    write_folder(tmp_path, {"train": (1,)})
    write_folder(tmp_path, {"val": (2,)}, split_hash="other")
    with pytest.raises(StoreError, match="2 different runs"):
        store.load_index(tmp_path)


def test_an_unfinished_folder_is_refused(tmp_path):
    write_folder(tmp_path, {"train": (1,)})
    store.write_grouping_state(tmp_path, "x", complete=False)
    with pytest.raises(StoreError, match="stopped before all batch files"):
        store.load_index(tmp_path)


def test_a_folder_of_the_original_authors_is_split_by_patient_row_by_row(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        with h5py.File(tmp_path / f"combined_{i}.hdf5", "w") as file:
            file["signals"] = rng.normal(size=(40, 16, 3840))  # float64, as they wrote
            for _, dataset in LABELS.values():
                file[dataset] = rng.integers(0, 2, 40)
            file["patient_ids"] = rng.integers(1, 11, 40)
            file["study_ids"] = rng.integers(1, 11, 40)
    index = store.load_index(tmp_path, val_fraction=0.2, test_fraction=0.2, seed=1)
    assert index.patient_disjoint
    assert splits.count_patients_in_two_splits(index.patient_ids, index.split) == 0
    assert all(len(index.rows(split)) for split in ("train", "val", "test"))
    assert index.present.all()
    assert np.isnan(index.onsets_s).all()
    assert len(index.split_hash) == 16


def test_a_folder_without_batch_files_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(StoreError, match=r"paths\.batches_dir"):
        store.load_index(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,split\n1,train\n", "patient_id"),
        ("patient_id,split\n1,training\n", "unknown split"),
        ("patient_id,split\n1,train\n1,test\n", "two splits"),
        ("patient_id,split\nx,train\n", "whole numbers"),
    ],
)
def test_a_bad_splits_csv_is_refused(tmp_path, text, message):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(StoreError, match=message):
        store.read_splits(tmp_path)


def test_batch_files_tell_their_scaling_and_older_ones_do_not(tmp_path):
    write_folder(tmp_path / "new", {"train": (1,), "val": (2,)}, scaling="fitted")
    assert store.load_index(tmp_path / "new").scaling == "fitted"
    write_folder(tmp_path / "old", {"train": (1,), "val": (2,)})
    for path in (tmp_path / "old").rglob("*.hdf5"):
        with h5py.File(path, "a") as file:
            del file.attrs["scaling"]
    assert store.load_index(tmp_path / "old").scaling == ""
    write_folder(tmp_path / "old", {"val": (2,)}, scaling="original")
    with pytest.raises(StoreError, match="come from 2 different runs"):
        store.load_index(tmp_path / "old")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("hypop_labels", "holds no hypop_labels"), ("signals", r"have the shape \(4, 16, 100\)")],
)
def test_a_batch_file_that_lacks_something_is_named(tmp_path, dataset, message):
    write_folder(tmp_path, {"train": (1,), "val": (2,)})
    with h5py.File(store.batch_path(tmp_path, "val", 0), "a") as file:
        del file[dataset]
        if dataset == "signals":
            file["signals"] = np.zeros((4, 16, 100), np.float16)
    with pytest.raises(StoreError, match=rf"combined_0\.hdf5: .*{message}"):
        store.load_index(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_state_of_the_grouping_counts_as_not_there(tmp_path, content):
    (tmp_path / store.GROUPING_STATE).write_bytes(content)
    assert store.read_grouping_state(tmp_path) == {}
