"""The embedding space: maps, the path of a night, a cohort against the rest, distances.

    python 5_explore_embeddings.py --config configs/explore.yaml

Uses the embeddings that script 3 stored (paths.embeddings_dir) and computes those that are missing.
A cohort is given by ICD codes of NCH's health data, or by a list of patients:

    python 5_explore_embeddings.py --split all --paths.health_dir data/nch/Health_Data
    python 5_explore_embeddings.py --cohort.name "my patients" --cohort.patients_file list.csv

Writes explore.json, explore.html, tables/ and pictures/.
"""

import json
import sys

from pedsleepmae import config, errors, machine, model, store
from pedsleepmae.checkpoints import (
    CheckpointError,
    file_sha256,
    hash_patient,
    load_checkpoint,
    load_model,
    other_scaling,
)
from pedsleepmae.explore import diagnoses, report, run
from pedsleepmae.explore.cohort import find_cohort
from pedsleepmae.explore.run import ExploreSettings
from pedsleepmae.probe import embeddings, nights


def main(argv: list[str]) -> int:
    settings = config.load_settings(ExploreSettings, "explore.yaml", __doc__, argv)
    paths = settings.paths
    try:
        errors.require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
        errors.require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
        if paths.health_dir is not None:
            errors.require_folder(paths.health_dir, "paths.health_dir", "give NCH's Health_Data")
        checkpoint = load_checkpoint(paths.checkpoint)
        index = store.load_index(paths.batches_dir, seed=settings.seed)
        errors.warn(other_scaling(checkpoint["scaling"], index.scaling))
        if settings.split != "all":
            index = store.files_of_split(index, settings.split)
        model.check_poolings(settings.pooling, [])
        run.choose_positions(settings, index)
        cohort = find_cohort(settings.cohort, paths.health_dir)
        device = machine.choose_device(settings.device)
        dtype = machine.choose_dtype(settings.precision, device)
    except (
        errors.SettingsError,
        CheckpointError,
        diagnoses.DiagnosisError,
        run.ExplorationError,
        store.StoreError,
        errors.ProbeError,
        machine.MachineError,
    ) as error:
        config.exit_bad_settings(str(error))
    try:
        table = open_features(settings, index, device, dtype)
        studies = nights.read_studies(paths.batches_dir)
        result = run.explore(settings, index, table, studies, cohort)
        content = run.as_content(result, facts_of(settings, result, checkpoint))
        with store.write_whole(paths.output_dir / "explore.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        place = report.write_page(paths.output_dir, result, content)
    except (OSError, store.StoreError) as error:
        print(f"5_explore_embeddings.py: {error}; run it again", file=sys.stderr)
        return errors.EXIT_FAILED
    print(report.text_summary(content))
    print(f"page: {place}")
    return errors.EXIT_DONE


def open_features(settings: ExploreSettings, index, device, dtype) -> embeddings.FeatureTable:
    """The table of the chosen pooling; what script 3 has not stored is computed and stored."""
    paths = settings.paths
    folder = paths.embeddings_dir or paths.output_dir / "embeddings"
    key = embeddings.embedding_key(
        file_sha256(paths.checkpoint),
        "pretrained",
        index.split_hash,
        str(dtype).removeprefix("torch."),
    )
    embeddings.embed_files(
        index,
        load_model(paths.checkpoint),
        folder / key,
        poolings=[settings.pooling],
        batch_size=settings.batch_size,
        device=device,
        dtype=dtype,
        title="embeddings",
        world=machine.World(),
    )
    return embeddings.open_tables(index, folder / key, [settings.pooling])[settings.pooling]


def facts_of(settings: ExploreSettings, result, checkpoint: dict) -> dict:
    """What explore.json says of the run besides its findings."""
    seen = checkpoint["patients_seen"]
    here = set(map(hash_patient, set(result.index.patient_ids[result.positions].tolist())))
    return {
        "checkpoint": str(settings.paths.checkpoint),
        "checkpoint_step": checkpoint["step"],
        "checkpoint_simulated": checkpoint["simulated"],
        "seen_patients": None if seen is None else len(here & set(seen)),
        "pooling": settings.pooling,
        "split": settings.split,
        "dtw_rate_hz": settings.distances.dtw_rate_hz,
        "dtw_band_s": settings.distances.dtw_band_s,
        "seed": settings.seed,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
