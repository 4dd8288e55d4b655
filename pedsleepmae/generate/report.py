"""What script 6 found to generate.json, tables (CSV), pictures (PNG) and the page generate.html.

The page, the pictures and generate.json name no patient and no night; the tables do, by the
numbers of the batch files, since an outlier or a neighbour that cannot be looked up helps nobody.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from pedsleepmae import data, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.generate.imputation import FIGURES, METHODS, Imputed, predict_all, typical_epochs
from pedsleepmae.generate.pictures import (
    METHOD_NAMES,
    SHOWN_CLASSES,
    describe_epoch,
    describe_epochs,
    draw_agreement,
    draw_class_mean,
    draw_classes,
    draw_imputed,
    draw_neighbours,
    draw_outliers,
    draw_overview,
    draw_scores,
    rows_of,
)
from pedsleepmae.generate.run import Generated
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.pages.page import counted, in_digits, page_template, write_pictures
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import CLASSES

TEMPLATE = "generation_report.html.j2"
PICTURE_DPI = 85  # dozens of pictures of signals are to fit in one page
FEW_PATIENTS = 8  # below, an interval is a guess from a handful of people


def write_results(
    output_dir: Path,
    generated: Generated,
    model: MaskedAutoencoder,
    device: torch.device,
    dtype: torch.dtype,
) -> Path:
    """Write generate.json, tables/*.csv, pictures/*.png and generate.html, the path returned."""
    content = as_content(generated)
    with store.write_whole(output_dir / "generate.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    for name, table in make_tables(generated).items():
        store.write_table(output_dir / "tables" / f"{name}.csv", table)
    figures = make_pictures(generated, model, device, dtype)
    pictures = write_pictures(output_dir / "pictures", figures, PICTURE_DPI)
    page = page_template(TEMPLATE).render(
        content=content,
        cautions=cautions(generated),
        headlines=headlines(content),
        rows=rows_of(content["imputation"]),
        method_names=METHOD_NAMES,
        baselines=METHODS[1:],
        classes=CLASSES,
        means=generated.means,
        queries=list(generated.queries),
        targets={one.target: slug(one.target) for one in generated.imputed},
        pictures=pictures,
        counted=counted,
    )
    with store.write_whole(output_dir / "generate.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output_dir / "generate.html"


def slug(target: str) -> str:
    """A target's name as part of a file name: `EEG C3-M2` -> `eeg_c3-m2`."""
    return target.lower().replace(" ", "_")


# ------------------------------------------------------------------ generate.json
def as_content(generated: Generated) -> dict:
    """Content of generate.json: figures, counts and facts, nothing of a single patient."""
    index, outliers = generated.index, generated.outliers
    top = outliers.top_of_nights(index.nights(), generated.n_outliers)
    scores = {
        split: outliers.score_N[index.rows(split)][np.isfinite(outliers.score_N[index.rows(split)])]
        for split in SPLITS
    }
    return {
        **generated.facts,
        "split": generated.split,
        "split_hash": index.split_hash,
        "patient_disjoint": index.patient_disjoint,
        "simulated": index.simulated,
        "prevalence": generated.prevalence,
        "imputation": generated.imputation,
        "means": [
            {
                "class": mean.name,
                "n_epochs": mean.n_epochs,
                "nearest_distance": [float(d) for d in mean.nearest_distance],
                "farthest_distance": [float(d) for d in mean.farthest_distance],
            }
            for mean in generated.means
        ],
        "neighbour_agreement": generated.agreement,
        "outliers": {
            "n_reference": outliers.n_reference,
            "quantiles": {
                split: {f"{q:g}": float(np.quantile(score_n, q)) for q in (0.5, 0.95, 0.99, 1.0)}
                for split, score_n in scores.items()
                if len(score_n)
            },
            "top_scores": [float(score) for score in outliers.score_N[top]],
        },
    }


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
        best, worst = max(known, key=lambda one: one[1]), min(known, key=lambda one: one[1])
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


def text_summary(generated: Generated) -> str:
    """Lines for a terminal: cautions, then what the page says first."""
    return "\n".join([*cautions(generated), *headlines(as_content(generated))])


def cautions(generated: Generated) -> list[str]:
    """What must be known before a figure is quoted, gravest first."""
    index, facts, lines = generated.index, generated.facts, []
    if index.simulated:
        lines.append(
            "The recordings are simulated: the figures show that the machinery works, not how "
            "well it does on children."
        )
    elif facts["checkpoint_simulated"]:
        lines.append("The model was pretrained on simulated recordings.")
    if not facts["mask_channels"]:
        lines.append(
            "Pretraining hid patches but never whole channels (model.mask_channels 0): the model "
            "was never asked for a channel that it sees nothing of, so imputing is outside its "
            "training."
        )
    if not index.patient_disjoint:
        lines.append("The nights are split in time: train and test hold the same people.")
    seen = facts["seen_patients"]
    if seen is None:
        lines.append("Which patients the checkpoint saw in pretraining is unknown.")
    elif seen and index.patient_disjoint:
        lines.append(f"Pretraining saw {seen} of the val and test patients of these batches.")
    n_patients = len(np.unique(index.patient_ids[index.rows(generated.split)]))
    if n_patients < FEW_PATIENTS and index.patient_disjoint:
        lines.append(
            f"{generated.split} holds {counted(n_patients, 'patient')}: intervals are wide and "
            "themselves uncertain."
        )
    return lines


# ------------------------------------------------------------------ tables
def make_tables(generated: Generated) -> dict[str, pd.DataFrame]:
    """Long tables for a spreadsheet."""
    index, agreement = generated.index, generated.agreement
    order = generated.outliers.ranking()
    outliers = _identify(index, order)
    outliers.insert(0, "rank", np.arange(1, len(order) + 1))
    outliers["score"] = generated.outliers.score_N[order]
    outliers["stands_out"] = np.array(CHANNEL_NAMES)[generated.outliers.channel_N[order]]
    return {
        "imputation": pd.DataFrame(list(_imputation_rows(generated))),
        "class_means": pd.DataFrame(list(_mean_rows(generated))),
        "neighbours": pd.DataFrame(list(_neighbour_rows(generated))),
        "neighbour_agreement": pd.DataFrame(
            [
                {key: value for key, value in entry.items() if key != "ci95"}
                | {"class": name, "ci95_low": low, "ci95_high": high}
                for name, entry in agreement.items()
                for low, high in [entry["ci95"] or (None, None)]
            ]
        ),
        "outliers": outliers,
    }


def _imputation_rows(generated: Generated) -> Iterator[dict]:
    for target, by_channel in generated.imputation.items():
        for channel, by_class in by_channel.items():
            for name, entry in by_class.items():
                counts = {"n": entry["n"], "n_patients": entry["n_patients"]}
                counts["prevalence"] = generated.prevalence[name]["share"]
                for method in METHODS:
                    one = entry["model"] if method == "model" else entry["baselines"][method]
                    for figure in FIGURES:
                        low, high = one["ci95"][figure] or (None, None)
                        row = {"hidden": target, "channel": channel, "class": name, **counts}
                        row |= {"method": method, "figure": figure, "value": one[figure]}
                        row |= {"ci95_low": low, "ci95_high": high}
                        gap = one.get("difference", {}).get(figure, {"value": None, "ci95": None})
                        low, high = gap["ci95"] or (None, None)
                        row |= {"model_minus_this": gap["value"]}
                        yield row | {"difference_low": low, "difference_high": high}


def _mean_rows(generated: Generated) -> Iterator[dict]:
    for mean in generated.means:
        sides = {
            "nearest": (mean.nearest, mean.nearest_distance),
            "farthest": (mean.farthest, mean.farthest_distance),
        }
        for side, (rows, distances) in sides.items():
            table = _identify(generated.index, rows).to_dict("records")
            for rank, (row, distance) in enumerate(zip(table, distances, strict=True), start=1):
                about = {"class": mean.name, "n_epochs": mean.n_epochs, "side": side, "rank": rank}
                yield about | row | {"distance": float(distance)}


def _neighbour_rows(generated: Generated) -> Iterator[dict]:
    for name, at, found, distances in zip(
        generated.queries,
        generated.queries.values(),
        generated.neighbours_QK,
        generated.distance_QK,
        strict=True,
    ):
        rows = [at, *found[found >= 0]]
        table = _identify(generated.index, np.array(rows)).to_dict("records")
        for rank, (row, distance) in enumerate(zip(table, [0.0, *distances], strict=False)):
            yield {"query": name, "rank": rank} | row | {"distance": float(distance)}


def _identify(index: store.ExampleIndex, rows: np.ndarray) -> pd.DataFrame:
    """Which examples these are: patient, study, onset, split, scored classes."""
    return pd.DataFrame(
        {
            "patient_id": index.patient_ids[rows],
            "study_id": index.study_ids[rows],
            "onset_s": index.onsets_s[rows],
            "split": np.array(SPLITS)[index.split[rows]],
            "classes": describe_epochs(index, rows),
        }
    )


# ------------------------------------------------------------------ pictures
def make_pictures(
    generated: Generated, model: MaskedAutoencoder, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    index = generated.index
    if rows_of(generated.imputation):
        yield "imputation", draw_overview(generated.imputation)
        yield "imputation_classes", draw_classes(generated.imputation)
    for one in generated.imputed:
        if len(one.positions):
            rows, true_RT, pred_RMT = examples_of(generated, one, model, device, dtype)
            figure = draw_imputed(rows, true_RT, pred_RMT)
            yield f"imputed_{slug(one.target)}", figure
    for mean in generated.means:
        yield f"mean_{slug(mean.name)}", draw_class_mean(index, mean)
    for name, at, found, distance in zip(
        generated.queries,
        generated.queries.values(),
        generated.neighbours_QK,
        generated.distance_QK,
        strict=True,
    ):
        figure = draw_neighbours(index, at, found, distance)
        yield f"neighbours_{slug(name)}", figure
    if generated.agreement:
        yield "neighbour_agreement", draw_agreement(generated.agreement)
    outliers, n_shown = generated.outliers, generated.n_outliers
    top = outliers.top_of_nights(index.nights(), n_shown)
    if len(top):  # none where train is one night: no example has neighbours of other nights
        yield "outlier_scores", draw_scores(index, outliers, top)
        yield "outliers", draw_outliers(index, outliers, top)


def examples_of(
    generated: Generated,
    imputed: Imputed,
    model: MaskedAutoencoder,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[tuple[str, int]], np.ndarray, np.ndarray]:
    """What draw_imputed draws of a target: ((caption, channel), truth (R, T), (R, M, T)).

    For one channel the typical epochs of SHOWN_CLASSES; for a group the typical epoch of all (or
    of the first class in which it was recorded), a row for each channel recorded in it.
    """
    index, channels = generated.index, imputed.channels
    typical = typical_epochs(imputed, generated.sample)
    shown = {name: at for name, at in typical.items() if name in SHOWN_CLASSES} or typical
    if len(channels) > 1:
        first = "all" if "all" in typical else next(iter(shown))
        shown = {first: typical[first]}
    positions = np.array(list(shown.values()))
    order = np.unique(positions)
    ((x_BCT, present_BC),) = data.sample_batches(index, order, len(order))
    pred_BMHT = predict_all(
        model,
        x_BCT,
        present_BC,
        generated.moments,
        order,
        channels,
        show_all=generated.facts["show_all"],
        device=device,
        dtype=dtype,
    )
    rows, true_RT, pred_RMT = [], [], []
    for name, at in shown.items():
        b = int(np.searchsorted(order, at))
        scores = imputed.scores[np.flatnonzero(imputed.positions == at)[0]]
        for h, channel in enumerate(channels):
            if not present_BC[b, channel]:
                continue
            words = describe_epoch(index, at) if name == "all" else name
            r = [scores[h, METHODS.index(m), 0] for m in ("model", "nearest_channel")]
            rows.append((f"{words}: correlation {r[0]:.2f}, nearest channel {r[1]:.2f}", channel))
            true_RT.append(x_BCT[b, channel].float().numpy())
            pred_RMT.append(pred_BMHT[b, :, h])
    return rows, np.stack(true_RT), np.stack(pred_RMT)
