"""Checkpoint files: written whole, loaded without pickle, the original authors' recognised.

Ours is a dict that ``torch.load(..., weights_only=True)`` reads:

=================  ==============================================================================
format, version    FORMAT and VERSION
state_dict         the weights (averaged ones when the run averages)
model              the model's settings, so that nothing has to be retyped
settings           all settings of the run
step               optimiser steps behind these weights
val_loss           validation loss of these weights; None when they were not validated
split_hash         who is in which split (empty when unknown)
patients_seen      sorted SHA-256 digests of the training patients, see :func:`hash_patient`
simulated          True when the data are simulated
data               counts and facts about the training data, in words and numbers
progress           what resuming needs: counters and stream position (checkpoint_last.pt alone)
optimizer          likewise
channel_weights    likewise, what each channel's error is multiplied with
training_weights   likewise, the weights that are trained when state_dict holds averaged ones
=================  ==============================================================================
"""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pedsleepmae.channels import EPOCH_SAMPLES
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.store import write_whole

FORMAT = "pedsleepmae"
VERSION = 1
PATIENT_SALT = "pedsleepmae-patient"
ORIGINAL_NUM_HEAD = 4  # cannot be read off the tensors; all of the original's models have 4


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which, why and what to do."""


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
    with write_whole(path) as temporary:
        torch.save({"format": FORMAT, "version": VERSION, **content}, temporary)


def load_checkpoint(path: Path | str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Content of a checkpoint, as listed atop this module.

    For a file of the original authors ``model`` is inferred from the tensors, ``original`` is
    True, ``patients_seen`` is None (unknown) and ``split_hash`` empty. CheckpointError names a
    file that is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; give a checkpoint of script 2")
    if not zipfile.is_zipfile(path):  # what torch.save writes since 1.6 is a zip archive
        raise CheckpointError(
            f"{path}: not a whole checkpoint file; give one that script 2 or the original authors "
            "wrote"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: does not load safely, as weights and plain values alone ({reason}); give a "
            "checkpoint that script 2 or the original authors wrote"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"{path}: holds no state_dict; give a checkpoint that script 2 or the original "
            "authors wrote"
        )
    if "format" not in content:
        return _read_original(path, content)
    if content["format"] != FORMAT or content.get("version", 0) > VERSION:
        raise CheckpointError(
            f"{path}: format {content['format']!r} version {content.get('version')}, this code "
            f"reads {FORMAT!r} up to version {VERSION}; update the code"
        )
    return content | {"original": False}


def load_model(path: Path | str, device: str | torch.device = "cpu") -> MaskedAutoencoder:
    """The model of a checkpoint (ours or the original authors'), in evaluation mode on ``device``.

    Weights are loaded strictly; CheckpointError when they do not fit the settings in the file.
    """
    content = load_checkpoint(path, device)
    try:
        model = MaskedAutoencoder(**content["model"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its model settings do not make a model: {error}") from error
    load_weights(model, content["state_dict"], f"{path}")
    return model.to(device).eval()


def load_weights(model: MaskedAutoencoder, state_dict: Mapping[str, Any], where: str) -> None:
    """Load weights strictly; CheckpointError says in one sentence what does not fit."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in state_dict.items()}
    if wanted == got:
        model.load_state_dict(state_dict)
        return
    name = next(name for name in [*wanted, *got] if wanted.get(name) != got.get(name))
    has = f"has the shape {got[name]} there" if name in got else "is not there"
    wants = f"{wanted[name]} here" if name in wanted else "is unknown here"
    n_other = sum(wanted.get(name) != got.get(name) for name in {*wanted, *got}) - 1
    raise CheckpointError(
        f"{where}: the weights are of a model of another shape: {name} {has}, {wants} "
        f"({n_other} more differ); set model.* as in that checkpoint, or use another"
    )


def hash_encoder(model: MaskedAutoencoder) -> str:
    """SHA-256 of the encoder's weights and of how it makes tokens, hexadecimal.

    Two checkpoint files with the same encoder (with and without optimiser, say) have the same one.
    """
    heads = [block.attn.num_head for block in model.encoder.transformer]
    digest = hashlib.sha256(repr((model.token_layout, model.patch_size, heads)).encode())
    for name, weight in sorted(model.encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------ the original's files
def _read_original(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Content of an original checkpoint (epoch, state_dict, optimizer, loss) under our names."""
    weights = content["state_dict"]
    try:
        patch_size = weights["encoder.patch_projection.projection.weight"].shape[1]
        model = {
            "patch_size": patch_size,
            "emb_dim": weights["encoder.cls_token"].shape[3],
            "num_layer": _count_blocks(weights, "encoder"),
            "num_head": ORIGINAL_NUM_HEAD,
            "decoder_emb_dim": weights["decoder.mask_token"].shape[3],
            "decoder_num_layer": _count_blocks(weights, "decoder"),
            "mask_ratio": 0.5,
            "mask_span": 1,
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
        "step": None,
        "epoch": content.get("epoch"),
        "val_loss": None,
        "split_hash": "",
        "patients_seen": None,
        "simulated": False,
        "data": {"source": "original authors' checkpoint; training patients unknown"},
        "original": True,
    }


def _count_blocks(weights: Mapping[str, Any], part: str) -> int:
    start = f"{part}.transformer."
    return len({name[len(start) :].split(".")[0] for name in weights if name.startswith(start)})
