"""Script 5: maps, the path of a night, a cohort against the rest, distances."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pedsleepmae import checkpoints, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.errors import SettingsError, bounded
from pedsleepmae.explore import maps
from pedsleepmae.explore.cohort import (
    Cohort,
    CohortSettings,
    Comparison,
    compare_cohort,
    comparison_figures,
)
from pedsleepmae.explore.distances import Distances, DistanceSettings, compare_distances
from pedsleepmae.probe.nights import read_studies
from pedsleepmae.probe.tables import FeatureTable
from pedsleepmae.splits import DAYS_PER_YEAR
from pedsleepmae.tasks import task_labels

FEWEST_EPOCHS = 20  # of a night, for a path


@dataclass
class ExplorePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint whose embeddings are explored."""
    output_dir: Path = Path("results/m15p8/explore")
    """Written: explore.json, explore.html, tables (CSV), pictures (PNG)."""
    embeddings_dir: Path | None = None
    """The embeddings/ folder in script 3's output_dir: what it holds is not computed again, what
    it lacks is added; none: embeddings/ in output_dir."""
    health_dir: Path | None = None
    """NCH's Health_Data folder: its DIAGNOSIS.csv says who is in the cohort; none: lists alone."""


@dataclass
class ExploreSettings:
    """Maps, the path of a night, a cohort against the rest, and distances."""

    paths: ExplorePaths = field(default_factory=ExplorePaths)
    cohort: CohortSettings = field(default_factory=CohortSettings)
    distances: DistanceSettings = field(default_factory=DistanceSettings)
    pooling: str = "time_abs"
    """How an embedding becomes features, as in script 3: mean, max, time_mean, time_abs, time_std,
    time_max, time_min, time_calm, time_burst, class, or several joined by +; its metrics.json names
    the best."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which patients; all: every split (a rare disease needs it; pretraining saw the signals of
    train, never a diagnosis)."""
    patient_ids: list[int] = field(default_factory=list)
    """Map these patients only; empty: all of the split. The cohort is compared over the split."""
    nights: list[str] = field(default_factory=list)
    """Nights whose path is drawn, each as <patient>/<study>; empty: the longest one mapped."""
    maps: list[Literal["pca", "umap"]] = field(default_factory=lambda: ["pca", "umap"])
    """Kinds of map; UMAP needs umap-learn and is left out, with a word, where it is absent."""
    max_points: int = bounded(3000, 20)
    """Epochs drawn on a map at most."""
    batch_size: int = bounded(64, 1)
    """Examples embedded at a time."""
    seed: int = bounded(0, 0)
    """Draws epochs, patients, shuffles, resamples and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; give script 3's to find its embeddings."""

    def check(self) -> None:
        if self.pooling == "best":
            raise SettingsError(
                "pooling is best, which only script 3 can choose; give the pooling that its "
                "metrics.json names"
            )
        if not self.maps:
            raise SettingsError("maps is empty; give pca, umap or both")
        for name in self.distances.channels:
            if name not in CHANNEL_NAMES:
                raise SettingsError(
                    f"distances.channels: {name!r} is none of the 16 channels; they are "
                    f"{', '.join(CHANNEL_NAMES)}"
                )


# ------------------------------------------------------------------ what is found
@dataclass(frozen=True)
class NightPath:
    """One night in order of time: ``xy`` (n, 2), hours since its first epoch, stage, event."""

    key: str
    positions: np.ndarray
    xy: np.ndarray
    hours: np.ndarray
    stage: np.ndarray
    event: np.ndarray
    diffusion_steps: int


@dataclass(frozen=True)
class Exploration:
    """All of it; ``notes`` says what was left out and why."""

    index: store.ExampleIndex
    positions: np.ndarray
    maps: list[maps.EmbeddingMap]
    nights: list[NightPath]
    cohort: Cohort | None
    comparisons: list[Comparison]
    distances: Distances | None
    notes: list[str]


def explore(
    settings: ExploreSettings, table: FeatureTable, positions: np.ndarray, cohort: Cohort | None
) -> Exploration:
    """Maps, paths and distances of the patients that the settings choose among ``positions``, and
    the cohort (None: none is compared) against all others there."""
    index, seed, notes = table.index, settings.seed, []
    ages = age_of_examples(index, read_studies(settings.paths.batches_dir))
    mapped = positions
    if settings.patient_ids:
        mapped = positions[np.isin(index.patient_ids[positions], settings.patient_ids)]
    found_maps = []
    for kind in settings.maps:
        if kind == "umap" and importlib.util.find_spec("umap") is None:
            notes.append("UMAP is left out: umap-learn is not installed (pip install umap-learn)")
            continue
        found_maps.append(maps.map_embeddings(table, mapped, kind, settings.max_points, ages, seed))
    nights = []
    for key in settings.nights or [longest_night(index, mapped)]:
        epochs = epochs_of_night(index, positions, key)
        if len(epochs) < FEWEST_EPOCHS:
            notes.append(f"No path of night {key}: it has {len(epochs)} epochs.")
        else:
            nights.append(trace_night(table, epochs, key, seed))
    comparisons = []
    if cohort is None:
        notes.append(
            "No cohort is compared: paths.health_dir, cohort.patient_ids and cohort.patients_file "
            "are all empty."
        )
    else:
        comparisons = compare_cohort(settings.cohort, table, positions, cohort, ages, seed)
    distances = None
    if settings.distances.channels:
        distances = compare_distances(settings.distances, table, mapped, seed)
    return Exploration(index, positions, found_maps, nights, cohort, comparisons, distances, notes)


def age_of_examples(index: store.ExampleIndex, studies: pd.DataFrame | None) -> np.ndarray:
    """Age at each example, years (N,), NaN where ``studies`` (nights.read_studies) lacks it."""
    if studies is None:
        return np.full(len(index), np.nan)
    nights = pd.MultiIndex.from_arrays([index.patient_ids, index.study_ids])
    days = studies["age_days"].reindex(nights)
    return pd.to_numeric(days, errors="coerce").to_numpy(float) / DAYS_PER_YEAR


# ------------------------------------------------------------------ the path of a night
def trace_night(table: FeatureTable, epochs: np.ndarray, key: str, seed: int) -> NightPath:
    """The path through the epochs of one night, in order of time."""
    index, onsets_s = table.index, table.index.onsets_s[epochs]
    xy, steps = maps.diffusion_layout(maps.principal_parts(table, epochs, seed))
    stage, event = task_labels(index.labels, "sleep")[epochs], maps.event_kinds(index, epochs)
    return NightPath(key, epochs, xy, (onsets_s - onsets_s[0]) / 3600, stage, event, steps)


def epochs_of_night(index: store.ExampleIndex, positions: np.ndarray, key: str) -> np.ndarray:
    """Positions of the epochs of night `<patient>/<study>` whose onset is known, by time."""
    patient, _, study = key.partition("/")
    here = index.patient_ids[positions].astype(str) == patient
    here &= index.study_ids[positions].astype(str) == study
    epochs = positions[here & np.isfinite(index.onsets_s[positions])]
    return epochs[np.argsort(index.onsets_s[epochs], kind="stable")]


def longest_night(index: store.ExampleIndex, positions: np.ndarray) -> str:
    """The night with most of these epochs, as `<patient>/<study>`."""
    night_n = index.nights()[positions]
    _, first, count = np.unique(night_n, return_index=True, return_counts=True)
    longest = positions[first[np.argmax(count)]]
    return f"{index.patient_ids[longest]}/{index.study_ids[longest]}"


# ------------------------------------------------------------------ explore.json
def as_content(
    settings: ExploreSettings, checkpoint: checkpoints.Checkpoint, found: Exploration
) -> dict:
    """Content of explore.json."""
    index, seen = found.index, checkpoint.patients_seen
    here = checkpoints.hash_patients(index.patient_ids[found.positions])
    return {
        "checkpoint": str(settings.paths.checkpoint),
        "checkpoint_step": checkpoint.step,
        "checkpoint_simulated": checkpoint.simulated,
        "seen_patients": None if seen is None else len(set(here) & set(seen)),
        "pooling": settings.pooling,
        "split": settings.split,
        "seed": settings.seed,
        "simulated": index.simulated,
        "split_hash": index.split_hash,
        "n_epochs": len(found.positions),
        "n_patients": _count_patients(index, found.positions),
        "notes": found.notes,
        "maps": [
            {
                "method": space.method,
                "n_epochs": len(space.positions),
                "n_patients": _count_patients(index, space.positions),
                "separation": space.separation,
            }
            for space in found.maps
        ],
        "nights": [
            {
                "night": night.key,
                "n_epochs": len(night.positions),
                "hours": float(night.hours[-1]),
                "diffusion_steps": night.diffusion_steps,
            }
            for night in found.nights
        ],
        "cohort": None if found.cohort is None else _cohort_content(found),
        "distances": None if found.distances is None else _distance_content(found.distances),
    }


def _count_patients(index: store.ExampleIndex, positions: np.ndarray) -> int:
    return len(np.unique(index.patient_ids[positions]))


def _cohort_content(found: Exploration) -> dict:
    return {
        "name": found.cohort.name,
        "n_patients_by_code": found.cohort.n_by_code,
        "n_listed": found.cohort.n_listed,
        "comparisons": list(map(comparison_figures, found.comparisons)),
    }


def _distance_content(found: Distances) -> dict:
    table = found.correlations.astype(object)
    return {
        "n_epochs": found.n_epochs,
        "n_patients": found.n_patients,
        "resampled_over": found.resampled_over,
        "correlations": table.where(table.notna(), None).to_dict("records"),
    }
