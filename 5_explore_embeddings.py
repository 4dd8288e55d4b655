"""The embedding space: maps, the path of a night, a cohort against the rest, distances.

    python 5_explore_embeddings.py --config configs/explore.yaml

Uses the embeddings that script 3 stored (paths.embeddings_dir) and computes those that are missing.
A cohort is given by ICD codes of NCH's health data, or by a list of patients:

    python 5_explore_embeddings.py --split all --paths.health_dir data/nch/Health_Data
    python 5_explore_embeddings.py --cohort.name "my patients" --cohort.patients_file list.csv

Writes explore.json, explore.html, tables/ and pictures/.
"""

import sys
from dataclasses import dataclass

import numpy as np

from pedsleepmae import checkpoints, config, data, store
from pedsleepmae.errors import UserError, require_file, require_folder, run_script, warn
from pedsleepmae.explore import report, run
from pedsleepmae.explore.cohort import Cohort, find_cohort
from pedsleepmae.machine import Compute
from pedsleepmae.model import check_poolings
from pedsleepmae.probe.embeddings import open_features


@dataclass(frozen=True)
class Inputs:
    """``positions`` of the split in the index; ``cohort`` is None where the settings name none."""

    index: store.ExampleIndex
    positions: np.ndarray
    cohort: Cohort | None
    checkpoint: checkpoints.Checkpoint
    compute: Compute


def open_inputs(settings: run.ExploreSettings) -> Inputs:
    """Look at all that the settings name; UserError says what is not there or does not fit."""
    paths = settings.paths
    require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    if paths.health_dir is not None:
        require_folder(paths.health_dir, "paths.health_dir", "give NCH's Health_Data")
    check_poolings(settings.pooling, [])
    index = store.load_index(paths.batches_dir, seed=settings.seed)
    positions = np.arange(len(index))
    if settings.split != "all":
        index = data.files_of_split(index, settings.split)
        positions = index.rows(settings.split)
    check_positions(settings, index, positions)
    cohort = find_cohort(settings.cohort, paths.health_dir)
    compute = Compute.choose(settings.device, settings.precision, settings.batch_size)
    checkpoint = checkpoints.read_checkpoint(paths.checkpoint, compute.device)
    warn(checkpoints.other_scaling(checkpoint.scaling, index.scaling))
    return Inputs(index, positions, cohort, checkpoint, compute)


def check_positions(
    settings: run.ExploreSettings, index: store.ExampleIndex, positions: np.ndarray
) -> None:
    """UserError where the split has too few epochs, or lacks a patient or night asked for."""
    split = settings.split
    if len(positions) < run.FEWEST_EPOCHS:
        raise UserError(
            f"split: {split} holds {len(positions)} epochs of paths.batches_dir, and "
            f"{run.FEWEST_EPOCHS} are needed; give another split, or run script 1 with more "
            "recordings"
        )
    here = np.unique(index.patient_ids[positions])
    unknown = sorted(set(settings.patient_ids) - set(here.tolist()))
    if unknown:
        raise UserError(
            f"patient_ids: patient {unknown[0]} has no epoch in split {split} (it holds "
            f"{len(here)} patients, such as {here[0]}); give others, or split all"
        )
    for key in settings.nights:
        if not len(run.epochs_of_night(index, positions, key)):
            first = positions[0]
            example = f"{index.patient_ids[first]}/{index.study_ids[first]}"
            raise UserError(
                f"nights: {key!r} is no night of split {split}; give <patient>/<study> such as "
                f"{example}"
            )


def main(argv: list[str]) -> int:
    settings = config.load_settings(run.ExploreSettings, "explore.yaml", __doc__, argv)

    def work(inputs: Inputs) -> None:
        folder = settings.paths.embeddings_dir or settings.paths.output_dir / "embeddings"
        poolings, checkpoint = [settings.pooling], inputs.checkpoint
        tables = open_features(inputs.index, checkpoint, folder, poolings, inputs.compute)
        table = tables[settings.pooling]
        found = run.explore(settings, table, inputs.positions, inputs.cohort)
        content = run.as_content(settings, checkpoint, found)
        page = report.write_results(settings.paths.output_dir, found, content)
        print(report.text_summary(content))
        print(f"page: {page}")

    return run_script(
        lambda: open_inputs(settings), work, "it begins anew, with its embeddings kept"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
