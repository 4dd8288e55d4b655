"""Imputation, decoded means, neighbours and outliers, each against a truth that was planted."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import planted_index, planted_table
from small_batches import write_folder

from pedsleepmae import data, store, tasks
from pedsleepmae.channels import CHANNEL_NAMES, EPOCH_SAMPLES, RATE_HZ
from pedsleepmae.checkpoints import hash_patients, save_checkpoint
from pedsleepmae.errors import GenerationError
from pedsleepmae.generate import imputation, run
from pedsleepmae.generate import space as generate_space
from pedsleepmae.generate.imputation import Imputer, RecordingMoments
from pedsleepmae.generate.means import decode_class_means, decode_mean
from pedsleepmae.generate.space import (
    Space,
    find_neighbours,
    find_outliers,
    nearest_examples,
    neighbour_agreement,
    parse_queries,
)
from pedsleepmae.machine import Compute
from pedsleepmae.model import (
    TOKEN_LAYOUTS,
    MaskedAutoencoder,
    hidden_patches,
    mean_over_present,
)

ROOT = Path(__file__).resolve().parents[1]
CAPNO, SPO2, SNORE, FLOW = (
    CHANNEL_NAMES.index(name) for name in ("CAPNO", "SPO2", "SNORE", "C-FLOW")
)
COMPUTE = Compute(torch.device("cpu"), torch.float32, batch_size=16)
DELAY_S = 0.625  # a quarter of the period in the middle of the waves' range: no linear gain helps


# ------------------------------------------------------------------ a model trained for the task
def make_signals(n: int, rng: np.random.Generator) -> np.ndarray:
    """SPO2 is C-FLOW delayed by DELAY_S, SNORE is CAPNO; all else absent.

    Waves of 0.3 to 0.5 Hz with any phase and height. A delayed copy of a wave correlates with it
    by cos(2 pi f DELAY_S), which is 0 on average here, while a plain copy does so by 1: the
    nearest channel with its gain recovers the second wholly and the first not at all.
    """
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    rate_hz, phase, height = (
        rng.uniform(*limits, (2, n, 1)) for limits in ((0.3, 0.5), (0, 2 * np.pi), (0.7, 1.4))
    )

    def wave(i: int, delay_s: float) -> np.ndarray:
        return height[i] * np.sin(2 * np.pi * rate_hz[i] * (time_s - delay_s) + phase[i])

    x_NCT = np.zeros((n, 16, EPOCH_SAMPLES), np.float32)
    x_NCT[:, FLOW], x_NCT[:, SPO2] = wave(0, 0.0), wave(0, DELAY_S)
    x_NCT[:, CAPNO] = x_NCT[:, SNORE] = wave(1, 0.0)
    noise = 0.05 * rng.standard_normal((n, 4, EPOCH_SAMPLES), np.float32)
    x_NCT[:, [CAPNO, SPO2, SNORE, FLOW]] += noise
    return x_NCT.astype(np.float16)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> store.ExampleIndex:
    """320 train examples of 4 patients, 60 test examples of 6, a night each."""
    folder, rng = tmp_path_factory.mktemp("waves"), np.random.default_rng(0)
    for split, patients, n in (("train", range(4), 320), ("test", range(10, 16), 60)):
        patient_N = np.array(patients)[np.arange(n) % len(patients)]
        present = np.zeros((n, 16), bool)
        present[:, [CAPNO, SPO2, SNORE, FLOW]] = True
        examples = store.Examples(
            signals=make_signals(n, rng),
            labels={name: np.zeros(n, np.int64) for name in tasks.LABELS}
            | {"sleep": np.arange(n) % 5, "desat": (np.arange(n) % 7 == 0).astype(int)},
            patient_ids=patient_N,
            study_ids=patient_N,
            onsets_s=30.0 * (np.arange(n) // len(patients)),
            present=present,
            center=np.zeros((n, 16)),
            scale=np.ones((n, 16)),
        )
        path = store.batch_path(folder, split, 0)
        store.write_batch(path, examples, split_hash="a", patient_disjoint=True, simulated=True)
    return store.load_index(folder)


@pytest.fixture(scope="module")
def model(index) -> MaskedAutoencoder:
    """Trained for 100 steps with whole channels hidden (the masks and loss of pretraining)."""
    model = MaskedAutoencoder(
        patch_size=120,
        emb_dim=4,
        num_layer=1,
        num_head=2,
        token_layout="moment",
        mask_channels=1.0,
    )
    generator, n, n_steps = torch.Generator().manual_seed(0), 32, 100
    model.reset_parameters(generator)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    train = index.rows("train")
    ((x_BCT, present_BC),) = data.sample_batches(index, train, len(train))
    for step in range(n_steps):
        lr = 0.005 * min(1, (step + 1) / 20) * (1 - 0.9 * step / n_steps)
        optimizer.param_groups[0]["lr"] = lr
        rows = torch.randint(len(train), (n,), generator=generator)
        masks = model.draw_mask(n, generator), model.draw_hidden_channels(n, generator)
        (error_BC,) = model(x_BCT[rows], present_BC[rows], *masks)
        mean_over_present(error_BC, present_BC[rows], 4 * n).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def figures(index, model) -> dict:
    """What imputing SPO2, and SNORE, is worth in the test epochs: generate.json's figures.

    Read off with all patches shown: a wave's phase cannot be told from the few that masks leave.
    """
    sample = imputation.sample_classes(index, "test", 40, seed=0)
    positions = np.unique(np.concatenate(list(sample.values())))
    moments = RecordingMoments(index, positions, seed=0)
    variance_C = imputation.train_variances(index, seed=0)
    imputer = Imputer(model, index, moments, variance_C, show_all=True, compute=COMPUTE)
    result = {}
    for name, channels in imputation.parse_targets(["SPO2", "SNORE"]).items():
        imputed = imputer.impute_target(name, channels, positions)
        result |= imputation.summarise(imputed, index, sample, n_draws=200, seed=0)
    return result


def test_a_delayed_copy_is_imputed_better_than_by_every_baseline(figures):
    entry = figures["SPO2"]["all"]
    assert (entry["n"], entry["n_patients"]) == (40, 6)
    assert entry["model"]["correlation"] > 0.9
    assert entry["model"]["nmse"] < 0.25
    for method in imputation.METHODS[1:]:
        assert entry["baselines"][method]["correlation"] < 0.4, method
        assert entry["baselines"][method]["nmse"] > 0.7, method
        gaps = entry["baselines"][method]["difference"]
        assert gaps["correlation"]["ci95"][0] > 0.4, method
        assert gaps["nmse"]["ci95"][1] < -0.4, method
        assert gaps["spectral_error"]["value"] < 0.5, method


def test_a_plain_copy_is_imputed_and_the_nearest_channel_gives_it_wholly(figures):
    entry = figures["SNORE"]["all"]
    assert entry["model"]["correlation"] > 0.9
    assert entry["baselines"]["nearest_channel"]["correlation"] > 0.99
    assert entry["baselines"]["nearest_channel"]["nmse"] < 0.01
    for method in ("zero", "recording_mean"):
        assert entry["model"]["nmse"] < 0.25 * entry["baselines"][method]["nmse"]
        assert entry["baselines"][method]["correlation"] == 0


def test_figures_stand_for_each_class_that_occurs_with_its_counts(index, figures):
    by_class = figures["SPO2"]
    assert set(by_class) == {"all", "W", "N1", "N2", "N3", "R", "desaturation"}
    assert by_class["W"]["n"] == 12
    assert by_class["desaturation"]["n"] == 9
    assert imputation.prevalences(index, "test")["desaturation"] == {"n": 9, "share": 9 / 60}
    low, high = by_class["N2"]["model"]["ci95"]["nmse"]
    assert low < by_class["N2"]["model"]["nmse"] < high


@pytest.mark.parametrize("show_all", [False, True])
@pytest.mark.parametrize("layout", ["reference", "moment", "channel"])
def test_what_stands_in_a_hidden_channel_has_no_influence_on_its_imputation(layout, show_all):
    model = MaskedAutoencoder(
        patch_size=120, emb_dim=2, num_layer=1, num_head=2, token_layout=layout
    ).eval()
    model.reset_parameters(torch.Generator().manual_seed(1))
    x = torch.randn(2, 16, EPOCH_SAMPLES, generator=torch.Generator().manual_seed(0))
    present = torch.ones(2, 16, dtype=torch.bool)
    imputed = imputation.impute(model, x, present, [3, SPO2], show_all=show_all)
    assert imputed.shape == (2, 2, EPOCH_SAMPLES)
    for foreign in (100.0, float("nan")):
        changed = x.clone()
        changed[:, [3, SPO2]] = foreign
        assert torch.equal(
            imputation.impute(model, changed, present, [3, SPO2], show_all=show_all), imputed
        )
    changed = x.clone()
    changed[:, 4] += 1
    assert not torch.equal(
        imputation.impute(model, changed, present, [3, SPO2], show_all=show_all), imputed
    )
    assert present.all()  # the caller's mask is left as it was


def test_a_model_that_knows_hidden_channels_is_read_at_all_patches_by_every_mask():
    """The decoder of a model that was never asked for whole channels is heard where masks hide."""
    sizes = {"patch_size": 120, "emb_dim": 2, "num_layer": 1, "num_head": 2}
    x = torch.randn(1, 16, EPOCH_SAMPLES, generator=torch.Generator().manual_seed(0))
    present = torch.ones(1, 16, dtype=torch.bool)
    shown = present.clone()
    shown[:, 3] = False
    imputed = {}
    for share in (0.0, 0.5):
        model = MaskedAutoencoder(**sizes, mask_channels=share).eval()
        model.reset_parameters(torch.Generator().manual_seed(1))
        imputed[share] = imputation.impute(model, x, present, [3])
    masks = imputation.covering_masks(model, torch.Generator().manual_seed(0))
    decoded_MT = torch.stack([model.reconstruct(x, keep, shown)[0, 3] for keep in masks])
    torch.testing.assert_close(imputed[0.5][0, 0], decoded_MT.mean(0))
    hidden_MT = torch.stack([hidden_patches(keep, 32)[0, 3] for keep in masks])
    hidden_MT = hidden_MT.repeat_interleave(120, dim=1)
    where_hidden_T = (decoded_MT * hidden_MT).sum(0) / hidden_MT.sum(0)
    torch.testing.assert_close(imputed[0.0][0, 0], where_hidden_T)


def test_samples_are_read_where_they_were_hidden():
    """A decoder that says 1 where a patch is hidden and 9 where it is shown is heard as 1."""
    model = MaskedAutoencoder(patch_size=20, emb_dim=2, num_layer=1, num_head=2, mask_ratio=0.4)

    def decode(keep_1CK: torch.Tensor) -> torch.Tensor:
        says_1CS = torch.ones(1, 16, model.n_patches).scatter(2, keep_1CK, 9.0)
        return says_1CS.repeat_interleave(20, dim=2)

    read = imputation.read_where_hidden(model, decode)
    torch.testing.assert_close(read, torch.ones(1, 16, EPOCH_SAMPLES))


def test_covering_masks_hide_whole_tokens_where_training_does():
    sizes = {"patch_size": 20, "emb_dim": 2, "num_layer": 1, "num_head": 2}
    model = MaskedAutoencoder(**sizes, mask_unit="token", mask_ratio=0.75)
    masks = imputation.covering_masks(model, torch.Generator().manual_seed(0))
    assert len(masks) == 2
    for keep in masks:
        assert (keep[..., ::16] % 16 == 0).all()
        assert (keep.unflatten(2, (-1, 16)).diff(dim=3) == 1).all()


@pytest.mark.parametrize("layout", TOKEN_LAYOUTS)
@pytest.mark.parametrize("span", [1, 12])
@pytest.mark.parametrize(("mask_ratio", "n_masks"), [(0.5, 2), (0.75, 2), (0.25, 4)])
def test_covering_masks_hide_every_patch_and_keep_as_many_as_training(
    layout, mask_ratio, n_masks, span
):
    sizes = {"patch_size": 20, "emb_dim": 2, "num_layer": 1, "num_head": 2}
    model = MaskedAutoencoder(**sizes, token_layout=layout, mask_ratio=mask_ratio, mask_span=span)
    masks = imputation.covering_masks(model, torch.Generator().manual_seed(0))
    assert len(masks) == n_masks
    hidden_MCS = torch.cat([hidden_patches(keep, 192) for keep in masks])
    assert hidden_MCS.any(dim=0).all()
    for keep in masks:
        assert keep.shape == (1, 16, model.n_keep)
        assert (keep.diff(dim=2) > 0).all()
        assert (layout == "moment") == bool((keep == keep[:, :1]).all())
        starts = hidden_patches(keep, 192).int().diff(dim=2) == 1
        assert starts.sum(dim=2).max() <= 192 // span  # hidden in runs, as training hides them


# ------------------------------------------------------------------ baselines and figures
def test_baselines_learn_from_the_other_epochs_of_the_recording_only(index):
    position = int(index.rows("test")[7])
    night = np.flatnonzero(index.nights() == index.nights()[position])
    moments = RecordingMoments(index, np.array([position]), seed=0)
    others = store.read_signals(index, night[night != position]).astype(np.float64)
    assert moments.n_others(np.array([position])).tolist() == [len(night) - 1]
    x_CT = store.read_signals(index, np.array([position]))[0]
    made = imputation.baselines(
        x_CT, index.present[position], moments.of_others(position), [SNORE, SPO2]
    )
    zero, recording_mean, nearest = made
    assert not zero.any()
    for row, channel in enumerate((SNORE, SPO2)):
        np.testing.assert_allclose(
            recording_mean[row], others[:, channel].mean(), rtol=0, atol=1e-5
        )
    slope, offset = np.polyfit(others[:, CAPNO].ravel(), others[:, SNORE].ravel(), 1)
    np.testing.assert_allclose(nearest[0], slope * x_CT[CAPNO] + offset, rtol=0, atol=1e-4)


def test_the_nearest_channel_may_be_an_inverted_one_but_none_that_is_hidden_or_constant():
    rng = np.random.default_rng(0)
    x_BCT = np.zeros((3, 16, 500))
    x_BCT[:, 2] = rng.standard_normal((3, 500))
    x_BCT[:, 5] = -4 * x_BCT[:, 2] + 1
    x_BCT[:, 6] = x_BCT[:, 2] + rng.standard_normal((3, 500))
    moments = imputation.second_moments(x_BCT).sum(axis=0)
    assert imputation.nearest_channel(moments, 2, [5, 6, 7]) == (
        5, pytest.approx(-0.25), pytest.approx(0.25),
    )  # fmt: skip
    assert imputation.nearest_channel(moments, 2, [6, 7])[0] == 6
    assert imputation.nearest_channel(moments, 2, [7]) == (
        None, 0.0, pytest.approx(x_BCT[:, 2].mean()),
    )  # fmt: skip


def test_figures_of_an_epoch_are_those_worked_by_hand():
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    true_T = 2 * np.sin(2 * np.pi * 10 * time_s)  # variance 2, all of it in the alpha band
    half_T = true_T / 2
    shifted_T = 2 * np.sin(2 * np.pi * 10 * time_s + np.pi / 3)
    constant_T = np.full(EPOCH_SAMPLES, 0.5)
    pred_NMT = np.stack([true_T, half_T, shifted_T, constant_T])[None]
    scores_MF = imputation.score_channel(true_T[None], pred_NMT, 0, variance=2.0)[0]
    np.testing.assert_allclose(scores_MF[:, 0], [1, 1, 0.5, 0], atol=1e-6)
    # A quarter of the power in one of 7 bands; the others hold none, before and after.
    assert scores_MF[1, 1] == pytest.approx(np.log10(4) / 7, rel=0.02)
    np.testing.assert_allclose(scores_MF[[0, 2], 1], 0, atol=1e-3)
    # A constant has the floor, 1e-4 of the variance, in the band where the truth has it all.
    assert scores_MF[3, 1] == pytest.approx(4 / 7, rel=0.02)
    # 2 - 2 cos(60 degrees) of the power for the shift; half the amplitude leaves a quarter.
    np.testing.assert_allclose(scores_MF[:, 2], [0, 0.25, 1.0, (2 + 0.25) / 2], atol=1e-6)
    silent = imputation.score_channel(constant_T[None], pred_NMT, 0, variance=2.0)[0]
    assert np.isnan(silent[:, 0]).all()


def test_epochs_without_truth_or_without_other_channels_are_left_out(index, model):
    present = index.present.copy()
    rows = index.rows("test")
    present[rows[0], SPO2] = False  # no truth
    present[rows[1], [CAPNO, SNORE, FLOW]] = False  # nothing to impute from
    changed = replace(index, present=present)
    moments = RecordingMoments(changed, rows, seed=0)
    imputer = Imputer(model, changed, moments, np.ones(16), show_all=True, compute=COMPUTE)
    imputed = imputer.impute_target("SPO2", (SPO2,), rows[:5])
    assert imputed.positions.tolist() == rows[2:5].tolist()
    both = imputer.impute_target("two", (SPO2, SNORE), rows[:1])
    assert np.isnan(both.scores[0, 0]).all()
    assert np.isfinite(both.scores[0, 1]).all()


def test_targets_are_channels_groups_or_each():
    targets = imputation.parse_targets(["spo2", "EEG", "C3-M2", "effort"])
    assert targets == {
        "SPO2": (8,), "EEG": (0, 1, 2, 3, 4, 5, 6), "EEG C3-M2": (0,), "effort": (9, 10),
    }  # fmt: skip
    assert list(imputation.parse_targets(["each"])) == list(CHANNEL_NAMES)
    with pytest.raises(GenerationError, match=r"targets: 'ECG' is neither.*SPO2.*effort.*each"):
        imputation.parse_targets(["ECG"])


# ------------------------------------------------------------------ neighbours and outliers
@pytest.fixture
def space(tmp_path, monkeypatch) -> Space:
    """Random features of 12 nights, 32 for each channel-wise pooling; read 50 rows at a time."""
    monkeypatch.setattr(generate_space, "BLOCK_ROWS", 50)
    index = planted_index(tmp_path, {"train": 8, "val": 2, "test": 2}, 20, seed=0)
    rng = np.random.default_rng(1)
    x_NF = rng.standard_normal((len(index), 32))
    rows = index.rows("test")
    nights = index.nights()
    # Duplicates: of a test epoch in the same night and in a train night.
    twin = int(rows[nights[rows] == nights[rows[0]]][3])
    other = int(index.rows("train")[17])
    x_NF[twin] = x_NF[rows[0]]
    x_NF[other] = x_NF[rows[0]] + 0.01
    # Outliers: three test epochs far away in the features of channels 4, 9 and 12.
    for place, channel in ((5, 4), (9, 9), (12, 12)):
        x_NF[rows[place], 2 * channel] += 40 - channel
    space = Space(planted_table(index, tmp_path / "f", mean=x_NF)["mean"])
    space.planted = {"query": int(rows[0]), "twin": twin, "other": other}
    space.outliers = [int(rows[place]) for place in (5, 9, 12)]
    return space


def test_a_planted_duplicate_is_the_nearest_neighbour(space):
    query = np.array([space.planted["query"]])
    found, distance = find_neighbours(space, query, 3, exclude_own_night=False)
    assert found[0, :2].tolist() == [space.planted["twin"], space.planted["other"]]
    assert distance[0, 1] < 0.2 < 1 < distance[0, 2]
    found, _ = find_neighbours(space, query, 3, exclude_own_night=True)
    assert found[0, 0] == space.planted["other"]


@pytest.mark.parametrize("exclude", [False, True])
def test_neighbours_found_in_blocks_are_those_of_a_plain_search(space, exclude):
    index, queries = space.index, space.index.rows("val")[:7]
    found, distance = find_neighbours(space, queries, 4, exclude_own_night=exclude)
    everything = space.read(np.arange(len(index))).astype(np.float64)
    nights = index.nights()
    for q, query in enumerate(queries):
        gap_N = np.linalg.norm(everything - everything[query], axis=1)
        gap_N[query] = np.inf
        if exclude:
            gap_N[nights == nights[query]] = np.inf
        assert found[q].tolist() == np.argsort(gap_N)[:4].tolist()
        np.testing.assert_allclose(distance[q], np.sort(gap_N)[:4], rtol=1e-3)


def test_where_too_few_examples_are_left_there_is_no_neighbour(space):
    query = space.index.rows("test")[:1]
    pieces = [(query, space.read(query))]
    found, distance = nearest_examples(
        space, space.read(query), query, pieces, 2, exclude_own_night=False
    )
    assert found.tolist() == [[-1, -1]]
    assert np.isinf(distance).all()


def test_neighbours_agree_by_chance_on_random_labels_and_wholly_on_planted_ones(space):
    index = space.index
    sample = imputation.sample_classes(index, "test", 30, seed=0)
    queries = np.unique(np.concatenate(list(sample.values())))
    found, _ = find_neighbours(space, queries, 5, exclude_own_night=True)
    by_chance = neighbour_agreement(index, sample, queries, found, 200, seed=0)
    assert by_chance["N2"]["share"] == pytest.approx(by_chance["N2"]["by_chance"], abs=0.15)
    stage_N = index.labels["sleep"]
    alike = np.array([np.flatnonzero(stage_N == stage_N[q])[:5] for q in queries])
    wholly = neighbour_agreement(index, sample, queries, alike, 200, seed=0)
    assert wholly["N2"]["share"] == 1
    assert wholly["N2"]["n"] == len(sample["N2"])


def test_planted_outliers_come_first_and_their_channel_is_named(space):
    outliers = find_outliers(space, n_reference=1000, seed=0)
    assert outliers.ranking()[:3].tolist() == space.outliers
    assert outliers.channel_N[space.outliers].tolist() == [4, 9, 12]
    nights, top = space.night_N, outliers.top_of_nights(space.night_N, 12)
    assert top[0] == space.outliers[0]
    assert len(set(nights[top])) == len(top) == 12
    for at in top:
        assert outliers.score_N[at] == outliers.score_N[nights == nights[at]].max()
    train = space.index.rows("train")
    assert np.median(outliers.score_N[train]) == pytest.approx(1)
    assert outliers.score_N[outliers.ranking()[3]] < 2 < outliers.score_N[space.outliers[2]]


def test_outlier_scores_are_those_of_a_plain_search_and_a_night_does_not_vouch_for_itself(space):
    """Twelve equal epochs of one train night would all score 0 if their own night counted."""
    index = space.index
    train = index.rows("train")
    alike = train[space.night_N[train] == space.night_N[train[0]]][:12]
    x_NF = space.table.read(np.arange(len(index)))
    x_NF[alike] = x_NF[alike[0]]
    folder = space.table.paths[0].parent.parent / "g"
    space = Space(planted_table(index, folder, mean=x_NF)["mean"])
    outliers = find_outliers(space, n_reference=1000, seed=0)
    z_NF = space.read(np.arange(len(index))).astype(np.float64)
    plain_N = np.empty(len(index))
    for at in range(len(index)):
        others = train[space.night_N[train] != space.night_N[at]]
        plain_N[at] = np.sort(np.linalg.norm(z_NF[others] - z_NF[at], axis=1))[9]
    np.testing.assert_allclose(outliers.score_N, plain_N / np.median(plain_N[train]), rtol=1e-3)
    assert outliers.score_N[alike].min() > 0.5


# ------------------------------------------------------------------ means
def test_the_mean_of_a_class_is_decoded_and_its_nearest_and_farthest_epochs_are_found(
    index, model, tmp_path
):
    rows, rng = index.rows("test"), np.random.default_rng(0)
    x_NF = rng.standard_normal((len(index), 32))
    patient_10 = rows[index.patient_ids[rows] == 10]
    members = tasks.class_members(index.labels)
    here = patient_10[members["desaturation"][patient_10]]
    assert len(here) == 2
    space = Space(planted_table(index, tmp_path, mean=x_NF)["mean"])
    means = decode_class_means(model, space, "test", 40, 10, 0, COMPUTE)
    assert [mean.name for mean in means] == ["W", "N1", "N2", "N3", "R", "desaturation"]
    for mean in means:
        chosen = patient_10[members[mean.name][patient_10]]
        z_NF = space.read(chosen)
        gap_N = np.linalg.norm(z_NF - z_NF.mean(axis=0), axis=1)
        order = chosen[np.argsort(gap_N)]
        assert mean.n_epochs == len(chosen)
        assert mean.nearest.positions.tolist() == order[:2].tolist()
        assert mean.farthest.positions.tolist() == order[2:][::-1][:2].tolist()
        assert mean.present_C.tolist() == index.present[rows[0]].tolist()


def test_the_decoded_mean_of_one_epoch_is_its_reconstruction_where_it_was_hidden(index, model):
    position = index.rows("test")[:1]
    decoded_CT = decode_mean(model, index, position, COMPUTE)
    ((x_BCT, present_BC),) = data.sample_batches(index, position, 1)
    alone = imputation.read_where_hidden(
        model, lambda keep_1CK: model.reconstruct(x_BCT, keep_1CK, present_BC)
    )[0]
    np.testing.assert_allclose(decoded_CT, alone.numpy(), rtol=0, atol=1e-5)
    twice = decode_mean(model, index, np.repeat(position, 2), COMPUTE)
    np.testing.assert_allclose(twice, decoded_CT, rtol=0, atol=1e-5)


def test_an_example_is_found_by_patient_study_and_second(index):
    position = int(index.rows("test")[8])
    name = f"{index.patient_ids[position]}/{index.study_ids[position]}"
    onset_s = index.onsets_s[position]
    assert parse_queries(index, [f"{name}/{onset_s + 12}"]) == {"query 1": position}
    for bad, words in {name: "is no example", f"{name}/9000": "holds no epoch"}.items():
        with pytest.raises(GenerationError, match=words):
            parse_queries(index, [bad])


# ------------------------------------------------------------------ the script
@pytest.fixture(scope="module")
def script():
    path = ROOT / "6_generate_signals.py"
    spec = importlib.util.spec_from_file_location("generate_signals", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def call(tmp_path_factory) -> list[str]:
    """Arguments for a tiny folder of patients 1 to 6 and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("generate")
    write_folder(folder / "batches", train=[30], val=[4], test=[16])
    settings = {"patch_size": 120, "emb_dim": 2, "num_layer": 1, "num_head": 2}
    model = MaskedAutoencoder(**settings)
    model.reset_parameters(torch.Generator().manual_seed(0))
    save_checkpoint(
        folder / "checkpoint.pt",
        {
            "state_dict": model.state_dict(), "model": settings, "settings": {}, "step": 7,
            "val_loss": None, "split_hash": "0123456789abcdef", "simulated": True, "data": {},
            "patients_seen": hash_patients([1, 2]),
        },
    )  # fmt: skip
    return [
        "--paths.batches_dir", str(folder / "batches"),
        "--paths.checkpoint", str(folder / "checkpoint.pt"),
        "--paths.output_dir", str(folder / "out"), "--device", "cpu", "--precision", "float32",
    ]  # fmt: skip


def test_channels_are_shown_whole_where_pretraining_did_so_unless_told(script, call, tmp_path):
    content = torch.load(call[3], weights_only=True)
    content["model"]["show_whole"] = 0.3
    save_checkpoint(tmp_path / "whole.pt", content)
    settings = run.GenerateSettings()
    settings.paths.batches_dir, settings.paths.checkpoint = Path(call[1]), tmp_path / "whole.pt"
    script.open_inputs(settings)
    assert settings.show_all is True
    settings.show_all = False
    script.open_inputs(settings)
    assert settings.show_all is False


def test_the_script_writes_its_page_tables_and_pictures_and_names_no_patient(
    script, call, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    options = ["--targets", "SPO2", "EOG", "--max_epochs", "8", "--n_outliers", "2"]
    options += ["--bootstrap_draws", "100", "--neighbours_of", "5/0/5"]
    assert script.main([*call, *options]) == 0
    out = Path(call[5])
    printed = capsys.readouterr().out
    assert "simulated" in printed
    assert "model.show_whole 0" in printed
    content = json.loads((out / "generate.json").read_text())
    assert content["simulated"] is True
    assert content["show_all"] is False  # as this model was pretrained
    assert list(content["imputation"]) == ["SPO2", "EOG"]
    page = (out / "generate.html").read_text()
    assert "simulated data" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for text in (page.lower(), json.dumps(content).lower()):
        assert "patient_id" not in text
        assert "study_id" not in text
    tables = {path.stem for path in (out / "tables").iterdir()}
    assert tables == {
        "imputation", "class_means", "neighbours", "neighbour_agreement", "outliers",
    }  # fmt: skip
    pictures = {path.stem for path in (out / "pictures").iterdir()}
    assert pictures >= {"imputation", "imputation_classes", "imputed_spo2", "imputed_eog"}
    assert pictures >= {"mean_w", "neighbours_query_1", "neighbour_agreement", "outliers"}
    assert page.count("data:image/png") == len(pictures)
    assert len((out / "tables" / "outliers.csv").read_text().splitlines()) == 1 + 50


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--targets", "ECG"], "targets: 'ECG' is neither"),
        (["--pooling", "best"], "pooling is best"),
        (["--mean_of_patient", "99"], "mean_of_patient is 99"),
        (["--neighbours_of", "nobody"], "neighbours_of: 'nobody' is no example"),
        (["--paths.checkpoint", "nowhere.pt"], "paths.checkpoint: there is no file nowhere.pt"),
        (["--max_epochs", "0"], "max_epochs is 0"),
    ],
)
def test_a_bad_call_ends_with_code_2_and_one_sentence(
    script, call, capsys, monkeypatch, options, sentence
):
    monkeypatch.chdir(ROOT)
    try:
        code = script.main([*call, *options])
    except SystemExit as ended:  # what the settings alone show to be bad
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_checkpoint_without_its_decoder_is_refused_plainly(
    script, call, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    content = torch.load(call[3], weights_only=True)
    weights = content.pop("state_dict").items()
    weights = {name: w for name, w in weights if not name.startswith("decoder.")}
    save_checkpoint(tmp_path / "m.pt", content | {"state_dict": weights, "decoder": "d.pt"})
    assert script.main([*call, "--paths.checkpoint", str(tmp_path / "m.pt")]) == 2
    assert "m.pt: holds the encoder alone" in capsys.readouterr().err
