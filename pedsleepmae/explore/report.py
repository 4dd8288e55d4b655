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

from pedsleepmae import store
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

TEMPLATE = "explore.html.j2"
WARN = "#8a4b00"


def write_results(output_dir: Path, result: Exploration, content: Mapping) -> Path:
    """Write explore.json (``content``), tables/*.csv, pictures/*.png and explore.html; its path."""
    text = json.dumps(content, indent=1, allow_nan=False)
    store.write_text(output_dir / "explore.json", text)
    for name, table in make_tables(result).items():
        store.write_table(output_dir / "tables" / f"{name}.csv", table)
    figures = make_pictures(result)
    if result.index.simulated:  # said in each picture, wherever it is pasted
        figures = ((name, _mark(figure)) for name, figure in figures)
    pictures = write_pictures(output_dir / "pictures", figures)
    page = page_template(TEMPLATE).render(
        content=content,
        pictures=pictures,
        headlines=headlines(content),
        cautions=cautions(content),
        counted=counted,
    )
    store.write_text(output_dir / "explore.html", page)
    return output_dir / "explore.html"


def _mark(figure: Figure) -> Figure:
    figure.text(0.998, 0.997, "simulated data", ha="right", va="top", fontsize=8, color=WARN)
    return figure


def make_pictures(result: Exploration) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of every picture, drawn one at a time."""
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
        tables[f"separation_{name}"] = pd.DataFrame(
            [{"labels": label, **figures} for label, figures in space.separation.items()]
        )
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


def cautions(content: Mapping) -> list[str]:
    """What must be known before a figure is quoted, gravest first."""
    lines = data_cautions(content, f"the {counted(content['n_patients'], 'patient')} explored")
    compared = (content["cohort"] or {"comparisons": []})["comparisons"]
    compared = [found for found in compared if found["silhouette"] is not None]
    for found in compared:
        fewest = min(found["n_cohort"], found["n_rest"])
        if fewest < FEW_PATIENTS:
            lines.append(
                f"Against {found['against']}, a group has {counted(fewest, 'patient')}: a lead at "
                f"best; no p-value below {found['least_p']:.2g} was possible."
            )
    if compared:
        lines.append(
            "Patients of a cohort differ from others in more than the diagnosis: age (hence the "
            "matched comparison), medication, treatment in the lab, the year and its equipment."
        )
    return [*lines, *content["notes"]]


def text_summary(content: Mapping) -> str:
    """The findings in lines for a terminal."""
    title = "simulated data" if content["simulated"] else f"split {content['split']}"
    return "\n".join(
        [f"{title}, pooling {content['pooling']}", *headlines(content), *content["notes"]]
    )


# ------------------------------------------------------------------ pictures
def draw_map(result: EmbeddingMap) -> Figure:
    """The same map, coloured by all that EmbeddingMap knows of its epochs."""
    n_columns = 3 if len(result.colourings) > 4 else 2
    n_rows = -(-len(result.colourings) // n_columns)
    figure = Figure(figsize=(5.25 * n_columns, 4.3 * n_rows), layout="constrained")
    axes = iter(plots.clean_axes(figure, n_rows, n_columns).flat)
    for (name, value_N), ax in zip(result.colourings.items(), axes, strict=False):
        ax.set_xticks([])
        ax.set_yticks([])
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
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.14)
    steps = np.stack([night.xy[:-1], night.xy[1:]], axis=1)
    # A gap in the scoring is no step: the path is broken there.
    steps = steps[np.diff(night.hours) < 2 * 30.5 / 3600]
    for ax, width in ((by_time, 0.8), (by_stage, 0.35)):
        ax.add_collection(LineCollection(steps, colors=plots.SOFT, linewidths=width, alpha=0.35))
    points = by_time.scatter(*night.xy.T, c=night.hours, cmap="viridis", s=13, linewidths=0)
    above.colorbar(points, ax=by_time, shrink=0.7, label="hours since the first scored epoch")
    for place, text in ((0, "first epoch"), (-1, "last epoch")):
        outwards = night.xy[place] - np.median(night.xy, axis=0)
        outwards = outwards / max(np.hypot(*outwards), 1e-12)
        by_time.annotate(
            text,
            night.xy[place],
            xytext=38 * outwards,
            textcoords="offset points",
            fontsize=9,
            ha="center",
            color=plots.INK,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": plots.INK, "lw": 0.9},
        )
    plots.write_title(by_time, "by time")
    plots.scatter_coloured(by_stage, night.xy, "stage", night.stage, size=13)
    breathing = night.event >= 3
    if breathing.any():
        by_stage.scatter(
            *night.xy[breathing].T,
            s=34,
            facecolors="none",
            edgecolors=plots.EVENT_COLOURS[4],
            linewidths=0.7,
            label="apnea or hypopnea",
        )
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
    figure.suptitle(
        f"{name}: do its patients lie apart?", x=0.01, ha="left", fontsize=11, color=plots.INK
    )
    axes[0].set_ylabel("shuffles or draws, share", fontsize=9)
    return figure


def _draw_comparison(ax: Axes, comparison: Comparison) -> None:
    found = comparison.separation
    bins = np.histogram_bin_edges(np.r_[found.shuffled_P, found.silhouette_R], 30)
    for values, colour, label in (
        (found.shuffled_P, plots.COLOURS["prevalence"], "labels shuffled over patients"),
        (found.silhouette_R, plots.COLOURS["context"], "balanced draws, true labels"),
    ):
        weights = np.full(len(values), 1 / len(values))
        ax.hist(values, bins, weights=weights, color=colour, alpha=0.8, label=label)
    ax.axvline(found.silhouette, color=plots.COLOURS["encoder"], lw=1.8, label="mean of the draws")
    if found.ci95 is not None:
        height = 0.94 * ax.get_ylim()[1]
        ax.plot(
            found.ci95,
            [height, height],
            color=plots.COLOURS["handmade"],
            lw=3,
            solid_capstyle="butt",
            label="95 % interval over patients",
        )
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
        if len(pairs):
            _draw_hexagons(ax, pairs[EUCLIDEAN], pairs["embedding"])
        text = "" if pd.isna(joint[kind]) else f", Spearman {joint[kind]:.2f}"
        plots.write_title(ax, f"{kind}{text}")
        ax.set_xlabel("Euclidean distance between signals", fontsize=9)
        ax.set_ylabel("distance between embeddings", fontsize=9)
    return figure


def _draw_hexagons(ax: Axes, x: pd.Series, y: pd.Series) -> None:
    """Counts of pairs; x logarithmic, for an epoch without its oximeter is far from all others."""
    cells = ax.hexbin(x, y, gridsize=32, xscale="log", mincnt=1, cmap="viridis", linewidths=0)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ticks = MaxNLocator(6, integer=True)
    ax.figure.colorbar(cells, ax=ax, shrink=0.75, label="pairs", ticks=ticks)


def draw_correlations(correlations: pd.DataFrame) -> Figure:
    """Spearman's correlation with interval of each channel and kind of pair."""
    channels = list(correlations["channel"].unique())  # TOGETHER is the last
    kinds = list(correlations[correlations["n_pairs"] > 0].groupby("pairs", sort=False))
    figure = Figure(figsize=(9.6, 1.3 + 0.3 * len(channels)), layout="constrained")
    axes = plots.clean_axes(figure, 1, len(kinds), sharex=True, sharey=True)[0]
    for ax, (kind, rows) in zip(axes, kinds, strict=True):
        for row in rows[rows["spearman"].notna()].itertuples():
            y = channels.index(row.channel)
            if not pd.isna(row.ci95_low):
                edges = [row.ci95_low, row.ci95_high]
                ax.plot(edges, [y, y], color=plots.COLOURS["encoder"], lw=2, alpha=0.8)
            ax.plot(row.spearman, y, "o", color=plots.COLOURS["encoder"], ms=5)
        ax.axvline(0, color=plots.LINE, lw=0.9)
        ax.set_xlabel("Spearman's correlation, 95 % interval", fontsize=9)
        plots.write_title(ax, kind)
    axes[0].set_yticks(range(len(channels)), channels)
    axes[0].set_ylim(len(channels) - 0.4, -0.6)
    return figure
