"""Files written whole or not at all, and read back as they were written."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest

from pedsleepmae import disk, hdf5, splits, store
from pedsleepmae.prepare import tables
from pedsleepmae.store import Examples, StoreError
from pedsleepmae.tasks import LABELS, LARGEST_CODE


def make_examples(n=5, patients=(3, 7), seed=0):
    rng = np.random.default_rng(seed)
    return Examples(
        signals=rng.normal(size=(n, 16, 3840)).astype(np.float16),
        labels={
            name: rng.integers(-(name == "sleep"), LARGEST_CODE[name] + 1, n) for name in LABELS
        },
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
        examples = make_examples(4, patients, seed=len(split))
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


def test_texts_that_a_spreadsheet_would_compute_are_guarded(tmp_path):
    texts = ["=cmd|' /C calc'!A0", "+1+1", "-2.5", "@SUM(A1)", "C3-M2", None, "\udcff.edf"]
    table = pd.DataFrame({"label": texts, "value": [-1.5, 2, 3, 4, 5, 6, 7], "n": [-1] * 7})
    disk.write_table(tmp_path / "table.csv", table)
    lines = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    assert [line.rsplit(",", 2)[0] for line in lines[1:]] == [
        "'=cmd|' /C calc'!A0", "'+1+1", "-2.5", "'@SUM(A1)", "C3-M2", "", r"\udcff.edf",
    ]  # fmt: skip
    assert lines[1].endswith(",-1.5,-1")


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
        tables.read_splits(tmp_path)


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


# ------------------------------------------------------------------ batch files of strangers
def change(file, name, values):
    """Put other values into the place of a dataset."""
    del file[name]
    file[name] = values


def link_out(file, path, name="signals"):
    """A link to a dataset of another file in the place of one."""
    del file[name]
    file[name] = h5py.ExternalLink(str(path.with_name("other.hdf5")), name)


def store_outside(file, path):
    """Signals whose bytes lie in another file."""
    raw = path.with_name("noise.bin")
    raw.write_bytes(np.random.default_rng(0).bytes(4 * 16 * 3840 * 2))
    del file["signals"]
    file.create_dataset("signals", (4, 16, 3840), np.float16, external=[(str(raw), 0, 4 * 122880)])


def map_outside(file, path):
    """Signals that are a view of another file's."""
    source = h5py.VirtualSource(str(path.with_name("other.hdf5")), "signals", (4, 16, 3840), "f2")
    layout = h5py.VirtualLayout((4, 16, 3840), np.float16)
    layout[:] = source
    del file["signals"]
    file.create_virtual_dataset("signals", layout)


def claim_much(file, _path):
    """A terabyte of signals that nobody wrote."""
    del file["signals"]
    shape, chunks = (8_000_000, 16, 3840), (1, 16, 3840)
    file.create_dataset("signals", shape, np.float16, chunks=chunks, compression="gzip")


ODD_FILES = {
    "link": (link_out, "signals is a link"),
    "external storage": (store_outside, "signals lies in another file"),
    "virtual dataset": (map_outside, "signals lies in another file"),
    "huge claim": (claim_much, "signals claims 983,040,000,000 bytes"),
    "soft link": (
        lambda file, _: (
            file.move("signals", "x"),
            file.__setitem__("signals", h5py.SoftLink("/x")),
        ),
        "signals is a link",
    ),
    "texts": (lambda file, _: change(file, "signals", ["a"] * 4), "no array of numbers"),
    "whole numbers": (
        lambda file, _: change(file, "signals", np.zeros((4, 16, 3840), np.int16)),
        "type int16",
    ),
    "labels of three": (
        lambda file, _: change(file, "desat_labels", [0, 1, 0]),
        r"desat_labels have the shape \(3,\); \(4,\) is needed",
    ),
    "patients of five": (
        lambda file, _: change(file, "patient_ids", [3, 7, 3, 7, 3]),
        "patient_ids have the shape",
    ),
    "channels of three": (
        lambda file, _: change(file, "channels_present", np.ones((3, 16), bool)),
        "channels_present have the shape",
    ),
    "stage 7": (lambda file, _: change(file, "sleep_labels", [0, 7, 1, 2]), "sleep_labels hold 7"),
    "apnea 4": (lambda file, _: change(file, "apnea_labels", [0, 0, 4, 1]), "apnea_labels hold 4"),
    "arousal -1": (lambda file, _: change(file, "eeg_labels", [0, 0, -1, 1]), "eeg_labels hold -1"),
    "no split hash": (
        lambda file, _: file.attrs.__setitem__("split_hash", h5py.Empty("f4")),
        "split_hash is not what it should be",
    ),
    "half a patient": (
        lambda file, _: change(file, "patient_ids", [3, 7, 3.5, 7]),
        "patient_ids are no whole numbers",
    ),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_batch_file_that_is_not_what_it_seems_is_refused_by_name(tmp_path, kind):
    edit, message = ODD_FILES[kind]
    write_folder(tmp_path, {"train": (1,), "val": (2,)})
    path = store.batch_path(tmp_path, "val", 0)
    store.write_batch(
        path.with_name("other.hdf5"),
        make_examples(4, seed=1),
        split_hash="abc",
        patient_disjoint=True,
        simulated=False,
    )
    store.load_index(tmp_path)
    with h5py.File(path, "a") as file:
        edit(file, path)
    with pytest.raises(StoreError, match=rf"val/combined_0\.hdf5: .*{message}"):
        store.load_index(tmp_path)
    if "signals" in message or "type" in message:
        with pytest.raises(StoreError, match=message):
            store.map_signals(path)


def test_compressed_files_of_others_are_read(tmp_path):
    write_folder(tmp_path, {"train": (1,), "val": (2,)})
    path = store.batch_path(tmp_path, "train", 0)
    wanted = np.array(store.map_signals(path))
    with h5py.File(path, "a") as file:
        del file["signals"]
        file.create_dataset("signals", data=wanted, chunks=(1, 16, 3840), compression="gzip")
    index = store.load_index(tmp_path)
    np.testing.assert_array_equal(store.read_signals(index, np.arange(4)), wanted)


def test_a_batch_file_that_is_missing_doubled_or_added_since_grouping_is_named(tmp_path):
    write_folder(tmp_path, {"train": (1,), "val": (2,)})
    facts = {"split_hash": "abc", "patient_disjoint": True, "simulated": False}
    second = store.batch_path(tmp_path, "train", 1)
    store.write_batch(second, make_examples(3, (1,), seed=5), **facts)
    store.write_grouping_state(tmp_path, "x", complete=True)
    assert len(store.load_index(tmp_path)) == 11
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(StoreError, match=r"train/combined_1\.hdf5: is missing since"):
        store.load_index(tmp_path)
    second.write_bytes(content)
    second.with_name("combined_2.hdf5").write_bytes(content)
    with pytest.raises(StoreError, match=r"train/combined_2\.hdf5: was put there by somebody"):
        store.load_index(tmp_path)
    (tmp_path / store.GROUPING_STATE).unlink()  # as in a copy that left hidden files out
    with pytest.raises(StoreError, match=r"combined_2\.hdf5: holds the same examples as .*_1"):
        store.load_index(tmp_path)


def test_files_with_texts_of_variable_length_keep_loading(tmp_path):
    write_folder(tmp_path, {"train": (1,), "val": (2,)}, scaling="policy")
    for path in tmp_path.rglob("*.hdf5"):
        with h5py.File(path, "a") as file:
            for name in ("split_hash", "scaling", "signals_hash"):
                file.attrs[name] = file.attrs[name].decode()  # as h5py stores a str
    index = store.load_index(tmp_path)
    assert (index.split_hash, index.scaling) == ("abc", "policy")


def test_a_damaged_text_of_variable_length_hangs_nothing(tmp_path, monkeypatch):
    """With the sizes in its heap changed, HDF5 looks for the end of the text for ever."""
    write_folder(tmp_path, {"train": (1,), "val": (2,)})
    path = store.batch_path(tmp_path, "val", 0)
    with h5py.File(path, "a") as file:
        file.attrs["split_hash"] = "abc"
    content = bytearray(path.read_bytes())
    heap = content.rindex(b"GCOL")
    monkeypatch.setattr(hdf5, "TEXT_SECONDS", 5)
    content[heap + 24 : heap + 32] = bytes(8)  # the size of its first object: none
    content[heap + 16 : heap + 18] = b"\7\0"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"val/combined_0\.hdf5"):
        store.load_index(tmp_path)


def test_an_example_of_another_shape_is_named(tmp_path):
    path = tmp_path / "3_11_sample_0.hdf5"
    store.write_examples([path], make_examples(1))
    with h5py.File(path, "a") as file:
        change(file, "signal", np.zeros((16, 100), np.float16))
    with pytest.raises(store.DamagedExampleError, match=r"sample_0.*shape \(16, 100\)"):
        store.read_examples([path])
