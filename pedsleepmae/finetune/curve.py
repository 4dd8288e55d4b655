"""What a few labelled children are worth: every way at growing numbers of train patients.

Axes: **R** bootstrap draws, **D** draws of patients.

A draw is an order of the train patients, of which the first n are labelled, so that larger numbers
hold the smaller ones. All ways see the same patients, val chooses with as many trials for each, and
the test patients are those of the other figures. A task of which a draw's patients show one class
alone counts as 0.5, which is what a classifier reaches that never saw the event.
"""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pedsleepmae import data, disk, machine, metrics, store
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.finetune.loop import tune
from pedsleepmae.finetune.run import ClassifierSettings, make_job, start_tables
from pedsleepmae.finetune.tuned import TunedEncoder
from pedsleepmae.machine import Compute, World
from pedsleepmae.model import split_layer
from pedsleepmae.optim import derived_seed, stop_on_signal
from pedsleepmae.probe import embeddings, linear
from pedsleepmae.probe.evaluation import auroc_name, best_by_task, try_read_outs
from pedsleepmae.probe.handmade import FEATURES_VERSION
from pedsleepmae.probe.linear import FitSettings
from pedsleepmae.probe.tables import FeatureTable, HeldTable
from pedsleepmae.tasks import task_labels

TRAINED = ("lora", "full", "scratch")  # ways that train an encoder
MEAN = "mean"  # of the tasks
CHANCE = 0.5
UNUSED = -1  # in place of a split: train patients without a label


@dataclass(frozen=True)
class Draw:
    """A number of labelled patients, the number of the draw, and who they are."""

    n_patients: int
    number: int
    patients: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.n_patients}_{self.number}"


@dataclass(frozen=True)
class Curve:
    """``rows``: figures by number of patients, way and task; ``draws``: who was drawn."""

    rows: list[dict[str, Any]]
    draws: pd.DataFrame


@dataclass(frozen=True)
class CurveInputs:
    """What is the same in all draws.

    ``tables``: of the ways that train nothing, by way and name; ``starts``: by way that trains,
    what the encoder at its start says; ``read_outs``: what is read of a trained encoder;
    ``folder``: where draws that are done stand.
    """

    settings: ClassifierSettings
    checkpoint: Checkpoint
    tables: Mapping[str, Mapping[str, FeatureTable]]
    starts: Mapping[str, FeatureTable]
    read_outs: Sequence[str]
    compute: Compute
    fitting: FitSettings
    folder: Path


def draw_patients(
    patients: np.ndarray, sizes: Sequence[int], n_draws: int, seed: int
) -> list[Draw]:
    """Draws of each size, 0 for all; sizes beyond the number of patients count as all."""
    everyone = np.unique(patients)
    wanted = sorted({min(size, len(everyone)) if size else len(everyone) for size in sizes})
    draws = []
    for number in range(n_draws):
        order = np.random.default_rng([seed, number]).permutation(everyone)
        draws += [Draw(size, number, np.sort(order[:size])) for size in wanted]
    return draws


def label_few(index: store.ExampleIndex, patients: np.ndarray) -> store.ExampleIndex:
    """The index with these train patients alone; the examples of the others are in no split."""
    unused_N = (index.split == 0) & ~np.isin(index.patient_ids, patients)
    return replace(index, split=np.where(unused_N, UNUSED, index.split))


# ------------------------------------------------------------------ all draws
def measure_curve(
    settings: ClassifierSettings,
    index: store.ExampleIndex,
    checkpoint: Checkpoint,
    tables: Mapping[str, Mapping[str, FeatureTable]],
    read_outs: Sequence[str],
    compute: Compute,
    fitting: FitSettings,
) -> Curve:
    """Figures of every way at every number of patients; draws that are done are not done again.

    ``tables``: of :func:`compute_tables`; ``read_outs``: what is read of a trained encoder.
    """
    tables = {"probe": tables.get("frozen", tables["encoder"])} | {
        source: by_name for source, by_name in tables.items() if source == "handmade"
    }
    low, high = min(fitting.strengths), max(fitting.strengths)
    strengths = np.geomspace(low, high, settings.finetune.tuning_trials).tolist()
    fitting = replace(fitting, strengths=strengths)
    modes = [way for way in settings.label_ways if way in TRAINED]
    starts = start_tables(settings, index, checkpoint, modes, compute, World())
    train = index.rows("train")
    draws = draw_patients(
        index.patient_ids[train], settings.label_curve, settings.label_draws, settings.seed
    )
    folder = settings.paths.output_dir / "curve"
    same = CurveInputs(settings, checkpoint, tables, starts, read_outs, compute, fitting, folder)
    with machine.only_run_in(folder, "paths.output_dir"):
        disk.remove_partial(folder, ".*.partial")
        key = _key(same, index)
        found = []
        for number, draw in enumerate(draws):
            place = folder / f"{key}_{draw.name}.json"
            figures = disk.read_state(place)
            if not figures:
                print(f"label_curve: draw {number + 1} of {len(draws)}", flush=True)
                figures = measure_draw(same, label_few(index, draw.patients), draw)
                disk.write_state(place, figures)
                for left in folder.glob(f"{draw.name}_*.pt"):
                    left.unlink()
            found.append(figures)
    test = index.rows("test")
    rows = summarise(draws, found, len(np.unique(index.patient_ids[test])), settings.seed)
    listed = [(d.n_patients, d.number, patient) for d in draws for patient in d.patients.tolist()]
    return Curve(rows, pd.DataFrame(listed, columns=["n_patients", "draw", "patient_id"]))


def _key(same: CurveInputs, index: store.ExampleIndex) -> str:
    """What tells figures of these settings and examples from those of others."""
    settings, own = same.settings, asdict(same.settings.finetune)
    del own["resume"], own["save_every"]
    facts = [own, settings.seed, settings.tasks, settings.label_ways, settings.normalise]
    facts += [settings.bootstrap_draws, list(same.read_outs), same.compute.precision]
    facts += [list(same.fitting.strengths), same.checkpoint.sha256]
    facts += [index.split_hash, index.content_hash, FEATURES_VERSION]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def measure_draw(same: CurveInputs, index: store.ExampleIndex, draw: Draw) -> dict[str, Any]:
    """Figures of every way with the labels of this draw, {"ways": {way: {task: …}}, …}.

    ``index``: with the draw's patients as its train patients (:func:`label_few`).
    """
    settings, compute, fitting, ways, rates = same.settings, same.compute, same.fitting, {}, {}
    seed = derived_seed(settings.seed, draw.n_patients, draw.number)
    for way in settings.label_ways:
        if way in TRAINED:
            start = of_index(same.starts[way], index)
            job = make_job(settings, index, same.checkpoint, way, start, compute, fitting, seed)
            place = same.folder / f"{draw.name}_{way}.pt"
            with stop_on_signal() as stop_wanted:
                found = tune(job, settings.finetune, compute, World(), place, stop_wanted)
            rates[way] = found.trials[found.chosen]
            tuned = TunedEncoder(job.build(), job.heads)
            tuned.take_weights(found.weights)
            candidates = hold_features(tuned.model, index, same.read_outs, compute)
        else:
            candidates = [of_index(table, index) for table in same.tables[way].values()]
        ways[way] = judge(settings, index, candidates, fitting)
    return {"ways": ways, "chosen": rates, "n_train_epochs": len(index.rows("train"))}


def of_index(table: FeatureTable, index: store.ExampleIndex) -> FeatureTable:
    """The same features by an index of the same examples with other splits."""
    table = copy.copy(table)
    table.index = index
    return table


def hold_features(
    model: torch.nn.Module, index: store.ExampleIndex, names: Sequence[str], compute: Compute
) -> list[HeldTable]:
    """Features of a model, in memory, of the examples that are in a split."""
    model, positions = model.to(compute.device).eval(), np.flatnonzero(index.split != UNUSED)
    pieces = []
    for x_BCT, present_BC in data.sample_batches(index, positions, compute.batch_size):
        features = embeddings.embed_batch(model, x_BCT, present_BC, names, compute)
        pieces.append({name: embeddings.as_float16(x_BF) for name, x_BF in features.items()})
    held = []
    for name in names:
        x_NF = np.concatenate([piece[name] for piece in pieces])
        lengths = [model.n_features(part) for part in split_layer(name)[0].split("+")]
        held.append(HeldTable(index, name, lengths, positions, x_NF))
    return held


def judge(
    settings: ClassifierSettings,
    index: store.ExampleIndex,
    candidates: Sequence[FeatureTable],
    fitting: FitSettings,
) -> dict[str, dict[str, Any]]:
    """By task the test AUROC of the features that are best in it on val, with bootstrap draws."""
    labels = {task: task_labels(index.labels, task) for task in settings.tasks}
    used = best_by_task(try_read_outs(settings, index, "encoder", candidates, labels, fitting))
    test = index.rows("test")
    group_N, _ = metrics.bootstrap_groups(
        index.patient_ids[test], index.study_ids[test], index.onsets_s[test]
    )
    n_draws, n_groups = settings.bootstrap_draws, int(group_N.max()) + 1
    weights_RG = metrics.draw_weights(n_groups, n_draws, settings.seed)
    figures = {}
    for task, label_N in labels.items():
        figures[task] = {"value": CHANCE, "draws": [CHANCE] * n_draws, "is_fitted": False}
        if task not in used:
            continue
        table, probe = used[task].table, used[task].choice.probe
        known = label_N[test] >= 0
        logits = linear.predict(table, test[known], {task: probe.linear}, fitting)
        prob_NK = probe.probabilities(logits[task])
        decided_N = probe.decide(prob_NK)
        judged = metrics.evaluate(
            label_N[test][known], prob_NK, decided_N, group_N[known], weights_RG
        )
        name = auroc_name(task)
        if judged.figures[name] is not None:
            draws = [float(v) if np.isfinite(v) else None for v in judged.draws[name]]
            own = {"value": judged.figures[name], "draws": draws, "features": table.name}
            figures[task] = own | {"is_fitted": True}
    return figures


# ------------------------------------------------------------------ over draws
def summarise(
    draws: Sequence[Draw], found: Sequence[Mapping[str, Any]], n_groups: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each number of patients, way and task, and for the mean of the tasks.

    The interval is over the test patients (``n_groups`` of them) and the draws: each resample of
    patients also draws anew which of the draws are averaged. ``gain`` is over the probe, paired.
    """
    rows = []
    for size in sorted({draw.n_patients for draw in draws}):
        here = [f for draw, f in zip(draws, found, strict=True) if draw.n_patients == size]
        tasks = list(here[0]["ways"]["probe"])
        values = {}  # (way, task) -> (D,), (D, R)
        for way in here[0]["ways"]:
            own = [figures["ways"][way] for figures in here]
            for task in tasks:
                value_D = np.array([by_task[task]["value"] for by_task in own])
                draw_DR = np.array([by_task[task]["draws"] for by_task in own], dtype=float)
                values[way, task] = value_D, draw_DR
            both = [values[way, task] for task in tasks]
            values[way, MEAN] = tuple(np.mean(part, axis=0) for part in zip(*both, strict=True))
        n_draws = values["probe", MEAN][1].shape[1]
        rng = np.random.default_rng([seed, size])
        picked_RD = rng.integers(0, len(here), (n_draws, len(here)))
        for (way, task), (value_D, draw_DR) in values.items():
            probe_D, probe_DR = values["probe", task]
            row = {"n_patients": size, "way": way, "task": task, "n_draws": len(here)}
            row["n_train_epochs"] = float(np.mean([f["n_train_epochs"] for f in here]))
            row |= _figure("value", value_D, draw_DR, picked_RD, n_groups, (0.0, 1.0))
            gain = value_D - probe_D, draw_DR - probe_DR
            if way != "probe":
                row |= _figure("gain", *gain, picked_RD, n_groups, (-1.0, 1.0))
            fitted = [f["ways"][way][task]["is_fitted"] for f in here] if task != MEAN else []
            rows.append(row | {"n_without_the_event": len(fitted) - sum(fitted)})
    return rows


def _figure(
    name: str,
    value_D: np.ndarray,
    draw_DR: np.ndarray,
    picked_RD: np.ndarray,
    n_groups: int,
    bounds: tuple[float, float],
) -> dict[str, Any]:
    value = float(value_D.mean())
    mean_R = draw_DR.T[np.arange(len(picked_RD))[:, None], picked_RD].mean(axis=1)
    ci95 = metrics.interval(mean_R, n_groups, value, bounds)
    return {name: value, f"{name}_ci95": ci95}


def curve_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """curve.csv: the rows with the ends of their intervals in columns of their own."""
    flat = []
    for row in rows:
        row = dict(row)
        for name in ("value", "gain"):
            low, high = row.pop(f"{name}_ci95", None) or (None, None)
            row |= {f"{name}_ci95_low": low, f"{name}_ci95_high": high}
        flat.append(row)
    return pd.DataFrame(flat)
