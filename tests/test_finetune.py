"""Fine-tuning: where it starts, what it learns from, how it stops and goes on."""

import os
import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from planted import write_cohort
from small_probes import save_model
from torch.nn.functional import log_softmax

from pedsleepmae import store
from pedsleepmae.checkpoints import hash_encoder, read_checkpoint
from pedsleepmae.errors import ProbeError, SettingsError, Stopped
from pedsleepmae.finetune import loop, run
from pedsleepmae.finetune.loop import FinetuneSettings, Trial, draw_rates, run_trial, tune
from pedsleepmae.finetune.run import ClassifierSettings
from pedsleepmae.finetune.tuned import Targets, TunedEncoder, start_model, weighted_loss
from pedsleepmae.machine import Compute, World
from pedsleepmae.optim import stop_on_signal
from pedsleepmae.probe.linear import FitSettings, predict
from pedsleepmae.probe.readout import ProbeTable, ReadOut

COMPUTE = Compute(torch.device("cpu"), torch.float32, batch_size=16)
TINY = FinetuneSettings(
    rank=2,
    tuning_trials=2,
    batch_size=8,
    warmup_steps=2,
    max_steps=9,
    val_every=3,
    val_examples=40,
    save_every=4,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> store.ExampleIndex:
    folder = tmp_path_factory.mktemp("batches")
    patients = (("train", 3), ("val", 2), ("test", 2))
    return store.load_index(write_cohort(folder, n_epochs=20, patients=patients))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the checkpoint and what it makes of the examples are kept."""
    folder = tmp_path_factory.mktemp("encoder")
    save_model(folder / "model.pt", [500, 501, 502])
    return folder


def settings_for(folder, **changes) -> ClassifierSettings:
    settings = ClassifierSettings(tasks=["sleep", "apnea"], finetune=TINY)
    settings.paths.output_dir = folder
    return replace(settings, **changes)


def job_for(index, folder, mode="lora", **changes) -> loop.Job:
    settings, checkpoint = settings_for(folder), read_checkpoint(folder / "model.pt")
    tables = run.start_tables(settings, index, checkpoint, [mode], COMPUTE, World())
    fitting = FitSettings([1e-2])
    job = run.make_job(settings, index, checkpoint, mode, tables[mode], COMPUTE, fitting, 0)
    return replace(job, **changes)


def test_a_state_of_other_signals_is_not_gone_on_from(index, folder, tmp_path):
    other = tmp_path / "batches"
    patients = (("train", 3), ("val", 2), ("test", 2))
    write_cohort(other, n_epochs=20, patients=patients)
    for path in other.glob("*/combined_*.hdf5"):
        with h5py.File(path, "r+") as file:  # as after another scaling of the same recordings
            file["signals"][...] = file["signals"][...] / 2
    scaled = store.load_index(other)
    assert scaled.split_hash == index.split_hash
    assert job_for(scaled, folder).facts != job_for(index, folder).facts


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ------------------------------------------------------------------ where it starts
@pytest.mark.parametrize("mode", ["lora", "full", "scratch"])
def test_heads_begin_as_the_probes_of_the_encoder_at_its_start(index, folder, mode):
    job = job_for(index, folder, mode)
    settings, checkpoint = settings_for(folder), read_checkpoint(folder / "model.pt")
    table = run.start_tables(settings, index, checkpoint, [mode], COMPUTE, World())[mode]
    wanted = predict(ProbeTable([ReadOut(table, "none")]), job.val, job.heads, FitSettings([1]))
    found = Trial(job, TINY, 1e-3, COMPUTE, World()).logits(job.val)
    for task in ("sleep", "apnea"):
        # The probe read features rounded to float16.
        assert found[task] == pytest.approx(wanted[task], abs=0.05 * wanted[task].std())


def test_scratch_shares_the_architecture_and_no_weight(folder):
    checkpoint = read_checkpoint(folder / "model.pt")
    model = start_model(checkpoint, "scratch", 0, 2, 1.0)
    ours, theirs = model.encoder.state_dict(), checkpoint.build_model().encoder.state_dict()
    assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in theirs.items()}
    matrices = [n for n, w in ours.items() if w.dim() == 2]
    assert not any(torch.equal(ours[n], theirs[n]) for n in matrices)


def test_only_what_the_mode_names_is_trained(index, folder):
    n_trained = {}
    for mode in ("lora", "full", "scratch"):
        names = TunedEncoder(
            start_model(read_checkpoint(folder / "model.pt"), mode, 0, 2, 1.0),
            job_for(index, folder, mode).heads,
        ).trained_weights()
        assert {"head.weight", "head.bias"} <= names.keys()
        assert not any("decoder" in name for name in names)
        n_trained[mode] = len(names)
    assert n_trained["full"] == n_trained["scratch"]
    assert n_trained["lora"] == 2 + 2 * 4  # up and down of four layers in one block


# ------------------------------------------------------------------ what it learns from
def test_the_loss_weighs_classes_alike_and_leaves_unscored_examples_out():
    label_N = np.array([0, 0, 0, 1, -1])
    targets = Targets.of(label_N, np.array([0, 1]), np.arange(5))
    assert targets.weight_K.tolist() == pytest.approx([4 / (2 * 3), 4 / (2 * 1)])
    logit_NK = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = weighted_loss({"apnea": logit_NK}, {"apnea": targets}, np.arange(5), np.arange(5))
    log_NK = log_softmax(logit_NK, dim=1)
    # Each class counts a half, whatever its number of examples.
    by_hand = -(log_NK[:3, 0].mean() / 2 + log_NK[3, 1] / 2)
    assert loss.item() == pytest.approx(by_hand.item())
    loss.backward()
    assert logit_NK.grad[4].abs().max() == 0
    assert logit_NK.grad[:4].abs().min() > 0


def test_shares_of_a_batch_add_up_to_its_loss():
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    label_N = rng.integers(-1, 5, 60)
    targets = {"sleep": Targets.of(label_N, np.arange(5), np.arange(60))}
    batch = rng.permutation(60)[:23]
    logit_NK = torch.randn(23, 5, generator=generator)
    whole = weighted_loss({"sleep": logit_NK}, targets, batch, batch)
    shares = [
        weighted_loss({"sleep": logit_NK[part]}, targets, batch[part], batch)
        for part in (slice(0, 7), slice(7, 8), slice(8, 23))
    ]
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_stage_that_train_lacks_is_left_out():
    targets = Targets.of(np.array([0, 2, 4, 3, 2]), np.array([0, 2, 4]), np.array([0, 1, 2]))
    assert targets.target_N.tolist() == [0, 1, 2, -1, 1]


def test_gradients_do_not_depend_on_the_pieces_of_a_batch(index, folder):
    weights = []
    for accumulate in (1, 3):
        settings = replace(TINY, accumulate=accumulate, max_steps=2, val_every=100)
        trial = Trial(job_for(index, folder), settings, 1e-3, COMPUTE, World())
        run_trial(trial, "test", lambda: None, lambda: False)
        weights.append(trial.tuned.trained_weights())
    for name in weights[0]:
        assert weights[0][name] == pytest.approx(weights[1][name], abs=1e-4)


# ------------------------------------------------------------------ trials
def test_each_trial_draws_its_rate_from_its_own_part_of_the_range():
    settings = FinetuneSettings(tuning_trials=4, lr_range=[1e-4, 1.0])
    rates = draw_rates(settings, "lora", seed=3)
    assert [np.floor(np.log10(rate)) for rate in rates] == [-4, -3, -2, -1]
    assert draw_rates(settings, "lora", seed=3) == rates != draw_rates(settings, "lora", seed=4)


def test_all_modes_have_as_many_trials(index, folder, tmp_path):
    settings = replace(TINY, max_steps=1)
    for mode in ("lora", "full", "scratch"):
        found = tune(job_for(index, folder, mode), settings, COMPUTE, World(), tmp_path / mode)
        assert len(found.trials) == 2, mode


def test_the_best_look_at_val_is_kept_and_no_worse_than_the_start(index, folder, tmp_path):
    job = job_for(index, folder)
    found = tune(job, TINY, COMPUTE, World(), tmp_path / "state.pt")
    scores = [trial["val_score"] for trial in found.trials]
    assert found.chosen == int(np.argmax(scores))
    trial = Trial(job, TINY, 1e-3, COMPUTE, World())
    trial.look()
    assert max(scores) >= trial.progress.best_score
    trial.tuned.take_weights(found.weights)
    trial.look()
    assert trial.progress.best_score == pytest.approx(max(scores))


def test_a_trial_ends_when_val_has_not_become_better_for_long(index, folder):
    settings = replace(TINY, patience=2, max_steps=50, val_every=2)
    trial = Trial(job_for(index, folder), settings, 0.0, COMPUTE, World())  # nothing moves
    run_trial(trial, "test", lambda: None, lambda: False)
    assert (trial.progress.step, trial.progress.best_step) == (4, 0)


def test_lora_leaves_the_hash_of_the_base_weights(index, folder):
    job = job_for(index, folder)
    trial = Trial(job, TINY, 1e-2, COMPUTE, World())
    before = hash_encoder(read_checkpoint(folder / "model.pt").build_model())
    run_trial(trial, "test", lambda: None, lambda: False)
    assert trial.tuned.model.encoder.transformer[0].attn.qkv.up.abs().max() > 0
    model = read_checkpoint(folder / "model.pt").build_model()
    base = {
        name.replace(".linear.", "."): weight
        for name, weight in trial.tuned.model.state_dict().items()
        if not name.endswith((".up", ".down"))
    }
    model.drop_decoder("not needed")
    model.load_state_dict(base)
    assert hash_encoder(model) == before


# ------------------------------------------------------------------ stopped and gone on
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("stop_at", [1, 4, 9 + 5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(index, folder, tmp_path, mode, stop_at):
    job, settings = job_for(index, folder, mode), replace(TINY, patience=50)
    whole = tune(job, settings, COMPUTE, World(), tmp_path / "whole.pt")
    asked = iter(range(10_000))
    with pytest.raises(Stopped):
        tune(
            job,
            settings,
            COMPUTE,
            World(),
            tmp_path / "parts.pt",
            lambda: next(asked) == stop_at,
        )
    parts = tune(job, settings, COMPUTE, World(), tmp_path / "parts.pt")
    assert same(whole.weights, parts.weights)
    assert whole.trials == parts.trials


def test_sigterm_leaves_a_state_to_go_on_from(index, folder, tmp_path):
    job = job_for(index, folder)
    with stop_on_signal() as stop_wanted:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            tune(job, TINY, COMPUTE, World(), tmp_path / "state.pt", stop_wanted)
    assert loop.read_state(tmp_path / "state.pt", job.facts)["progress"]["step"] == 0
    tune(job, TINY, COMPUTE, World(), tmp_path / "state.pt")


def test_what_was_found_is_not_computed_again(index, folder, tmp_path, monkeypatch):
    job = job_for(index, folder)
    found = tune(job, TINY, COMPUTE, World(), tmp_path / "state.pt")
    monkeypatch.setattr(loop, "run_trial", None)
    again = tune(job, TINY, COMPUTE, World(), tmp_path / "state.pt")
    assert same(found.weights, again.weights)
    assert found.trials == again.trials


def test_a_state_of_other_settings_is_passed_over(index, folder, tmp_path):
    settings = replace(TINY, max_steps=1, tuning_trials=1)
    tune(job_for(index, folder), settings, COMPUTE, World(), tmp_path / "state.pt")
    other = job_for(index, folder, facts="another job")
    assert loop.read_state(tmp_path / "state.pt", other.facts) is None


def test_a_damaged_state_is_named(index, folder, tmp_path):
    job, asked = job_for(index, folder), iter(range(99))
    with pytest.raises(Stopped):
        tune(job, TINY, COMPUTE, World(), tmp_path / "s.pt", lambda: next(asked) == 2)
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    del content["state_dict"]["head.bias"]
    torch.save(content, tmp_path / "s.pt")
    with pytest.raises(ProbeError, match=r"s.pt: cannot be gone on from .*delete it"):
        tune(job, TINY, COMPUTE, World(), tmp_path / "s.pt")


# ------------------------------------------------------------------ settings
@pytest.mark.parametrize("values", [[1e-3], [1e-3, 1e-4], [0.0, 1.0]])
def test_a_range_of_learning_rates_is_two_numbers_above_0(values):
    with pytest.raises(SettingsError, match="lr_range"):
        FinetuneSettings(lr_range=values).check()
