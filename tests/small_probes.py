"""A tiny checkpoint, and the probes that script 3 fits on it, for the tests."""

import importlib.util
from pathlib import Path

import torch
from planted import write_cohort

from pedsleepmae import checkpoints
from pedsleepmae.model import MaskedAutoencoder

ROOT = Path(__file__).resolve().parents[1]
MODEL = {"patch_size": 120, "emb_dim": 4, "num_layer": 1, "num_head": 2}


def save_model(path: Path, patients_seen, seed: int = 0) -> Path:
    """A checkpoint of a tiny model with random weights."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(**MODEL)
    checkpoints.save_checkpoint(
        path,
        {
            "state_dict": model.state_dict(),
            "model": MODEL,
            "settings": {},
            "step": 12,
            "val_loss": None,
            "split_hash": "feedfacefeedface",
            "patients_seen": checkpoints.hash_patients(patients_seen),
            "simulated": True,
            "data": {},
        },
    )
    return path


def run_script(name: str, *argv) -> int:
    """Exit code of a numbered script's main, run in this process."""
    spec = importlib.util.spec_from_file_location(name.split("_")[0], ROOT / name)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main([*map(str, argv)])


def script_3(*argv: str) -> int:
    settings = ["--config", ROOT / "configs/demo/probe.yaml", "--paths.compare_with", "null"]
    return run_script("3_train_classifier.py", *settings, *argv)


def fit_probes(folder: Path, montage_epochs: int) -> Path:
    """The folder, with model.pt, batches/ and what script 3 made of them in results/."""
    batches = write_cohort(folder / "batches", n_epochs=48)
    checkpoint = save_model(folder / "model.pt", range(500, 504))
    argv = [*paths(folder, batches, checkpoint), "--pooling", "time_abs", "--context", "0"]
    assert script_3(*argv, "--baselines", "[]", "--montage_epochs", str(montage_epochs)) == 0
    return folder


def paths(folder: Path, batches: Path, checkpoint: Path) -> list[str]:
    return [
        *("--paths.batches_dir", str(batches), "--paths.checkpoint", str(checkpoint)),
        *("--paths.output_dir", str(folder / "results"), "--bootstrap_draws", "200"),
    ]
