"""The masked autoencoder of 16-channel polysomnography: patchify, mask, encode, decode, loss.

Axes: B batch, C 16 channels, T 3,840 samples, P samples a patch, S patch slots of a channel,
K kept slots, E width of one channel's patch embedding, D = 16 E width of a token, N = 1 + K tokens.

Names in the state dict are those of the original PedSleepMAE, so that its checkpoints load.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pedsleepmae.bands import BandEnvelopes, BandHeads
from pedsleepmae.channels import CHANNEL_GROUPS, EPOCH_S, EPOCH_SAMPLES, N_CHANNELS, RATE_HZ
from pedsleepmae.errors import ProbeError, SettingsError, bounded, check_bounds
from pedsleepmae.views import ViewHead

PATCHES_PER_TOKEN = N_CHANNELS  # a token is 16 patch embeddings wide in every layout


@dataclass
class ModelSettings:
    """The masked autoencoder; the defaults are m15p8's, 76,547,272 parameters."""

    patch_size: int = bounded(8, 1)
    """Samples in a patch; must divide 3,840."""
    emb_dim: int = bounded(64, 1)
    """Width of one channel's patch embedding; a token is 16 times as wide."""
    num_layer: int = bounded(3, 1)
    """Transformer blocks in the encoder."""
    num_head: int = bounded(4, 1)
    """Attention heads; must divide 16 x emb_dim."""
    decoder_emb_dim: int | None = bounded(None, 1)
    """Width of the decoder's patch embedding; none: as the encoder."""
    decoder_num_layer: int | None = bounded(None, 1)
    """Transformer blocks in the decoder; none: as the encoder."""
    mask_ratio: float = bounded(0.5, above=0, below=1)
    """Share of each channel's patches hidden from the encoder, 0 to 1."""
    mask_unit: Literal["patch", "token"] = "patch"
    """What is hidden or shown as a whole: single patches; or 16 neighbouring ones that make one
    token (2 s with patches of 16 samples), so that the encoder's tokens in training are those that
    it gets where nothing is hidden. token needs token_layout channel."""
    mask_span: int = bounded(1, 1)
    """Units of mask_unit hidden together, in runs of this length (16 patches of 8 samples are a
    second)."""
    mask_channels: float = bounded(0.0, 0, 1)
    """Share of training examples, 0 to 1, in which a random group of channels, or one channel of
    it, is hidden whole as if absent, and asked for in the loss; script 6 imputes only what a model
    has been asked for so. Validation hides no channels so."""
    show_whole: float = bounded(0.0, 0, 1)
    """Share of training steps, 0 to 1, in which every example loses a channel or a group so and the
    others are shown whole, no patch of them hidden: tokens as script 6 gives them to impute. In
    such a step, and in as many batches of validation, only what was hidden counts in the loss."""
    token_layout: Literal["reference", "moment", "channel"] = "channel"
    """What a token is made of. reference: the original's view of memory; moment: the k-th kept
    patch of all 16 channels; channel: 16 kept patches of one channel."""
    loss_on: Literal["masked", "all"] = "masked"
    """Patches that count in the loss, of present channels: the masked ones, or all."""
    target: Literal["wave", "bands", "both"] = "wave"
    """What is to be foretold of hidden patches: their samples; the log envelopes of 12 bands in
    each 16 neighbouring patches, and by the class tokens these envelopes' mean, largest and least
    in the epoch (1: no better than the mean of the training data); or both. With bands alone the
    samples are still read off the decoder, and counted, but teach no more than that reading."""
    band_weight: float = bounded(1.0, above=0)
    """What the envelopes of hidden patches count in the loss beside the samples, which count 1."""
    class_weight: float = bounded(1.0, 0)
    """What the class tokens' envelopes count in the loss; 0: class tokens have no target."""
    view_weight: float = bounded(0.0, 0)
    """What the agreement of two views counts in the loss: in a second pass through the encoder each
    channel is left out with a chance of one half, and the class tokens of the two passes are to
    agree, yet to differ over the epochs that a process holds at a time. 0: a single pass."""

    @property
    def n_patches(self) -> int:
        """Patches of a channel."""
        return EPOCH_SAMPLES // self.patch_size

    @property
    def mask_unit_patches(self) -> int:
        """Patches that are hidden or shown as a whole."""
        return PATCHES_PER_TOKEN if self.mask_unit == "token" else 1

    @property
    def part_weights(self) -> dict[str, float]:
        """The parts of the loss and what each counts in it; a part without weight is left out."""
        weights = {"wave": 1.0}
        if self.target != "wave":
            weights |= {"bands": self.band_weight, "class": self.class_weight}
        weights["views"] = self.view_weight
        return {part: weight for part, weight in weights.items() if weight}

    def check(self) -> None:
        """Raise SettingsError when these settings do not fit each other or an example."""
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise SettingsError(f"unknown model.{name} {value!r}; give {' or '.join(known)}")
        if EPOCH_SAMPLES % self.patch_size:
            raise SettingsError(
                f"model.patch_size is {self.patch_size}, which does not divide the "
                f"{EPOCH_SAMPLES:,} samples of an example; give a divisor such as 4, 8, 16 or 20"
            )
        for name in ("emb_dim", "decoder_emb_dim"):
            width = PATCHES_PER_TOKEN * (getattr(self, name) or 0)
            if width % self.num_head:
                raise SettingsError(
                    f"model.num_head is {self.num_head}, which does not divide the token width "
                    f"{PATCHES_PER_TOKEN} x {name} = {width}; give a divisor of it"
                )
        if self.mask_span > (n_units := self.n_patches // self.mask_unit_patches):
            raise SettingsError(
                f"model.mask_span is {self.mask_span}, but a channel has {n_units} "
                f"{'patches' if self.mask_unit == 'patch' else 'tokens'}; give fewer"
            )
        if self.mask_unit == "token" and self.token_layout != "channel":
            raise SettingsError(
                f"model.mask_unit is token, but in the token_layout {self.token_layout} no token "
                "is a stretch of one channel; give token_layout channel or mask_unit patch"
            )
        if self.target != "wave" and self.n_patches % PATCHES_PER_TOKEN:
            raise SettingsError(
                f"model.target {self.target} takes {PATCHES_PER_TOKEN} patches at a time, but "
                f"patch_size {self.patch_size} makes {self.n_patches} a channel; give 4, 8, 10, "
                "15, 16 or 20, or target wave"
            )
        unit = TOKEN_LAYOUTS[self.token_layout].unit
        if self.n_patches % unit or self.n_patches < 2 * unit:
            raise SettingsError(
                f"model.patch_size {self.patch_size} makes {self.n_patches} patches a channel, and "
                f"model.token_layout {self.token_layout} takes them {unit} at a time, twice or "
                "more; give 4, 8, 10, 15, 16 or 20, or another layout"
            )


MLP_RATIO = 4
LAYER_NORM_EPS = 1e-5
INIT_SD = 0.02  # of positions and learned tokens, as in ViT and MAE
HEADS = ("band_heads.", "view_head.")  # how the names of weights begin that only training needs
HEAD_INIT_SD = 0.002  # a model that starts by predicting about zero, small channels included


# ------------------------------------------------------------------ patches, masks, loss
def patchify(x_BCT: Tensor, patch_size: int) -> Tensor:
    """Cut each channel into consecutive patches: (B, C, T) -> (B, C, S, P)."""
    return x_BCT.unflatten(2, (-1, patch_size))


def random_mask(
    n_examples: int,
    n_patches: int,
    n_keep: int,
    *,
    generator: torch.Generator,
    n_channels: int = N_CHANNELS,
    span: int = 1,
    rows: slice = slice(None),
) -> Tensor:
    """Draw which patches stay visible: ``keep_BCK``, int64, sorted in time.

    Each channel of each example keeps exactly ``n_keep`` of ``n_patches``, independently, every
    patch with the same chance. With ``span`` > 1 patches are hidden in runs of that length, on a
    grid with a random phase that wraps around the end of the epoch; one run a channel is shorter
    so that the count comes out. ``rows`` returns these rows only, equal to those of the whole
    draw, so that a process can hold its share of a global batch. Drawn on the generator's device.
    """
    device = generator.device
    n_runs = -(-n_patches // span)
    noise_BCR = torch.rand(n_examples, n_channels, n_runs, generator=generator, device=device)
    phase_BC1 = torch.randint(
        n_patches, (n_examples, n_channels, 1), generator=generator, device=device
    )
    noise_BCS = noise_BCR[rows].repeat_interleave(span, dim=2)[:, :, :n_patches]
    order_BCS = noise_BCS.argsort(dim=2, stable=True)  # run by run, in time order within a run
    keep_BCK = (order_BCS[:, :, n_patches - n_keep :] + phase_BC1[rows]) % n_patches
    return keep_BCK.sort(dim=2).values


def whole_units(keep_BCU: Tensor, unit: int) -> Tensor:
    """The patches ``keep_BCK`` of kept units, each of ``unit`` neighbours from a multiple on."""
    within_P = torch.arange(unit, device=keep_BCU.device)
    return (keep_BCU[..., None] * unit + within_P).flatten(2)


def random_channels(
    n_examples: int, share: float, *, generator: torch.Generator, rows: slice = slice(None)
) -> Tensor:
    """Draw which channels are hidden whole: ``hidden_BC``, True where hidden.

    About ``share`` of the examples lose something: half of those one of CHANNEL_GROUPS, the others
    one channel, each with the same chance. ``rows`` as in :func:`random_mask`.
    """
    device = generator.device
    member_GC = torch.zeros(len(CHANNEL_GROUPS), N_CHANNELS, dtype=torch.bool, device=device)
    for group, channels in enumerate(CHANNEL_GROUPS.values()):
        member_GC[group, list(channels)] = True
    chance_B2 = torch.rand(n_examples, 2, generator=generator, device=device)
    group_B = torch.randint(len(member_GC), (n_examples,), generator=generator, device=device)
    channel_B = torch.randint(N_CHANNELS, (n_examples,), generator=generator, device=device)
    single_BC = F.one_hot(channel_B, N_CHANNELS).bool()
    hidden_BC = torch.where(chance_B2[:, 1:] < 0.5, member_GC[group_B], single_BC)
    return (hidden_BC & (chance_B2[:, :1] < share))[rows]


def hidden_patches(keep_BCK: Tensor, n_patches: int) -> Tensor:
    """``hidden_BCS``, True where a patch is not among those kept."""
    hidden_BCS = keep_BCK.new_ones((*keep_BCK.shape[:2], n_patches), dtype=torch.bool)
    return hidden_BCS.scatter_(2, keep_BCK, False)


def masked_mse(pred_BCSP: Tensor, x_BCSP: Tensor, hidden_BCS: Tensor) -> Tensor:
    """Mean squared error over the hidden patches of each channel: ``error_BC``, float32."""
    error_BCS = (pred_BCSP.float() - x_BCSP).square().mean(dim=3)
    return (error_BCS * hidden_BCS).sum(dim=2) / hidden_BCS.sum(dim=2).clamp(min=1)


def mean_over_present(error_BC: Tensor, present_BC: Tensor, n_present: int) -> Tensor:
    """The loss: sum of ``error_BC`` over present channels, divided by ``n_present``.

    That is their number in the whole batch, of which these B examples may be a piece.
    """
    return (error_BC * present_BC).sum() / max(1, n_present)


# ------------------------------------------------------------------ tokens
class TokenLayout:
    """What the tokens are made of; token 0 holds the 16 class tokens, but in the original's.

    ``to_tokens(class_BCE, z_BCKE)`` makes ``tokens_BND`` of class tokens and patch embeddings,
    ``from_tokens(tokens_BND)`` gives the two back, as views.
    """

    unit = 1  # patches of a channel that are kept or hidden together
    n_masks = N_CHANNELS  # masks drawn for an example; 1: the same for all channels
    has_absent_token = True  # an absent channel is a learned token, not a signal of zeros

    def n_keep(self, n_patches: int, mask_ratio: float) -> int:
        """Patches of a channel that stay visible: whole units, one at least, and one hidden."""
        n_keep = self.unit * round(n_patches * (1 - mask_ratio) / self.unit)
        return min(max(n_keep, self.unit), n_patches - self.unit)


class ReferenceLayout(TokenLayout):
    """The original's: the (B, 16, 1+K, E) tensor viewed as (B, 1+K, 16 E) with no axis moved.

    A token is 16 consecutive entries, about a second of one channel, drifting by one a channel.
    """

    has_absent_token = False

    def to_tokens(self, class_BCE: Tensor, z_BCKE: Tensor) -> Tensor:
        z_BCNE = torch.cat([class_BCE[:, :, None], z_BCKE], dim=2)
        return z_BCNE.view(len(z_BCNE), z_BCNE.shape[2], -1)

    def from_tokens(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        z_BCNE = tokens_BND.reshape(len(tokens_BND), N_CHANNELS, tokens_BND.shape[1], -1)
        return z_BCNE[:, :, 0], z_BCNE[:, :, 1:]


class MomentLayout(TokenLayout):
    """A token is the k-th kept patch of all 16 channels; one mask for all channels."""

    n_masks = 1

    def to_tokens(self, class_BCE: Tensor, z_BCKE: Tensor) -> Tensor:
        z_BCNE = torch.cat([class_BCE[:, :, None], z_BCKE], dim=2)
        return z_BCNE.transpose(1, 2).flatten(2)

    def from_tokens(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        z_BCNE = tokens_BND.unflatten(2, (N_CHANNELS, -1)).transpose(1, 2)
        return z_BCNE[:, :, 0], z_BCNE[:, :, 1:]


class ChannelLayout(TokenLayout):
    """A token is 16 consecutive kept patches of exactly one channel."""

    unit = PATCHES_PER_TOKEN

    def to_tokens(self, class_BCE: Tensor, z_BCKE: Tensor) -> Tensor:
        class_B1D = class_BCE.flatten(1)[:, None]
        return torch.cat([class_B1D, z_BCKE.reshape(len(z_BCKE), -1, class_B1D.shape[2])], dim=1)

    def from_tokens(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        class_BCE = tokens_BND[:, 0].unflatten(1, (N_CHANNELS, -1))
        patches = tokens_BND[:, 1:].unflatten(1, (N_CHANNELS, -1))
        return class_BCE, patches.unflatten(3, (PATCHES_PER_TOKEN, -1)).flatten(2, 3)


TOKEN_LAYOUTS = {
    "reference": ReferenceLayout(),
    "moment": MomentLayout(),
    "channel": ChannelLayout(),
}
CHOICES = {  # values of the settings that are words
    "token_layout": tuple(TOKEN_LAYOUTS),
    "loss_on": ("masked", "all"),
    "mask_unit": ("patch", "token"),
    "target": ("wave", "bands", "both"),
}


# ------------------------------------------------------------------ transformer
class Attention(nn.Module):
    """Multi-head self-attention over the tokens, no bias on queries, keys and values."""

    def __init__(self, width: int, num_head: int):
        super().__init__()
        self.num_head = num_head
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.num_head, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention; all (B, heads, N, head width).

    torch's fused CPU kernel computes bfloat16 at a sixth of the matmul rate, so there the same
    formula is written out: 3.7 times as fast, forward and backward (481 tokens, torch 2.13).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = q.contiguous() * q.shape[3] ** -0.5, k.contiguous(), v.contiguous()
    return (q @ k.transpose(2, 3)).softmax(dim=3) @ v


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_head: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, num_head)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        fc1, fc2 = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=nn.GELU(), fc2=fc2))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class Encoder(nn.Module):
    """Visible patches -> tokens of width D."""

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.layout = TOKEN_LAYOUTS[settings.token_layout]
        emb_dim = settings.emb_dim
        width, n_slots = PATCHES_PER_TOKEN * emb_dim, 1 + settings.n_patches
        self.cls_token = nn.Parameter(torch.empty(1, 1, 1, emb_dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, N_CHANNELS, n_slots, emb_dim))
        projection = nn.Linear(settings.patch_size, emb_dim)  # of one channel's patch, P -> E
        self.patch_projection = nn.Sequential(OrderedDict(projection=projection))
        self.transformer = nn.ModuleList(
            Block(width, settings.num_head) for _ in range(settings.num_layer)
        )
        self.layer_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.absent_token = None
        if self.layout.has_absent_token:
            self.absent_token = nn.Parameter(torch.empty(1, 1, 1, emb_dim))

    def forward(self, x_BCSP: Tensor, present_BC: Tensor, keep_BCK: Tensor | None) -> Tensor:
        """Tokens after all blocks and the norm."""
        n_layers = len(self.transformer)
        return self.after_blocks(x_BCSP, present_BC, keep_BCK, [n_layers])[n_layers]

    def after_blocks(
        self,
        x_BCSP: Tensor,
        present_BC: Tensor,
        keep_BCK: Tensor | None,
        layers: Collection[int],
    ) -> dict[int, Tensor]:
        """Tokens after each of these blocks (1 the first), all from one pass up to the last of
        them. Those of the encoder's last block are normed."""
        tokens_BND, found = self._first_tokens(x_BCSP, present_BC, keep_BCK), {}
        for number, block in enumerate(self.transformer[: max(layers)], start=1):
            tokens_BND = block(tokens_BND)
            if number in layers:
                is_last = number == len(self.transformer)
                found[number] = self.layer_norm(tokens_BND) if is_last else tokens_BND
        return found

    def _first_tokens(self, x_BCSP: Tensor, present_BC: Tensor, keep_BCK: Tensor | None) -> Tensor:
        """What the first block reads."""
        positions = self.pos_embedding[:, :, 1:]
        if keep_BCK is not None:
            x_BCSP = x_BCSP.gather(2, keep_BCK[..., None].expand(-1, -1, -1, x_BCSP.shape[3]))
            slot_C1 = torch.arange(N_CHANNELS, device=keep_BCK.device)[:, None]
            slot_BCK = keep_BCK + 1 + slot_C1 * self.pos_embedding.shape[2]
            positions = F.embedding(slot_BCK, self.pos_embedding.flatten(0, 2))
        z_BCKE = self.patch_projection(x_BCSP)
        if self.absent_token is not None:
            z_BCKE = torch.where(present_BC[:, :, None, None], z_BCKE, self.absent_token)
        class_CE = (self.cls_token + self.pos_embedding[:, :, :1])[0, :, 0]
        class_BCE = class_CE.expand(len(z_BCKE), -1, -1)
        return self.layout.to_tokens(class_BCE, z_BCKE + positions)


class Decoder(nn.Module):
    """Tokens of the visible patches -> features of all patches, which ``head`` turns to samples."""

    def __init__(self, settings: ModelSettings):
        super().__init__()
        self.layout = TOKEN_LAYOUTS[settings.token_layout]
        emb_dim = settings.decoder_emb_dim or settings.emb_dim
        n_layers = settings.decoder_num_layer or settings.num_layer
        width, n_slots = PATCHES_PER_TOKEN * emb_dim, 1 + settings.n_patches
        self.mask_token = nn.Parameter(torch.empty(1, 1, 1, emb_dim))
        self.pos_embedding = nn.Parameter(torch.empty(1, N_CHANNELS, n_slots, emb_dim))
        self.transformer = nn.ModuleList(Block(width, settings.num_head) for _ in range(n_layers))
        self.head = nn.Linear(emb_dim, settings.patch_size)
        self.bridge = None  # acts on whole tokens, so that it mixes the patches of a token
        if emb_dim != settings.emb_dim:
            self.bridge = nn.Linear(PATCHES_PER_TOKEN * settings.emb_dim, width)

    def forward(self, tokens_BND: Tensor, keep_BCK: Tensor | None) -> Tensor:
        if self.bridge is not None:
            tokens_BND = self.bridge(tokens_BND)
        class_BCE, z_BCSE = self.layout.from_tokens(tokens_BND)
        if keep_BCK is not None:
            z_BCSE = self._fill_hidden(z_BCSE, keep_BCK)
        class_BCE = class_BCE + self.pos_embedding[:, :, 0]
        tokens_BND = self.layout.to_tokens(class_BCE, z_BCSE + self.pos_embedding[:, :, 1:])
        for block in self.transformer:
            tokens_BND = block(tokens_BND)
        _, z_BCSE = self.layout.from_tokens(tokens_BND)
        return z_BCSE

    def _fill_hidden(self, z_BCKE: Tensor, keep_BCK: Tensor) -> Tensor:
        """Kept embeddings at their slots, the mask token at all others: (B, C, S, E)."""
        n_batch, _, _, emb_dim = z_BCKE.shape
        n_patches = self.pos_embedding.shape[2] - 1
        mask_token = self.mask_token.to(z_BCKE.dtype)
        z_BCSE = mask_token.expand(n_batch, N_CHANNELS, n_patches, emb_dim)
        return z_BCSE.scatter(2, keep_BCK[..., None].expand(-1, -1, -1, emb_dim), z_BCKE)


# ------------------------------------------------------------------ the model
class MaskedAutoencoder(nn.Module):
    """Masked autoencoder; the arguments are those of :class:`ModelSettings`.

    SettingsError when they do not fit. Weights come from :meth:`reset_parameters`.
    """

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = ModelSettings(**settings)
        check_bounds(self.settings, "model.")
        self.settings.check()
        self.layout = TOKEN_LAYOUTS[self.settings.token_layout]
        self.patch_size, self.n_patches = self.settings.patch_size, self.settings.n_patches
        self.n_keep = self.layout.n_keep(self.n_patches, self.settings.mask_ratio)
        self.encoder, self.decoder = Encoder(self.settings), Decoder(self.settings)
        self.band_heads = None  # of training alone: what ships embeds and reconstructs without
        if "bands" in (parts := self.settings.part_weights):
            n_stretches = self.n_patches // PATCHES_PER_TOKEN
            envelopes = BandEnvelopes(n_stretches, EPOCH_SAMPLES, RATE_HZ)
            width = PATCHES_PER_TOKEN * self.decoder.mask_token.shape[3]
            class_width = self.settings.emb_dim if "class" in parts else None
            self.band_heads = BandHeads(envelopes, N_CHANNELS, width, class_width)
        self.view_head = ViewHead(self.settings.emb_dim) if "views" in parts else None
        self.reset_parameters()

    def drop_decoder(self, why: str) -> None:
        """Keep the encoder alone; ``why`` is told to whoever asks for a reconstruction."""
        self.decoder, self.no_decoder = None, why

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew (``generator`` None: from torch's global one).

        Linear layers Xavier-uniform with zero bias (the heads normal and small), tokens and
        positions normal with sd 0.02. The heads of training alone come last, so that encoder and
        decoder begin alike whatever is asked for.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("_token", "pos_embedding")):
                parameter.normal_(0, INIT_SD, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name == "decoder.head.weight" or name.startswith("band_heads."):
                parameter.normal_(0, HEAD_INIT_SD, generator=generator)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                parameter.fill_(1)  # weights of LayerNorm

    def draw_mask(
        self, n_examples: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> Tensor:
        """``keep_BCK`` for a batch, by this model's ratio, span and layout (see random_mask)."""
        unit = self.settings.mask_unit_patches
        sizes = n_examples, self.n_patches // unit, self.n_keep // unit
        masks = {"n_channels": self.layout.n_masks, "span": self.settings.mask_span}
        keep_BCK = random_mask(*sizes, generator=generator, rows=rows, **masks)
        if unit > 1:
            keep_BCK = whole_units(keep_BCK, unit)
        return keep_BCK.expand(-1, N_CHANNELS, -1)

    def draw_hidden_channels(
        self, n_examples: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> Tensor | None:
        """``hidden_BC`` for a training batch (see random_channels); None where there are none."""
        share = self.settings.mask_channels
        return random_channels(n_examples, share, generator=generator, rows=rows) if share else None

    def draw_whole(
        self, n_examples: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor] | None:
        """``keep_BCK`` and ``hidden_BC`` of a step that shows channels whole; None: of another."""
        share = self.settings.show_whole
        if not share or torch.rand((), generator=generator, device=generator.device) >= share:
            return None
        hidden_BC = random_channels(n_examples, 1.0, generator=generator, rows=rows)
        every_S = torch.arange(self.n_patches, device=generator.device)
        return every_S.expand(len(hidden_BC), N_CHANNELS, -1), hidden_BC

    def draw_dropped_channels(
        self, n_examples: int, generator: torch.Generator, rows: slice = slice(None)
    ) -> Tensor | None:
        """``dropped_BC`` of the second view, each channel by itself; None where there is none."""
        if self.view_head is None:
            return None
        shape = n_examples, N_CHANNELS
        return (torch.rand(shape, generator=generator, device=generator.device) < 0.5)[rows]

    def forward(
        self,
        x_BCT: Tensor,
        present_BC: Tensor,
        keep_BCK: Tensor,
        hidden_BC: Tensor | None = None,
        dropped_BC: Tensor | None = None,
    ) -> Tensor:
        """``error_LBC``: mean squared errors of each channel, over its hidden or all patches.

        L parts of the loss, in the order of ``settings.part_weights``; those of class tokens and
        views are over the epoch. Channels of ``hidden_BC`` reach the encoder as absent ones; all
        their patches count. Those of ``dropped_BC`` do so in the second view.
        """
        x_BCSP = self._patches(x_BCT, present_BC)
        hidden_BCS = hidden_patches(keep_BCK, self.n_patches)
        if hidden_BC is not None:
            hidden_BCS = hidden_BCS | hidden_BC[:, :, None]
        tokens_BND = self._encode_without(hidden_BC, x_BCSP, present_BC, keep_BCK)
        z_BCSE = self.decoder(tokens_BND, keep_BCK)
        if self.settings.loss_on == "all":
            hidden_BCS = torch.ones_like(hidden_BCS)
        teaches = self.settings.target != "bands"
        pred_BCSP = self.decoder.head(z_BCSE if teaches else z_BCSE.detach())
        errors = [masked_mse(pred_BCSP, x_BCSP, hidden_BCS)]
        class_BCE, _ = self.layout.from_tokens(tokens_BND)
        if self.band_heads is not None:
            errors += self._band_errors(x_BCSP.flatten(2), z_BCSE, class_BCE, hidden_BCS)
        if self.view_head is not None:
            tokens_BND = self._encode_without(dropped_BC, x_BCSP, present_BC, keep_BCK)
            other_BCE, _ = self.layout.from_tokens(tokens_BND)
            errors.append(self.view_head(class_BCE, other_BCE, present_BC))
        return torch.stack(errors)

    def _encode_without(
        self, hidden_BC: Tensor | None, x_BCSP: Tensor, present_BC: Tensor, keep_BCK: Tensor
    ) -> Tensor:
        """The encoder's tokens from the kept patches of all channels but the hidden ones."""
        if hidden_BC is not None:
            present_BC = present_BC & ~hidden_BC
            x_BCSP = x_BCSP.masked_fill(hidden_BC[:, :, None, None], 0)
        return self.encoder(x_BCSP, present_BC, keep_BCK)

    def _band_errors(
        self, x_BCT: Tensor, z_BCSE: Tensor, class_BCE: Tensor, hidden_BCS: Tensor
    ) -> list[Tensor]:
        """``error_BC`` of stretches, each by its share of hidden patches, and of class tokens."""
        heads = self.band_heads
        stretch_BCJF, epoch_BCGF = heads.targets(x_BCT)
        n_hidden_BCJ = hidden_BCS.unflatten(2, (-1, PATCHES_PER_TOKEN)).sum(dim=3)
        errors = [masked_mse(heads.foretell(z_BCSE), stretch_BCJF, n_hidden_BCJ)]
        if heads.of_epoch is not None:
            error_BCGF = (heads.summarise(class_BCE).float() - epoch_BCGF).square()
            errors.append(error_BCGF.mean(dim=(2, 3)))
        return errors

    def encode(
        self, x_BCT: Tensor, present: Tensor | None = None, keep_BCK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encoder features: ``class_BCE`` and ``z_BCKE`` (K = S when nothing is hidden)."""
        n_layers = len(self.encoder.transformer)
        return self.encode_layers(x_BCT, [n_layers], present, keep_BCK)[n_layers]

    def encode_layers(
        self,
        x_BCT: Tensor,
        layers: Collection[int],
        present: Tensor | None = None,
        keep_BCK: Tensor | None = None,
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """As :meth:`encode`, after each of these blocks (1 the first; the last block's are normed).

        ValueError for a block that is not there.
        """
        x_BCT, present_BC = self._checked(x_BCT, present)
        n_layers = len(self.encoder.transformer)
        if odd := [layer for layer in layers if not 1 <= layer <= n_layers]:
            raise ValueError(f"layer is {odd[0]}; this encoder has the blocks 1 to {n_layers}")
        x_BCSP = self._patches(x_BCT, present_BC)
        tokens = self.encoder.after_blocks(x_BCSP, present_BC, keep_BCK, layers)
        return {k: self.layout.from_tokens(tokens_BND.float()) for k, tokens_BND in tokens.items()}

    @torch.no_grad()
    def decode(self, class_BCE: Tensor, z_BCKE: Tensor, keep_BCK: Tensor | None = None) -> Tensor:
        """All samples (B, 16, 3840) float32 from features that :meth:`encode` gave with the same
        ``keep_BCK``, or from a mean of such features."""
        tokens_BND = self.layout.to_tokens(class_BCE, z_BCKE)
        return self.decoder.head(self.decoder(tokens_BND, keep_BCK)).float().flatten(2)

    def embed(
        self,
        x_BCT: Tensor,
        pooling: str = "mean",
        present: Tensor | None = None,
        layer: int | None = None,
    ) -> Tensor:
        """Features of examples (B, 16, 3840) with nothing hidden: (B, F) float32.

        ``pooling``: mean or max of the patch features over the E-wide axis (F = 16 S, one value
        per channel and patch, as in the paper); over time (F = 16 E each) time_mean, time_abs (of
        absolute values), time_std, time_max and time_min of 2-s means, time_calm and time_burst,
        the least and the largest standard deviation within 5 s; class, the class tokens (F = 16 E);
        or several joined by +. ``present`` (B, 16): False where a channel was
        not recorded; None: all were. ``layer``: the block that is read, 1 the first; None: the
        last.
        """
        name = pooling if layer is None else f"{pooling}@{layer}"
        return self.embed_many(x_BCT, [name], present)[name]

    @torch.no_grad()
    def embed_many(
        self, x_BCT: Tensor, poolings: Sequence[str], present: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Features by pooling (see :meth:`embed`; `@k` at its end: of block k), all from one pass
        through the encoder."""
        n_layers, split = len(self.encoder.transformer), {}
        for name in poolings:
            pooling, layer = split_layer(name)
            split[name] = pooling, n_layers if layer is None else layer
        encoded = self.encode_layers(x_BCT, {layer for _, layer in split.values()}, present)
        return {name: pool(*encoded[layer], pooling) for name, (pooling, layer) in split.items()}

    def n_features(self, pooling: str) -> int:
        """Length F of the features of a pooling, of whichever block; ValueError for an unknown."""
        shape = 1, N_CHANNELS, self.n_patches, self.settings.emb_dim
        z_BCSE = torch.empty(shape, device="meta")
        return pool(z_BCSE[:, :, 0], z_BCSE, split_layer(pooling)[0]).shape[1]

    @torch.no_grad()
    def reconstruct(
        self, x_BCT: Tensor, visible_indices: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """All samples (B, 16, 3840) float32 from the visible patches of ``x_BCT``.

        ``visible_indices`` (B, 16, K): numbers of the patches that the model may see, sorted;
        None: all of them. In the layout "channel" K must be a multiple of 16; "moment" was
        trained with the same patches visible in all channels. ValueError without a decoder.
        """
        if self.decoder is None:
            raise ValueError(f"this model has no decoder ({self.no_decoder}); it can only embed")
        x_BCT, present_BC = self._checked(x_BCT, present)
        keep_BCK = self._checked_indices(visible_indices, x_BCT)
        return self.decode(*self.encode(x_BCT, present_BC, keep_BCK), keep_BCK)

    def _patches(self, x_BCT: Tensor, present_BC: Tensor) -> Tensor:
        """``x_BCSP`` float32, zeros where a channel is absent, whatever stood there."""
        x_BCT = x_BCT.float().masked_fill(~present_BC[:, :, None], 0)
        return patchify(x_BCT, self.patch_size)

    def _checked(self, x_BCT: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        if x_BCT.dim() != 3 or tuple(x_BCT.shape[1:]) != (N_CHANNELS, EPOCH_SAMPLES):
            raise ValueError(
                f"x has the shape {tuple(x_BCT.shape)}; give (B, {N_CHANNELS}, {EPOCH_SAMPLES}): "
                "30 s at 128 Hz of the 16 channels, standardised"
            )
        if present is None:
            present = torch.ones(x_BCT.shape[:2], dtype=torch.bool, device=x_BCT.device)
        if present.shape != x_BCT.shape[:2]:
            raise ValueError(
                f"present has the shape {tuple(present.shape)}; give {tuple(x_BCT.shape[:2])}"
            )
        return x_BCT, present.to(x_BCT.device, torch.bool)

    def _checked_indices(self, indices: Tensor | None, x_BCT: Tensor) -> Tensor | None:
        if indices is None:
            return None
        keep_BCK = torch.as_tensor(indices, dtype=torch.int64, device=x_BCT.device)
        if keep_BCK.dim() != 3 or keep_BCK.shape[:2] != x_BCT.shape[:2]:
            raise ValueError(
                f"visible_indices has the shape {tuple(keep_BCK.shape)}; give "
                f"({len(x_BCT)}, {N_CHANNELS}, K)"
            )
        if keep_BCK.shape[2] % self.layout.unit:
            raise ValueError(
                f"visible_indices keeps {keep_BCK.shape[2]} patches a channel; with token_layout "
                f"{self.settings.token_layout} keep a multiple of {self.layout.unit}"
            )
        in_range = (keep_BCK >= 0) & (keep_BCK < self.n_patches)
        if not (in_range.all() and (keep_BCK.diff(dim=2) > 0).all()):
            raise ValueError(
                f"visible_indices must be sorted patch numbers from 0 to {self.n_patches - 1}, "
                "none of them twice in a channel"
            )
        return keep_BCK


# ------------------------------------------------------------------ features
# What passes within an epoch, an arousal of 3 s or a missed breath, is lost in a mean over 30 s,
# and a single patch is noise: extremes over time are those of means over 2 s. What swings with each
# breath has the same mean whether the breath is large or small: its spread over 5 s tells, longer
# than a child's breath and short enough for two missed ones.
N_MEANS, N_SPREADS = 15, 6


def _windows(z_BCSE: Tensor, n: int) -> Tensor:
    """Means over n windows of an epoch, (B, C, n, E); of as many patches as come closest."""
    by_time = F.adaptive_avg_pool1d(z_BCSE.flatten(0, 1).transpose(1, 2), n)
    return by_time.transpose(1, 2).unflatten(0, z_BCSE.shape[:2])


def _spreads(z_BCSE: Tensor) -> Tensor:
    """Standard deviation within each window of 5 s, (B, C, 6, E)."""
    z_BCSE = z_BCSE - z_BCSE.mean(dim=2, keepdim=True)  # else squares of large means round it off
    variance_BCWE = _windows(z_BCSE.square(), N_SPREADS) - _windows(z_BCSE, N_SPREADS).square()
    return variance_BCWE.clamp_(min=0).sqrt_()


def _spread(z: Tensor, dim: int) -> Tensor:
    """Standard deviation over ``dim``; torch's own takes five times as long on a CPU."""
    return (z - z.mean(dim, keepdim=True)).square_().mean(dim).sqrt_()


# By name: features of each channel, (B, C, F / 16), from class tokens and patch features.
POOLINGS = {
    "mean": lambda class_BCE, z_BCSE: z_BCSE.mean(dim=3),
    "max": lambda class_BCE, z_BCSE: z_BCSE.amax(dim=3),
    "time_mean": lambda class_BCE, z_BCSE: z_BCSE.mean(dim=2),
    "time_abs": lambda class_BCE, z_BCSE: z_BCSE.abs().mean(dim=2),
    "time_std": lambda class_BCE, z_BCSE: _spread(z_BCSE, 2),
    "time_max": lambda class_BCE, z_BCSE: _windows(z_BCSE, N_MEANS).amax(dim=2),
    "time_min": lambda class_BCE, z_BCSE: _windows(z_BCSE, N_MEANS).amin(dim=2),
    "time_calm": lambda class_BCE, z_BCSE: _spreads(z_BCSE).amin(dim=2),
    "time_burst": lambda class_BCE, z_BCSE: _spreads(z_BCSE).amax(dim=2),
    "class": lambda class_BCE, z_BCSE: class_BCE,
}
SECONDS = "seconds"  # for single events: of each second mean and spread, see seconds_of


def seconds_of(z_BCSE: Tensor) -> Tensor:
    """Of each channel and second the mean and spread over its patches, (B, C, 30, 2E)."""
    z_BCMPE = z_BCSE.unflatten(2, (round(EPOCH_S), -1))
    return torch.cat([z_BCMPE.mean(3), _spread(z_BCMPE, 3)], dim=3)


def split_layer(name: str) -> tuple[str, int | None]:
    """ "time_mean+class@2" -> the pooling and the block it is read from; None: the last."""
    pooling, _, layer = name.partition("@")
    return pooling, int(layer) if layer else None


def pool(class_BCE: Tensor, z_BCSE: Tensor, pooling: str) -> Tensor:
    """Features (B, F) from class tokens and patch features, by POOLINGS, several joined by +."""
    if pooling == SECONDS:
        return seconds_of(z_BCSE).flatten(1)
    parts = pooling.split("+")
    if unknown := set(parts) - set(POOLINGS):
        known = f"known: {', '.join(POOLINGS)}, joined by +"
        raise ValueError(f"unknown pooling {unknown.pop()!r}; {known}")
    return torch.cat([POOLINGS[part](class_BCE, z_BCSE).flatten(1) for part in parts], dim=1)


def check_poolings(pooling: str, candidates: Sequence[str]) -> list[str]:
    """The poolings to compute: the candidates for "best", else the one; ProbeError names a bad."""
    wanted = list(dict.fromkeys(candidates)) if pooling == "best" else [pooling]
    for part in (part for name in wanted for part in name.split("+")):
        if part not in POOLINGS:
            raise ProbeError(
                f"pooling: there is no {part!r}; give best, one of {', '.join(POOLINGS)}, or "
                "several of them joined by +"
            )
    return wanted


# ------------------------------------------------------------------ arithmetic
def flops_per_example(model: MaskedAutoencoder) -> float:
    """Operations (2 for a multiply-add) in the matrix products of training on one example.

    Linear layers and attention; the backward pass, of what is trained, counts twice the forward
    one. Norms, GELU, the 8-wide patch layers and the heads of bands and views are left out: under
    1 %. Bands are measured once; steps that show channels whole are counted as those that do not.
    """

    def blocks(transformer: nn.ModuleList, width: int, n_tokens: int) -> float:
        linear = 2 * n_tokens * width * width * (4 + 2 * MLP_RATIO)
        attention = 4 * n_tokens * n_tokens * width
        return len(transformer) * (linear + attention)

    encoder_width = PATCHES_PER_TOKEN * model.encoder.cls_token.shape[3]
    decoder_width = PATCHES_PER_TOKEN * model.decoder.mask_token.shape[3]
    encoding = blocks(model.encoder.transformer, encoder_width, 1 + model.n_keep)
    encoding *= 1 if model.view_head is None else 2
    decoding = blocks(model.decoder.transformer, decoder_width, 1 + model.n_patches)
    if model.decoder.bridge is not None:
        decoding += 2 * (1 + model.n_keep) * encoder_width * decoder_width
    trains_encoder = model.encoder.pos_embedding.requires_grad
    return (3 if trains_encoder else 1) * encoding + 3 * decoding
