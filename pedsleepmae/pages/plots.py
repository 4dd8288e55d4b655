"""What several pages draw: axes, colours, an epoch, stages over a night, points of a map."""

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pedsleepmae.channels import CHANNEL_NAMES, EPOCH_S
from pedsleepmae.tasks import STAGES

INK, SOFT, LINE = "#1b2733", "#5b6b7a", "#dde3e8"
COLOURS = {
    "encoder": "#1f5c8b",
    "context": "#2a9d8f",
    "handmade": "#c77d1e",
    "handmade+encoder": "#8f5a12",
    "frozen": "#4fa3d1",
    "compared": "#7b5ea7",
    "untrained": "#8d99a6",
    "prevalence": "#c3cbd3",
}
NAMES = {
    "encoder": "pretrained encoder",
    "context": "… with neighbouring epochs",
    "handmade": "hand-made features",
    "handmade+encoder": "hand-made features with the encoder",
    "frozen": "frozen encoder",
    "compared": "compared checkpoint",
    "untrained": "untrained encoder",
    "prevalence": "prevalence alone",
    "epoch_labels": "true 30-s labels",
    "chance": "the truth, moved on",
}
TUNED = {  # mode of script 3 -> what its encoder is called
    "probe": NAMES["encoder"],
    "lora": "encoder with LoRA",
    "full": "fine-tuned encoder",
    "scratch": "encoder trained from scratch",
}
WAYS = {  # way of the curve of labels -> its name and colour
    "handmade": (NAMES["handmade"], COLOURS["handmade"]),
    "probe": ("frozen encoder", COLOURS["encoder"]),
    "lora": ("LoRA", COLOURS["context"]),
    "full": ("full fine-tuning", COLOURS["compared"]),
    "scratch": ("from scratch", COLOURS["untrained"]),
}
STAGE_COLOURS = ("#d9a441", "#8ecae6", "#4a90c2", "#1d4e79", "#c8553d")
EVENT_NAMES = ("none", "arousal", "desaturation", "hypopnea", "apnea")
EVENT_COLOURS = ("#d5dbe1", "#2a9d8f", "#6a4c93", "#e08e0b", "#b3261e")
HYPNOGRAM_ORDER = (0, 4, 1, 2, 3)  # W, R, N1, N2, N3 from top to bottom

SHOWN_CHANNELS = (0, 4, 5, 13, 14, 15, 8, 9, 10, 12, 7)  # enough to see what a scorer looks at


def clean_axes(figure: Figure, rows: int = 1, columns: int = 1, **options) -> np.ndarray:
    """Axes without frame above and to the right."""
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(LINE)
        ax.tick_params(colors=SOFT, labelsize=8)
        ax.xaxis.label.set_color(INK)
    return axes


def write_title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=10, color=INK, loc="left", fontweight="bold")


def draw_epoch(
    ax: Axes,
    x_CT: np.ndarray,
    present_C: np.ndarray,
    caption: str,
    *,
    named: bool,
    channels: Sequence[int] = SHOWN_CHANNELS,
    height_C: np.ndarray | None = None,
    colour: str = INK,
) -> None:
    """These channels of one epoch below each other; with their names where ``named``.

    Each is drawn to its own height, or to ``height_C`` (16,), in standardised units, so that
    epochs beside each other can be compared.
    """
    seconds = np.arange(x_CT.shape[1]) * EPOCH_S / x_CT.shape[1]
    height_C = channel_heights(x_CT) if height_C is None else height_C
    for row, channel in enumerate(channels):
        if not present_C[channel]:
            ax.text(EPOCH_S / 2, -row, "not recorded", ha="center", fontsize=6, color=SOFT)
            continue
        x_T = x_CT[channel] - np.median(x_CT[channel])
        y_T = np.clip(x_T / height_C[channel], -1.2, 1.2) * 0.42 - row
        ax.plot(seconds, y_T, lw=0.45, color=colour, rasterized=True)
    labels = [CHANNEL_NAMES[channel] for channel in channels]
    ax.set_yticks([-row for row in range(len(labels))], labels if named else [])
    ax.tick_params(axis="y", labelsize=6.5, length=0)
    ax.set_xlim(0, EPOCH_S)
    ax.set_ylim(0.6 - len(labels), 0.6)
    ax.set_xlabel("seconds", fontsize=8)
    ax.set_title(caption, fontsize=8, color=INK, loc="left")


def channel_heights(x_CT: np.ndarray) -> np.ndarray:
    """Swing of each channel about its median that 99 % of the samples keep to, (C,), above 0."""
    x_CT = x_CT - np.median(x_CT, axis=1, keepdims=True)
    return np.maximum(np.quantile(np.abs(x_CT), 0.99, axis=1), 1e-3)


def draw_stage_line(ax: Axes, hours: np.ndarray, stage_N: np.ndarray, name: str, colour: str):
    """Hypnogram of epochs that start at ``hours``, REM thick; gaps between epochs stay gaps."""
    height = np.full(6, np.nan)
    height[list(HYPNOGRAM_ORDER)] = -np.arange(5)
    gap = np.append(np.diff(hours) > 1.5 * EPOCH_S / 3600, False)
    level = np.where(stage_N >= 0, height[stage_N], np.nan)
    x = np.stack([hours, hours + EPOCH_S / 3600], 1).ravel()
    y = np.stack([level, level], 1).ravel()
    breaks = np.flatnonzero(gap)
    x, y = np.insert(x, 2 * breaks + 2, np.nan), np.insert(y, 2 * breaks + 2, np.nan)
    ax.plot(x, y, color=colour, lw=1.1)
    rem = np.where(np.isclose(y, height[4]), y, np.nan)
    ax.plot(x, rem, color=STAGE_COLOURS[4], lw=3.2, solid_capstyle="butt")
    ax.set_yticks(-np.arange(5), [STAGES[k] for k in HYPNOGRAM_ORDER])
    ax.set_ylim(-4.5, 0.5)
    ax.set_ylabel(name, fontsize=9)


def draw_bars(
    ax: Axes,
    hours: np.ndarray,
    bottom_N: np.ndarray,
    top_N: np.ndarray,
    colour: str,
    label: str = "",
) -> None:
    """A block for each epoch that starts at ``hours``, all as one artist.

    Axes.bar makes an artist of each; of a night's thousands drawing took seconds.
    """
    left, right = hours, hours + EPOCH_S / 3600
    corners = [(left, bottom_N), (left, top_N), (right, top_N), (right, bottom_N)]
    blocks = np.stack([np.stack(corner, 1) for corner in corners], 1)
    ax.add_collection(PolyCollection(blocks, facecolors=colour, linewidths=0, label=label))


def draw_hypnodensity(ax: Axes, hours: np.ndarray, prob_NK: np.ndarray) -> None:
    """Hypnodensity graph (Stephansen et al. 2018): the stages' probabilities, stacked, in time.

    Bars of an epoch each, so that a gap between epochs stays a gap.
    """
    below = np.zeros(len(hours))
    for k in (3, 2, 1, 4, 0):
        above = below + prob_NK[:, k]
        draw_bars(ax, hours, below, above, STAGE_COLOURS[k], STAGES[k])
        below = above
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1])
    ax.set_ylabel("hypnodensity", fontsize=9)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False, reverse=True)


def scatter_coloured(ax: Axes, xy: np.ndarray, name: str, value_N: np.ndarray, size: float = 5):
    """Points coloured by one of EmbeddingMap's colourings, with its legend or scale of colours."""
    x, y = xy.T
    style = {"s": size, "linewidths": 0}
    if name in ("stage", "event"):
        labels, colours = EVENT_NAMES, EVENT_COLOURS
        if name == "stage":
            labels, colours = STAGES, STAGE_COLOURS
        for k, label in enumerate(labels):
            here = value_N == k
            ax.scatter(x[here], y[here], color=colours[k], label=label, **style)
        ax.legend(fontsize=7, frameon=False, markerscale=3, loc="best")
    elif name == "patient":
        # Golden-ratio steps round the hues: neighbouring numbers stay apart.
        hues = [colorsys.hsv_to_rgb(k * 0.618 % 1, 0.62, 0.85) for k in range(value_N.max() + 1)]
        ax.scatter(x, y, c=value_N, cmap=ListedColormap(hues), **style)
    else:
        shown = np.isfinite(value_N)
        points = ax.scatter(x[shown], y[shown], c=value_N[shown], cmap="viridis", **style)
        of_what = {"hours": "hours into the recording", "age": "age, years"}
        of_what["channels"] = "of 16 channels"
        ticks = MaxNLocator(6, integer=name == "channels")
        ax.figure.colorbar(points, ax=ax, shrink=0.6, label=of_what[name], ticks=ticks)
