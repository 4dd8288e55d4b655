"""What script 6 found to generate.json, tables (CSV), pictures (PNG) and the page generate.html.

The page, the pictures and generate.json name no patient and no night; the tables do, by the
numbers of the batch files, since an outlier or a neighbour that cannot be looked up helps nobody.
"""

import json
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedsleepmae import disk, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.generate import pictures
from pedsleepmae.generate.imputation import FIGURES, METHODS
from pedsleepmae.generate.pictures import by_method, describe_epochs, rows_of
from pedsleepmae.generate.run import Generation
from pedsleepmae.pages.page import (
    counted,
    data_cautions,
    few_patients_caution,
    in_digits,
    page_template,
    write_pictures,
)
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import CLASSES

NO_DIFFERENCE = {"value": None, "ci95": None}  # of the model to itself
PICTURE_DPI = 85  # dozens of pictures of signals are to fit in one page


def write_results(output_dir: Path, found: Generation, content: Mapping) -> Path:
    """Write generate.json, tables/*.csv, pictures/*.png and generate.html, the path returned.

    ``content`` is that of generate.json.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    disk.write_text(output_dir / "generate.json", text)
    for name, table in make_tables(found, content).items():
        disk.write_table(output_dir / "tables" / f"{name}.csv", table)
    embedded = write_pictures(output_dir / "pictures", make_pictures(found), PICTURE_DPI)
    page = page_template("generation_report.html.j2").render(
        content=content,
        cautions=cautions(found, content),
        headlines=headlines(content),
        rows=rows_of(content["imputation"]),
        method_names=pictures.METHOD_NAMES,
        baselines=METHODS[1:],
        classes=CLASSES,
        means=found.means,
        queries=list(found.neighbours),
        targets={target: slug(target) for target in found.traces},
        pictures=embedded,
        counted=counted,
    )
    disk.write_text(output_dir / "generate.html", page)
    return output_dir / "generate.html"


def slug(target: str) -> str:
    """A target's name as part of a file name: `EEG C3-M2` -> `eeg_c3-m2`."""
    return target.lower().replace(" ", "_")


# ------------------------------------------------------------------ words
def headlines(content: Mapping) -> list[str]:
    """What the page says first, one sentence each."""
    rows = rows_of(content["imputation"])
    lines, verdicts = [], []
    for _, by_class in rows:
        edges = by_class["all"]["baselines"]["nearest_channel"]["difference"]["nmse"]["ci95"]
        if edges is not None:
            verdicts.append("better" if edges[1] < 0 else "worse" if edges[0] > 0 else "unclear")
    if verdicts:
        lines.append(
            f"Imputed with less squared error than the nearest other channel gives: "
            f"{verdicts.count('better')} of {len(verdicts)} hidden channels; with more: "
            f"{verdicts.count('worse')}; not told apart: {verdicts.count('unclear')} (95 % "
            "interval of the paired difference over all epochs)."
        )
    known = [(label, c["all"]["model"]) for label, c in rows]
    known = [(label, m["correlation"]) for label, m in known if m["correlation"] is not None]
    if known:
        best, worst = max(known, key=itemgetter(1)), min(known, key=itemgetter(1))
        lines.append(
            f"Best followed is {best[0].strip()} (correlation {in_digits(best[1], 2)}), least "
            f"{worst[0].strip()} ({in_digits(worst[1], 2)})."
        )
    agreement = content["neighbour_agreement"]
    if agreement:
        gains = {name: e["share"] / max(e["by_chance"], 1e-9) for name, e in agreement.items()}
        most = max(gains, key=gains.get)
        lines.append(
            f"Neighbours share the class most often beyond chance for {most}: "
            f"{agreement[most]['share']:.0%} of them, where drawing at random gives "
            f"{agreement[most]['by_chance']:.0%}."
        )
    return lines


def text_summary(found: Generation, content: Mapping) -> str:
    """Lines for a terminal: cautions, then what the page says first."""
    return "\n".join([*cautions(found, content), *headlines(content)])


def cautions(found: Generation, content: Mapping) -> list[str]:
    """What must be known before a figure is quoted, gravest first."""
    lines = data_cautions(content, "the val and test patients of these batches")
    if not content["mask_channels"]:
        lines.append(
            "Pretraining hid patches but never whole channels (model.mask_channels and "
            "model.show_whole 0): the model was never asked for a channel that it sees nothing of, "
            "so imputing is outside its training."
        )
    if content["patient_disjoint"]:
        n_patients = len(np.unique(found.index.patient_ids[found.index.rows(content["split"])]))
        lines += few_patients_caution(n_patients, content["split"])
    return lines


# ------------------------------------------------------------------ tables
def make_tables(found: Generation, content: Mapping) -> dict[str, pd.DataFrame]:
    """Long tables for a spreadsheet."""
    order = found.outliers.ranking()
    agreement = []
    for name, entry in found.agreement.items():
        row = {key: value for key, value in entry.items() if key != "ci95"}
        agreement.append(row | {"class": name} | _edges(entry["ci95"]))
    return {
        "imputation": pd.DataFrame(list(_imputation_rows(content))),
        "class_means": pd.concat([pd.DataFrame(), *_mean_tables(found)]),
        "neighbours": pd.concat([pd.DataFrame(), *_neighbour_tables(found)]),
        "neighbour_agreement": pd.DataFrame(agreement),
        "outliers": _identify(found.index, order, {"rank": np.arange(1, len(order) + 1)}).assign(
            score=found.outliers.score_N[order],
            stands_out=np.array(CHANNEL_NAMES)[found.outliers.channel_N[order]],
        ),
    }


def _edges(edges: list[float] | None, name: str = "ci95") -> dict[str, float | None]:
    low, high = edges or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _imputation_rows(content: Mapping) -> Iterator[dict]:
    """A row for each target, channel, class, method and figure."""
    for target, channels in content["imputation"].items():
        for channel, by_class in channels.items():
            for name, entry in by_class.items():
                about = {"hidden": target, "channel": channel, "class": name}
                about |= {"n": entry["n"], "n_patients": entry["n_patients"]}
                about["prevalence"] = content["prevalence"][name]["share"]
                for method, values in by_method(entry).items():
                    for figure in FIGURES:
                        gap = values.get("difference", {}).get(figure, NO_DIFFERENCE)
                        yield (
                            about
                            | {"method": method, "figure": figure, "value": values[figure]}
                            | _edges(values["ci95"][figure])
                            | {"model_minus_this": gap["value"]}
                            | _edges(gap["ci95"], "difference")
                        )


def _mean_tables(found: Generation) -> Iterator[pd.DataFrame]:
    for mean in found.means:
        for words, side in (("nearest", mean.nearest), ("farthest", mean.farthest)):
            about = {"class": mean.name, "n_epochs": mean.n_epochs, "side": words}
            about["rank"] = np.arange(1, len(side.positions) + 1)
            table = _identify(found.index, side.positions, about)
            yield table.assign(distance=side.distance.astype(float))


def _neighbour_tables(found: Generation) -> Iterator[pd.DataFrame]:
    for name, near in found.neighbours.items():
        about = {"query": name, "rank": np.arange(len(near.found) + 1)}
        table = _identify(found.index, np.array([near.query, *near.found]), about)
        yield table.assign(distance=[0.0, *near.distance.tolist()])


def _identify(index: store.ExampleIndex, rows: np.ndarray, about: Mapping) -> pd.DataFrame:
    """Which examples these are: ``about`` them, patient, study, onset, split, scored classes."""
    return pd.DataFrame(
        {
            **about,
            "patient_id": index.patient_ids[rows],
            "study_id": index.study_ids[rows],
            "onset_s": index.onsets_s[rows],
            "split": np.array(SPLITS)[index.split[rows]],
            "classes": describe_epochs(index, rows),
        }
    )


# ------------------------------------------------------------------ pictures
def make_pictures(found: Generation) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    index = found.index
    if rows_of(found.figures):
        yield "imputation", pictures.draw_overview(found.figures)
        yield "imputation_classes", pictures.draw_classes(found.figures)
    for target, traces in found.traces.items():
        if traces:
            yield f"imputed_{slug(target)}", pictures.draw_imputed(index, traces)
    for mean in found.means:
        yield f"mean_{slug(mean.name)}", pictures.draw_class_mean(index, mean)
    for name, near in found.neighbours.items():
        yield f"neighbours_{slug(name)}", pictures.draw_neighbours(index, near)
    if found.agreement:
        yield "neighbour_agreement", pictures.draw_agreement(found.agreement)
    if len(found.top):  # none where train is one night: no example has neighbours of other nights
        yield "outlier_scores", pictures.draw_scores(index, found.outliers, found.top)
        yield "outliers", pictures.draw_outliers(index, found.outliers, found.top)
