"""LoRA: a frozen encoder with small trained matrices beside its linear layers, and their file.

Hu et al. 2021 (arXiv:2106.09685): a layer W becomes W + alpha / rank x up @ down, of which W stays
as it is. Adapters stand on the layers of attention (qkv, proj) and MLP (fc1, fc2) of every block.
The file is a checkpoint's: a dict of tensors and plain facts that ``torch.load(...,
weights_only=True)`` reads. It names the encoder that it belongs to by the hash of its weights.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pedsleepmae import checkpoints
from pedsleepmae.checkpoints import Checkpoint, CheckpointError, hash_encoder
from pedsleepmae.errors import printable
from pedsleepmae.model import MaskedAutoencoder

FORMAT = "pedsleepmae-adapter"
VERSION = 1
PLACES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # the linear layers of a block
WANTED = "give an adapter.pt that script 3 wrote with mode lora"
MOST_RANK = 4096
MOST_ALPHA = 1e6


class LoraLinear(nn.Module):
    """A frozen linear layer plus ``alpha / rank`` times up (down (x)); up begins at zero.

    So an adapter that has not been trained, and one with alpha 0, change no bit of what comes out.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        down = torch.randn(rank, linear.in_features, generator=generator)
        down = down * linear.in_features**-0.5  # so that down (x) is as large as x
        self.down = nn.Parameter(down.to(linear.weight.device))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        added = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.linear(x) + self.scale * added


# ------------------------------------------------------------------ on a model
def linear_layers(model: MaskedAutoencoder) -> Iterator[tuple[str, nn.Module, str]]:
    """(name in the state dict, module that holds it, its name there) of what LoRA stands on."""
    for i, block in enumerate(model.encoder.transformer):
        for place in PLACES:
            part, name = place.split(".")
            yield f"encoder.transformer.{i}.{place}", getattr(block, part), name


def add_adapters(
    model: MaskedAutoencoder, rank: int, alpha: float, generator: torch.Generator | None = None
) -> MaskedAutoencoder:
    """Freeze a model and put a fresh adapter on each linear layer of its blocks, in place."""
    model.requires_grad_(False)
    for _, parent, name in list(linear_layers(model)):
        setattr(parent, name, LoraLinear(getattr(parent, name), rank, alpha, generator))
    return model


def adapter_weights(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """The trained matrices by the name of their layer, `….up` and `….down`, on the CPU."""
    weights = {}
    for place, parent, name in linear_layers(model):
        layer = getattr(parent, name)
        for which in ("down", "up"):
            weights[f"{place}.{which}"] = getattr(layer, which).detach().cpu().clone()
    return weights


# ------------------------------------------------------------------ as a file
@dataclass(frozen=True)
class Adapter:
    """What stands in an adapter's file; ``encoder_sha256``: hash_encoder of what it belongs to."""

    encoder_sha256: str
    rank: int
    alpha: float
    state_dict: dict[str, Tensor]
    path: Path | None = None

    @property
    def sha256(self) -> str:
        """Of its numbers, hexadecimal: what probes fitted with it name it by."""
        digest = hashlib.sha256(f"{self.encoder_sha256} {self.rank} {self.alpha!r}".encode())
        for name, weight in sorted(self.state_dict.items()):
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Write an adapter, whole or not at all."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "encoder_sha256": adapter.encoder_sha256,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "state_dict": adapter.state_dict,
    }
    checkpoints.save_checkpoint(path, content)


def load_adapter(path: Path | str) -> Adapter:
    """An adapter from its file, on the CPU; CheckpointError names a file that is none."""
    path = Path(path)
    _, content = checkpoints.read_content(path, "cpu")
    kind, version = content.get("format"), content.get("version")
    if kind != FORMAT or version != VERSION:
        theirs = printable(f"{kind!r} version {version!r}")[:100]
        raise CheckpointError(
            f"{path}: {theirs} is no adapter of version {VERSION}, which this code reads; {WANTED}"
        )
    facts = {name: content[name] for name in Adapter.__annotations__ if name in content}
    try:
        checkpoints.check_fields(facts, Adapter)
        adapter = Adapter(**facts | {"path": path})
        if not 1 <= adapter.rank <= MOST_RANK or not abs(adapter.alpha) <= MOST_ALPHA:
            raise ValueError(f"rank {adapter.rank} or alpha {adapter.alpha} is out of all bounds")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {printable(error)[:200]}; {WANTED}") from error
    for name, value in adapter.state_dict.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite; {WANTED}")
    return adapter


# ------------------------------------------------------------------ taken in
def merge(checkpoint: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The checkpoint with the adapter's product added to its encoder's weights.

    Its ``sha256`` is that of both, so that nothing kept of the one is taken for the other's.
    CheckpointError where the adapter belongs to another encoder.
    """
    where = f"{adapter.path or 'the adapter'}"
    ours = hash_encoder(checkpoint.build_model())
    if adapter.encoder_sha256 != ours:
        raise CheckpointError(
            f"{where}: was trained on another encoder ({adapter.encoder_sha256[:12]}) than that of "
            f"{checkpoint.path} ({ours[:12]}); give the checkpoint that script 3 adapted"
        )
    weights = dict(checkpoint.state_dict)
    for name in sorted({name.rpartition(".")[0] for name in adapter.state_dict}):
        weight = weights.get(f"{name}.weight")
        up, down = (adapter.state_dict.get(f"{name}.{which}") for which in ("up", "down"))
        if (
            weight is None
            or up is None
            or down is None
            or not (
                name.endswith(PLACES)
                and tuple(up.shape) == (weight.shape[0], adapter.rank)
                and tuple(down.shape) == (adapter.rank, weight.shape[1])
            )
        ):
            raise CheckpointError(
                f"{where}: {name} does not fit a layer of {checkpoint.path}; {WANTED}"
            )
        # In float64 and rounded once: the same numbers on every machine, but for a last bit.
        product = adapter.alpha / adapter.rank * (up.double() @ down.double())
        weights[f"{name}.weight"] = (weight.double().cpu() + product).float().to(weight.device)
    sha256 = hashlib.sha256(f"{checkpoint.sha256} {adapter.sha256}".encode()).hexdigest()
    return replace(checkpoint, state_dict=weights, sha256=sha256)
