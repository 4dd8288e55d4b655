"""Checkpoint files: written whole, loaded without pickle, the original authors' recognised.

Ours is a dict that ``torch.load(..., weights_only=True)`` reads: ``format``, ``version``, the
fields of :class:`Checkpoint` from ``state_dict`` to ``decoder``, and in checkpoint_last.pt what
resuming needs (TO_RESUME). A published one may lie in two files, the decoder's weights beside it.
"""

import errno
import hashlib
import re
import reprlib
import types
import typing
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pedsleepmae import disk, store
from pedsleepmae.channels import EPOCH_SAMPLES
from pedsleepmae.disk import write_whole
from pedsleepmae.errors import ProbeError, UserError, printable
from pedsleepmae.model import HEADS, MaskedAutoencoder, ModelSettings
from pedsleepmae.shipped import find_file

FORMAT = "pedsleepmae"
VERSION = 1
VERSIONS = ("0", "1")  # that this code reads
PATIENT_SALT = "pedsleepmae-patient"
SUMS_NAME = "SHA256SUMS"  # as sha256sum writes and checks it; beside published checkpoints
LARGEST_FILE = 90_000_000  # bytes: what plain git hosts take without complaint, with a margin
WANTED = "give a checkpoint that script 2 or the original authors wrote"
PUBLISHED = ("model", "settings", "step", "val_loss", "split_hash", "patients_seen", "simulated")
PUBLISHED += ("scaling", "data")
# Counters and stream position; the optimiser's state; what each channel's error is multiplied
# with; the weights that are trained when state_dict holds averaged ones.
TO_RESUME = ("progress", "optimizer", "channel_weights", "training_weights")
# What the weights' shapes and meaning depend on; the other settings of a model are of training.
ARCHITECTURE = ("patch_size", "emb_dim", "num_layer", "num_head", "token_layout")
ARCHITECTURE += ("decoder_emb_dim", "decoder_num_layer")
MOST_LAYERS = 256  # of an encoder or decoder; a stated number must not take minutes to disprove
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ORIGINAL_NUM_HEAD = 4  # cannot be read off the tensors; all of the original's models have 4


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What stands in a checkpoint file; of an older one or the original authors', what is known."""

    path: Path
    sha256: str  # of the file
    device: torch.device | str  # that it was read to
    state_dict: dict[str, Tensor]  # the weights (averaged ones when the run averages)
    model: dict[str, Any]  # the model's settings, so that nothing has to be retyped
    settings: dict[str, Any] = field(default_factory=dict)  # all settings of the run
    step: int | None = None  # optimiser steps behind these weights
    val_loss: float | None = None  # of these weights; None when they were not validated
    split_hash: str = ""  # who is in which split; empty when unknown
    # Sorted digests (hash_patient) of the training patients and of init_from's; None: unknown.
    patients_seen: list[str] | None = None
    simulated: bool = False  # the data, or those of init_from
    scaling: str = ""  # how script 1 standardised the data; empty when unknown
    data: dict[str, Any] = field(default_factory=dict)  # facts about the training data
    decoder: str | None = None  # name of the file beside this one with the decoder's weights
    original: bool = False
    resume: dict[str, Any] = field(default_factory=dict)  # what TO_RESUME names, or nothing

    @property
    def architecture(self) -> dict[str, Any]:
        """Those settings of the model that its weights depend on (ARCHITECTURE)."""
        return {name: self.model[name] for name in ARCHITECTURE}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of encoder and decoder, without those of heads that only training needs."""
        return {n: value for n, value in self.state_dict.items() if not n.startswith(HEADS)}

    def build_model(self) -> MaskedAutoencoder:
        """The model in evaluation mode, on the device that the checkpoint was read to.

        Its target is the waveform, whatever it was trained on besides. CheckpointError when the
        weights do not fit the settings in the file. Without the decoder's file the model embeds
        all the same, and says so when asked to reconstruct.
        """
        model = self.outline().to_empty(device=self.device)
        load_weights(model, self.weights, f"{self.path}")
        return model.eval()

    def outline(self) -> MaskedAutoencoder:
        """The model without its weights, as large as they are; CheckpointError as build_model."""
        try:
            check_fields(self.model, ModelSettings)
            n_layers = max(self.model[n] or 0 for n in ("num_layer", "decoder_num_layer"))
            if n_layers > MOST_LAYERS:
                raise ValueError(f"{n_layers} layers; this code builds up to {MOST_LAYERS}")
            with torch.device("meta"):  # shapes alone: nothing is allocated that is only stated
                model = MaskedAutoencoder(**self.model | {"target": "wave", "view_weight": 0.0})
        except (TypeError, ValueError, RuntimeError) as error:
            reason = printable(error)[:200]
            problem = f"{self.path}: its model settings do not make a model: {reason}"
            raise CheckpointError(problem) from error
        if self.decoder and not any(name.startswith("decoder.") for name in self.state_dict):
            model.drop_decoder(f"{self.path.with_name(self.decoder)} is not there")
        check_shapes(model, self.weights, f"{self.path}")
        return model


def hash_patient(patient_id: int) -> str:
    """SHA-256 of ``pedsleepmae-patient:<patient_id>``, hexadecimal.

    The same for every split and run, so that a checkpoint can be asked whether it has seen a
    patient without listing patient numbers in the open. Not a protection: numbers can be tried.
    """
    return hashlib.sha256(f"{PATIENT_SALT}:{int(patient_id)}".encode()).hexdigest()


def hash_patients(patient_ids: Iterable[int]) -> list[str]:
    """Sorted digests of the distinct patients."""
    return sorted({hash_patient(patient_id) for patient_id in patient_ids})


# ------------------------------------------------------------------ writing and reading
def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    with write_whole(path) as temporary, open(temporary, "wb") as file:
        # Through a file, for torch writes a path's own name into it: equal content, equal bytes.
        try:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
        except RuntimeError as error:  # torch's words for a disk that is full, in place of its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(errno.EIO, "torch cannot write it", f"{path}") from error


def read_checkpoint(path: Path | str, device: str | torch.device = "cpu") -> Checkpoint:
    """What stands in a checkpoint file, or in the one that ships, its tensors on ``device``.

    CheckpointError names a file that is not a checkpoint, or not the one that SHA256SUMS beside
    it lists.
    """
    path = find_file(path)
    sha256, content = read_content(path, device)
    if "format" not in content:
        content = _content_of_original(path, content["state_dict"])
    elif content["format"] != FORMAT or str(content.get("version", 0)) not in VERSIONS:
        theirs, version = map(reprlib.repr, (content["format"], content.get("version")))
        raise CheckpointError(
            f"{path}: format {theirs} version {version}, this code reads {FORMAT!r} up to version "
            f"{VERSION}; update the code"
        )
    known = {item.name for item in fields(Checkpoint)} - {"path", "sha256", "device", "resume"}
    facts = {name: value for name, value in content.items() if name in known}
    try:
        check_fields(facts, Checkpoint)
        if any(not re.fullmatch("[0-9a-f]{64}", str(s)) for s in facts.get("patients_seen") or []):
            raise ValueError("patients_seen holds what is no digest of a patient")
        decoder = facts.get("decoder") or ""
        if decoder != re.sub(r"[^\w. ()+-]|^\.+$", "", decoder)[:200]:
            raise ValueError("decoder is no name of a file beside it")
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {WANTED}") from error
    facts["model"] = asdict(ModelSettings()) | facts.get("model", {})
    facts["resume"] = {name: content[name] for name in TO_RESUME if name in content}
    if decoder and path.with_name(decoder).is_file():
        _, more = read_content(path.with_name(decoder), device)
        theirs = more["state_dict"].items()  # of which the encoder's, if any, are another model's
        facts["state_dict"] |= {n: value for n, value in theirs if n.startswith("decoder.")}
    return Checkpoint(path, sha256, device, **facts)


def read_content(path: Path, device: str | torch.device) -> tuple[str, dict[str, Any]]:
    """A checkpoint file's SHA-256 and the dict in it, of which the weights have been looked at."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; {WANTED}")
    if not zipfile.is_zipfile(path):  # what torch.save writes since 1.6 is a zip archive
        raise CheckpointError(f"{path}: not a whole checkpoint file; {WANTED}")
    sha256 = check_sum(path)
    try:
        check_archive(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle fails in every way there is
        reason = printable(error)[:200]
        raise CheckpointError(
            f"{path}: does not load safely, as weights and plain values alone ({reason}); {WANTED}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path}: holds no state_dict; {WANTED}")
    check_weights(content["state_dict"], f"{path}: state_dict")
    n_bytes = sum(value.numel() * value.element_size() for value in content["state_dict"].values())
    if n_bytes > path.stat().st_size:  # a tensor can repeat one number as often as it says
        raise CheckpointError(f"{path}: states more weights than it holds; {WANTED}")
    return sha256, content


def check_archive(path: Path) -> None:
    """Raise ValueError for a zip archive that unpacks to more than its own size.

    torch.save and numpy.savez store members as they are; a packed one may be a bomb.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member of the archive is compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("the members of the archive claim to be larger than the file")


def check_weights(weights: Any, where: str) -> None:
    """CheckpointError unless these are tensors by name, as weights are."""
    if isinstance(weights, dict) and all(
        isinstance(name, str) and is_plain_tensor(value) for name, value in weights.items()
    ):
        return
    raise CheckpointError(f"{where} holds what is no weights by name; {WANTED}")


def is_plain_tensor(value: Any) -> bool:
    """True for a tensor of real numbers that are there."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    return value.dtype in WEIGHT_TYPES and not value.is_nested


def check_fields(values: Any, kind: type) -> None:
    """Raise ValueError for the first value that is not of the type of its field in ``kind``."""
    if not isinstance(values, Mapping):
        raise ValueError(f"what should be a {kind.__name__} is no mapping")
    for name, hint in typing.get_type_hints(kind).items():
        if name in values and not _is_of(values[name], hint):
            raise ValueError(f"{name} has the wrong type, {type(values[name]).__name__}")


def _is_of(value: Any, hint: Any) -> bool:
    """True when a value is of a type, without a look into lists and dicts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is types.UnionType:
        return any(_is_of(value, arg) for arg in args)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def check_sum(path: Path) -> str:
    """A file's SHA-256; CheckpointError when SHA256SUMS beside it lists it with another."""
    sums, sha256 = path.with_name(SUMS_NAME), file_sha256(path)
    if _read_sums(sums).get(path.name, sha256) != sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 is not the one that {sums.name} beside it lists, so it was "
            "changed or damaged; fetch it again"
        )
    return sha256


def list_sums(*paths: Path) -> Path:
    """Put these files into the SHA256SUMS beside them; the lines of other files stay."""
    sums = paths[0].with_name(SUMS_NAME)
    _write_sums(sums, _read_sums(sums) | {path.name: file_sha256(path) for path in paths})
    return sums


def forget_sum(*paths: Path) -> None:
    """Take these files out of the SHA256SUMS beside them, which may not be there."""
    sums = paths[0].with_name(SUMS_NAME)
    if sums.is_file():
        gone = {path.name for path in paths}
        _write_sums(sums, {name: s for name, s in _read_sums(sums).items() if name not in gone})


def _write_sums(sums: Path, listed: Mapping[str, str]) -> None:
    """SHA256SUMS as sha256sum writes and checks it."""
    disk.write_text(sums, "".join(f"{listed[name]}  {name}\n" for name in sorted(listed)))


def _read_sums(sums: Path) -> dict[str, str]:
    """SHA-256 by file name; empty without the file."""
    text = sums.read_text("utf-8", "replace") if sums.is_file() else ""
    listed = re.findall(r"^([0-9a-fA-F]{64}) [ *](.+)$", text, re.MULTILINE)
    return {name: sha256.lower() for sha256, name in listed}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(model: MaskedAutoencoder, state_dict: Mapping[str, Any], where: str) -> None:
    """Load weights strictly; CheckpointError says in one sentence what does not fit."""
    check_shapes(model, state_dict, where)
    for name, value in state_dict.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{where}: {name} holds numbers that are not finite; {WANTED}")
    model.load_state_dict(state_dict)


def check_shapes(model: MaskedAutoencoder, state_dict: Mapping[str, Any], where: str) -> None:
    """CheckpointError unless weights have the names and shapes of the model's."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in state_dict.items()}
    if wanted == got:
        return
    name = next(name for name in [*wanted, *got] if wanted.get(name) != got.get(name))
    has = f"has the shape {got[name]} there" if name in got else "is not there"
    wants = f"{wanted[name]} here" if name in wanted else "is unknown here"
    n_other = sum(wanted.get(name) != got.get(name) for name in {*wanted, *got}) - 1
    raise CheckpointError(
        f"{where}: the weights are of a model of another shape: {name} {has}, {wants} "
        f"({n_other} more differ); set model.* as in that checkpoint, or use another"
    )


def other_scaling(theirs: str, ours: str) -> str:
    """A warning when signals are scaled otherwise than those behind a checkpoint, else ""."""
    if theirs == ours or "" in (theirs, ours) or {theirs, ours} == {"policy", "robust"}:
        return ""  # robust leaves a usual recording's channels as large as policy does
    remedy = {"fitted": "only its own cohort's statistics would fit it; use another encoder"}
    return (
        f"the encoder was trained on signals under scaling {theirs}, these stand under {ours}: its "
        f"embeddings may mean little; {remedy.get(theirs, f'prepare with --scaling {theirs}')}"
    )


def hash_encoder(model: MaskedAutoencoder) -> str:
    """SHA-256 of the encoder's weights and of how it makes tokens, hexadecimal.

    Two checkpoint files with the same encoder (with and without optimiser, say) have the same one.
    """
    heads = [block.attn.num_head for block in model.encoder.transformer]
    digest = hashlib.sha256(repr((model.settings.token_layout, model.patch_size, heads)).encode())
    for name, weight in sorted(model.encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------ publishing
def publish(source: Path, target: Path) -> list[Path]:
    """Write what ships of a checkpoint of script 2; the files written, SHA256SUMS the last.

    Weights in bfloat16, nothing that only training needs; the decoder in a file of its own beside
    ``target`` when the whole would be larger than LARGEST_FILE.
    """
    checkpoint = read_checkpoint(source)
    content = {name: getattr(checkpoint, name) for name in PUBLISHED}
    weights = {name: value.bfloat16() for name, value in checkpoint.weights.items()}
    n_bytes = sum(2 * value.numel() for value in weights.values())
    beside = target.with_name(f"{target.stem}.decoder{target.suffix}")
    files, more = {target: weights}, {}
    if n_bytes > LARGEST_FILE:
        files = {beside: {n: weights[n] for n in weights if n.startswith("decoder.")}}
        files[target] = {n: weights[n] for n in weights if n not in files[beside]}
        more = {"decoder": beside.name}
    else:
        beside.unlink(missing_ok=True)
    forget_sum(*files)  # until the end it would call the new ones damaged
    for path, its_weights in files.items():
        save_checkpoint(path, content | {"state_dict": its_weights} | more)
    return [*files, list_sums(*files)]


# ------------------------------------------------------------------ the original's files
def _content_of_original(path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the weights of an original checkpoint tell, under our names."""
    try:
        n_blocks = {  # by the third part of names such as encoder.transformer.0.norm1.weight
            part: len({n.split(".")[2] for n in weights if n.startswith(f"{part}.transformer.")})
            for part in ("encoder", "decoder")
        }
        patch_size = weights["encoder.patch_projection.projection.weight"].shape[1]
        model = {
            "patch_size": patch_size,
            "emb_dim": weights["encoder.cls_token"].shape[3],
            "num_layer": n_blocks["encoder"],
            "num_head": ORIGINAL_NUM_HEAD,
            "decoder_emb_dim": weights["decoder.mask_token"].shape[3],
            "decoder_num_layer": n_blocks["decoder"],
            "token_layout": "reference",
            "loss_on": "all",
        }
        n_patches = weights["encoder.pos_embedding"].shape[2] - 1
    except (KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: neither a checkpoint of script 2 nor of the original authors: {error} is "
            "missing or has an unexpected shape"
        ) from error
    if n_patches * patch_size != EPOCH_SAMPLES:
        raise CheckpointError(
            f"{path}: made for examples of {n_patches} x {patch_size} samples a channel; this "
            f"code reads {EPOCH_SAMPLES}"
        )
    return {
        "state_dict": weights,
        "model": model,
        "settings": {"model": model},
        "scaling": "original",
        "data": {"source": "original authors' checkpoint; training patients unknown"},
        "original": True,
    }


def count_seen_patients(index: store.ExampleIndex, seen: Sequence[str] | None) -> int | None:
    """Patients of val and test among the hashed patients of pretraining; None when unknown."""
    if seen is None:
        return None
    judged = np.unique(index.patient_ids[np.isin(index.split, (1, 2))])
    return len({hash_patient(patient) for patient in judged} & set(seen))


def check_seen_patients(
    index: store.ExampleIndex, seen: Sequence[str] | None, allowed: bool
) -> int | None:
    """Number of judged patients that pretraining saw (None: unknown); ProbeError unless allowed.

    A cohort that is split in time holds every patient on both sides anyway and says so.
    """
    n_seen = count_seen_patients(index, seen)
    if n_seen and index.patient_disjoint and not allowed:
        raise ProbeError(
            f"paths.checkpoint: its pretraining saw {n_seen} of the val and test patients of "
            "paths.batches_dir, so scores would be flattered; give a checkpoint pretrained on "
            "these train patients, or set allow_seen_patients to true and the report says so"
        )
    return n_seen
