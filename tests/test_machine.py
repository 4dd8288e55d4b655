import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pedsleepmae import machine
from pedsleepmae.machine import Compute, MachineError, World

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.choose_device("auto") == CPU
    assert machine.choose_device("cpu") == CPU
    with pytest.raises(MachineError, match="set device to auto or cpu"):
        machine.choose_device("cuda")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("avx512_bf16 amx_bf16", "bfloat16"), ("avx512_bf16", "float32"), ("avx2", "float32")],
)
def test_precision_is_what_the_processor_is_fastest_in(monkeypatch, tmp_path, flags, dtype):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags : fpu {flags} sse", encoding="utf-8")
    monkeypatch.setattr(machine, "Path", lambda _: cpuinfo)
    assert machine.choose_dtype("auto", CPU) == getattr(torch, dtype)
    assert machine.choose_dtype("float32", CPU) == torch.float32
    assert machine.choose_dtype("bfloat16", CPU) == torch.bfloat16


def test_autocast_changes_matrix_products_only_when_asked():
    a = torch.ones(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with Compute(CPU, dtype).autocast():
            assert (a @ a).dtype == dtype


def test_matmul_rate_is_that_of_a_product_timed_by_hand(monkeypatch):
    monkeypatch.setattr(machine, "MATMUL_SIZE", {"cpu": 128})
    monkeypatch.setattr(machine, "MATMUL_SECONDS", 0.05)
    ticks = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: 0.01 * next(ticks))
    # begin and end of each product are one tick, 0.01 s, apart
    assert machine.matmul_rate(CPU, torch.float32) == pytest.approx(2 * 128**3 / 0.01)


def test_peak_memory_grows_with_what_is_held():
    before = machine.peak_memory_gb(CPU)
    held = torch.ones(int((before + 0.2) * 1e9) // 4)
    assert machine.peak_memory_gb(CPU) >= before + 0.1
    assert machine.peak_memory_gb(CPU) == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, rel=0.01
    )
    assert len(held)


COUNT_FAULTS = """
import resource, sys, torch
from pedsleepmae.machine import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
torch.set_num_threads(1)
work = lambda: torch.ones(16_000_000).exp_()
for _ in range(10):  # until holes of the right size are there
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_kept_is_not_faulted_in_again():
    faults = {}
    for mode in ("default", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", COUNT_FAULTS, mode],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode == 3:
            pytest.skip("the C library is not glibc: nothing to set")
        assert done.returncode == 0, done.stderr
        faults[mode] = int(done.stdout)
    # How many are left depends on where the heap has its holes, which differs from run to run.
    assert faults["keep"] < faults["default"] / 2


def test_a_process_alone_is_the_first_and_sums_nothing():
    world = World()
    values = torch.tensor([1.0, 2.0])
    assert world.is_first
    assert torch.equal(world.sum(values), torch.tensor([1.0, 2.0]))
    assert world.any(True, CPU) is True
    assert world.any(False, CPU) is False
