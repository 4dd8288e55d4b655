"""MNE users' way in and out: a Raw to examples, predictions to mne.Annotations.

examples = pedsleepmae.examples_from_raw(raw)
embeddings = pedsleepmae.PedSleepEncoder().transform(examples.signals)
raw.set_annotations(pedsleepmae.annotate(raw))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pedsleepmae.annotations import scoring_from_rows
from pedsleepmae.prepare import ExampleSettings, examples_to_score
from pedsleepmae.recordings import open_raw, read_raw_annotations
from pedsleepmae.scoring import annotation_rows, load_scorer, score_examples
from pedsleepmae.store import Examples

if TYPE_CHECKING:
    import mne


def examples_from_raw(
    raw: "mne.io.BaseRaw",
    *,
    stand_ins: Mapping[str, list[str]] | None = None,
    min_channels: int = 4,
    scaling: str = "policy",
    use_annotations: bool = True,
    grid_offset_s: float = 0.0,
) -> Examples:
    """Standardised 30-s examples of an MNE Raw, absent channels NaN in ``signals``.

    At the epochs that the Raw's annotations stage (`Sleep stage W`, …); where there are none, on a
    30-s grid from ``grid_offset_s`` on. The settings mean what they do in script 4. RecordingError
    when the Raw gives no examples.
    """
    scoring = scoring_from_rows(read_raw_annotations(raw)) if use_annotations else None
    if scoring is not None and not (scoring.stages >= 0).any():
        scoring = None
    settings = ExampleSettings(
        stand_ins=stand_ins or {}, min_channels=min_channels, scaling=scaling
    )
    examples, _ = examples_to_score(open_raw(raw), scoring, settings, grid_offset_s)
    examples.signals[~examples.present] = np.nan
    return examples


def annotate(
    recording: "mne.io.BaseRaw | Examples",
    checkpoint: Path | str = "checkpoint/m15p8_checkpoint.pt",
    probes: Path | str = "checkpoint/probes.npz",
    *,
    far_share: float = 0.01,
    device: str = "auto",
) -> "mne.Annotations":
    """Stages, events and flags of a Raw (or of its examples) as annotations, no medical device.

    The rows are those of script 4's annotations.edf; ``raw.set_annotations`` takes them.
    """
    import mne  # needed by those who have it loaded anyway

    examples = recording if isinstance(recording, Examples) else examples_from_raw(recording)
    scorer = load_scorer(checkpoint, probes, device=device)
    night = score_examples(scorer, examples, far_share=far_share)
    onsets_s, durations_s, texts = zip(*annotation_rows(night), strict=True)
    return mne.Annotations(onsets_s, durations_s, texts)
