"""Work in parallel goes on when a worker dies."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pedsleepmae.prepare.workers import Workers, in_parallel, open_workers

ROOT = Path(__file__).resolve().parents[1]
PATHS = {"PYTHONPATH": str(ROOT)}


def ten_times(folder: Path, deadly: int, deadly_once: int, item: int) -> int:
    if item == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == deadly_once and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * item


def fail(item: int) -> int:
    raise OSError(28, "No space left on device")


def test_a_worker_that_dies_costs_the_item_that_kills_it_and_no_other(tmp_path, capfd):
    work = partial(ten_times, tmp_path, 7, 2)
    found = list(in_parallel(Workers(2), work, range(20), lambda item: -1, tmp_path))
    assert sorted(found) == [(i, -1 if i == 7 else 10 * i) for i in range(20)]
    assert (tmp_path / "died").exists()
    assert "a worker died (out of memory?" in capfd.readouterr().err


def test_a_dask_worker_that_dies_costs_the_item_that_kills_it_and_no_other(tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    work = partial(ten_times, tmp_path, 7, 2)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        open_workers(2, cluster.scheduler_address) as workers,
    ):
        found = list(in_parallel(workers, work, range(12), lambda item: -1, tmp_path))
    assert sorted(found) == [(i, -1 if i == 7 else 10 * i) for i in range(12)]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_what_the_work_raises_is_raised(n_workers, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        list(in_parallel(Workers(n_workers), fail, range(3), lambda item: -1, tmp_path))


def test_workers_end_when_their_run_is_killed(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, time, pathlib, joblib\n"
        "from pedsleepmae.prepare.workers import Workers\n"
        "def work(i):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(Workers(2).run(joblib.delayed(work)(i) for i in range(2)))\n"
    )
    run = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env=os.environ | PATHS)
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    run.kill()
    run.wait()
    wait_for(lambda: not any(map(lives, workers)))


def lives(pid: int) -> bool:
    """Whether there is such a process, on macOS too, where there is no /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)
