"""Features on disk: computed once, resumed by file, read back in any order."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import small_batches
import torch
from planted import planted_index, planted_table, write_cohort

from pedsleepmae import machine, store, tasks
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe import embeddings, handmade, readout, tables


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(patch_size=120, emb_dim=3, num_layer=1, num_head=2).eval()


@pytest.fixture(scope="module")
def batches(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("batches"), n_epochs=20)


def embed(index, model, folder, poolings=("mean", "time_abs+class"), world=embeddings.ALONE):
    compute = machine.Compute(torch.device("cpu"), torch.float32, batch_size=7)
    return embeddings.embed_files(index, model, folder, poolings, compute, "test", world)


def tables_of(index, folder, *names):
    return list(tables.open_tables(index, folder, names).values())


def test_a_row_read_back_is_the_embedding_of_its_example(batches, model, tmp_path):
    index = store.load_index(batches)
    assert embed(index, model, tmp_path) == len(index.files) == 5
    positions = np.array([57, 3, 120, 3, 99])  # unsorted, one twice
    x_BCT = torch.from_numpy(store.read_signals(index, positions))
    present = torch.from_numpy(index.present[positions])
    for table in tables_of(index, tmp_path, "mean", "time_abs+class"):
        wanted = model.embed(x_BCT, table.name, present=present).numpy()
        assert table.n_features == wanted.shape[1]
        assert table.read(positions) == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def test_files_hold_what_their_schema_says(batches, model, tmp_path):
    index = store.load_index(batches)
    embed(index, model, tmp_path / "thekey")
    with h5py.File(tmp_path / "thekey" / "train_combined_1.hdf5") as file:
        rows = np.flatnonzero(index.file_of == 1)
        assert set(file) == {
            *("features", "patient_ids", "study_ids", "onsets_s", "channels_present"),
            *(dataset for _, dataset in tasks.LABELS.values()),
        }
        assert set(file["features"]) == {"mean", "time_abs", "class"}
        assert file["features/mean"].dtype == np.float16
        assert (file["patient_ids"][()] == index.patient_ids[rows]).all()
        assert (file["apnea_labels"][()] == index.labels["apnea"][rows]).all()
        assert (file["channels_present"][()] == index.present[rows]).all()
        assert file.attrs["key"] == b"thekey"


def test_only_what_is_missing_is_computed(batches, model, tmp_path):
    index = store.load_index(batches)
    embed(index, model, tmp_path, ["mean"])
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert embed(index, model, tmp_path, ["mean"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    (tmp_path / "val_combined_0.hdf5").unlink()
    assert embed(index, model, tmp_path, ["mean"]) == 1
    assert embed(index, model, tmp_path, ["max"]) == 5  # a new pooling; the old one stays
    assert embed(index, model, tmp_path, ["mean", "max"]) == 0


@pytest.mark.parametrize("damage", ["cut", "no HDF5", "fewer rows", "other type"])
def test_a_damaged_file_of_features_is_made_anew(batches, model, tmp_path, damage):
    index = store.load_index(batches)
    embed(index, model, tmp_path, ["mean"])
    (table,) = tables_of(index, tmp_path, "mean")
    wanted = table.read(np.arange(len(index)))
    path = tmp_path / "train_combined_0.hdf5"
    content = path.read_bytes()
    if damage in ("cut", "no HDF5"):
        path.write_bytes(content[:3000] if damage == "cut" else b"x" * len(content))
    else:
        with h5py.File(path, "a") as file:
            mean = file["features/mean"][()]
            del file["features/mean"]
            file["features/mean"] = mean[1:] if damage == "fewer rows" else mean.astype("f4")
    assert embed(index, model, tmp_path, ["mean"]) == 1
    (table,) = tables_of(index, tmp_path, "mean")
    np.testing.assert_array_equal(table.read(np.arange(len(index))), wanted)


def test_a_batch_file_that_changed_is_embedded_again(model, tmp_path):
    batches = write_cohort(tmp_path / "batches", n_epochs=12)
    folder = tmp_path / "features"
    embed(store.load_index(batches), model, folder, ["mean"])
    path = store.batch_path(batches, "val", 0)
    with h5py.File(path, "r+") as file:  # another standardisation, same size and labels
        file["signals"][:] = file["signals"][()] * np.float16(0.5)
    index = store.load_index(batches)
    assert embed(index, model, folder, ["mean"]) == 1
    position = index.rows("val")[:1]
    wanted = model.embed(torch.from_numpy(store.read_signals(index, position)), "mean")
    (table,) = tables_of(index, folder, "mean")
    present = torch.from_numpy(index.present[position])
    x_BCT = torch.from_numpy(store.read_signals(index, position))
    wanted = model.embed(x_BCT, "mean", present=present).numpy()
    assert table.read(position) == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def test_one_example_that_changed_is_noticed_wherever_it_stands(tmp_path):
    examples = small_batches.make_examples(128, (1,), 0)
    path, marks = tmp_path / "combined_0.hdf5", set()
    for k in (None, 0, 1, 64, 101, 127):
        changed = examples.signals.copy()
        if k is not None:
            changed[k] *= 2
        facts = {"split_hash": "a", "patient_disjoint": True, "simulated": True}
        store.write_batch(path, replace(examples, signals=changed), **facts)
        marks.add(embeddings.fingerprint(path))
    assert len(marks) == 6


def test_one_value_that_is_not_finite_does_not_reach_the_features(batches, model, tmp_path):
    index = store.load_index(batches)
    shutil.copytree(batches, tmp_path / "bad")
    path = store.batch_path(tmp_path / "bad", "train", 0)
    with h5py.File(path, "r+") as file:
        file["signals"][0, 3, 100] = np.nan
        file["signals"][1, 5] = np.nan  # a channel throughout: not recorded
    bad = store.load_index(tmp_path / "bad")
    embed(bad, model, tmp_path / "features", ["class"])
    (table,) = tables_of(bad, tmp_path / "features", "class")
    first = bad.rows("train")[:2]
    x_BCT = torch.from_numpy(store.read_signals(index, first))
    present = torch.from_numpy(index.present[first])
    x_BCT[0, 3, 100] = x_BCT[0, 3, 99]
    present[1, 5] = False
    wanted = model.embed(x_BCT, "class", present=present).numpy()
    assert table.read(first) == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def test_an_interrupted_run_leaves_no_half_file_and_goes_on(batches, model, tmp_path):
    index = store.load_index(batches)

    class Stopped(MaskedAutoencoder):
        calls = 0

        def embed_many(self, *arguments, **options):
            Stopped.calls += 1
            if Stopped.calls > 11:
                raise KeyboardInterrupt
            return super().embed_many(*arguments, **options)

    stopped = Stopped(patch_size=120, emb_dim=3, num_layer=1, num_head=2)
    stopped.load_state_dict(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        embed(index, stopped, tmp_path)
    done = len(list(tmp_path.iterdir()))
    assert 0 < done < 5
    assert embed(index, model, tmp_path) == 5 - done


def test_two_processes_share_the_files_and_leave_the_same_features(batches, model, tmp_path):
    index = store.load_index(batches)
    barrier, done = threading.Barrier(2), {}

    class Rank(machine.World):
        def meet(self):
            barrier.wait()

    def work(rank: int) -> None:
        done[rank] = embed(index, model, tmp_path / "two", ["mean"], Rank(rank, 2))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.values()) == [2, 3]
    embed(index, model, tmp_path / "one", ["mean"])
    (two,), (one,) = (tables_of(index, tmp_path / name, "mean") for name in ("two", "one"))
    everything = np.arange(len(index))
    assert (two.read(everything) == one.read(everything)).all()


def test_keys_differ_by_checkpoint_encoder_split_and_precision():
    base = ("a" * 64, "pretrained", "split1", "float32")
    keys = {embeddings.embedding_key(*base)}
    for i, other in enumerate(("b" * 64, "untrained0", "split2", "bfloat16")):
        keys.add(embeddings.embedding_key(*base[:i], other, *base[i + 1 :]))
    assert len(keys) == 5


def test_half_precision_neither_overflows_nor_hides_what_is_no_number():
    got = embeddings.as_float16(np.array([1e9, -1e9, np.nan, 0.1]))
    assert got[0] == 65504
    assert got[1] == -65504
    assert np.isnan(got[2])


def test_neighbours_are_those_a_slow_search_finds(tmp_path):
    index = planted_index(tmp_path, {"train": 2, "val": 1, "test": 2}, n_epochs=9, seed=1)
    gone = (index.onsets_s == 90) & (index.patient_ids == 101)  # a gap in one night
    index.onsets_s[gone] += 5000
    index.split[(index.patient_ids == 100) & (index.onsets_s >= 120)] = 2  # split in time
    got = tables.neighbours(index, 2)

    def epoch_at(i: int, step: int) -> int:
        same = (index.study_ids == index.study_ids[i]) & (index.split == index.split[i])
        found = np.flatnonzero(same & (index.onsets_s == index.onsets_s[i] + 30 * step))
        return int(found[0]) if len(found) else -1

    for i in range(len(index)):
        for step in (-2, -1, 0, 1, 2):
            between = range(0, step, 1 if step > 0 else -1)
            unbroken = all(epoch_at(i, s) >= 0 for s in between)
            assert got[i, step + 2] == (epoch_at(i, step) if unbroken else -1)
    assert 0.5 < (got >= 0).mean() < 0.9


def test_context_stands_the_neighbours_side_by_side(tmp_path):
    index = planted_index(tmp_path, {"train": 1, "val": 1, "test": 1}, n_epochs=4, seed=2)
    mark_NF = np.stack([index.patient_ids, index.onsets_s / 30], axis=1)
    marks = planted_table(index, tmp_path / "features", marks=mark_NF)["marks"]
    table = readout.ProbeTable([readout.ReadOut(marks, "none")]).with_context(1)
    position = np.flatnonzero((index.patient_ids == 101) & (index.onsets_s == 60))
    here = [1.0] * 16  # all channels are present
    assert table.read(position).tolist() == [[101, 1, *here, 101, 2, *here, 101, 3, *here]]
    last = np.flatnonzero((index.patient_ids == 101) & (index.onsets_s == 90))
    assert np.isnan(table.read(last)[0, 36:]).all()
    assert table.n_features == 54


def test_moments_in_pieces_are_those_of_the_whole(tmp_path):
    index = planted_index(tmp_path, {"train": 3, "val": 1, "test": 1}, n_epochs=23, seed=3)
    x_NF = np.random.default_rng(0).normal([5, -300, 0, 0], [1, 0.5, 20, 0], (len(index), 4))
    x_NF[::7, 2] = np.nan
    table = planted_table(index, tmp_path / "features", x=x_NF)["x"]
    rows = index.rows("train")
    mean_F, sd_F, n_bad = tables.column_moments(table, rows, rows=10)
    stored_NF = embeddings.as_float16(x_NF[rows]).astype(np.float64)
    assert mean_F == pytest.approx(np.nanmean(stored_NF, axis=0))
    assert sd_F[:3] == pytest.approx(np.nanstd(stored_NF, axis=0)[:3])
    assert sd_F[3] == 1  # no spread
    assert n_bad == np.isnan(x_NF[rows, 2]).sum()


def test_handmade_features_stand_beside_their_examples(batches, tmp_path):
    index = store.load_index(batches)
    assert embeddings.compute_handmade(index, tmp_path, n_workers=2) == 5
    assert embeddings.compute_handmade(index, tmp_path, n_workers=2) == 0
    position = np.array([31])
    (table,) = tables_of(index, tmp_path, "handmade")
    wanted = handmade.handmade_features(
        store.read_signals(index, position), index.present[position]
    )
    assert table.read(position) == pytest.approx(wanted, rel=2e-3, abs=2e-3, nan_ok=True)
