"""Speed of a pretraining step beside the machine's own matmul rate and a naive step.

    python benchmarks/bench_pretrain.py                        # this machine, batch 32
    python benchmarks/bench_pretrain.py --batch_size 512 --steps 20 --compile      # a large GPU

Ours is the step of script 2 (masks, forward, backward, clipping, AdamW) with the batch in memory.
The naive step does the same work as one would write it first, and as the original does: float32,
every patch embedded before masking, masking and unmasking in Python loops over batch and channel,
plain attention, unfused optimiser. The last line is a row for benchmarks/RESULTS.md.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pedsleepmae import data, machine
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.machine import Compute, World, keep_freed_memory
from pedsleepmae.model import (
    MaskedAutoencoder,
    ModelSettings,
    flops_per_example,
    patchify,
)
from pedsleepmae.pretrain.trainer import OptimSettings, PretrainSettings, Trainer
from pedsleepmae.store import ExampleIndex
from pedsleepmae.tasks import LABELS

NCH_EXAMPLES = 2_900_000  # of train: 80 % of 3.6 million


def main() -> None:
    options = read_options()
    compute = Compute.choose(options.device, options.precision)
    device, dtype = compute.device, compute.dtype
    if device.type == "cpu":
        keep_freed_memory()
    values = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))["model"]
    settings = PretrainSettings(
        model=ModelSettings(**values),
        optim=OptimSettings(
            batch_size=options.batch_size,
            accumulate=options.accumulate,
            balance_channels=False,  # there are no files to measure variances on
        ),
        compile=options.compile,
    )
    batch = random_batch(options.batch_size)
    rate = machine.matmul_rate(device, dtype)
    trainer = InMemory(settings, empty_index(options.batch_size), compute, World(), batch)
    step_s = seconds(lambda: trainer.train_step(batch), options.steps, device)
    rate = max(rate, machine.matmul_rate(device, dtype))  # other work may have slowed the first
    examples_per_s = options.batch_size / step_s
    achieved = examples_per_s * flops_per_example(trainer.model)
    precision = compute.precision
    print(
        f"machine              {machine.describe(device)}, torch {torch.__version__}, {precision}"
    )
    print(f"model                {options.config}, batch {options.batch_size}")
    print(f"operations           {flops_per_example(trainer.model) / 1e9:.1f} GFLOP an example")
    print(f"step                 {step_s:.3f} s, {examples_per_s:.2f} examples/s")
    print(f"achieved             {achieved / 1e12:.4g} TFLOP/s")
    print(f"matrix product alone {rate / 1e12:.4g} TFLOP/s")
    print(f"share                {achieved / rate:.3f}")
    print(f"memory               {machine.peak_memory_gb(device):.2f} GB")
    print(f"pass over NCH        {NCH_EXAMPLES / examples_per_s / 3600:.2f} h")
    naive = "not measured"
    if not options.skip_naive:
        naive_s = seconds(naive_step(settings, batch, device), options.naive_steps, device)
        naive = f"{naive_s:.3f} s, {naive_s / step_s:.1f} x"
    print(f"naive step, float32  {naive}")
    print(
        f"| bench_pretrain | {machine.describe(device)}, {precision} | batch {options.batch_size} "
        f"| {step_s:.3f} s | {examples_per_s:.2f} examples/s | {achieved / 1e12:.4g} of "
        f"{rate / 1e12:.4g} TFLOP/s = {achieved / rate:.3f} | naive {naive} |"
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/pretrain.yaml", help="model settings")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=1, help="pieces of a batch")
    parser.add_argument("--steps", type=int, default=2, help="steps measured, after two others")
    parser.add_argument("--naive_steps", type=int, default=1, help="naive steps, after one other")
    parser.add_argument("--skip_naive", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    return parser.parse_args()


def seconds(step, n_steps: int, device: torch.device) -> float:
    """Median time of a step, after one that warms up."""
    times = []
    for _ in range(1 + n_steps):
        begin = time.perf_counter()
        step()
        machine.wait(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


# ------------------------------------------------------------------ data in memory
class InMemory(Trainer):
    """A trainer that learns how much bands vary from the one batch, for there are no files."""

    def __init__(self, settings, index, compute, world, batch: data.Batch):
        self.batch = batch
        super().__init__(settings, index, compute, world)

    def _variance_sample(self):
        return [(self.batch.x_BCT, self.batch.present_BC)]


def random_batch(n: int) -> data.Batch:
    generator = torch.Generator().manual_seed(0)
    x_BCT = torch.randn(n, N_CHANNELS, EPOCH_SAMPLES, generator=generator).half()
    present_BC = torch.ones(n, N_CHANNELS, dtype=torch.bool)
    if torch.cuda.is_available():
        x_BCT, present_BC = x_BCT.pin_memory(), present_BC.pin_memory()
    return data.Batch(x_BCT, present_BC, slice(0, n), n, n * N_CHANNELS, n, 0, np.arange(n))


def empty_index(n: int) -> ExampleIndex:
    """An index of ``n`` training examples without files; the batch is made here."""
    zeros = np.zeros(n, np.int64)
    return ExampleIndex(
        files=[],
        file_of=zeros,
        row_of=zeros,
        split=zeros,
        labels=dict.fromkeys(LABELS, zeros),
        patient_ids=zeros,
        study_ids=zeros,
        onsets_s=zeros,
        present=np.ones((n, N_CHANNELS), bool),
        split_hash="",
        patient_disjoint=True,
        simulated=True,
    )


# ------------------------------------------------------------------ the naive way
def naive_step(settings: PretrainSettings, batch: data.Batch, device: torch.device):
    """A function that does one naive step of the same model on the same batch."""
    model = MaskedAutoencoder(**vars(settings.model)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)

    def step() -> None:
        x_BCSP = patchify(batch.x_BCT.to(device).float(), model.patch_size)
        optimizer.zero_grad()
        naive_loss(model, x_BCSP).backward()
        optimizer.step()

    return step


def naive_loss(model: MaskedAutoencoder, x_BCSP: Tensor) -> Tensor:
    encoder, decoder, layout = model.encoder, model.decoder, model.layout
    n_batch, n_patches = len(x_BCSP), model.n_patches
    z = encoder.patch_projection(x_BCSP) + encoder.pos_embedding[:, :, 1:]
    keep = [
        [
            torch.randperm(n_patches, device=x_BCSP.device)[: model.n_keep].sort().values
            for _ in range(N_CHANNELS)
        ]
        for _ in range(n_batch)
    ]
    z = torch.stack(
        [torch.stack([z[b, c, keep[b][c]] for c in range(N_CHANNELS)]) for b in range(n_batch)]
    )
    cls = (encoder.cls_token + encoder.pos_embedding[:, :, :1])[:, :, 0].expand(n_batch, -1, -1)
    tokens = layout.to_tokens(cls, z)
    for block in encoder.transformer:
        tokens = naive_block(block, tokens)
    tokens = encoder.layer_norm(tokens)
    if decoder.bridge is not None:
        tokens = decoder.bridge(tokens)
    cls, z = layout.from_tokens(tokens)
    full = []
    for b in range(n_batch):
        channels = []
        for c in range(N_CHANNELS):
            slots = decoder.mask_token[0, 0].repeat(n_patches, 1)
            slots[keep[b][c]] = z[b, c]
            channels.append(slots)
        full.append(torch.stack(channels))
    z = torch.stack(full) + decoder.pos_embedding[:, :, 1:]
    tokens = layout.to_tokens(cls + decoder.pos_embedding[:, :, 0], z)
    for block in decoder.transformer:
        tokens = naive_block(block, tokens)
    pred = decoder.head(layout.from_tokens(tokens)[1])
    loss = pred.new_zeros(())
    for b in range(n_batch):
        for c in range(N_CHANNELS):
            hidden = torch.ones(n_patches, dtype=torch.bool, device=pred.device)
            hidden[keep[b][c]] = False
            loss = loss + (pred[b, c, hidden] - x_BCSP[b, c, hidden]).square().mean()
    return loss / (n_batch * N_CHANNELS)


def naive_block(block: torch.nn.Module, x: Tensor) -> Tensor:
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(2, (3, attention.num_head, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3)
    x = x + attention.proj((weights @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.norm2(x))


if __name__ == "__main__":
    main()
