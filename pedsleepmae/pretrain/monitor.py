"""What is watched while the model trains: validation, a picture, the online probe, the logbook."""

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pedsleepmae import data
from pedsleepmae.channels import CHANNEL_NAMES, EPOCH_SAMPLES, RATE_HZ
from pedsleepmae.disk import write_text, write_whole
from pedsleepmae.model import hidden_patches
from pedsleepmae.pretrain.trainer import VAL_BATCH, Trainer

LAST, BEST = "checkpoint_last.pt", "checkpoint_best.pt"

PROBE_POOLING = "time_abs"  # short, and the best of the short ones on a real night (REFERENCE)
PROBE_REGULARISATION = 0.01  # inverse strength C
PROBE_ITERATIONS = 300

DETAIL_S = (12.0, 16.0)  # the right column shows these seconds of the epoch
TRUE_COLOUR, MODEL_COLOUR, HIDDEN_COLOUR = "0.25", "tab:orange", "0.90"


class Logbook:
    """Lines of ``<run_dir>/metrics.jsonl`` and the same numbers in ``<run_dir>/tensorboard``.

    A line is a JSON object with ``step`` (optimiser steps done), ``split`` (train, val or probe)
    and figures; those of a run on simulated data say ``"simulated": true``. A resumed run first
    drops the lines after ``step``, which an interrupted one wrote beyond its last checkpoint.
    """

    def __init__(self, run_dir: Path, *, step: int, simulated: bool):
        self.path = Path(run_dir) / "metrics.jsonl"
        self.simulated = simulated
        kept = [line for line in read_metrics(run_dir) if 0 < line["step"] <= step]
        write_text(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._tensorboard = SummaryWriter(Path(run_dir) / "tensorboard", purge_step=step + 1)

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Add a line; numbers that are not finite become null, since JSON has no name for them."""
        line = {"step": step, "split": split, **figures}
        if self.simulated:
            line["simulated"] = True
        line = json.loads(json.dumps(line), parse_constant=lambda _: None)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, figure in figures.items():
            by_group = figure if isinstance(figure, Mapping) else {"": figure}
            for group, value in by_group.items():
                if isinstance(value, (int, float)):
                    tag = f"{split}/{name}/{group}".rstrip("/")
                    self._tensorboard.add_scalar(tag, value, step)

    def close(self) -> None:
        self._tensorboard.close()


def draw_reconstruction(
    path: Path,
    x_CT: np.ndarray,
    pred_CT: np.ndarray,
    hidden_CS: np.ndarray,
    present_C: np.ndarray,
    title: str,
) -> None:
    """Write a PNG with a row for each channel: 30 s on the left, four of them on the right.

    ``x_CT`` and ``pred_CT`` (16, 3840) standardised; ``hidden_CS`` True where a patch was hidden
    from the model, shaded; the reconstruction is drawn there alone.
    """
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    hidden_CT = np.repeat(hidden_CS, EPOCH_SAMPLES // hidden_CS.shape[1], axis=1)
    figure = Figure(figsize=(15, 14), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(x_CT), 2, sharex="col", gridspec_kw={"width_ratios": [2.2, 1], "hspace": 0}
    )
    for channel, (name, pair) in enumerate(zip(CHANNEL_NAMES, axes, strict=True)):
        for axis, (first_s, last_s) in zip(pair, [(0.0, time_s[-1]), DETAIL_S], strict=True):
            shown = (time_s >= first_s) & (time_s <= last_s)
            hidden = hidden_CT[channel, shown]
            look = {"color": HIDDEN_COLOUR, "transform": axis.get_xaxis_transform()}
            axis.fill_between(time_s[shown], 0, 1, where=hidden, linewidth=0, **look)
            axis.plot(time_s[shown], x_CT[channel, shown], color=TRUE_COLOUR, linewidth=0.6)
            pred = np.where(hidden, pred_CT[channel, shown], np.nan)
            axis.plot(time_s[shown], pred, color=MODEL_COLOUR, linewidth=0.9)
            axis.set_xlim(first_s, last_s)
            axis.tick_params(labelsize=6)
        label = name if present_C[channel] else f"{name}\n(absent)"
        pair[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axes[-1, 0].set_xlabel("time, s")
    axes[-1, 1].set_xlabel("time, s")
    figure.suptitle(
        f"{title}\ngrey: signal (standardised); shaded: hidden from the model; "
        "orange: the model's reconstruction of it",
        fontsize=10,
    )
    with write_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def look_at_model(
    trainer: Trainer, logbook: Logbook | None, stop_wanted: Callable[[], bool]
) -> None:
    """Validate, draw and probe when it is time; a wanted stop puts that off to the next run."""
    settings, progress, step = trainer.settings, trainer.progress, trainer.progress.step
    if not step:
        return
    is_time = step % settings.val_every == 0 or step == settings.max_steps
    if is_time and progress.validated_step < step and not validate(trainer, logbook, stop_wanted):
        return
    is_time = settings.probe_every and step % settings.probe_every == 0
    if is_time and progress.probed_step < step and len(trainer.val_positions):
        progress.probed_step = step
        if logbook:
            figures = probe(trainer)
            logbook.write(step, "probe", figures)
            words = f"no online probe: {figures.get('reason')}"
            if figures["kappa"] is not None:
                words = (
                    f"online probe of sleep stage ({PROBE_POOLING}): kappa {figures['kappa']:.3f}, "
                    f"balanced accuracy {figures['balanced_accuracy']:.3f} on "
                    f"{figures['n_scored']:,} examples"
                )
            say(trainer, f"step {step:,}: {words}{simulated_in_words(trainer)}")


def validate(trainer: Trainer, logbook: Logbook | None, stop_wanted: Callable[[], bool]) -> bool:
    """Validate, draw, and save the best weights; False when a wanted stop came between."""
    progress, step = trainer.progress, trainer.progress.step
    run_dir, is_best = trainer.settings.paths.run_dir, False
    figures = trainer.validate(stop_wanted) if len(trainer.val_positions) else {}
    if figures is None:
        return False
    progress.validated_step = step
    if figures:
        progress.val_loss = figures["loss"]
        is_best = progress.best_val_loss is None or progress.val_loss < progress.best_val_loss
        if is_best:
            progress.best_val_loss, progress.best_step = progress.val_loss, step
        words = f"validation loss {loss_in_words(progress.val_loss)}"
        words += f"{' (best so far)' if is_best else ''}{simulated_in_words(trainer)}"
        say(trainer, f"step {step:,}: {words}")
    if logbook:
        draw_picture(trainer, run_dir / "pictures" / f"step_{step:08d}.png")
        if figures:
            logbook.write(step, "val", figures)
        if is_best:
            trainer.save(run_dir / BEST, to_resume=False)
    return True


def draw_picture(trainer: Trainer, path: Path) -> None:
    """Picture of one example that has the most channels: the same one each time."""
    what, sample = "validation", trainer.val_positions
    if not len(sample):
        what, sample = "training", trainer.train_positions[:VAL_BATCH]
    best = sample[np.argmax(trainer.index.present[sample].sum(axis=1))]
    ((x_BCT, present_BC),) = data.sample_batches(trainer.index, np.array([best]), 1)
    keep_BCK = trainer.val_mask(0, 1)
    with trainer.compute.autocast():
        pred_BCT = trainer.saved_model.reconstruct(x_BCT.to(trainer.device), keep_BCK, present_BC)
    x_CT, pred_CT = x_BCT[0].float().numpy(), pred_BCT[0].cpu().numpy()
    hidden_CS = hidden_patches(keep_BCK, trainer.model.n_patches)[0].cpu().numpy()
    simulated = " (simulated)" if trainer.index.simulated else ""
    title = f"{what} example{simulated} after {trainer.progress.step} steps"
    draw_reconstruction(path, x_CT, pred_CT, hidden_CS, present_BC[0].numpy(), title)


def probe(trainer: Trainer) -> dict[str, Any]:
    """Figures of a quick linear probe of sleep stage on the validation sample."""
    features, index, positions = [], trainer.index, trainer.val_positions
    for x_BCT, present_BC in data.sample_batches(index, positions, VAL_BATCH):
        with trainer.compute.autocast():
            pooled = trainer.saved_model.embed(x_BCT.to(trainer.device), PROBE_POOLING, present_BC)
        features.append(pooled.cpu().numpy())
    stages, patient_ids = index.labels["sleep"][positions], index.patient_ids[positions]
    return probe_sleep_stage(np.concatenate(features), stages, patient_ids)


# ------------------------------------------------------------------ words
def say(trainer: Trainer, line: str) -> None:
    """Print a line for the user above the progress bar, in one process only."""
    if trainer.world.is_first:
        tqdm.write(line)


def simulated_in_words(trainer: Trainer) -> str:
    return " (simulated data)" if trainer.index.simulated else ""


def loss_in_words(loss: float | None) -> str:
    return "undefined" if loss is None else f"{loss:.4f}"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, oldest first; none when there is no such file.

    Lines cut short by a crash, or damaged, are left out.
    """
    path = Path(run_dir) / "metrics.jsonl"
    found = []
    for text in path.read_text("utf-8", "replace").split("\n") if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return found


def probe_sleep_stage(
    features: np.ndarray, stages: np.ndarray, patient_ids: np.ndarray
) -> dict[str, Any]:
    """Fit sleep stage on half of the patients' embeddings and score it on the other half.

    ``features`` (N, F); ``stages`` (N,), -1 unscored; ``patient_ids`` (N,). Returns kappa and
    balanced accuracy, or None for both with the reason.
    """
    scored = stages >= 0
    patients = np.unique(patient_ids[scored])
    fit = scored & np.isin(patient_ids, patients[::2])
    test = scored & ~fit
    counts = {"n_fit": int(fit.sum()), "n_scored": int(test.sum())}
    if min(len(np.unique(stages[fit])), len(np.unique(stages[test]))) < 2:
        reason = "needs two patients, and two sleep stages in each half of the sample"
        return {"kappa": None, "balanced_accuracy": None, "reason": reason, **counts}
    settings = {"C": PROBE_REGULARISATION, "max_iter": PROBE_ITERATIONS}
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", **settings))
    with warnings.catch_warnings():  # quick on purpose: it may stop before it has converged
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features[fit], stages[fit])
    called, truth = probe.predict(features[test]), stages[test]
    balanced = recall_score(truth, called, labels=np.unique(truth), average="macro")
    kappa = cohen_kappa_score(truth, called)
    return {"kappa": float(kappa), "balanced_accuracy": float(balanced), **counts}
