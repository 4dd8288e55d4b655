import threading
import time

import h5py
import numpy as np
import pytest
import torch
from small_batches import write_folder

from pedsleepmae import data
from pedsleepmae.store import load_index, read_signals


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    return load_index(write_folder(folder, train=[7, 5, 3, 2], val=[4], test=[2]))


def take(batches, n: int) -> list:
    taken = [next(batches) for _ in range(n)]
    batches.close()
    return taken


# ------------------------------------------------------------------ order
def test_every_example_is_seen_once_an_epoch():
    file_of = np.repeat([4, 9, 2], [7, 5, 3])
    for epoch in range(3):
        assert sorted(data.epoch_order(file_of, epoch, seed=0)) == list(range(15))


def test_order_depends_on_seed_and_epoch_alone():
    file_of = np.repeat([0, 1], 50)
    first = data.epoch_order(file_of, 0, seed=0)
    assert np.array_equal(first, data.epoch_order(file_of, 0, seed=0))
    assert not np.array_equal(first, data.epoch_order(file_of, 1, seed=0))
    assert not np.array_equal(first, data.epoch_order(file_of, 0, seed=1))


def test_a_batch_mixes_files():
    file_of = np.repeat(np.arange(8), 128)
    order = data.epoch_order(file_of, 0, seed=0)
    assert all(len(np.unique(file_of[order[i : i + 64]])) == 8 for i in range(0, 1024, 64))


def test_files_are_read_a_pool_at_a_time(monkeypatch):
    monkeypatch.setattr(data, "POOL_FILES", 3)
    file_of = np.repeat(np.arange(7), 10)
    files = file_of[data.epoch_order(file_of, 0, seed=0)]
    pools = [set(files[:30]), set(files[30:60]), set(files[60:])]
    assert [len(pool) for pool in pools] == [3, 3, 1]
    assert set.union(*pools) == set(range(7))
    assert pools[0] != {0, 1, 2}  # the files are shuffled too


def test_stream_goes_on_from_any_position_as_if_it_had_not_stopped():
    file_of = np.repeat([0, 1], [5, 2])
    whole = data.stream(file_of, start=0, length=1, seed=3)
    expected = np.concatenate([next(whole) for _ in range(40)])
    assert all(sorted(expected[i : i + 7]) == list(range(7)) for i in range(0, 35, 7))
    for start in range(20):
        part = data.stream(file_of, start=start, length=3, seed=3)
        assert np.array_equal(np.concatenate([next(part) for _ in range(6)]), expected[start:][:18])


def test_a_batch_may_be_longer_than_an_epoch():
    batch = next(data.stream(np.zeros(3, int), start=2, length=10, seed=0))
    assert len(batch) == 10
    assert sorted(batch[1:4]) == [0, 1, 2]


@pytest.mark.parametrize(("batch_size", "world_size"), [(12, 3), (7, 2), (5, 5)])
def test_each_example_of_a_batch_goes_to_one_process(batch_size, world_size):
    shares = [data.share_of(batch_size, rank, world_size) for rank in range(world_size)]
    places = [place for share in shares for place in range(batch_size)[share]]
    assert places == list(range(batch_size))
    assert all(len(range(batch_size)[share]) > 0 for share in shares)


# ------------------------------------------------------------------ batches
def test_batches_hold_the_signals_of_the_stream(index):
    positions = index.rows("train")
    batches = take(data.training_batches(index, positions, batch_size=5, seed=1, start=10), 4)
    stream = data.stream(index.file_of[positions], start=10, length=5, seed=1)
    for number, batch in enumerate(batches):
        expected = positions[next(stream)]
        assert batch.x_BCT.dtype == torch.float16
        assert np.array_equal(batch.x_BCT.numpy(), read_signals(index, expected))
        assert np.array_equal(batch.present_BC.numpy(), index.present[expected])
        assert batch.n_present == index.present[expected].sum()
        assert batch.end == 10 + 5 * (number + 1)
        assert batch.n_bad == 0


def test_processes_share_a_batch_as_one_would_see_it(index):
    positions = index.rows("train")
    settings = {"batch_size": 5, "seed": 1, "start": 3}
    alone = take(data.training_batches(index, positions, **settings), 4)
    shares = [
        take(data.training_batches(index, positions, rank=rank, world_size=2, **settings), 4)
        for rank in range(2)
    ]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([part.x_BCT for part in parts]), whole.x_BCT)
        assert {(part.n_present, part.end) for part in parts} == {(whole.n_present, whole.end)}
        assert [part.rows for part in parts] == [slice(0, 2), slice(2, 5)]


def test_sample_batches_keep_the_order_asked_for(index):
    positions = index.rows("train")[[8, 2, 11, 3, 5]]
    batches = list(data.sample_batches(index, positions, 2))
    assert [len(x_BCT) for x_BCT, _ in batches] == [2, 2, 1]
    signals = torch.cat([x_BCT for x_BCT, _ in batches])
    assert np.array_equal(signals.numpy(), read_signals(index, positions))
    present = torch.cat([present_BC for _, present_BC in batches])
    assert np.array_equal(present.numpy(), index.present[positions])


def test_fixed_sample_is_sorted_seeded_and_no_larger_than_asked():
    positions = np.arange(100, 200)
    sample = data.fixed_sample(positions, 10, seed=0)
    assert len(np.unique(sample)) == 10
    assert np.array_equal(sample, np.sort(sample))
    assert set(sample) <= set(positions)
    assert np.array_equal(sample, data.fixed_sample(positions, 10, seed=0))
    assert not np.array_equal(sample, data.fixed_sample(positions, 10, seed=1))
    assert np.array_equal(data.fixed_sample(positions, 100, seed=0), positions)


def test_reader_threads_end_with_the_batches(index):
    batches = data.training_batches(index, index.rows("train"), batch_size=2, seed=0)
    next(batches)
    names = {thread.name for thread in threading.enumerate()}
    assert any(name.startswith("read-batches") for name in names)
    batches.close()
    deadline = time.monotonic() + 5
    while any(t.name.startswith("read-batches") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "reader threads are still there"
        time.sleep(0.01)


def test_an_error_of_a_reader_thread_reaches_the_caller(tmp_path):
    index = load_index(write_folder(tmp_path, train=[4]))
    (index.files[0]).write_bytes(b"no HDF5")
    batches = data.training_batches(index, index.rows("train"), batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"combined_0\.hdf5"):
        next(batches)


# ------------------------------------------------------------------ values
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_are_not_finite_are_held_and_counted(tmp_path, dtype):
    folder = write_folder(tmp_path, train=[3])
    with h5py.File(folder / "train" / "combined_0.hdf5", "r+") as file:
        signals = file["signals"][()].astype(dtype)
        signals[1, 2, 3:6] = np.nan, np.inf, -np.inf
        del file["signals"]
        file["signals"] = signals
    index = load_index(folder)
    (batch,) = take(data.training_batches(index, index.rows("train"), batch_size=3, seed=0), 1)
    assert batch.n_bad == 3
    stream = data.stream(index.file_of, start=0, length=3, seed=0)
    expected = signals[next(stream)].astype(np.float32)
    expected[~np.isfinite(expected)] = signals[1, 2, 2]
    np.testing.assert_array_equal(batch.x_BCT.float().numpy(), expected)


def test_a_gap_is_held_at_the_value_before_it_or_the_first_after():
    nan = np.nan
    for dtype in (np.float16, np.float32):
        x_BCT = np.array(
            [[[nan, nan, 2, 3, nan, nan, 5], [nan] * 7, [1, 2, 3, 4, 5, 6, nan]]], dtype
        )
        n_bad, empty_BC = data.fill_gaps(x_BCT)
        assert n_bad == 12
        assert empty_BC.tolist() == [[False, True, False]]
        assert x_BCT[0].tolist() == [[2, 2, 2, 3, 3, 3, 5], [0] * 7, [1, 2, 3, 4, 5, 6, 6]]


def test_the_original_authors_float64_folder_is_read(tmp_path):
    rng = np.random.default_rng(0)
    signals = rng.standard_normal((6, 16, 3840))
    signals[0, 0, 0] = 1e300  # beyond float32
    with h5py.File(tmp_path / "combined_0.hdf5", "w") as file:
        file["signals"] = signals
        file["patient_ids"] = file["study_ids"] = np.arange(6)
        for name in ("sleep", "apnea", "desat", "eeg", "hypop"):
            file[f"{name}_labels"] = np.zeros(6, int)
    index = load_index(tmp_path, val_fraction=0, test_fraction=0)
    (batch,) = take(data.training_batches(index, np.arange(6), batch_size=6, seed=0), 1)
    order = next(data.stream(index.file_of, start=0, length=6, seed=0))
    signals[0, 0, 0] = signals[0, 0, 1]
    assert batch.x_BCT.dtype == torch.float32
    assert batch.n_bad == 1
    assert batch.present_BC.all()
    np.testing.assert_array_equal(batch.x_BCT.numpy(), signals[order].astype(np.float32))


def test_compressed_files_are_read_too(tmp_path):
    folder = write_folder(tmp_path, train=[3])
    path = folder / "train" / "combined_0.hdf5"
    with h5py.File(path, "r+") as file:
        signals = file["signals"][()]
        del file["signals"]
        file.create_dataset("signals", data=signals, compression="gzip")
    index = load_index(folder)
    (batch,) = take(data.training_batches(index, np.arange(3), batch_size=3, seed=0), 1)
    order = next(data.stream(index.file_of, start=0, length=3, seed=0))
    np.testing.assert_array_equal(batch.x_BCT.numpy(), signals[order])
