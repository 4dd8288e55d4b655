"""A picture of one example: true signal, what was hidden, and the model's reconstruction."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pedsleepmae.channels import CHANNEL_NAMES, EPOCH_SAMPLES, RATE_HZ
from pedsleepmae.store import write_whole

DETAIL_S = (12.0, 16.0)  # the right column shows these seconds of the epoch
TRUE_COLOUR, MODEL_COLOUR, HIDDEN_COLOUR = "0.25", "tab:orange", "0.90"


def draw_reconstruction(
    path: Path,
    x_CT: np.ndarray,
    pred_CT: np.ndarray,
    hidden_CS: np.ndarray,
    present_C: np.ndarray,
    title: str,
) -> None:
    """Write a PNG with a row for each channel: 30 s on the left, four of them on the right.

    ``x_CT`` and ``pred_CT`` (16, 3840) standardised; ``hidden_CS`` True where a patch was hidden
    from the model, shaded; the reconstruction is drawn there alone.
    """
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    hidden_CT = np.repeat(hidden_CS, EPOCH_SAMPLES // hidden_CS.shape[1], axis=1)
    figure = Figure(figsize=(15, 14), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(x_CT), 2, sharex="col", gridspec_kw={"width_ratios": [2.2, 1], "hspace": 0}
    )
    for channel, (name, pair) in enumerate(zip(CHANNEL_NAMES, axes, strict=True)):
        for axis, (first_s, last_s) in zip(pair, [(0.0, time_s[-1]), DETAIL_S], strict=True):
            shown = (time_s >= first_s) & (time_s <= last_s)
            hidden = hidden_CT[channel, shown]
            axis.fill_between(
                time_s[shown],
                *(0, 1),
                where=hidden,
                transform=axis.get_xaxis_transform(),
                color=HIDDEN_COLOUR,
                linewidth=0,
            )
            axis.plot(time_s[shown], x_CT[channel, shown], color=TRUE_COLOUR, linewidth=0.6)
            pred = np.where(hidden, pred_CT[channel, shown], np.nan)
            axis.plot(time_s[shown], pred, color=MODEL_COLOUR, linewidth=0.9)
            axis.set_xlim(first_s, last_s)
            axis.tick_params(labelsize=6)
        label = name if present_C[channel] else f"{name}\n(absent)"
        pair[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axes[-1, 0].set_xlabel("time, s")
    axes[-1, 1].set_xlabel("time, s")
    figure.suptitle(
        f"{title}\ngrey: signal (standardised); shaded: hidden from the model; "
        "orange: the model's reconstruction of it",
        fontsize=10,
    )
    with write_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
