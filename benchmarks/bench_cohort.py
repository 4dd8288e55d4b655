"""Does memory stay flat as a cohort grows? Scripts 1 and 3 on 50 and on 200 short studies.

    python benchmarks/bench_cohort.py                         # some ten minutes on 2 cores

The recordings are simulated (15 minutes each), prepared by one worker, and probed with a small
untrained model that is written on the spot. Printed: the most memory that a process of each script
ever held, and their ratio, which is near 1 when nothing grows with the number of studies.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae.checkpoints import save_checkpoint
from pedsleepmae.model import MaskedAutoencoder

SIZES = (50, 200)
MODEL = {"patch_size": 16, "emb_dim": 4, "num_layer": 1, "num_head": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=0.25, help="length of a recording")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in SIZES:
            place = Path(folder) / str(n)
            simulate(place, n, options.hours)
            row = {"studies": n}
            row["script 1, GB"] = peak_gb("1_prepare_dataset.py", *prepare_settings(place))
            row["script 3, GB"] = peak_gb("3_train_classifier.py", *probe_settings(place))
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows).set_index("studies")
    print(table.round(3).to_string())
    print("200 over 50:", (table.loc[SIZES[1]] / table.loc[SIZES[0]]).round(2).to_dict())


def simulate(place: Path, n: int, hours: float) -> None:
    settings = ["--output_dir", str(place / "data"), "--n_patients", str(n), "--hours", str(hours)]
    run("0_simulate_cohort.py", *settings, "--n_repeat_studies", "0")
    model = MaskedAutoencoder(**MODEL)
    model.reset_parameters(torch.Generator().manual_seed(0))
    facts = {"settings": {}, "step": 0, "val_loss": None, "split_hash": "", "patients_seen": []}
    facts |= {"simulated": True, "scaling": "policy", "data": {}, "model": MODEL}
    save_checkpoint(place / "model.pt", {"state_dict": model.state_dict(), **facts})


def prepare_settings(place: Path) -> list[str]:
    paths = {"recordings_dir": place / "data" / "Sleep_Data", "examples_dir": place / "examples"}
    paths["batches_dir"] = place / "batches"
    return [f"--paths.{name}={path}" for name, path in paths.items()] + ["--n_workers=1"]


def probe_settings(place: Path) -> list[str]:
    paths = {"batches_dir": place / "batches", "checkpoint": place / "model.pt"}
    paths["output_dir"] = place / "results"
    return [f"--paths.{name}={path}" for name, path in paths.items()] + ["--bootstrap_draws=100"]


def run(script: str, *argv: str) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *argv], check=True, stdout=sys.stderr)


def peak_gb(script: str, *argv: str) -> float:
    """Largest resident memory of a script's process, GB; it must end well."""
    command = [sys.executable, str(ROOT / script), *argv]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    told = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(told.decode()[-2000:])
    return used.ru_maxrss / (1e6 if sys.platform == "linux" else 1e9)


if __name__ == "__main__":
    main()
