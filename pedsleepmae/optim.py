"""What every training loop does: AdamW, its schedule, a clipped step, a state that can be resumed.

Pretraining and fine-tuning stand on it, so that both go on from a stop as if it had not been.
"""

import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pedsleepmae.checkpoints import is_plain_tensor
from pedsleepmae.machine import World

BETA1 = 0.9


class Schedule(Protocol):
    """Settings that :func:`learning_rate` reads."""

    lr: float
    warmup_steps: int
    final_lr_ratio: float


def learning_rate(step: int, optim: Schedule, max_steps: int) -> float:
    """Linear warm-up to ``optim.lr``, then a cosine that reaches lr x final_lr_ratio at the end.

    ``step`` counts from 0; the first step of a warm-up of n steps has lr / n.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    share = min(1.0, (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return optim.lr * (optim.final_lr_ratio + (1 - optim.final_lr_ratio) * cosine)


def derived_seed(*numbers: int) -> int:
    """A seed for torch from whole numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


# ------------------------------------------------------------------ optimiser
def adamw(
    model: nn.Module, *, lr: float, beta2: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW on the weights of a model that are trained; weight decay is on its matrices alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2]
    others = [p for p in trained if p.dim() != 2]
    groups = {"params": matrices}, {"params": others, "weight_decay": 0.0}
    settings = {"betas": (BETA1, beta2), "weight_decay": weight_decay}
    return torch.optim.AdamW(groups, lr, fused=True, **settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """For the next step, in all groups of weights."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_and_step(optimizer: torch.optim.Optimizer, parameters: Iterable, limit: float) -> float:
    """One step with gradients of this norm at most (0: of any); the norm before.

    Where it is not finite no step is made. Gradients are summed over the processes of a run, so
    all of them come to the same decision. Gradients are cleared in either case.
    """
    grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit or math.inf))
    if math.isfinite(grad_norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return grad_norm


def in_parallel(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The model as the processes of a run train it together; itself where there is one alone."""
    if world.size == 1:
        return model
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


# ------------------------------------------------------------------ what a state holds
def check_adam_state(state: Mapping[int, Mapping], parameters: Sequence[Tensor]) -> None:
    """Raise ValueError or KeyError for moments of AdamW that are not of these weights."""
    if set(state) - set(range(len(parameters))):
        raise ValueError("optimizer has a state of other weights")
    for number, moments in state.items():
        shape = tuple(parameters[number].shape)
        for name, wanted in (("step", ()), ("exp_avg", shape), ("exp_avg_sq", shape)):
            check_tensor(moments[name], wanted, f"optimizer {number}.{name}")


def check_tensor(value: Any, shape: tuple[int, ...], name: str) -> None:
    """Raise ValueError unless a value is a tensor of finite numbers of this shape."""
    if not is_plain_tensor(value) or tuple(value.shape) != shape:
        raise ValueError(f"{name} is no tensor of the shape {shape}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds numbers that are not finite")


# ------------------------------------------------------------------ signals
@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and Ctrl-C only raise a flag, which the yielded function tells.

    A second Ctrl-C acts as usual; a second SIGTERM does not, since SLURM and torchrun may both
    send one while the checkpoint is being written.
    """
    received = []

    def remember(number, _frame):
        received.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, remember)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
