"""metrics.json and Results to the stand-alone report.html, its tables (CSV) and pictures (PNG)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedsleepmae import disk, metrics, store
from pedsleepmae.metrics import figure_names
from pedsleepmae.model import split_layer
from pedsleepmae.pages.page import (
    counted,
    data_cautions,
    few_patients_caution,
    in_digits,
    interval_in_words,
    page_template,
    write_pictures,
)
from pedsleepmae.pages.plots import NAMES, TUNED, WAYS
from pedsleepmae.probe.density import fit_density
from pedsleepmae.probe.evaluation import (
    JOINED,
    ProbeResult,
    Results,
    TaskResult,
    auroc_name,
    prevalence,
)
from pedsleepmae.probe.events import IOUS, EventResults
from pedsleepmae.probe.files import Basis
from pedsleepmae.probe.pictures import (
    draw_age,
    draw_agreement,
    draw_event,
    draw_failures,
    draw_label_curve,
    draw_night,
    draw_overview,
    draw_stages,
    draw_subgroups,
    quantity_in_words,
)
from pedsleepmae.probe.readout import tasks_by_features
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import N_CLASSES, STAGES, TASKS

N_NIGHTS = 3
N_FAILURES = 2  # of each kind: called although absent, missed although scored


# ------------------------------------------------------------------ the page
def write_report(
    output_dir: Path,
    results: Results,
    content: Mapping,
    single: EventResults | None = None,
    more: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write tables/*.csv, pictures/*.png and report.html, which holds both; its path.

    ``content`` is metrics.json, ``more`` further tables by name ("ages", "curve"). All pictures are
    inside the page, nothing is fetched.
    """
    tables = make_tables(results, content) | event_tables(single) | dict(more or {})
    for name, table in tables.items():
        disk.write_table(output_dir / "tables" / f"{name}.csv", table)
    figures = make_pictures(results, content, tables.get("ages"))
    pictures = write_pictures(output_dir / "pictures", figures)
    page = make_page(content, count(results.index), pictures)
    disk.write_text(output_dir / "report.html", page)
    return output_dir / "report.html"


def make_page(content: Mapping, counts: Mapping[str, Mapping], pictures: Mapping[str, str]) -> str:
    """report.html of metrics.json's ``content``, ``counts`` of each split and pictures, base64."""
    tasks = content["tasks"]
    events = [task for task in tasks if task != "sleep"]
    ranked = [task for task in events if tasks[task]["test"]["auroc"] is not None]
    cautions = data_cautions(content, "the val and test patients")
    if content["patient_disjoint"]:
        cautions += few_patients_caution(counts["test"]["patients"], "Test")
    return page_template("probe_report.html.j2").render(
        content=content,
        tasks=tasks,
        events=events,
        ranked_events=sorted(ranked, key=lambda task: -tasks[task]["test"]["auroc"]),
        task_names=TASKS,
        source_names=names_of(content),
        ways=WAYS,
        figures_of=lambda task: figure_names(N_CLASSES[task]),
        stages=STAGES,
        verdicts=lambda baseline: count_verdicts(tasks, baseline),
        cautions=cautions,
        pictures=pictures,
        pooling_scores=content["pooling_scores_val"],
        read_outs=features_read(tasks),
        quantity=quantity_in_words,
        counted=counted,
        counts=counts,
    )


def names_of(content: Mapping) -> dict[str, str]:
    """What the sources of features are called; the encoder's name says how it was trained."""
    return NAMES | {"encoder": TUNED[content.get("mode", "probe")]}


def count(index: store.ExampleIndex) -> dict[str, dict[str, int]]:
    """Epochs, patients and nights of each split."""
    counts, night_N = {}, index.nights()
    for split in SPLITS:
        here = index.rows(split)
        n_patients, n_nights = (len(np.unique(a[here])) for a in (index.patient_ids, night_N))
        counts[split] = {"epochs": len(here), "patients": n_patients, "nights": n_nights}
    return counts


def count_verdicts(tasks: Mapping[str, Mapping], baseline: str) -> dict[str, int]:
    """In how many tasks the encoder is better or worse than a baseline, or not told apart."""
    compared = {task: entry["baselines"].get(baseline) for task, entry in tasks.items()}
    gains = [it["difference"][auroc_name(task)] for task, it in compared.items() if it is not None]
    edges = [gain["ci95"] for gain in gains if gain["ci95"] is not None]
    better, worse = sum(low > 0 for low, _ in edges), sum(high < 0 for _, high in edges)
    unclear = len(edges) - better - worse
    return {"better": better, "worse": worse, "unclear": unclear, "tasks": len(edges)}


def text_table(content: Mapping) -> str:
    """The tasks in lines for a terminal."""
    rows = []
    baselines = ["untrained", "handmade"] + ["compared"] * ("compared_with" in content)
    baselines += ["frozen"] * (content.get("mode", "probe") != "probe")
    for task, entry in content["tasks"].items():
        test, name = entry["test"], auroc_name(task)
        second = ("kappa", "kappa") if task == "sleep" else ("auprc", "AUPRC")
        share = "–" if entry["prevalence"] is None else "{:.2%}"
        row = {
            "task": TASKS[task],
            "test epochs": f"{entry['n_test']:,}",
            "prevalence": "" if task == "sleep" else share.format(entry["prevalence"]),
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
    read = [
        f"{features}: {', '.join(TASKS[task] for task in own)}"
        for features, own in features_read(content["tasks"]).items()
    ]
    lines = [title, table, "features, chosen on val (@k: of block k)", *read]
    return "\n".join(lines) + event_text(content)


def features_read(tasks: Mapping[str, Mapping]) -> dict[str, list[str]]:
    """The encoder's features, chosen on val, with the tasks that read them."""
    fitted = {task: entry["features"] for task, entry in tasks.items() if "features" in entry}
    return tasks_by_features(fitted)


def event_text(content: Mapping) -> str:
    """Single events in lines for a terminal; "" where they were not looked for."""
    if not content.get("events"):
        return ""
    rows = []
    for kind, entry in content["events"]["kinds"].items():
        at = {source: own[f"iou_{IOUS[0]:g}"] for source, own in entry["sources"].items()}
        f1 = at["encoder"]["f1"], at["encoder"]["ci95"]["f1"]
        row = {"single events": TASKS[kind], "scored": f"{entry['n_true']:,}"}
        row[f"F1 at {IOUS[0]:g}"] = f"{in_digits(f1[0], 2)} {interval_in_words(f1[1], 2)}"
        row |= {NAMES[source]: in_digits(own["f1"], 2) for source, own in at.items()}
        del row[NAMES["encoder"]]
        rows.append(row)
    return "\n\n" + pd.DataFrame(rows).to_string(index=False, justify="left")


# ------------------------------------------------------------------ pictures and tables
def make_pictures(
    results: Results, content: Mapping, ages: pd.DataFrame | None = None
) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    names = names_of(content)
    if content.get("label_curve"):
        yield "label_curve", draw_label_curve(content["label_curve"])
    if ages is not None and len(ages):
        yield "age", draw_age(ages, content["age"], names)
    if results.fitted:
        yield "overview", draw_overview(results, names)
    for task in results.fitted:
        result, draw = results.tasks[task], draw_stages if task == "sleep" else draw_event
        if (result.label_N >= 0).any():
            yield f"{task}_curves", draw(result, names)
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
        sources |= {"context": entry["context"]} if entry.get("context") else {}
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
                    row |= {"value": values[name], **_edges(values["ci95"].get(name))}
                    subgroups.append(row)
    agreement = [{"quantity": name, **values} for name, values in results.agreement.items()]
    tables = {
        "figures": pd.DataFrame(figures),
        "differences": pd.DataFrame(differences),
        "poolings_val": results.pooling_scores,
        "nights": results.nights,
        "agreement": pd.DataFrame(agreement),
    }
    if content.get("montages"):
        tables["montages"] = pd.DataFrame(content["montages"])
    if subgroups:
        tables["subgroups"] = pd.DataFrame(subgroups)
    confusion = content["tasks"].get("sleep", {}).get("test", {}).get("confusion_matrix")
    if confusion is not None:
        tables["confusion"] = pd.DataFrame(confusion, columns=STAGES).assign(scored=STAGES)
    return tables


def event_tables(single: EventResults | None) -> dict[str, pd.DataFrame]:
    """Single events for a spreadsheet: figures by kind and source, indices by night."""
    if single is None:
        return {}
    rows = []
    for kind, entry in single.figures["kinds"].items():
        for source, own in entry["sources"].items():
            for iou in IOUS:
                values = own[f"iou_{iou:g}"]
                for name, ci95 in values["ci95"].items():
                    row = {"kind": kind, "source": source, "least_iou": iou, "figure": name}
                    rows.append(row | {"value": values[name]} | _edges(ci95))
    return {"events": pd.DataFrame(rows), "event_nights": single.nights}


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
    tuning = content.get("finetuning") or {}
    facts["checkpoint"] = tuning.get("finetuned", content["checkpoint"])
    facts["encoder_sha256"] = encoder_sha256
    facts["adapter_sha256"] = tuning.get("adapter_sha256")  # of LoRA: beside that encoder
    facts["scaling"] = index.scaling
    facts["n_patients"] = {split: counts["patients"] for split, counts in count(index).items()}
    facts["tasks"] = {}
    for task, result in results.fitted.items():
        names = (auroc_name(task), "kappa" if task == "sleep" else "auprc", "ci95")
        facts["tasks"][task] = {
            "calibration_slope": result.probe.slope,
            "n_val": tasks[task]["n_val"],
            "val": tasks[task]["val"],
            "test": {name: tasks[task]["test"][name] for name in names},
        }
    facts["events"] = content.get("events")
    # As the encoder gives them: within a night standardised, no night would lie far away.
    (read_out,) = results.best_table.read_outs
    density = fit_density(read_out.table, index.rows("train"), index.rows("val"), seed)
    return Basis(facts, density, read_out.table.name)


def as_metrics(results: Results, facts: Mapping[str, object]) -> dict:
    """Content of metrics.json; ``facts`` (checkpoint, simulated, …) stand beside the tasks."""
    tasks = {task: _task_metrics(result) for task, result in results.tasks.items()}
    scores = results.pooling_scores
    (read_out,) = results.best_table.read_outs
    pooling, layer = split_layer(read_out.table.name)
    return {
        "tasks": tasks,
        **facts,
        "pooling": pooling,  # of the best mean over the tasks; each task tells its own features
        "layer": layer,  # none: the last block
        "normalise": read_out.normalise,
        "montages": [],
        "pooling_scores_val": scores.astype(object).where(scores.notna(), None).to_dict("records"),
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
            # What the encoder gains over a baseline; what the neighbours add to a single epoch, and
            # the encoder to hand-made features.
            pair = encoder.test, found.test
            if source in ("context", JOINED):
                less = encoder if source == "context" else result.by_source["handmade"]
                pair = found.test, less.test
            compared[source] = {
                "features": found.features,
                "C": found.probe.strength,
                "threshold": found.probe.threshold,
                "val_score": found.val_score,
                **_test_figures(found, n_classes),
                "difference": metrics.difference(*pair, result.n_groups),
            }
    return entry | {
        "features": encoder.features,
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
        confusion_KK = found.test.confusion
        scored_K, called_K = confusion_KK.sum(1), confusion_KK.sum(0)
        f1_K = 2 * confusion_KK.diagonal() / np.maximum(scored_K + called_K, 1)
        known = zip(STAGES, f1_K.tolist(), scored_K > 0, strict=True)
        figures["f1_by_stage"] = {stage: f1 if here else None for stage, f1, here in known}
        figures["confusion_matrix"] = confusion_KK.tolist()
        figures["confusion_matrix_order"] = list(STAGES)
    return figures
