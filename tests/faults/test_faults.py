"""A sample of the runs in which one operation on the disk fails; all of them by one command."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
N_RUNS = 4


def test_a_disk_that_fails_at_any_moment_costs_nothing_but_time(tmp_path):
    """In a process of its own, for what forks must not have threads."""
    problems_file = tmp_path / "problems.json"
    command = [sys.executable, "-m", "tests.faults", "--sample", str(N_RUNS), "--seed", "0"]
    command += ["--json", str(problems_file)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    found = json.loads(problems_file.read_text(encoding="utf-8"))
    assert found == {"runs": N_RUNS, "problems": {}}
