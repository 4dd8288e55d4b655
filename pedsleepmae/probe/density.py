"""How far an embedding lies from the training data's: a Gaussian with a few principal axes.

Axes: **N** epochs, **F** features, **K** principal axes, **Q** quantiles.

Probabilistic principal components (Tipping & Bishop 1999): the training embeddings vary with their
own variance along K axes and with one common variance across all others. The distance is that
model's Mahalanobis distance, and the validation patients, whom the fit has not seen, say which
distances are usual.
"""

from dataclasses import replace

import numpy as np
from sklearn.decomposition import PCA

from pedsleepmae.probe.fitted import TrainingDensity
from pedsleepmae.probe.tables import FeatureTable, spread_or_one

MAX_AXES = 32
MAX_TRAIN_ROWS = 4096  # enough for 32 axes; a sample spread evenly over the train rows
MAX_VAL_ROWS = 20_000
N_QUANTILES = 1001  # so that shares down to 0.001 can be asked for


def fit_density(
    table: FeatureTable, train: np.ndarray, val: np.ndarray, seed: int = 0
) -> TrainingDensity:
    """Density of the features at the ``train`` positions, with the usual distances at ``val``."""
    x_NF = table.read(_spread(train, MAX_TRAIN_ROWS)).astype(np.float64)
    x_NF = x_NF[np.isfinite(x_NF).all(1)]
    mean_F = x_NF.mean(0)
    scale_F = spread_or_one(x_NF.std(0), mean_F)
    x_NF = (x_NF - mean_F) / scale_F
    n_axes = max(1, min(MAX_AXES, min(x_NF.shape) - 1))
    pca = PCA(n_axes, svd_solver="randomized", random_state=seed).fit(x_NF)
    # Beyond float16's rounding there is no direction without variance.
    floor = float(np.finfo(np.float16).eps) ** 2
    density = TrainingDensity(
        mean_F=mean_F.astype(np.float32),
        scale_F=scale_F.astype(np.float32),
        axes_KF=pca.components_.astype(np.float32),
        variance_K=np.maximum(pca.explained_variance_, floor),
        rest_variance=np.array(max(float(pca.noise_variance_), floor)),
        quantile_Q=np.empty(0),
    )
    chunks = table.chunks(_spread(val, MAX_VAL_ROWS), MAX_TRAIN_ROWS)
    usual_N = np.concatenate([density.distance(x_NF) for _, x_NF in chunks])
    usual_N = usual_N[np.isfinite(usual_N)]
    return replace(density, quantile_Q=np.quantile(usual_N, np.linspace(0, 1, N_QUANTILES)))


def _spread(positions: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the positions, evenly spread over them."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).astype(np.int64)]
