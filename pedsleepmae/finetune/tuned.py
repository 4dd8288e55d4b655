"""An encoder with a linear head for every task at once, all of it differentiable.

Axes: **B** examples, **F** features and marks of channels, **K** outputs of all tasks side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedsleepmae.adapters import add_adapters
from pedsleepmae.channels import N_CHANNELS
from pedsleepmae.checkpoints import Checkpoint
from pedsleepmae.model import MaskedAutoencoder, pool
from pedsleepmae.probe.embeddings import untrained_twin
from pedsleepmae.probe.fitted import LinearProbe
from pedsleepmae.probe.readout import channel_of_features
from pedsleepmae.probe.solvers import Problem

POOLING = "time_mean+time_std+class"  # of the last block: what the heads read
ENCODER = "model."  # what the names of the encoder's weights begin with, in a TunedEncoder


class TunedEncoder(nn.Module):
    """Encoder, pooling over time, standardisation as a probe learnt it, and the probes as heads.

    With the ``probes`` that were fitted on the frozen encoder's POOLING it begins where these stand
    (Kumar et al. 2022, arXiv:2202.10054: a random head would first tear the features apart).
    """

    def __init__(self, model: MaskedAutoencoder, probes: Mapping[str, LinearProbe]):
        super().__init__()
        self.model = model
        first = next(iter(probes.values()))
        for name, values in (("mean_F", first.mean_F), ("scale_F", first.scale_F)):
            self.register_buffer(name, torch.from_numpy(np.float32(values)), persistent=False)
        lengths = [model.n_features(part) for part in POOLING.split("+")]
        channel_F = torch.from_numpy(channel_of_features(lengths))
        self.register_buffer("channel_F", channel_F, persistent=False)
        self.classes = {task: probe.classes for task, probe in probes.items()}
        weight_FK = np.concatenate([probe.weight_FK for probe in probes.values()], axis=1)
        self.widths = [probe.weight_FK.shape[1] for probe in probes.values()]
        self.head = nn.Linear(*weight_FK.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(np.float32(weight_FK.T)))
            biases = np.concatenate([np.float32(probe.bias_K) for probe in probes.values()])
            self.head.bias.copy_(torch.from_numpy(biases))

    def forward(self, x_BCT: Tensor, present_BC: Tensor) -> Tensor:
        """Logits of all heads (B, K); an absent channel counts as the train mean, as in a probe."""
        class_BCE, z_BCSE = self.model.encode(x_BCT, present_BC)
        x_BF = torch.cat([pool(class_BCE, z_BCSE, POOLING), present_BC.float()], dim=1)
        x_BF = (x_BF - self.mean_F) / self.scale_F
        known_BF = F.pad(present_BC[:, self.channel_F], (0, N_CHANNELS), value=True)
        with torch.autocast(x_BF.device.type, enabled=False):  # a probe's sums are in float32, too
            return self.head(x_BF.masked_fill(~known_BF, 0))

    def by_task(self, logit_BK: Tensor) -> dict[str, Tensor]:
        """Logits of each task's classes; the first of two classes has the logit 0."""
        parts = logit_BK.float().split(self.widths, dim=1)
        return {
            task: F.pad(part, (1, 0)) if len(classes) == 2 else part
            for (task, classes), part in zip(self.classes.items(), parts, strict=True)
        }

    def trained_weights(self) -> dict[str, Tensor]:
        """What training changes, by name, on the CPU."""
        named = self.named_parameters()
        return {n: p.detach().cpu().clone() for n, p in named if p.requires_grad}

    @torch.no_grad()
    def take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set what :meth:`trained_weights` gave; ValueError for other names or shapes."""
        own = {n: p for n, p in self.named_parameters() if p.requires_grad}
        shapes = {n: tuple(p.shape) for n, p in own.items()}
        if shapes != {n: tuple(w.shape) for n, w in weights.items()}:
            raise ValueError("its weights are not those that are trained here")
        for name, weight in own.items():
            weight.copy_(weights[name])


def start_model(
    checkpoint: Checkpoint, mode: str, seed: int, rank: int, alpha: float
) -> MaskedAutoencoder:
    """The encoder at its start, on the CPU: with adapters (lora), whole (full), anew (scratch)."""
    if mode == "scratch":
        model = untrained_twin(checkpoint, seed)
    else:
        model = checkpoint.build_model().cpu()
    model.drop_decoder("it is left out in fine-tuning")
    if mode == "lora":
        add_adapters(model, rank, alpha, torch.Generator().manual_seed(seed))
    return model


# ------------------------------------------------------------------ what is learnt
@dataclass(frozen=True)
class Targets:
    """Classes of a task for all examples of an index, numbered from 0, -1 where left out."""

    target_N: np.ndarray
    weight_K: Tensor

    @classmethod
    def of(cls, label_N: np.ndarray, classes: np.ndarray, train: np.ndarray) -> "Targets":
        """``classes`` are those that the ``train`` positions show; weighted as probes weigh."""
        numbered_N = np.searchsorted(classes, label_N).clip(max=len(classes) - 1)
        target_N = np.where(np.isin(label_N, classes), numbered_N, -1)
        weights = Problem(target_N[train], len(classes), 1.0).class_weights()
        return cls(target_N, torch.from_numpy(weights).float())

    def weight_of(self, positions: np.ndarray) -> float:
        """What the scored ones of these positions weigh together."""
        target_N = self.target_N[positions]
        return float(self.weight_K.numpy()[target_N[target_N >= 0]].sum(dtype=np.float64))


def weighted_loss(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Targets],
    mine: np.ndarray,
    whole: np.ndarray,
) -> Tensor:
    """Mean over the tasks of the class-weighted cross-entropy, of a share of a batch.

    ``mine``: positions of the share's examples, ``whole`` the batch's. Each task is divided by the
    weight of all scored examples of the whole batch: shares add up to the batch's loss.
    """
    losses = []
    for task, logit_BK in logits.items():
        target_B = torch.from_numpy(targets[task].target_N[mine]).to(logit_BK.device)
        weight_K = targets[task].weight_K.to(logit_BK.device)
        total = F.cross_entropy(logit_BK, target_B, weight_K, ignore_index=-1, reduction="sum")
        losses.append(total / max(targets[task].weight_of(whole), 1e-9))
    return torch.stack(losses).mean()
