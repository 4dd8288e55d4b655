"""Inputs run one by one in forked workers, each within bounds of time and memory.

A worker that hangs is killed, one that dies is replaced; both are outcomes of the input in hand.
The parent itself reads nothing that was mutated and starts no threads, so that it can fork at any
time.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import pedsleepmae
from pedsleepmae.errors import UserError

from .mutate import Edit

ROOT = Path(pedsleepmae.__file__).resolve().parents[1]
HERE = str(Path(__file__).parent)
PR_SET_PDEATHSIG = 1  # of prctl: no worker outlives its parent, however that ends
MAX_EDITS = 4
INPUTS_PER_WORKER = 300  # then a fresh one, so that nothing piles up
MEMORY_WORDS = re.compile(r"MemoryError|[Cc]annot allocate memory|can't allocate memory|bad_alloc")
ACCEPTED, OWN, UNFORESEEN = "accepted", "own error", "unforeseen"
UNCAUGHT, WRONG, HANG, MEMORY = "uncaught", "wrong", "hang", "memory"
KINDS = (ACCEPTED, OWN, UNFORESEEN, UNCAUGHT, WRONG, HANG, MEMORY)
FAILURES = (UNCAUGHT, WRONG, HANG, MEMORY)


class Wrong(Exception):
    """An input was accepted that makes no sense, or an error shows what it must not."""


class Refused(Exception):
    """The user was told in a sentence why not, by a reason in a table or an exit code."""


class Unforeseen(Exception):
    """The border around a recording caught what no reader had named; ``frames``: its traceback."""

    def __init__(self, sentence: str, frames: str = ""):
        super().__init__(sentence)
        self.frames = frames


@dataclass(frozen=True)
class Reader:
    """Something that reads users' files.

    ``build(folder)`` writes good files; ``targets`` are patterns of those that are edited, by
    ``edits``; ``read(folder)`` reads them, raises what the package raises, and :class:`Wrong` for
    a result that makes no sense. ``mends``: what is damaged is made anew instead of refused.
    """

    name: str
    build: Callable[[Path], object]
    targets: tuple[str, ...]
    edits: tuple[Edit, ...]
    read: Callable[[Path, np.random.Generator], object]
    weight: float = 1.0
    seconds: float = 10.0
    mends: bool = False


@dataclass(frozen=True)
class Bounds:
    """Seconds of wall clock, as a multiple of a reader's own, and bytes of one input."""

    slower: float = 1.0
    n_bytes: int = 2_500_000_000


@dataclass(frozen=True)
class Job:
    """The ``number``-th input of a reader; ``only``: one of its edits alone."""

    reader: Reader
    number: int
    seed: int
    only: int | None = None

    def plan(self) -> list[tuple[Edit, int]]:
        """The edits of this input, each with a seed of its own."""
        rng = np.random.default_rng([self.seed, zlib.crc32(self.reader.name.encode()), self.number])
        n = min(MAX_EDITS, int(rng.geometric(0.55)))
        places = rng.integers(len(self.reader.edits), size=n)
        edits = [(self.reader.edits[k], int(rng.integers(2**32))) for k in places]
        return edits if self.only is None else [edits[self.only]]


@dataclass(frozen=True)
class Outcome:
    """What became of an input; ``what`` and ``where`` say it in a line, ``edits`` what was done."""

    kind: str
    what: str = ""
    where: str = ""
    edits: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int = 0


# ------------------------------------------------------------------ in the worker
def run_job(job: Job, pristine: Path, scratch: Path) -> Outcome:
    """Edit a copy of the reader's good files and read it."""
    for old in scratch.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    folder = scratch / "input"
    shutil.copytree(pristine / job.reader.name, folder, symlinks=True)
    must_refuse, done = None, []
    for edit, edit_seed in job.plan():
        rng = np.random.default_rng(edit_seed)
        found = (path for pattern in job.reader.targets for path in folder.glob(pattern))
        targets = sorted(path for path in found if stat.S_ISREG(path.lstat().st_mode))
        if not targets:
            continue
        target = targets[int(rng.integers(len(targets)))]
        must_refuse = edit(target, rng)
        name = os.fsencode(target.relative_to(folder)).decode("utf-8", "backslashreplace")
        done.append(f"{edit.__name__}({name})")
        (scratch / "edits.txt").write_text("\n".join(done), "utf-8", "backslashreplace")
    _reset_peak()
    os.chdir(folder)
    start = time.monotonic()
    kind, what, where = _classify(job, folder, must_refuse)
    seconds, peak = time.monotonic() - start, _peak_bytes()
    return Outcome(kind, what, where, tuple(done), seconds, peak)


def _classify(job: Job, folder: Path, must_refuse: str | None) -> tuple[str, str, str]:
    rng = np.random.default_rng([job.seed, job.number])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            job.reader.read(folder, rng)
        if must_refuse and not job.reader.mends:
            raise Wrong(f"accepted although {must_refuse}")
        return ACCEPTED, "", ""
    except Wrong as error:
        return WRONG, _line(error), ""
    except Refused as error:
        return OWN, _line(error), ""
    except Unforeseen as error:
        kind = MEMORY if MEMORY_WORDS.search(str(error)) else UNFORESEEN
        return kind, _line(error), _last_of_ours(error.frames)
    except BaseException as error:
        frames = "".join(traceback.format_exception(error))
        what = f"{type(error).__name__}: {_line(error)}"
        if isinstance(error, MemoryError) or MEMORY_WORDS.search(frames):
            return MEMORY, what, _last_of_ours(frames)
        if isinstance(error, UserError):
            if not " ".join(str(error).split()).isprintable() or not str(error).strip():
                return WRONG, f"no printable sentence: {what}", _last_of_ours(frames)
            kind = UNFORESEEN if "unforeseen " in str(error) else OWN
            return kind, what, _last_of_ours(frames)
        if _stumbled(error):
            return WRONG, f"accepted, and then {what}", _last_of_ours(frames)
        return UNCAUGHT, what, _last_of_ours(frames)


def _stumbled(error: BaseException) -> bool:
    """True when it is our own look at what was accepted that failed, not the package."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    ours = [name for name in files if name.startswith((f"{ROOT}/pedsleepmae", HERE))]
    return bool(ours) and ours[-1].startswith(HERE)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return "".join(c if c.isprintable() else "?" for c in text)


def _last_of_ours(frames: str) -> str:
    """The innermost line of the package, and that of the library below it."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', frames)
    ours = [k for k, (path, _, _) in enumerate(found) if f"{ROOT}/pedsleepmae" in path]
    ours = ours or [k for k, (path, _, _) in enumerate(found) if str(ROOT) in path]
    if not ours:
        return ""
    path, line, name = found[ours[-1]]
    return f"{Path(path).relative_to(ROOT)}:{line} {name}"


def _reset_peak() -> None:
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(match[1]) if match else 0


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _serve(
    connection, readers: dict[str, Reader], pristine: Path, scratch: Path, bounds: Bounds
) -> None:
    """A worker: jobs in, outcomes out, until the parent closes the pipe."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    limit = _status_bytes("VmSize") + bounds.n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 30, 4 << 30))
    said = os.open(scratch.with_suffix(".said"), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(said, number)
    gc.freeze()  # what was there before the first input is not looked at after each
    while True:
        try:
            name, *rest = connection.recv()
        except EOFError:
            os._exit(0)
        job = Job(readers[name], *rest)
        os.ftruncate(said, 0)
        try:
            outcome = run_job(job, pristine, scratch)
        except BaseException as error:  # the harness itself
            outcome = Outcome(UNCAUGHT, f"harness: {error!r}", traceback.format_exc()[-300:])
        if outcome.peak_bytes > bounds.n_bytes:
            what = f"{outcome.peak_bytes / 1e9:.1f} GB"
            outcome = Outcome(MEMORY, what, outcome.where, outcome.edits, outcome.seconds)
        connection.send(outcome)


# ------------------------------------------------------------------ in the parent
@dataclass
class _Worker:
    process: multiprocessing.Process
    connection: multiprocessing.connection.Connection
    scratch: Path
    job: Job | None = None
    deadline: float = 0.0
    n_done: int = 0


class Pool:
    """Forked workers that run jobs; ``run`` yields (job, outcome, folder with the input)."""

    def __init__(
        self, readers: list[Reader], pristine: Path, work_dir: Path, n_workers: int, bounds: Bounds
    ):
        self.readers = {reader.name: reader for reader in readers}
        self.pristine, self.work_dir, self.bounds = pristine, work_dir, bounds
        self.fork = multiprocessing.get_context("fork")
        self.n_started = 0
        self.workers = [self._start() for _ in range(n_workers)]

    def _start(self) -> _Worker:
        scratch = self.work_dir / f"worker{self.n_started}"
        self.n_started += 1
        scratch.mkdir(parents=True)
        ours, theirs = self.fork.Pipe()
        arguments = (theirs, self.readers, self.pristine, scratch, self.bounds)
        process = self.fork.Process(target=_serve, args=arguments, daemon=True)
        sys.stdout.flush()
        process.start()
        theirs.close()
        return _Worker(process, ours, scratch)

    def _replace(self, worker: _Worker) -> None:
        self._end(worker)
        self.workers[self.workers.index(worker)] = self._start()

    def _end(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        for path in (worker.scratch, worker.scratch.with_suffix(".said")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)

    def run(self, jobs: Iterable[Job], more: list[Job]) -> Iterator[tuple[Job, Outcome, Path]]:
        """All jobs, and those that the caller puts into ``more`` on the way."""
        jobs = iter(jobs)
        while True:
            for worker in self.workers:
                if worker.job is None:
                    job = more.pop() if more else next(jobs, None)
                    if job is not None:
                        self._give(worker, job)
            busy = [worker for worker in self.workers if worker.job]
            if not busy:
                return
            soonest = min(worker.deadline for worker in busy)
            ready = multiprocessing.connection.wait(
                [worker.connection for worker in busy], max(0.0, soonest - time.monotonic())
            )
            for worker in busy:
                outcome = None
                if worker.connection in ready:
                    outcome = self._receive(worker)
                elif time.monotonic() > worker.deadline:
                    allowed = worker.job.reader.seconds * self.bounds.slower
                    outcome = Outcome(HANG, f"over {allowed:g} s", _stack(worker))
                if outcome is None:
                    continue
                edits = worker.scratch / "edits.txt"
                if not outcome.edits and edits.exists():
                    outcome = Outcome(
                        outcome.kind,
                        outcome.what,
                        outcome.where,
                        tuple(edits.read_text().split("\n")),
                    )
                job, worker.job = worker.job, None
                worker.n_done += 1
                yield job, outcome, worker.scratch / "input"
                spent = outcome.kind in (HANG, MEMORY) or worker.n_done >= INPUTS_PER_WORKER
                if spent or not worker.process.is_alive():
                    self._replace(worker)

    def _give(self, worker: _Worker, job: Job) -> None:
        worker.job = job
        worker.deadline = time.monotonic() + job.reader.seconds * self.bounds.slower
        worker.connection.send((job.reader.name, job.number, job.seed, job.only))

    def _receive(self, worker: _Worker) -> Outcome:
        try:
            return worker.connection.recv()
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Outcome(UNCAUGHT, f"the process died of {name}")

    def close(self) -> None:
        for worker in self.workers:
            self._end(worker)


def _stack(worker: _Worker) -> str:
    """Where a hanging worker is, as far as the system tells."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{worker.process.pid}/wchan").read_text().strip("0")
    return ""


@dataclass
class Finding:
    """Outcomes of one reader that are alike."""

    reader: str
    kind: str
    what: str
    where: str
    n: int = 0
    number: int = 0
    edits: tuple[str, ...] = ()
    repro: Path | None = None


@dataclass
class Tally:
    """Counts by reader and kind, and the findings by what they have in common."""

    counts: dict[str, Counter] = field(default_factory=dict)
    findings: dict[tuple, Finding] = field(default_factory=dict)
    peak_bytes: int = 0
    seconds: Counter = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, job: Job, outcome: Outcome) -> Finding | None:
        """Count an outcome; its finding when it is the first of its like."""
        self.counts.setdefault(job.reader.name, Counter())[outcome.kind] += 1
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)
        self.seconds[job.reader.name] += outcome.seconds
        self.slowest = max(self.slowest, (outcome.seconds, f"{job.reader.name} {job.number}"))
        if outcome.kind in (ACCEPTED, OWN):
            return None
        found = self.findings.setdefault(
            like(job, outcome),
            Finding(job.reader.name, outcome.kind, outcome.what, outcome.where),
        )
        found.n += 1
        if found.n == 1:
            found.number, found.edits = job.number, outcome.edits
            return found
        return None

    def n_failures(self) -> int:
        return sum(counts[kind] for counts in self.counts.values() for kind in FAILURES)


def like(job: Job, outcome: Outcome) -> tuple:
    """What findings have in common: reader, kind, type of error, line of the package."""
    what = re.sub(r"[-\d.e+]+|'[^']*'|\"[^\"]*\"", "#", outcome.what)[:50]
    if outcome.where:
        what = outcome.what.split(":")[0][:40]
    return job.reader.name, outcome.kind, what, outcome.where
