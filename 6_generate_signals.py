"""Signals from the model: imputed channels, decoded means, nearest neighbours, outliers.

    python 6_generate_signals.py --config configs/generate.yaml

One channel or group of your own: --targets SPO2 EEG. Embeddings are computed once and kept. Writes
generate.json, generate.html, tables/ and pictures/ to paths.output_dir.
"""

import sys

import numpy as np

from pedsleepmae import checkpoints, config, errors, machine, store
from pedsleepmae.checkpoints import CheckpointError, load_checkpoint, load_model, other_scaling
from pedsleepmae.errors import GenerationError
from pedsleepmae.generate import imputation, report
from pedsleepmae.generate.means import decode_class_means
from pedsleepmae.generate.run import Generated, GenerateSettings
from pedsleepmae.generate.space import (
    check_index,
    check_pooling,
    find_neighbours,
    find_outliers,
    neighbour_agreement,
    open_space,
    parse_queries,
    typical_examples,
)


def main(argv: list[str]) -> int:
    settings = config.load_settings(GenerateSettings, "generate.yaml", __doc__, argv)
    paths = settings.paths
    try:
        errors.require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
        errors.require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
        targets = imputation.parse_targets(settings.targets)
        check_pooling(settings.pooling)
        index = store.load_index(paths.batches_dir, seed=settings.seed)
        check_index(index, settings.split, settings.mean_of_patient)
        queries = parse_queries(index, settings.neighbours_of)
        model = load_model(paths.checkpoint)
        imputation.require_decoder(model, str(paths.checkpoint))
        errors.warn(other_scaling(load_checkpoint(paths.checkpoint)["scaling"], index.scaling))
        device = machine.choose_device(settings.device)
    except (
        errors.SettingsError,
        CheckpointError,
        store.StoreError,
        errors.ProbeError,
        machine.MachineError,
        GenerationError,
    ) as error:
        config.exit_bad_settings(str(error))
    try:
        run(settings, index, model, targets, queries, device)
    except (OSError, store.StoreError) as error:
        print(f"6_generate_signals.py: {error}; run it again: it goes on", file=sys.stderr)
        return errors.EXIT_FAILED
    return errors.EXIT_DONE


def run(settings: GenerateSettings, index, model, targets, queries, device) -> None:
    seed, n_draws, k = settings.seed, settings.bootstrap_draws, settings.n_neighbours
    how = {
        "batch_size": settings.batch_size,
        "device": device,
        "dtype": machine.choose_dtype(settings.precision, device),
    }
    folder = settings.paths.embeddings_dir or settings.paths.output_dir / "embeddings"
    space = open_space(index, model, settings.paths.checkpoint, folder, settings.pooling, **how)
    sample = imputation.sample_classes(index, settings.split, settings.max_epochs, seed)
    positions = imputation.union(sample)
    moments = imputation.RecordingMoments(index, positions, seed)
    variance_C = imputation.train_variances(index, seed)
    imputed = [
        imputation.impute_target(
            model,
            *(index, positions, moments, name, hidden, variance_C),
            show_all=settings.show_all,
            **how,
        )
        for name, hidden in targets.items()
    ]
    means = decode_class_means(
        model, space, settings.split, settings.max_epochs, settings.mean_of_patient, seed, **how
    )
    queries = queries or typical_examples(space, sample)
    own = settings.exclude_own_night
    of_sample, _ = find_neighbours(space, positions, k, exclude_own_night=own)
    found, distance = find_neighbours(
        space, np.array(list(queries.values())), k, exclude_own_night=own
    )
    generated = Generated(
        index=index,
        split=settings.split,
        sample=sample,
        prevalence=imputation.prevalences(index, settings.split),
        imputed=imputed,
        imputation={
            one.target: imputation.summarise(one, index, sample, n_draws, seed) for one in imputed
        },
        moments=moments,
        means=means,
        queries=queries,
        neighbours_QK=found,
        distance_QK=distance,
        agreement=neighbour_agreement(index, sample, positions, of_sample, n_draws, seed),
        outliers=find_outliers(space, settings.outlier_reference, seed),
        n_outliers=settings.n_outliers,
        facts=facts_of(settings, index),
    )
    place = report.write_results(settings.paths.output_dir, generated, model, device, how["dtype"])
    print(report.text_summary(generated))
    print(f"report: {place}")


def facts_of(settings: GenerateSettings, index) -> dict:
    """What generate.json says of the checkpoint and the call."""
    checkpoint = load_checkpoint(settings.paths.checkpoint)
    seen = checkpoints.count_seen_patients(index, checkpoint["patients_seen"])
    return {
        "checkpoint": str(settings.paths.checkpoint),
        "checkpoint_step": checkpoint["step"],
        "checkpoint_simulated": checkpoint["simulated"],
        "mask_channels": checkpoint["model"].get("mask_channels", 0.0),
        "seen_patients": seen,
        "pooling": settings.pooling,
        "show_all": settings.show_all,
        "max_epochs": settings.max_epochs,
        "n_neighbours": settings.n_neighbours,
        "exclude_own_night": settings.exclude_own_night,
        "typical_queries": not settings.neighbours_of,
        "bootstrap_draws": settings.bootstrap_draws,
        "seed": settings.seed,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
