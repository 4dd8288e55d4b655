"""What probes read: poolings over time, blocks, nights, absent channels, montages."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import planted_index, planted_table
from small_probes import save_model

from pedsleepmae import checkpoints
from pedsleepmae.channels import ALL_CHANNELS, CHANNELS, MONTAGES, N_CHANNELS
from pedsleepmae.errors import ProbeError
from pedsleepmae.model import MaskedAutoencoder, pool
from pedsleepmae.prepare.signals import standardise_epochs
from pedsleepmae.probe import evaluation, linear, readout, run, tables
from pedsleepmae.probe.linear import FitSettings
from pedsleepmae.score.night import nearest_montage

FITTING = FitSettings(strengths=[1e-3, 1e-1])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = MaskedAutoencoder(patch_size=16, emb_dim=3, num_layer=3, num_head=4)
    return small.eval()


# ------------------------------------------------------------------ poolings and blocks
def test_extremes_over_time_are_those_of_two_second_means():
    z_BCSE = torch.arange(240.0)[None, None, :, None].expand(2, 16, 240, 3)
    found = {n: pool(z_BCSE[:, :, 0], z_BCSE, n) for n in ("time_max", "time_min", "time_std")}
    assert found["time_max"].unique().tolist() == [231.5]  # the mean of 224 to 239
    assert found["time_min"].unique().tolist() == [7.5]
    assert found["time_std"].unique().tolist() == pytest.approx([np.arange(240).std()])
    assert found["time_max"].shape == (2, 48)


def test_calm_and_burst_tell_a_breath_that_is_missed_by_its_spread():
    """A wave of one cycle in 5 s, at a tenth in one window and at three times in another."""
    patch_S = torch.arange(240.0)
    size_S = torch.ones(240)
    size_S[40:80], size_S[120:160] = 0.1, 3.0
    wave_S = 100 + size_S * torch.sin(2 * torch.pi * patch_S / 40)
    z_BCSE = wave_S[None, None, :, None].expand(2, 16, 240, 3)
    calm, burst = (pool(z_BCSE[:, :, 0], z_BCSE, name) for name in ("time_calm", "time_burst"))
    assert calm.shape == burst.shape == (2, 48)
    assert calm.unique().numpy() == pytest.approx(0.1 * 0.5**0.5, rel=1e-2)
    assert burst.unique().numpy() == pytest.approx(3 * 0.5**0.5, rel=1e-3)
    still = torch.full((1, 16, 240, 3), 1e3)
    assert pool(still[:, :, 0], still, "time_calm").abs().max() == 0


@pytest.mark.parametrize("n_patches", [480, 128, 15])
def test_windows_of_two_seconds_fit_any_patch_size(n_patches):
    z_BCSE = torch.randn(1, 16, n_patches, 2)
    largest = pool(z_BCSE[:, :, 0], z_BCSE, "time_max").view(16, 2)
    assert (largest <= z_BCSE[0].amax(1)).all()
    assert (largest >= z_BCSE[0].mean(1)).all()


def test_a_block_is_read_after_it_and_the_last_one_through_the_norm(model):
    x_BCT = torch.randn(2, 16, 3840)
    seen = []
    hook = model.encoder.transformer[1].register_forward_hook(lambda *a: seen.append(a[2]))
    wanted = model.embed(x_BCT, "time_mean", layer=2)
    hook.remove()
    _, z_BCSE = model.layout.from_tokens(seen[0])
    torch.testing.assert_close(wanted, z_BCSE.mean(2).flatten(1))
    both = model.embed_many(x_BCT, ["time_mean@2", "time_mean", "class@1"])  # from one pass
    assert torch.equal(both["time_mean@2"], wanted)
    assert torch.equal(both["time_mean"], model.embed(x_BCT, "time_mean"))
    assert torch.equal(both["class@1"], model.embed(x_BCT, "class", layer=1))
    last = model.embed(x_BCT, "class+time_max")
    torch.testing.assert_close(model.embed(x_BCT, "class+time_max", layer=3), last)
    with pytest.raises(ValueError, match="the blocks 1 to 3"):
        model.embed(x_BCT, layer=4)


def test_which_features_are_computed_follows_the_settings(tmp_path):
    path = save_model(tmp_path / "model.pt", [])
    checkpoint = checkpoints.read_checkpoint(path)
    checkpoint = replace(checkpoint, model=checkpoint.model | {"num_layer": 4})
    settings = evaluation.ProbeSettings(poolings=["mean", "class"])
    assert run.read_outs(settings, checkpoint) == ["mean@2", "class@2", "mean", "class"]
    settings = evaluation.ProbeSettings(pooling="time_std+class", layer=1)
    assert run.read_outs(settings, checkpoint) == ["time_std+class@1"]
    assert tables.parts_of("time_std+class@1") == ["time_std@1", "class@1"]
    with pytest.raises(ProbeError, match="no block 5"):
        run.read_outs(evaluation.ProbeSettings(layer=5), checkpoint)


# ------------------------------------------------------------------ within the night
def test_a_night_is_standardised_by_itself():
    rng = np.random.default_rng(0)
    x_NF = rng.normal(5, 2, (50, 4)).astype(np.float32)
    x_NF[3, 1] = np.nan
    z_NF = readout.standardise_night(x_NF)
    np.testing.assert_allclose(np.nanmean(z_NF, 0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(z_NF, 0), 1, atol=1e-5)
    assert np.isnan(z_NF[3, 1])
    assert np.isnan(z_NF).sum() == 1
    np.testing.assert_allclose(readout.standardise_night(3 * x_NF - 7), z_NF, atol=1e-4)


def test_constant_features_and_short_nights_do_not_blow_up():
    rounded = np.full((40, 1), 1000.0) + np.random.default_rng(0).choice([0, 0.25], (40, 1))
    assert np.abs(readout.standardise_night(rounded.astype(np.float32))).max() < 1
    assert readout.standardise_night(np.full((5, 2), 3.0, np.float32)).tolist() == [[0, 0]] * 5
    assert readout.standardise_night(np.array([[4.0]], np.float32)).tolist() == [[0]]
    one_spike = np.zeros((10, 1), np.float32)
    one_spike[0] = 1e4
    assert np.abs(readout.standardise_night(one_spike)).max() == pytest.approx(3)  # root of n - 1
    nothing = np.full((3, 1), np.nan, np.float32)
    assert np.isnan(readout.standardise_night(nothing)).all()


def test_nights_of_a_table_are_those_of_each_night_alone(tmp_path):
    index = planted_index(tmp_path, {"train": 3, "val": 2, "test": 2}, n_epochs=37, seed=0)
    x_NF = np.random.default_rng(0).normal([3, -200], [1, 50], (len(index), 2))
    x_NF += index.patient_ids[:, None]
    x_NF[::9, 1] = np.nan
    table = planted_table(index, tmp_path / "features", x=x_NF)["x"]
    by_night = readout.ProbeTable([readout.ReadOut(table, "night")])
    for patient in np.unique(index.patient_ids):
        here = np.flatnonzero(index.patient_ids == patient)
        wanted = readout.standardise_night(table.read(here))
        np.testing.assert_allclose(by_night.read(here)[:, :2], wanted, rtol=1e-3, atol=1e-3)


def test_a_night_split_in_time_is_standardised_part_by_part(tmp_path):
    index = planted_index(tmp_path, {"train": 2, "val": 1, "test": 1}, n_epochs=20, seed=1)
    index = replace(index, patient_ids=np.ones_like(index.patient_ids))
    index = replace(index, study_ids=np.ones_like(index.study_ids))
    x_NF = index.split[:, None] * 100.0 + np.random.default_rng(1).normal(size=(len(index), 1))
    table = planted_table(index, tmp_path / "features", x=x_NF)["x"]
    by_night = readout.ProbeTable([readout.ReadOut(table, "night")])
    for split in ("train", "val", "test"):
        assert by_night.read(index.rows(split))[:, 0].mean() == pytest.approx(0, abs=1e-2)


def test_val_chooses_to_standardise_where_levels_differ_between_children(tmp_path):
    index = planted_index(tmp_path, {"train": 14, "val": 7, "test": 9}, n_epochs=60, seed=2)
    rng = np.random.default_rng(2)
    level = dict(zip(np.unique(index.patient_ids), rng.normal(0, 20, 30), strict=True))
    x_NF = rng.standard_normal((len(index), 3))
    x_NF[:, 0] += 2 * (index.labels["eeg"] > 0) + np.array([level[p] for p in index.patient_ids])
    encoder = planted_table(index, tmp_path / "features", x=x_NF)
    settings = evaluation.ProbeSettings(tasks=["arousal"], context=0, baselines=[])
    results = evaluation.compare(settings, index, {"encoder": encoder}, None, FITTING)
    assert results.best_table.read_outs[0].normalise == "night"
    assert results.tasks["arousal"].by_source["encoder"].test.figures["auroc"] > 0.85
    settings = replace(settings, normalise="none")
    results = evaluation.compare(settings, index, {"encoder": encoder}, None, FITTING)
    assert results.best_table.read_outs[0].normalise == "none"
    assert results.tasks["arousal"].by_source["encoder"].test.figures["auroc"] < 0.65


def test_hand_made_features_with_the_encoder_are_judged_against_hand_made_alone(tmp_path):
    index = planted_index(tmp_path, {"train": 14, "val": 7, "test": 9}, n_epochs=60, seed=3)
    rng = np.random.default_rng(3)
    one, other = (rng.standard_normal((len(index), 2)) for _ in range(2))
    one[:, 0] += index.labels["eeg"] > 0
    other[:, 0] += index.labels["eeg"] > 0
    found = {
        "encoder": planted_table(index, tmp_path / "a", x=one),
        "handmade": planted_table(index, tmp_path / "b", y=other),
    }
    settings = evaluation.ProbeSettings(tasks=["arousal"], context=0, baselines=["handmade"])
    results = evaluation.compare(settings, index, found, None, FITTING)
    by_source = results.tasks["arousal"].by_source
    both = by_source["handmade+encoder"].test.figures["auroc"]
    assert both > by_source["handmade"].test.figures["auroc"] + 0.03
    assert both > by_source["encoder"].test.figures["auroc"] + 0.03


def test_each_task_reads_the_features_that_val_prefers_for_it(tmp_path):
    """Stages stand in one table, arousals in the other, so neither would serve both."""
    index = planted_index(tmp_path, {"train": 14, "val": 7, "test": 9}, n_epochs=60, seed=7)
    rng = np.random.default_rng(7)
    staged, aroused = (rng.standard_normal((len(index), 6)) for _ in range(2))
    staged[:, :5] += 3 * np.eye(5)[index.labels["sleep"]]
    aroused[:, 0] += 2 * (index.labels["eeg"] > 0)
    by_name = planted_table(index, tmp_path / "features", staged=staged, aroused=aroused)
    sources = {"encoder": by_name, "untrained": by_name, "handmade": {"staged": by_name["staged"]}}
    settings = evaluation.ProbeSettings(tasks=["sleep", "arousal"], context=1)
    results = evaluation.compare(settings, index, sources, None, FITTING)
    read = {task: table.read_outs[0].table.name for task, table in results.tables.items()}
    assert read == {"sleep": "staged", "arousal": "aroused"}
    for task, result in results.tasks.items():
        figures = {name: own.test.figures for name, own in result.by_source.items()}
        name = evaluation.auroc_name(task)
        assert figures["encoder"][name] > 0.85
        assert figures["encoder"][name] == figures["untrained"][name]  # the same choice for all
        assert figures["context"][name] > 0.85
        assert figures["handmade+encoder"][name] > 0.85
        assert result.by_source["encoder"].features.startswith(read[task])
    assert results.tasks["arousal"].by_source["handmade"].test.figures["auroc"] < 0.6
    rows = results.pooling_scores.set_index(["source", "features"])
    best = rows.loc["encoder"]["mean"].idxmax()
    assert results.best_table.name == best


def test_of_equal_scores_the_features_of_the_best_mean_are_taken():
    def choice(score):
        return linear.Choice(None, score, np.zeros(0))

    one = evaluation.Tried("encoder", "one", {"sleep": choice(0.9), "apnea": choice(None)}, 0)
    two = evaluation.Tried("encoder", "two", {"sleep": choice(0.8), "apnea": choice(None)}, 0)
    for tried in ([one, two], [two, one]):
        best = evaluation.best_by_task(tried)
        assert {task: its.table for task, its in best.items()} == {"sleep": "one", "apnea": "one"}


# ------------------------------------------------------------------ channels and gain
def test_absent_channels_are_left_out_and_marked(tmp_path):
    index = planted_index(tmp_path, {"train": 2, "val": 1, "test": 1}, n_epochs=6, seed=4)
    index.present[:, 3] = False
    index.present[::2, 8] = False
    x_NF = np.tile(np.arange(64.0), (len(index), 1))
    halves = {"time_mean": x_NF[:, :32], "class": x_NF[:, 32:]}
    planted_table(index, tmp_path / "features", **halves)
    (table,) = tables.open_tables(index, tmp_path / "features", ["time_mean+class"]).values()
    rows = readout.ProbeTable([readout.ReadOut(table, "none")]).read(np.arange(4))
    assert rows.shape == (4, 64 + N_CHANNELS)
    np.testing.assert_array_equal(rows[:, 64:], index.present[:4])
    channel_F = readout.channel_of_features(table.part_lengths)
    np.testing.assert_array_equal(np.isfinite(rows[:, :64]), index.present[:4][:, channel_F])


def test_the_nearest_montage_is_one_that_the_recording_holds():
    def recorded(*channels):
        return np.isin(np.arange(N_CHANNELS), channels)

    every = [name for name in MONTAGES if name != ALL_CHANNELS]
    assert nearest_montage(recorded(*range(16)), every) == ALL_CHANNELS
    for name in every:
        assert nearest_montage(recorded(*MONTAGES[name]), every) == name
    assert nearest_montage(recorded(0, 1, 12, 13, 15, 11), every) == "two EEG, one EOG, chin, flow"
    assert nearest_montage(recorded(8, 11), every) == "SpO2 alone"
    assert nearest_montage(recorded(*range(15)), ["SpO2 alone"]) == ALL_CHANNELS
    assert nearest_montage(recorded(3), every) == ALL_CHANNELS  # no montage is held by it


@pytest.mark.parametrize("gain", [0.5, 2.0, 7.0])
def test_scaling_robust_does_not_see_an_amplifiers_gain(gain):
    rng = np.random.default_rng(5)
    x_NCT = rng.standard_normal((20, 16, 3840)).astype(np.float32)
    voltages = [c for c, channel in enumerate(CHANNELS) if channel.kind == "voltage"]
    x_NCT[:, voltages] *= 5e-5
    present_NC = np.ones((20, 16), bool)
    usual, _, scale_NC = standardise_epochs(x_NCT, present_NC, scaling="robust")
    louder = x_NCT.copy()
    louder[:, voltages] *= gain
    again, _, louder_NC = standardise_epochs(louder, present_NC, scaling="robust")
    np.testing.assert_allclose(again, usual, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(louder_NC[:, voltages], gain * scale_NC[:, voltages], rtol=1e-3)
    spread = np.diff(np.percentile(usual[:, 0].astype(np.float32), (25, 75))) / 1.349
    assert spread == pytest.approx(CHANNELS[0].usual_spread, rel=0.02)


# ------------------------------------------------------------------ honesty
def test_labels_of_other_patients_leave_every_auroc_at_one_half(tmp_path):
    """Signal, a level of each child and its night's own scale, all with the labels of others."""
    index = planted_index(tmp_path, {"train": 14, "val": 7, "test": 9}, n_epochs=60, seed=6)
    rng = np.random.default_rng(6)
    x_NF = np.stack([index.labels[name] for name in index.labels], axis=1).astype(np.float64)
    level = dict(zip(np.unique(index.patient_ids), rng.normal(0, 2, (30, 5)), strict=True))
    x_NF += np.array([level[p] for p in index.patient_ids]) + rng.standard_normal(x_NF.shape)
    for split in ("train", "val", "test"):
        rows = index.rows(split)
        patients = np.unique(index.patient_ids[rows])
        turned = dict(zip(patients, np.roll(patients, 1), strict=True))
        own = {p: rows[index.patient_ids[rows] == p] for p in patients}
        for label_N in index.labels.values():
            before = label_N.copy()
            for patient, other in turned.items():
                label_N[own[patient]] = before[own[other]]
    tables_of = {"encoder": planted_table(index, tmp_path / "f", x=x_NF)}
    events = ["apnea", "hypopnea", "desaturation", "arousal"]
    settings = evaluation.ProbeSettings(tasks=["sleep", *events], context=0, baselines=[])
    results = evaluation.compare(settings, index, tables_of, None, FITTING)
    gaps = []  # between one half and the interval: of five, one may lie beside it
    for task, result in results.tasks.items():
        low, high = result.by_source["encoder"].test.ci95[evaluation.auroc_name(task)]
        gaps.append(max(low - 0.5, 0.5 - high, 0))
    assert sum(gap > 0 for gap in gaps) <= 1
    assert max(gaps) < 0.01
