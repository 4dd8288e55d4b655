"""Let the k-th change of a folder's content fail in this process: ENOSPC, EIO, or SIGKILL.

Counted below ``root``: opening to write, each write (of which half reaches the disk before it
fails), fsync, rename, mkdir, and the closing of an HDF5 file that was written (the library writes
in C; half of the file is there when it fails). TensorBoard's own files are left out: a thread
writes them whenever it likes.
"""

import builtins
import errno
import io
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import h5py

KINDS = ("ENOSPC", "EIO", "KILL")
BUFFER_BYTES = 1 << 17  # of a file that is written: fewer and larger writes than by default


class Faults:
    """Counts the operations; the ``k``-th (from 1, 0: none) fails, later ones work again.

    ``told`` lists what was done, as (operation, path below the root).
    """

    def __init__(self, root: Path, k: int, kind: str):
        self.root, self.k, self.kind = os.path.realpath(root), k, kind
        self.told: list[tuple[str, str]] = []

    def concerns(self, path) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return real.startswith(self.root + os.sep) and "tensorboard" not in real

    def step(self, operation: str, path, half: Callable[[], object] = lambda: None) -> None:
        """Count an operation; when it is to fail, do ``half`` of it first."""
        self.told.append((operation, os.path.relpath(os.fsdecode(path), self.root)))
        if len(self.told) != self.k:
            return
        half()
        if self.kind == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number), os.fsdecode(path))


def install(faults: Faults) -> None:
    """From here on the operations of this process are counted, and the k-th fails."""
    real_open, real_fsync, real_mkdir = io.open, os.fsync, os.mkdir
    real_replace, real_rename, real_os_open = os.replace, os.rename, os.open

    class FaultyFile(io.FileIO):
        def write(self, content) -> int:
            raw = bytes(content)
            faults.step(
                "write", self.name, lambda: super(FaultyFile, self).write(raw[: len(raw) // 2])
            )
            return super().write(raw)

    def open_(
        file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **more
    ):
        writes = any(letter in mode for letter in "wax+")
        if not writes or rest or more or not faults.concerns(file):
            return real_open(file, mode, buffering, encoding, errors, newline, *rest, **more)
        faults.step("open", file)
        raw = FaultyFile(os.fspath(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw, BUFFER_BYTES)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def os_open(path, flags, *rest, **more):
        if flags & os.O_CREAT and faults.concerns(path):
            faults.step("open", path)
        return real_os_open(path, flags, *rest, **more)

    def fsync(fd):
        number = fd if isinstance(fd, int) else fd.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if faults.concerns(path):
            faults.step("fsync", path)
        return real_fsync(fd)

    def of_path(name: str, real: Callable) -> Callable:
        def operation(path, *rest, **more):
            target = rest[0] if name == "rename" else path
            if faults.concerns(target):
                faults.step(name, target)
            return real(path, *rest, **more)

        return operation

    builtins.open = io.open = open_
    os.open, os.fsync, os.mkdir = os_open, fsync, of_path("mkdir", real_mkdir)
    os.replace, os.rename = of_path("rename", real_replace), of_path("rename", real_rename)
    _install_hdf5(faults)


def _install_hdf5(faults: Faults) -> None:
    real_init, real_close = h5py.File.__init__, h5py.File.close
    written: dict[int, str] = {}

    def init(self, name, mode="r", *rest, **more):
        counted = mode != "r" and faults.concerns(name)
        if counted:
            faults.step("open", name)
        real_init(self, name, mode, *rest, **more)
        if counted:
            written[id(self)] = os.fsdecode(name)

    def close(self):
        path = written.pop(id(self), None)
        real_close(self)
        if path is not None:
            faults.step("write", path, lambda: os.truncate(path, os.path.getsize(path) // 2))

    h5py.File.__init__, h5py.File.close = init, close


def run_script(script: Path, argv: list[str]) -> int:
    """Exit code of a script, run in this process as from a shell."""
    sys.argv = [str(script), *argv]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0
