"""What script 1 tells: the inspection of one file, counts of a run, prepare_report.html."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pedsleepmae.channels import CHANNEL_NAMES, CHANNELS, N_CHANNELS, Absent, Channel, Source
from pedsleepmae.disk import write_text
from pedsleepmae.pages.page import page_template, to_base64
from pedsleepmae.pages.plots import clean_axes, draw_epoch
from pedsleepmae.prepare import examples
from pedsleepmae.prepare.grouping import Grouping
from pedsleepmae.prepare.recordings import Recording, open_edf
from pedsleepmae.splits import SPLITS
from pedsleepmae.store import batch_path, map_signals

REMARKABLE = {  # share of a channel above which it is remarked on, and the remark
    "flat": (0.2, "flat for {:.0%} of the time"),
    "clipped": (0.02, "{:.1%} of the samples at the end of the range"),
    "missing": (0.0, "{:.1%} of the samples missing"),
    "out_of_range": (0.1, "{:.0%} beyond what is plausible"),
    "mains": (0.3, "{:.0%} of the power above 20 Hz is mains"),
}
N_PICTURES = 4


# ------------------------------------------------------------------ one file
def inspect_recording(path: Path, settings: examples.ReadSettings) -> str:
    """Table of the 16 channels of an EDF file: from what, rate, unit, scale, or why absent.

    Raises RecordingError when the file cannot be read.
    """
    recording = open_edf(path)
    rows = [("channel", "from", "rate", "unit", "1st to 99th percentile", "remark")]
    found_in_turn = examples.first_usable(recording, settings, read_whole)
    for channel, found in zip(CHANNELS, found_in_turn, strict=True):
        if isinstance(found, Absent):
            rows.append((channel.name, "-", "", "", "", f"absent: {found.reason}"))
            continue
        source, x, quality = found
        row = (channel.name, source.origin, f"{source.rate_hz:.8g} Hz", source.unit or "blank")
        rows.append((*row, _scale_in_words(channel.kind, x), _quality_in_words(quality)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    found = sum(not row[5].startswith("absent") for row in rows[1:])
    head = (
        f"{recording.name}: {recording.duration_s / 3600:.2f} h, {len(recording.signals)} signals"
    )
    head += "".join(f"; {remark}" for remark in recording.remarks)
    return "\n".join([head, *lines, f"{found} of 16 channels found"])


def read_whole(recording: Recording, channel: Channel, source: Source):
    """A channel's samples of the whole recording and their quality; UnusableRecording for none."""
    x, missing, quality = examples.read_channel(recording, channel, source)
    examples.refuse_flat(recording, channel, source, x)
    return np.where(missing, np.float32(np.nan), x), quality


def _scale_in_words(kind: str, x: np.ndarray) -> str:
    low, high = np.nanpercentile(x, (1, 99))
    if kind == "voltage":
        return f"{low * 1e6:.4g} to {high * 1e6:.4g} uV"
    return f"{low:.4g} to {high:.4g}" + (" %" if kind == "percent" else "")


def _quality_in_words(quality: Mapping[str, float]) -> str:
    return "; ".join(
        text.format(quality[name])
        for name, (bound, text) in REMARKABLE.items()
        if quality[name] > bound
    )


# ------------------------------------------------------------------ a run
def write_report(outcomes: Sequence[examples.Outcome], plan: Grouping, batches_dir: Path) -> Path:
    """Write prepare_report.html, which stands alone; its path."""
    usable = [outcome for outcome in outcomes if outcome.usable]
    label_counts = Counter()  # epochs by label and code
    for outcome in usable:
        for label, codes in outcome.label_counts.items():
            label_counts.update({(label, int(code)): n for code, n in codes.items()})
    page = page_template("prepare_report.html.j2").render(
        plan=plan,
        n_examples=sum(outcome.n_examples for outcome in usable),
        splits=split_rows(plan),
        reasons=count_reasons(outcomes),
        usable=usable,
        unusable=[outcome for outcome in outcomes if not outcome.usable],
        channels=_channel_rows(usable),
        label_counts=label_counts,
        quality=_quality_rows(usable),
        pictures=_pictures(plan, batches_dir),
    )
    path = batches_dir / "prepare_report.html"
    write_text(path, page)
    return path


def count_reasons(outcomes: Sequence[examples.Outcome]) -> list[tuple[str, int]]:
    """(reason, how many recordings were left out for it), the most frequent first."""
    return Counter(_reason_kind(o.reason) for o in outcomes if not o.usable).most_common()


def _reason_kind(reason: str) -> str:
    """A reason without the file's name and numbers, to be counted."""
    is_named = any(f".{suffix}: " in reason for suffix in ("edf", "tsv", "csv", "txt", "xml"))
    text = reason.split(": ", 1)[1] if is_named else reason
    return text.split(" (")[0]


def split_rows(plan: Grouping) -> list[tuple[str, int, int, int]]:
    """(split, patients, studies, examples)."""
    rows = []
    for split in SPLITS:
        studies = [plan.studies[i] for i in np.unique(plan.rows[split][:, 0])]
        patients = {study.patient_id for study in studies}
        rows.append((split, len(patients), len(studies), len(plan.rows[split])))
    return rows


def _channel_rows(usable: Sequence[examples.Outcome]) -> list[tuple[str, Counter, Counter]]:
    """(channel, where it comes from in how many recordings, why it is absent in how many)."""
    rows = []
    for name in CHANNEL_NAMES:
        origins = Counter(o.channels[name] for o in usable if name in o.channels)
        reasons = Counter(_reason_kind(o.absent[name]) for o in usable if name in o.absent)
        rows.append((name, origins, reasons))
    return rows


def _quality_rows(usable: Sequence[examples.Outcome]) -> list[tuple[str, str, str]]:
    """(study, channel, what is wrong) of the channels worth a look, worst recordings first."""
    rows = [
        (outcome.key, name, words)
        for outcome in usable
        for name, quality in outcome.quality.items()
        if (words := _quality_in_words(quality))
    ]
    worst = Counter(key for key, _, _ in rows)
    return sorted(rows, key=lambda row: (-worst[row[0]], row[0]))[:500]


def _pictures(plan: Grouping, batches_dir: Path) -> list[tuple[str, str]]:
    """(caption, PNG in base64) of the first training examples, as they are stored."""
    path = batch_path(batches_dir, "train", 0)
    if not path.exists():
        return []
    pictures = []
    for x_CT, (i, k) in zip(map_signals(path), plan.rows["train"][:N_PICTURES], strict=False):
        study = plan.studies[i]
        caption = f"study {study.key}, example {k}"
        present_C = np.array([name in study.channels for name in CHANNEL_NAMES])
        figure = Figure(figsize=(9, 5), layout="constrained")
        ax = clean_axes(figure)[0, 0]
        draw_epoch(
            ax, x_CT.astype(np.float32), present_C, caption, named=True, channels=range(N_CHANNELS)
        )
        pictures.append((caption, to_base64(figure)))
    return pictures
