"""metrics.json and Results to the stand-alone report.html, its tables (CSV) and pictures (PNG)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedsleepmae import metrics, store
from pedsleepmae.metrics import figure_names
from pedsleepmae.pages.page import (
    counted,
    data_cautions,
    few_patients_caution,
    in_digits,
    interval_in_words,
    page_template,
    write_pictures,
)
from pedsleepmae.pages.plots import NAMES
from pedsleepmae.probe.density import fit_density
from pedsleepmae.probe.evaluation import (
    ProbeResult,
    Results,
    TaskResult,
    auroc_name,
    prevalence,
)
from pedsleepmae.probe.files import Basis
from pedsleepmae.probe.pictures import (
    draw_agreement,
    draw_event,
    draw_failures,
    draw_night,
    draw_overview,
    draw_stages,
    draw_subgroups,
    quantity_in_words,
)
from pedsleepmae.splits import SPLITS
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


# ------------------------------------------------------------------ the page
def write_report(output_dir: Path, results: Results, content: Mapping) -> Path:
    """Write tables/*.csv, pictures/*.png and report.html, which holds both; its path.

    ``content`` is metrics.json. All pictures are inside the page, nothing is fetched.
    """
    for name, table in make_tables(results, content).items():
        store.write_table(output_dir / "tables" / f"{name}.csv", table)
    page = page_template(TEMPLATE).render(
        content=content,
        tasks=content["tasks"],
        events=[task for task in content["tasks"] if task != "sleep"],
        task_names=TASKS,
        source_names=NAMES,
        in_words=lambda name: FIGURE_NAMES.get(name, name.replace("_", " ")),
        figures_of=lambda task: figure_names(N_CLASSES[task]),
        stages=STAGES,
        headlines=headlines(content),
        cautions=cautions(results, content),
        pictures=write_pictures(output_dir / "pictures", make_pictures(results)),
        pooling_scores=content["pooling_scores_val"],
        quantity=quantity_in_words,
        counted=counted,
        counts=count(results.index),
    )
    store.write_text(output_dir / "report.html", page)
    return output_dir / "report.html"


def count(index: store.ExampleIndex) -> dict[str, dict[str, int]]:
    """Epochs, patients and nights of each split."""
    rows = {split: index.rows(split) for split in SPLITS}
    return {
        split: {
            "epochs": len(here),
            "patients": len(np.unique(index.patient_ids[here])),
            "nights": len(np.unique(index.nights()[here])),
        }
        for split, here in rows.items()
    }


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
    """Whether the encoder is told apart from a baseline; None where there is no interval."""
    if baseline not in entry["baselines"]:
        return None
    edges = entry["baselines"][baseline]["difference"][auroc_name(task)]["ci95"]
    if edges is None:
        return None
    return "better" if edges[0] > 0 else "worse" if edges[1] < 0 else "unclear"


def cautions(results: Results, content: Mapping) -> list[str]:
    """What must be known before a figure is quoted, gravest first."""
    lines = data_cautions(content, "the val and test patients")
    if content["patient_disjoint"]:
        n_patients = len(np.unique(results.index.patient_ids[results.test]))
        lines += few_patients_caution(n_patients, "Test")
    groups = {task.group for task in results.tasks.values()} - {"patient"}
    if groups:
        lines.append(
            f"For want of patients intervals are resampled over {groups.pop()}s of the night; they "
            "say nothing about other people."
        )
    for task, entry in content["tasks"].items():
        if "reason" in entry:
            lines.append(f"No probe for {TASKS[task]}: {entry['reason']}.")
    for name, n in content["non_finite_train_rows"].items():
        if n and not name.startswith("handmade"):  # there, NaN: channels that were not recorded
            lines.append(f"{n} train epochs have features that are not finite ({name}).")
    return lines


def text_table(content: Mapping) -> str:
    """The tasks in lines for a terminal."""
    rows = []
    baselines = ["untrained", "handmade"] + ["compared"] * ("compared_with" in content)
    for task, entry in content["tasks"].items():
        test, name = entry["test"], auroc_name(task)
        second = ("kappa", "kappa") if task == "sleep" else ("auprc", "AUPRC")
        row = {
            "task": TASKS[task],
            "test epochs": f"{entry['n_test']:,}",
            "prevalence": "" if task == "sleep" else in_percent(entry["prevalence"]),
            "AUROC": f"{in_digits(test[name])} {interval_in_words(test['ci95'][name])}",
            "AUPRC or kappa": f"{in_digits(test[second[0]])} {second[1]}",
            "F1": in_digits(test["weighted_f1" if task == "sleep" else "f1"]),
        }
        for baseline in baselines:
            figures = entry["baselines"].get(baseline)
            row[f"{baseline} AUROC"] = in_digits(figures[name]) if figures else "–"
        rows.append(row)
    title = "simulated data" if content["simulated"] else "test"
    title += "" if content["patient_disjoint"] else ", split in time (patient_disjoint: false)"
    table = pd.DataFrame(rows).to_string(index=False, justify="left")
    return f"{title}, pooling {content['pooling']}\n{table}"


def in_percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


# ------------------------------------------------------------------ pictures and tables
def make_pictures(results: Results) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    if results.fitted:
        yield "overview", draw_overview(results)
    for task in results.fitted:
        result, draw = results.tasks[task], draw_stages if task == "sleep" else draw_event
        if (result.label_N >= 0).any():
            yield f"{task}_curves", draw(result)
        failures = find_failures(results, result)
        if failures:
            yield f"{task}_failures", draw_failures(results.index, failures)
        if result.subgroups:
            yield f"{task}_subgroups", draw_subgroups(result)
    if results.fitted:
        part = "" if results.index.patient_disjoint else ", its test blocks"
        for number, night in enumerate(longest_nights(results), start=1):
            yield f"night_{number}", draw_night(results, night, f"night {number}{part}")
    if any(figures["n"] for figures in results.agreement.values()):
        yield "agreement", draw_agreement(results)


def find_failures(results: Results, result: TaskResult) -> list[tuple[int, str]]:
    """(position, caption) of the test epochs where the probe is surest and wrong."""
    found, label_N = result.by_source["encoder"], result.label_N
    wrong_N = (label_N >= 0) & (found.decided_N != label_N)
    if result.task == "sleep":
        called_N = found.decided_N
        sure_N = found.prob_NK[np.arange(len(label_N)), called_N]
        failures = [
            (i, f"scored {STAGES[label_N[i]]}, called {STAGES[called_N[i]]} ({sure_N[i]:.0%})")
            for i in _surest(wrong_N, sure_N, 2 * N_FAILURES)
        ]
    else:
        prob_N = found.prob_NK[:, 1]
        called = _surest(wrong_N & (label_N == 0), prob_N, N_FAILURES)
        missed = _surest(wrong_N & (label_N == 1), -prob_N, N_FAILURES)
        failures = [(i, f"called, not scored ({prob_N[i]:.0%})") for i in called]
        failures += [(i, f"scored, missed ({prob_N[i]:.1%})") for i in missed]
    return [(int(results.test[i]), caption) for i, caption in failures]


def _surest(candidates: np.ndarray, sure_N: np.ndarray, n: int) -> list[int]:
    here = np.flatnonzero(candidates)
    return here[np.argsort(-sure_N[here], kind="stable")[:n]].tolist()


def longest_nights(results: Results) -> list[int]:
    """The test nights with most epochs (numbers of index.nights()), one of each patient."""
    index, test = results.index, results.test
    nights, first, counts = np.unique(index.nights()[test], return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    of_patient = np.unique(index.patient_ids[test[first[order]]], return_index=True)[1]
    return nights[order[np.sort(of_patient)[:N_NIGHTS]]].tolist()


def make_tables(results: Results, content: Mapping) -> dict[str, pd.DataFrame]:
    """The tables of the report for a spreadsheet; long form where sources are compared."""
    figures, differences, subgroups = [], [], []
    for task, entry in content["tasks"].items():
        sources = {"encoder": entry["test"], **entry["baselines"]}
        if entry.get("context"):
            sources["context"] = entry["context"]
        names = figure_names(N_CLASSES[task])
        for source, values in sources.items():
            for name in names:
                row = {"task": task, "source": source, "figure": name, "value": values[name]}
                row |= _edges(values["ci95"].get(name))
                figures.append(row | {"undefined": values["undefined"].get(name)})
            against = "single epoch" if source == "context" else source
            for name, gap in values.get("difference", {}).items():
                row = {"task": task, "against": against, "figure": name}
                differences.append(row | {"difference": gap["value"]} | _edges(gap["ci95"]))
        for kind, groups in entry.get("subgroups", {}).items():
            for label, values in groups.items():
                for name in names:
                    row = {"task": task, "by": kind, "group": label, "figure": name}
                    row |= {"n_epochs": values["n"], "n_patients": values["n_patients"]}
                    subgroups.append(
                        row | {"value": values[name]} | _edges(values["ci95"].get(name))
                    )
    agreement = [{"quantity": name, **values} for name, values in results.agreement.items()]
    tables = {
        "figures": pd.DataFrame(figures),
        "differences": pd.DataFrame(differences),
        "poolings_val": results.pooling_scores,
        "nights": results.nights,
        "agreement": pd.DataFrame(agreement),
    }
    if subgroups:
        tables["subgroups"] = pd.DataFrame(subgroups)
    confusion = content["tasks"].get("sleep", {}).get("test", {}).get("confusion_matrix")
    if confusion is not None:
        tables["confusion"] = pd.DataFrame(confusion, columns=STAGES).assign(scored=STAGES)
    return tables


def _edges(ci95: list[float] | None) -> dict[str, float | None]:
    low, high = ci95 or (None, None)
    return {"ci95_low": low, "ci95_high": high}


# ------------------------------------------------------------------ probes.npz and metrics.json
def probe_basis(results: Results, content: Mapping, encoder_sha256: str, seed: int) -> Basis:
    """What stands with the saved probes: facts about them and the density of their train features.

    The facts (of ``content``, that of metrics.json): whose encoder, which patients, figures.
    """
    index, tasks = results.index, content["tasks"]
    copied = ["checkpoint", "checkpoint_sha256", "checkpoint_simulated", "precision", "simulated"]
    copied += ["split_hash", "patient_disjoint", "nights"]
    facts = {name: content[name] for name in copied}
    facts["encoder_sha256"] = encoder_sha256
    facts["n_features"] = results.best_table.n_features
    facts["n_patients"] = {split: counts["patients"] for split, counts in count(index).items()}
    facts["tasks"] = {
        task: {
            "calibration_slope": result.probe.slope,
            "n_val": tasks[task]["n_val"],
            "val": tasks[task]["val"],
            "test": {
                name: tasks[task]["test"][name] for name in (*_headline_figures(task), "ci95")
            },
        }
        for task, result in results.fitted.items()
    }
    density = fit_density(results.best_table, index.rows("train"), index.rows("val"), seed)
    return Basis(facts, density)


def _headline_figures(task: str) -> tuple[str, str]:
    return auroc_name(task), "kappa" if task == "sleep" else "auprc"


def as_metrics(results: Results, facts: Mapping[str, object]) -> dict:
    """Content of metrics.json; ``facts`` (checkpoint, simulated, …) stand beside the tasks."""
    tasks = {task: _task_metrics(result) for task, result in results.tasks.items()}
    return {
        "tasks": tasks,
        **facts,
        "pooling": results.best_table.name,
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
        "prevalence": prevalence(label_N, n_classes),
        "prevalence_of": "test epochs",
        "bootstrap_over": result.group,
        "n_bootstrap_groups": result.n_groups,
    }
    if result.reason:
        names = figure_names(n_classes)
        nothing, why = dict.fromkeys(names), dict.fromkeys(names, result.reason)
        empty = {**nothing, "ci95": nothing, "undefined": why}
        entry |= {"reason": result.reason, "threshold": None, "val": empty, "test": empty}
        return entry | {"baselines": {}}
    encoder, compared = result.by_source["encoder"], {}
    for source, found in result.by_source.items():
        if source != "encoder":
            # What the encoder gains over a baseline; what the neighbours add to a single epoch.
            pair = (encoder.test, found.test) if source != "context" else (found.test, encoder.test)
            compared[source] = {
                "features": found.features,
                "C": found.probe.strength,
                "threshold": found.probe.threshold,
                "val_score": found.val_score,
                **_test_figures(found, n_classes),
                "difference": metrics.difference(*pair, result.n_groups),
            }
    return entry | {
        "threshold": encoder.probe.threshold,
        "C": encoder.probe.strength,
        "val": {k: v for k, v in encoder.val.as_dict().items() if k != "ci95"},
        "test": _test_figures(encoder, n_classes),
        "context": compared.pop("context", None),
        "baselines": compared,
        "subgroups": result.subgroups,
    }


def _test_figures(found: ProbeResult, n_classes: int) -> dict:
    figures = found.test.as_dict()
    figures |= {f"{name}_before_recalibration": value for name, value in found.before.items()}
    if n_classes > 2:
        figures["f1_by_stage"] = _f1_by_stage(found.test.confusion)
        figures["confusion_matrix"] = found.test.confusion.tolist()
        figures["confusion_matrix_order"] = list(STAGES)
    return figures


def _f1_by_stage(confusion_KK: np.ndarray) -> dict[str, float | None]:
    """F1 of each stage, None for a stage that test does not hold."""
    scored_K, called_K = confusion_KK.sum(1), confusion_KK.sum(0)
    return {
        stage: float(2 * confusion_KK[k, k] / (scored_K[k] + called_K[k])) if scored_K[k] else None
        for k, stage in enumerate(STAGES)
    }
