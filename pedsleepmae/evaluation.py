"""The whole comparison: encoder, its untrained twin, hand-made features, prevalence, context.

Turns tables of features into :class:`Results`, which metrics.json, the tables and the report are
written from. Every set of features goes through the same steps on the same patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pedsleepmae import metrics, probes, store
from pedsleepmae.embeddings import FeatureTable
from pedsleepmae.out_of_distribution import fit_density
from pedsleepmae.probes import N_CLASSES, STAGES, Basis, Chosen, FitSettings
from pedsleepmae.splits import AGE_BANDS, age_band

if TYPE_CHECKING:
    from pedsleepmae.config import ProbeSettings

NIGHT = ["patient_id", "study_id"]  # what a night is known by
EPOCH_MINUTES = 0.5
MIN_SLEEP_HOURS = 0.25  # an index per hour of sleep means nothing on less
INDICES = {  # index of a night -> the task whose epochs it counts
    "apnea_hypopnea_index": "apnea_hypopnea",
    "desaturation_index": "desaturation",
    "arousal_index": "arousal",
}
INDEX_EVENTS = {  # … and the columns of studies.csv whose events it counts
    "apnea_hypopnea_index": ["n_apneas", "n_hypopneas"],
    "desaturation_index": ["n_desaturations"],
    "arousal_index": ["n_arousals"],
}


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
    settings: "ProbeSettings",
    index: store.ExampleIndex,
    tables: Mapping[str, Mapping[str, FeatureTable]],
    studies: pd.DataFrame | None,
    how: FitSettings,
) -> Results:
    """Fit, choose and judge every source of features.

    ``tables``: source ("encoder", "untrained", "handmade") -> name -> table; of several tables of
    a source the best on val stands for it. ``studies``: as of read_studies.
    """
    probes.check_index(index)
    labels = {task: probes.task_labels(index, task) for task in settings.tasks}
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
        source: probes.predict(
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
    nights = night_table(index, test, tasks, studies, per_epoch)
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
    fitted, n_bad = probes.fit_probes(table, train, targets, how)
    every = {(task, c): probe for task, by_c in fitted.items() for c, probe in by_c.items()}
    outputs = probes.predict(table, val, every, how)
    chosen = {}
    for task, by_strength in fitted.items():
        label_N = labels[task][val]
        known = label_N >= 0
        candidates = {
            c: (probe, probe.classes, outputs[task, c][known]) for c, probe in by_strength.items()
        }
        chosen[task] = probes.choose(task, table.name, label_N[known], candidates)
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
        chosen[task] = probes.choose(
            task, "prevalence", val[val >= 0], {None: (None, classes, flat_NK)}
        )
        logits[task] = np.tile(share_K, (len(test), 1))
    return chosen, logits


def _judge_task(
    settings: "ProbeSettings",
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


# ------------------------------------------------------------------ subgroups
def read_studies(batches_dir: Path) -> pd.DataFrame | None:
    """What studies.csv knows of each night, NaN where it does not; None without the file.

    Indexed by patient and study: age_days, sex, and for each of INDICES the number of its events.
    """
    path = Path(batches_dir) / "studies.csv"
    if not path.exists():
        return None
    table = pd.read_csv(path)
    if not set(NIGHT) <= set(table.columns):
        return None
    studies = table.dropna(subset=NIGHT).drop_duplicates(NIGHT).set_index(NIGHT)
    counts = studies.reindex(columns=list(store.EVENT_COUNTS.values()))
    for name, columns in INDEX_EVENTS.items():
        studies[name] = counts[columns].sum(axis=1, skipna=False)
    return studies.reindex(columns=["age_days", "sex", *INDICES])


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


# ------------------------------------------------------------------ whole nights
def events_per_epoch(index: store.ExampleIndex, studies: pd.DataFrame | None) -> dict[str, float]:
    """For each of INDICES the scored events in sleep for one epoch that holds such an event.

    From the scoring of the val nights: probes find epochs, and this turns their number into that
    of events. Left out where studies.csv does not count events, and where the nights are split in
    time, since then only parts of them are judged.
    """
    if studies is None or not index.patient_disjoint:
        return {}
    val = index.rows("val")
    nights = pd.MultiIndex.from_arrays([index.patient_ids[val], index.study_ids[val]])
    known = studies.reindex(nights.unique())
    ratios = {}
    for name, task in INDICES.items():
        n_events = known[name].dropna()
        counted = nights.isin(n_events.index)
        n_epochs = (probes.task_labels(index, task)[val][counted] == 1).sum()
        if n_epochs:
            ratios[name] = float(n_events.sum() / n_epochs)
    return ratios


def count_index_events(name: str, event_counts: Mapping[str, int]) -> int:
    """Events that the index ``name`` counts, of a night's events by kind."""
    return sum(event_counts[k] for k, c in store.EVENT_COUNTS.items() if c in INDEX_EVENTS[name])


def night_table(
    index: store.ExampleIndex,
    test: np.ndarray,
    tasks: Mapping[str, TaskResult],
    studies: pd.DataFrame | None = None,
    per_epoch: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One row for each test night: scored and predicted minutes of sleep, stages, and indices.

    Predicted counts are sums of recalibrated probabilities. An index is the number of scored
    events that begin in sleep, per hour of sleep; predicted, the number of epochs with such an
    event times ``per_epoch`` of :func:`events_per_epoch`. Where single events are not known it is
    the number of epochs on both sides, which lies near the clinical index but is not the same.
    Without the sleep task the scored sleep time serves both.
    """
    per_epoch = per_epoch or {}
    stage_N = probes.task_labels(index, "sleep")[test]
    sleep = tasks["sleep"].judged.get("encoder") if "sleep" in tasks else None
    rows = []
    night_N = index.nights()[test]
    for night in np.unique(night_N):
        here = np.flatnonzero((night_N == night) & (stage_N >= 0))
        if not len(here):
            continue
        scored_K = np.bincount(stage_N[here], minlength=5) * EPOCH_MINUTES
        row = {
            "patient_id": int(index.patient_ids[test[here[0]]]),
            "study_id": int(index.study_ids[test[here[0]]]),
            "epochs": len(here),
            "sleep_min_scored": scored_K[1:].sum(),
        }
        predicted_K = scored_K
        if sleep is not None:
            predicted_K = sleep.prob_NK[here].sum(0) * EPOCH_MINUTES
            row["sleep_min_predicted"] = predicted_K[1:].sum()
            for k, stage in enumerate(STAGES):
                row[f"{stage}_min_scored"] = scored_K[k]
                row[f"{stage}_min_predicted"] = predicted_K[k]
        hours = {"scored": scored_K[1:].sum() / 60, "predicted": predicted_K[1:].sum() / 60}
        for name, task in INDICES.items():
            judged = tasks[task].judged.get("encoder") if task in tasks else None
            if judged is None or hours["scored"] < MIN_SLEEP_HOURS:
                continue
            n_scored = tasks[task].label_N[here].sum()
            if name in per_epoch:
                n_scored = studies[name].get((row["patient_id"], row["study_id"]), np.nan)
            row[f"{name}_scored"] = n_scored / hours["scored"]
            n_predicted = judged.prob_NK[here, 1].sum() * per_epoch.get(name, 1.0)
            row[f"{name}_predicted"] = n_predicted / max(hours["predicted"], MIN_SLEEP_HOURS)
        rows.append(row)
    return pd.DataFrame(rows)


def night_agreement(nights: pd.DataFrame) -> dict[str, dict]:
    """Bland-Altman figures of every quantity that a night has both scored and predicted."""
    agreement = {}
    for column in nights.columns:
        name = column.removesuffix("_predicted")
        if column != name:
            both = nights[[column, f"{name}_scored"]].dropna()
            predicted, scored = both[column].to_numpy(), both[f"{name}_scored"].to_numpy()
            agreement[name] = metrics.bland_altman(predicted, scored)
    return agreement


# ------------------------------------------------------------------ for scoring a recording later
def probe_basis(results: Results, content: Mapping, encoder_sha256: str, seed: int) -> Basis:
    """What stands with the saved probes: facts about them and the density of their train features.

    ``content`` is that of metrics.json.
    """
    index = results.index
    density = fit_density(results.best_table, index.rows("train"), index.rows("val"), seed)
    return Basis(_probe_facts(results, content, encoder_sha256), density)


def _probe_facts(results: Results, content: Mapping, encoder_sha256: str) -> dict:
    """Whose encoder, which patients, figures on val and test."""
    index = results.index
    copied = ["checkpoint", "checkpoint_sha256", "checkpoint_simulated", "precision", "simulated"]
    copied += ["split_hash", "patient_disjoint"]
    return {
        "encoder_sha256": encoder_sha256,
        "n_features": results.best_table.n_features,
        **{name: content[name] for name in copied},
        "n_patients": {
            split: len(np.unique(index.patient_ids[index.rows(split)])) for split in store.SPLITS
        },
        "tasks": {
            task: {
                "calibration_slope": one.slope,
                "n_val": content["tasks"][task]["n_val"],
                "val": content["tasks"][task]["val"],
                "test": {
                    name: content["tasks"][task]["test"][name]
                    for name in (*_headline_figures(task), "ci95")
                },
            }
            for task, one in results.chosen.items()
        },
        "nights": content["nights"],
    }


def _headline_figures(task: str) -> tuple[str, str]:
    return ("kappa", "weighted_auroc") if task == "sleep" else ("auroc", "auprc")


# ------------------------------------------------------------------ metrics.json
def as_metrics(results: Results, facts: Mapping[str, object]) -> dict:
    """Content of metrics.json; ``facts`` (checkpoint, simulated, …) stand beside the tasks."""
    tasks = {task: _task_metrics(result) for task, result in results.tasks.items()}
    return {
        "tasks": tasks,
        **facts,
        "pooling": results.pooling,
        "pooling_scores_val": results.pooling_scores.astype(object)
        .where(results.pooling_scores.notna(), None)
        .to_dict("records"),
        "non_finite_train_rows": results.non_finite,
        "split_hash": results.index.split_hash,
        "patient_disjoint": results.index.patient_disjoint,
        "simulated": results.index.simulated,
        "nights": {
            "n": len(results.nights),
            "agreement": results.agreement,
            "events_per_epoch": results.events_per_epoch,
        },
    }


def _task_metrics(result: TaskResult) -> dict:
    n_classes = N_CLASSES[result.task]
    label_N = result.label_N[result.label_N >= 0]
    entry = {
        **result.counts,
        "n_test_patients": result.n_test_patients,
        "prevalence": prevalence(label_N, n_classes),
        "prevalence_of": "test epochs",
        "bootstrap_over": result.group,
        "n_bootstrap_groups": result.n_groups,
    }
    if result.reason:
        names = metrics.EVENT_FIGURES if n_classes == 2 else metrics.STAGE_FIGURES
        nothing = dict.fromkeys(names)
        empty = {**nothing, "ci95": nothing, "undefined": dict.fromkeys(names, result.reason)}
        return entry | {
            "reason": result.reason,
            "threshold": None,
            "val": empty,
            "test": empty,
            "baselines": {},
        }
    model = result.judged["encoder"]
    others = {name: one for name, one in result.judged.items() if name != "encoder"}
    compared = {
        name: _probe_metrics(one, n_classes)
        | {"difference": metrics.difference(model.test, one.test, result.n_groups)}
        for name, one in others.items()
    }
    context = compared.pop("context", None)
    if context is not None:  # what the neighbours add: context minus the single epoch
        both = (others["context"].test, model.test)
        context["difference"] = metrics.difference(*both, result.n_groups)
    entry |= {
        "threshold": model.chosen.threshold,
        "C": model.chosen.strength,
        "val": {k: v for k, v in model.val.as_dict().items() if k != "ci95"},
        "test": _test_figures(model, n_classes),
        "baselines": compared,
        "context": context,
        "subgroups": result.subgroups,
    }
    return entry


def _test_figures(one: Judged, n_classes: int) -> dict:
    figures = one.test.as_dict()
    figures |= {f"{name}_before_recalibration": value for name, value in one.before.items()}
    if n_classes > 2:
        figures["f1_by_stage"] = _f1_by_stage(one.test.confusion)
        figures["confusion_matrix"] = one.test.confusion.tolist()
        figures["confusion_matrix_order"] = list(STAGES)
    return figures


def _f1_by_stage(confusion_KK: np.ndarray) -> dict[str, float | None]:
    """F1 of each stage, None for a stage that test does not hold."""
    scored_K, called_K = confusion_KK.sum(1), confusion_KK.sum(0)
    return {
        stage: float(2 * confusion_KK[k, k] / (scored_K[k] + called_K[k])) if scored_K[k] else None
        for k, stage in enumerate(STAGES)
    }


def _probe_metrics(one: Judged, n_classes: int) -> dict:
    """A baseline's figures on test, flat, with what was chosen for it on val."""
    return {
        "features": one.chosen.features,
        "C": one.chosen.strength,
        "threshold": one.chosen.threshold,
        "val_score": one.chosen.val_score,
        **_test_figures(one, n_classes),
    }
