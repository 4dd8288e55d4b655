"""What can happen to a file: edits of bytes, text, EDF headers, HDF5 objects and zip archives.

An edit is ``edit(path, rng)``: it changes the file in place, drawing all it needs from ``rng``. It
may return a sentence when the file must then be refused, whatever else is in it.
"""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

Edit = Callable[[Path, np.random.Generator], str | None]

NUMBERS = (
    *("0", "-0", "1", "-1", "2", "7", "255", "65536", "-32768", "2147483648", "1e9", "99999999"),
    *("9223372036854775808", "1e30", "1e300", "-1e300", "1e308", "1e999", "1e-300", "0.1"),
    *("inf", "-inf", "nan", "NaN", "Infinity", "", " ", "²", "١٢", "1_000", "0x1F", "1,5", "+3"),
    *(
        "1e",
        "--1",
        "9" * 400,
        "true",
        "null",
        "2024-01-01",
        "30.000000001",
        "172801",
        "172800",
        "1e5",
    ),
)
TEXTS = (
    *("", " ", "\0", "\0" * 8, "=cmd|' /C calc'!A0", "+1", "@x", "<script>alert(1)</script>"),
    *("µV", "ÄÖÜ", "日本語", "\ud7ff", "\x1b[31mred\x1b[0m", "\x07", "\u202e", "a" * 5000, "%s%n"),
    *(
        "{{ 7*7 }}",
        "../../etc/passwd",
        "/dev/zero",
        "C:\\con",
        "'",
        '"',
        '""',
        "\r",
        "\\",
        "#",
        ";",
    ),
)


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def _place(rng: np.random.Generator, n: int) -> int:
    """A place in n bytes: half of them near the start, where headers stand, some near the end."""
    near = min(n, 4096)
    where = rng.random()
    if where < 0.55:
        return int(rng.integers(near)) if near else 0
    if where < 0.75:
        return n - 1 - int(rng.integers(near)) if near else 0
    return int(rng.integers(n)) if n else 0


# ------------------------------------------------------------------ bytes
def flip_bit(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        if raw:
            raw[_place(rng, len(raw))] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)


def set_byte(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    if raw:
        start = _place(rng, len(raw))
        n = int(_pick(rng, (1, 1, 2, 4, 8)))
        raw[start : start + n] = bytes([_pick(rng, (0, 255, 127, 128, 32, 10, 1))]) * n
    path.write_bytes(raw)


def truncate(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    n = _pick(rng, (0, 1, _place(rng, len(raw)), len(raw) - 1, len(raw) // 2))
    path.write_bytes(raw[: max(0, int(n))])


def cut_out(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    start = _place(rng, len(raw))
    path.write_bytes(raw[:start] + raw[start + int(rng.integers(1, 65)) :])


def double(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    start = _place(rng, len(raw))
    piece = raw[start : start + int(rng.integers(1, 513))]
    path.write_bytes(raw[:start] + piece * int(rng.integers(2, 6)) + raw[start:])


def insert_bytes(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    start = _place(rng, len(raw))
    pieces = [b"\0" * 16, rng.bytes(8), b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\x80", b"\r\n"]
    pieces += [_pick(rng, NUMBERS).encode(), _pick(rng, TEXTS).encode("utf-8", "replace")]
    piece = _pick(rng, pieces)
    path.write_bytes(raw[:start] + piece + raw[start:])


def garbage(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    n = min(len(raw), 1 << 14)
    path.write_bytes(_pick(rng, (rng.bytes(n), b"\0" * n, b"\xff" * n, rng.bytes(n) + raw)))


def of_other_kind(path: Path, rng: np.random.Generator) -> None:
    """A file of quite another format under this name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "b")
    picture = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    path.write_bytes(
        _pick(rng, (archive.getvalue(), picture, page, b"\x1f\x8b\x08" + b"\0" * 9, b"%PDF-1.4\n"))
    )


BYTES: tuple[Edit, ...] = (flip_bit, set_byte, truncate, cut_out, double, insert_bytes)
BYTES += (garbage, of_other_kind)

# ------------------------------------------------------------------ text
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z_ ]*[A-Za-z_]")


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _replace(rng: np.random.Generator, text: str, pattern: re.Pattern, new: str) -> str:
    found = list(pattern.finditer(text))
    if not found:
        return text + new
    match = _pick(rng, found)
    return text[: match.start()] + new + text[match.end() :]


def replace_number(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    for _ in range(int(rng.integers(1, 4))):
        text = _replace(rng, text, _NUMBER, _pick(rng, NUMBERS))
    _write(path, text)


def replace_column(path: Path, rng: np.random.Generator) -> None:
    """One field of every line becomes the same number."""
    new, column = _pick(rng, NUMBERS), int(rng.integers(4))
    lines = []
    for line in _text(path).split("\n"):
        separator = "\t" if "\t" in line else ","
        fields = line.split(separator)
        if column < len(fields) and _NUMBER.fullmatch(fields[column].strip()):
            fields[column] = new
        lines.append(separator.join(fields))
    _write(path, "\n".join(lines))


def replace_word(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    others = [match[0] for match in _WORD.finditer(text)] or [""]
    _write(path, _replace(rng, text, _WORD, _pick(rng, (*TEXTS, *others))))


def edit_lines(path: Path, rng: np.random.Generator) -> None:
    """A line lost, doubled, moved, ragged, very long or repeated very often."""
    lines = _text(path).split("\n")
    i, kind = int(rng.integers(len(lines))), int(rng.integers(7))
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(i, lines[i])
    elif kind == 2:
        rng.shuffle(lines)
    elif kind == 3:
        lines[i] += _pick(rng, (",extra", "\textra", ",,,,", "\t\t\t", ',"', '"', ":", "- x"))
    elif kind == 4:
        lines[i] = lines[i] * 2000
    elif kind == 5:
        lines[i:i] = [lines[i]] * 3000
    else:
        lines[i] = lines[i].replace(_pick(rng, ("\t", ",", ":", "<", ">", "=")), "", 1)
    _write(path, "\n".join(lines))


def insert_text(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    place = int(rng.integers(len(text) + 1))
    _write(path, text[:place] + _pick(rng, (*TEXTS, *NUMBERS)) + text[place:])


def of_other_encoding(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    text = text.replace("e", _pick(rng, ("e", "é", "ß", "µ")), 3)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    encodings = (
        "latin-1",
        "utf-16",
        "utf-16-le",
        "utf-32",
        "utf-8-sig",
        "cp037",
        "utf-7",
        "cp1252",
    )
    path.write_bytes(text.encode(_pick(rng, encodings), "replace"))


def of_other_newlines(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", _pick(rng, (b"\r", b"\r\n", b"\x0b", b""))))


def regrid(path: Path, rng: np.random.Generator) -> None:
    """Onsets and durations on a grid of another length than 30 s, or drifting."""
    factor = _pick(rng, (2 / 3, 1 / 3, 1 / 30, 2, 1.001, 0.5))
    lines = []
    for line in _text(path).split("\n"):
        fields = line.split("\t")
        for i, field in enumerate(fields[:2]):
            if _NUMBER.fullmatch(field):
                fields[i] = f"{float(field) * factor:.6g}"
        lines.append("\t".join(fields))
    _write(path, "\n".join(lines))


def many_long_rows(path: Path, rng: np.random.Generator) -> None:
    """A few thousand rows that claim two days each."""
    lines = [line for line in _text(path).split("\n") if line.strip()]
    for i, line in enumerate(lines):
        fields = line.split("\t")
        if len(fields) > 1 and _NUMBER.fullmatch(fields[1]):
            fields[1] = _pick(rng, ("172800", "172799", "86400"))
        lines[i] = "\t".join(fields)
    _write(path, "\n".join(lines * (3000 // max(1, len(lines)))))


TEXT: tuple[Edit, ...] = (replace_number, replace_number, replace_column, replace_word, edit_lines)
TEXT += (insert_text, of_other_encoding, of_other_newlines)


def declare_xml(path: Path, rng: np.random.Generator) -> None:
    """Another declared encoding, entities in entities, a foreign document type, deep nesting."""
    text = re.sub(r"^<\?xml[^>]*\?>", "", _text(path)).lstrip()
    root = re.match(r"<(\w+)", text)
    name = root[1] if root else "x"
    kind = int(rng.integers(5))
    if kind == 0:
        names = ("unknown-8bit", "utf-7", "utf-16", "rot13", "base64", "cp037", "", "'", "idna")
        text = f'<?xml version="1.0" encoding="{_pick(rng, names)}"?>\n{text}'
    elif kind == 1:
        bomb = '<!ENTITY a0 "ha">' + "".join(
            f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)
        )
        text = f"<!DOCTYPE {name} [{bomb}]>\n{text}".replace("<Start>", "<Start>&a9;", 1)
    elif kind == 2:
        text = f'<!DOCTYPE {name} SYSTEM "file:///dev/zero">\n{text}'
    elif kind == 3:
        depth = int(_pick(rng, (100, 30_000)))
        text = text.replace("</Start>", "<d>" * depth + "</d>" * depth + "</Start>", 1)
    else:
        text = f'<?xml version="{_pick(rng, NUMBERS)}"?>\n{text}'
    _write(path, text)


def edit_json(path: Path, rng: np.random.Generator) -> None:
    """A value of another type at a place of the tree, or another tree altogether."""
    values = (None, [], {}, "", "x", 0, -1, 1e308, float("nan"), float("inf"), True, 10**400)
    values += ([1, 2, 3], {"a": 1}, [[]], "²", ["x"] * 3, {"x": None}, [None], 2**63)
    new = _pick(rng, values)
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        tree = None
    if not isinstance(tree, dict) or not tree or rng.random() < 0.1:
        path.write_text(json.dumps(new))
        return
    here = tree
    while True:
        key = _pick(rng, list(here))
        if isinstance(here[key], dict) and here[key] and rng.random() < 0.6:
            here = here[key]
            continue
        break
    kind = rng.random()
    if kind < 0.65:
        here[key] = new
    elif kind < 0.85:
        del here[key]
    else:
        here[_pick(rng, ("extra", "", "version", "²"))] = new
    path.write_text(json.dumps(tree))


def edit_yaml(path: Path, rng: np.random.Generator) -> None:
    lines = _text(path).rstrip("\n").split("\n")
    i = int(rng.integers(len(lines)))
    key = lines[i].split(":")[0]
    values = ("", "~", "[]", "{}", "[a, b", "{a: {b: c}}", "!!python/object/apply:os.system [true]")
    values += ("*x", "&x [*x]", "!!binary aGk=", "!!set {a}", "2024-01-01", "|", ">-", "'", '"')
    values += ("yes", "0o17", "1:30", "!!float x", "? a", "\t", "@x", "`x`", "%x", "{}{}", *NUMBERS)
    lines[i] = f"{key}: {_pick(rng, values)}"
    if rng.random() < 0.15:
        bomb = "a0: &a0 [x, x]\n" + "".join(
            f"a{j}: &a{j} [{', '.join([f'*a{j - 1}'] * 9)}]\n" for j in range(1, 9)
        )
        lines.append(
            _pick(rng, (bomb, "<<: *x", "? [a, b]\n: c", "---", "...", "- a", key + ": 1"))
        )
    _write(path, "\n".join(lines) + "\n")


# ------------------------------------------------------------------ EDF
MAIN_FIELDS = {
    **{"version": (0, 8), "patient": (8, 80), "recording": (88, 80), "startdate": (168, 8)},
    **{"starttime": (176, 8), "header_bytes": (184, 8), "reserved": (192, 44)},
    **{"n_records": (236, 8), "record_s": (244, 8), "n_signals": (252, 4)},
}
SIGNAL_FIELDS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # widths: label, transducer, unit, ranges, …
LABEL, UNIT, RANGES, PER_RECORD, ANY = 0, 2, (3, 4, 5, 6), 8, range(10)
LABELS = ("EEG C3-M2", "SpO2", "EOG LOC-M2", "EDF Annotations", "OSAT", "EEG C3", "M2", "Snore")
UNITS = ("V", "uV", "mV", "nV", "pV", "%", "", "1", "mmHg", "kPa", "\xb5V", "Ohm", "uv", "degC")


def _as_field(text: str, width: int) -> bytes:
    return text.encode("latin-1", "replace")[:width].ljust(width)


def edit_main_field(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    start, width = _pick(rng, list(MAIN_FIELDS.values()))
    raw[start : start + width] = _as_field(_pick(rng, NUMBERS + TEXTS + ("EDF+D", "EDF+C")), width)
    path.write_bytes(raw)


def edit_signal_field(path: Path, rng: np.random.Generator) -> None:
    """A field of one signal, or of all of them."""
    raw = bytearray(path.read_bytes())
    try:
        n = int(raw[252:256])
    except ValueError:
        return
    column = int(_pick(rng, (LABEL, UNIT, UNIT, *RANGES, *RANGES, PER_RECORD, *ANY)))
    width = SIGNAL_FIELDS[column]
    values = {LABEL: LABELS + TEXTS, UNIT: UNITS + TEXTS}.get(column, (*NUMBERS, "1e-6", "1e6"))
    text = _pick(rng, values)
    chosen = range(n) if rng.random() < 0.3 else [int(rng.integers(max(n, 1)))]
    for i in chosen:
        start = 256 + n * sum(SIGNAL_FIELDS[:column]) + i * width
        raw[start : start + width] = _as_field(text, width)
    path.write_bytes(raw)


def edit_samples(path: Path, rng: np.random.Generator) -> None:
    """A stretch of the data records becomes one value, noise or a repeated step."""
    raw = bytearray(path.read_bytes())
    n_header = 256 * (1 + int(raw[252:256])) if raw[252:256].strip().isdigit() else 256
    start = min(len(raw), n_header + int(rng.integers(max(len(raw) - n_header, 1))))
    n = int(_pick(rng, (64, 4096, len(raw))))
    stretch = len(raw[start : start + n])
    filling = _pick(rng, (b"\0\x80", b"\xff\x7f", b"\0\0", rng.bytes(2), b"\0\x80\xff\x7f"))
    noise = rng.bytes(stretch) if rng.random() < 0.3 else (filling * stretch)[:stretch]
    raw[start : start + n] = noise
    path.write_bytes(raw)


def edit_annotation_bytes(path: Path, rng: np.random.Generator) -> None:
    """Numbers, separators and texts of an EDF+ annotation signal."""
    raw = path.read_bytes()
    start = raw.find(b"\x14\x14")
    head, tail = (raw[:start], raw[start:]) if start >= 0 else (raw[:512], raw[512:])
    kind = int(rng.integers(4))
    if kind == 0:
        found = list(re.finditer(rb"[+-]\d+(\.\d+)?", tail))
        if found:
            match, new = _pick(rng, found), b"+" + _pick(rng, NUMBERS).encode()
            tail = tail[: match.start()] + new.ljust(len(match[0])) + tail[match.end() :]
    elif kind == 1:
        old = _pick(rng, (b"\x14", b"\x15", b"\0", b"+"))
        places = [match.start() for match in re.finditer(re.escape(old), tail)]
        if places:
            place = _pick(rng, places)
            new = _pick(rng, (b"\x14", b"\x15", b"\0", b"+", b" ", b"\xff"))
            tail = tail[:place] + new + tail[place + 1 :]
    elif kind == 2:
        tail = tail.replace(
            b"Sleep stage", _pick(rng, (b"Sleep\xe4stage", b"\xff\xfe" * 5, b"")), 2
        )
    else:
        tail = tail.replace(
            b"\0", _pick(rng, (b"+", b"\x14", b"x", b"\x15")), int(rng.integers(40))
        )
    path.write_bytes(head + tail)


EDF: tuple[Edit, ...] = (edit_main_field, edit_main_field, edit_signal_field, edit_signal_field)
EDF += (edit_signal_field, edit_signal_field, edit_samples)


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
    return _pick(
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
        name = _pick(rng, _datasets(file))
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
            declared = _pick(rng, ((2**40,), (2**31, 16, 3840), (10**9, 16)))
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
            name, new = _pick(rng, names), int(_pick(rng, (-2, 99, 2**40, -(2**63), 5, -1)))
            file[name][0] = new
            if name.endswith("labels") and new not in (5, -1):
                must_refuse = f"{name} holds the code {new}"
    return must_refuse


def edit_attribute(path: Path, rng: np.random.Generator) -> None:
    with _opened(path) as file:
        if file is None:
            return
        name = _pick(rng, [*file.attrs, "extra"])
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
            file.attrs[name] = _pick(rng, values)


def edit_link(path: Path, rng: np.random.Generator) -> str | None:
    """A dataset that stands elsewhere: soft, external, external storage, virtual, in a circle."""
    must_refuse, name = None, ""
    with _opened(path) as file:
        if file is None:
            return None
        name = _pick(rng, _datasets(file))
        values = np.asarray(file[name][()])
        shape, dtype = values.shape, values.dtype
        other = path.with_name("elsewhere.bin")
        kind = int(rng.integers(6))
        del file[name]
        if kind == 0:
            file[name] = h5py.SoftLink(f"/{_pick(rng, [name, 'nowhere', *_datasets(file)])}")
        elif kind == 1:
            file[name] = h5py.ExternalLink(path.name, f"/{name}")
        elif kind == 2 and shape:
            other.write_bytes(rng.bytes(values.nbytes))
            place = [(str(_pick(rng, (other, "/dev/zero"))), 0, values.nbytes)]
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
def _members(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as file:
            small = [info for info in file.infolist() if info.file_size < 1 << 26]
            return {info.filename: file.read(info) for info in small}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return {}


def _write_members(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)


def edit_member(path: Path, rng: np.random.Generator) -> None:
    """A member of an archive lost, empty, doubled, renamed, or with a flipped bit and right CRC."""
    members = _members(path)
    if not members:
        return
    name = _pick(rng, list(members))
    kind = int(rng.integers(5))
    content = bytearray(members[name])
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[name] = b""
    elif kind == 2:
        members[_pick(rng, ("x", "../x", name + "x", "/abs"))] = members.pop(name)
    elif kind == 3 and content:
        content[_place(rng, len(content))] ^= 1 << int(rng.integers(8))
        members[name] = bytes(content)
    else:
        members[name] = bytes(content[: len(content) // 2])
    _write_members(path, members)


def edit_array(path: Path, rng: np.random.Generator) -> None:
    """An array of an .npz of another shape or type, not finite, pickled, or declared huge."""
    members = _members(path)
    arrays = [name for name in members if name.endswith(".npy")]
    if not arrays:
        return
    name = _pick(rng, arrays)
    values = np.load(io.BytesIO(members[name]), allow_pickle=False)
    buffer, kind = io.BytesIO(), rng.random()
    if kind < 0.4:
        np.save(buffer, _odd_array(rng, values if values.ndim else values[None]))
    elif kind < 0.7 and values.dtype.kind in "fiu":
        odd = np.array(values)
        odd.flat[0] = _pick(
            rng, (np.nan, np.inf, 0, -1, 1e300) if odd.dtype.kind == "f" else (0, 99)
        )
        np.save(buffer, odd)
    elif kind < 0.8:
        np.save(buffer, np.array([{"a": 1}, None], object), allow_pickle=True)
    elif kind < 0.9:
        shape = _pick(rng, ((10**11,), (10**10, 2), (-1,), (2**62,)))
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
        )
    else:
        np.save(buffer, np.array(_pick(rng, TEXTS + NUMBERS)))
    members[name] = buffer.getvalue()
    _write_members(path, members)


def add_bomb(path: Path, rng: np.random.Generator) -> None:
    """A member whose few megabytes unpack to three gigabytes of zeros."""
    members = _members(path)
    name = _pick(rng, [*members, "bomb.npy"])
    members.pop(name, None)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (3 << 27,)}
    )
    _write_members(path, members)
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
