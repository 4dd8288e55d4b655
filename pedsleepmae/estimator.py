"""The frozen encoder as a scikit-learn transformer."""

from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array

from pedsleepmae import embeddings, machine
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.checkpoints import load_model
from pedsleepmae.model import POOLINGS

N_COLUMNS = N_CHANNELS * EPOCH_SAMPLES


class PedSleepEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Standardised 30-s examples (n, 16, 3840) to embeddings (n, d) of a pretrained encoder.

    ``checkpoint``: a file of script 2. ``pooling``: mean, max, time_mean, time_abs, class, or
    several joined by +. ``batch_size``: examples at a time. ``device``: auto, cpu or cuda.
    ``precision``: auto, float32 or bfloat16.

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
        self._n_features_out = self._embed_one()
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
        return self._embed(x_NCT, present_NC)

    def _check_examples(self, X) -> np.ndarray:
        """X as (n, 16, 3840); ValueError names a wrong shape or infinite values."""
        x = check_array(
            X, dtype="numeric", allow_nd=True, ensure_all_finite="allow-nan", estimator=self
        )
        if x.ndim == 2 and x.shape[1] == N_COLUMNS:
            x = x.reshape(-1, N_CHANNELS, EPOCH_SAMPLES)
        if x.shape[1:] != (N_CHANNELS, EPOCH_SAMPLES):
            raise ValueError(
                f"X has the shape {x.shape}; give (n, {N_CHANNELS}, {EPOCH_SAMPLES}) or "
                f"(n, {N_COLUMNS}): 30 s at 128 Hz of the 16 channels, standardised"
            )
        return x

    def _embed(self, x_NCT: np.ndarray, present_NC: np.ndarray) -> np.ndarray:
        for part in str(self.pooling).split("+"):
            if part not in POOLINGS:
                raise ValueError(
                    f"pooling is {self.pooling!r}; give one of {', '.join(POOLINGS)}, or several "
                    "joined by +"
                )
        device = machine.choose_device(self.device)
        return embeddings.embed_arrays(
            self._load(device),
            x_NCT,
            present_NC,
            self.pooling,
            batch_size=self.batch_size,
            device=device,
            dtype=machine.choose_dtype(self.precision, device),
        )

    def _embed_one(self) -> int:
        """Number of features, from one empty example."""
        shape = (1, N_CHANNELS, EPOCH_SAMPLES)
        return self._embed(np.zeros(shape, np.float32), np.zeros(shape[:2], bool)).shape[1]

    def _load(self, device):
        """The model, read again when another checkpoint or device was set."""
        wanted = (str(Path(self.checkpoint).resolve()), str(device))
        if getattr(self, "_loaded", (None, None))[0] != wanted:
            self._loaded = (wanted, load_model(self.checkpoint, device))
        return self._loaded[1]

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
