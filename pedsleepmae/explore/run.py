"""Script 5: maps, the path of a night, a cohort against the rest, distances."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pedsleepmae import checkpoints, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.errors import (
    SettingsError,
    UserError,
    bounded,
    require_file,
    require_folder,
    warn,
)
from pedsleepmae.explore.cohort import (
    Cohort,
    CohortSettings,
    Comparison,
    compare_cohort,
    comparison_figures,
    find_cohort,
)
from pedsleepmae.explore.distances import Distances, DistanceSettings, compare_distances
from pedsleepmae.explore.maps import (
    EmbeddingMap,
    diffusion_layout,
    event_kinds,
    has_umap,
    map_embeddings,
    principal_parts,
)
from pedsleepmae.machine import Compute
from pedsleepmae.model import check_poolings
from pedsleepmae.probe.embeddings import FeatureTable, open_features
from pedsleepmae.probe.nights import read_studies
from pedsleepmae.splits import DAYS_PER_YEAR
from pedsleepmae.tasks import task_labels


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
    """How an embedding becomes features: mean, max, time_mean, time_abs, class, or several joined
    by +; script 3's metrics.json names the best."""
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


FEWEST_EPOCHS = 20  # of a night, for a path
NO_UMAP = "UMAP is left out: umap-learn is not installed (pip install umap-learn)"


class ExplorationError(UserError):
    """What is to be explored is not there; the message names the setting and the remedy."""


# ------------------------------------------------------------------ what is given
@dataclass(frozen=True)
class Inputs:
    """What script 5 works on: ``positions`` of the split, those ``mapped``, age at each example.

    ``cohort`` is None where the settings name none.
    """

    index: store.ExampleIndex
    positions: np.ndarray
    mapped: np.ndarray
    age_years_N: np.ndarray
    cohort: Cohort | None
    checkpoint: Checkpoint
    compute: Compute


def open_inputs(settings: ExploreSettings) -> Inputs:
    """Look at all that the settings name; UserError says what is not there or does not fit."""
    paths = settings.paths
    require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    if paths.health_dir is not None:
        require_folder(paths.health_dir, "paths.health_dir", "give NCH's Health_Data")
    check_poolings(settings.pooling, [])
    index = store.load_index(paths.batches_dir, seed=settings.seed)
    if settings.split != "all":
        index = store.files_of_split(index, settings.split)
    positions, mapped = choose_positions(settings, index)
    ages = age_of_examples(index, read_studies(paths.batches_dir))
    cohort = find_cohort(settings.cohort, paths.health_dir)
    compute = Compute.choose(settings.device, settings.precision, settings.batch_size)
    checkpoint = checkpoints.read_checkpoint(paths.checkpoint, compute.device)
    warn(checkpoints.other_scaling(checkpoint.scaling, index.scaling))
    return Inputs(index, positions, mapped, ages, cohort, checkpoint, compute)


def choose_positions(
    settings: ExploreSettings, index: store.ExampleIndex
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the split, and those of them that are mapped; ExplorationError if none."""
    positions = np.arange(len(index)) if settings.split == "all" else index.rows(settings.split)
    if len(positions) < FEWEST_EPOCHS:
        raise ExplorationError(
            f"split: {settings.split} holds {len(positions)} epochs of paths.batches_dir, and "
            f"{FEWEST_EPOCHS} are needed; give another split, or run script 1 with more recordings"
        )
    here = np.unique(index.patient_ids[positions])
    unknown = sorted(set(settings.patient_ids) - set(here.tolist()))
    if unknown:
        raise ExplorationError(
            f"patient_ids: patient {unknown[0]} has no epoch in split {settings.split} (it holds "
            f"{len(here)} patients, such as {here[0]}); give others, or split all"
        )
    mapped = positions
    if settings.patient_ids:
        mapped = positions[np.isin(index.patient_ids[positions], settings.patient_ids)]
    for key in settings.nights:
        if not len(_epochs_of_night(index, positions, key)):
            first = positions[0]
            example = f"{index.patient_ids[first]}/{index.study_ids[first]}"
            raise ExplorationError(
                f"nights: {key!r} is no night of split {settings.split}; give <patient>/<study> "
                f"such as {example}"
            )
    return positions, mapped


def age_of_examples(index: store.ExampleIndex, studies: pd.DataFrame | None) -> np.ndarray:
    """Age at each example, years (N,), NaN where ``studies`` (nights.read_studies) lacks it."""
    if studies is None:
        return np.full(len(index), np.nan)
    nights = pd.MultiIndex.from_arrays([index.patient_ids, index.study_ids])
    days = studies["age_days"].reindex(nights)
    return pd.to_numeric(days, errors="coerce").to_numpy(float) / DAYS_PER_YEAR


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
    maps: list[EmbeddingMap]
    nights: list[NightPath]
    cohort: Cohort | None
    comparisons: list[Comparison]
    distances: Distances | None
    notes: list[str]


def explore(settings: ExploreSettings, inputs: Inputs) -> Exploration:
    """Maps, paths, the cohort and distances of the positions that the settings choose."""
    index, positions, mapped = inputs.index, inputs.positions, inputs.mapped
    ages, seed, notes = inputs.age_years_N, settings.seed, []
    folder = settings.paths.embeddings_dir or settings.paths.output_dir / "embeddings"
    tables = open_features(index, inputs.checkpoint, folder, [settings.pooling], inputs.compute)
    table = tables[settings.pooling]
    maps = []
    for kind in settings.maps:
        if kind == "umap" and not has_umap():
            notes.append(NO_UMAP)
            continue
        options = {"max_points": settings.max_points, "age_years_N": ages}
        maps.append(map_embeddings(table, index, mapped, kind, seed, **options))
    nights = []
    for key in settings.nights or [_longest_night(index, mapped)]:
        epochs = _epochs_of_night(index, positions, key)
        if len(epochs) < FEWEST_EPOCHS:
            notes.append(f"No path of night {key}: it has {len(epochs)} epochs.")
        else:
            nights.append(trace_night(table, index, epochs, key, seed))
    comparisons = []
    if inputs.cohort is None:
        notes.append(
            "No cohort is compared: paths.health_dir, cohort.patient_ids and cohort.patients_file "
            "are all empty."
        )
    else:
        comparisons = compare_cohort(
            settings.cohort, index, table, positions, inputs.cohort, ages, seed
        )
    distances = None
    if settings.distances.channels:
        distances = compare_distances(settings.distances, index, table, mapped, seed)
    return Exploration(index, positions, maps, nights, inputs.cohort, comparisons, distances, notes)


# ------------------------------------------------------------------ the path of a night
def trace_night(
    table: FeatureTable, index: store.ExampleIndex, epochs: np.ndarray, key: str, seed: int
) -> NightPath:
    """The path through the epochs of one night, in order of time."""
    parts_ND = principal_parts(table, epochs, seed)
    xy, steps = diffusion_layout(parts_ND)
    onsets_s = index.onsets_s[epochs]
    return NightPath(
        key=key,
        positions=epochs,
        xy=xy,
        hours=(onsets_s - onsets_s[0]) / 3600,
        stage=task_labels(index.labels, "sleep")[epochs],
        event=event_kinds(index, epochs),
        diffusion_steps=steps,
    )


def _epochs_of_night(index: store.ExampleIndex, positions: np.ndarray, key: str) -> np.ndarray:
    """Positions of the epochs of night `<patient>/<study>` whose onset is known, by time."""
    patient, _, study = key.partition("/")
    here = (index.patient_ids[positions].astype(str) == patient) & (
        index.study_ids[positions].astype(str) == study
    )
    epochs = positions[here & np.isfinite(index.onsets_s[positions])]
    return epochs[np.argsort(index.onsets_s[epochs], kind="stable")]


def _longest_night(index: store.ExampleIndex, positions: np.ndarray) -> str:
    night_n = index.nights()[positions]
    _, first, count = np.unique(night_n, return_index=True, return_counts=True)
    longest = positions[first[np.argmax(count)]]
    return f"{index.patient_ids[longest]}/{index.study_ids[longest]}"


# ------------------------------------------------------------------ explore.json
def as_content(settings: ExploreSettings, inputs: Inputs, found: Exploration) -> dict:
    """Content of explore.json."""
    index, checkpoint = inputs.index, inputs.checkpoint

    def n_patients(positions: np.ndarray) -> int:
        return len(np.unique(index.patient_ids[positions]))

    here = checkpoints.hash_patients(index.patient_ids[found.positions])
    seen = checkpoint.patients_seen
    content = {
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
        "n_patients": n_patients(found.positions),
        "notes": found.notes,
        "maps": [
            {
                "method": space.method,
                "n_epochs": len(space.positions),
                "n_patients": n_patients(space.positions),
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
        "cohort": None,
        "distances": None,
    }
    if found.cohort is not None:
        content["cohort"] = {
            "name": found.cohort.name,
            "n_patients_by_code": found.cohort.n_by_code,
            "n_listed": found.cohort.n_listed,
            "comparisons": list(map(comparison_figures, found.comparisons)),
        }
    if found.distances is not None:
        table = found.distances.correlations.astype(object)
        content["distances"] = {
            "n_epochs": found.distances.n_epochs,
            "n_patients": found.distances.n_patients,
            "resampled_over": found.distances.resampled_over,
            "correlations": table.where(table.notna(), None).to_dict("records"),
        }
    return content
