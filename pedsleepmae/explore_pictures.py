"""Pictures of the exploration, each a matplotlib Figure; nothing here computes a figure anew."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from pedsleepmae.exploration import Comparison, NightPath
from pedsleepmae.probe_pictures import (
    COLOURS,
    EVENT_COLOURS,
    INK,
    LINE,
    SOFT,
    clean_axes,
    counted,
    draw_stage_line,
    scatter_coloured,
    write_title,
)
from pedsleepmae.signal_distances import BETWEEN, TOGETHER, WITHIN

MEASURE_COLOURS = {"Euclidean": COLOURS["encoder"], "time-warped": COLOURS["handmade"]}
KINDS = (WITHIN, BETWEEN)


# ------------------------------------------------------------------ the path of a night
def draw_path(night: NightPath) -> Figure:
    """One night as a path coloured by time, the same by stage and event, and its hypnogram."""
    figure = Figure(figsize=(11.5, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[2.7, 1])
    by_time, by_stage = clean_axes(above, 1, 2)[0]
    for ax in (by_time, by_stage):
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.14)
    steps = np.stack([night.xy[:-1], night.xy[1:]], axis=1)
    # A gap in the scoring is no step: the path is broken there.
    steps = steps[np.diff(night.hours) < 2 * 30.5 / 3600]
    for ax, width in ((by_time, 0.8), (by_stage, 0.35)):
        ax.add_collection(LineCollection(steps, colors=SOFT, linewidths=width, alpha=0.35))
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
            color=INK,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.9},
        )
    write_title(by_time, "by time")
    scatter_coloured(by_stage, night.xy, "stage", night.stage, size=13)
    breathing = night.event >= 3
    if breathing.any():
        by_stage.scatter(
            *night.xy[breathing].T,
            s=34,
            facecolors="none",
            edgecolors=EVENT_COLOURS[4],
            linewidths=0.7,
            label="apnea or hypopnea",
        )
    by_stage.legend(fontsize=7, frameon=False, markerscale=1.6, loc="best")
    write_title(by_stage, "by stage")
    (ax,) = clean_axes(below, 1, 1)[0]
    draw_stage_line(ax, night.hours, night.stage, "stage", INK)
    ax.set_xlim(0, night.hours[-1])
    ax.set_xlabel("hours since the first scored epoch", fontsize=9)
    return figure


# ------------------------------------------------------------------ the cohort
def draw_comparisons(name: str, comparisons: list[Comparison]) -> Figure:
    """Silhouette of each comparison beside those of shuffled patients."""
    shown = [one for one in comparisons if one.separation is not None]
    figure = Figure(figsize=(5.6 * max(len(shown), 1), 3.9), layout="constrained")
    axes = clean_axes(figure, 1, len(shown), sharex=True)[0]
    for ax, one in zip(axes, shown, strict=True):
        _draw_comparison(ax, one)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        f"{name}: do its patients lie apart?", x=0.01, ha="left", fontsize=11, color=INK
    )
    axes[0].set_ylabel("shuffles or draws, share", fontsize=9)
    return figure


def _draw_comparison(ax: Axes, one: Comparison) -> None:
    found = one.separation
    bins = np.histogram_bin_edges(np.r_[found.shuffled_P, found.silhouette_R], 30)
    for values, colour, label in (
        (found.shuffled_P, COLOURS["prevalence"], "labels shuffled over patients"),
        (found.silhouette_R, COLOURS["context"], "balanced draws, true labels"),
    ):
        weights = np.full(len(values), 1 / len(values))
        ax.hist(values, bins, weights=weights, color=colour, alpha=0.8, label=label)
    ax.axvline(found.silhouette, color=COLOURS["encoder"], lw=1.8, label="mean of the draws")
    if found.ci95 is not None:
        height = 0.94 * ax.get_ylim()[1]
        ax.plot(
            found.ci95,
            [height, height],
            color=COLOURS["handmade"],
            lw=3,
            solid_capstyle="butt",
            label="95 % interval over patients",
        )
    ax.set_xlabel("silhouette", fontsize=9)
    write_title(
        ax,
        f"{counted(one.n_cohort, 'patient')} against {one.n_rest:,} {one.against}\n"
        f"p = {found.p_value:.3g}",
    )


# ------------------------------------------------------------------ distances
def draw_pairs(pairs: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Distance between embeddings against distance between signals, all channels together."""
    measures = [name for name in MEASURE_COLOURS if name in pairs]
    kinds = [kind for kind in KINDS if (pairs["pairs"] == kind).any()]
    figure = Figure(figsize=(4.8 * len(kinds), 3.9 * len(measures)), layout="constrained")
    axes = clean_axes(figure, len(measures), len(kinds))
    joint = correlations[correlations["channel"] == TOGETHER].set_index(["measure", "pairs"])
    for row, measure in zip(axes, measures, strict=True):
        for ax, kind in zip(row, kinds, strict=True):
            some = pairs[(pairs["pairs"] == kind) & (pairs[measure] > 0)]
            if len(some):
                _draw_hexagons(ax, some[measure], some["embedding"])
            value = joint.loc[(measure, kind), "spearman"]
            text = "" if pd.isna(value) else f", Spearman {value:.2f}"
            write_title(ax, f"{kind}{text}")
            ax.set_xlabel(f"{measure} distance between signals", fontsize=9)
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
    """Spearman's correlation with interval of each channel, measure and kind of pair."""
    channels = list(dict.fromkeys(correlations["channel"]))
    channels = [name for name in channels if name != TOGETHER] + [TOGETHER]
    present = correlations.loc[correlations["n_pairs"] > 0, "pairs"]
    kinds = [kind for kind in KINDS if (present == kind).any()]
    figure = Figure(figsize=(9.6, 1.3 + 0.42 * len(channels)), layout="constrained")
    axes = clean_axes(figure, 1, len(kinds), sharex=True, sharey=True)[0]
    for ax, kind in zip(axes, kinds, strict=True):
        for offset, (measure, colour) in zip((-0.14, 0.14), MEASURE_COLOURS.items(), strict=True):
            some = correlations[
                (correlations["pairs"] == kind) & (correlations["measure"] == measure)
            ]
            for one in some.itertuples():
                y = channels.index(one.channel) + offset
                if not pd.isna(one.ci95_low):
                    ax.plot([one.ci95_low, one.ci95_high], [y, y], color=colour, lw=2, alpha=0.8)
                if not pd.isna(one.spearman):
                    ax.plot(one.spearman, y, "o", color=colour, ms=5)
        ax.axvline(0, color=LINE, lw=0.9)
        ax.set_xlabel("Spearman's correlation, 95 % interval", fontsize=9)
        write_title(ax, kind)
    axes[0].set_yticks(range(len(channels)), channels)
    axes[0].set_ylim(len(channels) - 0.4, -0.6)
    for measure, colour in MEASURE_COLOURS.items():
        axes[0].plot([], [], "o-", color=colour, ms=5, label=f"{measure} distance")
    figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    return figure
