"""Signals from the model: imputed channels, decoded means, nearest neighbours, outliers.

    python 6_generate_signals.py --config configs/generate.yaml

One channel or group of your own: --targets SPO2 EEG. Embeddings are computed once and kept. Writes
generate.json, generate.html, tables/ and pictures/ to paths.output_dir.
"""

import sys
from dataclasses import dataclass

from pedsleepmae import checkpoints, config, store
from pedsleepmae.errors import GenerationError, require_file, require_folder, run_script, warn
from pedsleepmae.generate import report, run
from pedsleepmae.generate.imputation import parse_targets
from pedsleepmae.generate.space import OUTLIER_NEIGHBOUR, parse_queries
from pedsleepmae.machine import Compute
from pedsleepmae.model import MaskedAutoencoder, check_poolings
from pedsleepmae.probe.embeddings import open_features


@dataclass(frozen=True)
class Inputs:
    """What script 6 works on; ``targets`` and ``queries`` are those that the settings name."""

    index: store.ExampleIndex
    checkpoint: checkpoints.Checkpoint
    model: MaskedAutoencoder
    targets: dict[str, tuple[int, ...]]
    queries: dict[str, int]
    compute: Compute


def open_inputs(settings: run.GenerateSettings) -> Inputs:
    """Look at all that the settings name; UserError says what is not there or does not fit."""
    paths = settings.paths
    require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    targets = parse_targets(settings.targets)
    check_poolings(settings.pooling, [])
    index = store.load_index(paths.batches_dir, seed=settings.seed)
    check_index(index, settings.split, settings.mean_of_patient)
    queries = parse_queries(index, settings.neighbours_of)
    compute = Compute.choose(settings.device, settings.precision, settings.batch_size)
    checkpoint = checkpoints.read_checkpoint(paths.checkpoint, compute.device)
    model = checkpoint.build_model()
    if model.decoder is None:
        raise GenerationError(
            f"paths.checkpoint {paths.checkpoint}: holds the encoder alone, and imputing and "
            "decoding need the decoder; put its decoder file beside it, or give a checkpoint of "
            "script 2"
        )
    warn(checkpoints.other_scaling(checkpoint.scaling, index.scaling))
    if settings.show_all is None:
        settings.show_all = model.settings.show_whole > 0
    return Inputs(index, checkpoint, model, targets, queries, compute)


def check_index(index: store.ExampleIndex, split: str, patient_id: int | None) -> None:
    """GenerationError where train or the split holds too little, or not the patient asked for."""
    rows, n_train = index.rows(split), len(index.rows("train"))
    if not len(rows) or n_train <= OUTLIER_NEIGHBOUR:
        raise GenerationError(
            f"paths.batches_dir: {len(rows)} {split} and {n_train} train examples, and some "
            f"{split} and more than {OUTLIER_NEIGHBOUR} train ones are needed; run script 1 with "
            "more patients, or give another split"
        )
    if patient_id is not None and patient_id not in index.patient_ids[rows]:
        raise GenerationError(
            f"mean_of_patient is {patient_id}, and paths.batches_dir has no {split} examples of "
            "that patient; give a patient_id of splits.csv, or null for the one with most epochs"
        )


def main(argv: list[str]) -> int:
    settings = config.load_settings(run.GenerateSettings, "generate.yaml", __doc__, argv)

    def work(inputs: Inputs) -> None:
        index, checkpoint, compute = inputs.index, inputs.checkpoint, inputs.compute
        folder = settings.paths.embeddings_dir or settings.paths.output_dir / "embeddings"
        tables = open_features(index, checkpoint, folder, [settings.pooling], compute)
        table, queries = tables[settings.pooling], inputs.queries
        found = run.generate(settings, table, inputs.model, inputs.targets, queries, compute)
        content = run.as_content(settings, checkpoint, found)
        page = report.write_results(settings.paths.output_dir, found, content)
        print(report.text_summary(found, content))
        print(f"report: {page}")

    return run_script(
        lambda: open_inputs(settings), work, "it begins anew, with its embeddings kept"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
