"""metrics.json and Results to the stand-alone report.html, its tables (CSV) and pictures (PNG)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedsleepmae import metrics, splits, store
from pedsleepmae.metrics import EVENT_FIGURES, STAGE_FIGURES
from pedsleepmae.pages.page import (
    counted,
    in_digits,
    interval_in_words,
    page_template,
    write_pictures,
)
from pedsleepmae.pages.plots import NAMES
from pedsleepmae.probe.density import fit_density
from pedsleepmae.probe.evaluation import Judged, Results, TaskResult, prevalence
from pedsleepmae.probe.files import Basis
from pedsleepmae.probe.maps import EmbeddingMap, map_embeddings
from pedsleepmae.probe.pictures import (
    draw_agreement,
    draw_event,
    draw_failures,
    draw_hypnogram,
    draw_map,
    draw_overview,
    draw_stages,
    draw_subgroups,
    quantity_in_words,
)
from pedsleepmae.tasks import N_CLASSES, STAGES, TASKS

TEMPLATE = "probe_report.html.j2"

FIGURE_NAMES = {
    "auroc": "AUROC",
    "weighted_auroc": "weighted AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "kappa": "Cohen's kappa",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}

N_NIGHTS = 3
N_FAILURES = 2  # of each kind: called although absent, missed although scored
FEW_PATIENTS = 20


# ------------------------------------------------------------------ the page
def write_report(
    output_dir: Path, results: Results, content: Mapping, wanted_map: str, seed: int
) -> Path:
    """Write tables/*.csv, pictures/*.png and report.html, which holds both; its path.

    ``content`` is metrics.json; ``wanted_map`` "auto", "umap" or "pca".
    """
    output_dir = Path(output_dir)
    space = map_embeddings(results.best_table, results.index, results.test, wanted_map, seed)
    for name, table in make_tables(results, content, space).items():
        store.write_table(output_dir / "tables" / f"{name}.csv", table)
    pictures = write_pictures(output_dir / "pictures", make_pictures(results, space))
    page = render(results, content, space, pictures)
    with store.write_whole(output_dir / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output_dir / "report.html"


def render(
    results: Results, content: Mapping, space: EmbeddingMap, pictures: Mapping[str, str]
) -> str:
    """The page, with all pictures inside and nothing fetched from anywhere."""
    index = results.index
    return page_template(TEMPLATE).render(
        content=content,
        tasks=content["tasks"],
        events=[task for task in content["tasks"] if task != "sleep"],
        task_names=TASKS,
        source_names=NAMES,
        figure_names=lambda name: FIGURE_NAMES.get(name, name.replace("_", " ")),
        event_figures=EVENT_FIGURES,
        stage_figures=STAGE_FIGURES,
        stages=STAGES,
        headlines=headlines(content),
        cautions=cautions(results, content),
        pictures=pictures,
        space=space,
        pooling_scores=content["pooling_scores_val"],
        quantity=quantity_in_words,
        counted=counted,
        counts={
            split: {
                "epochs": len(index.rows(split)),
                "patients": len(np.unique(index.patient_ids[index.rows(split)])),
                "nights": len(np.unique(index.nights()[index.rows(split)])),
            }
            for split in ("train", "val", "test")
        },
    )


def headlines(content: Mapping) -> list[str]:
    """What a clinician wants to know first, one sentence each."""
    tasks = {task: entry for task, entry in content["tasks"].items() if "reason" not in entry}
    lines = []
    if "sleep" in tasks:
        test = tasks["sleep"]["test"]
        lines.append(
            f"Sleep stages agree with the scorer at Cohen's kappa {in_digits(test['kappa'], 2)} "
            f"{interval_in_words(test['ci95']['kappa'], 2)}; "
            f"{test['accuracy']:.0%} of the epochs get the scored stage."
        )
    aurocs = {
        task: entry["test"]["auroc"]
        for task, entry in tasks.items()
        if task != "sleep" and entry["test"]["auroc"] is not None
    }
    if aurocs:
        best, worst = max(aurocs, key=aurocs.get), min(aurocs, key=aurocs.get)
        line = f"Of the events, {TASKS[best]} is recognised best (AUROC {aurocs[best]:.2f}"
        line += f", precision-recall area {in_digits(tasks[best]['test']['auprc'], 2)}"
        line += f" at {tasks[best]['prevalence']:.1%} prevalence)"
        if best != worst:
            line += f", {TASKS[worst]} least (AUROC {aurocs[worst]:.2f})"
        lines.append(line + ".")
    for baseline, words in (
        ("untrained", "the same encoder untrained"),
        ("handmade", "hand-made features"),
        ("compared", f"the checkpoint {Path(content.get('compared_with') or '').name}"),
    ):
        verdicts = [_verdict(task, entry, baseline) for task, entry in tasks.items()]
        verdicts = [verdict for verdict in verdicts if verdict is not None]
        if verdicts:
            better, worse = verdicts.count("better"), verdicts.count("worse")
            lines.append(
                f"Against {words}: better in {better}, worse in {worse}, not told apart in "
                f"{len(verdicts) - better - worse} of {len(verdicts)} tasks (95 % interval of the "
                "paired AUROC difference)."
            )
    return lines


def _verdict(task: str, entry: Mapping, baseline: str) -> str | None:
    if baseline not in entry["baselines"]:
        return None
    name = "weighted_auroc" if task == "sleep" else "auroc"
    edges = entry["baselines"][baseline]["difference"][name]["ci95"]
    if edges is None:
        return None
    return "better" if edges[0] > 0 else "worse" if edges[1] < 0 else "unclear"


def cautions(results: Results, content: Mapping) -> list[str]:
    """What must be known before a figure is quoted, gravest first."""
    lines = []
    if content["simulated"]:
        lines.append(
            "The recordings are simulated: the figures show that the machinery works, not how "
            "well it does on children."
        )
    elif content["checkpoint_simulated"]:
        lines.append("The encoder was pretrained on simulated recordings.")
    if not content["patient_disjoint"]:
        lines.append(
            "The nights are split in time: train, val and test hold the same people, which "
            "flatters every fitted row."
        )
    seen = content["seen_patients"]
    if seen is None:
        lines.append(
            "Which patients the checkpoint saw in pretraining is unknown; some may stand in test."
        )
    elif seen and content["patient_disjoint"]:
        lines.append(
            f"Pretraining saw {seen} of the val and test patients (asked for with "
            "allow_seen_patients); their signals, not their labels, have been learnt from."
        )
    n_patients = len(np.unique(results.index.patient_ids[results.test]))
    if n_patients < FEW_PATIENTS and content["patient_disjoint"]:
        lines.append(
            f"Test holds {counted(n_patients, 'patient')}, so intervals are wide and, where a "
            "class occurs in one of them alone, missing."
        )
    groups = {task.group for task in results.tasks.values()} - {"patient"}
    if groups:
        lines.append(
            f"For want of patients intervals are resampled over {groups.pop()}s of the night; they "
            "say nothing about other people."
        )
    for task, entry in content["tasks"].items():
        if "reason" in entry:
            lines.append(f"No probe for {TASKS[task]}: {entry['reason']}.")
    bad = {name: n for name, n in content["non_finite_train_rows"].items() if n}
    for name, n in bad.items():
        if not name.startswith("handmade"):  # there, NaN marks channels that were not recorded
            lines.append(f"{n} train epochs have features that are not finite ({name}).")
    return lines


def text_table(content: Mapping) -> str:
    """The tasks in lines for a terminal."""
    rows = []
    baselines = ["untrained", "handmade"] + ["compared"] * ("compared_with" in content)
    for task, entry in content["tasks"].items():
        test = entry["test"]
        name = "weighted_auroc" if task == "sleep" else "auroc"
        second = ("kappa", "kappa") if task == "sleep" else ("auprc", "AUPRC")
        row = {
            "task": TASKS[task],
            "test epochs": f"{entry['n_test']:,}",
            "prevalence": "" if task == "sleep" else _percent(entry["prevalence"]),
            "AUROC": f"{in_digits(test[name])} {interval_in_words(test['ci95'][name])}",
            "AUPRC or kappa": f"{in_digits(test[second[0]])} {second[1]}",
            "F1": in_digits(test["weighted_f1" if task == "sleep" else "f1"]),
        }
        for baseline in baselines:
            one = entry["baselines"].get(baseline)
            row[f"{baseline} AUROC"] = in_digits(one[name]) if one else "–"
        rows.append(row)
    title = "simulated data" if content["simulated"] else "test"
    title += "" if content["patient_disjoint"] else ", split in time (patient_disjoint: false)"
    table = pd.DataFrame(rows).to_string(index=False, justify="left")
    return f"{title}, pooling {content['pooling']}\n{table}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


# ------------------------------------------------------------------ pictures and tables
def make_pictures(results: Results, space: EmbeddingMap) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    if results.chosen:
        yield "overview", draw_overview(results)
    for task, result in results.tasks.items():
        if "encoder" not in result.judged:
            continue
        draw = draw_stages if task == "sleep" else draw_event
        if (result.label_N >= 0).any():
            yield f"{task}_curves", draw(result)
        failures = find_failures(results, result)
        if failures:
            yield f"{task}_failures", draw_failures(results, failures)
        if result.subgroups:
            yield f"{task}_subgroups", draw_subgroups(result)
    if results.chosen:
        part = "" if results.index.patient_disjoint else ", its test blocks"
        for number, night in enumerate(longest_nights(results), start=1):
            title = f"night {number}{part}"
            yield f"night_{number}", draw_hypnogram(results, night, title)
    if any(figures["n"] for figures in results.agreement.values()):
        yield "agreement", draw_agreement(results)
    yield "map", draw_map(space)


def find_failures(results: Results, result: TaskResult) -> list[tuple[int, str]]:
    """(position, caption) of the test epochs where the probe is surest and wrong."""
    one, label_N = result.judged["encoder"], result.label_N
    wrong = (label_N >= 0) & (one.decided_N != label_N)
    if result.task == "sleep":
        sure_N = one.prob_NK[np.arange(len(label_N)), one.decided_N]
        found = _surest(wrong, sure_N, 2 * N_FAILURES)
        captions = [
            f"scored {STAGES[label_N[i]]}, called {STAGES[one.decided_N[i]]} ({sure_N[i]:.0%})"
            for i in found
        ]
    else:
        prob_N = one.prob_NK[:, 1]
        called = _surest(wrong & (label_N == 0), prob_N, N_FAILURES)
        missed = _surest(wrong & (label_N == 1), -prob_N, N_FAILURES)
        found = [*called, *missed]
        captions = [f"called, not scored ({prob_N[i]:.0%})" for i in called]
        captions += [f"scored, missed ({prob_N[i]:.1%})" for i in missed]
    return [(int(results.test[i]), text) for i, text in zip(found, captions, strict=True)]


def _surest(candidates: np.ndarray, sure_N: np.ndarray, n: int) -> list[int]:
    here = np.flatnonzero(candidates)
    return here[np.argsort(-sure_N[here], kind="stable")[:n]].tolist()


def longest_nights(results: Results) -> list[int]:
    """The test nights with most epochs (numbers of index.nights()), one of each patient."""
    index, test = results.index, results.test
    nights, first, counts = np.unique(index.nights()[test], return_index=True, return_counts=True)
    order, taken, patients = np.argsort(-counts, kind="stable"), [], set()
    for i in order:
        patient = int(index.patient_ids[test[first[i]]])
        if patient not in patients and len(taken) < N_NIGHTS:
            taken.append(int(nights[i]))
            patients.add(patient)
    return taken


def make_tables(results: Results, content: Mapping, space: EmbeddingMap) -> dict[str, pd.DataFrame]:
    """The tables of the report for a spreadsheet; long form where sources are compared."""
    figures, differences, subgroups = [], [], []
    for task, entry in content["tasks"].items():
        sources = {"encoder": entry["test"], **entry["baselines"]}
        if entry.get("context"):
            sources["context"] = entry["context"]
        names = STAGE_FIGURES if task == "sleep" else EVENT_FIGURES
        for source, values in sources.items():
            for name in names:
                low, high = values["ci95"].get(name) or (None, None)
                figures.append(
                    {
                        "task": task,
                        "source": source,
                        "figure": name,
                        "value": values[name],
                        "ci95_low": low,
                        "ci95_high": high,
                        "undefined": values["undefined"].get(name),
                    }
                )
            for name, gap in values.get("difference", {}).items():
                low, high = gap["ci95"] or (None, None)
                differences.append(
                    {
                        "task": task,
                        "against": "single epoch" if source == "context" else source,
                        "figure": name,
                        "difference": gap["value"],
                        "ci95_low": low,
                        "ci95_high": high,
                    }
                )
        for kind, groups in entry.get("subgroups", {}).items():
            for label, values in groups.items():
                for name in names:
                    low, high = values["ci95"].get(name) or (None, None)
                    row = {"task": task, "by": kind, "group": label, "figure": name}
                    row |= {"n_epochs": values["n"], "n_patients": values["n_patients"]}
                    row |= {"value": values[name], "ci95_low": low, "ci95_high": high}
                    subgroups.append(row)
    tables = {
        "figures": pd.DataFrame(figures),
        "differences": pd.DataFrame(differences),
        "poolings_val": results.pooling_scores,
        "nights": results.nights,
        "agreement": pd.DataFrame(
            [{"quantity": name, **values} for name, values in results.agreement.items()]
        ),
        "separation": pd.DataFrame(
            [{"labels": name, **values} for name, values in space.separation.items()]
        ),
    }
    if subgroups:
        tables["subgroups"] = pd.DataFrame(subgroups)
    confusion = content["tasks"].get("sleep", {}).get("test", {}).get("confusion_matrix")
    if confusion is not None:
        tables["confusion"] = pd.DataFrame(confusion, columns=STAGES).assign(scored=STAGES)
    return tables


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
            split: len(np.unique(index.patient_ids[index.rows(split)])) for split in splits.SPLITS
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
