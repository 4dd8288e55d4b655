"""Script 3: frozen encoders and hand-made features, compared on the same patients."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pedsleepmae import checkpoints, disk, machine, store
from pedsleepmae.channels import ALL_CHANNELS, MONTAGES, N_CHANNELS
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.errors import ProbeError, require_file, require_folder, warn
from pedsleepmae.model import check_poolings, split_layer
from pedsleepmae.probe import age, embeddings, events, files, report, steps
from pedsleepmae.probe.evaluation import ProbeSettings, Results
from pedsleepmae.probe.events import EventResults
from pedsleepmae.probe.files import EventProbes
from pedsleepmae.probe.fitted import SavedReadOut
from pedsleepmae.probe.handmade import FEATURES_VERSION
from pedsleepmae.probe.montages import Montage
from pedsleepmae.probe.readout import restrict
from pedsleepmae.probe.steps import check_patches
from pedsleepmae.probe.tables import FeatureTable, open_tables
from pedsleepmae.probe.truth import read_events
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import task_labels


def open_index(settings: ProbeSettings) -> store.ExampleIndex:
    """The batch files, with examples in every split; ProbeError names an empty one."""
    index = store.load_index(settings.paths.batches_dir, seed=settings.seed)
    for split in SPLITS:
        if not len(index.rows(split)):
            raise ProbeError(
                f"paths.batches_dir holds no {split} examples; run script 1 with more patients or "
                "larger split fractions (for one person: --split.by time)"
            )
    return index


def open_inputs(
    settings: ProbeSettings,
) -> tuple[store.ExampleIndex, dict[str, Checkpoint], int | None, machine.Compute]:
    """Batch files, checkpoints ("encoder", "compared"), how many judged patients these saw.

    A UserError says what is missing or does not fit, before anything is computed.
    """
    paths, encoders = settings.paths, {}
    require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    encoders["encoder"] = checkpoints.read_checkpoint(paths.checkpoint)
    if paths.compare_with is not None:
        require_file(paths.compare_with, "paths.compare_with", "run script 2 first")
        encoders["compared"] = checkpoints.read_checkpoint(paths.compare_with)
    index = open_index(settings)
    if settings.events:  # said now, not after the hours before they are needed
        check_patches(encoders["encoder"].build_model().n_patches)
        read_events(paths.batches_dir)
    for encoder in encoders.values():
        encoder.build_model()  # says now what does not fit
        read_outs(settings, encoder)
        warn(checkpoints.other_scaling(encoder.scaling, index.scaling))
        # One by one: what is not known of one encoder must not hide what another has seen.
        checkpoints.check_seen_patients(index, encoder.patients_seen, settings.allow_seen_patients)
    n_seen = count_seen(index, encoders)
    compute = machine.Compute.choose(settings.device, settings.precision, settings.batch_size)
    return index, encoders, n_seen, compute


def count_seen(index: store.ExampleIndex, encoders: Mapping[str, Checkpoint]) -> int | None:
    """Judged patients that any of the encoders saw in pretraining; None: unknown of one of them."""
    seen = [encoder.patients_seen for encoder in encoders.values()]
    everyone = None if None in seen else [digest for own in seen for digest in own]
    return checkpoints.count_seen_patients(index, everyone)


def compute_tables(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    encoders: Mapping[str, Checkpoint],
    compute: machine.Compute,
    world: machine.World,
) -> dict[str, dict[str, FeatureTable]] | None:
    """Tables of features by source and name; what is not yet in output_dir is computed.

    ``encoders``: "encoder" and, where two are compared, "compared"; "frozen" where the encoder was
    fine-tuned. None in all but the first process of ``world``.
    """
    folder = settings.paths.output_dir / "embeddings"
    sources = {"encoder": (encoders["encoder"], None)}
    if "untrained" in settings.baselines:
        sources["untrained"] = (encoders["encoder"], settings.seed)
    for name in ("frozen", "compared"):
        if name in encoders:
            sources[name] = (encoders[name], None)
    tables = {}
    for source, (checkpoint, seed) in sources.items():
        options = {"untrained_seed": seed, "title": f"embeddings, {source}", "world": world}
        names = read_outs(settings, checkpoint)
        tables[source] = embeddings.open_features(
            index, checkpoint, folder, names, compute, **options
        )
    if not world.is_first:
        return None
    if "handmade" in settings.baselines:
        folder = folder / f"handmade{FEATURES_VERSION}_{index.split_hash or 'nosplit'}"
        embeddings.compute_handmade(index, folder, settings.n_workers)
        tables["handmade"] = open_tables(index, folder, ["handmade"])
    return tables


def judge_ages(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    tables: Mapping[str, Mapping[str, FeatureTable]],
    results: Results,
    studies: pd.DataFrame | None,
) -> age.AgeResults:
    """Ages from the features that the probes of epochs read, and from the same of the baselines."""
    (read_out,) = results.best_table.read_outs
    used = {
        source: by_name.get(read_out.table.name, next(iter(by_name.values())))
        for source, by_name in tables.items()
    }
    return age.judge_age(index, used, studies, settings.bootstrap_draws, settings.seed)


def read_outs(settings: ProbeSettings, checkpoint: Checkpoint) -> list[str]:
    """Names of the poolings to compute, `@k` behind those of block k; ProbeError for a bad one."""
    n_layers = checkpoint.model["num_layer"]
    layers = [settings.layer]
    if settings.layer == "best":
        layers = settings.layers or sorted({(n_layers + 1) // 2, n_layers})
    layers = [n_layers if layer == "last" else layer for layer in layers]
    if odd := [layer for layer in layers if not 1 <= layer <= n_layers]:
        raise ProbeError(
            f"layer: there is no block {odd[0]}; {checkpoint.path} has the blocks 1 to {n_layers}"
        )
    poolings = check_poolings(settings.pooling, settings.poolings)
    return [
        pooling if layer == n_layers else f"{pooling}@{layer}"
        for layer in layers
        for pooling in poolings
    ]


def judge_events(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    encoder: Checkpoint,
    results: Results,
    compute: machine.Compute,
) -> EventResults | None:
    """Single events from the block that the probes of epochs read, and from the baselines.

    With montage_epochs also from the encoder that sees the channels of one montage after another.
    """
    layer, model = event_layer(results), encoder.build_model()
    sources = {"encoder": events.encoder_steps(index, model, layer, compute)}
    if "untrained" in settings.baselines:
        twin = embeddings.untrained_twin(encoder, settings.seed)
        sources["untrained"] = events.encoder_steps(index, twin, layer, compute)
    if "handmade" in settings.baselines:
        sources["handmade"] = events.handmade_reader(index)
    stages = task_labels(index.labels, "sleep")
    if "sleep" in results.fitted:
        stages[results.test] = results.fitted["sleep"].decided_N
    compare = partial(
        events.compare_events,
        truth=read_events(settings.paths.batches_dir),
        stages=stages,
        most_nights=settings.event_nights,
        memory_gb=settings.memory_gb,
        n_draws=settings.bootstrap_draws,
        seed=settings.seed,
    )
    single = compare(index, sources)
    if single is None or not settings.montage_epochs:
        return single
    fewer = {}
    for name, channels in MONTAGES.items():
        if name != ALL_CHANNELS:
            part = restrict(index, np.isin(np.arange(N_CHANNELS), channels))
            own = {"encoder": events.encoder_steps(part, model, layer, compute)}
            fewer[name] = compare(part, own, title=f"events, {name}")
    return events.with_montages(single, fewer)


def event_layer(results: Results) -> int | None:
    """The block whose tokens the probes of single events read; None: the last."""
    return split_layer(results.best_table.read_outs[0].table.name)[1]


def describe(
    settings: ProbeSettings,
    encoders: Mapping[str, Checkpoint],
    seen_patients: int | None,
    precision: str,
) -> dict:
    """What metrics.json says of the checkpoints, beside the tasks."""
    # Of a fine-tuned encoder the frozen one that it was made from.
    checkpoint, compared = encoders.get("frozen", encoders["encoder"]), {}
    if "compared" in encoders:
        compared = {"compared_with": str(settings.paths.compare_with)}
        compared["compared_scaling"] = encoders["compared"].scaling
    return {
        "checkpoint": str(settings.paths.checkpoint),
        "checkpoint_sha256": checkpoint.sha256,
        "checkpoint_step": checkpoint.step,
        "checkpoint_simulated": checkpoint.simulated,
        "checkpoint_split_hash": checkpoint.split_hash,
        "checkpoint_scaling": checkpoint.scaling,
        "seen_patients": seen_patients,
        "precision": precision,
        **compared,
    }


def write_results(
    settings: ProbeSettings,
    encoder: Checkpoint,
    results: Results,
    content: dict,
    found: Mapping[str, Montage],
    single: EventResults | None = None,
    more: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write metrics.json (``content``), probes.npz, tables, pictures and report.html; its path."""
    content["montages"] = [row for montage in found.values() for row in montage.rows]
    content["events"] = single and single.figures
    folder = settings.paths.output_dir
    tuning = content.get("finetuning") or {}
    encoder_sha256 = tuning.get("encoder_sha256") or checkpoints.hash_encoder(encoder.build_model())
    basis = report.probe_basis(results, content, encoder_sha256, settings.seed)
    probes = {task: result.probe for task, result in results.fitted.items()}
    read_outs = {
        task: SavedReadOut(table.read_outs[0].table.name, table.read_outs[0].normalise)
        for task, table in results.tables.items()
    }
    fewer = {name: montage.probes for name, montage in found.items() if name != ALL_CHANNELS}
    with machine.only_run_in(folder, "paths.output_dir"):
        # Of runs that were killed.
        below = ("", "tables/", "pictures/", "embeddings/*/")
        disk.remove_partial(folder, *(f"{place}.*.partial" for place in below))
        disk.write_text(folder / "metrics.json", json.dumps(content, indent=1, allow_nan=False))
        files.save_probes(
            folder / "probes.npz",
            read_outs,
            probes,
            basis,
            fewer,
            single
            and EventProbes(
                steps.pooling_of(event_layer(results)),
                {ALL_CHANNELS: single.probes, **single.montages},
            ),
        )
        if (published := settings.paths.publish_to) is not None:
            disk.remove_partial(published.parent, f".{published.name}.*.partial")
            files.publish(folder / "probes.npz", published)
        return report.write_report(folder, results, content, single, more)
