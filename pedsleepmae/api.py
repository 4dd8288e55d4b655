"""What `import pedsleepmae` offers: an encoder for scikit-learn, examples and scoring for MNE.

MNE and the reading of recordings are imported by the functions that need them: the encoder runs
without edfio, mne and soxr.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array

from pedsleepmae.adapters import load_adapter, merge
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.checkpoints import read_checkpoint
from pedsleepmae.data import fill_gaps
from pedsleepmae.machine import Compute
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe.embeddings import embed_arrays
from pedsleepmae.score.exports import events, hypnogram
from pedsleepmae.score.night import Night, annotation_rows, load_scorer, score_examples
from pedsleepmae.shipped import find_file
from pedsleepmae.store import Examples

if TYPE_CHECKING:
    import mne

__all__ = ["PedSleepEncoder", "annotate", "events", "examples_from_raw", "hypnogram"]
__all__ += ["load_model", "score_night"]

N_COLUMNS = N_CHANNELS * EPOCH_SAMPLES  # of an example as a row of a table


def load_model(
    path: Path | str, device: str = "cpu", adapter: Path | str | None = None
) -> MaskedAutoencoder:
    """The model of a checkpoint in evaluation mode; with an ``adapter`` of script 3 merged into it.

    CheckpointError for a file that is none, and for an adapter of another encoder.
    """
    checkpoint = read_checkpoint(path, device)
    if adapter is not None:
        checkpoint = merge(checkpoint, load_adapter(adapter))
    return checkpoint.build_model()


# ------------------------------------------------------------------ for scikit-learn
class PedSleepEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Standardised 30-s examples (n, 16, 3840) to embeddings (n, d) of a pretrained encoder.

    ``checkpoint``: a file of script 2; the default ships, and is found from any folder.
    ``pooling``: mean, max, time_mean, time_abs, time_std, time_max, time_min, time_calm,
    time_burst, class, or several joined by +. ``batch_size``: examples at a time. ``device``: auto,
    cpu or cuda. ``precision``: auto, float32 or bfloat16.

    Nothing is learnt: ``fit`` loads the checkpoint and looks at X, ``transform`` works without it.
    A channel that is NaN throughout an example was not recorded; other NaN are refused. Rows of
    61,440 numbers, flattened examples, are read too, for tools that know tables alone. A pickle
    holds the settings, not the weights: the checkpoint must be there where it is used.
    """

    def __init__(
        self,
        checkpoint="checkpoint/m15p8_checkpoint.pt",
        pooling="mean",
        batch_size=64,
        device="auto",
        precision="auto",
    ):
        self.checkpoint = checkpoint
        self.pooling = pooling
        self.batch_size = batch_size
        self.device = device
        self.precision = precision

    def fit(self, X, y=None):
        """Load the encoder and check X; CheckpointError or ValueError say what is wrong."""
        self._check_examples(X)
        self.n_features_in_ = N_COLUMNS
        self._n_features_out = self._load_encoder()[0].n_features(self.pooling)
        return self

    def transform(self, X):
        """Embeddings of X, (n, d) float32."""
        x_NCT = self._check_examples(X)
        missing_NCT = np.isnan(x_NCT)
        present_NC = ~missing_NCT.all(axis=2)
        if (missing_NCT.any(axis=2) & present_NC).any():
            raise ValueError(
                "X has channels with some NaN: only a channel that is NaN throughout an example "
                "counts, as not recorded; fill or drop these examples"
            )
        model, compute = self._load_encoder()
        return embed_arrays(model, x_NCT, present_NC, [self.pooling], compute)[self.pooling]

    def _check_examples(self, X) -> np.ndarray:
        """X as (n, 16, 3840); ValueError names a wrong shape or infinite values."""
        x = check_array(X, allow_nd=True, ensure_all_finite="allow-nan", estimator=self)
        if x.ndim == 2 and x.shape[1] == N_COLUMNS:
            x = x.reshape(-1, N_CHANNELS, EPOCH_SAMPLES)
        if x.shape[1:] != (N_CHANNELS, EPOCH_SAMPLES):
            raise ValueError(
                f"X has the shape {x.shape}; give (n, {N_CHANNELS}, {EPOCH_SAMPLES}) or "
                f"(n, {N_COLUMNS}): 30 s at 128 Hz of the 16 channels, standardised"
            )
        return x

    def _load_encoder(self) -> tuple[MaskedAutoencoder, Compute]:
        """The model, read again when another checkpoint or device was set, and how to run it."""
        compute = Compute.choose(self.device, self.precision, self.batch_size)
        wanted = (find_file(self.checkpoint).resolve(), compute.device)
        if getattr(self, "_loaded", (None, None))[0] != wanted:
            self._loaded = (wanted, load_model(self.checkpoint, compute.device))
        return self._loaded[1], compute

    def __getstate__(self):
        return {k: v for k, v in super().__getstate__().items() if k != "_loaded"}

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags


# ------------------------------------------------------------------ for MNE
def examples_from_raw(
    raw: "mne.io.BaseRaw",
    *,
    stand_ins: Mapping[str, list[str]] | None = None,
    units: Mapping[str, str] | None = None,
    prefer: Mapping[str, list[str]] | None = None,
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
    from pedsleepmae.prepare.annotations import scoring_from_rows
    from pedsleepmae.prepare.examples import ReadSettings, examples_to_score
    from pedsleepmae.prepare.recordings import open_raw, read_raw_annotations

    scoring = scoring_from_rows(read_raw_annotations(raw)) if use_annotations else None
    if scoring is not None and not (scoring.stages >= 0).any():
        scoring = None
    settings = ReadSettings(
        stand_ins=stand_ins or {},
        units=units or {},
        prefer=prefer or {},
        min_channels=min_channels,
        scaling=scaling,
    )
    examples, _ = examples_to_score(open_raw(raw), scoring, settings, grid_offset_s)
    fill_gaps(examples.signals)
    examples.signals[~examples.present] = np.nan
    return examples


def score_night(
    recording: "mne.io.BaseRaw | Examples",
    checkpoint: Path | str = "checkpoint/m15p8_checkpoint.pt",
    probes: Path | str = "checkpoint/probes.npz",
    *,
    adapter: Path | str | None = None,
    far_share: float = 0.01,
    device: str = "auto",
) -> Night:
    """Stages, events and flags of a Raw, or of its examples, as script 4 finds them.

    :func:`hypnogram`, :func:`events` and :func:`annotate` bring a night to YASA, BIDS and MNE.
    ProbeError when checkpoint and probes do not belong together, RecordingError when the Raw gives
    no examples.
    """
    scorer = load_scorer(checkpoint, probes, adapter=adapter, far_share=far_share, device=device)
    if not isinstance(recording, Examples):
        recording = examples_from_raw(recording, scaling=scorer.data_scaling)
    return score_examples(scorer, recording)


def annotate(
    recording: "mne.io.BaseRaw | Examples | Night",
    checkpoint: Path | str = "checkpoint/m15p8_checkpoint.pt",
    probes: Path | str = "checkpoint/probes.npz",
    *,
    adapter: Path | str | None = None,
    far_share: float = 0.01,
    device: str = "auto",
) -> "mne.Annotations":
    """Stages, events and flags of a Raw (or of its examples) as annotations, no medical device.

    The rows are those of script 4's annotations.edf; ``raw.set_annotations`` takes them. A night
    of :func:`score_night` is not scored again.
    """
    import mne

    night = recording
    if not isinstance(recording, Night):
        options = {"adapter": adapter, "far_share": far_share, "device": device}
        night = score_night(recording, checkpoint, probes, **options)
    return mne.Annotations(*zip(*annotation_rows(night), strict=True))
