"""The pretraining run: open or resume, train, log, validate, save, and stop in good order."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from tqdm import tqdm

from pedsleepmae import checkpoints, data, disk, machine
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.errors import UserError, as_plain_dict
from pedsleepmae.optim import stop_on_signal
from pedsleepmae.pretrain.monitor import BEST, LAST, Logbook, look_at_model, loss_in_words
from pedsleepmae.pretrain.trainer import PretrainError, PretrainSettings, Trainer
from pedsleepmae.store import ExampleIndex

READ_THREADS = {"cpu": 1, "cuda": 4}  # of each process; a CPU's cores are the model's


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the files that it published."""

    step: int
    finished: bool  # the whole schedule is done
    stopped_by_signal: bool
    published: list[Path] = field(default_factory=list)


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
        trainer.found = mark(last)
        if settings.resume and last.exists():
            trainer.resume(checkpoints.read_checkpoint(last))
        elif start is not None:
            trainer.start_from(start)
    except BaseException:
        machine.leave_world(world)
        raise
    return trainer


def pretrain(trainer: Trainer) -> Outcome:
    """Train on the "train" examples to the last step or until a signal, writing to run_dir.

    Raises DivergedError when training fails, MachineError when another run is writing there.
    """
    paths = trainer.settings.paths
    try:
        with stop_on_signal() as stop_wanted, contextlib.ExitStack() as held:
            hold_run_dir(trainer, held)
            outcome = train(trainer, stop_wanted)
            if paths.publish_to is not None and outcome.finished and trainer.world.is_first:
                files = checkpoints.publish(paths.run_dir / BEST, paths.publish_to)
                outcome = replace(outcome, published=files)
            return outcome
    finally:
        machine.leave_world(trainer.world)


def hold_run_dir(trainer: Trainer, held: contextlib.ExitStack) -> None:
    """Hold the run's folder in the first process, so that no other run writes there meanwhile.

    What a killed run left half-written in it is removed.
    """
    run_dir, world, problem = trainer.settings.paths.run_dir, trainer.world, None
    if world.is_first:
        try:
            held.enter_context(machine.only_run_in(run_dir, "paths.run_dir"))
            if mark(run_dir / LAST) != trainer.found:
                raise PretrainError(f"{run_dir}: another run has just ended there; run it again")
            disk.remove_partial(run_dir, ".*.partial", "pictures/.*.partial")
        except (UserError, OSError) as error:
            problem = error
    if world.any(problem is not None, trainer.device):  # the others would wait for the first
        raise problem or PretrainError("the first process cannot write to paths.run_dir")


def mark(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was written later; None: there is none."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def train(trainer: Trainer, stop_wanted: Callable[[], bool]) -> Outcome:
    """Train from the trainer's step to the last one, or until ``stop_wanted()``."""
    settings, world, progress = trainer.settings, trainer.world, trainer.progress
    last_step = min(settings.max_steps, settings.stop_at_step or settings.max_steps)
    logbook = open_run_dir(trainer) if world.is_first else None
    on_gpu = trainer.device.type == "cuda"
    order = {"batch_size": settings.optim.batch_size, "seed": settings.seed}
    share = {"start": progress.position, "rank": world.rank, "world_size": world.size}
    reading = {"n_threads": READ_THREADS[trainer.device.type], "pin": on_gpu}
    batches = data.training_batches(
        trainer.index, trainer.train_positions, **order, **share, **reading
    )
    total, hidden = max(last_step, progress.step), not world.is_first
    bar = tqdm(desc="pretraining", unit="step", total=total, initial=progress.step, disable=hidden)
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
                bar.set_postfix_str(f"loss {loss_in_words(figures['loss'])}", refresh=False)
                if logbook:
                    logbook.write(progress.step, "train", figures)
            bar.update()
    if logbook:
        logbook.close()
    return Outcome(step, step >= settings.max_steps, stopping and step < last_step)


def save(trainer: Trainer, is_end: bool) -> None:
    """Write checkpoint_last.pt, and checkpoint_best.pt where no validation has chosen one."""
    trainer.count_bad_values()
    if not trainer.world.is_first:
        return
    run_dir = trainer.settings.paths.run_dir
    trainer.save(run_dir / LAST, to_resume=True)
    if is_end and trainer.progress.best_step is None:
        trainer.save(run_dir / BEST, to_resume=False)


def open_run_dir(trainer: Trainer) -> Logbook:
    """Make the run's folder with its settings.yaml and logbook."""
    run_dir = trainer.settings.paths.run_dir
    text = yaml.safe_dump(as_plain_dict(trainer.settings), sort_keys=False)
    disk.write_text(run_dir / "settings.yaml", text)
    return Logbook(run_dir, step=trainer.progress.step, simulated=trainer.index.simulated)
