"""One process's part of a pretraining run: a step, a validation, and state that can be resumed.

Everything random is drawn from the seed and the step (masks), or from the seed and the position in
the stream of examples (order), so that a run stopped anywhere goes on as if it had not been, and
several processes compute what one would.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pedsleepmae import checkpoints, data, errors, machine
from pedsleepmae.channels import N_CHANNELS
from pedsleepmae.checkpoints import Checkpoint, CheckpointError
from pedsleepmae.data import VARIANCE_SAMPLE, channel_variances
from pedsleepmae.errors import SettingsError, UserError, as_plain_dict, bounded
from pedsleepmae.machine import Compute, World
from pedsleepmae.model import (
    HEADS,
    MaskedAutoencoder,
    ModelSettings,
    flops_per_example,
    mean_over_present,
)
from pedsleepmae.optim import (
    adamw,
    clip_and_step,
    derived_seed,
    in_parallel,
    learning_rate,
    set_learning_rate,
)
from pedsleepmae.pretrain.losses import balanced, losses_by_group, total
from pedsleepmae.pretrain.resuming import check_resumable
from pedsleepmae.store import ExampleIndex


@dataclass
class PretrainPaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    run_dir: Path = Path("runs/m15p8")
    """Written: checkpoints, metrics.jsonl, settings, pictures."""
    publish_to: Path | None = None
    """Written at the end of the schedule: the best checkpoint as it ships, weights in bfloat16,
    the decoder in a file beside it where one would be too large, and SHA256SUMS; none: nothing."""


@dataclass
class OptimSettings:
    """Optimiser and schedule."""

    batch_size: int = bounded(32, 1)
    """Examples in one optimiser step, over all processes and accumulation steps."""
    accumulate: int = bounded(1, 1)
    """Gradient accumulation: the batch is computed in this many pieces."""
    lr: float = bounded(1e-4, 0)
    """Peak learning rate."""
    weight_decay: float = bounded(5e-4, 0)
    """AdamW weight decay; not on biases, norms, positions and learned tokens."""
    beta2: float = bounded(0.95, 0, below=1)
    """AdamW's memory of squared gradients, 0 to 1; 0.95 as MAE, 0.999 as the original."""
    warmup_steps: int = bounded(200, 0)
    """Steps of linear warm-up, then a cosine down to lr x final_lr_ratio."""
    final_lr_ratio: float = bounded(0.05, 0)
    """Learning rate at the end over the peak; 1 without warm-up: constant, as the original."""
    balance_channels: bool = True
    """true: divide each channel's error by its variance in the training data, so that all channels
    count alike (a loss of 1: no better than the mean); false: plain squared error."""
    grad_clip: float = bounded(1.0, 0)
    """Largest gradient norm; 0: no clipping."""
    ema_decay: float = bounded(0.0, 0, below=1)
    """Decay of the averaged weights that are validated and saved as state_dict; 0: none."""


@dataclass
class PretrainSettings:
    """Masked pretraining."""

    paths: PretrainPaths = field(default_factory=PretrainPaths)
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    init_from: Path | None = None
    """Checkpoint whose weights to start from, such as checkpoint/m15p8_checkpoint.pt. The shape of
    the model (patch_size to decoder_num_layer, token_layout) is the checkpoint's; masks, loss and
    optimiser are those of these settings, and the optimiser starts anew."""
    freeze_encoder: bool = False
    """Train the decoder alone, for better imputation by script 6: the encoder stays that of
    init_from to the last bit, and so do its embeddings and the probes fitted on them."""
    max_steps: int = bounded(100_000, 1)
    """Length of the schedule, optimiser steps."""
    stop_at_step: int | None = bounded(None, 1)
    """End at this step with a checkpoint, as when time is up; none: at max_steps."""
    resume: bool = True
    """Go on from checkpoint_last.pt in run_dir when it is there."""
    seed: int = bounded(0, 0)
    """Draws weights, masks and the order of the examples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the machine is faster in it, else float32."""
    compile: bool = False
    """torch.compile the model: minutes at the start, faster steps on a GPU."""
    log_every: int = bounded(10, 1)
    """Steps between lines of metrics.jsonl."""
    val_every: int = bounded(1000, 1)
    """Steps between validations, each with a picture of reconstructions."""
    val_examples: int = bounded(2048, 1)
    """Validation examples used each time, the same ones with the same masks."""
    save_every: int = bounded(500, 1)
    """Steps between checkpoints."""
    probe_every: int = bounded(0, 0)
    """Steps between quick linear probes on the validation sample; 0: never."""

    def check(self) -> None:
        self.model.check()
        if self.freeze_encoder and self.init_from is None:
            raise SettingsError(
                "freeze_encoder would leave the encoder as random weights were drawn; give the "
                "checkpoint that it comes from as init_from"
            )
        optim = self.optim
        if optim.accumulate > optim.batch_size:
            raise SettingsError(
                f"optim.accumulate is {optim.accumulate}, but a batch of {optim.batch_size} has "
                "no more pieces than examples; lower it"
            )


VAL_BATCH = 32  # fixed, so that masks and losses do not depend on the number of processes
MAX_SKIPPED_IN_ROW = 20

# What a number drawn from the seed is for.
TRAIN_MASKS, VAL_MASKS, VAL_SAMPLE, VARIANCES, WEIGHTS = range(5)


class PretrainError(UserError):
    """Settings, data and machine do not fit each other; the message says what to change."""


class DivergedError(UserError):
    """The loss was not finite too often in a row; the message gives advice."""


@dataclass
class Progress:
    """What has to be remembered to go on, besides weights and optimiser."""

    step: int = 0
    position: int = 0  # in the stream of examples
    n_skipped: int = 0
    n_skipped_in_row: int = 0
    n_bad_values: int = 0
    validated_step: int = -1
    probed_step: int = -1
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None


# ------------------------------------------------------------------ parts of a step
@dataclass
class Interval:
    """What is summed between two lines of metrics.jsonl."""

    error_LC: Tensor  # by part of the loss and channel
    count_C: Tensor
    n_bad: Tensor
    seconds: float = 0.0
    n_examples: int = 0
    grad_norm: float = float("nan")
    lr: float = float("nan")


class Trainer:
    """Model, optimiser and progress of a run, in one process of ``world``."""

    def __init__(
        self, settings: PretrainSettings, index: ExampleIndex, compute: Compute, world: World
    ):
        optim = settings.optim
        if optim.batch_size < world.size:
            raise PretrainError(
                f"optim.batch_size is {optim.batch_size} for {world.size} processes; it is the "
                "batch of all processes together, give at least one example to each"
            )
        self.settings, self.index, self.world = settings, index, world
        self.compute, self.device = compute, compute.device
        # Examples, and what is remembered of them.
        self.train_positions = index.rows("train")
        seed = derived_seed(settings.seed, VAL_SAMPLE)
        self.val_positions = data.fixed_sample(index.rows("val"), settings.val_examples, seed)
        patients = np.unique(index.patient_ids[self.train_positions])
        present_C = index.present[self.train_positions].mean(axis=0)
        self.data_facts = {  # for the checkpoint and its model card
            "n_examples": len(self.train_positions),
            "n_patients": len(patients),
            "n_studies": len(np.unique(index.study_ids[self.train_positions])),
            "patient_disjoint": bool(index.patient_disjoint),
            "share_present_by_channel": present_C.round(4).tolist(),
        }
        self.patients_seen = checkpoints.hash_patients(patients)
        self.simulated = bool(index.simulated)  # this or, with init_from, its start
        self.weight_C = self._weigh_channels().to(self.device)
        self.parts = settings.model.part_weights
        self.progress = Progress()
        self.found: tuple[int, int] | None = None  # checkpoint_last.pt as it was looked at (mark)
        # Model and optimiser.
        self.model = MaskedAutoencoder(**asdict(settings.model))
        seed = derived_seed(settings.seed, WEIGHTS)
        self.model.reset_parameters(torch.Generator().manual_seed(seed))
        self.model.to(self.device)
        self.model.encoder.requires_grad_(not settings.freeze_encoder)
        if self.model.band_heads is not None:
            self.model.band_heads.measure(self._variance_sample())
        self.averaged = None
        if optim.ema_decay:
            self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = adamw(
            self.model, lr=optim.lr, beta2=optim.beta2, weight_decay=optim.weight_decay
        )
        self.generator = torch.Generator(self.device)
        if settings.compile:
            self.model.compile()
        self.parallel = in_parallel(self.model, world, self.device)
        self.matmul_rate = machine.matmul_rate(self.device, compute.dtype)  # operations/s
        self.new_interval()

    def _weigh_channels(self) -> Tensor:
        """What each channel's error is multiplied with, (16,): 1 / variance, or ones."""
        if not self.settings.optim.balance_channels:
            return torch.ones(N_CHANNELS)
        return 1 / channel_variances(self._variance_sample())

    def _variance_sample(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Training examples from which it is learnt how much each channel and band varies."""
        seed = derived_seed(self.settings.seed, VARIANCES)
        sample = data.fixed_sample(self.train_positions, VARIANCE_SAMPLE, seed)
        return data.sample_batches(self.index, sample, VAL_BATCH)

    # -------------------------------------------------------------- one step
    def new_interval(self) -> None:
        shape = 1 + len(self.parts), N_CHANNELS
        *error_LC, count_C = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.interval = Interval(torch.stack(error_LC), count_C, count_C.sum())

    def train_step(self, batch: data.Batch) -> None:
        """One optimiser step on this process's share of a batch."""
        optim, progress = self.settings.optim, self.progress
        lr = learning_rate(progress.step, optim, self.settings.max_steps)
        set_learning_rate(self.optimizer, lr)
        error_LC, count_C = self._accumulate_gradients(batch)
        grad_norm = clip_and_step(self.optimizer, self.model.parameters(), optim.grad_clip)
        if math.isfinite(grad_norm):
            self._update_average()
            self.interval.error_LC += error_LC
            self.interval.count_C += count_C
            progress.n_skipped_in_row = 0
        else:
            progress.n_skipped += 1
            progress.n_skipped_in_row += 1
        self.interval.grad_norm, self.interval.lr = grad_norm, lr
        self.interval.n_examples += batch.batch_size
        self.interval.n_bad += batch.n_bad
        progress.step += 1
        progress.position = batch.end
        if progress.n_skipped_in_row >= MAX_SKIPPED_IN_ROW:
            raise DivergedError(
                f"step {progress.step}: the loss or its gradient was not finite "
                f"{MAX_SKIPPED_IN_ROW} steps in a row; lower optim.lr, set optim.grad_clip to 1, "
                "or try precision float32; weights from before stand in checkpoint_last.pt"
            )

    def _accumulate_gradients(self, batch: data.Batch) -> tuple[Tensor, Tensor]:
        """Backward pass of the batch in pieces; sums of errors (L, 16), of channels counted (16,).

        Every piece is weighted by the channels present in the whole batch (where channels are shown
        whole by its examples: one is asked for in each, or a group), so that neither the number of
        pieces nor that of processes changes the loss, but that of two views: see model.view_weight.
        """
        seed = derived_seed(self.settings.seed, TRAIN_MASKS, self.progress.step)
        self.generator.manual_seed(seed)
        drawing = batch.batch_size, self.generator, batch.rows
        x_BCT = batch.x_BCT.to(self.device, non_blocking=True)
        present_BC = batch.present_BC.to(self.device, non_blocking=True)
        if (whole := self.model.draw_whole(*drawing)) is not None:
            keep_BCK, hidden_BC = whole
            counted_BC, n_counted = present_BC & hidden_BC, batch.batch_size
        else:
            keep_BCK = self.model.draw_mask(*drawing)
            hidden_BC = self.model.draw_hidden_channels(*drawing)
            counted_BC, n_counted = present_BC, batch.n_present
        masks = {"keep_BCK": keep_BCK, "hidden_BC": hidden_BC}
        masks["dropped_BC"] = self.model.draw_dropped_channels(*drawing)
        masks = {name: mask for name, mask in masks.items() if mask is not None}
        n_pieces = min(self.settings.optim.accumulate, len(x_BCT))
        error_LC = torch.zeros_like(self.interval.error_LC)
        parts = counted_BC, x_BCT, present_BC, *masks.values()
        pieces = zip(*(part.tensor_split(n_pieces) for part in parts), strict=True)
        for i, (counted, x, present, *of_piece) in enumerate(pieces):
            masks_of = dict(zip(masks, of_piece, strict=True))
            wait = self.world.size > 1 and i < n_pieces - 1
            with self.parallel.no_sync() if wait else contextlib.nullcontext():
                with self.compute.autocast():
                    error_LBC = balanced(self.parallel(x, present, **masks_of), self.weight_C)
                loss = mean_over_present(total(error_LBC, self.parts), counted, n_counted)
                # Parallel processes average their gradients; the loss is a sum over all of them.
                (loss * self.world.size).backward()
            error_LC += (error_LBC.detach() * counted).sum(dim=1)
        return error_LC, counted_BC.sum(dim=0)

    @torch.no_grad()
    def _update_average(self) -> None:
        """Follow the weights; the average starts fast, so that it forgets the random start."""
        if self.averaged is None:
            return
        step = self.progress.step
        decay = min(self.settings.optim.ema_decay, (1 + step) / (10 + step))
        for mean, value in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    def count_bad_values(self) -> None:
        """Put the interval's, over all processes, where a checkpoint remembers them."""
        self.progress.n_bad_values += int(self.world.sum(self.interval.n_bad))
        self.interval.n_bad = torch.zeros_like(self.interval.n_bad)

    def close_interval(self) -> dict[str, Any]:
        """Figures of the steps since the last call, over all processes."""
        interval, progress = self.interval, self.progress
        n_bad_C = interval.n_bad.expand(N_CHANNELS)
        sums = torch.stack([*interval.error_LC, interval.count_C, n_bad_C])
        *error_LC, count_C, n_bad_C = self.world.sum(sums).cpu().numpy()
        progress.n_bad_values += int(n_bad_C[0])
        rate = interval.n_examples / interval.seconds
        flops = rate * flops_per_example(self.model)
        self.new_interval()
        return {
            **losses_by_group(error_LC, count_C, self.parts),
            "lr": interval.lr,
            "grad_norm": interval.grad_norm,
            "epoch": progress.position / len(self.train_positions),
            "examples": progress.position,
            "examples_per_s": rate,
            "tflops": flops / 1e12,
            "memory_gb": machine.peak_memory_gb(self.device),
            "n_skipped": progress.n_skipped,
            "n_bad_values": progress.n_bad_values,
            "matmul_share": flops / self.world.size / self.matmul_rate,
        }

    # -------------------------------------------------------------- looking at the model
    @property
    def saved_model(self) -> MaskedAutoencoder:
        """The model whose weights are validated and saved as state_dict."""
        return self.model if self.averaged is None else self.averaged

    @torch.no_grad()
    def validate(self, give_up: Callable[[], bool]) -> dict[str, Any] | None:
        """Losses on the fixed sample with fixed masks; None when ``give_up`` says so meanwhile."""
        shape = 1 + len(self.parts), N_CHANNELS
        sums_C = torch.zeros(shape, dtype=torch.float64, device=self.device)
        blocks = np.arange(len(self.val_positions)) // VAL_BATCH
        mine = self.val_positions[blocks % self.world.size == self.world.rank]
        batches = data.sample_batches(self.index, mine, VAL_BATCH)
        gave_up = False
        with contextlib.closing(batches):
            for i, (x_BCT, present_BC) in enumerate(batches):
                if gave_up := give_up():
                    break
                number = i * self.world.size + self.world.rank
                keep_BCK, hidden_BC = self.val_masks(number, len(x_BCT))
                dropped_BC = self.model.draw_dropped_channels(len(x_BCT), self.generator)
                present_BC = present_BC.to(self.device)
                counted_BC = present_BC if hidden_BC is None else present_BC & hidden_BC
                with self.compute.autocast():
                    x_BCT = x_BCT.to(self.device)
                    masks = keep_BCK, hidden_BC, dropped_BC
                    error_LBC = self.saved_model.forward(x_BCT, present_BC, *masks)
                sums_C[:-1] += (balanced(error_LBC, self.weight_C) * counted_BC).sum(dim=1)
                sums_C[-1] += counted_BC.sum(dim=0)
        if self.world.any(gave_up, self.device):
            return None
        *error_LC, count_C = self.world.sum(sums_C).cpu().numpy()
        figures = losses_by_group(error_LC, count_C, self.parts)
        return {**figures, "n_examples": len(self.val_positions)}

    def val_mask(self, number: int, n_examples: int) -> Tensor:
        """``keep_BCK`` of a validation batch that hides patches."""
        self.generator.manual_seed(derived_seed(self.settings.seed, VAL_MASKS, number))
        return self.model.draw_mask(n_examples, self.generator)

    def val_masks(self, number: int, n_examples: int) -> tuple[Tensor, Tensor | None]:
        """``keep_BCK`` of a validation batch, and ``hidden_BC`` where it shows channels whole."""
        self.generator.manual_seed(derived_seed(self.settings.seed, VAL_MASKS, number))
        whole = self.model.draw_whole(n_examples, self.generator)
        return whole or (self.val_mask(number, n_examples), None)

    # -------------------------------------------------------------- state
    def save(self, path: Path, *, to_resume: bool) -> None:
        """Write a checkpoint; with what is needed to go on, or the model alone."""
        settings = as_plain_dict(self.settings)
        is_validated = self.progress.validated_step == self.progress.step
        content = {
            "state_dict": self.saved_model.state_dict(),
            "model": settings["model"],
            "settings": settings,
            "step": self.progress.step,
            "val_loss": self.progress.val_loss if is_validated else None,
            "split_hash": self.index.split_hash,
            "patients_seen": self.patients_seen,
            "simulated": self.simulated,
            "scaling": self.index.scaling,
            "data": self.data_facts,
        }
        if to_resume:
            content["progress"] = asdict(self.progress)
            content["channel_weights"] = self.weight_C
            content["optimizer"] = self.optimizer.state_dict()
            if self.averaged is not None:
                content["training_weights"] = self.model.state_dict()
        checkpoints.save_checkpoint(path, content)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint_last.pt; PretrainError when it is of another model or data."""
        path, state = checkpoint.path, checkpoint.resume
        if not {"progress", "optimizer", "channel_weights"} <= state.keys():
            raise PretrainError(
                f"{path}: holds the weights alone and cannot be resumed; give it as init_from, or "
                "start anew with --resume false"
            )
        optim, index = self.settings.optim, self.index
        back, same_data = "set it as it was", "give the batches_dir that it was trained on"
        must_agree = [
            (f"model.{name}", checkpoint.model[name], ours, back)
            for name, ours in asdict(self.settings.model).items()
        ]
        theirs = checkpoint.settings.get("optim")
        balanced = theirs.get("balance_channels") if isinstance(theirs, dict) else None
        must_agree.append(("optim.balance_channels", balanced, optim.balance_channels, back))
        frozen = checkpoint.settings.get("freeze_encoder", False)  # older ones froze none
        must_agree.append(("freeze_encoder", frozen, self.settings.freeze_encoder, back))
        remedy = f"test patients may be seen: {same_data}"
        must_agree.append(("split", checkpoint.split_hash, index.split_hash, remedy))
        if checkpoint.scaling and index.scaling:  # unknown: no reason to refuse
            what = "scaling of signals"
            must_agree.append((what, checkpoint.scaling, index.scaling, same_data))
        for what, theirs, ours, remedy in must_agree:
            if theirs != ours:
                raise PretrainError(
                    f"{path}: its {what} is {theirs}, here it is {ours}; {remedy}, choose another "
                    "paths.run_dir, or start anew with --resume false"
                )
        if self.averaged is not None:  # an average that begins now begins at these weights
            checkpoints.load_weights(self.averaged, checkpoint.state_dict, str(path))
        weights = state.get("training_weights", checkpoint.state_dict)
        checkpoints.check_weights(weights, f"{path}: training_weights")
        checkpoints.load_weights(self.model, weights, str(path))
        groups = self.optimizer.state_dict()["param_groups"]  # as the settings say now
        try:
            checkpoints.check_fields(state["progress"], Progress)
            check_resumable(state, [p for g in self.optimizer.param_groups for p in g["params"]])
            self.progress = Progress(**state["progress"])
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
        except (ValueError, TypeError, KeyError) as error:
            raise PretrainError(
                f"{path}: cannot be resumed ({errors.printable(error)}); give it as init_from in "
                "another paths.run_dir, or start anew with --resume false"
            ) from error
        self.weight_C = state["channel_weights"].to(self.device)
        self.patients_seen = checkpoint.patients_seen
        self.simulated = checkpoint.simulated

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take the weights of a checkpoint, and remember whose signals are behind them."""
        where = f"init_from {checkpoint.path}"
        layout = checkpoint.model["token_layout"]
        if layout != self.settings.model.token_layout:
            raise CheckpointError(
                f"{where}: its model.token_layout is {layout}, the settings say "
                f"{self.settings.model.token_layout}; its weights mean nothing there, set it alike"
            )
        # Heads of training alone start anew: what bands foretell is in units of these data.
        own = {n: v for n, v in self.model.state_dict().items() if n.startswith(HEADS)}
        checkpoints.load_weights(self.model, checkpoint.weights | own, where)
        if self.averaged is not None:
            self.averaged.load_state_dict(self.model.state_dict())
        theirs = checkpoint.patients_seen
        self.patients_seen = None if theirs is None else sorted({*self.patients_seen, *theirs})
        self.simulated = self.simulated or checkpoint.simulated
