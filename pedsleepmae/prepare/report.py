"""What script 1 tells: the inspection of one file, the summary of a run, prepare_report.html."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pedsleepmae.channels import CHANNEL_NAMES, CHANNELS, N_CHANNELS, Absent, Channel, Source
from pedsleepmae.pages.page import page_template, to_base64
from pedsleepmae.pages.plots import clean_axes, draw_epoch
from pedsleepmae.prepare.examples import Outcome, first_usable, read_channel, refuse_flat
from pedsleepmae.prepare.grouping import Grouping
from pedsleepmae.prepare.recordings import Recording, open_edf
from pedsleepmae.splits import SPLITS
from pedsleepmae.store import batch_path, map_signals, write_text
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
        row = (channel.name, source.origin, f"{source.rate_hz:.8g} Hz", source.unit or "blank")
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
    n_usable = sum(outcome.usable for outcome in outcomes)
    simulated = " (simulated)" if plan.simulated else ""
    lines = [f"{n_usable} of {len(outcomes)} recordings{simulated} give examples:"]
    for split, n_patients, _, n_examples in _split_rows(plan):
        lines.append(f"  {split:5s} {n_examples:9,d} examples of {n_patients:5,d} patients")
    if not plan.patient_disjoint:
        lines.append("  split in time: a patient stands in all three, scores will be flattered")
    lines += [f"  left out {n:5d}: {reason}" for reason, n in _reasons(outcomes)[:8]]
    return "\n".join(lines)


def write_report(outcomes: Sequence[Outcome], plan: Grouping, batches_dir: Path) -> Path:
    """Write prepare_report.html, which stands alone; its path."""
    usable = [outcome for outcome in outcomes if outcome.usable]
    page = page_template("prepare_report.html.j2").render(
        simulated=plan.simulated,
        patient_disjoint=plan.patient_disjoint,
        split_hash=plan.split_hash,
        n_recordings=len(outcomes),
        n_usable=len(usable),
        n_examples=sum(outcome.n_examples for outcome in usable),
        splits=_split_rows(plan),
        reasons=_reasons(outcomes),
        unusable=[outcome for outcome in outcomes if not outcome.usable],
        channels=_channel_rows(usable),
        labels=_label_rows(usable),
        quality=_quality_rows(usable),
        remarks=[(o.key, "; ".join(o.remarks)) for o in usable if o.remarks],
        pictures=_pictures(plan, batches_dir),
    )
    path = batches_dir / "prepare_report.html"
    write_text(path, page)
    return path


def _reasons(outcomes: Sequence[Outcome]) -> list[tuple[str, int]]:
    """(reason, how many recordings were left out for it), the most frequent first."""
    return Counter(_reason_kind(o.reason) for o in outcomes if not o.usable).most_common()


def _reason_kind(reason: str) -> str:
    """A reason without the file's name and numbers, to be counted."""
    text = reason.split(": ", 1)[1] if ".edf: " in reason or ".tsv: " in reason else reason
    return text.split(" (")[0]


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
                "origins": ", ".join(f"{origin} ({k})" for origin, k in origins.most_common(4)),
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
    signals, pictures = map_signals(path), []
    for row, (i, k) in enumerate(plan.rows["train"][:N_PICTURES]):
        study = plan.studies[i]
        caption = f"study {study.key}, example {k}"
        present_C = np.array([name in study.channels for name in CHANNEL_NAMES])
        figure = Figure(figsize=(9, 5), layout="constrained")
        draw_epoch(
            clean_axes(figure)[0, 0],
            np.asarray(signals[row], np.float32),
            present_C,
            caption,
            named=True,
            channels=range(N_CHANNELS),
        )
        pictures.append((caption, to_base64(figure)))
    return pictures
