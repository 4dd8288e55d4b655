"""What can happen to a file: edits of bytes, text (XML, JSON, YAML) and EDF headers.

An edit is ``edit(path, rng)``: it changes the file in place, drawing all it needs from ``rng``. It
may return a sentence when the file must then be refused, whatever else is in it.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

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


def pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def place_in(rng: np.random.Generator, n: int) -> int:
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
            raw[place_in(rng, len(raw))] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)


def set_byte(path: Path, rng: np.random.Generator) -> None:
    raw = bytearray(path.read_bytes())
    if raw:
        start = place_in(rng, len(raw))
        n = int(pick(rng, (1, 1, 2, 4, 8)))
        raw[start : start + n] = bytes([pick(rng, (0, 255, 127, 128, 32, 10, 1))]) * n
    path.write_bytes(raw)


def truncate(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    n = pick(rng, (0, 1, place_in(rng, len(raw)), len(raw) - 1, len(raw) // 2))
    path.write_bytes(raw[: max(0, int(n))])


def cut_out(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    start = place_in(rng, len(raw))
    path.write_bytes(raw[:start] + raw[start + int(rng.integers(1, 65)) :])


def double(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    start = place_in(rng, len(raw))
    piece = raw[start : start + int(rng.integers(1, 513))]
    path.write_bytes(raw[:start] + piece * int(rng.integers(2, 6)) + raw[start:])


def insert_bytes(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    start = place_in(rng, len(raw))
    pieces = [b"\0" * 16, rng.bytes(8), b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\x80", b"\r\n"]
    pieces += [pick(rng, NUMBERS).encode(), pick(rng, TEXTS).encode("utf-8", "replace")]
    piece = pick(rng, pieces)
    path.write_bytes(raw[:start] + piece + raw[start:])


def garbage(path: Path, rng: np.random.Generator) -> None:
    raw = path.read_bytes()
    n = min(len(raw), 1 << 14)
    path.write_bytes(pick(rng, (rng.bytes(n), b"\0" * n, b"\xff" * n, rng.bytes(n) + raw)))


def of_other_kind(path: Path, rng: np.random.Generator) -> None:
    """A file of quite another format under this name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "b")
    picture = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    path.write_bytes(
        pick(rng, (archive.getvalue(), picture, page, b"\x1f\x8b\x08" + b"\0" * 9, b"%PDF-1.4\n"))
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
    match = pick(rng, found)
    return text[: match.start()] + new + text[match.end() :]


def replace_number(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    for _ in range(int(rng.integers(1, 4))):
        text = _replace(rng, text, _NUMBER, pick(rng, NUMBERS))
    _write(path, text)


def replace_column(path: Path, rng: np.random.Generator) -> None:
    """One field of every line becomes the same number."""
    new, column = pick(rng, NUMBERS), int(rng.integers(4))
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
    _write(path, _replace(rng, text, _WORD, pick(rng, (*TEXTS, *others))))


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
        lines[i] += pick(rng, (",extra", "\textra", ",,,,", "\t\t\t", ',"', '"', ":", "- x"))
    elif kind == 4:
        lines[i] = lines[i] * 2000
    elif kind == 5:
        lines[i:i] = [lines[i]] * 3000
    else:
        lines[i] = lines[i].replace(pick(rng, ("\t", ",", ":", "<", ">", "=")), "", 1)
    _write(path, "\n".join(lines))


def insert_text(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    place = int(rng.integers(len(text) + 1))
    _write(path, text[:place] + pick(rng, (*TEXTS, *NUMBERS)) + text[place:])


def of_other_encoding(path: Path, rng: np.random.Generator) -> None:
    text = _text(path)
    text = text.replace("e", pick(rng, ("e", "é", "ß", "µ")), 3)
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
    path.write_bytes(text.encode(pick(rng, encodings), "replace"))


def of_other_newlines(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", pick(rng, (b"\r", b"\r\n", b"\x0b", b""))))


def regrid(path: Path, rng: np.random.Generator) -> None:
    """Onsets and durations on a grid of another length than 30 s, or drifting."""
    factor = pick(rng, (2 / 3, 1 / 3, 1 / 30, 2, 1.001, 0.5))
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
            fields[1] = pick(rng, ("172800", "172799", "86400"))
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
        text = f'<?xml version="1.0" encoding="{pick(rng, names)}"?>\n{text}'
    elif kind == 1:
        bomb = '<!ENTITY a0 "ha">' + "".join(
            f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)
        )
        text = f"<!DOCTYPE {name} [{bomb}]>\n{text}".replace("<Start>", "<Start>&a9;", 1)
    elif kind == 2:
        text = f'<!DOCTYPE {name} SYSTEM "file:///dev/zero">\n{text}'
    elif kind == 3:
        depth = int(pick(rng, (100, 30_000)))
        text = text.replace("</Start>", "<d>" * depth + "</d>" * depth + "</Start>", 1)
    else:
        text = f'<?xml version="{pick(rng, NUMBERS)}"?>\n{text}'
    _write(path, text)


def edit_json(path: Path, rng: np.random.Generator) -> None:
    """A value of another type at a place of the tree, or another tree altogether."""
    values = (None, [], {}, "", "x", 0, -1, 1e308, float("nan"), float("inf"), True, 10**400)
    values += ([1, 2, 3], {"a": 1}, [[]], "²", ["x"] * 3, {"x": None}, [None], 2**63)
    new = pick(rng, values)
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        tree = None
    if not isinstance(tree, dict) or not tree or rng.random() < 0.1:
        path.write_text(json.dumps(new))
        return
    here = tree
    while True:
        key = pick(rng, list(here))
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
        here[pick(rng, ("extra", "", "version", "²"))] = new
    path.write_text(json.dumps(tree))


def edit_yaml(path: Path, rng: np.random.Generator) -> None:
    lines = _text(path).rstrip("\n").split("\n")
    i = int(rng.integers(len(lines)))
    key = lines[i].split(":")[0]
    values = ("", "~", "[]", "{}", "[a, b", "{a: {b: c}}", "!!python/object/apply:os.system [true]")
    values += ("*x", "&x [*x]", "!!binary aGk=", "!!set {a}", "2024-01-01", "|", ">-", "'", '"')
    values += ("yes", "0o17", "1:30", "!!float x", "? a", "\t", "@x", "`x`", "%x", "{}{}", *NUMBERS)
    lines[i] = f"{key}: {pick(rng, values)}"
    if rng.random() < 0.15:
        bomb = "a0: &a0 [x, x]\n" + "".join(
            f"a{j}: &a{j} [{', '.join([f'*a{j - 1}'] * 9)}]\n" for j in range(1, 9)
        )
        lines.append(pick(rng, (bomb, "<<: *x", "? [a, b]\n: c", "---", "...", "- a", key + ": 1")))
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
    start, width = pick(rng, list(MAIN_FIELDS.values()))
    raw[start : start + width] = _as_field(pick(rng, NUMBERS + TEXTS + ("EDF+D", "EDF+C")), width)
    path.write_bytes(raw)


def edit_signal_field(path: Path, rng: np.random.Generator) -> None:
    """A field of one signal, or of all of them."""
    raw = bytearray(path.read_bytes())
    try:
        n = int(raw[252:256])
    except ValueError:
        return
    column = int(pick(rng, (LABEL, UNIT, UNIT, *RANGES, *RANGES, PER_RECORD, *ANY)))
    width = SIGNAL_FIELDS[column]
    values = {LABEL: LABELS + TEXTS, UNIT: UNITS + TEXTS}.get(column, (*NUMBERS, "1e-6", "1e6"))
    text = pick(rng, values)
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
    n = int(pick(rng, (64, 4096, len(raw))))
    stretch = len(raw[start : start + n])
    filling = pick(rng, (b"\0\x80", b"\xff\x7f", b"\0\0", rng.bytes(2), b"\0\x80\xff\x7f"))
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
            match, new = pick(rng, found), b"+" + pick(rng, NUMBERS).encode()
            tail = tail[: match.start()] + new.ljust(len(match[0])) + tail[match.end() :]
    elif kind == 1:
        old = pick(rng, (b"\x14", b"\x15", b"\0", b"+"))
        places = [match.start() for match in re.finditer(re.escape(old), tail)]
        if places:
            place = pick(rng, places)
            new = pick(rng, (b"\x14", b"\x15", b"\0", b"+", b" ", b"\xff"))
            tail = tail[:place] + new + tail[place + 1 :]
    elif kind == 2:
        tail = tail.replace(b"Sleep stage", pick(rng, (b"Sleep\xe4stage", b"\xff\xfe" * 5, b"")), 2)
    else:
        tail = tail.replace(b"\0", pick(rng, (b"+", b"\x14", b"x", b"\x15")), int(rng.integers(40)))
    path.write_bytes(head + tail)


EDF: tuple[Edit, ...] = (edit_main_field, edit_main_field, edit_signal_field, edit_signal_field)
EDF += (edit_signal_field, edit_signal_field, edit_samples)
