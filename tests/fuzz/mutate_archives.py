"""What can happen to files of named parts: edits of HDF5 objects and of zip archives."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np

from .mutate import NUMBERS, TEXTS, Edit, pick, place_in

# ------------------------------------------------------------------ HDF5
# What readers must look at; who does not read a dataset need not refuse it.
READ = {"signals", "signal", "patient_ids", "study_ids", "onsets_s", "channels_present"}
READ |= {
    f"{kind}_label{s}" for kind in ("sleep", "apnea", "hypop", "desat", "eeg") for s in ("", "s")
}


def _datasets(file: h5py.File) -> list[str]:
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else 0)
    return names or ["x"]


def _odd_array(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """An array of another shape, type or size than ``like``."""
    n = len(like) if like.ndim else 1
    return pick(
        rng,
        (
            *(
                np.float64(np.nan),
                np.zeros(0),
                np.zeros((0, 16, 3840), np.float16),
                like[..., None],
            ),
            *(np.zeros(n + 1, like.dtype), np.zeros(max(n - 1, 0), like.dtype)),
            *(np.full(like.shape, -1, np.int8), np.full(like.shape, np.inf), np.full(n, 1e300)),
            *(np.array([b"text"] * n), np.zeros(n, [("a", "<i4"), ("b", "<f8")])),
            *(np.zeros(like.shape, np.complex64), np.full(like.shape, 2**63 - 1, np.int64)),
            *(np.full(like.shape, 2**64 - 1, np.uint64), np.asfortranarray(like.T)),
        ),
    )


def edit_dataset(path: Path, rng: np.random.Generator) -> str | None:
    """A dataset lost, of another shape, type or length, chunked, or of a huge declared shape."""
    must_refuse, name = None, ""
    with _opened(path) as file:
        if file is None:
            return None
        name = pick(rng, _datasets(file))
        if file[name].nbytes > 2**30:  # an edit before this one declared it
            return None
        values = np.asarray(file[name][()])
        del file[name]
        kind = rng.random()
        if kind < 0.15:
            return None
        if kind < 0.6:
            file[name] = _odd_array(rng, values)
        elif kind < 0.7:
            chunks = tuple(max(1, size // 2) for size in values.shape) or None
            packed = {"chunks": chunks, "compression": "gzip"} if chunks else {}
            file.create_dataset(name, data=values, **packed)
        elif kind < 0.8:
            declared = pick(rng, ((2**40,), (2**31, 16, 3840), (10**9, 16)))
            chunks = tuple(min(size, 64) for size in declared)
            file.create_dataset(name, declared, values.dtype, chunks=chunks)
            must_refuse = f"{name} declares {declared} and holds nothing"
        elif kind < 0.9:
            file.create_group(name)
        else:
            file.create_dataset(name, data=h5py.Empty("f4"))
    return must_refuse if name in READ else None


def edit_codes(path: Path, rng: np.random.Generator) -> str | None:
    """One value of a column of labels, patients or studies."""
    must_refuse = None
    with _opened(path) as file:
        names = (
            [] if file is None else [n for n in _datasets(file) if n.endswith(("labels", "ids"))]
        )
        if names:
            name, new = pick(rng, names), int(pick(rng, (-2, 99, 2**40, -(2**63), 5, -1)))
            try:
                file[name][0] = new
            except OverflowError:  # another edit made the column unsigned
                return None
            if name.endswith("labels") and new not in (5, -1):
                must_refuse = f"{name} holds the code {new}"
    return must_refuse


def edit_attribute(path: Path, rng: np.random.Generator) -> None:
    with _opened(path) as file:
        if file is None:
            return
        name = pick(rng, [*file.attrs, "extra"])
        if name in file.attrs:
            del file.attrs[name]
        values = (
            "",
            "x" * 4000,
            "\0",
            0,
            -1,
            1e300,
            np.nan,
            np.zeros(3),
            np.zeros((2, 2)),
            b"\xff",
        )
        values += (h5py.Empty("f4"), np.array(["a", "b"], "S1"), 2**63 - 1, True, np.complex64(1j))
        if rng.random() < 0.8:
            file.attrs[name] = pick(rng, values)


def edit_link(path: Path, rng: np.random.Generator) -> str | None:
    """A dataset that stands elsewhere: soft, external, external storage, virtual, in a circle."""
    must_refuse, name = None, ""
    with _opened(path) as file:
        if file is None:
            return None
        name = pick(rng, _datasets(file))
        values = np.asarray(file[name][()])
        shape, dtype = values.shape, values.dtype
        other = path.with_name("elsewhere.bin")
        kind = int(rng.integers(6))
        del file[name]
        if kind == 0:
            file[name] = h5py.SoftLink(f"/{pick(rng, [name, 'nowhere', *_datasets(file)])}")
        elif kind == 1:
            file[name] = h5py.ExternalLink(path.name, f"/{name}")
        elif kind == 2 and shape:
            other.write_bytes(rng.bytes(values.nbytes))
            place = [(str(pick(rng, (other, "/dev/zero"))), 0, values.nbytes)]
            file.create_dataset(name, shape, dtype, external=place)
        else:
            with h5py.File(other, "w") as elsewhere:
                elsewhere["x"] = values
            if kind == 3 and values.size and shape:
                layout = h5py.VirtualLayout(shape, dtype)
                layout[...] = h5py.VirtualSource(str(other), "x", shape=shape)
                file.create_virtual_dataset(name, layout)
            else:
                file[name] = h5py.ExternalLink(other.name, "x")
        must_refuse = f"{name} stands in another file" if kind else None
    return must_refuse if name in READ else None


class _opened:
    """The file open for changes, or None where an edit before made it unreadable."""

    def __init__(self, path: Path):
        self.path, self.file = path, None

    def __enter__(self) -> h5py.File | None:
        try:
            self.file = h5py.File(self.path, "r+")
        except (OSError, RuntimeError):
            self.file = None
        return self.file

    def __exit__(self, _kind, error, _trace) -> bool:
        if self.file is not None:
            self.file.close()
        # What h5py itself cannot write or read of a damaged file is no finding of ours.
        return isinstance(error, (OSError, RuntimeError, KeyError, TypeError, ValueError))


HDF5: tuple[Edit, ...] = (edit_dataset, edit_dataset, edit_codes, edit_attribute, edit_link)


# ------------------------------------------------------------------ zip
def members_of(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as file:
            small = [info for info in file.infolist() if info.file_size < 1 << 26]
            return {info.filename: file.read(info) for info in small}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return {}


def write_members(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


def edit_member(path: Path, rng: np.random.Generator) -> None:
    """A member of an archive lost, empty, doubled, renamed, or with a flipped bit and right CRC."""
    members = members_of(path)
    if not members:
        return
    name = pick(rng, list(members))
    kind = int(rng.integers(5))
    content = bytearray(members[name])
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[name] = b""
    elif kind == 2:
        members[pick(rng, ("x", "../x", name + "x", "/abs"))] = members.pop(name)
    elif kind == 3 and content:
        content[place_in(rng, len(content))] ^= 1 << int(rng.integers(8))
        members[name] = bytes(content)
    else:
        members[name] = bytes(content[: len(content) // 2])
    write_members(path, members)


def edit_array(path: Path, rng: np.random.Generator) -> None:
    """An array of an .npz of another shape or type, not finite, pickled, or declared huge."""
    members = members_of(path)
    arrays = [name for name in members if name.endswith(".npy")]
    if not arrays:
        return
    name = pick(rng, arrays)
    try:
        values = np.load(io.BytesIO(members[name]), allow_pickle=False)
    except Exception:  # whatever an edit before has made of it
        return
    buffer, kind = io.BytesIO(), rng.random()
    if kind < 0.4:
        np.save(buffer, _odd_array(rng, values if values.ndim else values[None]))
    elif kind < 0.7 and values.dtype.kind in "fiu":
        odd = np.array(values)
        odd.flat[0] = pick(
            rng, (np.nan, np.inf, 0, -1, 1e300) if odd.dtype.kind == "f" else (0, 99)
        )
        np.save(buffer, odd)
    elif kind < 0.8:
        np.save(buffer, np.array([{"a": 1}, None], object), allow_pickle=True)
    elif kind < 0.9:
        shape = pick(rng, ((10**11,), (10**10, 2), (-1,), (2**62,)))
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
        )
    else:
        np.save(buffer, np.array(pick(rng, TEXTS + NUMBERS)))
    members[name] = buffer.getvalue()
    write_members(path, members)


def add_bomb(path: Path, rng: np.random.Generator) -> None:
    """A member whose few megabytes unpack to three gigabytes of zeros."""
    members = members_of(path)
    name = pick(rng, [*members, "bomb.npy"])
    members.pop(name, None)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (3 << 27,)}
    )
    write_members(path, members)
    _append_deflated_zeros(path, name, buffer.getvalue(), 3 << 30)


def _append_deflated_zeros(path: Path, name: str, start: bytes, n_zeros: int) -> None:
    """Add a member of ``start`` and many zeros, without ever compressing them all."""
    mega = 1 << 20
    compress = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = compress.compress(start) + compress.flush(zlib.Z_FULL_FLUSH)
    block = compress.compress(bytes(mega)) + compress.flush(zlib.Z_FULL_FLUSH)
    packed = head + block * (n_zeros // mega) + compress.flush(zlib.Z_FINISH)
    raw_name, size = name.encode(), len(start) + n_zeros
    with zipfile.ZipFile(path, "a") as file:
        offset = file.start_dir
        info = zipfile.ZipInfo(name)
        info.compress_type, info.header_offset = zipfile.ZIP_DEFLATED, offset
        info.compress_size, info.file_size, info.CRC = len(packed), size, 0
        local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, len(packed), size, 0, 0)
        local = local[:26] + struct.pack("<2H", len(raw_name), 0) + raw_name
        file.fp.seek(offset)
        file.fp.write(local + packed)
        file.start_dir = file.fp.tell()
        file.filelist.append(info)
        file.NameToInfo[name] = info
        file._didModify = True


ZIP: tuple[Edit, ...] = (edit_member,)
NPZ: tuple[Edit, ...] = (edit_array, edit_array, edit_array, edit_member)
