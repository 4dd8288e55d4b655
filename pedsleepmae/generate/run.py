"""Script 6: imputed channels, decoded means, neighbours and outliers, put together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pedsleepmae import store
from pedsleepmae.errors import SettingsError
from pedsleepmae.generate.imputation import Imputed, RecordingMoments
from pedsleepmae.generate.means import ClassMean
from pedsleepmae.generate.space import Outliers


@dataclass
class GeneratePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint with its decoder; pretrained with model.mask_channels for imputation."""
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
    show_all: bool = False
    """Impute from the other channels whole; false: from masked ones as in pretraining, in several
    passes. Which is better differs from model to model; compare with split val."""
    split: Literal["train", "val", "test"] = "test"
    """Whose examples are imputed, averaged and searched for."""
    max_epochs: int = 300
    """Examples of each class (all, five stages, four events) used at most, drawn by the seed."""
    mean_of_patient: int | None = None
    """Patient whose mean embeddings are decoded; none: of each class the one with most epochs."""
    pooling: str = "time_mean+class"
    """Embedding in which examples are near or far, as pooling of script 3 (without best)."""
    neighbours_of: list[str] = field(default_factory=list)
    """Examples whose neighbours are shown, each patient/study/onset in seconds; none: of each
    class the one nearest to its mean."""
    n_neighbours: int = 5
    """Neighbours of each example."""
    exclude_own_night: bool = True
    """No neighbours from the example's own night, which are alike for being the same night."""
    outlier_reference: int = 20_000
    """Train examples that outlier scores are distances to, at most; held in memory."""
    n_outliers: int = 12
    """Outliers drawn, one a night; outliers.csv ranks all examples."""
    bootstrap_draws: int = 1000
    """Resamples of patients behind each 95 % interval."""
    batch_size: int = 64
    """Examples that pass the model at a time."""
    seed: int = 0
    """Draws the examples, the bootstrap and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto: bfloat16 where the machine computes it in hardware."""

    def check(self) -> None:
        if not self.targets:
            raise SettingsError("targets is empty; give channels, groups, or each")
        if self.bootstrap_draws < 100:
            raise SettingsError(
                f"bootstrap_draws is {self.bootstrap_draws}; give 100 or more for an interval"
            )
        least = {"max_epochs": 2, "n_neighbours": 1, "outlier_reference": 100, "n_outliers": 1}
        least |= {"batch_size": 1, "seed": 0}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise SettingsError(f"{key} is {getattr(self, key)}; give {value} or more")


@dataclass(frozen=True)
class Generated:
    """Everything that script 6 computed, for its tables, pictures and page.

    ``imputation``: figures by target, channel and class; ``queries``: position by name, with
    ``neighbours_QK`` and ``distance_QK``; ``facts`` about the checkpoint and the call.
    """

    index: store.ExampleIndex
    split: str
    sample: dict[str, np.ndarray]
    prevalence: dict[str, dict]
    imputed: list[Imputed]
    imputation: dict[str, dict]
    moments: RecordingMoments
    means: list[ClassMean]
    queries: dict[str, int]
    neighbours_QK: np.ndarray
    distance_QK: np.ndarray
    agreement: dict[str, dict]
    outliers: Outliers
    n_outliers: int
    facts: dict
