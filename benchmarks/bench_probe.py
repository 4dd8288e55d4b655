"""Speed of script 3's parts beside the naive way of doing each.

    python benchmarks/bench_probe.py                              # about two minutes on 2 cores
    python benchmarks/bench_probe.py --emb_dim 64 --n_embedded 2048 --device cuda

Intervals: 1,000 resamples of patients from sums, against scoring each resample anew. Probes: six
tasks at four strengths, in memory and by passes over the disk with a tenth of the memory, and how
far the two disagree. Embedding: once and kept, against the encoder run again in every epoch of
probe training (50 epochs for each task, as in the paper; one is measured). The last lines are rows
for benchmarks/RESULTS.md.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pedsleepmae import machine, metrics, store, tasks
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe import embeddings, linear, tables

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
NAIVE_EPOCHS = 50  # passes over the training examples in the paper's probe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n_epochs", type=int, default=2_000_000, help="epochs to resample")
    parser.add_argument("--n_patients", type=int, default=400, help="patients to resample")
    parser.add_argument("--n_rows", type=int, default=6000, help="epochs to fit probes on")
    parser.add_argument("--n_features", type=int, default=1024)
    parser.add_argument("--n_embedded", type=int, default=128, help="examples to embed")
    parser.add_argument("--emb_dim", type=int, default=16, help="width of the encoder")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    device = machine.choose_device(options.device)
    print(f"device: {machine.describe(device)}")
    rows = [
        *bench_intervals(options.n_epochs, options.n_patients),
        *bench_fits(options, device),
        *bench_embedding(options, device),
    ]
    for row in rows:
        print(f"| bench_probe | {row} |")


def timed(function: Callable, device: torch.device | None = None) -> tuple[float, object]:
    """Seconds of one call, and what it returned."""
    begin = time.perf_counter()
    result = function()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, result


# ------------------------------------------------------------------ intervals
def bench_intervals(n_epochs: int, n_patients: int) -> list[str]:
    rng = np.random.default_rng(0)
    group_N = np.sort(rng.integers(0, n_patients, n_epochs))
    weights_RG = metrics.draw_weights(n_patients, 1000, seed=0)
    rows = []
    for n_classes, words in ((2, "an event"), (5, "five stages")):
        label_N = rng.choice(n_classes, n_epochs, p=[0.98, 0.02] if n_classes == 2 else None)
        logit_NK = rng.standard_normal((n_epochs, n_classes)) + np.eye(n_classes)[label_N]
        prob_NK = metrics.calibrated(logit_NK, 1.0, np.zeros(n_classes))
        seconds, evaluation = timed(
            lambda label=label_N, prob=prob_NK: metrics.evaluate(
                label, prob, prob.argmax(1), group_N, weights_RG
            )
        )
        rows.append(f"{n_epochs:,} epochs, 1,000 resamples, {words}, all figures | {seconds:.1f} s")
        if n_classes == 2:
            naive_s, naive_auroc = timed(
                lambda label=label_N, prob=prob_NK: naive_draw(label, prob, group_N, weights_RG[0])
            )
            error = abs(evaluation.draws["auroc"][0] - naive_auroc)
            words = "… scikit-learn's AUROC alone, each resample anew (1 measured, x 1,000); the "
            words += f"same resample differs by {error:.0e}"
            rows.append(f"{words} | {1000 * naive_s:,.0f} s")
    return rows


def naive_draw(label_N, prob_NK, group_N, weights_G) -> float:
    """AUROC of one resample whose rows are really repeated."""
    rows = np.repeat(np.arange(len(label_N)), weights_G[group_N].astype(int))
    return roc_auc_score(label_N[rows], prob_NK[rows, 1])


# ------------------------------------------------------------------ probes
def bench_fits(options: argparse.Namespace, device: torch.device) -> list[str]:
    n, n_features = options.n_rows, options.n_features
    with tempfile.TemporaryDirectory() as name:
        table, targets = random_features(Path(name), n, n_features)
        everything = np.arange(n)
        enough_gb = n * n_features * 4 * linear.COPIES_IN_MEMORY / 1e9
        fitted, seconds = {}, {}
        for way, memory_gb in (("in memory", enough_gb), ("by passes", enough_gb / 10)):
            fitting = linear.FitSettings(STRENGTHS, memory_gb, options.n_workers, device)
            seconds[way], (fitted[way], _) = timed(
                lambda fitting=fitting: linear.fit_probes(table, everything, targets, fitting),
                device,
            )
        flat = {
            way: linear.predict(
                table,
                everything,
                {(t, c): p for t, by_c in fits.items() for c, p in by_c.items()},
                fitting,
            )
            for way, fits in fitted.items()
        }
    gaps = [np.abs(a - flat["by passes"][key]).max() for key, a in flat["in memory"].items()]
    spread = np.mean([logit_NK.std() for logit_NK in flat["in memory"].values()])
    what = f"{n:,} x {n_features:,} features, 6 tasks x {len(STRENGTHS)} strengths"
    solver = "scikit-learn" if device.type == "cpu" else "passes"
    return [
        f"{what}, {solver} in memory | {seconds['in memory']:.1f} s",
        f"… by passes with a tenth of the memory ({enough_gb / 10:.3f} GB); logits (sd "
        f"{spread:.2f}) differ by at most {max(gaps):.1e} | {seconds['by passes']:.1f} s",
    ]


def random_features(folder: Path, n: int, n_features: int) -> tuple:
    """Correlated features on disk that hold six tasks, and the tasks' labels."""
    rng = np.random.default_rng(1)
    index = store.ExampleIndex(
        files=[folder / "train" / f"combined_{i}.hdf5" for i in range(-(-n // 128))],
        file_of=np.arange(n) // 128,
        row_of=np.arange(n) % 128,
        split=np.zeros(n, np.int8),
        labels={name: np.zeros(n, np.int64) for name in tasks.LABELS},
        patient_ids=np.arange(n) // 900,
        study_ids=np.arange(n) // 900,
        onsets_s=np.arange(n) * 30.0,
        present=np.ones((n, N_CHANNELS), bool),
        split_hash="",
        patient_disjoint=True,
        simulated=True,
    )
    hidden_NH = rng.standard_normal((n, 30))
    mix_HF = rng.standard_normal((30, n_features)) * rng.uniform(0, 1, n_features)
    for i, path in enumerate(index.files):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.bytes(5000))
        rows = np.flatnonzero(index.file_of == i)
        x_NF = hidden_NH[rows] @ mix_HF + rng.standard_normal((len(rows), n_features))
        embeddings.write_features(folder, index, i, {"x": embeddings.as_float16(x_NF)})
    noise_NH = hidden_NH + rng.standard_normal((n, 30))
    targets = {"sleep": noise_NH[:, :5].argmax(1)}
    for k, task in enumerate([name for name in tasks.N_CLASSES if name != "sleep"]):
        targets[task] = (noise_NH[:, 6 + k] > 2.0).astype(np.int64)
    return tables.open_tables(index, folder, ["x"])["x"], targets


# ------------------------------------------------------------------ embedding
def bench_embedding(options: argparse.Namespace, device: torch.device) -> list[str]:
    """Ours: one pass for all poolings. Naive: a pass and a step of the head, again each epoch."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(emb_dim=options.emb_dim).to(device).eval()
    n, size = options.n_embedded, options.batch_size
    compute = machine.Compute.choose(options.device, "auto", size)
    x_NCT = torch.randn(n, N_CHANNELS, EPOCH_SAMPLES)
    head = torch.nn.Linear(N_CHANNELS * model.n_patches, 2).to(device)
    optimizer = torch.optim.AdamW(head.parameters())
    poolings = ["mean", "max", "time_mean", "time_abs", "class"]

    def ours() -> None:
        for start in range(0, n, size):
            with compute.autocast():
                model.embed_many(x_NCT[start : start + size].to(device), poolings)

    def naive_epoch() -> None:
        for start in range(0, n, size):
            with compute.autocast():
                features = model.embed(x_NCT[start : start + size].to(device), "mean").float()
            target = torch.zeros(len(features), dtype=torch.int64, device=device)
            loss = torch.nn.functional.cross_entropy(head(features), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    ours()  # warm up
    ours_s, _ = timed(ours, device)
    naive_s, _ = timed(naive_epoch, device)
    n_tasks = len(tasks.N_CLASSES)
    factor = NAIVE_EPOCHS * n_tasks * naive_s / ours_s
    return [
        f"embedding once, width {options.emb_dim}, five poolings, "
        f"{compute.precision} | {n / ours_s:,.0f} examples/s",
        f"… encoder in every epoch of probe training, {NAIVE_EPOCHS} epochs x {n_tasks} tasks "
        f"(1 epoch measured: {n / naive_s:,.0f} examples/s) | {factor:,.0f} times the encoder work",
    ]


if __name__ == "__main__":
    main()
