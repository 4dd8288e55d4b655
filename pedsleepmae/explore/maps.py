"""A map of the embedding space, and how far classes are apart in it against shuffled labels."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.manifold import smacof
from sklearn.metrics import pairwise_distances, silhouette_score
from sklearn.neighbors import NearestNeighbors

from pedsleepmae import store
from pedsleepmae.probe.fitted import scale_features
from pedsleepmae.probe.tables import FeatureTable
from pedsleepmae.tasks import task_labels

N_COMPONENTS = 50  # distances are taken between these principal components
N_NEIGHBOURS = 10  # whose labels are compared
N_SHUFFLES = 20  # as in the original's analysis of its embeddings
# Of the path of a night: the defaults of PHATE's library.
PATH_NEIGHBOURS = 5
DECAY = 40
LONGEST_DIFFUSION = 100


@dataclass(frozen=True)
class EmbeddingMap:
    """``xy`` (n, 2) of the epochs at ``positions`` of the index, the method and the figures.

    ``colourings``: stage, event (see event_kinds), patient (numbers) and the count of channels
    recorded, the last three where epochs differ in them; hours of the night; age in years where it
    was given. ``separation``: of stage, event and patient what :func:`separate` finds.
    """

    xy: np.ndarray
    positions: np.ndarray
    method: str
    colourings: dict[str, np.ndarray]
    separation: dict[str, dict]


def principal_parts(table: FeatureTable, positions: np.ndarray, seed: int) -> np.ndarray:
    """First N_COMPONENTS principal components of the scaled features of these positions, (n, D).

    Each feature is centred and divided by its spread over them; what is not finite counts as 0.
    """
    x_NF = np.nan_to_num(table.read(positions), posinf=0, neginf=0)
    spread_F = x_NF.std(0)
    x_NF = scale_features(x_NF, x_NF.mean(0), np.where(spread_F > 0, spread_F, 1))
    n_components = min(N_COMPONENTS, *x_NF.shape)
    return PCA(n_components, svd_solver="randomized", random_state=seed).fit_transform(x_NF)


def map_embeddings(
    table: FeatureTable,
    positions: np.ndarray,
    kind: str,
    max_points: int,
    age_years_N: np.ndarray,
    seed: int,
) -> EmbeddingMap:
    """Map of at most ``max_points`` of these positions; ``kind`` is "umap" or "pca".

    ``age_years_N`` holds the age at every example of the index, NaN where it is unknown.
    """
    index, rng = table.index, np.random.default_rng(seed)
    if len(positions) > max_points:
        positions = np.sort(rng.choice(positions, max_points, replace=False))
    parts_ND = principal_parts(table, positions, seed)
    xy = _umap(parts_ND, seed) if kind == "umap" else parts_ND[:, :2]
    if xy.shape[1] < 2:
        xy = np.pad(xy, ((0, 0), (0, 1)))
    onset_N = pd.Series(np.nan_to_num(index.onsets_s, nan=0.0))
    first_N = onset_N.groupby(index.nights()).transform("min").to_numpy()
    colourings = {
        "stage": task_labels(index.labels, "sleep")[positions],
        "event": event_kinds(index, positions),
        "patient": np.unique(index.patient_ids[positions], return_inverse=True)[1],
        "hours": (index.onsets_s - first_N)[positions] / 3600,
        "age": age_years_N[positions],
    }
    if not np.isfinite(colourings["age"]).any():
        del colourings["age"]
    colourings["channels"] = index.present[positions].sum(1)
    for name in ("event", "patient", "channels"):
        if not np.ptp(colourings[name]):
            del colourings[name]
    separation = {}
    for name in ("stage", "event", "patient"):
        figures = separate(parts_ND, colourings[name], rng) if name in colourings else None
        if figures is not None:
            separation[name] = figures
    return EmbeddingMap(xy, positions, kind.upper(), colourings, separation)


def separate(x_ND: np.ndarray, label_N: np.ndarray, rng: np.random.Generator) -> dict | None:
    """Silhouette and nearest-neighbour agreement of labels, and both for shuffled labels.

    Agreement: share of an epoch's N_NEIGHBOURS nearest others that carry its label. Labels below 0
    are left out; None when fewer than two labels, or too few epochs, remain.
    """
    x_ND, label_N = x_ND[label_N >= 0], label_N[label_N >= 0]
    n_labels = len(np.unique(label_N))
    if n_labels < 2 or len(label_N) <= max(N_NEIGHBOURS, n_labels):
        return None
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(x_ND).kneighbors(return_distance=False)

    def agreement(label_N: np.ndarray) -> float:
        return float((label_N[nearest] == label_N[:, None]).mean())

    shuffled = [rng.permutation(label_N) for _ in range(N_SHUFFLES)]
    by_chance = [agreement(label_N) for label_N in shuffled]
    silhouettes = [silhouette_score(x_ND, label_N) for label_N in shuffled[:3]]
    return {
        "silhouette": float(silhouette_score(x_ND, label_N)),
        "silhouette_shuffled": float(np.mean(silhouettes)),
        "agreement": agreement(label_N),
        "agreement_shuffled": float(np.mean(by_chance)),
        "agreement_shuffled_max": float(np.max(by_chance)),
        "n": len(label_N),
    }


def _umap(parts_ND: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # it regrets that Tensorflow is absent
        import umap  # optional, and slow to load

    return umap.UMAP(random_state=seed, n_jobs=1).fit_transform(parts_ND)


def event_kinds(index: store.ExampleIndex, positions: np.ndarray) -> np.ndarray:
    """0 none, 1 arousal, 2 desaturation, 3 hypopnea, 4 apnea; the last that holds wins."""
    kind_N = np.zeros(len(positions), np.int64)
    tasks = ("arousal", "desaturation", "hypopnea", "apnea")
    for number, task in enumerate(tasks, start=1):
        kind_N[task_labels(index.labels, task)[positions] == 1] = number
    return kind_N


# ------------------------------------------------------------------ the path of a night
def diffusion_layout(x_ND: np.ndarray) -> tuple[np.ndarray, int]:
    """(xy (N, 2), diffusion steps t) of more than PATH_NEIGHBOURS epochs ``x_ND``, after PHATE.

    Affinities that fall off beyond the k-th neighbour, a walk of t steps over them, distances
    between the logarithms of where the walks end, and metric scaling of those to a plane (Moon et
    al. 2019, Nat Biotechnol 37:1482). Written out for the size of a night: the library brings six
    more packages, for landmarks and sparse graphs that a thousand epochs do not need.
    """
    affinity_NN = decaying_affinity(pairwise_distances(x_ND))
    degree_N = affinity_NN.sum(1)
    # Symmetric twin of the walk's matrix: same spectrum, real eigenvectors.
    values, vectors = np.linalg.eigh(affinity_NN / np.sqrt(np.outer(degree_N, degree_N)))
    values = np.clip(values, 0, 1)
    steps = diffusion_steps(values)
    walk_NN = (vectors * values**steps) @ vectors.T
    walk_NN *= np.sqrt(degree_N)[None] / np.sqrt(degree_N)[:, None]
    potential_NN = -np.log(np.clip(walk_NN, 0, None) + 1e-7)
    return metric_scaling(pairwise_distances(potential_NN)), steps


def decaying_affinity(distance_NN: np.ndarray) -> np.ndarray:
    """exp(-(d / e)^DECAY), with e the distance of an epoch's k-th neighbour, made symmetric."""
    scale_N = np.sort(distance_NN, axis=1)[:, PATH_NEIGHBOURS]  # the 0-th is the epoch itself
    scale_N = np.maximum(scale_N, 1e-12)
    # Beyond twice the scale the affinity is 0 in any arithmetic, and the power would overflow.
    ratio_NN = np.minimum(distance_NN / scale_N[:, None], 2)
    affinity_NN = np.exp(-(ratio_NN**DECAY))
    return (affinity_NN + affinity_NN.T) / 2


def diffusion_steps(value_N: np.ndarray) -> int:
    """Steps t at the knee of the von Neumann entropy of the spectrum's t-th power.

    The entropy first falls as noise dies out and then as structure does; the knee is the point
    farthest below the straight line between the first and the last t.
    """
    entropy_T = entropy(value_N ** np.arange(1, LONGEST_DIFFUSION + 1)[:, None], axis=1)
    chord_T = np.linspace(entropy_T[0], entropy_T[-1], LONGEST_DIFFUSION)
    return int(np.argmax(chord_T - entropy_T)) + 1


def metric_scaling(distance_NN: np.ndarray) -> np.ndarray:
    """Plane coordinates (N, 2) whose distances are near these: classical scaling, then SMACOF."""
    squared = distance_NN**2
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    xy = vectors[:, -2:][:, ::-1] * np.sqrt(np.maximum(values[-2:][::-1], 0))
    xy *= np.where(xy[np.abs(xy).argmax(0), [0, 1]] < 0, -1, 1)  # eigenvectors have no sign
    return smacof(distance_NN, init=xy, n_init=1)[0]
