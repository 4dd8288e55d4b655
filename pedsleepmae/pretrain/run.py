"""The pretraining run: open or resume, train, log, validate, save, and stop in good order."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import yaml
from tqdm import tqdm

from pedsleepmae import checkpoints, data, machine
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.errors import as_plain_dict, require_file, require_folder, warn
from pedsleepmae.model import flops_per_example
from pedsleepmae.pretrain.monitor import (
    BEST,
    LAST,
    Logbook,
    look_at_model,
    loss_in_words,
    say,
    simulated_in_words,
)
from pedsleepmae.pretrain.trainer import PretrainError, PretrainSettings, Trainer
from pedsleepmae.store import ExampleIndex, load_index, write_whole

READ_THREADS = {"cpu": 1, "cuda": 4}  # of each process; a CPU's cores are the model's


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, whether that is the whole schedule, and whether by a signal."""

    step: int
    finished: bool
    stopped_by_signal: bool


# ------------------------------------------------------------------ opening
def open_inputs(settings: PretrainSettings) -> Trainer:
    """Look at all that the settings name and build the trainer, before anything is written.

    With init_from the model's shape becomes that of the checkpoint, in ``settings`` too. UserError
    says what is not there or does not fit.
    """
    require_folder(settings.paths.batches_dir, "paths.batches_dir", "run script 1 first")
    start = None
    if settings.init_from is not None:
        require_file(settings.init_from, "init_from", "give a checkpoint of script 2")
        start = checkpoints.read_checkpoint(settings.init_from)
        settings.model = replace(settings.model, **start.architecture)
    index = load_index(settings.paths.batches_dir, seed=settings.seed)
    if start is not None:
        warn(checkpoints.other_scaling(start.scaling, index.scaling))
    return open_trainer(settings, index, start)


def open_trainer(
    settings: PretrainSettings, index: ExampleIndex, start: Checkpoint | None = None
) -> Trainer:
    """A trainer where the run of run_dir left off, else at the weights of ``start``, else anew."""
    if not len(index.rows("train")):
        raise PretrainError(
            f"{settings.paths.batches_dir}: no training examples in it; run script 1, or give "
            "another paths.batches_dir"
        )
    compute = machine.Compute.choose(settings.device, settings.precision)
    if compute.device.type == "cpu":
        machine.keep_freed_memory()
    world = machine.join_world(compute.device)
    try:
        trainer = Trainer(settings, index, compute, world)
        last = settings.paths.run_dir / LAST
        if settings.resume and last.exists():
            trainer.resume(checkpoints.read_checkpoint(last))
        elif start is not None:
            trainer.start_from(start)
    except BaseException:
        machine.leave_world(world)
        raise
    return trainer


# ------------------------------------------------------------------ training
def pretrain(trainer: Trainer) -> Outcome:
    """Train on the "train" examples to the last step or until a signal, writing to run_dir.

    Raises DivergedError when training fails.
    """
    try:
        with stop_on_signal() as stop_wanted:
            outcome = train(trainer, stop_wanted)
            conclude(trainer, outcome)
            return outcome
    finally:
        machine.leave_world(trainer.world)


def train(trainer: Trainer, stop_wanted: Callable[[], bool]) -> Outcome:
    """Train from the trainer's step to the last one, or until ``stop_wanted()``."""
    settings, world, progress = trainer.settings, trainer.world, trainer.progress
    last_step = min(settings.max_steps, settings.stop_at_step or settings.max_steps)
    rate = machine.matmul_rate(trainer.device, trainer.compute.dtype)
    announce(trainer, rate)
    logbook = open_run_dir(trainer) if world.is_first else None
    batches = data.training_batches(
        trainer.index,
        trainer.train_positions,
        batch_size=settings.optim.batch_size,
        seed=settings.seed,
        start=progress.position,
        rank=world.rank,
        world_size=world.size,
        n_threads=READ_THREADS[trainer.device.type],
        pin=trainer.device.type == "cuda",
    )
    bar = tqdm(
        total=max(last_step, progress.step),
        initial=progress.step,
        desc="pretraining",
        unit="step",
        disable=not world.is_first,
    )
    saved_step = progress.step or None
    with contextlib.closing(batches), bar:
        while True:
            step = progress.step
            look_at_model(trainer, logbook, stop_wanted)
            stopping = world.any(stop_wanted(), trainer.device)
            is_end = stopping or step >= last_step
            if saved_step != step and (is_end or (step and step % settings.save_every == 0)):
                save(trainer, is_end)
                saved_step = step
            if is_end:
                break
            begin = time.perf_counter()
            trainer.train_step(next(batches))
            trainer.interval.seconds += time.perf_counter() - begin
            if progress.step % settings.log_every == 0 or progress.step == last_step:
                figures = trainer.close_interval()
                figures["matmul_share"] = figures["tflops"] * 1e12 / world.size / rate
                bar.set_postfix_str(f"loss {loss_in_words(figures['loss'])}", refresh=False)
                if logbook:
                    logbook.write(progress.step, "train", figures)
            bar.update()
    if logbook:
        logbook.close()
    return Outcome(step, step >= settings.max_steps, stopping and step < last_step)


def save(trainer: Trainer, is_end: bool) -> None:
    """Write checkpoint_last.pt, and checkpoint_best.pt where no validation has chosen one."""
    if not trainer.world.is_first:
        return
    run_dir = trainer.settings.paths.run_dir
    trainer.save(run_dir / LAST, to_resume=True)
    if is_end and trainer.progress.best_step is None:
        trainer.save(run_dir / BEST, to_resume=False)


def open_run_dir(trainer: Trainer) -> Logbook:
    """Make the run's folder with its settings.yaml and logbook."""
    run_dir = trainer.settings.paths.run_dir
    with write_whole(run_dir / "settings.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(as_plain_dict(trainer.settings), sort_keys=False), "utf-8"
        )
    return Logbook(run_dir, step=trainer.progress.step, simulated=trainer.index.simulated)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and Ctrl-C only raise a flag, which the yielded function tells.

    A second Ctrl-C acts as usual; a second SIGTERM does not, since SLURM and torchrun may both
    send one while the checkpoint is being written.
    """
    received = []

    def remember(number, _frame):
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------ words
def announce(trainer: Trainer, rate: float) -> None:
    """Say what is trained on what; ``rate``: the machine's own in matrix products, operations/s."""
    settings, index, model = trainer.settings, trainer.index, trainer.model
    n_patients = len(np.unique(index.patient_ids[trainer.train_positions]))
    n_weights = sum(p.numel() for p in model.parameters())
    lines = [
        f"{len(trainer.train_positions):,} training examples of {n_patients:,} patient(s)"
        f"{simulated_in_words(trainer)}, {len(trainer.val_positions):,} for validation"
    ]
    if not index.patient_disjoint:
        lines.append("The split is not by patient: validation losses are flattered.")
    if not len(trainer.val_positions):
        lines.append(
            f"No validation examples in {settings.paths.batches_dir}: training goes on without "
            "validation, and checkpoint_best.pt will be the last one."
        )
    lines += [
        f"{n_weights:,} parameters, token layout {settings.model.token_layout}, {model.n_keep} of "
        f"{model.n_patches} patches a channel visible "
        f"({1 - model.n_keep / model.n_patches:.1%} masked)",
        f"{machine.describe(trainer.device)}, {trainer.world.size} process(es), "
        f"{trainer.compute.precision}: {rate / 1e12:.3g} TFLOP/s in matrix "
        f"products alone, {flops_per_example(model) / 1e9:.4g} GFLOP an example",
    ]
    if settings.optim.warmup_steps >= settings.max_steps:
        lines.append(
            f"optim.warmup_steps {settings.optim.warmup_steps} is not below max_steps "
            f"{settings.max_steps}: the learning rate does not reach its peak"
        )
    if trainer.progress.step:
        lines.append(f"resumed at step {trainer.progress.step:,}")
    say(trainer, *lines)


def conclude(trainer: Trainer, outcome: Outcome) -> None:
    """Say how the run ended and what to do next; publish the best checkpoint where it is wanted."""
    paths, progress = trainer.settings.paths, trainer.progress
    max_steps = trainer.settings.max_steps
    lines = [f"{outcome.step:,} of {max_steps:,} steps done; results in {paths.run_dir}"]
    if progress.n_skipped or progress.n_bad_values:
        lines.append(
            f"{progress.n_skipped:,} steps skipped because the loss was not finite; "
            f"{progress.n_bad_values:,} values in the data were not finite and taken as 0"
        )
    if progress.best_val_loss is not None:
        lines.append(
            f"Best validation loss {progress.best_val_loss:.4f} at step {progress.best_step:,}"
            f"{simulated_in_words(trainer)}: {paths.run_dir / BEST}"
        )
    if paths.publish_to is not None and outcome.finished and trainer.world.is_first:
        files = checkpoints.publish(paths.run_dir / BEST, paths.publish_to)
        lines.append(f"Published: {', '.join(map(str, files))}")
    if not outcome.finished:
        why = "a signal" if outcome.stopped_by_signal else "stop_at_step"
        lines.append(f"Stopped by {why}; the same command goes on from {paths.run_dir / LAST}")
    say(trainer, *lines)
