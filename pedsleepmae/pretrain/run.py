"""The pretraining run: load or resume, train, log, validate, save, and stop in good order."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from pedsleepmae import checkpoints, data, machine
from pedsleepmae.machine import keep_freed_memory
from pedsleepmae.model import flops_per_example
from pedsleepmae.pretrain.monitor import BEST, LAST, Logbook, in_words, is_simulated, look_at_model
from pedsleepmae.pretrain.trainer import PretrainSettings, Trainer
from pedsleepmae.store import ExampleIndex, write_whole

READ_THREADS = {"cpu": 1, "cuda": 4}  # of each process; a CPU's cores are the model's


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, whether that is the whole schedule, and whether by a signal."""

    step: int
    finished: bool
    stopped_by_signal: bool


def pretrain(
    settings: PretrainSettings,
    index: ExampleIndex,
    settings_dict: dict[str, Any],
    say: Callable[[str], None] = tqdm.write,
) -> Outcome:
    """Train by the settings on the "train" examples of the index, writing to paths.run_dir.

    ``settings_dict``: the same settings as plain values, for settings.yaml and the checkpoints.
    ``say`` receives lines for the user, in one process only. Raises PretrainError, MachineError
    or CheckpointError before anything is written, DivergedError when training fails.
    """
    device = machine.choose_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    with stop_on_signal() as stop_wanted:
        world = machine.join_world(device)
        try:
            trainer = Trainer(
                settings,
                index,
                device=device,
                dtype=machine.choose_dtype(settings.precision, device),
                world=world,
            )
            start(trainer)
            return run(trainer, settings_dict, stop_wanted, say if world.is_first else _silent)
        finally:
            machine.leave_world(world)


def start(trainer: Trainer) -> None:
    """Resume from run_dir, or take the weights of init_from, or neither."""
    settings = trainer.settings
    last = Path(settings.paths.run_dir) / LAST
    if settings.resume and last.exists():
        trainer.resume(last)
    elif settings.init_from is not None:
        trainer.start_from(settings.init_from)


def run(
    trainer: Trainer,
    settings_dict: dict[str, Any],
    stop_wanted: Callable[[], bool],
    say: Callable[[str], None],
) -> Outcome:
    """Train from the trainer's step to the last one, or until ``stop_wanted()``."""
    settings, world, progress = trainer.settings, trainer.world, trainer.progress
    last_step = min(settings.max_steps, settings.stop_at_step or settings.max_steps)
    rate = machine.matmul_rate(trainer.device, trainer.dtype)
    announce(trainer, rate, say)
    logbook = open_run_dir(trainer, settings_dict) if world.is_first else None
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
            look_at_model(trainer, settings_dict, logbook, stop_wanted, say)
            stopping = world.any(stop_wanted(), trainer.device)
            is_end = stopping or step >= last_step
            if saved_step != step and (is_end or (step and step % settings.save_every == 0)):
                save(trainer, settings_dict, is_end)
                saved_step = step
            if is_end:
                break
            begin = time.perf_counter()
            trainer.train_step(next(batches))
            trainer.interval.seconds += time.perf_counter() - begin
            if progress.step % settings.log_every == 0 or progress.step == last_step:
                figures = trainer.close_interval()
                figures["matmul_share"] = figures["tflops"] * 1e12 / world.size / rate
                bar.set_postfix_str(f"loss {in_words(figures['loss'])}", refresh=False)
                if logbook:
                    logbook.write(progress.step, "train", figures)
            bar.update()
    if logbook:
        logbook.close()
    outcome = Outcome(step, step >= settings.max_steps, stopping and step < last_step)
    conclude(trainer, outcome, say)
    return outcome


def save(trainer: Trainer, settings_dict: dict[str, Any], is_end: bool) -> None:
    """Write checkpoint_last.pt, and checkpoint_best.pt where no validation has chosen one."""
    if not trainer.world.is_first:
        return
    run_dir = Path(trainer.settings.paths.run_dir)
    trainer.save(run_dir / LAST, settings_dict, to_resume=True)
    if is_end and trainer.progress.best_step is None:
        trainer.save(run_dir / BEST, settings_dict, to_resume=False)


def open_run_dir(trainer: Trainer, settings_dict: dict[str, Any]) -> Logbook:
    """Make the run's folder with its settings.yaml and logbook."""
    run_dir = Path(trainer.settings.paths.run_dir)
    with write_whole(run_dir / "settings.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(settings_dict, sort_keys=False), "utf-8")
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
def announce(trainer: Trainer, rate: float, say: Callable[[str], None]) -> None:
    """Say what is trained on what."""
    settings, index, model = trainer.settings, trainer.index, trainer.model
    n_patients = len(np.unique(index.patient_ids[trainer.train_positions]))
    n_weights = sum(p.numel() for p in model.parameters())
    say(
        f"{len(trainer.train_positions):,} training examples of {n_patients:,} patient(s)"
        f"{is_simulated(trainer)}, {len(trainer.val_positions):,} for validation"
    )
    if not index.patient_disjoint:
        say("The split is not by patient: validation losses are flattered.")
    if not len(trainer.val_positions):
        say(
            f"No validation examples in {settings.paths.batches_dir}: training goes on without "
            "validation, and checkpoint_best.pt will be the last one."
        )
    say(
        f"{n_weights:,} parameters, token layout {model.token_layout}, {model.n_keep} of "
        f"{model.n_patches} patches a channel visible "
        f"({1 - model.n_keep / model.n_patches:.1%} masked)"
    )
    say(
        f"{machine.describe(trainer.device)}, {trainer.world.size} process(es), "
        f"{str(trainer.dtype).removeprefix('torch.')}: {rate / 1e12:.3g} TFLOP/s in matrix "
        f"products alone, {flops_per_example(model) / 1e9:.4g} GFLOP an example"
    )
    if settings.optim.warmup_steps >= settings.max_steps:
        say(
            f"optim.warmup_steps {settings.optim.warmup_steps} is not below max_steps "
            f"{settings.max_steps}: the learning rate does not reach its peak"
        )
    if trainer.progress.step:
        say(f"resumed at step {trainer.progress.step:,}")


def conclude(trainer: Trainer, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Say how the run ended and what to do next; publish the best checkpoint where it is wanted."""
    settings, progress = trainer.settings, trainer.progress
    run_dir = Path(settings.paths.run_dir)
    say(f"{outcome.step:,} of {settings.max_steps:,} steps done; results in {run_dir}")
    if progress.n_skipped or progress.n_bad_values:
        say(
            f"{progress.n_skipped:,} steps skipped because the loss was not finite; "
            f"{progress.n_bad_values:,} values in the data were not finite and taken as 0"
        )
    if progress.best_val_loss is not None:
        say(
            f"Best validation loss {progress.best_val_loss:.4f} at step {progress.best_step:,}"
            f"{is_simulated(trainer)}: {run_dir / BEST}"
        )
    if settings.paths.publish_to and outcome.finished and trainer.world.is_first:
        files = checkpoints.publish(run_dir / BEST, Path(settings.paths.publish_to))
        say(f"Published: {', '.join(map(str, files))}")
    if not outcome.finished:
        why = "a signal" if outcome.stopped_by_signal else "stop_at_step"
        say(f"Stopped by {why}; the same command goes on from {run_dir / LAST}")


def _silent(_line: str) -> None:
    pass
