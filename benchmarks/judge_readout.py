"""The read-out that script 3 found best by the mean over the tasks against the one of before, and
against an amplifier's gain.

    python 0_simulate_cohort.py --config configs/m15p8_simulated/simulate_readout.yaml
    python 0_simulate_cohort.py --config configs/m15p8_simulated/simulate_readout.yaml \\
        --scaling policy --batches_dir data/readout/policy
    python 3_train_classifier.py --config configs/m15p8_simulated/probe.yaml
    python benchmarks/judge_readout.py                        # ten minutes on 2 cores

Both read-outs of the same frozen encoder are fitted on the same train patients, choose C on the
same val patients and are judged on the same test epochs (simulated children); intervals over
patients, paired. Then the test nights are scored as script 4 scores them, with EEG, EOG and EMG at
half, at once and at twice their amplitude.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae import hdf5, machine, metrics, store
from pedsleepmae.channels import CHANNELS
from pedsleepmae.checkpoints import read_checkpoint
from pedsleepmae.prepare.signals import standardise_epochs, undo_standard
from pedsleepmae.probe import embeddings, evaluation, linear
from pedsleepmae.probe.evaluation import ProbeSettings, auroc_name
from pedsleepmae.probe.readout import ProbeTable, ReadOut
from pedsleepmae.score.night import load_scorer, score_examples
from pedsleepmae.tasks import TASKS, task_labels

BEFORE = "time_mean+time_abs+class"
GAINS = (1.0, 0.5, 2.0)
VOLTAGES = [c for c, channel in enumerate(CHANNELS) if channel.kind == "voltage"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=Path, default=ROOT / "data/readout/robust")
    parser.add_argument("--batches_before", type=Path, default=ROOT / "data/readout/policy")
    parser.add_argument("--results", type=Path, default=ROOT / "results/m15p8_simulated")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoint/m15p8_checkpoint.pt")
    options = parser.parse_args()
    content = json.loads((options.results / "metrics.json").read_text(encoding="utf-8"))
    compute, encoder = machine.Compute.choose("cpu", "auto"), read_checkpoint(options.checkpoint)

    layer = f"@{content['layer']}" if content["layer"] else ""
    name, folder = content["pooling"] + layer, options.results / "embeddings"
    now = store.load_index(options.batches)
    table = embeddings.open_features(now, encoder, folder, [name], compute)[name]
    judged = {"now": judge(now, ProbeTable([ReadOut(table, content["normalise"])]))}
    with tempfile.TemporaryDirectory() as place:
        before = store.load_index(options.batches_before)
        same = (now.patient_ids == before.patient_ids) & (now.onsets_s == before.onsets_s)
        assert same.all(), "the two folders hold other examples, or in another order"
        table = embeddings.open_features(before, encoder, Path(place), [BEFORE], compute)[BEFORE]
        judged["before"] = judge(before, table)  # as the features come, without marks
    print("simulated children; now:", name, content["normalise"], "- before:", BEFORE)
    print(pd.DataFrame(compare(judged, now)).to_string(index=False))

    scorer = load_scorer(options.checkpoint, options.results / "probes.npz")
    print(pd.DataFrame(gains(scorer, now)).to_string(index=False))


def judge(index: store.ExampleIndex, table) -> dict[str, metrics.Evaluation]:
    """Test figures of each task, by probes of these features."""
    labels = {task: task_labels(index.labels, task) for task in TASKS}
    settings = ProbeSettings()
    fitting = linear.FitSettings(settings.regularisation, n_workers=2)
    choices, _ = evaluation.fit_and_choose(index, table, labels, fitting)
    test = index.rows("test")
    probes = {task: choice.probe.linear for task, choice in choices.items()}
    logits = linear.predict(table, test, probes, fitting)
    group_N, n_groups = test_groups(index)
    weights_RG = metrics.draw_weights(n_groups, settings.bootstrap_draws, settings.seed)
    found = {}
    for task, choice in choices.items():
        label_N = labels[task][test]
        scored = label_N >= 0
        prob_NK = choice.probe.probabilities(logits[task][scored])
        called_N = choice.probe.decide(prob_NK)
        own = label_N[scored], prob_NK, called_N, group_N[scored], weights_RG
        found[task] = metrics.evaluate(*own)
    return found


def test_groups(index: store.ExampleIndex) -> tuple[np.ndarray, int]:
    patients, group_N = np.unique(index.patient_ids[index.rows("test")], return_inverse=True)
    return group_N, len(patients)


def compare(judged: dict, index: store.ExampleIndex) -> list[dict]:
    """A row for each task: AUROC of both, their paired difference."""
    rows, (_, n_groups) = [], test_groups(index)
    for task in TASKS:
        new, old = judged["now"][task], judged["before"][task]
        name = auroc_name(task)
        gap = metrics.difference(new, old, n_groups)[name]
        row = {"task": task, "now": new.figures[name], "before": old.figures[name]}
        row |= {"difference": gap["value"], "low": gap["ci95"][0], "high": gap["ci95"][1]}
        rows.append(row)
    kappas = {way: judged[way]["sleep"].figures["kappa"] for way in ("now", "before")}
    return [*rows, {"task": "kappa of sleep", **kappas}]


def gains(scorer, index: store.ExampleIndex) -> list[dict]:
    """A row for each gain: kappa over all test nights, and how far the worst night falls."""
    test = index.rows("test")
    patients = np.unique(index.patient_ids[test])
    scored, called = [], {gain: [] for gain in GAINS}
    for patient in tqdm(patients, desc="nights"):
        here = test[index.patient_ids[test] == patient]
        here = here[np.argsort(index.onsets_s[here])]
        x_NCT = physical(index, here)
        present_NC = index.present[here]
        scored.append(task_labels({n: v[here] for n, v in index.labels.items()}, "sleep"))
        for gain in GAINS:
            louder_NCT = x_NCT.copy()
            louder_NCT[:, VOLTAGES] *= gain
            signals_NCT, center_NC, scale_NC = standardise_epochs(
                louder_NCT, present_NC, scaling=scorer.data_scaling
            )
            examples = store.Examples(
                signals_NCT,
                {n: v[here] for n, v in index.labels.items()},
                *(index.patient_ids[here], index.study_ids[here], index.onsets_s[here]),
                *(present_NC, center_NC, scale_NC),
            )
            called[gain].append(score_examples(scorer, examples).called["sleep"])
    rows = []
    for gain in GAINS:
        kappa = kappa_of(np.concatenate(scored), np.concatenate(called[gain]))
        pairs = zip(scored, called[1.0], called[gain], strict=True)
        falls = [kappa_of(a, b) - kappa_of(a, c) for a, b, c in pairs]
        rows.append({"gain": gain, "kappa": kappa, "worst night falls by": max(falls)})
    return rows


def kappa_of(scored_N: np.ndarray, called_N: np.ndarray) -> float:
    known = scored_N >= 0
    return float(cohen_kappa_score(scored_N[known], called_N[known]))


def physical(index: store.ExampleIndex, positions: np.ndarray) -> np.ndarray:
    """Signals of these positions in their physical units, (n, 16, 3840) float64."""
    signals_NCT = store.read_signals(index, positions)
    center_NC, scale_NC = (np.empty(signals_NCT.shape[:2]) for _ in range(2))
    for i in np.unique(index.file_of[positions]):
        rows = np.flatnonzero(index.file_of[positions] == i)
        with store.open_batch(index.files[i]) as file:
            n = len(file["signals"])
            for name, out_NC in (("center", center_NC), ("scale", scale_NC)):
                whole_NC = hdf5.array(file, name, (n, len(CHANNELS)), np.float64)
                out_NC[rows] = whole_NC[index.row_of[positions[rows]]]
    return undo_standard(signals_NCT, center_NC, scale_NC)


if __name__ == "__main__":
    main()
