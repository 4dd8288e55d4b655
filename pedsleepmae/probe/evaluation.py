"""The whole comparison: encoder, its untrained twin, hand-made features, prevalence, context.

Turns tables of features into :class:`Results`, which metrics.json, the tables and the report are
written from. Every set of features goes through the same steps on the same patients.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pedsleepmae import metrics, store
from pedsleepmae.errors import SettingsError, bounded
from pedsleepmae.probe import linear
from pedsleepmae.probe.linear import Choice, FitSettings, TaskProbe
from pedsleepmae.probe.nights import events_per_epoch, night_agreement, night_table
from pedsleepmae.probe.readout import ProbeTable, ReadOut, tasks_by_features
from pedsleepmae.probe.tables import FeatureTable
from pedsleepmae.splits import AGE_BANDS, age_band
from pedsleepmae.tasks import STAGES, TASKS, task_labels

OVER_TIME = "time_mean+time_abs+time_std+time_max+time_min+time_calm+time_burst"
POOLINGS_COMPARED = (OVER_TIME, f"{OVER_TIME}+class")


JOINED = "handmade+encoder"  # what the embedding adds to what laboratories measured


@dataclass
class ProbePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint whose frozen encoder is probed."""
    compare_with: Path | None = None
    """Another checkpoint, probed in the same way on the same patients; none: nothing."""
    output_dir: Path = Path("results/m15p8")
    """Written: metrics.json, report.html, tables (CSV), pictures (PNG), embeddings/."""
    publish_to: Path | None = None
    """Written at the end: the probes once more, as they ship beside a published checkpoint, with
    their line in the SHA256SUMS there; none: nothing."""


@dataclass
class ProbeSettings:
    """Linear probes on frozen embeddings."""

    paths: ProbePaths = field(default_factory=ProbePaths)
    tasks: list[
        Literal["sleep", "apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal"]
    ] = field(default_factory=lambda: list(TASKS))
    """Tasks to probe."""
    pooling: str = "best"
    """How an embedding becomes features: mean, max (over the 64-wide axis, 7,680 numbers, as in
    the paper); over time (1,024 each) time_mean, time_abs, time_std, time_max and time_min (of 2-s
    means), time_calm and time_burst (least and largest standard deviation within 5 s); class
    (class token, 1,024); several joined by +; or best: with layer and normalise, for
    each task the one of `poolings` that has its best validation score."""
    poolings: list[str] = field(default_factory=lambda: list(POOLINGS_COMPARED))
    """Poolings compared on validation when pooling is best."""
    layer: int | Literal["best", "last"] = "best"
    """Block of the encoder that is read, 1 the first; last; or best: for each task the best of
    `layers` on validation."""
    layers: list[int] = field(default_factory=list)
    """Blocks compared on validation when layer is best; none named: the middle one and the last."""
    normalise: Literal["none", "night", "best"] = "best"
    """night: each feature over its mean and standard deviation within the night, so that an
    amplifier's gain and a child's own level drop out; best: for each task the better on
    validation."""
    events: bool = False
    """Also find single events, second by second, from the encoder's tokens: onset, duration, and
    how many of the scored ones are found; script 4 then counts events. Needs events.csv."""
    event_nights: int = bounded(200, 1)
    """Nights of train, and of val, that single events are fitted and chosen on at most."""
    montage_epochs: int = bounded(0, 0)
    """Also try fewer channels, montage by montage, on about so many train examples and up to 4,000
    of val and of test, embedded anew; script 4 scores by those of a recording's montage. 0: not."""
    age: bool = False
    """Also tell the age of a child from a night's features, where studies.csv has ages."""
    context: int = bounded(1, 0)
    """Also probe with this many neighbouring epochs on each side, beside the single-epoch figures;
    0: not."""
    regularisation: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    """Inverse strengths C of the logistic regression; the best on validation is kept."""
    bootstrap_draws: int = bounded(1000, 100)
    """Resamples of patients behind each 95 % interval."""
    baselines: list[Literal["prevalence", "handmade", "untrained"]] = field(
        default_factory=lambda: ["prevalence", "handmade", "untrained"]
    )
    """What stands beside each score: the prevalence, hand-made features, the untrained encoder."""
    batch_size: int = bounded(64, 1)
    """Examples embedded at a time."""
    seed: int = bounded(0, 0)
    """Draws the bootstrap, the untrained encoder and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto: bfloat16 where the machine is faster in it."""
    n_workers: int = bounded(2, 1)
    """Threads for hand-made features and probes."""
    memory_gb: float = bounded(4.0, above=0)
    """Features held in memory at a time, GB; above it probes are fitted by passes over the disk."""
    allow_seen_patients: bool = False
    """Score test patients that the checkpoint saw in pretraining; the report then says so."""

    def check(self) -> None:
        if not self.tasks or not self.regularisation or not self.poolings:
            raise SettingsError("tasks, regularisation and poolings need at least one entry each")
        if min(self.regularisation) <= 0:
            raise SettingsError(
                f"regularisation holds {min(self.regularisation):g}; inverse strengths are above 0"
            )
        if self.paths.publish_to is not None and self.paths.publish_to.suffix != ".npz":
            raise SettingsError(
                f"paths.publish_to is {self.paths.publish_to}; give a file name that ends in .npz"
            )


# ------------------------------------------------------------------ what comes out
@dataclass(frozen=True)
class ProbeResult:
    """A probe on one set of features, with its figures on val and test.

    ``prob_NK`` and ``decided_N`` cover all test epochs, also those that the task leaves out;
    ``before`` has the test figures of calibration without recalibration.
    """

    features: str
    probe: TaskProbe
    val_score: float | None
    val: metrics.Evaluation
    test: metrics.Evaluation
    prob_NK: np.ndarray
    decided_N: np.ndarray
    before: dict[str, float | None]


@dataclass(frozen=True)
class TaskResult:
    """One task: its test labels (-1: left out) and what each set of features makes of it.

    ``by_source``: encoder, context and the baselines; empty where ``reason`` says why the task
    could not be fitted. ``group`` is what the bootstrap draws, ``n_groups`` of them.
    """

    task: str
    label_N: np.ndarray
    counts: dict[str, int]
    by_source: dict[str, ProbeResult]
    reason: str | None
    group: str
    n_groups: int
    subgroups: dict[str, dict[str, dict]]


@dataclass(frozen=True)
class Results:
    """Everything that is reported. ``test`` are the test positions of the index, in time order.

    ``fitted`` has the encoder's probe of each task that could be fitted, ``tables`` the features
    that it reads; ``best_table`` those of the best mean over the tasks.
    """

    index: store.ExampleIndex
    test: np.ndarray
    tasks: dict[str, TaskResult]
    fitted: dict[str, ProbeResult]
    tables: dict[str, ProbeTable]
    pooling_scores: pd.DataFrame
    best_table: ProbeTable
    non_finite: dict[str, int]
    nights: pd.DataFrame
    agreement: dict[str, dict]
    events_per_epoch: dict[str, float]


# ------------------------------------------------------------------ the comparison
Chosen = tuple[str, Choice, np.ndarray]  # name of the features, choice on val, logits on test


def compare(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    tables: Mapping[str, Mapping[str, FeatureTable]],
    studies: pd.DataFrame | None,
    fitting: FitSettings,
) -> Results:
    """Fit, choose and judge every source of features.

    ``tables``: source ("encoder", "untrained", "handmade") -> name -> table; of several tables of
    a source the best on val stands for it, task by task. ``studies``: as of read_studies.
    """
    labels = {task: task_labels(index.labels, task) for task in settings.tasks}
    used, tried = choose_features(settings, index, tables, labels, fitting)
    # From here on the test patients are read, for what has been chosen.
    test = index.rows("test")
    test = test[np.lexsort([index.onsets_s[test], index.study_ids[test], index.patient_ids[test]])]
    chosen: dict[str, dict[str, Chosen]] = {task: {} for task in settings.tasks}
    for source, by_task in used.items():
        for table, own in tasks_by_features({t: its.table for t, its in by_task.items()}).items():
            probes = {task: by_task[task].choice.probe.linear for task in own}
            logits = linear.predict(table, test, probes, fitting)
            for task in own:
                chosen[task][source] = table.name, by_task[task].choice, logits[task]
    held_out = HeldOut(index, test, studies, settings)
    tasks = {task: _judge_task(held_out, task, labels[task], chosen[task]) for task in labels}

    per_epoch = events_per_epoch(index, studies)
    fitted = {task: r.by_source["encoder"] for task, r in tasks.items() if r.reason is None}
    prob_of = {task: result.prob_NK for task, result in fitted.items()}
    nights = night_table(index, test, prob_of, studies, per_epoch)
    return Results(
        index=index,
        test=test,
        tasks=tasks,
        fitted=fitted,
        tables={task: used["encoder"][task].table for task in fitted},
        pooling_scores=pd.DataFrame([each.row() for each in tried]),
        best_table=max((t for t in tried if t.source == "encoder"), key=Tried.mean).table,
        non_finite={f"{each.source}: {each.table.name}": each.n_non_finite for each in tried},
        nights=nights,
        agreement=night_agreement(nights),
        events_per_epoch=per_epoch,
    )


@dataclass(frozen=True)
class Tried:
    """Probes of some tasks on one set of features of a source, as chosen on val.

    ``n_non_finite``: train rows with features that are not finite.
    """

    source: str
    table: ProbeTable
    choices: dict[str, Choice]
    n_non_finite: int

    def mean(self) -> float:
        """Mean validation score over the tasks; 0 where none is defined."""
        known = [choice.score for choice in self.choices.values() if choice.score is not None]
        return float(np.mean(known)) if known else 0.0

    def row(self) -> dict:
        """For the table of everything that was tried."""
        row = {"source": self.source, "features": self.table.name}
        row |= {"n_features": self.table.n_features}
        row |= {task: choice.score for task, choice in self.choices.items()}
        return row | {"mean": self.mean() or None}


@dataclass(frozen=True)
class Used:
    """The features that stand for a source in one task, with the probe on them."""

    table: ProbeTable
    choice: Choice


def choose_features(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    tables: Mapping[str, Mapping[str, FeatureTable]],
    labels: Mapping[str, np.ndarray],
    fitting: FitSettings,
) -> tuple[dict[str, dict[str, Used]], list[Tried]]:
    """By source and task the features that are best on val, and everything that was tried.

    Sources as of :func:`compare`, with "handmade+encoder" and "context". Test patients are not
    read.
    """
    tried = {
        source: try_read_outs(settings, index, source, by_name.values(), labels, fitting)
        for source, by_name in tables.items()
    }
    used = {source: best_by_task(own) for source, own in tried.items()}
    encoder = {task: its.table for task, its in used["encoder"].items()}
    if "handmade" in used:
        by_hand = {task: its.table for task, its in used["handmade"].items()}
        pairs, tried[JOINED] = {task: (by_hand[task], encoder[task]) for task in encoder}, []
        for pair, tasks in tasks_by_features(pairs).items():
            both = ProbeTable([part for table in pair for part in table.read_outs])
            own = {task: labels[task] for task in tasks}
            tried[JOINED].append(try_table(index, JOINED, both, own, fitting))
        used[JOINED] = best_by_task(tried[JOINED])
    if settings.context:
        wide = []
        for table, tasks in tasks_by_features(encoder).items():
            table, own = table.with_context(settings.context), {t: labels[t] for t in tasks}
            wide.append(try_table(index, "context", table, own, fitting))
        used["context"] = best_by_task(wide)
    return used, [each for own in tried.values() for each in own]


def try_read_outs(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    source: str,
    tables: Iterable[FeatureTable],
    labels: Mapping[str, np.ndarray],
    fitting: FitSettings,
) -> list[Tried]:
    """Probes on each of a source's tables, standardised within the night or not as is asked."""
    ways = ("none", "night") if settings.normalise == "best" else (settings.normalise,)
    return [
        try_table(index, source, ProbeTable([ReadOut(table, way)]), labels, fitting)
        for table in tables
        for way in ways
    ]


def try_table(
    index: store.ExampleIndex,
    source: str,
    table: ProbeTable,
    labels: Mapping[str, np.ndarray],
    fitting: FitSettings,
) -> Tried:
    return Tried(source, table, *fit_and_choose(index, table, labels, fitting))


def best_by_task(tried: Iterable[Tried]) -> dict[str, Used]:
    """Of each task the features with the best score on val; of equal ones, or where a task has no
    score, those with the best mean over all tasks."""
    best: dict[str, Used] = {}
    for each in sorted(tried, key=Tried.mean, reverse=True):
        for task, choice in each.choices.items():
            if task not in best or (choice.score or 0.0) > (best[task].choice.score or 0.0):
                best[task] = Used(each.table, choice)
    return best


def fit_and_choose(
    index: store.ExampleIndex,
    table: ProbeTable,
    labels: Mapping[str, np.ndarray],
    fitting: FitSettings,
) -> tuple[dict[str, Choice], int]:
    """Probes of all tasks on one set of features, chosen on val; and rows that are not finite."""
    train, val = index.rows("train"), index.rows("val")
    targets = {task: label_N[train] for task, label_N in labels.items()}
    fitted, n_bad = linear.fit_probes(table, train, targets, fitting)
    every = {(task, c): probe for task, by_c in fitted.items() for c, probe in by_c.items()}
    logits = linear.predict(table, val, every, fitting)
    choices = {}
    for task, by_strength in fitted.items():
        label_N = labels[task][val]
        known = label_N >= 0
        candidates = {c: (probe, logits[task, c][known]) for c, probe in by_strength.items()}
        classes = next(iter(by_strength.values())).classes
        choices[task] = linear.choose(task, label_N[known], classes, candidates)
    return choices, n_bad


# ------------------------------------------------------------------ one task on test
@dataclass(frozen=True)
class HeldOut:
    """The test epochs (positions of the index, in time order) and how figures are resampled."""

    index: store.ExampleIndex
    positions: np.ndarray
    studies: pd.DataFrame | None
    settings: ProbeSettings

    def draw_weights(self, n_groups: int) -> np.ndarray:
        return metrics.draw_weights(n_groups, self.settings.bootstrap_draws, self.settings.seed)


def _judge_task(
    held_out: HeldOut, task: str, label_N: np.ndarray, chosen: dict[str, Chosen]
) -> TaskResult:
    """Figures of every source; ``label_N`` holds the task's class of each example of the index."""
    index = held_out.index
    train_N, val_N = (label_N[index.rows(split)] for split in ("train", "val"))
    train_N, val_N = train_N[train_N >= 0], val_N[val_N >= 0]
    test_N = label_N[held_out.positions]
    rows = held_out.positions[test_N >= 0]
    group_N, group = metrics.bootstrap_groups(
        index.patient_ids[rows], index.study_ids[rows], index.onsets_s[rows]
    )
    n_groups = int(group_N.max(initial=-1)) + 1
    weights_RG = held_out.draw_weights(max(1, n_groups))
    by_source, reason, subgroups = {}, None, {}
    if "encoder" in chosen:
        if "prevalence" in held_out.settings.baselines:
            chosen = chosen | {"prevalence": _prevalence(task, train_N, val_N, len(test_N))}
        by_source = {
            source: _judge_probe(found, val_N, test_N, group_N, weights_RG)
            for source, found in chosen.items()
        }
        subgroups = _subgroups(held_out, test_N, by_source["encoder"])
    else:
        what = f"only class {train_N[0]}" if len(train_N) else "no scored epoch"
        reason = f"the train patients show {what}, so no probe can be fitted"
    counts = {"n_train": len(train_N), "n_val": len(val_N), "n_test": len(rows)}
    counts["n_test_patients"] = len(np.unique(index.patient_ids[rows]))
    return TaskResult(task, test_N, counts, by_source, reason, group, n_groups, subgroups)


def _prevalence(task: str, train_N: np.ndarray, val_N: np.ndarray, n_test: int) -> Chosen:
    """The baseline without features: every epoch gets the shares of the train epochs."""
    classes, counts = np.unique(train_N, return_counts=True)
    share_K = np.log(counts / counts.sum())
    flat_NK = np.tile(share_K, (len(val_N), 1))
    choice = linear.choose(task, val_N, classes, {None: (None, flat_NK)})
    return "prevalence", choice, np.tile(share_K, (n_test, 1))


def _judge_probe(
    chosen: Chosen,
    val_N: np.ndarray,
    test_N: np.ndarray,
    group_N: np.ndarray,
    weights_RG: np.ndarray,
) -> ProbeResult:
    """Figures of one probe, by the labels of val and test (-1: left out)."""
    features, choice, logit_NK = chosen
    probe, scored = choice.probe, test_N >= 0
    prob_NK, val_prob_NK = probe.probabilities(logit_NK), probe.probabilities(choice.logit_NK)
    decided_N, label_N = probe.decide(prob_NK), test_N[scored]
    raw_NK = probe.uncalibrated().probabilities(logit_NK[scored])
    before = metrics.evaluate(label_N, raw_NK, decided_N[scored], group_N)
    return ProbeResult(
        features=features,
        probe=probe,
        val_score=choice.score,
        val=metrics.evaluate(val_N, val_prob_NK, probe.decide(val_prob_NK)),
        test=metrics.evaluate(label_N, prob_NK[scored], decided_N[scored], group_N, weights_RG),
        prob_NK=prob_NK,
        decided_N=decided_N,
        before={name: before.figures[name] for name in ("brier", "ece")},
    )


def _subgroups(held_out: HeldOut, test_N: np.ndarray, result: ProbeResult) -> dict:
    """The encoder's test figures within each age band and sex, where studies.csv has them."""
    if held_out.studies is None:
        return {}
    index, scored = held_out.index, np.flatnonzero(test_N >= 0)
    rows = held_out.positions[scored]
    nights = pd.MultiIndex.from_arrays([index.patient_ids[rows], index.study_ids[rows]])
    known = held_out.studies.reindex(nights)
    bands = np.array([age_band(float(a)) for a in known["age_days"].fillna(np.nan)], object)
    sexes = known["sex"].astype(object).where(known["sex"].notna(), None).to_numpy()
    groups = {
        "age": {name: bands == name for name, _ in AGE_BANDS},
        "sex": {sex: sexes == sex for sex in sorted({sex for sex in sexes if sex})},
    }
    found = {}
    for kind, name in [(kind, name) for kind, members in groups.items() for name in members]:
        here = scored[groups[kind][name]]
        if not len(here):
            continue
        patient_N = index.patient_ids[held_out.positions[here]]
        patients, group_N = np.unique(patient_N, return_inverse=True)
        # One patient says nothing of the group's others.
        weights_RG = held_out.draw_weights(len(patients)) if len(patients) > 1 else None
        label_N, prob_NK = test_N[here], result.prob_NK[here]
        evaluation = metrics.evaluate(label_N, prob_NK, result.decided_N[here], group_N, weights_RG)
        found.setdefault(kind, {})[name] = {
            "n": len(here),
            "n_patients": len(patients),
            "prevalence": prevalence(label_N, prob_NK.shape[1]),
            **evaluation.as_dict(),
        }
    return found


def prevalence(label_N: np.ndarray, n_classes: int) -> float | dict[str, float] | None:
    """Share of positive epochs; for the stages the share of each; None without epochs."""
    if not len(label_N):
        return None
    share_K = np.bincount(label_N, minlength=n_classes) / len(label_N)
    if n_classes == 2:
        return float(share_K[1])
    return {stage: float(share) for stage, share in zip(STAGES, share_K, strict=True)}


def auroc_name(task: str) -> str:
    """The figure that tells how well a task is ranked."""
    return "weighted_auroc" if task == "sleep" else "auroc"
