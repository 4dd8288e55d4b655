"""Fine-tuning: trials of several learning rates, each stopped early on val; the best is kept.

Like pretraining, everything random comes from the seed and the position in the stream of examples,
so that a run stopped anywhere goes on as if it had not been, and several processes compute what one
would.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pedsleepmae import checkpoints, data
from pedsleepmae.errors import ProbeError, SettingsError, Stopped, bounded, printable
from pedsleepmae.finetune.tuned import Targets, TunedEncoder, weighted_loss
from pedsleepmae.machine import Compute, World
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.optim import (
    adamw,
    check_adam_state,
    clip_and_step,
    derived_seed,
    in_parallel,
    learning_rate,
    set_learning_rate,
)
from pedsleepmae.probe.fitted import LinearProbe
from pedsleepmae.probe.linear import ranking
from pedsleepmae.store import ExampleIndex

FORMAT = "pedsleepmae-finetune"
READ_THREADS = {"cpu": 1, "cuda": 4}
TRAIN_ORDER, VAL_SAMPLE, RATES, START = range(4)  # what a number drawn from the seed is for
# Learning rates that trials are drawn from, by mode: weights that know nothing yet bear larger
# steps, all the weights of an encoder that knows something smaller ones.
RATE_RANGES = {"lora": (1e-4, 3e-3), "full": (3e-5, 1e-3), "scratch": (3e-4, 1e-2)}


@dataclass
class FinetuneSettings:
    """Fine-tuning (modes lora, full and scratch)."""

    rank: int = bounded(8, 1, 4096)
    """LoRA: width of the matrices beside each linear layer of attention and MLP."""
    alpha: float = bounded(16.0, 0, 1e6)
    """LoRA: their product counts alpha / rank times; 0: the frozen encoder."""
    tuning_trials: int = bounded(4, 1, 100)
    """Trainings of different learning rate, the best of which on val is kept; in label_curve also
    the number of strengths C that probes choose from."""
    lr_range: list[float] = field(default_factory=list)
    """Least and largest learning rate of the trials; none named: 0.0001 to 0.003 for lora,
    0.00003 to 0.001 for full, 0.0003 to 0.01 for scratch."""
    batch_size: int = bounded(32, 1)
    """Examples in one step, over all processes and accumulation steps."""
    accumulate: int = bounded(1, 1)
    """Gradient accumulation: the batch is computed in this many pieces."""
    weight_decay: float = bounded(0.01, 0)
    """AdamW weight decay; not on biases, norms, positions and learned tokens."""
    beta2: float = bounded(0.999, 0, below=1)
    """AdamW's memory of squared gradients, 0 to 1."""
    warmup_steps: int = bounded(20, 0)
    """Steps of linear warm-up, then a cosine down to the rate x final_lr_ratio."""
    final_lr_ratio: float = bounded(0.05, 0)
    """Learning rate at the end over the peak."""
    grad_clip: float = bounded(1.0, 0)
    """Largest gradient norm; 0: no clipping."""
    max_steps: int = bounded(2000, 1)
    """Steps of a trial at most."""
    val_every: int = bounded(100, 1)
    """Steps between looks at val."""
    val_examples: int = bounded(2048, 1)
    """Val examples looked at, the same ones each time."""
    patience: int = bounded(5, 1)
    """Looks at val without a better mean AUROC after which a trial ends."""
    save_every: int = bounded(500, 1)
    """Steps between states to go on from, which a signal also leaves."""
    resume: bool = True
    """Go on from the state that an earlier run with the same settings left."""

    def check(self) -> None:
        if self.accumulate > self.batch_size:
            raise SettingsError(
                f"finetune.accumulate is {self.accumulate}, but a batch of {self.batch_size} has "
                "no more pieces than examples; lower it"
            )
        low, high = self.rates_of("lora")[0], self.rates_of("lora")[-1]
        if len(self.lr_range) not in (0, 2) or not 0 < low <= high:
            raise SettingsError(
                "finetune.lr_range needs the least and the largest learning rate, both above 0"
            )

    def rates_of(self, mode: str) -> tuple[float, ...]:
        """Least and largest learning rate of a mode."""
        return tuple(self.lr_range) or RATE_RANGES[mode]


def draw_rates(settings: FinetuneSettings, mode: str, seed: int) -> list[float]:
    """Learning rates of the trials: the range cut evenly in its logarithm, one drawn from each."""
    low, high = np.log(settings.rates_of(mode))
    rng, n = np.random.default_rng([seed, RATES]), settings.tuning_trials
    return np.exp(low + (high - low) * (np.arange(n) + rng.random(n)) / n).tolist()


@dataclass(frozen=True)
class Rate:
    """What a trial's learning rate follows (optim.Schedule)."""

    lr: float
    warmup_steps: int
    final_lr_ratio: float


@dataclass(frozen=True)
class Job:
    """What is fine-tuned, and on what: positions of the index, labels by task, heads to start from.

    ``build``: the encoder at its start, drawn by the seed. ``facts``: what tells this job from
    others, so that a state of another one is not gone on from.
    """

    index: ExampleIndex
    train: np.ndarray
    val: np.ndarray
    labels: Mapping[str, np.ndarray]
    heads: Mapping[str, LinearProbe]
    build: Callable[[], MaskedAutoencoder]
    mode: str
    seed: int
    facts: str


@dataclass
class Progress:
    """What has to be remembered of a trial, besides weights and optimiser."""

    step: int = 0
    position: int = 0  # in the stream of examples
    n_skipped: int = 0
    validated_step: int = -1
    best_step: int = 0
    best_score: float = -1.0  # before the first look
    n_worse: int = 0  # looks at val since the best


@dataclass(frozen=True)
class Found:
    """The best trial's weights (TunedEncoder.trained_weights) and a row for every trial."""

    weights: dict[str, Tensor]
    trials: list[dict[str, Any]]
    chosen: int


class Trial:
    """One training with one learning rate, in one process of ``world``."""

    def __init__(
        self, job: Job, settings: FinetuneSettings, lr: float, compute: Compute, world: World
    ):
        self.job, self.settings, self.compute, self.world = job, settings, compute, world
        self.device = compute.device
        self.rate = Rate(lr, settings.warmup_steps, settings.final_lr_ratio)
        self.tuned = TunedEncoder(job.build(), job.heads).to(self.device)
        self.parameters = [p for p in self.tuned.parameters() if p.requires_grad]
        self.optimizer = adamw(
            self.tuned, lr=lr, beta2=settings.beta2, weight_decay=settings.weight_decay
        )
        self.parallel = in_parallel(self.tuned, world, self.device)
        classes = self.tuned.classes
        self.targets = {t: Targets.of(job.labels[t], classes[t], job.train) for t in classes}
        seed = derived_seed(job.seed, VAL_SAMPLE)
        self.val = data.fixed_sample(job.val, settings.val_examples, seed)
        self.progress = Progress()
        self.best = self.tuned.trained_weights()

    # -------------------------------------------------------------- one step, one look
    def step(self, batch: data.Batch) -> None:
        """One optimiser step on this process's share of a batch."""
        progress, mine = self.progress, batch.positions[batch.rows]
        rate = learning_rate(progress.step, self.rate, self.settings.max_steps)
        set_learning_rate(self.optimizer, rate)
        n_pieces = min(self.settings.accumulate, len(mine))
        x_pieces = batch.x_BCT.tensor_split(n_pieces)
        pieces = zip(x_pieces, batch.present_BC.tensor_split(n_pieces), strict=True)
        places = np.array_split(mine, n_pieces)
        for i, (x_BCT, present_BC) in enumerate(pieces):
            wait = self.world.size > 1 and i < n_pieces - 1
            with self.parallel.no_sync() if wait else contextlib.nullcontext():
                x_BCT = x_BCT.to(self.device, non_blocking=True)
                present_BC = present_BC.to(self.device, non_blocking=True)
                with self.compute.autocast():
                    logit_BK = self.parallel(x_BCT, present_BC)
                logits = self.tuned.by_task(logit_BK)
                loss = weighted_loss(logits, self.targets, places[i], batch.positions)
                # Parallel processes average their gradients; the loss is a sum over all of them.
                (loss * self.world.size).backward()
        grad_norm = clip_and_step(self.optimizer, self.parameters, self.settings.grad_clip)
        progress.n_skipped += not math.isfinite(grad_norm)
        progress.step += 1
        progress.position = batch.end

    @torch.no_grad()
    def logits(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Logits of each task's head at these positions, each process computing its share."""
        logit_NK = torch.zeros(len(positions), sum(self.tuned.widths), device=self.device)
        size = self.compute.batch_size
        starts = range(0, len(positions), size)[self.world.rank :: self.world.size]
        mine = np.concatenate([np.arange(s, min(s + size, len(positions))) for s in starts] or [[]])
        mine, done = mine.astype(np.int64), 0
        for x_BCT, present_BC in data.sample_batches(self.job.index, positions[mine], size):
            with self.compute.autocast():
                part = self.tuned(x_BCT.to(self.device), present_BC.to(self.device))
            logit_NK[mine[done : done + len(part)]] = part.float()
            done += len(part)
        by_task = self.tuned.by_task(self.world.sum(logit_NK))
        return {task: part.cpu().numpy().astype(np.float64) for task, part in by_task.items()}

    def look(self) -> None:
        """Judge the heads on val, and remember the weights where they are better than before."""
        progress, logits = self.progress, self.logits(self.val)
        scores = []
        for task, logit_NK in logits.items():
            label_N = self.job.labels[task][self.val]
            known = label_N >= 0
            classes = self.tuned.classes[task]
            scores.append(ranking(task, label_N[known], classes, logit_NK[known]))
        scores = [score for score in scores if score is not None]
        score = float(np.mean(scores)) if scores else 0.0
        progress.validated_step, progress.n_worse = progress.step, progress.n_worse + 1
        if score > progress.best_score:
            progress.best_score, progress.best_step, progress.n_worse = score, progress.step, 0
            self.best = self.tuned.trained_weights()

    @property
    def is_over(self) -> bool:
        """True at the end of the schedule, and when val has not become better for long."""
        progress = self.progress
        at_end = progress.step >= self.settings.max_steps
        return (at_end or progress.n_worse >= self.settings.patience) and (
            progress.validated_step == progress.step
        )

    # -------------------------------------------------------------- state
    def state(self) -> dict[str, Any]:
        return {
            "state_dict": self.tuned.trained_weights(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; ValueError, TypeError or KeyError where it does not fit."""
        checkpoints.check_fields(state["progress"], Progress)
        self.tuned.take_weights(state["state_dict"])
        checkpoints.check_weights(state["best"], "best")
        check_adam_state(
            state["optimizer"]["state"],
            [p for group in self.optimizer.param_groups for p in group["params"]],
        )
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        self.progress, self.best = Progress(**state["progress"]), dict(state["best"])


# ------------------------------------------------------------------ all trials
def tune(
    job: Job,
    settings: FinetuneSettings,
    compute: Compute,
    world: World,
    place: Path,
    stop_wanted: Callable[[], bool] = lambda: False,
) -> Found:
    """The best of the trials, from where the state in ``place`` left off.

    Stopped when ``stop_wanted()`` says so, with a state. At the end the state holds what was found.
    ProbeError for a state that is damaged, and for fewer examples in a batch than processes.
    """
    if settings.batch_size < world.size:
        raise ProbeError(
            f"finetune.batch_size is {settings.batch_size} for {world.size} processes; it is the "
            "batch of all of them together, give at least one example to each"
        )
    rates = draw_rates(settings, job.mode, job.seed)
    state = read_state(place, job.facts) if settings.resume else None
    trials = list(state["trials"]) if state else []
    winner = dict(state["winner"]) if state else {}

    def save(trial: Trial | None) -> None:
        content = {"format": FORMAT, "facts": job.facts, "trials": trials, "winner": winner}
        own = trial.state() if trial else {"state_dict": {}}
        if world.is_first:
            checkpoints.save_checkpoint(place, content | own)

    for lr in rates[len(trials) :]:
        trial = Trial(job, settings, lr, compute, world)
        if state and "progress" in state:
            try:
                trial.resume(state)
            except (ValueError, TypeError, KeyError) as error:
                raise ProbeError(
                    f"{place}: cannot be gone on from ({printable(error)[:200]}); delete it, or "
                    "start anew with --finetune.resume false"
                ) from error
        state = None
        title = f"{job.mode}, rate {lr:.2g}"
        run_trial(trial, title, lambda trial=trial: save(trial), stop_wanted)
        progress = trial.progress
        row = {"lr": lr, "best_step": progress.best_step, "val_score": progress.best_score}
        row |= {"steps": progress.step, "n_skipped": progress.n_skipped}
        if not trials or row["val_score"] > max(t["val_score"] for t in trials):
            winner = trial.best
        trials.append(row)
        save(None)
    chosen = int(np.argmax([row["val_score"] for row in trials]))
    return Found(winner, trials, chosen)


def run_trial(
    trial: Trial, title: str, save: Callable[[], None], stop_wanted: Callable[[], bool]
) -> None:
    """Train to the end of the schedule or until val has not become better for long."""
    settings, world, progress = trial.settings, trial.world, trial.progress
    batches = data.training_batches(
        trial.job.index,
        trial.job.train,
        batch_size=settings.batch_size,
        seed=derived_seed(trial.job.seed, TRAIN_ORDER) % 2**32,
        start=progress.position,
        rank=world.rank,
        world_size=world.size,
        n_threads=READ_THREADS[trial.device.type],
        pin=trial.device.type == "cuda",
    )
    bar = tqdm(desc=title, unit="step", total=settings.max_steps, initial=progress.step)
    with contextlib.closing(batches), bar:
        while True:
            is_due = progress.step % settings.val_every == 0 or progress.step == settings.max_steps
            if is_due and progress.validated_step != progress.step:
                trial.look()
                bar.set_postfix_str(f"val {progress.best_score:.3f}", refresh=False)
            if trial.is_over:
                break
            if world.any(stop_wanted(), trial.device):
                save()
                raise Stopped
            trial.step(next(batches))
            bar.update()
            if progress.step % settings.save_every == 0:
                save()


def read_state(place: Path, facts: str) -> dict[str, Any] | None:
    """What an earlier run of the same job left; None without it, or of another job."""
    if not place.exists():
        return None
    _, state = checkpoints.read_content(place, "cpu")
    if state.get("format") != FORMAT or state.get("facts") != facts:
        return None
    if not isinstance(state.get("trials"), list) or not isinstance(state.get("winner"), dict):
        raise ProbeError(f"{place}: is no state of fine-tuning; delete it")
    return state
