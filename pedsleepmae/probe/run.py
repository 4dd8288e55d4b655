"""Script 3: frozen encoders and hand-made features, compared on the same patients."""

import json
from dataclasses import dataclass
from pathlib import Path

from pedsleepmae import checkpoints, machine, store
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.errors import require_file, require_folder, warn
from pedsleepmae.model import check_poolings
from pedsleepmae.probe import embeddings, evaluation, files, linear, report
from pedsleepmae.probe.embeddings import FeatureTable
from pedsleepmae.probe.evaluation import ProbeSettings, Results
from pedsleepmae.probe.nights import read_studies


@dataclass(frozen=True)
class Inputs:
    """What script 3 works on; ``compared`` is the checkpoint of paths.compare_with, if any.

    ``seen_patients``: how many of val and test pretraining saw, None where that is unknown.
    """

    index: store.ExampleIndex
    checkpoint: Checkpoint
    compared: Checkpoint | None
    encoder_sha256: str
    poolings: list[str]
    seen_patients: int | None
    compute: machine.Compute


def open_inputs(settings: ProbeSettings) -> Inputs:
    """Look at all that the settings name; UserError says what is not there or does not fit."""
    paths = settings.paths
    require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    checkpoint, compared = checkpoints.read_checkpoint(paths.checkpoint), None
    encoder_sha256 = checkpoints.hash_encoder(checkpoint.build_model())
    seen = checkpoint.patients_seen
    if paths.compare_with is not None:
        require_file(paths.compare_with, "paths.compare_with", "run script 2 first")
        compared = checkpoints.read_checkpoint(paths.compare_with)
        compared.build_model()  # says now what does not fit
        known = None not in (seen, compared.patients_seen)
        seen = [*seen, *compared.patients_seen] if known else None
    index = store.load_index(paths.batches_dir, seed=settings.seed)
    for encoder in (checkpoint, compared):
        if encoder is not None:
            warn(checkpoints.other_scaling(encoder.scaling, index.scaling))
    linear.check_index(index)
    return Inputs(
        index=index,
        checkpoint=checkpoint,
        compared=compared,
        encoder_sha256=encoder_sha256,
        poolings=check_poolings(settings.pooling, settings.poolings),
        seen_patients=checkpoints.check_seen_patients(index, seen, settings.allow_seen_patients),
        compute=machine.Compute.choose(settings.device, settings.precision, settings.batch_size),
    )


def compute_tables(
    settings: ProbeSettings, inputs: Inputs, world: machine.World
) -> dict[str, dict[str, FeatureTable]]:
    """Tables of features by source and name; what is not yet in output_dir is computed."""
    index, folder = inputs.index, settings.paths.output_dir / "embeddings"
    encoders = {"encoder": (inputs.checkpoint, None)}
    if "untrained" in settings.baselines:
        encoders["untrained"] = (inputs.checkpoint, settings.seed)
    if inputs.compared is not None:
        encoders["compared"] = (inputs.compared, None)
    tables = {
        source: embeddings.open_features(
            index,
            checkpoint,
            folder,
            inputs.poolings,
            inputs.compute,
            untrained_seed=untrained_seed,
            title=f"embeddings, {source}",
            world=world,
        )
        for source, (checkpoint, untrained_seed) in encoders.items()
    }
    if "handmade" in settings.baselines and world.is_first:
        folder = folder / embeddings.handmade_key(index.split_hash)
        embeddings.compute_handmade(index, folder, settings.n_workers)
        tables["handmade"] = embeddings.open_tables(index, folder, ["handmade"])
    return tables


def compare(settings: ProbeSettings, inputs: Inputs) -> Results | None:
    """Compute features and judge them; None in all but the first of torchrun's processes."""
    world = machine.join_world(inputs.compute.device)
    tables = compute_tables(settings, inputs, world)
    machine.leave_world(world)
    if not world.is_first:
        return None
    fitting = linear.FitSettings(
        settings.regularisation, settings.memory_gb, settings.n_workers, inputs.compute.device
    )
    studies = read_studies(settings.paths.batches_dir)
    return evaluation.compare(settings, inputs.index, tables, studies, fitting)


def write_results(settings: ProbeSettings, inputs: Inputs, results: Results, content: dict) -> Path:
    """Write metrics.json (``content``), probes.npz, tables, pictures and report.html; its path."""
    folder = settings.paths.output_dir
    with store.write_whole(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    basis = report.probe_basis(results, content, inputs.encoder_sha256, settings.seed)
    probes = {task: result.probe for task, result in results.fitted.items()}
    files.save_probes(folder / "probes.npz", results.best_table.name, probes, basis)
    if settings.paths.publish_to is not None:
        files.publish(folder / "probes.npz", settings.paths.publish_to)
    return report.write_report(folder, results, content)


def describe(settings: ProbeSettings, inputs: Inputs) -> dict:
    """What metrics.json says of the checkpoints, beside the tasks."""
    checkpoint, compared = inputs.checkpoint, {}
    if inputs.compared is not None:
        compared = {"compared_with": str(settings.paths.compare_with)}
        compared["compared_scaling"] = inputs.compared.scaling
    return {
        "checkpoint": str(settings.paths.checkpoint),
        "checkpoint_sha256": checkpoint.sha256,
        "checkpoint_step": checkpoint.step,
        "checkpoint_simulated": checkpoint.simulated,
        "checkpoint_split_hash": checkpoint.split_hash,
        "checkpoint_scaling": checkpoint.scaling,
        "seen_patients": inputs.seen_patients,
        "precision": inputs.compute.precision,
        **compared,
    }
