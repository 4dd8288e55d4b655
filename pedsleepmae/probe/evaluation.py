"""The whole comparison: encoder, its untrained twin, hand-made features, prevalence, context.

Turns tables of features into :class:`Results`, which metrics.json, the tables and the report are
written from. Every set of features goes through the same steps on the same patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pedsleepmae import metrics, store
from pedsleepmae.errors import SettingsError
from pedsleepmae.probe import linear
from pedsleepmae.probe.embeddings import FeatureTable
from pedsleepmae.probe.linear import Chosen, FitSettings
from pedsleepmae.probe.nights import events_per_epoch, night_agreement, night_table
from pedsleepmae.splits import AGE_BANDS, age_band
from pedsleepmae.tasks import STAGES, TASKS, task_labels


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
    the paper), time_mean, time_abs (over time, 1,024), class (class token, 1,024), several joined
    by +, or best: the one of `poolings` with the best mean validation score over the tasks."""
    poolings: list[str] = field(
        default_factory=lambda: [
            "mean",
            "max",
            "time_mean",
            "time_abs",
            "class",
            "time_mean+time_abs+class",
        ]
    )
    """Poolings compared on validation when pooling is best."""
    context: int = 1
    """Also probe with this many neighbouring epochs on each side, beside the single-epoch figures;
    0: not."""
    regularisation: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    """Inverse strengths C of the logistic regression; the best on validation is kept."""
    bootstrap_draws: int = 1000
    """Resamples of patients behind each 95 % interval."""
    baselines: list[Literal["prevalence", "handmade", "untrained"]] = field(
        default_factory=lambda: ["prevalence", "handmade", "untrained"]
    )
    """What stands beside each score: the prevalence, hand-made features, the untrained encoder."""
    batch_size: int = 64
    """Examples embedded at a time."""
    seed: int = 0
    """Draws the bootstrap, the untrained encoder and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto: bfloat16 where the machine computes it in hardware."""
    n_workers: int = 2
    """Threads for hand-made features and probes."""
    memory_gb: float = 4.0
    """Features held in memory at a time, GB; above it probes are fitted by passes over the disk."""
    embedding_map: Literal["auto", "umap", "pca"] = "auto"
    """Map of the embedding space in the report; auto: UMAP where umap-learn is installed."""
    allow_seen_patients: bool = False
    """Score test patients that the checkpoint saw in pretraining; the report then says so."""

    def check(self) -> None:
        if not self.tasks or not self.regularisation or not self.poolings:
            raise SettingsError("tasks, regularisation and poolings need at least one entry each")
        if min(self.regularisation) <= 0:
            raise SettingsError(
                f"regularisation holds {min(self.regularisation):g}; inverse strengths are above 0"
            )
        if self.bootstrap_draws < 100:
            raise SettingsError(
                f"bootstrap_draws is {self.bootstrap_draws}; give 100 or more for an interval"
            )
        for key, least in (("context", 0), ("batch_size", 1), ("n_workers", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise SettingsError(f"{key} is {getattr(self, key)}; give {least} or more")
        if self.memory_gb <= 0:
            raise SettingsError(f"memory_gb is {self.memory_gb:g}; give more than 0")
        if self.paths.publish_to is not None and self.paths.publish_to.suffix != ".npz":
            raise SettingsError(
                f"paths.publish_to is {self.paths.publish_to}; give a file name that ends in .npz"
            )


@dataclass(frozen=True)
class Judged:
    """One probe on the test patients: what was chosen, figures on val and test.

    ``prob_NK`` and ``decided_N`` cover all test epochs, also those that the task leaves out.
    """

    chosen: Chosen
    val: metrics.Evaluation
    test: metrics.Evaluation
    prob_NK: np.ndarray
    decided_N: np.ndarray
    before: dict[str, float | None]


@dataclass(frozen=True)
class TaskResult:
    """One task: its test labels (-1: left out) and what each set of features makes of it.

    ``judged`` is by source: encoder, context and the baselines; empty where ``reason`` says why
    the task could not be fitted.
    """

    task: str
    label_N: np.ndarray
    counts: dict[str, int]
    n_test_patients: int
    judged: dict[str, Judged]
    reason: str | None
    group: str
    group_N: np.ndarray
    n_groups: int
    subgroups: dict[str, dict[str, dict]]


@dataclass(frozen=True)
class Results:
    """Everything that is reported. ``test`` are the test positions of the index, in time order."""

    index: store.ExampleIndex
    test: np.ndarray
    tasks: dict[str, TaskResult]
    pooling: str
    pooling_scores: pd.DataFrame
    best_table: FeatureTable
    non_finite: dict[str, int]
    nights: pd.DataFrame
    agreement: dict[str, dict]
    events_per_epoch: dict[str, float]

    @property
    def chosen(self) -> dict[str, Chosen]:
        """The encoder's probes by task, of the tasks that could be fitted."""
        fitted = {t: r.judged.get("encoder") for t, r in self.tasks.items()}
        return {task: one.chosen for task, one in fitted.items() if one is not None}


# ------------------------------------------------------------------ the comparison
def compare(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    tables: Mapping[str, Mapping[str, FeatureTable]],
    studies: pd.DataFrame | None,
    how: FitSettings,
) -> Results:
    """Fit, choose and judge every source of features.

    ``tables``: source ("encoder", "untrained", "handmade") -> name -> table; of several tables of
    a source the best on val stands for it. ``studies``: as of read_studies.
    """
    linear.check_index(index)
    labels = {task: task_labels(index.labels, task) for task in settings.tasks}
    chosen: dict[str, dict[str, Chosen]] = {}
    used, scores, non_finite = {}, [], {}
    for source, by_name in tables.items():
        options = {}
        for name, table in by_name.items():
            options[name], non_finite[f"{source}: {name}"] = fit_and_choose(
                index, table, labels, how
            )
            scores.append(_score_row(source, name, table, options[name]))
        best = max(options, key=lambda name: _mean_score(options[name]))
        chosen[source], used[source] = options[best], by_name[best]
    if settings.context:
        wide = used["encoder"].with_context(settings.context)
        chosen["context"], _ = fit_and_choose(index, wide, labels, how)
        used["context"] = wide
    test = index.rows("test")
    test = test[np.lexsort([index.onsets_s[test], index.study_ids[test], index.patient_ids[test]])]
    logits = {
        source: linear.predict(
            used[source], test, {task: one.probe for task, one in by_task.items()}, how
        )
        for source, by_task in chosen.items()
    }
    if "prevalence" in settings.baselines:
        chosen["prevalence"], logits["prevalence"] = _prevalence(index, labels, test)
    tasks = {
        task: _judge_task(settings, index, test, task, labels[task], chosen, logits, studies)
        for task in settings.tasks
    }
    per_epoch = events_per_epoch(index, studies)
    judged = {task: result.judged.get("encoder") for task, result in tasks.items()}
    prob_of = {task: one.prob_NK for task, one in judged.items() if one is not None}
    nights = night_table(index, test, prob_of, studies, per_epoch)
    return Results(
        index=index,
        test=test,
        tasks=tasks,
        pooling=used["encoder"].name,
        pooling_scores=pd.DataFrame(scores),
        best_table=used["encoder"],
        non_finite=non_finite,
        nights=nights,
        agreement=night_agreement(nights),
        events_per_epoch=per_epoch,
    )


def fit_and_choose(
    index: store.ExampleIndex,
    table: FeatureTable,
    labels: Mapping[str, np.ndarray],
    how: FitSettings,
) -> tuple[dict[str, Chosen], int]:
    """Probes of all tasks on one set of features, chosen on val; and rows that are not finite."""
    train, val = index.rows("train"), index.rows("val")
    targets = {task: label_N[train] for task, label_N in labels.items()}
    fitted, n_bad = linear.fit_probes(table, train, targets, how)
    every = {(task, c): probe for task, by_c in fitted.items() for c, probe in by_c.items()}
    outputs = linear.predict(table, val, every, how)
    chosen = {}
    for task, by_strength in fitted.items():
        label_N = labels[task][val]
        known = label_N >= 0
        candidates = {
            c: (probe, probe.classes, outputs[task, c][known]) for c, probe in by_strength.items()
        }
        chosen[task] = linear.choose(task, table.name, label_N[known], candidates)
    return chosen, n_bad


def _prevalence(
    index: store.ExampleIndex, labels: Mapping[str, np.ndarray], test: np.ndarray
) -> tuple[dict[str, Chosen], dict[str, np.ndarray]]:
    """The baseline without features: every epoch gets the shares of the train epochs."""
    chosen, logits = {}, {}
    for task, label_N in labels.items():
        train, val = label_N[index.rows("train")], label_N[index.rows("val")]
        classes, counts = np.unique(train[train >= 0], return_counts=True)
        if len(classes) < 2:
            continue
        share_K = np.log(counts / counts.sum())
        flat_NK = np.tile(share_K, ((val >= 0).sum(), 1))
        chosen[task] = linear.choose(
            task, "prevalence", val[val >= 0], {None: (None, classes, flat_NK)}
        )
        logits[task] = np.tile(share_K, (len(test), 1))
    return chosen, logits


def _judge_task(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    test: np.ndarray,
    task: str,
    label_N: np.ndarray,
    chosen: Mapping[str, Mapping[str, Chosen]],
    logits: Mapping[str, Mapping[str, np.ndarray]],
    studies: pd.DataFrame | None,
) -> TaskResult:
    val_label_N = label_N[index.rows("val")]
    val_label_N = val_label_N[val_label_N >= 0]
    test_label_N = label_N[test]
    scored = np.flatnonzero(test_label_N >= 0)
    rows = test[scored]
    group_N, group = metrics.bootstrap_groups(
        index.patient_ids[rows], index.study_ids[rows], index.onsets_s[rows]
    )
    n_groups = int(group_N.max(initial=-1)) + 1
    weights_RG = metrics.draw_weights(max(1, n_groups), settings.bootstrap_draws, settings.seed)
    judged = {}
    for source in [name for name in chosen if task in chosen[name]]:
        one, logit_NK = chosen[source][task], logits[source][task]
        prob_NK = one.probabilities(logit_NK)
        decided_N = one.decide(prob_NK)
        raw = one.raw_probabilities(logit_NK[scored])
        before = metrics.evaluate(test_label_N[scored], raw, decided_N[scored], group_N, None)
        val_prob_NK = one.probabilities(one.val_logit_NK)
        judged[source] = Judged(
            chosen=one,
            val=metrics.evaluate(
                val_label_N,
                val_prob_NK,
                one.decide(val_prob_NK),
                np.zeros(len(val_label_N), int),
                None,
            ),
            test=metrics.evaluate(
                test_label_N[scored], prob_NK[scored], decided_N[scored], group_N, weights_RG
            ),
            prob_NK=prob_NK,
            decided_N=decided_N,
            before={name: before.figures[name] for name in ("brier", "ece")},
        )
    train_label_N = label_N[index.rows("train")]
    reason = None
    if "encoder" not in judged:
        shown = np.unique(train_label_N[train_label_N >= 0])
        what = f"only class {shown[0]}" if len(shown) else "no scored epoch"
        reason = f"the train patients show {what}, so no probe can be fitted"
    subgroups = {}
    if studies is not None and "encoder" in judged:
        subgroups = _subgroups(settings, index, rows, test_label_N, scored, judged, studies)
    return TaskResult(
        task=task,
        label_N=test_label_N,
        counts={
            "n_train": int((train_label_N >= 0).sum()),
            "n_val": len(val_label_N),
            "n_test": len(scored),
        },
        n_test_patients=len(np.unique(index.patient_ids[rows])),
        judged=judged,
        reason=reason,
        group=group,
        group_N=group_N,
        n_groups=n_groups,
        subgroups=subgroups,
    )


def _mean_score(chosen: Mapping[str, Chosen]) -> float:
    scores = [one.val_score for one in chosen.values() if one.val_score is not None]
    return float(np.mean(scores)) if scores else -np.inf


def _score_row(source: str, name: str, table: FeatureTable, chosen: Mapping[str, Chosen]) -> dict:
    row = {"source": source, "features": name, "n_features": table.n_features}
    row |= {task: one.val_score for task, one in chosen.items()}
    mean = _mean_score(chosen)
    return row | {"mean": mean if np.isfinite(mean) else None}


def _subgroups(settings, index, rows, test_label_N, scored, judged, studies) -> dict:
    """The encoder's test figures within each age band and sex."""
    nights = pd.MultiIndex.from_arrays([index.patient_ids[rows], index.study_ids[rows]])
    known = studies.reindex(nights)
    bands = np.array([age_band(float(a)) for a in known["age_days"].fillna(np.nan)], object)
    sexes = known["sex"].astype(object).where(known["sex"].notna(), None).to_numpy()
    one, result = judged["encoder"], {}
    orders = {"age": [name for name, _ in AGE_BANDS], "sex": sorted({s for s in sexes if s})}
    for kind, values in (("age", bands), ("sex", sexes)):
        result[kind] = {}
        for name in orders[kind]:
            here = np.flatnonzero(values == name)
            if not len(here):
                continue
            part = rows[here]
            patients, group_N = np.unique(index.patient_ids[part], return_inverse=True)
            weights_RG = None  # one patient says nothing of the group's others
            if len(patients) > 1:
                weights_RG = metrics.draw_weights(
                    len(patients), settings.bootstrap_draws, settings.seed
                )
            label_N = test_label_N[scored[here]]
            evaluation = metrics.evaluate(
                label_N,
                one.prob_NK[scored[here]],
                one.decided_N[scored[here]],
                group_N,
                weights_RG,
            )
            result[kind][name] = {
                "n": len(here),
                "n_patients": len(patients),
                "prevalence": prevalence(label_N, one.prob_NK.shape[1]),
                **evaluation.as_dict(),
            }
    return {kind: groups for kind, groups in result.items() if groups}


def prevalence(label_N: np.ndarray, n_classes: int) -> float | dict[str, float] | None:
    """Share of positive epochs; for the stages the share of each; None without epochs."""
    if not len(label_N):
        return None
    share_K = np.bincount(label_N, minlength=n_classes) / len(label_N)
    if n_classes == 2:
        return float(share_K[1])
    return {stage: float(share) for stage, share in zip(STAGES, share_K, strict=True)}
