"""What a montage costs: probes on the channels that a laboratory records, and fitted for them.

A sample of the examples is embedded again with only those channels shown to the encoder. The
probes fitted on all channels are judged on it as they are; for each task val chooses between others
that are fitted on it and the same ones, calibrated on it. Script 4 scores a recording with those of
the montage that is nearest to its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pedsleepmae import machine, metrics, store
from pedsleepmae.channels import ALL_CHANNELS, MONTAGES, N_CHANNELS
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.data import keep_files
from pedsleepmae.probe import embeddings, linear
from pedsleepmae.probe.evaluation import ProbeSettings, Results, auroc_name, fit_and_choose
from pedsleepmae.probe.linear import Choice, FitSettings, TaskProbe
from pedsleepmae.probe.readout import ProbeTable, ReadOut, tasks_by_features
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import task_labels

JUDGED_EPOCHS = 4_000  # of val and of test at most: probes need many to fit, few to be judged


@dataclass(frozen=True)
class Montage:
    """A montage's probes by task, and a row for each task of what they and the others reach."""

    probes: dict[str, TaskProbe]
    rows: list[dict]


def judge_montages(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    checkpoint: Checkpoint,
    results: Results,
    folder: Path,
    compute: machine.Compute,
    fitting: FitSettings,
) -> dict[str, Montage]:
    """Probes and figures of each montage, on a sample of each split; the test figures are final."""
    sample, model, found = first_files(index, settings.montage_epochs), checkpoint.build_model(), {}
    read_outs = {task: table.read_outs[0] for task, table in results.tables.items()}
    names = sorted({read_out.table.name for read_out in read_outs.values()})
    for name, channels in MONTAGES.items():
        shown_C = np.isin(np.arange(N_CHANNELS), channels)
        part = replace(sample, present=sample.present & shown_C)
        slug = "_".join(name.replace(",", "").split())
        key = embeddings.embedding_key(checkpoint.sha256, slug, index.split_hash, compute.precision)
        place = folder / "montages" / key
        if name == ALL_CHANNELS:  # embedded already
            place = results.best_table.read_outs[0].table.paths[0].parent
        embeddings.embed_files(part, model, place, names, compute, f"montage: {name}")
        tables, found[name] = embeddings.open_tables(part, place, names), Montage({}, [])
        for read_out, tasks in tasks_by_features(read_outs).items():
            probe_table = ProbeTable([ReadOut(tables[read_out.table.name], read_out.normalise)])
            labels = {task: task_labels(part.labels, task) for task in tasks}
            all_channels = {task: results.fitted[task].probe for task in tasks}
            refitted, _ = fit_and_choose(part, probe_table, labels, fitting)
            kept = _recalibrate(part, probe_table, labels, all_channels, fitting)
            probes = better_on_val(refitted, kept)
            ways = {"as fitted on all channels": all_channels, "chosen for this montage": probes}
            rows = _judge(settings, part, probe_table, labels, ways, fitting)
            told = {"montage": name, "n_channels": int(shown_C.sum())}
            found[name].probes.update(probes)
            found[name].rows.extend(told | row for row in rows)
    return found


def _recalibrate(
    index: store.ExampleIndex,
    table: ProbeTable,
    labels: Mapping[str, np.ndarray],
    probes: Mapping[str, TaskProbe],
    fitting: FitSettings,
) -> dict[str, Choice]:
    """The probes of all channels with calibration and threshold anew on this montage's val.

    They saw all train epochs; those fitted anew saw the sample's alone.
    """
    val, choices = index.rows("val"), {}
    linears = {task: probe.linear for task, probe in probes.items()}
    logits = linear.predict(table, val, linears, fitting)
    for task, probe in probes.items():
        known = labels[task][val] >= 0
        candidate = {probe.strength: (linears[task], logits[task][known])}
        choices[task] = linear.choose(task, labels[task][val][known], probe.classes, candidate)
    return choices


def better_on_val(
    refitted: Mapping[str, Choice], kept: Mapping[str, Choice]
) -> dict[str, TaskProbe]:
    """Of each task of ``kept`` the probe that val prefers; the refitted one where they are equal.

    A task of which the sample's train epochs show one class alone has nothing refitted.
    """
    probes = {}
    for task, choice in kept.items():
        rivals = [refitted[task], choice] if task in refitted else [choice]
        probes[task] = max(rivals, key=lambda rival: rival.score or 0.0).probe
    return probes


def first_files(index: store.ExampleIndex, n_epochs: int) -> store.ExampleIndex:
    """Of each split the first files, which are as mixed as all, until they hold so many epochs.

    Of val and test `JUDGED_EPOCHS` at most.
    """
    kept = []
    for split in SPLITS:
        enough = n_epochs if split == "train" else min(n_epochs, JUDGED_EPOCHS)
        files, counts = np.unique(index.file_of[index.rows(split)], return_counts=True)
        kept.append(files[np.cumsum(counts) - counts < enough])
    return keep_files(index, np.concatenate(kept))


def _judge(
    settings: ProbeSettings,
    index: store.ExampleIndex,
    table: ProbeTable,
    labels: Mapping[str, np.ndarray],
    ways: Mapping[str, Mapping[str, TaskProbe]],
    fitting: FitSettings,
) -> list[dict]:
    """A row for each task and way; ``ways``: by their names the probes of each task."""
    test, rows = index.rows("test"), []
    group_N, _ = metrics.bootstrap_groups(
        index.patient_ids[test], index.study_ids[test], index.onsets_s[test]
    )
    weights_RG = metrics.draw_weights(
        int(group_N.max()) + 1, settings.bootstrap_draws, settings.seed
    )
    for way, probes in ways.items():
        of_task = {task: probe.linear for task, probe in probes.items()}
        for task, probe in probes.items():
            # One by one: a montage's probes may have been standardised apart.
            logit_NK = linear.predict(table, test, {task: of_task[task]}, fitting)[task]
            scored = labels[task][test] >= 0
            prob_NK = probe.probabilities(logit_NK[scored])
            judged = metrics.evaluate(
                labels[task][test][scored],
                prob_NK,
                probe.decide(prob_NK),
                group_N[scored],
                weights_RG,
            )
            row = {"task": task, "probes": way, "n_test": int(scored.sum())}
            for title, name in {"auroc": auroc_name(task), "kappa": "kappa"}.items():
                row |= {title: judged.figures[name], f"{title}_ci95": judged.ci95[name]}
            rows.append(row)
    return rows
