"""The tables of README, docs/results.md and the checkpoint's card, from what script 3 wrote.

    python benchmarks/readme_tables.py results/m15p8_simulated results/m15p8_events

Prints, in Markdown, for each folder's metrics.json: the tasks, the montages, the single events and
their indices, as far as they are there.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae.channels import MONTAGES, N_CHANNELS
from pedsleepmae.pages.page import in_digits, interval_in_words, signed_in_words
from pedsleepmae.pages.plots import NAMES
from pedsleepmae.probe.evaluation import JOINED, auroc_name
from pedsleepmae.score.night import missing_sensors
from pedsleepmae.tasks import TASKS

REFERENCES = ("epoch_labels", "chance")  # of single events: no features of an encoder's rival


def main(folders: Iterable[Path]) -> None:
    for folder in folders:
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        layer = content["layer"] or "the last"
        print(f"\n{folder.name}: {content['pooling']}, block {layer}, {content['normalise']}\n")
        print(as_markdown(task_rows(content)))
        if content["montages"]:
            print(f"\n{as_markdown(montage_rows(content))}")
        if content["events"]:
            print(f"\n{as_markdown(event_rows(content))}")
            print(f"\n{as_markdown(index_rows(content))}")
            if content["events"]["montages"]:
                print(f"\n{as_markdown(event_montage_rows(content))}")


def as_markdown(rows: Iterable[Mapping[str, str]]) -> str:
    table = pd.DataFrame(rows).fillna("")
    lines = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(value: float | None, ci95: list | None, digits: int = 3) -> str:
    return f"{in_digits(value, digits)} {interval_in_words(ci95, digits)}".rstrip()


def task_rows(content: Mapping) -> list[dict[str, str]]:
    """AUROC of each task, and what the encoder gains over each baseline; F1 and its neighbours."""
    rows = []
    for task, entry in content["tasks"].items():
        test, name, sleep = entry["test"], auroc_name(task), task == "sleep"
        second = f"kappa {in_digits(test['kappa'])}" if sleep else in_digits(test["auprc"])
        row = {
            "task (simulated)": TASKS[task],
            "prevalence": "five stages" if sleep else f"{entry['prevalence']:.1%}",
            "AUROC [95 %]": with_interval(test[name], test["ci95"][name]),
            "AUPRC": second,
            "F1": in_digits(test["weighted_f1" if sleep else "f1"]),
        }
        for source, baseline in entry["baselines"].items():
            if source == "prevalence":  # always 0.5
                continue
            gain = signed_in_words(baseline["difference"][name])
            over = "gain over hand-made" if source == JOINED else "encoder over it"
            row[f"{NAMES[source]}: AUROC, {over}"] = f"{in_digits(baseline[name])}, {gain}"
        rows.append(row)
    return rows


def montage_rows(content: Mapping) -> list[dict[str, str]]:
    """AUROC by montage: probes of all channels / those that val chose for it; kappa of stages."""
    rows: dict[str, dict[str, str]] = {}
    for found in content["montages"]:
        row = rows.setdefault(found["montage"], {"montage (simulated)": found["montage"]})
        columns = {TASKS[found["task"]]: found["auroc"]}
        if found["task"] == "sleep":
            columns["kappa of sleep"] = found["kappa"]
        for column, value in columns.items():
            before = f"{row[column]} / " if column in row else ""
            row[column] = before + in_digits(value)
    return list(rows.values())


def event_rows(content: Mapping) -> list[dict[str, str]]:
    """Single events: F1 and its neighbours, beside every other source."""
    rows = []
    for kind, entry in content["events"]["kinds"].items():
        sources = dict(entry["sources"])
        own = sources.pop("encoder")
        at = own["iou_0.2"]
        row = {
            "event (simulated)": TASKS[kind],
            "scored": str(entry["n_true"]),
            "F1 at 0.2 [95 %]": with_interval(at["f1"], at["ci95"]["f1"], 2),
            "sensitivity": in_digits(at["sensitivity"], 2),
            "precision": in_digits(at["precision"], 2),
            "F1 at 0.5": in_digits(own["iou_0.5"]["f1"], 2),
            "onset off by": f"{in_digits(own['onset_error_s']['median_size'], 1)} s",
        }
        for source, other in sources.items():
            row[f"{NAMES[source]}: F1"] = in_digits(other["iou_0.2"]["f1"], 2)
            gain = entry["encoder_over"].get(source)
            if gain and source not in REFERENCES:
                told = f"{gain['f1']:+.2f} {interval_in_words(gain['ci95'], 2)}"
                row[f"{NAMES[source]}: F1"] += f", encoder over it {told}"
        rows.append(row)
    return rows


def event_montage_rows(content: Mapping) -> list[dict[str, str]]:
    """F1 of single events by montage, those that script 4 counts with its sensors."""
    rows: dict[str, dict[str, str]] = {}
    for found in content["events"]["montages"]:
        shown_C = np.isin(np.arange(N_CHANNELS), MONTAGES[found["montage"]])
        row = rows.setdefault(found["montage"], {"montage (simulated)": found["montage"]})
        counted = found["kind"] not in missing_sensors(shown_C)
        row[TASKS[found["kind"]]] = with_interval(found["f1"], found["ci95"]["f1"], 2) * counted
    return list(rows.values())


def index_rows(content: Mapping) -> list[dict[str, str]]:
    """Agreement of indices an hour of sleep over the test nights."""
    rows = []
    for name, own in content["events"]["indices"].items():
        row = {"index (simulated nights)": name.replace("_", " "), "nights": str(own["n"])}
        row["bias"] = f"{own['bias']:+.1f}"
        row["limits of agreement"] = f"{own['lower']:.1f} to {own['upper']:.1f}"
        row["ICC"] = in_digits(own["icc"])
        row["severity (1, 5, 10 an hour), kappa"] = in_digits(own.get("severity_kappa"), 2)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main(map(Path, sys.argv[1:]))
