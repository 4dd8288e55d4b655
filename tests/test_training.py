import importlib.util
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_batches import make_examples, write_folder

from pedsleepmae import checkpoints, data, load_model, machine
from pedsleepmae.channels import CHANNEL_GROUPS
from pedsleepmae.checkpoints import (
    CheckpointError,
    hash_encoder,
    hash_patients,
    read_checkpoint,
    save_checkpoint,
)
from pedsleepmae.errors import SettingsError, as_plain_dict, check_bounds
from pedsleepmae.machine import Compute, World
from pedsleepmae.model import HEADS, MaskedAutoencoder, ModelSettings
from pedsleepmae.optim import derived_seed, learning_rate, stop_on_signal
from pedsleepmae.pretrain import monitor
from pedsleepmae.pretrain.losses import balanced, losses_by_group
from pedsleepmae.pretrain.monitor import Logbook, probe_sleep_stage, read_metrics
from pedsleepmae.pretrain.run import Outcome, open_trainer, pretrain
from pedsleepmae.pretrain.run import save as save_run
from pedsleepmae.pretrain.trainer import (
    TRAIN_MASKS,
    DivergedError,
    OptimSettings,
    PretrainError,
    PretrainPaths,
    PretrainSettings,
    Trainer,
)
from pedsleepmae.store import load_index

ROOT = Path(__file__).resolve().parents[1]
TINY = ModelSettings(patch_size=20, emb_dim=2, num_layer=1, num_head=2)
ON_CPU = Compute(torch.device("cpu"), torch.float32)
DRAW_RECONSTRUCTION = monitor.draw_reconstruction  # replaced in most tests, for it takes a second


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No half-second measurements nor pictures in runs of a few steps."""
    monkeypatch.setattr(machine, "MATMUL_SIZE", {"cpu": 32})
    monkeypatch.setattr(machine, "MATMUL_SECONDS", 0.001)
    monkeypatch.setattr(monitor, "draw_reconstruction", lambda path, *_: None)


@pytest.fixture(scope="module")
def batches_dir(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("batches"), train=[7, 6], val=[5], test=[2])


def settings_for(batches_dir: Path, run_dir: Path, **other) -> PretrainSettings:
    optim = OptimSettings(batch_size=4, lr=0.01, warmup_steps=2)
    defaults = {
        "paths": PretrainPaths(batches_dir=batches_dir, run_dir=run_dir),
        "model": TINY,
        "optim": replace(optim, **other.pop("optim", {})),
        "max_steps": 8,
        "device": "cpu",
        "precision": "float32",
        "log_every": 1,
        "val_every": 3,
        "save_every": 4,
    }
    return PretrainSettings(**defaults | other)


def train(settings: PretrainSettings, **changes) -> Outcome:
    """Train by these settings; ``changes``: what differs in the index of the batch files."""
    index = replace(load_index(settings.paths.batches_dir), **changes)
    start = None if settings.init_from is None else read_checkpoint(settings.init_from)
    return pretrain(open_trainer(settings, index, start))


def make_trainer(settings: PretrainSettings) -> Trainer:
    return Trainer(settings, load_index(settings.paths.batches_dir), ON_CPU, World())


def read_content(path: Path) -> dict:
    """What stands in a checkpoint file, to compare it or to write it again with changes."""
    return torch.load(path, weights_only=True)


def some_batch(n: int = 4, seed: int = 0) -> data.Batch:
    examples = make_examples(n, (1,), seed)
    return data.Batch(
        x_BCT=torch.from_numpy(examples.signals),
        present_BC=torch.from_numpy(examples.present),
        rows=slice(0, n),
        batch_size=n,
        n_present=int(examples.present.sum()),
        end=n,
        n_bad=0,
        positions=np.arange(n),
    )


def figures(run_dir: Path, split: str, *names: str) -> list[tuple]:
    lines = [line for line in read_metrics(run_dir) if line["split"] == split]
    return [(line["step"], *(line[name] for name in names)) for line in lines]


def assert_same(one, other) -> None:
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


BANDED = replace(TINY, target="both", mask_unit="token", mask_ratio=0.7, class_weight=0.5)
VIEWED = replace(TINY, view_weight=0.5)
STATE = ("state_dict", "optimizer", "progress", "channel_weights", "patients_seen", "split_hash")


# ------------------------------------------------------------------ parts of a step
def test_learning_rate_warms_up_and_falls_as_a_cosine():
    optim = OptimSettings(lr=8.0, warmup_steps=4, final_lr_ratio=0.5)
    rates = [learning_rate(step, optim, max_steps=12) for step in range(13)]
    assert rates[:5] == [2, 4, 6, 8, 8]
    assert rates[8] == pytest.approx(6)  # half-way between 8 and 4
    assert rates[12] == pytest.approx(4)
    assert rates[6] == pytest.approx(4 + 2 * (1 + math.cos(math.pi / 4)))


def test_learning_rate_is_constant_without_warmup_and_decline():
    optim = OptimSettings(lr=3.0, warmup_steps=0, final_lr_ratio=1.0)
    assert {learning_rate(step, optim, max_steps=9) for step in range(9)} == {3.0}


def test_weight_decay_is_on_matrices_alone(batches_dir, tmp_path):
    run = make_trainer(settings_for(batches_dir, tmp_path, optim={"weight_decay": 0.1}))
    decayed, others = run.optimizer.param_groups
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in decayed["params"]} == {
        "encoder.patch_projection.projection.weight",
        "decoder.head.weight",
        *(
            f"{part}.transformer.0.{layer}.weight"
            for part in ("encoder", "decoder")
            for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        ),
    }
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize("model", [TINY, BANDED, replace(BANDED, show_whole=1.0)])
def test_a_batch_in_pieces_gives_the_same_step(batches_dir, tmp_path, model):
    steps = []
    for accumulate in (1, 3):
        optim = {"accumulate": accumulate}
        run = make_trainer(settings_for(batches_dir, tmp_path, model=model, optim=optim))
        run.train_step(some_batch(5))
        steps.append((run.interval.grad_norm, run.interval.error_LC, run.interval.count_C))
    (norm, error_LC, count_C), (norm_3, error_3_LC, count_3_C) = steps
    assert norm_3 == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(error_3_LC, error_LC, rtol=1e-5, atol=0)
    assert torch.equal(count_C, count_3_C)


def test_channel_variances_are_those_of_the_present_signals():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 16, 3840)) * np.arange(1, 17)[:, None] + 3
    present = np.ones((5, 16), bool)
    present[1, 2] = present[3, 2] = present[:, 7] = False
    x[:, 9] = 4.0
    batches = [
        (torch.tensor(x[rows]), torch.tensor(present[rows])) for rows in (slice(0, 2), slice(2, 5))
    ]
    variance_C = data.channel_variances(batches).numpy()
    np.testing.assert_allclose(variance_C[0], x[:, 0].var(), rtol=1e-5)
    np.testing.assert_allclose(variance_C[2], x[present[:, 2], 2].var(), rtol=1e-5)
    assert variance_C[7] == 1  # never present
    assert variance_C[9] == np.float32(data.LEAST_VARIANCE)


def test_balanced_channels_divide_each_error_by_its_variance(batches_dir, tmp_path):
    errors = []
    for balance in (False, True):
        optim = {"balance_channels": balance}
        run = make_trainer(settings_for(batches_dir, tmp_path, optim=optim))
        run.train_step(some_batch())
        errors.append(run.interval.error_LC[0])
    plain_C, balanced_C = errors
    index = load_index(batches_dir)
    sample = data.sample_batches(index, index.rows("train"), 32)
    torch.testing.assert_close(
        (plain_C / balanced_C).float(), data.channel_variances(sample), rtol=1e-4, atol=0
    )


def test_an_average_that_begins_with_a_resumed_run_begins_at_its_weights(batches_dir, tmp_path):
    train(settings_for(batches_dir, tmp_path, max_steps=8, stop_at_step=4))
    settings = settings_for(batches_dir, tmp_path, optim={"ema_decay": 0.9}, max_steps=8)
    run = make_trainer(settings)
    run.resume(read_checkpoint(tmp_path / "checkpoint_last.pt"))
    assert_same(dict(run.averaged.state_dict()), dict(run.model.state_dict()))


def test_a_resumed_run_takes_decay_and_memory_from_the_settings(batches_dir, tmp_path):
    train(settings_for(batches_dir, tmp_path, max_steps=8, stop_at_step=4))
    run = make_trainer(
        settings_for(batches_dir, tmp_path, optim={"weight_decay": 0.3, "beta2": 0.5})
    )
    run.resume(read_checkpoint(tmp_path / "checkpoint_last.pt"))
    groups = run.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(group["betas"][1] == 0.5 for group in groups)
    other = make_trainer(settings_for(batches_dir, tmp_path, optim={"balance_channels": False}))
    with pytest.raises(PretrainError, match=r"its optim\.balance_channels is True"):
        other.resume(read_checkpoint(tmp_path / "checkpoint_last.pt"))


def test_signals_under_another_scaling_are_no_way_to_go_on(batches_dir, tmp_path):
    train(settings_for(batches_dir, tmp_path, max_steps=8, stop_at_step=4))
    run = make_trainer(settings_for(batches_dir, tmp_path))
    run.index = replace(run.index, scaling="original")
    with pytest.raises(PretrainError, match="scaling of signals is policy, here it is original"):
        run.resume(read_checkpoint(tmp_path / "checkpoint_last.pt"))


def test_gradients_are_clipped_to_the_norm_asked_for(batches_dir, tmp_path, monkeypatch):
    norms = []
    run = make_trainer(settings_for(batches_dir, tmp_path, optim={"grad_clip": 1e-3}))
    step = run.optimizer.step

    def watched():
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in run.model.parameters())))
        step()

    monkeypatch.setattr(run.optimizer, "step", watched)
    run.train_step(some_batch())
    assert run.interval.grad_norm > 3e-3
    assert norms == [pytest.approx(1e-3, rel=1e-2)]


def test_average_follows_the_weights_with_its_decay(batches_dir, tmp_path):
    run = make_trainer(settings_for(batches_dir, tmp_path, optim={"ema_decay": 0.15}))
    first = run.model.decoder.head.bias.detach().clone()
    run.train_step(some_batch())
    second = run.model.decoder.head.bias.detach().clone()
    mean = 0.1 * first + 0.9 * second  # decay (1 + 0) / (10 + 0)
    torch.testing.assert_close(run.averaged.decoder.head.bias, mean)
    run.train_step(some_batch())
    mean = 0.15 * mean + 0.85 * run.model.decoder.head.bias  # (1 + 1) / (10 + 1) is above 0.15
    torch.testing.assert_close(run.averaged.decoder.head.bias, mean)
    assert run.saved_model is run.averaged


def test_a_loss_that_is_not_finite_is_skipped_and_counted(batches_dir, tmp_path):
    run = make_trainer(settings_for(batches_dir, tmp_path))
    bad = replace(some_batch(), x_BCT=torch.full((4, 16, 3840), 1e30))
    run.train_step(some_batch())
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train_step(bad)
    assert_same(dict(run.model.state_dict()), before)
    assert (run.progress.step, run.progress.n_skipped, run.progress.n_skipped_in_row) == (2, 1, 1)
    run.train_step(some_batch())
    assert (run.progress.n_skipped, run.progress.n_skipped_in_row) == (1, 0)
    run.interval.seconds = 1.0
    assert math.isfinite(run.close_interval()["loss"])


def test_a_loss_that_stays_not_finite_stops_the_run_with_advice(batches_dir, tmp_path):
    run = make_trainer(settings_for(batches_dir, tmp_path))
    bad = replace(some_batch(), x_BCT=torch.full((4, 16, 3840), 1e30))
    for _ in range(19):
        run.train_step(bad)
    with pytest.raises(DivergedError, match=r"step 20: .*lower optim\.lr"):
        run.train_step(bad)


def test_training_lowers_the_validation_loss(batches_dir, tmp_path):
    settings = settings_for(batches_dir, tmp_path, max_steps=60, val_every=10)
    train(replace(settings, model=replace(TINY, emb_dim=8)))
    losses = [loss for _, loss in figures(tmp_path, "val", "loss")]
    assert losses[-1] < 0.8 * losses[0]


# ------------------------------------------------------------------ what a run writes
def test_a_run_writes_checkpoints_metrics_settings_and_pictures(
    batches_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(monitor, "draw_reconstruction", DRAW_RECONSTRUCTION)
    settings = settings_for(batches_dir, tmp_path, max_steps=4, val_every=4, probe_every=4)
    outcome = train(settings)
    assert (outcome.step, outcome.finished, outcome.stopped_by_signal) == (4, True, False)
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text()) == as_plain_dict(settings)
    picture = (tmp_path / "pictures" / "step_00000004.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    metrics = read_metrics(tmp_path)
    assert [(line["step"], line["split"]) for line in metrics] == [
        *((step, "train") for step in (1, 2, 3, 4)),
        *((4, "val"), (4, "probe")),
    ]
    assert all(line["simulated"] is True for line in metrics)
    assert set(metrics[0]["loss_by_group"]) == set(CHANNEL_GROUPS)
    for name in ("lr", "grad_norm", "examples_per_s", "tflops", "matmul_share", "memory_gb"):
        assert metrics[-3][name] > 0
    assert metrics[3]["epoch"] == 16 / 13
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        content = read_content(tmp_path / name)
        assert content["settings"] == as_plain_dict(settings)
        assert content["patients_seen"] == hash_patients([1, 2])
        assert (content["step"], content["simulated"]) == (4, True)
        assert content["val_loss"] == metrics[4]["loss"]
        assert content["scaling"] == "policy"
        assert content["data"]["n_examples"] == 13
        load_model(tmp_path / name).embed(torch.zeros(1, 16, 3840), "class")
    assert "step 4: validation loss" in capsys.readouterr().out


def test_best_checkpoint_is_that_of_the_lowest_validation_loss(batches_dir, tmp_path, monkeypatch):
    losses = iter([0.5, 0.3, 0.4])
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"loss": next(losses)})
    train(settings_for(batches_dir, tmp_path, max_steps=9))
    best = read_content(tmp_path / "checkpoint_best.pt")
    assert (best["step"], best["val_loss"]) == (6, 0.3)
    assert read_content(tmp_path / "checkpoint_last.pt")["step"] == 9


def test_without_validation_examples_the_last_checkpoint_is_the_best(script, tmp_path, capsys):
    folder = write_folder(tmp_path / "batches", train=[5])
    run_dir = tmp_path / "run"
    train(settings_for(folder, run_dir, max_steps=4))
    assert script.main(["--config", str(run_dir / "settings.yaml")]) == 0
    assert "without validation" in capsys.readouterr().out
    last, best = (read_content(run_dir / f"checkpoint_{name}.pt") for name in ("last", "best"))
    assert_same(dict(last["state_dict"]), dict(best["state_dict"]))
    assert not figures(run_dir, "val")


def test_validation_is_the_same_each_time_and_does_not_change_the_weights(batches_dir, tmp_path):
    run = make_trainer(settings_for(batches_dir, tmp_path))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    first = run.validate(lambda: False)
    assert run.validate(lambda: False) == first
    assert run.validate(lambda: True) is None
    assert_same(dict(run.model.state_dict()), before)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_steps_show_channels_whole_as_often_as_asked(share):
    model, n_whole = MaskedAutoencoder(**vars(replace(TINY, show_whole=share))), 0
    for seed in range(200):
        drawn = model.draw_whole(6, torch.Generator().manual_seed(seed), slice(2, 5))
        if drawn is not None:
            n_whole += 1
            keep_BCK, hidden_BC = drawn
            assert (keep_BCK == torch.arange(model.n_patches)).all()
            assert keep_BCK.shape == (3, 16, model.n_patches)
            assert hidden_BC.any(dim=1).all()
    assert abs(n_whole - 200 * share) <= 5 * math.sqrt(200 * share)


def test_where_channels_are_shown_whole_only_the_hidden_ones_count(batches_dir, tmp_path):
    run = make_trainer(settings_for(batches_dir, tmp_path, model=replace(TINY, show_whole=1.0)))
    batch = some_batch(6)
    run.generator.manual_seed(derived_seed(run.settings.seed, TRAIN_MASKS, 0))
    keep_BCK, hidden_BC = run.model.draw_whole(6, run.generator)
    asked_BC = hidden_BC & batch.present_BC
    with torch.no_grad():
        error_LBC = balanced(
            run.model(batch.x_BCT, batch.present_BC, keep_BCK, hidden_BC), run.weight_C
        )
    run.train_step(batch)
    assert torch.equal(run.interval.count_C, asked_BC.sum(0).double())
    torch.testing.assert_close(
        run.interval.error_LC, (error_LBC * asked_BC).sum(dim=1).double(), rtol=1e-5, atol=1e-6
    )
    figures = run.validate(lambda: False)
    asked = [name for name, loss in figures["loss_by_group"].items() if loss is not None]
    assert 0 < len(asked) < len(CHANNEL_GROUPS)  # a few examples lose a channel or a group each


def test_a_frozen_encoder_stays_to_the_last_bit_while_the_decoder_learns(batches_dir, tmp_path):
    train(settings_for(batches_dir, tmp_path / "first", max_steps=3))
    first = tmp_path / "first" / "checkpoint_last.pt"
    settings = settings_for(
        batches_dir,
        tmp_path / "second",
        init_from=first,
        freeze_encoder=True,
        model=replace(TINY, show_whole=0.5),
        optim={"ema_decay": 0.9},
    )
    train(replace(settings, stop_at_step=5))
    train(settings)
    before = read_content(first)["state_dict"]
    trained = read_content(tmp_path / "second" / "checkpoint_last.pt")
    assert trained["step"] == 8
    for weights in (trained["state_dict"], trained["training_weights"]):
        changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if name.startswith("decoder.")}
    published = checkpoints.publish(tmp_path / "second" / "checkpoint_last.pt", tmp_path / "p.pt")
    again = checkpoints.publish(first, tmp_path / "q.pt")
    assert hash_encoder(read_checkpoint(published[0]).build_model()) == hash_encoder(
        read_checkpoint(again[0]).build_model()
    )


def test_losses_by_group_are_weighted_by_the_channels_present():
    error_C, count_C = np.zeros(16), np.zeros(16)
    error_C[[0, 3, 9]], count_C[[0, 3, 9]] = [3, 1, 10], [1, 3, 4]
    result = losses_by_group([error_C], count_C, {"wave": 1.0})
    assert set(result) == {"loss", "loss_by_group"}  # as before there were other parts
    assert result["loss"] == 14 / 8
    assert result["loss_by_group"]["EEG"] == 1
    assert result["loss_by_group"]["effort"] == 2.5
    assert result["loss_by_group"]["SpO2"] is None


def test_parts_of_the_loss_stand_beside_their_weighted_sum():
    wave_C, bands_C, count_C = np.zeros(16), np.zeros(16), np.zeros(16)
    count_C[[0, 9]], wave_C[[0, 9]], bands_C[[0, 9]] = [1, 3], [2, 6], [4, 0]
    result = losses_by_group([wave_C, bands_C], count_C, {"wave": 1.0, "bands": 0.5})
    assert (result["loss"], result["loss_wave"], result["loss_bands"]) == (2.5, 2, 1)
    assert result["loss_by_group"]["EEG"] == 4
    assert result["loss_bands_by_group"]["EEG"] == 4
    assert result["loss_wave_by_group"]["effort"] == 2
    assert result["loss_bands_by_group"]["SpO2"] is None


def test_parts_are_logged_in_training_and_validation_and_the_best_is_of_their_sum(
    batches_dir, tmp_path
):
    train(settings_for(batches_dir, tmp_path, model=BANDED))
    lines = read_metrics(tmp_path)
    for line in lines:
        parts = line["loss_wave"] + line["loss_bands"] + 0.5 * line["loss_class"]
        assert line["loss"] == pytest.approx(parts)
        assert set(line["loss_class_by_group"]) == set(CHANNEL_GROUPS)
    best = min(line["loss"] for line in lines if line["split"] == "val")
    assert read_content(tmp_path / "checkpoint_best.pt")["val_loss"] == best


def test_envelopes_can_be_learnt(batches_dir, tmp_path):
    optim = {"lr": 0.02}
    train(settings_for(batches_dir, tmp_path, model=BANDED, optim=optim, max_steps=60))
    first, *_, last = figures(tmp_path, "val", "loss_bands", "loss_class")
    assert last[1] < 0.9 * first[1]
    assert last[2] < 0.9 * first[2]


def test_absent_channels_count_in_no_part_of_the_loss(batches_dir, tmp_path):
    batch = some_batch()
    steps = []
    for foreign in (0.0, 7.0):
        noise = torch.randn(batch.x_BCT.shape, generator=torch.Generator().manual_seed(0))
        x_BCT = torch.where(batch.present_BC[:, :, None], batch.x_BCT, foreign * noise)
        run = make_trainer(settings_for(batches_dir, tmp_path, model=BANDED))
        run.train_step(replace(batch, x_BCT=x_BCT))
        steps.append(run)
    one, other = steps
    assert torch.equal(one.interval.error_LC, other.interval.error_LC)
    assert one.interval.grad_norm == other.interval.grad_norm
    never = ~batch.present_BC.any(dim=0)
    assert (one.interval.error_LC[:, never] == 0).all()


def test_a_resumed_logbook_drops_what_lies_beyond_the_checkpoint_and_a_torn_line(tmp_path):
    logbook = Logbook(tmp_path, step=0, simulated=False)
    for step in (1, 2, 3):
        logbook.write(step, "train", {"loss": math.nan if step == 2 else 0.5})
    logbook.close()
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "spl')
    Logbook(tmp_path, step=2, simulated=False).close()
    assert read_metrics(tmp_path) == [
        {"step": 1, "split": "train", "loss": 0.5},
        {"step": 2, "split": "train", "loss": None},
    ]


# ------------------------------------------------------------------ going on
@pytest.mark.parametrize("model", [TINY, BANDED, VIEWED])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_run_stopped_and_resumed_ends_bit_for_bit_as_if_it_had_not(
    batches_dir, tmp_path, stop, ema_decay, model
):
    other = {
        "optim": {"ema_decay": ema_decay, "accumulate": 2},
        "model": replace(model, mask_channels=0.5, show_whole=0.4),
    }
    train(settings_for(batches_dir, tmp_path / "whole", **other))
    parts = settings_for(batches_dir, tmp_path / "parts", **other)
    outcome = train(replace(parts, stop_at_step=stop))
    assert (outcome.step, outcome.finished) == (stop, False)
    train(parts)
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        whole, resumed = (read_content(tmp_path / run / name) for run in ("whole", "parts"))
        for key in STATE:
            assert_same(whole.get(key), resumed.get(key))
    for split in ("train", "val"):
        names = [f"loss_{part}" for part in model.part_weights if part != "wave"]
        names += ["loss"]
        whole, resumed = (figures(tmp_path / run, split, *names) for run in ("whole", "parts"))
        assert whole == resumed


def terminate_at_step_3(_trainer, line: str) -> None:
    if line.startswith("step 3"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_writes_a_checkpoint_first_and_the_run_goes_on_from_it(
    batches_dir, tmp_path, monkeypatch
):
    train(settings_for(batches_dir, tmp_path / "whole"))
    monkeypatch.setattr(monitor, "say", terminate_at_step_3)
    parts = settings_for(batches_dir, tmp_path / "parts", save_every=100)
    outcome = train(parts)
    assert (outcome.step, outcome.stopped_by_signal) == (3, True)
    monkeypatch.undo()
    assert read_content(tmp_path / "parts" / "checkpoint_last.pt")["step"] == 3
    train(parts)
    whole, resumed = (
        read_content(tmp_path / run / "checkpoint_last.pt") for run in ("whole", "parts")
    )
    for key in STATE:
        assert_same(whole[key], resumed[key])


def test_a_signal_during_validation_puts_it_off_to_the_resumed_run(
    batches_dir, tmp_path, monkeypatch
):
    train(settings_for(batches_dir, tmp_path / "whole"))
    parts = settings_for(batches_dir, tmp_path / "parts")
    validate = Trainer.validate

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args)

    monkeypatch.setattr(Trainer, "validate", interrupted)
    assert train(parts).step == 3
    assert figures(tmp_path / "parts", "val") == []
    monkeypatch.setattr(Trainer, "validate", validate)
    train(parts)
    whole, resumed = (figures(tmp_path / run, "val", "loss") for run in ("whole", "parts"))
    assert whole == resumed


def test_a_second_interrupt_acts_as_usual_but_a_second_termination_does_not(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with stop_on_signal() as wanted:
        assert not wanted()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert wanted()
    with stop_on_signal() as wanted:
        signal.raise_signal(signal.SIGINT)
        assert wanted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_finished_run_is_left_as_it_is(batches_dir, tmp_path):
    settings = settings_for(batches_dir, tmp_path, max_steps=3)
    train(settings)
    before = (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns
    metrics = read_metrics(tmp_path)
    assert train(settings).finished
    assert (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns == before
    assert read_metrics(tmp_path) == metrics


def test_resume_false_starts_anew(batches_dir, tmp_path):
    train(settings_for(batches_dir, tmp_path, max_steps=3))
    train(settings_for(batches_dir, tmp_path, max_steps=2, resume=False))
    assert read_content(tmp_path / "checkpoint_last.pt")["step"] == 2
    assert [step for (step,) in figures(tmp_path, "train")] == [1, 2]


def test_a_checkpoint_older_than_a_setting_is_resumed_with_its_default(batches_dir, tmp_path):
    settings = settings_for(batches_dir, tmp_path, max_steps=3)
    train(replace(settings, stop_at_step=2))
    content = read_content(tmp_path / "checkpoint_last.pt")
    content["model"].pop("mask_channels")
    save_checkpoint(tmp_path / "checkpoint_last.pt", content)
    assert train(settings).step == 3
    other = replace(settings, model=replace(TINY, mask_channels=0.2))
    save_checkpoint(tmp_path / "checkpoint_last.pt", content)
    with pytest.raises(PretrainError, match=r"model\.mask_channels is 0\.0, here it is 0\.2"):
        train(other)


def test_a_run_of_another_model_or_split_is_not_resumed(batches_dir, tmp_path):
    settings = settings_for(batches_dir, tmp_path, max_steps=2)
    train(settings)
    other = replace(settings, model=replace(TINY, emb_dim=4))
    with pytest.raises(PretrainError, match=r"model\.emb_dim is 2, here it is 4"):
        train(other)
    with pytest.raises(PretrainError, match="split is 0123456789abcdef, here it is another"):
        train(settings, split_hash="another")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_whose_encoder_was_frozen_goes_on_with_it_frozen_alone(batches_dir, tmp_path, frozen):
    train(settings_for(batches_dir, tmp_path / "first", max_steps=2))
    start = {"init_from": tmp_path / "first" / "checkpoint_last.pt", "max_steps": 4}
    settings = settings_for(batches_dir, tmp_path / "second", freeze_encoder=frozen, **start)
    train(replace(settings, stop_at_step=2))
    words = f"its freeze_encoder is {frozen}, here it is {not frozen}; set it as it was"
    with pytest.raises(PretrainError, match=words):
        train(replace(settings, freeze_encoder=not frozen))
    assert train(settings).finished


def test_weights_of_another_run_are_a_start_and_its_patients_are_remembered(batches_dir, tmp_path):
    first = settings_for(batches_dir, tmp_path / "first", max_steps=2)
    train(first)
    path = tmp_path / "first" / "checkpoint_last.pt"
    content = read_content(path)
    save_checkpoint(path, content | {"patients_seen": hash_patients([77])})
    second = settings_for(batches_dir, tmp_path / "second")
    run = make_trainer(second)
    run.start_from(read_checkpoint(path))
    assert_same(dict(run.model.state_dict()), dict(content["state_dict"]))
    assert run.patients_seen == hash_patients([1, 2, 77])
    assert run.progress.step == 0


def test_heads_of_bands_start_anew_in_the_units_of_the_new_data(batches_dir, tmp_path):
    train(settings_for(batches_dir, tmp_path / "first", model=BANDED, max_steps=3))
    first = tmp_path / "first" / "checkpoint_last.pt"
    settings = settings_for(batches_dir, tmp_path / "second", model=BANDED, init_from=first, seed=5)
    run = open_trainer(settings, load_index(batches_dir), read_checkpoint(first))
    fresh = make_trainer(settings).model.state_dict()
    theirs = read_content(first)["state_dict"]
    heads = [name for name in fresh if name.startswith(HEADS)]
    assert heads
    assert any(not torch.equal(fresh[name], theirs[name]) for name in heads)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, (fresh if name in heads else theirs)[name])


def test_what_is_unknown_of_a_start_stays_unknown(batches_dir, tmp_path):
    """An original checkpoint lists no patients; a simulated one leaves its mark on what follows."""
    train(settings_for(batches_dir, tmp_path / "first", max_steps=2))
    content = read_content(tmp_path / "first" / "checkpoint_last.pt")
    path = tmp_path / "start.pt"
    save_checkpoint(path, content | {"patients_seen": None, "simulated": True})
    settings = settings_for(batches_dir, tmp_path / "second", init_from=path, max_steps=4)
    train(settings, simulated=False)
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        trained = read_content(tmp_path / "second" / name)
        assert trained["patients_seen"] is None
        assert trained["simulated"]
    settings.max_steps = 5
    train(settings, simulated=False)  # resumed
    assert read_content(tmp_path / "second" / "checkpoint_last.pt")["patients_seen"] is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(TINY, emb_dim=4), r"encoder\.cls_token has the shape \(1, 1, 1, 2\) there"),
        (replace(TINY, token_layout="moment"), "token_layout is channel, the settings say moment"),
    ],
)
def test_weights_of_another_shape_are_no_start(batches_dir, tmp_path, model, message):
    train(settings_for(batches_dir, tmp_path / "first", max_steps=1))
    start = tmp_path / "first" / "checkpoint_last.pt"
    with pytest.raises(CheckpointError, match=message):
        train(settings_for(batches_dir, tmp_path / "second", model=model, init_from=start))
    assert not (tmp_path / "second").exists()


def test_one_flag_goes_on_from_a_published_checkpoint_of_another_shape(
    script, batches_dir, tmp_path, monkeypatch
):
    shipped = tmp_path / "checkpoint" / "m15p8_checkpoint.pt"
    first = settings_for(batches_dir, tmp_path / "first", max_steps=2)
    first.paths.publish_to = shipped
    train(first)
    monkeypatch.chdir(ROOT)
    arguments = ["--paths.batches_dir", str(batches_dir), "--paths.run_dir", str(tmp_path / "run")]
    arguments += ["--max_steps", "1", "--optim.batch_size", "4", "--precision", "float32"]
    arguments += ["--optim.lr", "0", "--optim.warmup_steps", "0", "--probe_every", "0"]
    assert script.main([*arguments, "--init_from", str(shipped)]) == 0
    trained = read_content(tmp_path / "run" / "checkpoint_last.pt")
    assert trained["model"] == read_content(shipped)["model"] | {"mask_span": 1}
    assert_same(trained["state_dict"], read_content(shipped)["state_dict"])


def test_a_start_under_another_scaling_is_told(script, batches_dir, tmp_path, monkeypatch, capsys):
    train(settings_for(batches_dir, tmp_path / "first", max_steps=1))
    content = read_content(tmp_path / "first" / "checkpoint_last.pt")
    save_checkpoint(tmp_path / "start.pt", content | {"scaling": "original"})
    monkeypatch.chdir(ROOT)
    arguments = ["--paths.batches_dir", str(batches_dir), "--paths.run_dir", str(tmp_path / "run")]
    arguments += ["--max_steps", "1", "--optim.batch_size", "4", "--probe_every", "0"]
    assert script.main([*arguments, "--init_from", str(tmp_path / "start.pt")]) == 0
    assert "trained on signals under scaling original, these stand under policy" in (
        capsys.readouterr().err
    )


# ------------------------------------------------------------------ online probe
def test_online_probe_finds_a_planted_difference_in_patients_it_was_not_fitted_on():
    rng = np.random.default_rng(0)
    stages, patients = np.arange(80) % 2, np.arange(80) // 20
    features = rng.standard_normal((80, 3)) + 10 * stages[:, None]
    found = probe_sleep_stage(features, stages, patients)
    assert (found["kappa"], found["balanced_accuracy"]) == (1, 1)
    assert (found["n_fit"], found["n_scored"]) == (40, 40)
    nothing = probe_sleep_stage(rng.standard_normal((80, 3)), stages, patients)
    assert abs(nothing["kappa"]) < 0.5


def test_online_probe_of_one_patient_says_why_there_is_no_figure():
    result = probe_sleep_stage(np.zeros((4, 2)), np.array([0, 1, 2, -1]), np.zeros(4))
    assert result["kappa"] is None
    assert "two patients" in result["reason"]


# ------------------------------------------------------------------ settings that do not fit
def check_settings(settings: PretrainSettings) -> None:
    check_bounds(settings)
    settings.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"patch_size": 7}}, r"model\.patch_size is 7, which does not divide the 3,840"),
        ({"model": {"num_head": 3}}, r"model\.num_head is 3, which does not divide .* = 1024"),
        ({"model": {"decoder_emb_dim": 3, "num_head": 32}}, "16 x decoder_emb_dim = 48"),
        ({"model": {"mask_ratio": 50.0}}, r"model\.mask_ratio is 50; give more than 0 and less"),
        ({"model": {"mask_ratio": 0.0}}, "less than 1"),
        ({"model": {"emb_dim": 0}}, r"model\.emb_dim is 0; give 1 or more"),
        ({"model": {"decoder_num_layer": 0}}, r"model\.decoder_num_layer is 0"),
        ({"model": {"mask_span": 481}}, "a channel has 480 patches"),
        ({"model": {"patch_size": 32}}, "16 at a time"),
        ({"optim": {"accumulate": 33}}, "no more pieces than examples"),
        ({"optim": {"lr": -1.0}}, r"optim\.lr is -1; give 0 or more"),
        ({"optim": {"lr": math.nan}}, r"optim\.lr is nan"),
        ({"optim": {"ema_decay": 1.0}}, "less than 1"),
        ({"max_steps": 0}, "max_steps is 0; give 1 or more"),
        ({"freeze_encoder": True}, "freeze_encoder would leave .* as init_from"),
        ({"stop_at_step": 0}, "stop_at_step is 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(changes, message):
    changes = dict(changes)
    settings = PretrainSettings(
        model=replace(ModelSettings(), **changes.pop("model", {})),
        optim=replace(OptimSettings(), **changes.pop("optim", {})),
        **changes,
    )
    with pytest.raises(SettingsError, match=message):
        check_settings(settings)


@pytest.mark.parametrize(
    "name", ["pretrain", "pretrain_lean", "m15p8_reference", "demo/pretrain", "sleep_edf/pretrain"]
)
def test_published_settings_fit(name):
    values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = PretrainSettings(
        paths=PretrainPaths(**values.pop("paths")),
        model=ModelSettings(**values.pop("model")),
        optim=OptimSettings(**values.pop("optim")),
        **values,
    )
    check_settings(settings)


def test_a_batch_smaller_than_the_number_of_processes_is_refused(batches_dir, tmp_path):
    settings = settings_for(batches_dir, tmp_path, optim={"batch_size": 2})
    index = load_index(batches_dir)
    with pytest.raises(PretrainError, match=r"optim\.batch_size is 2 for 3 processes"):
        Trainer(settings, index, ON_CPU, World(0, 3))


def test_a_folder_without_training_examples_is_refused(tmp_path):
    folder = write_folder(tmp_path, test=[2])
    with pytest.raises(PretrainError, match="no training examples"):
        train(settings_for(folder, tmp_path / "run"))


# ------------------------------------------------------------------ the script
@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("script_2", ROOT / "2_pretrain_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exit_code(script, arguments: list[str]) -> int:
    try:
        return script.main(arguments)
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--paths.batches_dir", "nowhere"], "paths.batches_dir: there is no folder nowhere"),
        (["--paths.batches_dir", "configs"], "no combined_<i>.hdf5"),
        (["--model.mask_ratio", "50"], "model.mask_ratio is 50;"),
        (["--model.mask_channels", "30"], "model.mask_channels is 30;"),
        (["--init_from", "nowhere.pt"], "init_from: there is no file nowhere.pt"),
    ],
)
def test_bad_settings_end_the_script_with_code_2_and_one_sentence(
    script, batches_dir, tmp_path, capsys, monkeypatch, args, sentence
):
    monkeypatch.chdir(ROOT)
    before = ["--paths.batches_dir", str(batches_dir), "--paths.run_dir", str(tmp_path / "run")]
    assert exit_code(script, [*before, *args]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_ends_the_script_with_code_1(
    script, batches_dir, tmp_path, capsys, monkeypatch
):
    def diverge(*_):
        raise DivergedError("step 20: lower optim.lr")

    monkeypatch.setattr(script.run, "train", diverge)
    paths = ["--paths.batches_dir", str(batches_dir), "--paths.run_dir", str(tmp_path)]
    assert script.main(paths) == 1
    assert "lower optim.lr" in capsys.readouterr().err


def test_a_signal_ends_the_script_with_code_1_and_stop_at_step_with_0(
    script, batches_dir, tmp_path, capsys, monkeypatch
):
    settings = settings_for(batches_dir, tmp_path / "first", max_steps=4, stop_at_step=1)
    train(settings)
    run_dir = ["--paths.run_dir", str(tmp_path / "run")]
    arguments = ["--config", str(tmp_path / "first" / "settings.yaml"), *run_dir]
    assert script.main([*arguments, "--stop_at_step", "1"]) == 0
    monkeypatch.setattr(monitor, "say", terminate_at_step_3)
    assert script.main([*arguments, "--stop_at_step", "null"]) == 1
    assert "Stopped by a signal; the same command goes on from" in capsys.readouterr().out
    assert read_content(tmp_path / "run" / "checkpoint_last.pt")["step"] == 3
    monkeypatch.undo()
    assert script.main([*arguments, "--stop_at_step", "null"]) == 0


def test_a_second_run_in_the_same_folder_ends_at_once_with_code_1(
    script, batches_dir, tmp_path, capsys
):
    train(settings_for(batches_dir, tmp_path, max_steps=2))
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    arguments = ["--config", str(tmp_path / "settings.yaml"), "--max_steps", "4"]
    with machine.only_run_in(tmp_path, "paths.run_dir"):
        assert script.main(arguments) == 1
    assert f"another run is writing to {tmp_path}" in capsys.readouterr().err
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
    assert script.main(arguments) == 0


def test_a_run_that_ended_since_the_checkpoint_was_read_is_not_gone_back_behind(
    batches_dir, tmp_path
):
    settings = settings_for(batches_dir, tmp_path, max_steps=4)
    train(replace(settings, stop_at_step=1))
    late = open_trainer(settings, load_index(batches_dir))
    train(replace(settings, stop_at_step=3))
    with pytest.raises(PretrainError, match="another run has just ended"):
        pretrain(late)
    assert read_content(tmp_path / "checkpoint_last.pt")["step"] == 3


def test_what_a_killed_run_left_half_written_is_removed(batches_dir, tmp_path):
    left = [tmp_path / ".checkpoint_last.pt.0123abcd.partial"]
    left += [tmp_path / "pictures" / ".step_00000002.png.0123abcd.partial"]
    left[1].parent.mkdir()
    for path in left:
        path.write_bytes(b"half")
    train(settings_for(batches_dir, tmp_path, max_steps=2))
    assert not any(path.exists() for path in left)


def test_a_full_disk_ends_the_script_with_one_sentence_and_the_checkpoint_of_before(
    batches_dir, tmp_path
):
    train(settings_for(batches_dir, tmp_path, max_steps=2))
    before = (tmp_path / "checkpoint_last.pt").read_bytes()
    program = "import resource, runpy, sys\n"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    program += f"sys.argv[0] = '{ROOT / '2_pretrain_model.py'}'\n"
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", program, "--config", str(tmp_path / "settings.yaml")]
    command += ["--max_steps", "3", "--val_every", "100"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "make room or mend the disk" in run.stderr.splitlines()[-1]
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
    assert not list(tmp_path.glob(".checkpoint*.partial"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("progress", {"step": "two"}, "step has the wrong type"),
        ("progress", [2], "no mapping"),
        ("progress", {"step": -2}, "progress.step"),
        ("channel_weights", torch.ones(15), "channel_weights"),
        ("channel_weights", torch.full((16,), torch.nan), "not finite"),
        ("optimizer", {"state": {0: {"step": torch.tensor(1.0)}}}, "exp_avg"),
        ("optimizer", {"state": {99: {}}}, "other weights"),
        ("optimizer", None, "cannot be resumed"),
    ],
)
def test_a_damaged_state_is_not_resumed_and_says_what_of_it_is_damaged(
    batches_dir, tmp_path, name, value, reason
):
    settings = settings_for(batches_dir, tmp_path, max_steps=1)
    train(settings)
    path = tmp_path / "checkpoint_last.pt"
    save_checkpoint(path, read_content(path) | {name: value})
    with pytest.raises(PretrainError, match=reason):
        train(replace(settings, max_steps=2))


def test_bad_values_are_counted_across_a_kill_between_two_lines_of_the_logbook(
    batches_dir, tmp_path
):
    run = make_trainer(settings_for(batches_dir, tmp_path))
    run.train_step(replace(some_batch(), n_bad=5))
    save_run(run, is_end=False)
    assert read_content(tmp_path / "checkpoint_last.pt")["progress"]["n_bad_values"] == 5
    run.interval.seconds = 1.0
    run.close_interval()
    assert run.progress.n_bad_values == 5


def test_damaged_lines_of_the_logbook_are_left_out(tmp_path):
    lines = [b'{"step": 1}', b"\xff", b"[1]", b"{", b'{"step": "x"}', b'{"step": 2}', b'{"st']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_settings_written_by_a_run_start_the_same_run(script, batches_dir, tmp_path, capsys):
    settings = settings_for(batches_dir, tmp_path / "run", max_steps=2)
    train(settings)
    again = tmp_path / "again"
    config = ["--config", str(tmp_path / "run" / "settings.yaml")]
    assert script.main([*config, "--paths.run_dir", str(again)]) == 0
    said = capsys.readouterr().out
    assert "13 training examples of 2 patient(s) (simulated data), 5 for validation" in said
    assert "2 of 2 steps done; results in" in said
    assert "Best validation loss" in said
    one, other = (read_content(run / "checkpoint_last.pt") for run in (tmp_path / "run", again))
    for key in STATE:
        assert_same(one[key], other[key])


def test_two_processes_give_the_same_losses_as_one(batches_dir, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", port, str(ROOT / "2_pretrain_model.py")]
    command += ["--paths.batches_dir", str(batches_dir), "--paths.run_dir", str(tmp_path / "two")]
    command += ["--model.patch_size", "20", "--model.emb_dim", "2", "--model.num_layer", "1"]
    command += ["--model.num_head", "2", "--model.mask_channels", "0.5", "--model.target", "both"]
    command += ["--model.show_whole", "0.5"]
    command += ["--optim.batch_size", "5", "--optim.accumulate", "2", "--optim.lr", "0.01"]
    command += ["--optim.warmup_steps", "2", "--log_every", "1", "--max_steps", "6"]
    command += ["--probe_every", "0", "--device", "cpu", "--precision", "float32"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    two = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("training examples of") == 1
    optim = {"batch_size": 5, "weight_decay": 0.0005}
    model = replace(TINY, mask_channels=0.5, target="both", show_whole=0.5)
    other = {"optim": optim, "model": model}
    train(settings_for(batches_dir, tmp_path / "one", max_steps=6, val_every=6, **other))
    for split, n_lines in {"train": 6, "val": 1}.items():
        alone, together = (
            np.array(figures(tmp_path / run, split, "loss")) for run in ("one", "two")
        )
        assert alone.shape == (n_lines, 2)
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    one, both = (read_content(tmp_path / run / "checkpoint_last.pt") for run in ("one", "two"))
    assert one["progress"]["position"] == both["progress"]["position"] == 30
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(both["state_dict"][name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", [TINY, BANDED, VIEWED])
def test_compiled_model_trains_as_the_plain_one(batches_dir, tmp_path, monkeypatch, model):
    """Captured whole by torch.compile, and differentiated; code generation is left to torch."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module: compile_module(module, backend="aot_eager", fullgraph=True),
    )
    other = {"max_steps": 3, "model": model}
    train(settings_for(batches_dir, tmp_path / "plain", **other))
    train(settings_for(batches_dir, tmp_path / "compiled", compile=True, **other))
    plain, compiled = (figures(tmp_path / run, "train", "loss") for run in ("plain", "compiled"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)
    one, other = (
        read_content(tmp_path / run / "checkpoint_last.pt")["state_dict"]
        for run in ("plain", "compiled")
    )
    assert list(one) == list(other)
