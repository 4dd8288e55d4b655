"""What script 1 tells: counts of a run, prepare_report.html."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pedsleepmae.channels import CHANNEL_NAMES, N_CHANNELS
from pedsleepmae.disk import write_text
from pedsleepmae.pages.page import page_template, to_base64
from pedsleepmae.pages.plots import clean_axes, draw_epoch
from pedsleepmae.prepare import examples
from pedsleepmae.prepare.grouping import Grouping
from pedsleepmae.prepare.inspection import quality_in_words
from pedsleepmae.splits import SPLITS
from pedsleepmae.store import batch_path, map_signals

N_PICTURES = 4
N_QUALITY_ROWS = 500  # thousands would bury what follows


def write_report(outcomes: Sequence[examples.Outcome], plan: Grouping, batches_dir: Path) -> Path:
    """Write prepare_report.html, which stands alone; its path."""
    usable = [outcome for outcome in outcomes if outcome.usable]
    label_counts = Counter()  # epochs by label and code
    for outcome in usable:
        for label, codes in outcome.label_counts.items():
            label_counts.update({(label, int(code)): n for code, n in codes.items()})
    quality = _quality_rows(usable)
    page = page_template("prepare_report.html.j2").render(
        plan=plan,
        n_examples=sum(outcome.n_examples for outcome in usable),
        splits=split_rows(plan),
        reasons=count_reasons(outcomes),
        usable=usable,
        unusable=[outcome for outcome in outcomes if not outcome.usable],
        channels=_channel_rows(usable),
        label_counts=label_counts,
        quality=quality[:N_QUALITY_ROWS],
        n_quality=len(quality),
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
        if (words := quality_in_words(quality))
    ]
    worst = Counter(key for key, _, _ in rows)
    return sorted(rows, key=lambda row: (-worst[row[0]], row[0]))


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
