"""report.html of one scored night: the night in one picture, its figures, what they rest on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.signal import welch

from pedsleepmae import disk, store
from pedsleepmae.channels import CHANNEL_GROUPS, CHANNEL_NAMES, EPOCH_S, RATE_HZ
from pedsleepmae.pages import plots
from pedsleepmae.pages.page import counted, page_template, to_base64
from pedsleepmae.prepare.signals import undo_standard
from pedsleepmae.score.laboratory import MEANINGS, RATES
from pedsleepmae.score.night import Night
from pedsleepmae.tasks import EVENT_TEXTS, EVENTS

SPECTRUM_S, SPECTRUM_HZ = 4.0, (0.5, 30.0)  # Welch's pieces, half overlapping; what is shown
SHOWN_EEG = (4, 0, 5, 6, 1, 2, 3)  # C4-M1 first, as sleep is scored, then what there is
SPO2 = CHANNEL_NAMES.index("SPO2")
N_EVENTS, STRETCH_S = 2, 90.0  # of each kind, shown in stretches of this length
_BREATHING = (*CHANNEL_GROUPS["flow"], *CHANNEL_GROUPS["effort"], SPO2)
LOOKED_AT = dict.fromkeys(EVENTS, _BREATHING) | {"arousal": (4, 0, *CHANNEL_GROUPS["EMG"])}


def write_report(folder: Path, night: Night, summary: Mapping, examples: store.Examples) -> Path:
    """Write report.html, which stands alone; its path."""
    events = events_to_look_at(night)
    page = page_template("night_report.html.j2").render(
        summary=summary,
        picture=to_base64(draw_night(night, examples, summary["channels"])),
        events_picture=events and to_base64(draw_events(night, examples, events)),
        has_eeg=bool(examples.present[:, list(CHANNEL_GROUPS["EEG"])].any()),
        name_of=quantity_name,
        rates=list(RATES),
        time_of=time_in_words,
        counted=counted,
        has_scored=night.scored is not None,
    )
    path = folder / "report.html"
    disk.write_text(path, page)
    return path


def quantity_name(name: str) -> str:
    """A quantity of the summary in words."""
    return MEANINGS[name].title


def time_in_words(time_s: float | None, told_by: str) -> str:
    """`1.25 h from the start of the recording (annotations)`."""
    if time_s is None:
        return "not known"
    return f"{time_s / 3600:.2f} h from the start of the recording ({told_by})"


# ------------------------------------------------------------------ the picture
def draw_night(night: Night, examples: store.Examples, origins: Mapping[str, str]) -> Figure:
    """The night from top to bottom: hypnogram, hypnodensity, spectrogram, SpO2, events, flags.

    ``origins``: where each present channel comes from. Lights off and on are dashed lines.
    """
    hours = night.onsets_s / 3600
    stages = "sleep" in night.called
    events = [task for task in EVENT_TEXTS if task in night.called]
    eeg = next((c for c in SHOWN_EEG if examples.present[:, c].any()), None)
    # Relative heights; a panel that would show nothing has none and is left out.
    panels = {
        "scored": 1.3 * (night.scored is not None),
        "hypnogram": 1.3 * stages,
        "hypnodensity": 1.3 * stages,
        "spectrogram": 1.5 * (eeg is not None),
        "SpO2": 0.8 * bool(examples.present[:, SPO2].any()),
        "events": 0.26 * len(events),
        "distance": 0.7,
    }
    panels = {name: height for name, height in panels.items() if height}
    heights = list(panels.values())
    figure = Figure(figsize=(11, 0.6 + 0.95 * sum(heights)), layout="constrained")
    axes = plots.clean_axes(figure, len(panels), sharex=True, height_ratios=heights)
    axes = dict(zip(panels, axes[:, 0], strict=True))
    if "scored" in axes:
        plots.draw_stage_line(axes["scored"], hours, night.scored["sleep"], "scored", plots.INK)
    if stages:
        colour = plots.COLOURS["encoder"]
        plots.draw_stage_line(axes["hypnogram"], hours, night.called["sleep"], "predicted", colour)
        plots.draw_hypnodensity(axes["hypnodensity"], hours, night.prob["sleep"])
    if "spectrogram" in axes:
        _draw_spectrogram(figure, axes["spectrogram"], hours, examples, eeg)
        name = origins[CHANNEL_NAMES[eeg]].removeprefix("stand-in ")
        axes["spectrogram"].set_ylabel(f"{name}, Hz", fontsize=8)
    if "SpO2" in axes:
        _draw_spo2(axes["SpO2"], night.onsets_s, examples)
    if events:
        _draw_events(axes["events"], hours, night, events)
    _draw_distance(axes["distance"], hours, night)
    shown = [hours[0], hours[-1] + EPOCH_S / 3600]
    for time_s in {night.lights.off_s, night.lights.on_s} - {None}:
        shown.append(time_s / 3600)
        for ax in axes.values():
            ax.axvline(time_s / 3600, color=plots.INK, lw=0.9, ls=(0, (4, 3)), clip_on=False)
    axes["distance"].set_xlim(min(shown), max(shown))
    axes["distance"].set_xlabel("hours from the start of the recording", fontsize=9)
    return figure


def power_density(x_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (M,) Hz, power density (N, M) in the unit squared per Hz) of each epoch.

    Welch: Hann windows of 4 s, half overlapping, without their means.
    """
    return welch(x_NT, RATE_HZ, nperseg=int(SPECTRUM_S * RATE_HZ))


def _draw_spectrogram(figure, ax: Axes, hours: np.ndarray, examples: store.Examples, c: int):
    known = np.flatnonzero(examples.present[:, c])
    x_NT = _physical(examples, known, c) * 1e6
    hz, power_NM = power_density(x_NT)
    shown = (hz >= SPECTRUM_HZ[0]) & (hz <= SPECTRUM_HZ[1])
    decibel_NM = 10 * np.log10(np.maximum(power_NM[:, shown], 1e-6))
    # An epoch with a gap is NaN throughout; it stays blank and takes the colours from no other.
    low, high = np.nanpercentile(decibel_NM, (2, 98)) if np.isfinite(decibel_NM).any() else (0, 1)
    colours = {"cmap": "viridis", "vmin": low, "vmax": max(high, low + 1)}
    rows = np.append(hz[shown], hz[shown][-1] + hz[1]) - hz[1] / 2
    for run in _adjoining(examples.onsets_s[known]):
        edges = np.append(hours[known[run]], hours[known[run[-1]]] + EPOCH_S / 3600)
        mesh = ax.pcolormesh(edges, rows, decibel_NM[run].T, rasterized=True, **colours)
    ax.set_ylim(*SPECTRUM_HZ)
    bar = figure.colorbar(mesh, cax=ax.inset_axes([1.008, 0, 0.008, 1]))
    bar.ax.tick_params(labelsize=7, colors=plots.SOFT)
    bar.set_label("dB (µV²/Hz)", fontsize=7)
    bar.outline.set_visible(False)


def _draw_spo2(ax: Axes, onsets_s: np.ndarray, examples: store.Examples) -> None:
    known = np.flatnonzero(examples.present[:, SPO2])
    per_second = _physical(examples, known, SPO2)[:, :: int(RATE_HZ)]
    seconds = onsets_s[known][:, None] + np.arange(per_second.shape[1])
    for run in _adjoining(onsets_s[known]):
        ax.plot(seconds[run].ravel() / 3600, per_second[run].ravel(), lw=0.7, color="#6a4c93")
    lowest = np.nanpercentile(per_second, 0.5) if np.isfinite(per_second).any() else 90
    ax.set_ylim(min(lowest - 2, 90), 100.5)
    ax.set_ylabel("SpO2, %", fontsize=8)


def _draw_events(ax: Axes, hours: np.ndarray, night: Night, events: list[str]) -> None:
    """A row for each kind: events (or called epochs) as blocks, scored epochs as a line below."""
    width = EPOCH_S / 3600
    colours = dict(zip(plots.EVENT_NAMES, plots.EVENT_COLOURS, strict=True))
    for row, task in enumerate(events):
        colour = colours.get(task, plots.INK)
        called = []
        if task in night.found:
            called = [(on / 3600, (end - on) / 3600) for on, end, _ in night.found[task]]
        elif task not in night.not_counted:
            called = [(h, width) for h in hours[night.called[task] == 1]]
        ax.broken_barh(called, (-row - 0.3, 0.5), color=colour, lw=0)
        if night.scored:
            scored = hours[night.scored[task] == 1]
            ax.broken_barh([(h, width) for h in scored], (-row - 0.46, 0.1), color=plots.INK, lw=0)
    ax.set_yticks([-row for row in range(len(events))], [EVENT_TEXTS[task] for task in events])
    ax.set_ylim(-len(events) + 0.5, 0.5)
    ax.tick_params(axis="y", length=0)
    for row in range(1, len(events)):
        ax.axhline(0.5 - row, color=plots.LINE, lw=0.6)


def _draw_distance(ax: Axes, hours: np.ndarray, night: Night) -> None:
    """Distance from the training data; the dashed line is the threshold, flagged epochs are red."""
    finite_N = night.distance_N[np.isfinite(night.distance_N)]
    top = 1.25 * max(1.2, float(np.percentile(finite_N, 99)) if len(finite_N) else 0)
    shown = np.minimum(night.distance_N, top)
    for far, colour in ((False, plots.SOFT), (True, "#b3261e")):
        here = night.far_N == far
        plots.draw_bars(ax, hours[here], np.zeros(here.sum()), shown[here], colour)
    ax.axhline(1, color=plots.INK, lw=0.8, ls="--")
    ax.set_ylim(0, top)
    ax.set_ylabel("distance\n(1: flag)", fontsize=8)


# ------------------------------------------------------------------ single events
def events_to_look_at(night: Night) -> list[tuple[str, float, float]]:
    """(task, onset_s, end_s) of the most probable single events of each kind, in order of time."""
    shown = []
    for task in EVENTS:
        spans = night.found.get(task, np.zeros((0, 3)))
        best = spans[np.argsort(-spans[:, 2], kind="stable")[:N_EVENTS]]
        shown += [(task, on_s, end_s) for on_s, end_s, _ in best.tolist()]
    return sorted(shown, key=lambda event: event[1])


def draw_events(
    night: Night, examples: store.Examples, events: Sequence[tuple[str, float, float]]
) -> Figure:
    """A stretch of signals around each event, two beside each other, the event coloured."""
    n_rows = -(-len(events) // 2)
    figure = Figure(figsize=(11, 2.1 * n_rows), layout="constrained")
    axes = plots.clean_axes(figure, n_rows, 2)
    for ax, event in zip(axes.ravel(), events, strict=False):
        _draw_stretch(ax, night, examples, event)
    for ax in axes.ravel()[len(events) :]:
        ax.set_visible(False)
    return figure


def _draw_stretch(
    ax: Axes, night: Night, examples: store.Examples, event: tuple[str, float, float]
) -> None:
    task, on_s, end_s = event
    first_s = (on_s + end_s - STRETCH_S) / 2
    here = np.flatnonzero(
        (night.onsets_s + EPOCH_S > first_s) & (night.onsets_s < first_s + STRETCH_S)
    )
    times_s = (night.onsets_s[here][:, None] + np.arange(0, EPOCH_S, 1 / RATE_HZ)).ravel()
    inside = (times_s >= first_s) & (times_s <= first_s + STRETCH_S)
    channels = [c for c in LOOKED_AT[task] if examples.present[here, c].all()]
    for row, c in enumerate(channels):
        x = examples.signals[here, c].astype(np.float32).ravel()[inside]
        low, high = np.nanpercentile(x, (0.5, 99.5)) if np.isfinite(x).any() else (0, 1)
        y = np.clip((x - low) / max(high - low, 1e-3), -0.1, 1.1) * 0.85 - row
        ax.plot(times_s[inside] - first_s, y, color=plots.INK, lw=0.5)
    colours = dict(zip(plots.EVENT_NAMES, plots.EVENT_COLOURS, strict=True))
    for other_s, other_end_s, _ in night.found[task]:
        is_it = other_s == on_s
        colour, strength = (colours[task], 0.35) if is_it else (plots.SOFT, 0.2)
        ax.axvspan(other_s - first_s, other_end_s - first_s, color=colour, alpha=strength, lw=0)
    names = [CHANNEL_NAMES[c] for c in channels]
    ax.set_yticks([0.4 - row for row in range(len(names))], names, fontsize=7)
    ax.set_xlim(0, STRETCH_S)
    ax.set_ylim(-len(channels) + 0.85, 1)
    ax.set_title(f"{EVENT_TEXTS[task]} at {on_s:,.0f} s", fontsize=9, loc="left")


def _physical(examples: store.Examples, rows: np.ndarray, c: int) -> np.ndarray:
    """Channel ``c`` of these epochs in its physical unit, (n, 3840)."""
    at = (rows, c)
    return undo_standard(examples.signals[at], examples.center[at], examples.scale[at])


def _adjoining(onsets_s: np.ndarray) -> list[np.ndarray]:
    """Positions of the epochs, cut wherever one does not follow the one before."""
    breaks = np.flatnonzero(np.abs(np.diff(onsets_s) - EPOCH_S) > 0.5) + 1
    return np.split(np.arange(len(onsets_s)), breaks)
