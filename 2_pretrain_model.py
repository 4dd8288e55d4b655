"""Pretrain the masked autoencoder on batch files: batches/ -> runs/<name>/

    python 2_pretrain_model.py --paths.batches_dir data/batches --paths.run_dir runs/m15p8

Several GPUs of one machine:

    torchrun --nproc_per_node 4 2_pretrain_model.py --paths.batches_dir data/batches

From the checkpoint that ships instead of from random weights:

    python 2_pretrain_model.py --init_from checkpoint/m15p8_checkpoint.pt

The same command goes on where an interrupted run left off: SIGTERM and Ctrl-C write a checkpoint
first and end it with exit code 1, --stop_at_step with 0. Written to paths.run_dir:
checkpoint_last.pt, checkpoint_best.pt, metrics.jsonl, tensorboard/, pictures/ of reconstructions
and the resolved settings.yaml.
"""

import sys
from dataclasses import replace

from pedsleepmae import checkpoints, config, errors, machine, model, store
from pedsleepmae.pretrain import run
from pedsleepmae.pretrain.monitor import BEST, LAST, simulated_in_words
from pedsleepmae.pretrain.trainer import PretrainSettings, Trainer


def open_inputs(settings: PretrainSettings) -> Trainer:
    """Look at all that the settings name; init_from brings the shape of its model along."""
    batches_dir = settings.paths.batches_dir
    errors.require_folder(batches_dir, "paths.batches_dir", "run script 1 first")
    start = None
    if settings.init_from is not None:
        errors.require_file(settings.init_from, "init_from", "give a checkpoint of script 2")
        start = checkpoints.read_checkpoint(settings.init_from)
        start.outline()  # before a model is built that its settings claim to fit
        settings.model = replace(settings.model, **start.architecture)
    index = store.load_index(batches_dir, seed=settings.seed)
    if start is not None:
        errors.warn(checkpoints.other_scaling(start.scaling, index.scaling))
    return run.open_trainer(settings, index, start)


def announcement(trainer: Trainer) -> list[str]:
    """What is trained on what, line by line."""
    settings, net, facts = trainer.settings, trainer.model, trainer.data_facts
    n_weights = sum(parameter.numel() for parameter in net.parameters())
    lines = [
        f"{facts['n_examples']:,} training examples of {facts['n_patients']:,} patient(s)"
        f"{simulated_in_words(trainer)}, {len(trainer.val_positions):,} for validation",
        f"{n_weights:,} parameters, token layout {settings.model.token_layout}, {net.n_keep} of "
        f"{net.n_patches} patches a channel visible ({1 - net.n_keep / net.n_patches:.1%} masked), "
        f"by {settings.model.mask_unit}; target {settings.model.target}",
        f"{machine.describe(trainer.device)}, {trainer.world.size} process(es), "
        f"{trainer.compute.precision}: {trainer.matmul_rate / 1e12:.3g} TFLOP/s in matrix "
        f"products alone, {model.flops_per_example(net) / 1e9:.4g} GFLOP an example",
    ]
    if not trainer.index.patient_disjoint:
        lines.append("The split is not by patient: validation losses are flattered.")
    if not len(trainer.val_positions):
        lines.append(
            f"No validation examples in {settings.paths.batches_dir}: training goes on without "
            f"validation, and {BEST} will be the last one."
        )
    if settings.optim.warmup_steps >= settings.max_steps:
        lines.append(
            f"optim.warmup_steps {settings.optim.warmup_steps} is not below max_steps "
            f"{settings.max_steps}: the learning rate does not reach its peak"
        )
    if trainer.progress.step:
        lines.append(f"resumed at step {trainer.progress.step:,}")
    return lines


def conclusion(trainer: Trainer, outcome: run.Outcome) -> list[str]:
    """How the run ended and what to do next, line by line."""
    run_dir, progress = trainer.settings.paths.run_dir, trainer.progress
    lines = [f"{outcome.step:,} of {trainer.settings.max_steps:,} steps done; results in {run_dir}"]
    if progress.n_skipped or progress.n_bad_values:
        lines.append(
            f"{progress.n_skipped:,} steps skipped because the loss was not finite; "
            f"{progress.n_bad_values:,} values in the data were missing or not finite and held"
        )
    if progress.best_val_loss is not None:
        best = f"{progress.best_val_loss:.4f} at step {progress.best_step:,}"
        lines.append(f"Best validation loss {best}{simulated_in_words(trainer)}: {run_dir / BEST}")
    if outcome.published:
        lines.append(f"Published: {', '.join(map(str, outcome.published))}")
    if not outcome.finished:
        why = "a signal" if outcome.stopped_by_signal else "stop_at_step"
        lines.append(f"Stopped by {why}; the same command goes on from {run_dir / LAST}")
    return lines


def main(argv: list[str]) -> int:
    settings = config.load_settings(PretrainSettings, "pretrain.yaml", __doc__, argv)

    def work(trainer: Trainer) -> int:
        if trainer.world.is_first:
            print(*announcement(trainer), sep="\n", flush=True)
        outcome = run.pretrain(trainer)
        if trainer.world.is_first:
            print(*conclusion(trainer, outcome), sep="\n")
        return errors.EXIT_FAILED if outcome.stopped_by_signal else errors.EXIT_DONE

    return errors.run_script(lambda: open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
