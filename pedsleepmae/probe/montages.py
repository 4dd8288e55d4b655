"""What a montage costs: probes on the channels that a laboratory records, and fitted for them.

A sample of the examples is embedded again with only those channels shown to the encoder. The
probes fitted on all channels are judged on it as they are, and others are fitted on it; script 4
scores a recording with those of the montage that is nearest to its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pedsleepmae import machine, metrics, store
from pedsleepmae.channels import CHANNEL_GROUPS, CHANNEL_NAMES, N_CHANNELS
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.data import keep_files
from pedsleepmae.probe import embeddings, linear
from pedsleepmae.probe.evaluation import ProbeSettings, Results, auroc_name, fit_and_choose
from pedsleepmae.probe.linear import FitSettings, TaskProbe
from pedsleepmae.probe.readout import ProbeTable, ReadOut
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import task_labels

FIRST_EEG = CHANNEL_GROUPS["EEG"][:2]


def _only(*channels: int) -> np.ndarray:
    return np.isin(np.arange(N_CHANNELS), channels)


def _without(*groups: str) -> np.ndarray:
    return ~_only(*(channel for group in groups for channel in CHANNEL_GROUPS[group]))


_HOME = [channel for name in ("effort", "flow", "SpO2") for channel in CHANNEL_GROUPS[name]]
_BEDSIDE = [*FIRST_EEG, CHANNEL_GROUPS["EOG"][0], *CHANNEL_GROUPS["EMG"], *CHANNEL_GROUPS["flow"]]
ALL_CHANNELS = "all channels"
MONTAGES = {  # name -> channels that are there, (16,)
    ALL_CHANNELS: _without(),
    "no EEG": _without("EEG"),
    "one EEG": _without("EEG") | _only(FIRST_EEG[0]),
    "no chin": _without("EMG"),
    "no flow": _without("flow"),
    "no effort": _without("effort"),
    "two EEG, one EOG, chin, flow": _only(*_BEDSIDE),  # as Sleep-EDF
    "effort, flow, SpO2": _only(*_HOME),  # a test at home
    "SpO2 alone": _only(*CHANNEL_GROUPS["SpO2"]),
}


@dataclass(frozen=True)
class Montage:
    """A montage's probes by task, and a row for each task of what they and the others reach."""

    probes: Mapping[str, TaskProbe]
    rows: list[dict]


def nearest_montage(recorded_C: np.ndarray, names: Mapping[str, object]) -> str:
    """The montage among ``names`` whose probes fit a recording best; "all channels" has the others.

    One that the recording holds, with as few channels left over as can be, if these are fewer than
    it lacks of all: a channel that a probe misses counts as one that it does not read.
    """
    held = {name: MONTAGES[name] for name in names if not (MONTAGES[name] & ~recorded_C).any()}
    left_over = {name: int((recorded_C & ~shown_C).sum()) for name, shown_C in held.items()}
    best = min(left_over, key=left_over.get, default=ALL_CHANNELS)
    return best if best in held and left_over[best] < (~recorded_C).sum() else ALL_CHANNELS


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
    for name, shown_C in MONTAGES.items():
        part = replace(sample, present=sample.present & shown_C)
        slug = "_".join(name.replace(",", "").split())
        key = embeddings.embedding_key(checkpoint.sha256, slug, index.split_hash, compute.precision)
        place = folder / "montages" / key
        names = [read_out.table.name]
        embeddings.embed_files(part, model, place, names, compute, f"montage: {name}")
        table = embeddings.open_tables(part, place, names)[names[0]]
        probe_table = ProbeTable([ReadOut(table, read_out.normalise)])
        choices, _ = fit_and_choose(part, probe_table, labels, fitting)
        probes = {task: choice.probe for task, choice in choices.items()}
        rows = _judge(settings, part, probe_table, labels, results, probes, fitting)
        rows = [{"montage": name, "n_channels": int(shown_C.sum())} | row for row in rows]
        found[name] = Montage(probes, rows)
    return found


def first_files(index: store.ExampleIndex, n_epochs: int) -> store.ExampleIndex:
    """Of each split the first files, which are as mixed as all, until they hold so many epochs."""
    kept = []
    for split in SPLITS:
        files, counts = np.unique(index.file_of[index.rows(split)], return_counts=True)
        kept.append(files[np.cumsum(counts) - counts < n_epochs])
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
    """A row for each task: figures of the probes of all channels, and of those fitted anew."""
    test, rows = index.rows("test"), []
    group_N, _ = metrics.bootstrap_groups(
        index.patient_ids[test], index.study_ids[test], index.onsets_s[test]
    )
    weights_RG = metrics.draw_weights(
        int(group_N.max()) + 1, settings.bootstrap_draws, settings.seed
    )
    ways = {"as fitted on all channels": {t: r.probe for t, r in results.fitted.items()}}
    ways["fitted for this montage"] = refitted
    for way, probes in ways.items():
        of_task = {task: probe.linear for task, probe in probes.items()}
        logits = linear.predict(table, test, of_task, fitting)
        for task, probe in probes.items():
            scored = labels[task][test] >= 0
            prob_NK = probe.probabilities(logits[task][scored])
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


def channels_in_words(name: str) -> list[str]:
    """Names of a montage's channels."""
    return [channel for channel, there in zip(CHANNEL_NAMES, MONTAGES[name], strict=True) if there]
