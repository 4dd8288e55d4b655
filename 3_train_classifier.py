"""Linear probes on the frozen encoder: how much of sleep and breathing its embeddings hold.

    python 3_train_classifier.py --config configs/probe.yaml

Embeddings are computed once and kept below paths.output_dir; on several GPUs, start with torchrun:

    torchrun --nproc_per_node 4 3_train_classifier.py --config configs/probe.yaml

Writes metrics.json, report.html, tables/, pictures/ and probes.npz, and prints the table of tasks.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # scikit-learn on torch tensors; before SciPy loads

import torch

from pedsleepmae import checkpoints, config, errors, machine, model, store
from pedsleepmae.checkpoints import (
    CheckpointError,
    file_sha256,
    hash_encoder,
    load_checkpoint,
    load_model,
    other_scaling,
)
from pedsleepmae.probe import embeddings, evaluation, files, linear, nights, report
from pedsleepmae.probe.evaluation import ProbeSettings


def main(argv: list[str]) -> int:
    settings = config.load_settings(ProbeSettings, "probe.yaml", __doc__, argv)
    paths = settings.paths
    try:
        errors.require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
        errors.require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
        if paths.compare_with is not None:
            errors.require_file(paths.compare_with, "paths.compare_with", "run script 2 first")
        facts, encoders = read_encoders(settings)
        index = store.load_index(paths.batches_dir, seed=settings.seed)
        for source in ("checkpoint_scaling", "compared_scaling"):
            errors.warn(other_scaling(facts.get(source, ""), index.scaling))
        linear.check_index(index)
        poolings = model.check_poolings(settings.pooling, settings.poolings)
        facts["seen_patients"] = checkpoints.check_seen_patients(
            index, facts.pop("patients_seen"), settings.allow_seen_patients
        )
        device = machine.choose_device(settings.device)
    except (
        errors.SettingsError,
        CheckpointError,
        store.StoreError,
        errors.ProbeError,
        machine.MachineError,
    ) as error:
        config.exit_bad_settings(str(error))
    try:
        return run(settings, index, encoders, facts, poolings, device)
    except (OSError, store.StoreError) as error:
        print(f"3_train_classifier.py: {error}; run it again: it goes on", file=sys.stderr)
        return errors.EXIT_FAILED


def run(settings: ProbeSettings, index, encoders, facts, poolings, device) -> int:
    output_dir = settings.paths.output_dir
    world = machine.join_world(device)
    tables = compute_features(settings, index, encoders, facts, poolings, device, world)
    machine.leave_world(world)
    if not world.is_first:
        return errors.EXIT_DONE
    how = linear.FitSettings(
        strengths=settings.regularisation,
        memory_gb=settings.memory_gb,
        n_workers=settings.n_workers,
        device=device,
        array_api=device.type == "cuda",
    )
    studies = nights.read_studies(settings.paths.batches_dir)
    results = evaluation.compare(settings, index, tables, studies, how)
    content = report.as_metrics(results, facts)
    with store.write_whole(output_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    basis = report.probe_basis(
        results, content, hash_encoder(encoders["encoder"][2]), settings.seed
    )
    files.save_probes(output_dir / "probes.npz", results.pooling, results.chosen, basis)
    place = report.write_report(output_dir, results, content, settings.embedding_map, settings.seed)
    print(report.text_table(content))
    print(f"report: {place}")
    if settings.paths.publish_to is not None:
        print(f"published: {files.publish(output_dir / 'probes.npz', settings.paths.publish_to)}")
    return errors.EXIT_DONE


def read_encoders(settings: ProbeSettings) -> tuple[dict, dict]:
    """What metrics.json says of the checkpoint, with the patients seen; and the encoders.

    Encoders by source: (what it is, SHA-256 of its file, model).
    """
    paths = settings.paths
    facts = describe_checkpoint(paths.checkpoint)
    sha256 = facts["checkpoint_sha256"]
    encoders = {"encoder": ("pretrained", sha256, load_model(paths.checkpoint))}
    if "untrained" in settings.baselines:
        untrained = load_model(paths.checkpoint)
        untrained.reset_parameters(torch.Generator().manual_seed(settings.seed))
        encoders["untrained"] = (f"untrained{settings.seed}", sha256, untrained)
    if paths.compare_with is not None:
        other = describe_checkpoint(paths.compare_with)
        encoders["compared"] = (
            "pretrained",
            other["checkpoint_sha256"],
            load_model(paths.compare_with),
        )
        facts["compared_with"] = other["checkpoint"]
        facts["compared_scaling"] = other["checkpoint_scaling"]
        known = None not in (facts["patients_seen"], other["patients_seen"])
        facts["patients_seen"] = facts["patients_seen"] + other["patients_seen"] if known else None
    return facts, encoders


def describe_checkpoint(path: Path) -> dict:
    """What metrics.json says of a checkpoint, with the hashed patients that it has seen."""
    checkpoint = load_checkpoint(path)
    return {
        "checkpoint": str(path),
        "checkpoint_sha256": file_sha256(path),
        "checkpoint_step": checkpoint["step"],
        "checkpoint_simulated": checkpoint["simulated"],
        "checkpoint_split_hash": checkpoint["split_hash"],
        "patients_seen": checkpoint["patients_seen"],
        "checkpoint_scaling": checkpoint["scaling"],
    }


def compute_features(settings, index, encoders, facts, poolings, device, world) -> dict:
    """Tables of features by source and name: the encoders' and the hand-made."""
    folder = settings.paths.output_dir / "embeddings"
    dtype = machine.choose_dtype(settings.precision, device)
    facts["precision"] = str(dtype).removeprefix("torch.")
    tables = {}
    for source, (name, sha256, encoder) in encoders.items():
        key = embeddings.embedding_key(sha256, name, index.split_hash, facts["precision"])
        embeddings.embed_files(
            index,
            encoder,
            folder / key,
            poolings,
            machine.Compute(device, dtype, settings.batch_size),
            f"embeddings, {source}",
            world,
        )
        tables[source] = embeddings.open_tables(index, folder / key, poolings)
    if "handmade" in settings.baselines and world.is_first:
        key = embeddings.handmade_key(index.split_hash)
        embeddings.compute_handmade(index, folder / key, settings.n_workers)
        tables["handmade"] = embeddings.open_tables(index, folder / key, ["handmade"])
    return tables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
