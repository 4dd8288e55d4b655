"""The machine: device, precision, rate, memory; the processes of a run, the folder it holds."""

import ctypes
import errno
import fcntl
import os
import platform
import resource
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pedsleepmae.errors import SettingsError, UserError

MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns: large enough to reach the peak
MATMUL_SECONDS = 0.5
# x86, 64-bit Arm. Not avx512_bf16: without AMX beside it a step took 1.5 times as long as in
# float32 (Sapphire Rapids whose virtual machine hides AMX).
CPU_FLAGS_BFLOAT16 = {"amx_bf16", "bf16"}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt's parameters in glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that arrays free; False where the C library is not glibc.

    By default glibc gives blocks of 32 MB and more back to the system each time, and the kernel
    hands them out again page by page: a third of the time of work on whole nights or on tensors.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # macOS, musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


class MachineError(UserError):
    """The machine has not what the settings ask for; the message says what to set."""


def choose_device(wanted: str) -> torch.device:
    """ "auto", "cpu" or "cuda" -> device; under torchrun each process takes the GPU of its rank."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MachineError("device is cuda, but torch sees no GPU here; set device to auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """ "auto", "float32" or "bfloat16" -> dtype of the matrix products.

    auto is bfloat16 where the hardware multiplies it faster than float32; read from the processor's
    flags, not timed, so that two runs on a machine never differ in it.
    """
    if wanted == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


@dataclass(frozen=True)
class Compute:
    """Where and how a model is run: device, dtype of its matrix products, examples at a time."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int = 64

    @classmethod
    def choose(cls, device: str, precision: str, batch_size: int = 64) -> "Compute":
        """From the settings of these names; MachineError when the machine has not the device."""
        chosen = choose_device(device)
        return cls(chosen, choose_dtype(precision, chosen), batch_size)

    @property
    def precision(self) -> str:
        """The dtype as the settings name it."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager:
        """Context in which matrix products run in ``dtype``; does nothing for float32."""
        on = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")  # Linux alone; elsewhere float32
    words = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return not CPU_FLAGS_BFLOAT16.isdisjoint(words.split())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's own rate: the fastest of repeated square matrix products, operations/s."""
    size = MATMUL_SIZE[device.type]
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    seconds, until = [], float("inf")
    while time.perf_counter() < until:
        begin = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - begin)
        until = min(until, time.perf_counter() + MATMUL_SECONDS)  # counted from the first one on
    return 2 * size**3 / min(seconds)


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory so far, gigabytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def describe(device: torch.device) -> str:
    """The device in words, for logs and checkpoints."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_advance(read: Callable, jobs: Iterable, n_threads: int, ahead: int) -> Iterator:
    """``read(job)`` of each job in order, computed by threads up to ``ahead`` jobs in advance."""
    jobs, waiting = iter(jobs), deque()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="read-batches")
    try:
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class World:
    """The processes of a run started by torchrun; alone: rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """True when ``flag`` is True in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()


def join_world(device: torch.device) -> World:
    """Meet the other processes that torchrun started, over NCCL on GPUs and gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size())


def leave_world(world: World) -> None:
    """Leave the group of processes that join_world joined."""
    if world.size > 1:
        dist.destroy_process_group()


# ------------------------------------------------------------------ one run in a folder
@contextmanager
def only_run_in(folder: Path, key: str) -> Iterator[None]:
    """Hold a folder (the value of setting ``key``), made if need be, for this process.

    MachineError when another run holds it, SettingsError where none can be made. The
    lock is the system's and ends with the process, however it ends. Its workers may outlive it for
    the recording in hand: the file names the holder, so that they see that it is another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")  # noqa: SIM115 - closed by the `with` below
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise SettingsError(
            f"{key}: {folder} cannot be made or written ({error.strerror}); give a folder of "
            "your own"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            problem = (
                f"{folder} is on a file system without locks ({error.strerror}); give a folder on "
                "a local disk, or on a network disk that is mounted with locks"
            )
            if error.errno in (errno.EAGAIN, errno.EACCES):
                remedy = "wait for its end, or name another folder"
                problem = f"another run is writing to {folder}; {remedy}"
            raise MachineError(problem) from error
        lock.truncate(0)
        lock.write(uuid.uuid4().hex)
        lock.flush()
        yield


def holder(folder: Path) -> str:
    """The run that holds a folder, "" when none ever did."""
    path = Path(folder) / ".lock"
    return path.read_text(encoding="ascii") if path.exists() else ""
