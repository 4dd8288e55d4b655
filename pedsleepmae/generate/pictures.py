"""Pictures of the generation report, each a matplotlib Figure; nothing here computes a figure."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from pedsleepmae import store
from pedsleepmae.channels import CHANNEL_NAMES, EPOCH_S, RATE_HZ
from pedsleepmae.generate.imputation import METHODS, SLOW_CHANNELS, Trace
from pedsleepmae.generate.means import ClassMean
from pedsleepmae.generate.space import Neighbours, Outliers
from pedsleepmae.pages import plots
from pedsleepmae.tasks import CLASSES, class_members

METHOD_NAMES = {
    "model": "model",
    "zero": "zero (population mean)",
    "recording_mean": "recording mean",
    "nearest_channel": "nearest other channel",
}
METHOD_COLOURS = {
    "model": plots.COLOURS["encoder"],
    "nearest_channel": plots.COLOURS["handmade"],
    "recording_mean": plots.COLOURS["untrained"],
    "zero": plots.COLOURS["prevalence"],
}
FIGURE_NAMES = {
    "correlation": "correlation with the truth",
    "spectral_error": "spectral error, |log10 ratio|",
    "nmse": "mean squared error / variance",
}
DETAIL_S = (12.0, 18.0)
WORST_NMSE = 2.0  # the axis of errors ends here; what is worse is drawn at its end


# ------------------------------------------------------------------ imputation
def rows_of(imputation: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    """(label, figures by class) of each target's channels, with what was hidden beside them."""
    return [
        (channel if len(channels) == 1 else f"{channel}  (all {target} hidden)", by_class)
        for target, channels in imputation.items()
        for channel, by_class in channels.items()
        if "all" in by_class
    ]


def by_method(entry: Mapping) -> dict[str, Mapping]:
    """Figures of the model and of each baseline, in the order of METHODS."""
    return {"model": entry["model"], **entry["baselines"]}


def draw_overview(imputation: Mapping[str, Mapping]) -> Figure:
    """The three figures of every hidden channel over all epochs: model and baselines."""
    rows = rows_of(imputation)
    figure = Figure(figsize=(11, 1.1 + 0.27 * len(rows)), layout="constrained")
    axes = plots.clean_axes(figure, 1, 3, sharey=True)[0]
    for ax, (name, words) in zip(axes, FIGURE_NAMES.items(), strict=True):
        top = WORST_NMSE if name == "nmse" else np.inf
        for y, (_, by_class) in enumerate(rows):
            figures = by_method(by_class["all"])
            for k, (method, colour) in enumerate(reversed(METHOD_COLOURS.items())):
                value, edges = figures[method][name], figures[method]["ci95"][name]
                if value is None:
                    continue
                height = y + 0.12 * (1.5 - k)
                if edges is not None:
                    ax.plot(np.minimum(edges, top), [height] * 2, color=colour, lw=1.6, alpha=0.8)
                size = 5 if method == "model" else 3.6
                label = METHOD_NAMES[method] if y == 0 and name == "nmse" else None
                ax.plot(min(value, top), height, "o", color=colour, ms=size, label=label)
            ax.axhline(y + 0.5, color=plots.LINE, lw=0.5)
        ax.set_xlabel(words, fontsize=9)
    axes[0].set_yticks(range(len(rows)), [label for label, _ in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].axvline(0, color=plots.SOFT, lw=0.8, ls=":")
    axes[2].axvline(1, color=plots.SOFT, lw=0.8, ls=":")
    axes[2].set_xlim(0, WORST_NMSE + 0.03)
    handles, labels = axes[2].get_legend_handles_labels()
    style = {"ncols": 4, "fontsize": 8, "frameon": False}
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", **style)
    return figure


def draw_classes(imputation: Mapping[str, Mapping]) -> Figure:
    """Correlation by channel and class, and its gain over the nearest channel, as two maps."""
    rows = rows_of(imputation)
    value = np.full((2, len(rows), len(CLASSES)), np.nan)
    sure = np.zeros((len(rows), len(CLASSES)), bool)
    for r, (_, by_class) in enumerate(rows):
        for c, name in enumerate(CLASSES):
            if name in by_class and by_class[name]["model"]["correlation"] is not None:
                gap = by_class[name]["baselines"]["nearest_channel"]["difference"]["correlation"]
                value[:, r, c] = by_class[name]["model"]["correlation"], gap["value"]
                edges = gap["ci95"]
                sure[r, c] = edges is not None and (edges[0] > 0 or edges[1] < 0)
    figure = Figure(figsize=(12, 1.4 + 0.25 * len(rows)), layout="constrained")
    axes = plots.clean_axes(figure, 1, 2, sharey=True)[0]
    titles = ("Correlation of the model's imputation", "Gain over the nearest channel")
    ranges = (("Blues", 0), ("RdBu", -1))
    for ax, map_RC, title, (colours, low) in zip(axes, value, titles, ranges, strict=True):
        ax.imshow(map_RC, cmap=colours, vmin=low, vmax=1, aspect="auto")
        for (r, c), number in np.ndenumerate(map_RC):
            if np.isfinite(number):
                text = f"{number:.2f}" if low == 0 else f"{number:+.2f}"
                colour = "white" if abs(number) > 0.6 else plots.INK
                weight = "bold" if low < 0 and sure[r, c] else "normal"
                style = {"ha": "center", "va": "center", "fontsize": 6.5}
                ax.text(c, r, text, color=colour, weight=weight, **style)
        ax.set_xticks(range(len(CLASSES)), CLASSES, rotation=35, ha="right")
        ax.set_yticks(range(len(rows)), [label for label, _ in rows])
        ax.tick_params(length=0)
        plots.write_title(ax, title)
    return figure


def draw_imputed(index: store.ExampleIndex, traces: Sequence[Trace]) -> Figure:
    """Truth, imputation and nearest channel, a row for each trace: 30 s, of fast channels also
    some of its seconds."""
    time_s = np.arange(len(traces[0].true_T)) / RATE_HZ
    fast = any(trace.channel not in SLOW_CHANNELS for trace in traces)
    spans = [(0.0, EPOCH_S), DETAIL_S] if fast else [(0.0, EPOCH_S)]
    figure = Figure(figsize=(12, 0.7 + 1.25 * len(traces)), layout="constrained")
    options = {"width_ratios": [1.7, 1]} if fast else {}
    axes = plots.clean_axes(figure, len(traces), len(spans), gridspec_kw=options, sharex="col")
    nearest, model = METHODS.index("nearest_channel"), METHODS.index("model")
    for trace, pair in zip(traces, axes, strict=True):
        for ax, (first_s, last_s) in zip(pair, spans, strict=True):
            here = (time_s >= first_s) & (time_s < last_s)
            ax.plot(time_s[here], trace.true_T[here], color=plots.INK, lw=0.8, label="recorded")
            for m, width in ((nearest, 0.8), (model, 1.1)):
                style = {"color": METHOD_COLOURS[METHODS[m]], "label": METHOD_NAMES[METHODS[m]]}
                ax.plot(time_s[here], trace.pred_MT[m][here], lw=width, **style)
            ax.set_xlim(first_s, last_s)
            ax.set_ylim(*_span(trace.true_T, trace.pred_MT[model]))
        words = trace.class_name
        if words == "all":
            words = describe_epochs(index, [trace.position])[0]
        r_model, r_nearest = trace.correlation_M[[model, nearest]]
        caption = f"{words}: correlation {r_model:.2f}, nearest channel {r_nearest:.2f}"
        pair[0].set_title(caption, fontsize=8, color=plots.INK, loc="left")
        pair[0].set_ylabel(CHANNEL_NAMES[trace.channel], fontsize=7)
    for ax in axes[-1]:
        ax.set_xlabel("seconds", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return figure


def _span(*signals: np.ndarray) -> tuple[float, float]:
    """Limits that show all but 0.2 % of these signals, and at least a hundredth of a unit."""
    low, high = np.quantile(np.concatenate(signals), [0.001, 0.999])
    margin = max(0.15 * (high - low), 0.01)
    return float(low - margin), float(high + margin)


# ------------------------------------------------------------------ means, neighbours, outliers
def describe_epochs(index: store.ExampleIndex, positions: np.ndarray) -> list[str]:
    """The scored classes of each epoch, such as `N2, hypopnea, desaturation`."""
    members = class_members(index.labels)
    return [
        ", ".join(name for name in CLASSES[1:] if members[name][at]) or "unscored"
        for at in positions
    ]


def draw_class_mean(index: store.ExampleIndex, mean: ClassMean) -> Figure:
    """The decoded mean embedding beside the patient's epochs nearest to it and farthest from it.

    All columns share each channel's height, which is that of the nearest epoch.
    """
    captions, signals = [f"decoded mean of {mean.n_epochs} epochs"], [mean.decoded_CT]
    for words, side in (("nearest", mean.nearest), ("farthest", mean.farthest)):
        captions += [f"{words} {rank}: {d:.1f}" for rank, d in enumerate(side.distance, start=1)]
        signals += list(store.read_signals(index, side.positions))
    present = [mean.present_C] * len(signals)
    return _draw_columns(captions, signals, present, height_C=plots.channel_heights(signals[1]))


def draw_neighbours(index: store.ExampleIndex, near: Neighbours) -> Figure:
    """An example and its nearest neighbours, each channel to the example's height."""
    positions = np.array([near.query, *near.found])
    signals, words = store.read_signals(index, positions), describe_epochs(index, positions)
    captions = [f"query: {words[0]}"]
    captions += [f"{d:.1f}: {text}" for d, text in zip(near.distance, words[1:], strict=True)]
    heights = plots.channel_heights(signals[0])
    return _draw_columns(captions, signals, index.present[positions], height_C=heights)


def _draw_columns(
    captions: Sequence[str],
    signals: Sequence[np.ndarray],
    present: Sequence[np.ndarray],
    height_C: np.ndarray,
) -> Figure:
    """Epochs beside each other; the first one, which the others are held against, in blue."""
    figure = Figure(figsize=(1 + 2.6 * len(signals), 5.2), layout="constrained")
    axes = plots.clean_axes(figure, 1, len(signals))[0]
    for k, (ax, caption, x_CT, present_C) in enumerate(
        zip(axes, captions, signals, present, strict=True)
    ):
        colour = plots.INK if k else plots.COLOURS["encoder"]
        style = {"named": k == 0, "height_C": height_C, "colour": colour}
        plots.draw_epoch(ax, x_CT, present_C, textwrap.fill(caption, 32), **style)
    return figure


def draw_agreement(agreement: Mapping[str, Mapping]) -> Figure:
    """Share of neighbours of the same class against drawing at random."""
    figure = Figure(figsize=(7.5, 0.8 + 0.33 * len(agreement)), layout="constrained")
    ax = plots.clean_axes(figure)[0, 0]
    for y, entry in enumerate(agreement.values()):
        ax.barh(y, entry["share"], color=plots.COLOURS["encoder"], height=0.55, alpha=0.85)
        if entry["ci95"] is not None:
            ax.plot(entry["ci95"], [y, y], color=plots.INK, lw=1.4)
        chance, edges = [entry["by_chance"]] * 2, [y - 0.36, y + 0.36]
        label = "drawing at random" if y == 0 else None
        ax.plot(chance, edges, color=plots.COLOURS["handmade"], lw=2.2, label=label)
    labels = [f"{name}  ({entry['n']})" for name, entry in agreement.items()]
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of neighbours that are of the same class, 95 % interval", fontsize=9)
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def draw_outliers(index: store.ExampleIndex, outliers: Outliers, rows: np.ndarray) -> Figure:
    """The most unusual examples, all 16 channels, each to its own height."""
    signals = store.read_signals(index, rows)
    n_columns = min(4, len(rows))
    n_rows = -(-len(rows) // n_columns)
    figure = Figure(figsize=(1 + 3.2 * n_columns, 5.6 * n_rows), layout="constrained")
    axes = plots.clean_axes(figure, n_rows, n_columns)
    every, words = range(len(CHANNEL_NAMES)), describe_epochs(index, rows)
    for i, (ax, at, x_CT) in enumerate(zip(axes.flat, rows, signals, strict=False)):
        channel = outliers.channel_N[at]
        caption = f"{i + 1}. score {outliers.score_N[at]:.2f}: {words[i]}\n"
        caption += f"stands out: {CHANNEL_NAMES[channel]}"
        named = i % n_columns == 0
        plots.draw_epoch(ax, x_CT, index.present[at], caption, named=named, channels=every)
        ax.axhspan(-channel - 0.5, -channel + 0.5, color="#fff1d6", zorder=0)
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    return figure


def draw_scores(index: store.ExampleIndex, outliers: Outliers, drawn: np.ndarray) -> Figure:
    """How outlier scores are spread in each split, and where the drawn ones lie."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    ax = plots.clean_axes(figure)[0, 0]
    known = outliers.score_N[np.isfinite(outliers.score_N)]
    bins = np.linspace(known.min(), known.max() * 1.001 + 1e-6, 70)
    for split, source in (("train", "untrained"), ("val", "context"), ("test", "encoder")):
        score_n = outliers.score_N[index.rows(split)]
        score_n = score_n[np.isfinite(score_n)]
        if len(score_n):
            style = {"histtype": "step", "color": plots.COLOURS[source], "lw": 1.5, "label": split}
            ax.hist(score_n, bins, weights=np.full(len(score_n), 1 / len(score_n)), **style)
    for at in drawn:
        ax.axvline(outliers.score_N[at], ymax=0.06, color="#b3261e", lw=1)
    ax.set_yscale("log")
    ax.set_xlabel("outlier score (1: the median of train); red: the ones drawn below", fontsize=9)
    ax.set_ylabel("share of the split", fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    return figure
