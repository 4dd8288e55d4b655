"""A short part of the fuzzing, on every reader that users' files reach; the rest by one command."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
N_INPUTS = 280
LARGEST_BYTES = 2.5e9


def test_no_damaged_file_ends_in_a_traceback_a_hang_or_a_full_memory(tmp_path):
    """In a process of its own, for what forks must not have threads."""
    counts_file = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", str(N_INPUTS), "--seed", "0"]
    command += ["--slower", "3", "--json", str(counts_file), "--keep", str(tmp_path / "kept")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    found = json.loads(counts_file.read_text(encoding="utf-8"))
    totals = {}
    for counts in found["counts"].values():
        for kind, n in counts.items():
            totals[kind] = totals.get(kind, 0) + n
    assert sum(totals.values()) == N_INPUTS
    assert set(totals) <= {"accepted", "own error", "unforeseen"}
    assert min(totals["accepted"], totals["own error"]) > N_INPUTS / 10  # both ways are tried
    assert found["peak_bytes"] < LARGEST_BYTES
