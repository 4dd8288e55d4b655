"""What each step of the pretraining objective brings, at equal operations, by probes of script 3.

    python benchmarks/compare_objectives.py --batches_dir data/compare/batches \\
        --judge_dir data/compare/judge --wide_dir data/compare/wide
    python benchmarks/compare_objectives.py --only today --seeds 0    # a part of it
    python benchmarks/compare_objectives.py --table                   # what is there so far

Every variant trains the same small model on the train patients of batches_dir (those that begin
with "wide" of wide_dir, the same children with more variation) until it has spent as many
operations as `--steps` steps of today's objective: what sees fewer tokens gets more steps. Then
its embeddings go through what script 3 does by default: read-out and regularisation chosen on the
val patients of judge_dir, its test patients read once.

A run that is finished is not run again, one that was stopped goes on. Each process computes in one
thread and leaves alone what another is at, so that the same command can be started once a core.

The primary figure is the mean test AUROC of the six tasks (of sleep weighted over the stages),
with the standard deviation over seeds; differences are paired by patient, the mean over seeds, with
95 % intervals by bootstrap over patients. A gain counts when it is above two standard deviations
over seeds (of the two variants, pooled) and its interval above 0.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy: a process is a core

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae import checkpoints, disk, metrics
from pedsleepmae.machine import Compute, MachineError, World, only_run_in
from pedsleepmae.model import MaskedAutoencoder, ModelSettings, flops_per_example
from pedsleepmae.pretrain import monitor, trainer
from pedsleepmae.pretrain.run import open_trainer, pretrain
from pedsleepmae.probe import evaluation, run
from pedsleepmae.probe.evaluation import ProbeSettings, auroc_name
from pedsleepmae.probe.linear import FitSettings
from pedsleepmae.store import ExampleIndex, load_index
from pedsleepmae.tasks import TASKS

TODAY, UNTRAINED = "today's objective", "untrained"
ALIGNED = {"mask_unit": "token", "mask_ratio": 0.7}  # 5 of 15 tokens of 2 s visible
BANDS = ALIGNED | {"target": "both", "class_weight": 0.0}
CLASS = ALIGNED | {"target": "both"}


@dataclass(frozen=True)
class Variant:
    """An objective (what differs in model.*), its data, and the variant a step before it."""

    model: dict[str, Any] = field(default_factory=dict)
    before: str = TODAY
    wide: bool = False


VARIANTS = {
    UNTRAINED: Variant(),
    TODAY: Variant(before=UNTRAINED),
    "aligned masks": Variant(ALIGNED),
    "aligned + bands": Variant(BANDS, "aligned masks"),
    "aligned + bands + class": Variant(CLASS, "aligned + bands"),
    "aligned, bands and class alone": Variant(
        CLASS | {"target": "bands"}, "aligned + bands + class"
    ),
    "wide, today's objective": Variant(wide=True),
    "wide, aligned + bands + class": Variant(CLASS, "aligned + bands + class", wide=True),
    # Added when the first seed of the aligned ones had been seen.
    "bands beside today's": Variant({"target": "both", "class_weight": 0.0}),
    "bands and class beside today's": Variant({"target": "both"}, "bands beside today's"),
    "two views and bands beside today's": Variant(
        {"target": "both", "class_weight": 0.0, "view_weight": 1.0}, "bands beside today's"
    ),
    "wide, bands and class beside today's": Variant(
        {"target": "both"}, "bands and class beside today's", wide=True
    ),
}


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    if not options.table:
        hold_to_one_comparison(options)
        wanted = [
            (name, seed)
            for seed in options.seeds
            for name, variant in VARIANTS.items()
            if any(part in name for part in options.only) and (options.wide_dir or not variant.wide)
        ]
        with threadpool_limits(1):
            for name, seed in wanted:
                measure(name, seed, options)
    print(tables(options))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches_dir", type=Path, default=ROOT / "data/compare/batches")
    parser.add_argument("--wide_dir", type=Path, help="as batches_dir, with wide variation")
    parser.add_argument("--judge_dir", type=Path, help="train, val and test; none: batches_dir")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results/compare")
    parser.add_argument("--only", nargs="+", default=[""], help="variants whose name has one of it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800, help="of today's objective")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--patch_size", type=int, default=16)
    parser.add_argument("--emb_dim", type=int, default=16)
    parser.add_argument("--num_layer", type=int, default=2)
    parser.add_argument("--decoder_num_layer", type=int, default=1)
    parser.add_argument("--mask_channels", type=float, default=0.5)
    parser.add_argument("--pooling", default="best", help="as of script 3; best: chosen on val")
    parser.add_argument("--layer", default="best", help="block that is read, last or best")
    parser.add_argument("--normalise", default="best", help="none, night or best")
    parser.add_argument("--table", action="store_true", help="show what was measured, and stop")
    options = parser.parse_args()
    options.judge_dir = options.judge_dir or options.batches_dir
    return options


def hold_to_one_comparison(options: argparse.Namespace) -> None:
    """End with a sentence where the folder holds runs of another size, budget or cohort."""
    path = options.results_dir / "options.json"
    free = ("only", "seeds", "table", "results_dir", "wide_dir")
    ours = {name: str(value) for name, value in vars(options).items() if name not in free}
    theirs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else ours
    if other := [f"--{name} {value}" for name, value in theirs.items() if ours.get(name) != value]:
        raise SystemExit(
            f"{options.results_dir} holds runs with {', '.join(other)}; give these, or another "
            "--results_dir"
        )
    disk.write_text(path, json.dumps(ours, indent=1))


# ------------------------------------------------------------------ one run
def folder_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    plain = "_".join("".join(c if c.isalnum() else " " for c in name).split())
    return options.results_dir / f"{plain}_{seed}"


def measure(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train, embed and probe a variant under a seed, unless it is done or another is at it."""
    folder = folder_of(options, name, seed)
    try:
        with only_run_in(folder, "--results_dir"):
            if (folder / "result.npz").exists():
                return
            begin = time.perf_counter()
            settings = pretrain_settings(name, seed, options)
            checkpoint = train(settings, untrained=name == UNTRAINED)
            trained = time.perf_counter()
            judged, read_out = judge(checkpoint, folder, options)
            seconds = {"pretrain_s": trained - begin, "probe_s": time.perf_counter() - trained}
            save(folder / "result.npz", judged, read_out | seconds | {"steps": checkpoint.step})
    except MachineError:
        print(f"{name}, seed {seed}: another process is at it", flush=True)
        return
    mean = np.mean([each.figures[auroc_name(task)] for task, each in judged.items()])
    took = f"{seconds['pretrain_s']:.0f} s and {seconds['probe_s']:.0f} s for probes"
    print(f"{name}, seed {seed}: mean AUROC {mean:.4f}, {checkpoint.step} steps in {took}")


def pretrain_settings(
    name: str, seed: int, options: argparse.Namespace
) -> trainer.PretrainSettings:
    """The small model under one objective, with as many steps as the budget pays for."""
    variant = VARIANTS[name]
    today = {
        "patch_size": options.patch_size,
        "emb_dim": options.emb_dim,
        "num_layer": options.num_layer,
        "decoder_num_layer": options.decoder_num_layer,
        "mask_channels": options.mask_channels,
    }
    steps = equal_steps(options.steps, today, today | variant.model)
    folder = options.wide_dir if variant.wide else options.batches_dir
    return trainer.PretrainSettings(
        paths=trainer.PretrainPaths(folder, folder_of(options, name, seed) / "run", None),
        model=ModelSettings(**today | variant.model),
        optim=trainer.OptimSettings(
            batch_size=options.batch_size,
            lr=options.lr,
            warmup_steps=steps // 8,
            ema_decay=0.99,
        ),
        max_steps=steps,
        seed=seed,
        device="cpu",
        log_every=50,
        val_every=steps,
        val_examples=512,
        save_every=100,
    )


def equal_steps(steps: int, today: dict[str, Any], model: dict[str, Any]) -> int:
    """Steps of a model that take as many operations as ``steps`` of today's."""
    budget = steps * flops_per_example(MaskedAutoencoder(**today))
    return max(1, round(budget / flops_per_example(MaskedAutoencoder(**model))))


def train(settings: trainer.PretrainSettings, *, untrained: bool) -> checkpoints.Checkpoint:
    """The checkpoint at the end of the schedule, or of weights as they were drawn."""
    last = settings.paths.run_dir / monitor.LAST
    settings = replace(settings, resume=not untrained)
    with quiet():
        run_of = open_trainer(settings, load_index(settings.paths.batches_dir))
        if untrained:
            last.parent.mkdir(parents=True, exist_ok=True)
            run_of.save(last, to_resume=False)
        elif not pretrain(run_of).finished:
            raise SystemExit("stopped; the same command goes on")
    return checkpoints.read_checkpoint(last)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines and bars of scripts 2 and 3."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def judge(
    checkpoint: checkpoints.Checkpoint, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, metrics.Evaluation], dict[str, str]]:
    """Test figures by task, by what script 3 does; and the read-out that val chose."""
    index = load_index(options.judge_dir)
    checkpoints.check_seen_patients(index, checkpoint.patients_seen, allowed=False)
    layer = int(options.layer) if options.layer.isdigit() else options.layer
    settings = ProbeSettings(
        pooling=options.pooling, layer=layer, normalise=options.normalise, context=0, baselines=[]
    )
    settings.paths.output_dir = folder
    with quiet():
        compute = Compute.choose("cpu", "auto")
        tables_of = run.compute_tables(settings, index, {"encoder": checkpoint}, compute, World())
        fitting = FitSettings(settings.regularisation, settings.memory_gb)
        found = evaluation.compare(settings, index, tables_of, None, fitting)
    shutil.rmtree(folder / "embeddings")
    judged = {task: result.by_source["encoder"].test for task, result in found.tasks.items()}
    return judged, {"read_out": found.best_table.name, "n_patients": n_test_patients(index)}


def n_test_patients(index: ExampleIndex) -> int:
    return len(np.unique(index.patient_ids[index.rows("test")]))


def save(path: Path, judged: dict[str, metrics.Evaluation], facts: dict[str, Any]) -> None:
    """Figures and bootstrap draws of a finished run, whole or not at all."""
    figures = {task: each.figures[auroc_name(task)] for task, each in judged.items()}
    draws = {task: each.draws[auroc_name(task)] for task, each in judged.items()}
    with disk.write_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, facts=json.dumps(facts | {"auroc": figures}), **draws)


# ------------------------------------------------------------------ the tables
@dataclass(frozen=True)
class Measured:
    """What is there of a variant, by seed: facts, mean AUROC, and its draws (R,)."""

    facts: dict[int, dict[str, Any]]
    draws: dict[int, np.ndarray]

    @property
    def by_seed(self) -> dict[int, float]:
        return {s: float(np.mean(list(f["auroc"].values()))) for s, f in self.facts.items()}

    @property
    def variance(self) -> float:
        values = list(self.by_seed.values())
        return float(np.var(values, ddof=1)) if len(values) > 1 else float("nan")


def read_results(options: argparse.Namespace) -> dict[str, Measured]:
    found = {}
    for name in VARIANTS:
        facts, draws = {}, {}
        for seed in options.seeds:
            path = folder_of(options, name, seed) / "result.npz"
            if path.exists():
                with np.load(path) as content:
                    facts[seed] = json.loads(str(content["facts"]))
                    draws[seed] = np.mean([content[task] for task in TASKS], axis=0)
        if facts:
            found[name] = Measured(facts, draws)
    return found


def tables(options: argparse.Namespace) -> str:
    """AUROC by variant and task, then differences to today's objective and to the step before."""
    found = read_results(options)
    rows = []
    for name, each in found.items():
        first = next(iter(each.facts.values()))
        of_tasks = {
            task: f"{np.mean([facts['auroc'][task] for facts in each.facts.values()]):.3f}"
            for task in TASKS
        }
        mean, sd = np.mean(list(each.by_seed.values())), each.variance**0.5
        row = {"variant": name, "seeds": len(each.facts), "steps": first["steps"]}
        row |= {"mean AUROC": f"{mean:.4f} ± {sd:.4f}"} | of_tasks
        rows.append(
            row | {"read-outs": ", ".join(sorted({f["read_out"] for f in each.facts.values()}))}
        )
    gaps = []
    for name, each in found.items():
        for other in dict.fromkeys((TODAY, VARIANTS[name].before)):
            if other in found and other != name:
                gaps.append({"variant": name, "against": other} | difference(each, found[other]))
    frames = [pd.DataFrame(each) for each in (rows, gaps)]
    options.results_dir.mkdir(parents=True, exist_ok=True)
    for frame, stem in zip(frames, ("auroc", "differences"), strict=True):
        disk.write_text(options.results_dir / f"{stem}.csv", frame.to_csv(index=False))
    return "\n\n".join(frame.to_string(index=False) for frame in frames)


def difference(one: Measured, other: Measured) -> dict[str, str]:
    """Paired difference of mean AUROC over the seeds that both have."""
    seeds = sorted(one.facts.keys() & other.facts.keys())
    if not seeds:
        return {"difference": "no seed in common"}
    gap = float(np.mean([one.by_seed[s] - other.by_seed[s] for s in seeds]))
    draws_R = np.mean([one.draws[s] - other.draws[s] for s in seeds], axis=0)
    n_patients = one.facts[seeds[0]]["n_patients"]
    low, high = metrics.interval(draws_R, n_patients, gap, (-1.0, 1.0)) or (np.nan, np.nan)
    sd = float(np.sqrt((one.variance + other.variance) / 2))
    return {
        "difference": f"{gap:+.4f} [{low:+.4f}, {high:+.4f}]",
        "seed sd": f"{sd:.4f}",
        "counts": "yes" if gap > 2 * sd and low > 0 else "no",
    }


if __name__ == "__main__":
    main()
