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
from pedsleepmae.probe.readout import ProbeTable, ReadOut
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import task_labels

JUDGED_EPOCHS = 4_000  # of val and of test at most: probes need many to fit, few to be judged


@dataclass(frozen=True)
class Montage:
    """A montage's probes by task, and a row for each task of what they and the others reach."""

    probes: Mapping[str, TaskProbe]
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
    (read_out,) = results.best_table.read_outs
    sample, labels = first_files(index, settings.montage_epochs), {}
    for task in results.fitted:
        labels[task] = task_labels(sample.labels, task)
    found, model = {}, checkpoint.build_model()
    for name, channels in MONTAGES.items():
        shown_C = np.isin(np.arange(N_CHANNELS), channels)
        part = replace(sample, present=sample.present & shown_C)
        slug = "_".join(name.replace(",", "").split())
        key = embeddings.embedding_key(checkpoint.sha256, slug, index.split_hash, compute.precision)
        place = folder / "montages" / key
        if name == ALL_CHANNELS:  # embedded already
            place = read_out.table.paths[0].parent
        names = [read_out.table.name]
        embeddings.embed_files(part, model, place, names, compute, f"montage: {name}")
        table = embeddings.open_tables(part, place, names)[names[0]]
        probe_table = ProbeTable([ReadOut(table, read_out.normalise)])
        refitted, _ = fit_and_choose(part, probe_table, labels, fitting)
        kept = _recalibrate(part, probe_table, labels, results, fitting)
        probes = better_on_val(refitted, kept)
        rows = _judge(settings, part, probe_table, labels, results, probes, fitting)
        rows = [{"montage": name, "n_channels": int(shown_C.sum())} | row for row in rows]
        found[name] = Montage(probes, rows)
    return found


def _recalibrate(
    index: store.ExampleIndex,
    table: ProbeTable,
    labels: Mapping[str, np.ndarray],
    results: Results,
    fitting: FitSettings,
) -> dict[str, Choice]:
    """The probes of all channels with calibration and threshold anew on this montage's val.

    They saw all train epochs; those fitted anew saw the sample's alone.
    """
    val, choices = index.rows("val"), {}
    linears = {task: result.probe.linear for task, result in results.fitted.items()}
    logits = linear.predict(table, val, linears, fitting)
    for task, result in results.fitted.items():
        known = labels[task][val] >= 0
        candidate = {result.probe.strength: (linears[task], logits[task][known])}
        choices[task] = linear.choose(
            task, labels[task][val][known], result.probe.classes, candidate
        )
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
    results: Results,
    refitted: Mapping[str, TaskProbe],
    fitting: FitSettings,
) -> list[dict]:
    """A row for each task and way: probes of all channels, and those chosen for the montage."""
    test, rows = index.rows("test"), []
    group_N, _ = metrics.bootstrap_groups(
        index.patient_ids[test], index.study_ids[test], index.onsets_s[test]
    )
    weights_RG = metrics.draw_weights(
        int(group_N.max()) + 1, settings.bootstrap_draws, settings.seed
    )
    ways = {"as fitted on all channels": {t: r.probe for t, r in results.fitted.items()}}
    ways["chosen for this montage"] = refitted
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
