"""Script 6: imputed channels, decoded means, neighbours and outliers, put together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pedsleepmae import checkpoints, store
from pedsleepmae.errors import SettingsError, bounded
from pedsleepmae.generate import imputation, means, space
from pedsleepmae.machine import Compute
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe.tables import FeatureTable
from pedsleepmae.splits import SPLITS


@dataclass
class GeneratePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint with its decoder; for imputation pretrained with model.show_whole or
    model.mask_channels."""
    output_dir: Path = Path("results/generate")
    """Written: generate.json, generate.html, tables (CSV), pictures (PNG)."""
    embeddings_dir: Path | None = None
    """Folder of stored embeddings, such as the embeddings/ of script 3; none: embeddings/ in
    output_dir."""


@dataclass
class GenerateSettings:
    """Imputed channels, decoded means, nearest neighbours and outliers."""

    paths: GeneratePaths = field(default_factory=GeneratePaths)
    targets: list[str] = field(default_factory=lambda: ["each", "EEG", "EOG", "effort"])
    """What is hidden and imputed from the rest, one after the other: channels such as SPO2, groups
    (EEG, EOG, EMG, effort, flow, snore, CO2, SpO2), or each for every channel by itself."""
    show_all: bool | None = None
    """Impute from the other channels whole; false: from masked ones as in pretraining, in several
    passes; none: whole where pretraining did so (model.show_whole above 0)."""
    split: Literal["train", "val", "test"] = "test"
    """Whose examples are imputed, averaged and searched for."""
    max_epochs: int = bounded(300, 2)
    """Examples of each class (all, five stages, four events) used at most, drawn by the seed."""
    mean_of_patient: int | None = None
    """Patient whose mean embeddings are decoded; none: of each class the one with most epochs."""
    pooling: str = "time_mean+class"
    """Embedding in which examples are near or far, as pooling of script 3 (without best)."""
    neighbours_of: list[str] = field(default_factory=list)
    """Examples whose neighbours are shown, each patient/study/onset in seconds; none: of each
    class the one nearest to its mean."""
    n_neighbours: int = bounded(5, 1)
    """Neighbours of each example."""
    exclude_own_night: bool = True
    """No neighbours from the example's own night, which are alike for being the same night."""
    outlier_reference: int = bounded(20_000, 100)
    """Train examples that outlier scores are distances to, at most; held in memory."""
    n_outliers: int = bounded(12, 1)
    """Outliers drawn, one a night; outliers.csv ranks all examples."""
    bootstrap_draws: int = bounded(1000, 100)
    """Resamples of patients behind each 95 % interval."""
    batch_size: int = bounded(64, 1)
    """Examples that pass the model at a time."""
    seed: int = bounded(0, 0)
    """Draws the examples, the bootstrap and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto: bfloat16 where the machine is faster in it."""

    def check(self) -> None:
        if not self.targets:
            raise SettingsError("targets is empty; give channels, groups, or each")
        if self.pooling == "best":
            raise SettingsError(
                "pooling is best, which script 3 alone chooses; give time_mean+class"
            )


# ------------------------------------------------------------------ what is found
@dataclass(frozen=True)
class Generation:
    """Everything that script 6 computes, for its tables, pictures and page.

    ``figures`` of imputation by target, channel and class; ``traces``: what pictures show of each
    target; ``top``: the outliers that are drawn.
    """

    index: store.ExampleIndex
    figures: dict[str, dict]
    traces: dict[str, list[imputation.Trace]]
    means: list[means.ClassMean]
    neighbours: dict[str, space.Neighbours]
    agreement: dict[str, dict]
    outliers: space.Outliers
    top: np.ndarray


def generate(
    settings: GenerateSettings,
    table: FeatureTable,
    model: MaskedAutoencoder,
    targets: dict[str, tuple[int, ...]],
    queries: dict[str, int],
    compute: Compute,
) -> Generation:
    """Impute, decode means, search neighbours and rank outliers.

    ``queries``: the examples whose neighbours are shown; none: the typical one of each class.
    """
    index, split, n_max, seed = table.index, settings.split, settings.max_epochs, settings.seed
    cohort, n_draws = space.Space(table), settings.bootstrap_draws
    sample = imputation.sample_classes(index, split, n_max, seed)
    positions = np.unique(np.concatenate(list(sample.values())))

    moments = imputation.RecordingMoments(index, positions, seed)
    variance_C = imputation.train_variances(index, seed)
    imputer = imputation.Imputer(model, index, moments, variance_C, settings.show_all, compute)
    figures, traces = {}, {}
    for target, channels in targets.items():
        imputed = imputer.impute_target(target, channels, positions)
        figures[target] = imputation.summarise(imputed, index, sample, n_draws, seed)
        traces[target] = imputer.typical_traces(imputed, sample)

    patient = settings.mean_of_patient
    decoded = means.decode_class_means(model, cohort, split, n_max, patient, seed, compute)
    queries = queries or space.typical_examples(cohort, sample)
    k, own = settings.n_neighbours, settings.exclude_own_night
    of_sample, _ = space.find_neighbours(cohort, positions, k, exclude_own_night=own)
    neighbours = space.neighbours_by_name(cohort, queries, k, exclude_own_night=own)
    agreement = space.neighbour_agreement(index, sample, positions, of_sample, n_draws, seed)
    outliers = space.find_outliers(cohort, settings.outlier_reference, seed)
    top = outliers.top_of_nights(index.nights(), settings.n_outliers)
    return Generation(index, figures, traces, decoded, neighbours, agreement, outliers, top)


# ------------------------------------------------------------------ generate.json
TOLD_SETTINGS = ("pooling", "split", "show_all", "max_epochs", "n_neighbours", "exclude_own_night")
TOLD_SETTINGS += ("bootstrap_draws", "seed")


def as_content(
    settings: GenerateSettings, checkpoint: checkpoints.Checkpoint, found: Generation
) -> dict:
    """Content of generate.json: figures, counts and facts, nothing of a single patient."""
    index, score_N, quantiles = found.index, found.outliers.score_N, {}
    for split in SPLITS:
        score_n = score_N[index.rows(split)]
        score_n = score_n[np.isfinite(score_n)]
        if len(score_n):
            levels = (0.5, 0.95, 0.99, 1.0)
            quantiles[split] = {f"{q:g}": float(np.quantile(score_n, q)) for q in levels}
    masked, whole = (checkpoint.model.get(name, 0.0) for name in ("mask_channels", "show_whole"))
    return {
        "checkpoint": str(settings.paths.checkpoint),
        "checkpoint_step": checkpoint.step,
        "checkpoint_simulated": checkpoint.simulated,
        "mask_channels": whole + (1 - whole) * masked,  # share of the examples that lost some
        "seen_patients": checkpoints.count_seen_patients(index, checkpoint.patients_seen),
        "typical_queries": not settings.neighbours_of,
        **{name: getattr(settings, name) for name in TOLD_SETTINGS},
        "split_hash": index.split_hash,
        "patient_disjoint": index.patient_disjoint,
        "simulated": index.simulated,
        "prevalence": imputation.prevalences(index, settings.split),
        "imputation": found.figures,
        "means": [
            {
                "class": mean.name,
                "n_epochs": mean.n_epochs,
                "nearest_distance": mean.nearest.distance.tolist(),
                "farthest_distance": mean.farthest.distance.tolist(),
            }
            for mean in found.means
        ],
        "neighbour_agreement": found.agreement,
        "outliers": {
            "n_reference": found.outliers.n_reference,
            "quantiles": quantiles,
            "top_scores": score_N[found.top].tolist(),
        },
    }
