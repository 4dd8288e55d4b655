"""The checkpoint that ships: whole, small enough for git, with probes of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from edf_files import nch_file

import pedsleepmae
from pedsleepmae import checkpoints
from pedsleepmae.score import night

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "checkpoint"
SHIPPED = FOLDER / "m15p8_checkpoint.pt"


def test_its_files_fit_plain_git():
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert max(sizes) < 95e6
    assert sum(sizes) < 160e6


@pytest.mark.parametrize("name", ["m15p8_checkpoint.pt", "probes.npz"])
def test_its_sums_are_listed(name):
    listed = (FOLDER / checkpoints.SUMS_NAME).read_text("utf-8")
    assert f"{checkpoints.file_sha256(FOLDER / name)}  {name}\n" in listed


def test_it_embeds_and_reconstructs_and_says_that_it_is_simulated():
    checkpoint = checkpoints.read_checkpoint(SHIPPED)
    assert checkpoint.simulated
    # Those of the first run and of the longer one, each as many.
    assert len(checkpoint.patients_seen) == 2 * checkpoint.data["n_patients"]
    model = pedsleepmae.load_model(SHIPPED)
    x = torch.randn(2, 16, 3840, generator=torch.Generator().manual_seed(0))
    assert model.embed(x, pooling="mean").shape == (2, 16 * model.n_patches)
    assert model.reconstruct(x).shape == (2, 16, 3840)


def test_its_card_says_in_the_first_line_that_the_children_are_simulated():
    assert "simulated" in (FOLDER / "README.md").read_text("utf-8").splitlines()[0].lower()


def test_its_probes_are_those_of_its_encoder():
    scorer = night.load_scorer(SHIPPED, FOLDER / "probes.npz")
    assert set(scorer.probes) >= {"sleep", "apnea", "hypopnea", "desaturation", "arousal"}


def test_script_4_scores_with_it_by_default(tmp_path):
    recording = tmp_path / "7_8.edf"
    nch_file(seconds=96).write(recording)
    command = [sys.executable, "-W", "error", "4_score_recording.py", str(recording)]
    command += ["--paths.output_dir", str(tmp_path / "scored")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    epochs = pd.read_csv(tmp_path / "scored" / "7_8" / "epochs.csv")
    assert len(epochs) == 3
    assert np.isfinite(epochs.filter(regex="^p_").to_numpy(float)).all()
