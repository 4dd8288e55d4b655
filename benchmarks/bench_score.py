"""Script 4 on a simulated 10-hour recording: seconds, share of each part, epochs/s.

    python benchmarks/bench_score.py                     # about two minutes on 2 cores

The recording has NCH's montage A at 256 Hz, 25 channels, and its annotations. Settings are those
of configs/score.yaml; the time for Python to load its libraries is a line of its own. The last
line is a row for benchmarks/RESULTS.md.
"""

import argparse
import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path

START = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pedsleepmae import machine
from pedsleepmae.score import files, night, report, run

LOADED_S = time.perf_counter() - START
PARTS = {  # what is timed, under the name that the table shows
    "load encoder, probes": (night, "load_scorer"),
    "read, resample": (run, "examples_to_score"),
    "encode": (night.embeddings, "embed_arrays"),
    "probes, distance": (run, "score_examples"),  # less what is encoded in it
    "tables, annotations": (files, "write_night"),
    "report": (report, "write_report"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = ROOT / "checkpoint"
    parser.add_argument("--checkpoint", type=Path, default=shipped / "m15p8_checkpoint.pt")
    parser.add_argument("--probes", type=Path, default=shipped / "probes.npz")
    parser.add_argument("--hours", type=float, default=10.0, help="length of the recording, hours")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        recording = simulate(Path(name), options.hours)
        argv = [str(recording), "--paths.checkpoint", str(options.checkpoint)]
        argv += ["--paths.probes", str(options.probes), "--paths.output_dir", f"{name}/out"]
        seconds, parts, n_epochs = time_script(argv)
    parts["probes, distance"] -= parts["encode"]
    for part, spent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"  {part:22s} {spent:7.2f} s  {100 * spent / seconds:5.1f} %")
    print(f"  {'other':22s} {seconds - sum(parts.values()):7.2f} s")
    print(f"  {'loading libraries':22s} {LOADED_S:7.2f} s, not counted")
    device = machine.describe(machine.choose_device("auto"))
    print(
        f"| bench_score | {device} | {options.hours:g} h, {n_epochs} epochs: {seconds:.0f} s, "
        f"{n_epochs / seconds:.0f} epochs/s; {100 * parts['encode'] / seconds:.0f} % encoder |"
    )


def simulate(folder: Path, hours: float) -> Path:
    """The EDF file of one simulated night, its .tsv beside it."""
    command = [sys.executable, str(ROOT / "0_simulate_cohort.py"), "--hours", str(hours)]
    command += ["--output_dir", str(folder / "cohort"), "--n_patients", "1"]
    command += ["--n_repeat_studies", "0", "--rates_hz", "[256]", "--n_workers", "1"]
    command += ["--montage_b_fraction", "0", "--absent_channel_fraction", "0"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (edf,) = folder.rglob("*.edf")
    return edf


def time_script(argv: list[str]) -> tuple[float, dict[str, float], int]:
    """(seconds, seconds by part, epochs) of script 4 in this process."""
    spec = importlib.util.spec_from_file_location("script_4", ROOT / "4_score_recording.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    parts, nights = defaultdict(float), []

    def timed(part: str, function):
        @wraps(function)
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            parts[part] += time.perf_counter() - start
            nights.extend([result] * isinstance(result, night.Night))
            return result

        return call

    with contextlib.ExitStack() as patched:
        for part, (owner, name) in PARTS.items():
            patched.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, timed(part, getattr(owner, name)))
        start = time.perf_counter()
        if script.main(argv) != 0:
            raise SystemExit("script 4 failed")
        seconds = time.perf_counter() - start
    return seconds, dict(parts), len(nights[0])


if __name__ == "__main__":
    main()
