"""What the shipped checkpoint saves: pretraining on another cohort from it, and from scratch.

    python 0_simulate_cohort.py --config configs/simulated60/simulate.yaml
    python benchmarks/bench_transfer.py           # ten minutes on 2 cores

Trains the same model twice on the 30 training children of the cohort (none of them seen by the
checkpoint), once from random weights for N steps and once from the checkpoint for N/3, each with a
schedule of its own length, and prints the first step at which the second one's validation error is
at most what the first one reached in the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "checkpoint" / "m15p8_checkpoint.pt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches_dir", type=Path, default=ROOT / "data/simulated60/batches")
    parser.add_argument("--steps", type=int, default=900, help="N, steps from scratch")
    options = parser.parse_args()
    n_short = options.steps // 3
    with tempfile.TemporaryDirectory() as folder:
        common = ["--paths.batches_dir", str(options.batches_dir), "--paths.publish_to", "null"]
        common += ["--optim.ema_decay", "0", "--probe_every", "0", "--val_every"]
        scratch = errors_of(Path(folder) / "scratch", options.steps, [*common, str(options.steps)])
        started = errors_of(
            Path(folder) / "started",
            n_short,
            [*common, str(n_short // 10), "--init_from", str(SHIPPED)],
        )
    goal = scratch[options.steps]
    print(
        "validation loss on masked patches, error over the channels' variance, simulated children"
    )
    print("  from scratch:  ", in_words(scratch))
    print("  from shipped:  ", in_words(started))
    reached = [step for step, error in started.items() if error <= goal]
    if reached:
        share = reached[0] / options.steps
        print(
            f"{goal:.4f}, from scratch after {options.steps} steps, is reached after {reached[0]}"
        )
        print(f"  steps needed: {share:.2f} of those from scratch")
    else:
        print(f"{goal:.4f}, from scratch after {options.steps} steps, is not reached in {n_short}")


def errors_of(run_dir: Path, steps: int, arguments: list[str]) -> dict[int, float]:
    """Validation error by step of one run of script 2."""
    command = [sys.executable, "2_pretrain_model.py", "--config", "configs/m15p8_simulated.yaml"]
    command += ["--paths.run_dir", str(run_dir), "--max_steps", str(steps), *arguments]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if line["split"] == "val"}


def in_words(errors: dict[int, float]) -> str:
    return ", ".join(f"{step}: {error:.3f}" for step, error in errors.items())


if __name__ == "__main__":
    main()
