"""What script 1 tells: the inspection of one file, the summary of a run, prepare_report.html."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pedsleepmae.channels import (
    CHANNEL_NAMES,
    CHANNELS,
    EPOCH_SAMPLES,
    RATE_HZ,
    Absent,
    Channel,
    Source,
)
from pedsleepmae.prepare.examples import Outcome, first_usable, read_channel, refuse_flat
from pedsleepmae.prepare.grouping import Grouping, studies_table
from pedsleepmae.prepare.recordings import Recording, open_edf
from pedsleepmae.splits import SPLITS
from pedsleepmae.store import batch_path, map_signals, write_whole
from pedsleepmae.tasks import STAGES

# A channel is remarked on when more than this share of it is ...
REMARKABLE = {"flat": 0.2, "clipped": 0.02, "missing": 0.0, "out_of_range": 0.1, "mains": 0.3}
_IN_WORDS = {
    "flat": "flat for {:.0%} of the time",
    "clipped": "{:.1%} of the samples at the end of the range",
    "missing": "{:.1%} of the samples missing",
    "out_of_range": "{:.0%} beyond what is plausible",
    "mains": "{:.0%} of the power above 20 Hz is mains",
}
N_PICTURES = 4


# ------------------------------------------------------------------ one file
def inspect_recording(path: Path, stand_ins: Mapping[str, list[str]]) -> str:
    """Table of the 16 channels of an EDF file: from what, rate, unit, scale, or why absent.

    Raises RecordingError when the file cannot be read.
    """
    recording = open_edf(path)
    rows = [("channel", "from", "rate", "unit", "1st to 99th percentile", "remark")]
    found_in_turn = first_usable(recording, stand_ins, read_whole)
    for channel, found in zip(CHANNELS, found_in_turn, strict=True):
        if isinstance(found, Absent):
            rows.append((channel.name, "-", "", "", "", f"absent: {found.reason}"))
            continue
        source, x, quality = found
        row = (channel.name, source.how, f"{source.rate_hz:.8g} Hz", source.unit or "blank")
        rows.append((*row, _scale_in_words(channel.kind, x), _quality_in_words(quality)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    found = sum(not row[5].startswith("absent") for row in rows[1:])
    head = (
        f"{recording.name}: {recording.duration_s / 3600:.2f} h, {len(recording.signals)} signals"
    )
    head += "".join(f"; {remark}" for remark in recording.remarks)
    return "\n".join([head, *lines, f"{found} of 16 channels found"])


def read_whole(recording: Recording, channel: Channel, source: Source):
    """A channel's samples of the whole recording and their quality; UnusableRecording for none."""
    x, quality = read_channel(recording, channel, source)
    refuse_flat(recording, channel, source, x)
    return x, quality


def _scale_in_words(kind: str, x: np.ndarray) -> str:
    low, high = np.nanpercentile(x, (1, 99))
    if kind == "voltage":
        return f"{low * 1e6:.4g} to {high * 1e6:.4g} uV"
    return f"{low:.4g} to {high:.4g}" + (" %" if kind == "percent" else "")


def _quality_in_words(quality: Mapping[str, float]) -> str:
    return "; ".join(
        text.format(quality[name])
        for name, text in _IN_WORDS.items()
        if quality[name] > REMARKABLE[name]
    )


# ------------------------------------------------------------------ a run
def describe_outcomes(outcomes: Sequence[Outcome], plan: Grouping) -> str:
    """The lines that script 1 ends with: how many of what, and why not the others."""
    usable = [outcome for outcome in outcomes if outcome.usable]
    simulated = " (simulated)" if plan.simulated else ""
    lines = [f"{len(usable)} of {len(outcomes)} recordings{simulated} give examples:"]
    for split, rows in plan.rows.items():
        patients = {plan.studies[i].patient_id for i in np.unique(rows[:, 0])}
        lines.append(f"  {split:5s} {len(rows):9,d} examples of {len(patients):5,d} patients")
    if not plan.patient_disjoint:
        lines.append("  split in time: a patient stands in all three, scores will be flattered")
    reasons = Counter(_reason_kind(outcome.reason) for outcome in outcomes if not outcome.usable)
    lines += [f"  left out {n:5d}: {reason}" for reason, n in reasons.most_common(8)]
    return "\n".join(lines)


def _reason_kind(reason: str) -> str:
    """A reason without the file's name and numbers, to be counted."""
    text = reason.split(": ", 1)[1] if ".edf: " in reason or ".tsv: " in reason else reason
    return text.split(" (")[0]


def write_report(
    outcomes: Sequence[Outcome], plan: Grouping, health: pd.DataFrame | None, batches_dir: Path
) -> Path:
    """Write prepare_report.html, which stands alone; its path."""
    usable = [outcome for outcome in outcomes if outcome.usable]
    table = studies_table(outcomes, plan.assignment, _split_by(plan), health)
    template = jinja2.Environment(
        loader=jinja2.PackageLoader("pedsleepmae.pages"), autoescape=True
    ).get_template("prepare_report.html.j2")
    page = template.render(
        simulated=plan.simulated,
        patient_disjoint=plan.patient_disjoint,
        split_hash=plan.split_hash,
        n_recordings=len(outcomes),
        n_usable=len(usable),
        n_examples=sum(outcome.n_examples for outcome in usable),
        splits=_split_rows(plan),
        reasons=Counter(_reason_kind(o.reason) for o in outcomes if not o.usable).most_common(),
        unusable=table[table["status"] == "unusable"].to_dict("records"),
        channels=_channel_rows(usable),
        labels=_label_rows(usable),
        quality=_quality_rows(usable),
        remarks=[(o.key, "; ".join(o.remarks)) for o in usable if o.remarks],
        pictures=_pictures(plan, batches_dir),
    )
    path = Path(batches_dir) / "prepare_report.html"
    with write_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _split_by(plan: Grouping) -> str:
    return "patient" if plan.patient_disjoint else "time"


def _split_rows(plan: Grouping) -> list[tuple[str, int, int, int]]:
    """(split, patients, studies, examples)."""
    rows = []
    for split in SPLITS:
        studies = [plan.studies[i] for i in np.unique(plan.rows[split][:, 0])]
        patients = {study.patient_id for study in studies}
        rows.append((split, len(patients), len(studies), len(plan.rows[split])))
    return rows


def _channel_rows(usable: Sequence[Outcome]) -> list[dict]:
    """For each channel the number of recordings that have it, and where it comes from."""
    rows = []
    for name in CHANNEL_NAMES:
        origins = Counter(o.channels[name] for o in usable if name in o.channels)
        reasons = Counter(_reason_kind(o.absent[name]) for o in usable if name in o.absent)
        n = sum(origins.values())
        rows.append(
            {
                "name": name,
                "n": n,
                "share": n / max(len(usable), 1),
                "origins": ", ".join(f"{how} ({k})" for how, k in origins.most_common(4)),
                "reasons": ", ".join(f"{why} ({k})" for why, k in reasons.most_common(2)),
            }
        )
    return rows


def _label_rows(usable: Sequence[Outcome]) -> list[tuple[str, int, float]]:
    """(label, epochs, share of all epochs)."""
    names = {
        "sleep": {-1: "unscored", **dict(enumerate(STAGES))},
        "apnea": {1: "central apnea", 2: "obstructive apnea", 3: "mixed apnea"},
        "hypop": {1: "obstructive hypopnea", 2: "hypopnea"},
        "desat": {1: "oxygen desaturation"},
        "eeg": {1: "EEG arousal"},
    }
    total = max(sum(outcome.n_examples for outcome in usable), 1)
    rows = []
    for label, codes in names.items():
        for code, name in codes.items():
            n = sum(outcome.label_counts[label].get(str(code), 0) for outcome in usable)
            if n or code >= 0:
                rows.append((name, n, n / total))
    return rows


def _quality_rows(usable: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """(study, channel, what is wrong) of the channels worth a look, worst recordings first."""
    rows = []
    for outcome in usable:
        for name, quality in outcome.quality.items():
            if words := _quality_in_words(quality):
                rows.append((outcome.key, name, words))
    worst = Counter(key for key, _, _ in rows)
    return sorted(rows, key=lambda row: (-worst[row[0]], row[0]))[:500]


def _pictures(plan: Grouping, batches_dir: Path) -> list[tuple[str, str]]:
    """(caption, PNG in base64) of the first training examples, as they are stored."""
    path = batch_path(batches_dir, "train", 0)
    if not path.exists():
        return []
    signals = map_signals(path)
    pictures = []
    for row, (i, k) in enumerate(plan.rows["train"][:N_PICTURES]):
        caption = f"study {plan.studies[i].key}, example {k}"
        pictures.append((caption, _draw_example(np.asarray(signals[row], np.float32))))
    return pictures


def _draw_example(signal_CT: np.ndarray) -> str:
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        seconds = np.arange(EPOCH_SAMPLES) / RATE_HZ
        for c, x in enumerate(signal_CT):
            spread = np.percentile(np.abs(x - np.median(x)), 99) or 1.0
            shown = np.clip((x - np.median(x)) / spread, -1.5, 1.5)
            axes.plot(seconds, -c + 0.35 * shown, lw=0.5, color="#1f3b57")
        axes.set(xlim=(0, 30), ylim=(-len(signal_CT) + 0.2, 0.8), xlabel="seconds")
        axes.set_yticks(-np.arange(len(signal_CT)), CHANNEL_NAMES)
        axes.spines[["right", "left"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
