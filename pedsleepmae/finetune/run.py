"""Script 3 with another mode than probe: the encoder is fine-tuned, then probed as a frozen one."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from pedsleepmae import adapters, checkpoints, machine, store
from pedsleepmae.checkpoints import PUBLISHED, Checkpoint
from pedsleepmae.errors import ProbeError, SettingsError, bounded
from pedsleepmae.finetune.loop import START, FinetuneSettings, Found, Job, tune
from pedsleepmae.finetune.tuned import ENCODER, POOLING, start_model
from pedsleepmae.machine import Compute, World
from pedsleepmae.optim import derived_seed, stop_on_signal
from pedsleepmae.probe import embeddings
from pedsleepmae.probe.evaluation import ProbeSettings, fit_and_choose
from pedsleepmae.probe.linear import FitSettings
from pedsleepmae.probe.readout import ProbeTable, ReadOut
from pedsleepmae.probe.tables import FeatureTable
from pedsleepmae.tasks import task_labels

ADAPTER, CHECKPOINT = "adapter.pt", "finetuned.pt"  # in output_dir, by mode lora and others


@dataclass
class ClassifierSettings(ProbeSettings):
    """Classifiers on a pretrained encoder: linear probes, or the encoder fine-tuned first."""

    mode: Literal["probe", "lora", "full", "scratch"] = "probe"
    """probe: the encoder stays frozen; lora: small matrices beside its layers are trained; full:
    all of it; scratch: the same architecture from random weights. Probes are then fitted on the
    encoder that results, and the frozen one stands beside."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    label_curve: list[int] = field(default_factory=list)
    """Also measure what so many labelled train patients are worth, 0 for all, such as
    [1, 5, 10, 20, 40, 0]; none named: not."""
    label_draws: int = bounded(5, 1, 1000)
    """Draws of patients for each number of label_curve; they stand in tables/label_draws.csv."""
    label_ways: list[Literal["handmade", "probe", "lora", "full", "scratch"]] = field(
        default_factory=lambda: ["handmade", "probe", "lora", "scratch"]
    )
    """What label_curve compares: hand-made features, and the modes."""

    def check(self) -> None:
        super().check()
        self.finetune.check()
        if self.label_curve and min(self.label_curve) < 0:
            raise SettingsError("label_curve holds a number below 0; give numbers of patients")
        if self.label_curve and "probe" not in self.label_ways:
            raise SettingsError("label_ways needs probe, which the others are compared with")
        if self.label_curve and "handmade" in set(self.label_ways) - set(self.baselines):
            raise SettingsError("label_ways has handmade, which baselines lacks; add it there")


# ------------------------------------------------------------------ one encoder, fine-tuned
def start_tables(
    settings: ClassifierSettings,
    index: store.ExampleIndex,
    checkpoint: Checkpoint,
    modes: list[str],
    compute: Compute,
    world: World,
) -> dict[str, FeatureTable]:
    """By mode what the encoder at its start says of every example, for the heads to start from."""
    folder, tables = settings.paths.output_dir / "embeddings", {}
    for mode in modes:
        seed = settings.seed if mode == "scratch" else None
        tables[mode] = embeddings.open_features(
            index,
            checkpoint,
            folder,
            [POOLING],
            compute,
            untrained_seed=seed,
            title=f"where {mode} starts",
            world=world,
        )[POOLING]
    return tables


def make_job(
    settings: ClassifierSettings,
    index: store.ExampleIndex,
    checkpoint: Checkpoint,
    mode: str,
    start: FeatureTable,
    compute: Compute,
    fitting: FitSettings,
    seed: int,
) -> Job:
    """What is fine-tuned on the train patients of the index; ProbeError where no task can be."""
    labels = {task: task_labels(index.labels, task) for task in settings.tasks}
    choices, _ = fit_and_choose(index, ProbeTable([ReadOut(start, "none")]), labels, fitting)
    if not choices:
        raise ProbeError("the train patients show one class in every task; nothing can be learnt")
    own = asdict(settings.finetune)
    del own["resume"], own["save_every"]
    train = index.rows("train")
    patients = np.unique(index.patient_ids[train])
    facts = {
        **{"mode": mode, "seed": seed, "tasks": settings.tasks, "finetune": own},
        **{"checkpoint": checkpoint.sha256, "split": index.split_hash, "n": len(train)},
        **{"examples": index.content_hash},
        **{"patients": hashlib.sha256(patients.tobytes()).hexdigest()},
        **{"precision": compute.precision, "strengths": list(fitting.strengths)},
    }
    rank, alpha = settings.finetune.rank, settings.finetune.alpha
    start_seed = settings.seed if mode == "scratch" else derived_seed(seed, START)
    return Job(
        index=index,
        train=train,
        val=index.rows("val"),
        labels=labels,
        heads={task: choice.probe.linear for task, choice in choices.items()},
        build=lambda: start_model(checkpoint, mode, start_seed, rank, alpha),
        mode=mode,
        seed=seed,
        facts=json.dumps(facts, sort_keys=True),
    )


def finetune_encoder(
    settings: ClassifierSettings,
    index: store.ExampleIndex,
    checkpoint: Checkpoint,
    compute: Compute,
    world: World,
    fitting: FitSettings,
) -> tuple[Checkpoint, dict[str, Any]]:
    """The fine-tuned encoder, as it is stored in output_dir, and what metrics.json says of it."""
    mode, folder = settings.mode, settings.paths.output_dir
    start = start_tables(settings, index, checkpoint, [mode], compute, world)[mode]
    job = make_job(settings, index, checkpoint, mode, start, compute, fitting, settings.seed)
    key = hashlib.sha256(job.facts.encode()).hexdigest()[:12]
    place = folder / "finetune" / f"{mode}_{key}.pt"
    begin = time.perf_counter()
    with stop_on_signal() as stop_wanted:
        found = tune(job, settings.finetune, compute, world, place, stop_wanted)
    facts = {
        "trials": found.trials,
        "chosen": found.chosen,
        "n_trained": sum(weight.numel() for weight in found.weights.values()),
        "n_train_examples": len(job.train),
        "seconds": time.perf_counter() - begin,
        "memory_gb": machine.peak_memory_gb(compute.device),
        "device": machine.describe(compute.device),
        "settings": asdict(settings.finetune),
    }
    if world.is_first:
        if mode == "lora":
            adapter = as_adapter(found, checkpoint, settings.finetune)
            adapters.save_adapter(folder / ADAPTER, adapter)
            facts["adapter"], facts["adapter_sha256"] = f"{folder / ADAPTER}", adapter.sha256
            facts["encoder_sha256"] = adapter.encoder_sha256
        else:
            content = as_checkpoint(found, checkpoint, index, mode)
            checkpoints.save_checkpoint(folder / CHECKPOINT, content)
            facts["finetuned"] = f"{folder / CHECKPOINT}"
    world.meet()
    if mode == "lora":
        return adapters.merge(checkpoint, adapters.load_adapter(folder / ADAPTER)), facts
    return checkpoints.read_checkpoint(folder / CHECKPOINT), facts


def as_adapter(
    found: Found, checkpoint: Checkpoint, settings: FinetuneSettings
) -> adapters.Adapter:
    """What was found with mode lora, as an adapter of the checkpoint's encoder."""
    return adapters.Adapter(
        checkpoints.hash_encoder(checkpoint.build_model()),
        settings.rank,
        settings.alpha,
        encoder_weights(found),
    )


def encoder_weights(found: Found) -> dict[str, Any]:
    """Weights by their names in the model, without the heads."""
    return {
        name.removeprefix(ENCODER): weight
        for name, weight in found.weights.items()
        if name.startswith(ENCODER)
    }


def as_checkpoint(
    found: Found, checkpoint: Checkpoint, index: store.ExampleIndex, mode: str
) -> Mapping[str, Any]:
    """What was found with mode full or scratch, as the content of a checkpoint file.

    The decoder is left out: it belongs to the encoder as it was.
    """
    content = {name: getattr(checkpoint, name) for name in PUBLISHED}
    seen = checkpoints.hash_patients(index.patient_ids[index.rows("train")])
    if mode == "full":
        theirs = checkpoint.patients_seen
        seen = None if theirs is None else sorted({*seen, *theirs})
    simulated = index.simulated or (mode == "full" and checkpoint.simulated)
    return content | {
        "state_dict": encoder_weights(found),
        "patients_seen": seen,
        "simulated": bool(simulated),
        "val_loss": None,
        "scaling": index.scaling,
        "split_hash": index.split_hash,
        "data": {"source": f"script 3, mode {mode}, of {checkpoint.sha256}"},
        "decoder": "decoder of finetuned.pt",
    }
