"""HDF5 files that strangers may have written, read within bounds.

The library follows links into other files, reads any path that a file names as its raw data, asks
for as much memory as a file claims, and waits for ever over a damaged heap of variable-length
texts. Here nothing is read but numbers that lie in the file itself, and such texts by a process
that can be stopped: this file, run as a script, is that process.
"""

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

# The largest ratio that is believed of a compressed dataset: 15 of 16 channels empty, 12 for the
# last. Deflate alone could claim 1,000 times the file.
LARGEST_RATIO = 200
LARGEST_TEXT = 4096  # bytes of an attribute that is text
FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # those in h5py itself; others would be loaded as plugins
TEXT_SECONDS = 30  # for the texts of FILES_AT_A_TIME files, a few milliseconds each
FILES_AT_A_TIME = 500


class Hdf5Error(ValueError):
    """What is wrong with a file, without its name."""


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """A file open for reading; Hdf5Error for whatever goes wrong with it inside the block."""
    if not path.is_file():  # a pipe would wait
        raise Hdf5Error("is no file" if path.exists() else "is not there")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Hdf5Error:
        raise
    except PermissionError as error:
        raise Hdf5Error(f"cannot be read ({error.strerror})") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Hdf5Error(f"not a whole HDF5 file ({reason})") from error


def dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of plain numbers that lie in this very file and that it can hold."""
    group = file
    for part in name.split("/"):
        if not isinstance(group, h5py.Group) or part not in group:
            raise Hdf5Error(f"holds no {name}")
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise Hdf5Error(f"its {name} is a link; only what lies in the file itself is read")
        group = group[part]
    data = group
    if not isinstance(data, h5py.Dataset) or data.shape is None or data.dtype.kind not in "biuf":
        raise Hdf5Error(f"its {name} is no array of numbers")
    if data.external or data.is_virtual:
        raise Hdf5Error(f"its {name} lies in another file; only what lies in the file is read")
    _check_size(file, name, data)
    return data


def _check_size(file: h5py.File, name: str, data: h5py.Dataset) -> None:
    """Hdf5Error when a dataset claims more than the file can hold, before memory is taken."""
    n_bytes = math.prod(data.shape) * data.dtype.itemsize
    stored, size = data.id.get_storage_size(), file.id.get_filesize()
    layout = data.id.get_create_plist()
    compressed = layout.get_layout() == h5py.h5d.CHUNKED
    if compressed:
        filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
        if filters - FILTERS:
            raise Hdf5Error(f"its {name} is packed by a plugin; give it uncompressed or as gzip")
        n_bytes = max(n_bytes, math.prod(data.chunks) * data.dtype.itemsize)
    fits = stored <= size and n_bytes <= stored * (LARGEST_RATIO if compressed else 1)
    offset = data.id.get_offset()
    if not fits or (offset is not None and offset + n_bytes > size):
        raise Hdf5Error(
            f"its {name} claims {n_bytes:,} bytes, and the file holds {stored:,} of {size:,} for it"
        )


def array(file: h5py.File, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """A dataset in memory, of exactly this shape; integers must be whole numbers."""
    data = dataset(file, name)
    if data.shape != shape:
        raise Hdf5Error(f"its {name} have the shape {data.shape}; {shape} is needed")
    values = data[()]
    if np.issubdtype(dtype, np.integer) and not _are_whole(values):
        raise Hdf5Error(f"its {name} are no whole numbers")
    return values.astype(dtype)


def _are_whole(values: np.ndarray) -> bool:
    if values.dtype.kind != "f":
        return True
    return bool((np.abs(values) < 2**53).all() and not (values % 1).any())  # NaN is not


# ------------------------------------------------------------------ attributes
def attribute(file: h5py.File, name: str, default: Any) -> Any:
    """A number, a boolean, an array of them or a text of fixed length; None for a text of variable
    length, which :func:`variable_texts` reads. ``default``, of the same type, where there is none.
    """
    if name not in file.attrs:
        return default
    found = file.attrs.get_id(name)
    kind = found.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        if kind.is_variable_str():
            return None
        if found.shape != () or found.get_storage_size() > LARGEST_TEXT:
            raise Hdf5Error(f"its attribute {name} is no short text")
        return bytes(file.attrs[name]).decode("utf-8", "replace")
    if found.shape is None or found.dtype.kind not in "biuf" or isinstance(default, str):
        raise Hdf5Error(f"its attribute {name} is not what it should be")
    value = np.asarray(file.attrs[name])
    return value.item() if value.ndim == 0 else value


def variable_texts(paths: Sequence[Path], names: Sequence[str]) -> list[dict[str, str]]:
    """Attributes of variable length, by name, of each file, in their order.

    Hdf5Error names the file over which the library crashed or never came to an end.
    """
    found: list[dict[str, str]] = []
    while len(found) < len(paths):
        some = paths[len(found) : len(found) + FILES_AT_A_TIME]
        asked = json.dumps([list(names), [str(path) for path in some]])
        command = [sys.executable, "-I", __file__]
        lines, why = b"", "the library crashed over it"
        try:
            run = subprocess.run(
                command, input=asked.encode(), capture_output=True, timeout=TEXT_SECONDS
            )
            lines = run.stdout
        except subprocess.TimeoutExpired as error:
            lines, why = error.stdout or b"", "the library found no end"
        told = [json.loads(line) for line in lines.splitlines(keepends=True) if line[-1:] == b"\n"]
        found += told
        if len(told) < len(some):
            raise Hdf5Error(f"{some[len(told)]}: its attributes are damaged ({why})")
    return found


def _tell_texts() -> None:
    """The other side of :func:`variable_texts`: a line of JSON for each file."""
    names, paths = json.load(sys.stdin)
    for path in paths:
        with h5py.File(path, "r") as file:
            texts = {n: str(file.attrs[n])[:LARGEST_TEXT] for n in names if n in file.attrs}
        print(json.dumps(texts), flush=True)


if __name__ == "__main__":
    _tell_texts()
