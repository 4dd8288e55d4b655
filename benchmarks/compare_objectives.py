"""Token layouts, losses and masks at equal arithmetic, on simulated children and a real night.

    python 0_simulate_cohort.py --config configs/compare/simulate.yaml
    python benchmarks/compare_objectives.py             # an hour and a half on 2 cores; goes on
    python benchmarks/compare_objectives.py --table     # what is there so far

Every objective trains the same small model three times (three seeds: weights, masks, order) on the
train patients until it has spent the same number of operations. Judged on the val patients: error
on masked patches, and linear probes of the six tasks for each pooling, on the train patients'
embeddings, with 95 % intervals by bootstrap over the val patients (seeds averaged draw by draw).
The real night is one adult, Sleep-EDF SC4001 (configs/sleep_edf/prepare.yaml): stages learnt on the
train blocks of the night and scored on its val blocks, by encoders that never saw it.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae import data, metrics
from pedsleepmae.checkpoints import load_model
from pedsleepmae.disk import write_whole
from pedsleepmae.model import (
    POOLINGS,
    MaskedAutoencoder,
    ModelSettings,
    flops_per_example,
    hidden_patches,
    masked_mse,
    random_mask,
)
from pedsleepmae.pretrain import monitor, trainer
from pedsleepmae.pretrain.run import open_trainer, pretrain
from pedsleepmae.store import ExampleIndex, load_index
from pedsleepmae.tasks import N_CLASSES, task_labels

SECOND = 8  # patches of 16 samples
SMALL = {"patch_size": 16, "emb_dim": 8, "num_layer": 2, "num_head": 4, "decoder_num_layer": 1}
OBJECTIVES = {  # name -> what differs in model.* and optim.*
    **{
        f"{layout}, loss on {loss}": {"token_layout": layout, "loss_on": loss}
        for layout in ("reference", "moment", "channel")
        for loss in ("masked", "all")
    },
    "channel, 1-s spans, 50 %": {"mask_span": SECOND},
    "channel, 1-s spans, 80 %": {"mask_span": SECOND, "mask_ratio": 0.8},
    "channel, lean": {"mask_ratio": 0.75, "decoder_emb_dim": 4},
    "channel, whole channels hidden": {"mask_channels": 0.3},
    "channel, plain squared error": {"optim.balance_channels": False},
}
SEEDS = (0, 1, 2)
STEPS = 400  # of the objective that the budget is counted in
BATCH = 32
PROBE_EXAMPLES = 2048  # of the train patients, and as many of the val patients
STRENGTH = 0.01  # of the probes' regularisation, C; one value for all
N_DRAWS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches_dir", type=Path, default=ROOT / "data/compare/batches")
    parser.add_argument("--night_dir", type=Path, default=ROOT / "data/sleep_edf/batches")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results/compare")
    parser.add_argument("--only", default="", help="objectives whose name contains this")
    parser.add_argument("--table", action="store_true", help="show what was measured, and stop")
    options = parser.parse_args()
    options.results_dir.mkdir(parents=True, exist_ok=True)
    if not options.table:
        jobs = [
            joblib.delayed(measure_alone)(name, seed, options)
            for seed in SEEDS
            for name in OBJECTIVES
            if options.only in name and not result_path(options, name, seed).exists()
        ]
        joblib.Parallel(n_jobs=os.cpu_count(), verbose=10)(jobs)
    print(table(options))


def result_path(options, name: str, seed: int) -> Path:
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return options.results_dir / f"{plain}_{seed}.npz"


def pretrain_settings(name: str, seed: int, run_dir: str, options) -> trainer.PretrainSettings:
    """The small model under one objective, with as many steps as the budget pays for."""
    given = OBJECTIVES[name]
    model = ModelSettings(
        **SMALL, **{key: value for key, value in given.items() if not key.startswith("optim.")}
    )
    optim = trainer.OptimSettings(
        batch_size=BATCH,
        lr=3e-3,
        warmup_steps=60,
        balance_channels=given.get("optim.balance_channels", True),
    )
    budget = STEPS * flops_per_example(MaskedAutoencoder(**SMALL))
    steps = round(budget / flops_per_example(MaskedAutoencoder(**vars(model))))
    return trainer.PretrainSettings(
        paths=trainer.PretrainPaths(options.batches_dir, Path(run_dir), None),
        model=model,
        optim=optim,
        max_steps=steps,
        seed=seed,
        val_every=steps,
        val_examples=512,
        save_every=steps,
    )


def measure_alone(name: str, seed: int, options) -> None:
    """Measure on one core: two processes share the machine."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        measure(name, seed, options)


def measure(name: str, seed: int, options) -> None:
    """Train under one objective and write its figures."""
    index, night = load_index(options.batches_dir), load_index(options.night_dir)
    with tempfile.TemporaryDirectory() as run_dir:
        settings = pretrain_settings(name, seed, run_dir, options)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            pretrain(open_trainer(settings, index))
        model = load_model(Path(run_dir) / monitor.LAST)
    figures = {"steps": settings.max_steps}
    train, val = (
        data.fixed_sample(index.rows(split), PROBE_EXAMPLES, seed=0) for split in ("train", "val")
    )
    for masks, ratio, span in (("scattered", 0.5, 1), ("1-s spans", 0.5, SECOND)):
        figures[f"error, {masks}"] = masked_error(model, index, val[::4], ratio, span)
    draws = probe_all(model, index, train, val, N_CLASSES, figures, "")
    blocks = night.rows("train"), night.rows("val")
    draws |= probe_all(model, night, *blocks, ["sleep"], figures, "real night ")
    with write_whole(result_path(options, name, seed)) as temporary, open(temporary, "wb") as file:
        np.savez(file, figures=json.dumps(figures), **draws)


@torch.no_grad()
def masked_error(
    model: MaskedAutoencoder, index: ExampleIndex, rows: np.ndarray, ratio: float, span: int
) -> float:
    """Squared error on hidden patches over the channels' variance: the mean over 16 channels.

    The same masks for every objective of a layout, whatever masks it was trained with.
    """
    generator = torch.Generator().manual_seed(0)
    errors, variances = [], []
    for x_BCT, present_BC in data.sample_batches(index, rows, 64):
        keep_BCK = random_mask(
            len(x_BCT),
            model.n_patches,
            model.layout.n_keep(model.n_patches, ratio),
            generator=generator,
            n_channels=model.layout.n_masks,
            span=span,
        ).expand(-1, 16, -1)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = model.reconstruct(x_BCT, keep_BCK, present_BC)
        x_BCSP, y_BCSP = (
            y.float().unflatten(2, (-1, model.patch_size)) for y in (x_BCT, prediction)
        )
        hidden_BCS = hidden_patches(keep_BCK, model.n_patches)
        absent_BC = ~present_BC
        error_BC = masked_mse(y_BCSP, x_BCSP, hidden_BCS)
        errors.append(error_BC.masked_fill(absent_BC, torch.nan))
        variances.append(x_BCT.float().square().mean(2).masked_fill(absent_BC, torch.nan))
    error_C, variance_C = (torch.cat(parts).nanmean(0) for parts in (errors, variances))
    return float((error_C / variance_C).mean())


def probe_all(model, index, train_rows, val_rows, tasks, figures, prefix) -> dict[str, np.ndarray]:
    """AUROC of every task and pooling into ``figures``; their bootstrap draws are returned."""
    x_train, x_val = (embed(model, index, rows) for rows in (train_rows, val_rows))
    groups, _ = metrics.bootstrap_groups(
        index.patient_ids[val_rows], index.study_ids[val_rows], index.onsets_s[val_rows]
    )
    figures[f"{prefix}groups"] = n_groups = int(groups.max()) + 1
    weights_RG = metrics.draw_weights(n_groups, N_DRAWS, seed=0)
    draws = {}
    for task in tasks:
        label_N = task_labels(index.labels, task)
        used, judged = label_N[train_rows] >= 0, label_N[val_rows] >= 0
        for pooling in POOLINGS:
            probe = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200),
            )
            with warnings.catch_warnings():  # 200 steps: enough to rank, for all alike
                warnings.simplefilter("ignore", ConvergenceWarning)
                probe.fit(x_train[pooling][used], label_N[train_rows][used])
            prob_NK = np.zeros((int(judged.sum()), N_CLASSES[task]))
            prob_NK[:, probe.classes_] = probe.predict_proba(x_val[pooling][judged])
            scored = metrics.evaluate(
                label_N[val_rows][judged], prob_NK, prob_NK.argmax(1), groups[judged], weights_RG
            )
            figure = "weighted_auroc" if task == "sleep" else "auroc"
            key = f"{prefix}{task}|{pooling}"
            figures[key] = scored.figures[figure]
            draws[key] = scored.draws[figure]
    return draws


def embed(model, index, rows) -> dict[str, np.ndarray]:
    """Embeddings by pooling of these examples."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [
            model.embed_many(x_BCT, POOLINGS, present_BC)
            for x_BCT, present_BC in data.sample_batches(index, rows, 64)
        ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in POOLINGS}


# ------------------------------------------------------------------ the table
def table(options) -> str:
    """Errors and AUROC by objective, averaged over seeds; intervals over the val patients."""
    rows = []
    for name in OBJECTIVES:
        runs = [np.load(path) for s in SEEDS if (path := result_path(options, name, s)).exists()]
        if not runs:
            continue
        figures = [json.loads(str(run["figures"])) for run in runs]
        row = {"objective": name, "seeds": len(runs), "steps": figures[0]["steps"]}
        for key in figures[0]:
            if key.startswith("error"):
                values = [each[key] for each in figures]
                row[key] = f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
        keys = [key for key in figures[0] if "|" in key]
        for task in dict.fromkeys(key.split("|")[0] for key in keys):
            for pooling in POOLINGS:
                key = f"{task}|{pooling}"
                value = np.mean([each[key] for each in figures])
                prefix = "real night " if task.startswith("real") else ""
                n_groups = figures[0][f"{prefix}groups"]
                edges = metrics.interval(np.mean([r[key] for r in runs], axis=0), n_groups, value)
                low, high = edges or (np.nan, np.nan)
                row[key] = f"{value:.3f} [{low:.3f}, {high:.3f}]"
        rows.append(row)
    frame = pd.DataFrame(rows).set_index("objective")
    frame.to_csv(options.results_dir / "table.csv")
    return frame.T.to_string()


if __name__ == "__main__":
    main()
