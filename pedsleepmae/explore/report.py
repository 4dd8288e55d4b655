"""explore.json and an Exploration to explore.html, its tables (CSV) and pictures (PNG)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from pedsleepmae import disk
from pedsleepmae.explore.cohort import Comparison, comparison_figures
from pedsleepmae.explore.distances import EUCLIDEAN, TOGETHER, Distances
from pedsleepmae.explore.maps import EmbeddingMap, event_kinds
from pedsleepmae.explore.run import Exploration, NightPath
from pedsleepmae.pages import plots
from pedsleepmae.pages.page import (
    FEW_PATIENTS,
    counted,
    data_cautions,
    interval_in_words,
    page_template,
    write_pictures,
)
from pedsleepmae.tasks import STAGES, task_labels


def write_results(output_dir: Path, result: Exploration, content: Mapping) -> Path:
    """Write explore.json (``content``), tables/*.csv, pictures/*.png and explore.html; its path."""
    text = json.dumps(content, indent=1, allow_nan=False)
    disk.write_text(output_dir / "explore.json", text)
    for name, table in make_tables(result).items():
        disk.write_table(output_dir / "tables" / f"{name}.csv", table)
    pictures = write_pictures(output_dir / "pictures", make_pictures(result))
    judged = f"the {counted(content['n_patients'], 'patient')} explored"
    page = page_template("explore.html.j2").render(
        content=content,
        pictures=pictures,
        headlines=headlines(content),
        cautions=data_cautions(content, judged),
        few_patients=FEW_PATIENTS,
        counted=counted,
    )
    disk.write_text(output_dir / "explore.html", page)
    return output_dir / "explore.html"


def make_pictures(result: Exploration) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
    for name, figure in _draw_all(result):
        if result.index.simulated:  # said in each picture, wherever it is pasted
            style = {"ha": "right", "va": "top", "fontsize": 8, "color": "#8a4b00"}
            figure.text(0.998, 0.997, "simulated data", **style)
        yield name, figure


def _draw_all(result: Exploration) -> Iterator[tuple[str, Figure]]:
    for space in result.maps:
        yield f"map_{space.method.lower()}", draw_map(space)
    for number, night in enumerate(result.nights, start=1):
        yield f"night_{number}", draw_path(night)
    if any(comparison.separation is not None for comparison in result.comparisons):
        yield "cohort", draw_comparisons(result.cohort.name, result.comparisons)
    if result.distances is not None and result.distances.correlations["n_pairs"].any():
        yield "distance_correlations", draw_correlations(result.distances.correlations)
        yield "distances", draw_pairs(result.distances)


def make_tables(result: Exploration) -> dict[str, pd.DataFrame]:
    """The tables of the page for a spreadsheet."""
    tables = {}
    for space in result.maps:
        name = space.method.lower()
        tables[f"map_{name}"] = _points(result, space.positions, space.xy)
        rows = [{"labels": label, **figures} for label, figures in space.separation.items()]
        tables[f"separation_{name}"] = pd.DataFrame(rows)
    for number, night in enumerate(result.nights, start=1):
        tables[f"night_{number}"] = _points(result, night.positions, night.xy)
    if result.comparisons:
        rows = []
        for row in map(comparison_figures, result.comparisons):
            for name in ("draws95", "ci95", "shuffled95"):
                low, high = row.pop(name) or (None, None)
                row |= {f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        tables["cohort"] = pd.DataFrame(rows)
    if result.distances is not None:
        tables["distance_correlations"] = result.distances.correlations
        tables["distance_pairs"] = result.distances.pairs
    return tables


def _points(result: Exploration, positions: np.ndarray, xy: np.ndarray) -> pd.DataFrame:
    """A row an epoch of a map or a path: who, when, stage, event, place."""
    index = result.index
    stages = np.array([*STAGES, ""])[task_labels(index.labels, "sleep")[positions]]
    return pd.DataFrame(
        {
            "patient_id": index.patient_ids[positions],
            "study_id": index.study_ids[positions],
            "onset_s": index.onsets_s[positions],
            "stage": stages,
            "event": np.array(plots.EVENT_NAMES)[event_kinds(index, positions)],
            "x": xy[:, 0],
            "y": xy[:, 1],
        }
    )


# ------------------------------------------------------------------ words
def headlines(content: Mapping) -> list[str]:
    """What was found, one sentence each, with its numbers of patients and epochs."""
    lines = []
    for first in content["maps"][:1]:  # none where UMAP alone was asked for and is absent
        parts = [f"{n} {figures['silhouette']:.3f}" for n, figures in first["separation"].items()]
        if not parts:
            continue
        lines.append(
            f"On the map of {counted(first['n_epochs'], 'epoch')} of "
            f"{counted(first['n_patients'], 'patient')} the silhouette is: {', '.join(parts)} "
            "(0: no separation)."
        )
    if content["cohort"]:
        name = content["cohort"]["name"]
        lines += [comparison_in_words(name, found) for found in content["cohort"]["comparisons"]]
    for row in (content["distances"] or {"correlations": []})["correlations"]:
        if row["channel"] == TOGETHER and row["spearman"] is not None:
            edges = None if row["ci95_low"] is None else [row["ci95_low"], row["ci95_high"]]
            lines.append(
                f"Over {row['n_pairs']:,} pairs {row['pairs']}, distance between embeddings and "
                f"{row['measure']} distance between signals correlate at "
                f"{row['spearman']:.2f} {interval_in_words(edges, 2)} (Spearman)."
            )
    return lines


def comparison_in_words(name: str, found: Mapping) -> str:
    """One comparison of the cohort, as a sentence."""
    if found["silhouette"] is None:
        return f"{name} is not compared with {found['against']}: {found['reason']}."
    text = (
        f"{name} ({counted(found['n_cohort'], 'patient')}) against {found['n_rest']:,} "
        f"{found['against']}: silhouette {found['silhouette']:.3f} "
        f"{interval_in_words(found['ci95'])}, with patients shuffled {found['shuffled']:.3f}, "
        f"p = {found['p_value']:.3g}"
    )
    if found["age_cohort"] is not None and found["age_rest"] is not None:
        text += f"; median ages {found['age_cohort']:.1f} and {found['age_rest']:.1f} years"
    if found["age_gap"] is not None:
        text += f", in a set {found['age_gap']:.1f} years apart on average"
    return text + "."


def text_summary(content: Mapping) -> str:
    """The findings in lines for a terminal."""
    title = "simulated data" if content["simulated"] else f"split {content['split']}"
    title += f", pooling {content['pooling']}"
    return "\n".join([title, *headlines(content), *content["notes"]])


# ------------------------------------------------------------------ pictures
def draw_map(result: EmbeddingMap) -> Figure:
    """The same map, coloured by all that EmbeddingMap knows of its epochs."""
    n_columns = 3 if len(result.colourings) > 4 else 2
    n_rows = -(-len(result.colourings) // n_columns)
    figure = Figure(figsize=(5.25 * n_columns, 4.3 * n_rows), layout="constrained")
    axes = iter(plots.clean_axes(figure, n_rows, n_columns).flat)
    for (name, value_N), ax in zip(result.colourings.items(), axes, strict=False):
        ax.set(xticks=[], yticks=[])
        plots.scatter_coloured(ax, result.xy, name, value_N)
        words = {"hours": "time of night", "channels": "channels recorded"}
        plots.write_title(ax, words.get(name, name))
    for ax in axes:  # what zip has left
        ax.set_visible(False)
    return figure


def draw_path(night: NightPath) -> Figure:
    """One night as a path coloured by time, the same by stage and event, and its hypnogram."""
    figure = Figure(figsize=(11.5, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.7, 1])
    by_time, by_stage = plots.clean_axes(above, 1, 2)[0]
    for ax in (by_time, by_stage):
        ax.set(xticks=[], yticks=[])
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.14)
    steps = np.stack([night.xy[:-1], night.xy[1:]], axis=1)
    # A gap in the scoring is no step: the path is broken there.
    steps = steps[np.diff(night.hours) < 2 * 30.5 / 3600]
    for ax, width in ((by_time, 0.8), (by_stage, 0.35)):
        ax.add_collection(LineCollection(steps, colors=plots.SOFT, linewidths=width, alpha=0.35))
    points = by_time.scatter(*night.xy.T, c=night.hours, cmap="viridis", s=13, linewidths=0)
    above.colorbar(points, ax=by_time, shrink=0.7, label="hours since the first scored epoch")
    arrow = {"arrowstyle": "-", "color": plots.INK, "lw": 0.9}
    box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85}
    style = {"fontsize": 9, "ha": "center", "color": plots.INK, "arrowprops": arrow, "bbox": box}
    for place, text in ((0, "first epoch"), (-1, "last epoch")):
        outwards = night.xy[place] - np.median(night.xy, axis=0)
        at = 38 * outwards / max(np.hypot(*outwards), 1e-12)
        by_time.annotate(text, night.xy[place], xytext=at, textcoords="offset points", **style)
    plots.write_title(by_time, "by time")
    plots.scatter_coloured(by_stage, night.xy, "stage", night.stage, size=13)
    breathing = night.event >= 3
    if breathing.any():
        ring = {"facecolors": "none", "edgecolors": plots.EVENT_COLOURS[4], "linewidths": 0.7}
        by_stage.scatter(*night.xy[breathing].T, s=34, label="apnea or hypopnea", **ring)
    by_stage.legend(fontsize=7, frameon=False, markerscale=1.6, loc="best")
    plots.write_title(by_stage, "by stage")
    (ax,) = plots.clean_axes(below, 1, 1)[0]
    plots.draw_stage_line(ax, night.hours, night.stage, "stage", plots.INK)
    ax.set_xlim(0, night.hours[-1])
    ax.set_xlabel("hours since the first scored epoch", fontsize=9)
    return figure


def draw_comparisons(name: str, comparisons: list[Comparison]) -> Figure:
    """Silhouette of each comparison beside those of shuffled patients."""
    shown = [found for found in comparisons if found.separation is not None]
    figure = Figure(figsize=(5.6 * len(shown), 3.9), layout="constrained")
    axes = plots.clean_axes(figure, 1, len(shown), sharex=True)[0]
    for ax, comparison in zip(axes, shown, strict=True):
        _draw_comparison(ax, comparison)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    title = f"{name}: do its patients lie apart?"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=plots.INK)
    axes[0].set_ylabel("shuffles or draws, share", fontsize=9)
    return figure


def _draw_comparison(ax: Axes, comparison: Comparison) -> None:
    found, colours = comparison.separation, plots.COLOURS
    bins = np.histogram_bin_edges(np.r_[found.shuffled_P, found.silhouette_R], 30)
    for values, colour, label in (
        (found.shuffled_P, colours["prevalence"], "labels shuffled over patients"),
        (found.silhouette_R, colours["context"], "balanced draws, true labels"),
    ):
        weights = np.full(len(values), 1 / len(values))
        ax.hist(values, bins, weights=weights, color=colour, alpha=0.8, label=label)
    ax.axvline(found.silhouette, color=colours["encoder"], lw=1.8, label="mean of the draws")
    if found.ci95 is not None:
        height = [0.94 * ax.get_ylim()[1]] * 2
        style = {"lw": 3, "solid_capstyle": "butt", "label": "95 % interval over patients"}
        ax.plot(found.ci95, height, color=colours["handmade"], **style)
    ax.set_xlabel("silhouette", fontsize=9)
    sides = f"{counted(comparison.n_cohort, 'patient')} against {comparison.n_rest:,} "
    plots.write_title(ax, f"{sides}{comparison.against}\np = {found.p_value:.3g}")


def draw_pairs(distances: Distances) -> Figure:
    """Distance between embeddings against distance between signals, all channels together."""
    joint = distances.correlations.set_index("channel").loc[TOGETHER].set_index("pairs")["spearman"]
    kinds = list(distances.pairs.groupby("pairs", sort=False))
    figure = Figure(figsize=(4.8 * len(kinds), 3.9), layout="constrained")
    axes = plots.clean_axes(figure, 1, len(kinds))[0]
    for ax, (kind, pairs) in zip(axes, kinds, strict=True):
        pairs = pairs[pairs[EUCLIDEAN] > 0]
        if len(pairs):  # x logarithmic: an epoch without its oximeter is far from all others
            style = {"xscale": "log", "mincnt": 1, "cmap": "viridis", "linewidths": 0}
            cells = ax.hexbin(pairs[EUCLIDEAN], pairs["embedding"], gridsize=32, **style)
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_formatter(NullFormatter())
            ticks = MaxNLocator(6, integer=True)
            figure.colorbar(cells, ax=ax, shrink=0.75, label="pairs", ticks=ticks)
        text = "" if pd.isna(joint[kind]) else f", Spearman {joint[kind]:.2f}"
        plots.write_title(ax, f"{kind}{text}")
        ax.set_xlabel("Euclidean distance between signals", fontsize=9)
        ax.set_ylabel("distance between embeddings", fontsize=9)
    return figure


def draw_correlations(correlations: pd.DataFrame) -> Figure:
    """Spearman's correlation with interval of each channel and kind of pair."""
    channels = list(correlations["channel"].unique())  # TOGETHER is the last
    kinds = list(correlations[correlations["n_pairs"] > 0].groupby("pairs", sort=False))
    figure = Figure(figsize=(9.6, 1.3 + 0.3 * len(channels)), layout="constrained")
    axes = plots.clean_axes(figure, 1, len(kinds), sharex=True, sharey=True)[0]
    colour = plots.COLOURS["encoder"]
    for ax, (kind, rows) in zip(axes, kinds, strict=True):
        for row in rows[rows["spearman"].notna()].itertuples():
            y = channels.index(row.channel)
            ax.plot([row.ci95_low, row.ci95_high], [y, y], color=colour, lw=2, alpha=0.8)
            ax.plot(row.spearman, y, "o", color=colour, ms=5)
        ax.axvline(0, color=plots.LINE, lw=0.9)
        ax.set_xlabel("Spearman's correlation, 95 % interval", fontsize=9)
        plots.write_title(ax, kind)
    axes[0].set_yticks(range(len(channels)), channels)
    axes[0].set_ylim(len(channels) - 0.4, -0.6)
    return figure
