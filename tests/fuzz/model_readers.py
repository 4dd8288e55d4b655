"""Readers of checkpoints, sums and probes, and edits of what is in a checkpoint."""

import hashlib
from pathlib import Path

import numpy as np
import small_probes
import torch

from pedsleepmae import adapters, api, checkpoints
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe.files import load_basis, load_probes

from .mutate import pick
from .mutate_archives import members_of, write_members
from .sense import require

torch.set_num_threads(1)


def build_checkpoint(folder: Path) -> None:
    small_probes.save_model(folder / "checkpoint.pt", [1, 2])


def build_sums(folder: Path) -> None:
    build_checkpoint(folder)
    checkpoints.list_sums(folder / "checkpoint.pt")
    with open(folder / "SHA256SUMS", "a") as file:
        file.write(f"{'0' * 64}  other.npz\n{'1' * 64} *binary.pt\n")


def build_original_checkpoint(folder: Path) -> None:
    sizes = {"patch_size": 480, "emb_dim": 4, "num_layer": 1, "decoder_num_layer": 1}
    model = MaskedAutoencoder(**sizes, num_head=4, token_layout="reference", loss_on="all")
    weights = model.state_dict()
    original = {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}, "loss": 0.5}
    torch.save(original, folder / "checkpoint.pt")


def edit_content(path: Path, rng: np.random.Generator) -> None:
    """A value in a checkpoint, or one of its tensors."""
    try:
        content = torch.load(path, weights_only=True)
        here = content if rng.random() < 0.4 else content[str(pick(rng, ["model", "state_dict"]))]
        key = pick(rng, list(here))
    except Exception:  # whatever an edit before has made of it
        return
    values = [None, 0, -1, 7, 2.5, 10**6, 10**9, 2**62, "x", "", [], {}, float("nan"), True]
    values += ["../../x.pt", torch.zeros(3), torch.full((2, 2), torch.nan), ["a"], {"a": 1}]
    kind = rng.random()
    if isinstance(here[key], torch.Tensor) and kind < 0.7:
        tensor = here[key].clone()
        if kind < 0.2:
            tensor.flatten()[0] = float("nan")
        here[key] = pick(
            rng, [tensor, tensor[None], tensor.half(), tensor[..., :1], tensor.long(), None]
        )
    elif kind < 0.2:
        del here[key]
    else:
        key = pick(rng, [key, key, "decoder", "format", "version", "extra"])
        here[key] = pick(rng, values)
    torch.save(content, path)


def pickle_code(path: Path, rng: np.random.Generator) -> None:
    """A pickle that would run code, in a checkpoint's own archive and without one."""
    code = b"cos\nsystem\n(S'touch ran_code'\ntR."
    if rng.random() < 0.5:
        path.write_bytes(code)
        return
    members = members_of(path)
    for name in members:
        if name.endswith("data.pkl"):
            members[name] = code
    write_members(path, members)


def read_checkpoint(folder: Path, _rng: np.random.Generator) -> None:
    model = api.load_model(folder / "checkpoint.pt")
    ran = Path("ran_code").exists()
    require(not ran, "code in the file was run")
    with torch.no_grad():
        features = model.embed(torch.zeros(1, N_CHANNELS, EPOCH_SAMPLES), pooling="mean")
    require(bool(torch.isfinite(features).all()), "weights that are not finite")


def build_adapter(folder: Path) -> None:
    """An adapter on a tiny checkpoint, which lies in a folder of its own and stays whole."""
    (folder / "base").mkdir()
    path = small_probes.save_model(folder / "base" / "checkpoint.pt", [1, 2])
    model = api.load_model(path)
    sha256 = checkpoints.hash_encoder(model)
    weights = adapters.adapter_weights(adapters.add_adapters(model, 2, 4.0))
    adapters.save_adapter(folder / "adapter.pt", adapters.Adapter(sha256, 2, 4.0, weights))


def read_adapter(folder: Path, _rng: np.random.Generator) -> None:
    """An adapter, merged into its checkpoint, and what that embeds."""
    base = checkpoints.read_checkpoint(folder / "base" / "checkpoint.pt")
    model = adapters.merge(base, adapters.load_adapter(folder / "adapter.pt")).build_model()
    require(not Path("ran_code").exists(), "code in the file was run")
    weights = model.encoder.state_dict().values()
    require(all(bool(torch.isfinite(w).all()) for w in weights), "weights that are not finite")


def edit_sums(path: Path, rng: np.random.Generator) -> str | None:
    """A wrong sum of the checkpoint, as sha256sum may write it; or a line that is odd."""
    name, wrong = "checkpoint.pt", hashlib.sha256(rng.bytes(4)).hexdigest()
    odd = ["a b c d", f"{wrong}  name with blanks.pt", "  ", "#x", f"{wrong}", f"\\{wrong}  a\\nb"]
    odd += [f"SHA256 (x.pt) = {wrong}", f"{wrong}\t{name}x", f"{wrong.upper()}  other.pt", "²" * 64]
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    if rng.random() < 0.5:
        lines.insert(int(rng.integers(len(lines) + 1)), pick(rng, odd))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return None
    form = pick(rng, [f"{wrong}  {name}", f"{wrong} *{name}", f"{wrong.upper()}  {name}"])
    path.write_text("\n".join([line for line in lines if name not in line] + [form]) + "\n")
    return f"SHA256SUMS lists another sum{' in binary mode' if '*' in form else ''}"


def build_probes(folder: Path) -> None:
    """As save_probes writes them, on 8 features."""
    rng = np.random.default_rng(0)
    arrays = {"version": np.array(2), "pooling": np.array("mean"), "facts": np.array('{"a": 1}')}
    for task, n in (("sleep", 5), ("apnea", 2)):
        k = n if n > 2 else 1
        arrays |= {
            f"{task}/classes": np.arange(n),
            f"{task}/mean": rng.normal(size=8),
            f"{task}/scale": rng.uniform(0.5, 2, 8),
            f"{task}/weight": rng.normal(size=(8, k)).astype(np.float32),
            f"{task}/bias": rng.normal(size=k),
            f"{task}/slope": np.array(1.1),
            f"{task}/shift": rng.normal(size=n),
            f"{task}/threshold": np.array(0.3 if n == 2 else np.nan),
            f"{task}/strength": np.array(0.01),
        }
    density = {"mean_F": rng.normal(size=8), "scale_F": np.ones(8), "axes_KF": np.eye(8)[:3]}
    density |= {"variance_K": np.ones(3), "rest_variance": np.array(0.5)}
    density |= {"quantile_Q": np.linspace(0.5, 2, 11)}
    arrays |= {f"density/{name}": values for name, values in density.items()}
    np.savez(folder / "probes.npz", **arrays)


def read_probes(folder: Path, _rng: np.random.Generator) -> None:
    """Probes and what they rest on, and the probabilities that they give."""
    _read_outs, chosen = load_probes(folder / "probes.npz")
    basis = load_basis(folder / "probes.npz")
    require(isinstance(basis.facts, dict), "facts that are none")
    if not chosen:
        return
    x_NF = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    for task, probe in chosen.items():
        numbers = [probe.slope, *np.ravel(probe.shift_K), *np.ravel(probe.linear.scale_F)]
        require(bool(np.isfinite(numbers).all()), f"{task}: slope, shift or scale not finite")
        require(bool((np.asarray(probe.linear.scale_F) > 0).all()), f"{task}: a scale of 0 or less")
        if len(probe.linear.weight_FK) != 8:
            return  # of another encoder, which load_scorer refuses
        prob_NK = probe.probabilities(probe.linear.logits(x_NF))
        probe.decide(prob_NK)
        require(bool(np.isfinite(prob_NK).all()), f"{task}: probabilities that are none")
    if np.shape(basis.density.mean_F) == (8,):
        basis.density.distance(x_NF)
        basis.density.threshold(0.01)
