"""The one real night, cross-validated: a checkpoint, its untrained twin, and hand-made features.

    python 1_prepare_dataset.py --config configs/sleep_edf/prepare.yaml
    python benchmarks/real_night.py                            # two minutes on 2 cores

Script 3 judges 180 of the 841 epochs of Sleep-EDF SC4001, too few to tell encoders apart. Here its
10-minute blocks are dealt to five folds; each fold is judged by probes that three others fitted
and the fourth chose, so that each epoch is judged by probes that never saw its block. Ten rounds,
each with other folds and another untrained twin, are averaged; intervals by bootstrap over the
blocks, paired. One healthy adult, five of the 16 channels: this says nothing of other people.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae import machine, metrics, tasks
from pedsleepmae.checkpoints import read_checkpoint
from pedsleepmae.probe import embeddings, evaluation, files, linear
from pedsleepmae.probe.evaluation import ProbeSettings
from pedsleepmae.probe.tables import FeatureTable, open_tables
from pedsleepmae.store import ExampleIndex, load_index

N_FOLDS = 5
N_ROUNDS = 10
N_DRAWS = 2000
FIGURES = ("weighted_auroc", "kappa", "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches_dir", type=Path, default=ROOT / "data/sleep_edf/batches")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoint/m15p8_checkpoint.pt")
    parser.add_argument(
        "--pooling",
        default=None,
        help="one, or several joined by +; default: that of the stages in the checkpoint's "
        "probes.npz, chosen on simulated children",
    )
    options = parser.parse_args()
    pooling = options.pooling
    if pooling is None:
        read_outs, _ = files.load_probes(options.checkpoint.with_name("probes.npz"))
        pooling = read_outs["sleep"].pooling
    index = load_index(options.batches_dir)
    with tempfile.TemporaryDirectory() as folder:
        results = judge_all(index, options.checkpoint, pooling, Path(folder))
    print(f"pooling {pooling}; {N_ROUNDS} rounds of {N_FOLDS} folds, {len(index)} epochs")
    n_blocks = len(np.unique(blocks_of(index)))
    for source, rounds in results.items():
        print(f"{source:12s}", *(in_words(name, rounds, n_blocks) for name in FIGURES))
    for other in ("untrained", "handmade"):
        pairs = list(zip(results["encoder"], results[other], strict=True))
        print(f"encoder over {other}:", *(gap_in_words(name, pairs, n_blocks) for name in FIGURES))


def judge_all(index: ExampleIndex, checkpoint: Path, pooling: str, folder: Path) -> dict:
    """Evaluations of every round by source of features."""
    results = {"encoder": [], "untrained": [], "handmade": []}
    compute, encoder = machine.Compute.choose("cpu", "auto"), read_checkpoint(checkpoint)
    embeddings.compute_handmade(index, folder / "handmade", n_workers=1)
    tables = {
        "encoder": embeddings.open_features(index, encoder, folder, [pooling], compute)[pooling],
        "handmade": open_tables(index, folder / "handmade", ["handmade"])["handmade"],
    }
    for r in tqdm(range(N_ROUNDS), desc="rounds", unit="round"):
        tables["untrained"] = embeddings.open_features(
            index, encoder, folder, [pooling], compute, untrained_seed=r
        )[pooling]
        for source in results:
            results[source].append(judge(index, tables[source], seed=r))
    return results


def judge(index: ExampleIndex, features: FeatureTable, seed: int) -> metrics.Evaluation:
    """Probes of one set of features, fitted, chosen and judged over the folds of one round."""
    block_N = blocks_of(index)
    n_blocks = int(block_N.max()) + 1
    fold_N = np.random.default_rng(seed).permutation(n_blocks)[block_N] % N_FOLDS
    label_N = tasks.task_labels(index.labels, "sleep")
    prob_NK = np.zeros((len(index), tasks.N_CLASSES["sleep"]))
    fitting = linear.FitSettings(strengths=ProbeSettings().regularisation)
    for fold in range(N_FOLDS):
        turned = np.select([fold_N == fold, fold_N == (fold + 1) % N_FOLDS], [2, 1], 0)
        part = replace(index, split=turned)
        table = FeatureTable(part, features.places, features.name)
        choices, _ = evaluation.fit_and_choose(part, table, {"sleep": label_N}, fitting)
        probe, test = choices["sleep"].probe, part.rows("test")
        logit_NK = linear.predict(table, test, {"sleep": probe.linear}, fitting)["sleep"]
        prob_NK[test] = probe.probabilities(logit_NK)
    scored = label_N >= 0
    return metrics.evaluate(
        label_N[scored],
        prob_NK[scored],
        prob_NK[scored].argmax(1),
        block_N[scored],
        metrics.draw_weights(n_blocks, N_DRAWS, seed=0),
    )


def blocks_of(index: ExampleIndex) -> np.ndarray:
    """Number of the 10-minute block of each epoch, (N,)."""
    return metrics.bootstrap_groups(index.patient_ids, index.study_ids, index.onsets_s)[0]


def in_words(name: str, rounds: list[metrics.Evaluation], n_blocks: int) -> str:
    value = np.mean([each.figures[name] for each in rounds])
    draws = np.mean([each.draws[name] for each in rounds], axis=0)
    low, high = metrics.interval(draws, n_blocks, value)
    return f"  {name} {value:.3f} [{low:.3f}, {high:.3f}]"


def gap_in_words(name: str, pairs: list[tuple], n_blocks: int) -> str:
    value = np.mean([one.figures[name] - other.figures[name] for one, other in pairs])
    draws = np.mean([one.draws[name] - other.draws[name] for one, other in pairs], axis=0)
    low, high = metrics.interval(draws, n_blocks, value, (-1.0, 1.0))
    return f"  {name} {value:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
