"""Pictures of the probe report, each a matplotlib Figure; nothing here computes a figure anew."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from pedsleepmae import metrics, store
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.pages import plots
from pedsleepmae.pages.page import counted
from pedsleepmae.probe.evaluation import Results, TaskResult, auroc_name
from pedsleepmae.tasks import STAGES, TASKS

MAX_CURVE_POINTS = 1000


# ------------------------------------------------------------------ all tasks
def draw_overview(results: Results, names: Mapping[str, str]) -> Figure:
    """AUROC with interval of every task and source, as in a meta-analysis."""
    tasks = [results.tasks[task] for task in results.fitted]
    sources = [name for name in plots.COLOURS if any(name in t.by_source for t in tasks)]
    sources = [name for name in sources if name != "prevalence"]  # always at the dotted line
    step = 1 / (len(sources) + 1.5)
    figure = Figure(figsize=(8.4, 0.9 + 0.22 * len(sources) * len(tasks)), layout="constrained")
    ax = plots.clean_axes(figure)[0, 0]
    for row, result in enumerate(tasks):
        name = auroc_name(result.task)
        for k, source in enumerate(s for s in sources if s in result.by_source):
            test, y = result.by_source[source].test, row + (k + 1) * step
            if test.figures[name] is None:
                continue
            if test.ci95[name] is not None:
                ax.plot(test.ci95[name], [y, y], color=plots.COLOURS[source], lw=2.2, alpha=0.8)
            label = names[source] if row == 0 else None
            ax.plot(test.figures[name], y, "o", color=plots.COLOURS[source], ms=5.5, label=label)
        ax.axhline(row, color=plots.LINE, lw=0.8)
    ax.axvline(0.5, color=plots.SOFT, lw=0.8, ls=":")
    ax.set_yticks([row + 0.5 for row in range(len(tasks))], [TASKS[t.task] for t in tasks])
    ax.set_ylim(len(tasks), 0)
    ax.set_xlabel("AUROC on test (sleep: weighted over stages), 95 % interval", fontsize=9)
    figure.legend(loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    return figure


# ------------------------------------------------------------------ one task
def draw_event(result: TaskResult, names: Mapping[str, str]) -> Figure:
    """ROC and precision-recall curves of all sources, and the reliability of the encoder's."""
    known = result.label_N >= 0
    label_N = result.label_N[known]
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    roc, recall, calibration = plots.clean_axes(figure, 1, 3)[0]
    if 0 < label_N.sum() < len(label_N):
        for source in reversed([name for name in plots.COLOURS if name in result.by_source]):
            found = result.by_source[source]
            prob_N = found.prob_NK[known, 1]
            style = {"color": plots.COLOURS[source], "lw": 2.2 if source == "encoder" else 1.3}
            areas = "{auroc:.3f}, {auprc:.3f}".format(**found.test.figures)
            x, y, _ = roc_curve(label_N, prob_N)
            roc.plot(*_thinned(x, y), label=f"{names[source]} ({areas})", **style)
            precision, sensitivity, _ = precision_recall_curve(label_N, prob_N)
            # Without the made-up last point (sensitivity 0, precision 1) that closes the curve.
            recall.plot(*_thinned(sensitivity[:-1], precision[:-1]), **style)
        handles, labels = roc.get_legend_handles_labels()
        title = "area under the ROC curve, under the precision-recall curve:"
        place = {"loc": "outside lower left", "ncols": 3, "alignment": "left", "frameon": False}
        small = {"fontsize": 7.5, "title_fontsize": 7.5}
        figure.legend(handles[::-1], labels[::-1], title=title, **place, **small)
    _finish_roc(roc, "ROC curve")
    recall.axhline(label_N.mean(), color=plots.SOFT, lw=0.8, ls=":")
    recall.set_ylim(0, 1.02)
    _label(recall, "sensitivity (recall)", "precision", "Precision-recall curve")
    _draw_reliability(calibration, label_N, result.by_source["encoder"].prob_NK[known, 1])
    return figure


def draw_stages(result: TaskResult, _names: Mapping[str, str]) -> Figure:
    """Confusion matrix, ROC curve of each stage, reliability of the most probable stage."""
    known = result.label_N >= 0
    label_N, found = result.label_N[known], result.by_source["encoder"]
    prob_NK, counts = found.prob_NK[known], found.test.confusion
    figure = Figure(figsize=(10.5, 3.5), layout="constrained")
    matrix, roc, calibration = plots.clean_axes(figure, 1, 3)[0]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    matrix.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(share.shape):
        colour = "white" if share[i, j] > 0.5 else plots.INK
        text = f"{share[i, j]:.0%}\n{counts[i, j]:,}"
        matrix.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    matrix.set_xticks(range(5), STAGES)
    matrix.set_yticks(range(5), STAGES)
    _label(matrix, "predicted", "scored", "Confusion (share of the scored stage)")
    for k, stage in enumerate(STAGES):
        if 0 < (label_N == k).sum() < len(label_N):
            x, y, _ = roc_curve(label_N == k, prob_NK[:, k])
            area = roc_auc_score(label_N == k, prob_NK[:, k])
            roc.plot(
                *_thinned(x, y), color=plots.STAGE_COLOURS[k], lw=1.8, label=f"{stage} {area:.3f}"
            )
    roc.legend(loc="lower right", fontsize=7, frameon=False)
    _finish_roc(roc, "One stage against the rest (AUROC)")
    _draw_reliability(calibration, label_N == prob_NK.argmax(1), prob_NK.max(1))
    return figure


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(x) - 1, MAX_CURVE_POINTS).astype(int))
    return x[keep], y[keep]


def _label(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    plots.write_title(ax, title)


def _finish_roc(ax: Axes, title: str) -> None:
    ax.plot([0, 1], [0, 1], color=plots.SOFT, lw=0.8, ls=":")
    _label(ax, "1 - specificity", "sensitivity", title)


def _draw_reliability(ax: Axes, is_true_N: np.ndarray, prob_N: np.ndarray) -> None:
    table = metrics.reliability(is_true_N, prob_N)
    top = max(0.02, 1.15 * float(table[:, :2].max(initial=0)))
    ax.plot([0, top], [0, top], color=plots.SOFT, lw=0.8, ls=":")
    ax.plot(table[:, 0], table[:, 1], "o-", color=plots.COLOURS["encoder"], lw=1.6, ms=4.5)
    ax.set(xlim=(0, top), ylim=(0, top))
    x = "predicted probability (tenths of the epochs)"
    _label(ax, x, "observed share", "Reliability after recalibration")


def draw_subgroups(result: TaskResult) -> Figure:
    """AUROC within each age band and sex, with its interval."""
    name = auroc_name(result.task)
    kinds = result.subgroups.items()
    rows = [(f"{kind} {label}", entry) for kind, group in kinds for label, entry in group.items()]
    figure = Figure(figsize=(6.5, 0.8 + 0.26 * len(rows)), layout="constrained")
    ax = plots.clean_axes(figure)[0, 0]
    whole = result.by_source["encoder"].test.figures[name]
    if whole is not None:
        ax.axvline(whole, color=plots.COLOURS["encoder"], lw=0.9, ls=":")
    for y, (_, entry) in enumerate(rows):
        if entry["ci95"].get(name) is not None:
            ax.plot(entry["ci95"][name], [y, y], color=plots.COLOURS["encoder"], lw=2)
        if entry[name] is not None:
            ax.plot(entry[name], y, "o", color=plots.COLOURS["encoder"], ms=5)
    labels = [f"{label}  ({counted(entry['n_patients'], 'patient')})" for label, entry in rows]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel("weighted AUROC" if result.task == "sleep" else "AUROC", fontsize=9)
    return figure


# ------------------------------------------------------------------ where it fails
def draw_failures(index: store.ExampleIndex, failures: Sequence[tuple[int, str]]) -> Figure:
    """Signals of epochs that the probe is surest of and wrong; (position, caption) of each."""
    figure = Figure(figsize=(3.6 * len(failures), 5.2), layout="constrained")
    axes = plots.clean_axes(figure, 1, len(failures))[0]
    signals = store.read_signals(index, np.array([position for position, _ in failures]))
    for ax, (position, caption), x_CT in zip(axes, failures, signals, strict=True):
        plots.draw_epoch(ax, x_CT, index.present[position], caption, named=ax is axes[0])
    return figure


# ------------------------------------------------------------------ whole nights
def draw_night(results: Results, night: int, title: str) -> Figure:
    """One night: scored and predicted stages, probabilities of the stages and of the events.

    ``night`` is a number of index.nights().
    """
    tasks = results.tasks
    here = np.flatnonzero(results.index.nights()[results.test] == night)
    onsets_s = results.index.onsets_s[results.test[here]]
    if np.isnan(onsets_s).any():
        onsets_s = np.arange(len(here)) * EPOCH_S
    hours = (onsets_s - onsets_s[0]) / 3600
    sleep = results.fitted.get("sleep")
    events = {task: found for task, found in results.fitted.items() if task != "sleep"}
    heights = [1.3, 1.3, 1.0] * (sleep is not None) + [0.5] * len(events)
    figure = Figure(figsize=(10.5, 0.5 + 0.85 * sum(heights)), layout="constrained")
    axes = list(plots.clean_axes(figure, len(heights), 1, sharex=True, height_ratios=heights)[:, 0])
    plots.write_title(axes[0], title)
    if sleep is not None:
        plots.draw_stage_line(axes.pop(0), hours, tasks["sleep"].label_N[here], "scored", plots.INK)
        plots.draw_stage_line(
            axes.pop(0), hours, sleep.decided_N[here], "predicted", plots.COLOURS["encoder"]
        )
        plots.draw_hypnodensity(axes.pop(0), hours, sleep.prob_NK[here])
    for ax, (task, found) in zip(axes, events.items(), strict=True):
        prob_N, threshold = found.prob_NK[here, 1], found.probe.threshold
        ax.vlines(hours, 0, prob_N, color=plots.COLOURS["encoder"], lw=0.7)
        if threshold is not None:
            ax.axhline(threshold, color=plots.SOFT, lw=0.7, ls=":")
        top = max(float(prob_N.max(initial=0)), threshold or 0, 1e-3) * 1.35
        marked = hours[tasks[task].label_N[here] == 1]
        ax.plot(marked, np.full(len(marked), 0.94 * top), "|", color="#b3261e", ms=6, mew=0.9)
        ax.set_ylim(0, top)
        ax.set_ylabel(TASKS[task], rotation=0, ha="right", va="center", fontsize=8)
        ax.set_yticks([])
    figure.axes[-1].set_xlabel("hours", fontsize=9)
    return figure


def draw_agreement(results: Results) -> Figure:
    """Bland-Altman: predicted minus scored against their mean, a point a night."""
    nights, agreement = results.nights, results.agreement
    names = [name for name in agreement if agreement[name]["n"] > 0]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.5 * columns, 2.3 * rows), layout="constrained")
    axes = plots.clean_axes(figure, rows, columns)
    for ax, name in zip(axes.flat, names, strict=False):
        predicted, scored = nights[f"{name}_predicted"], nights[f"{name}_scored"]
        ax.plot(
            (predicted + scored) / 2, predicted - scored, "o", color=plots.COLOURS["encoder"], ms=4
        )
        ax.axhline(0, color=plots.LINE, lw=0.9)
        figures = agreement[name]
        for key, style in (("bias", "-"), ("lower", ":"), ("upper", ":")):
            if figures[key] is not None:
                ax.axhline(figures[key], color=plots.COLOURS["handmade"], lw=1.1, ls=style)
        plots.write_title(ax, quantity_in_words(name, results.events_per_epoch))
        ax.set_xlabel("mean of predicted and scored", fontsize=8)
        ax.set_ylabel("predicted - scored", fontsize=8)
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    return figure


# ------------------------------------------------------------------ few labels, and ages
def draw_label_curve(rows: Sequence[Mapping]) -> Figure:
    """AUROC against the number of labelled train patients, a panel a task; bands: 95 %."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    tasks = [*tasks[-1:], *tasks[:-1]]  # the mean of all first
    columns = min(3, len(tasks))
    shape = -(-len(tasks) // columns), columns
    figure = Figure(figsize=(3.5 * columns, 2.7 * shape[0] + 0.4), layout="constrained")
    axes = plots.clean_axes(figure, *shape)
    for ax, task in zip(axes.flat, tasks, strict=False):
        for way, (name, colour) in plots.WAYS.items():
            own = [row for row in rows if (row["task"], row["way"]) == (task, way)]
            if not own:
                continue
            sizes, values = zip(*((row["n_patients"], row["value"]) for row in own), strict=True)
            ax.plot(sizes, values, "o-", color=colour, lw=1.6, ms=4, label=name)
            known = [row for row in own if row["value_ci95"] is not None]
            low, high = np.array([row["value_ci95"] for row in known]).reshape(-1, 2).T
            ax.fill_between(
                [row["n_patients"] for row in known], low, high, color=colour, alpha=0.12, lw=0
            )
        ax.set_xscale("log")
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.axhline(0.5, color=plots.SOFT, lw=0.8, ls=":")
        ax.set_xlabel("labelled train patients", fontsize=8)
        ax.set_ylabel("AUROC on test", fontsize=8)
        plots.write_title(ax, TASKS.get(task, "mean of the tasks"))
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=8, frameon=False)
    return figure


def draw_age(nights: pd.DataFrame, figures: Mapping, names: Mapping[str, str]) -> Figure:
    """Predicted against true age, a point a night, and the error against the age."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    said, off = plots.clean_axes(figure, 1, 2)[0]
    age_N = nights["age"].to_numpy()
    ends = np.array([age_N.min(), age_N.max()])
    for source in [name for name in plots.COLOURS if name in figures["sources"]]:
        predicted_N = nights[f"{source}_predicted"].to_numpy()
        style = {"color": plots.COLOURS[source], "ms": 4, "alpha": 0.8}
        said.plot(age_N, predicted_N, "o", label=names[source], **style)
        off.plot(age_N, predicted_N - age_N, "o", **style)
        slope = figures["sources"][source]["slope_of_error"]["value"]
        if slope is not None:
            middle = (predicted_N - age_N).mean()
            off.plot(ends, middle + slope * (ends - age_N.mean()), color=style["color"], lw=1.4)
    said.plot(ends, ends, color=plots.SOFT, lw=0.8, ls=":")
    off.axhline(0, color=plots.SOFT, lw=0.8, ls=":")
    _label(said, "age, years", "age predicted, years", "Age from a night")
    _label(off, "age, years", "predicted - age, years", "Error against age, with its line")
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return figure


def quantity_in_words(name: str, per_epoch: Mapping[str, float]) -> str:
    """A column of the table of nights in words, with its unit; ``per_epoch``: Results' own."""
    if name.endswith("_min"):
        what = name.removesuffix("_min")
        return "total sleep, min" if what == "sleep" else f"stage {what}, min"
    unit = "events/h" if name in per_epoch else "epochs/h"
    return f"{name.replace('_', ' ').replace('apnea hypopnea', 'apnea-hypopnea')}, {unit}"
