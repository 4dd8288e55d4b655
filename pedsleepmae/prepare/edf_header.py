"""The header of an EDF file: where its samples lie, and which of its fields can be put right."""

import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Latin-1 decodes every byte, so that no umlaut or degree sign in a label stops a recording.
HEADER_ENCODING = "latin-1"
MOST_SIGNALS = 512  # NCH's files have 56 at most, dense EEG 256; pairs are sought among all of them
_COMMA = re.compile(rb"[+-]?\d+,\d+")


@dataclass(frozen=True)
class Header:
    """Where the samples of an EDF file lie: ``per_record`` of each signal in each data record."""

    main: bytes
    rest: bytes
    record_s: float
    labels: list[str]
    per_record: list[int]

    @property
    def n_bytes(self) -> int:
        return 256 * (1 + len(self.labels))


def read_header(path: Path) -> Header:
    """Raises ValueError, in words that quote nothing of what the header says of a patient."""
    with open(path, "rb") as file:
        main = file.read(256)
        if main[:8] == b"\xffBIOSEMI":  # of 24 bits: read as EDF it would be noise
            raise ValueError("it is a BDF file; convert it to EDF")
        record_s = _number(main[244:252], "the duration of its records", float)
        n = _number(main[252:256], "the number of its signals")
        if not 1 <= n <= MOST_SIGNALS:
            raise ValueError(f"the number of its signals is {n}, not 1 to {MOST_SIGNALS}")
        rest = file.read(256 * n)
    if len(rest) < 256 * n:
        raise ValueError(f"it ends within the header of its {n} signals")
    labels = [rest[16 * i :][:16].decode(HEADER_ENCODING).strip() for i in range(n)]
    what = "the number of samples in its records"
    per_record = [_number(rest[216 * n + 8 * i :][:8], what) for i in range(n)]
    if min(per_record) < 0:
        raise ValueError(f"{what} is {min(per_record)} for a signal")
    return Header(main, rest, record_s, labels, per_record)


def _number(field: bytes, what: str, kind: Callable = int):
    try:
        return kind(field.replace(b",", b".") if kind is float else field)
    except ValueError as error:
        raise ValueError(f"{what} is no number") from error


def mended_file(path: Path) -> tuple[Path | memoryview, list[str]]:
    """The file, or a copy of its bytes with those header fields put right that can be known.

    The size of the header follows from the number of signals, and -1 is EDF's own way to say that
    the number of records is not known; a file with wrong ones would be read from a wrong place or
    not at all. Raises ValueError for a record without a duration.
    """
    header = read_header(path)
    if not header.record_s > 0:
        raise ValueError(
            f"its record duration is {header.record_s:g} s: the samples cannot be timed"
        )
    mended, remarks = {}, []
    if header.main[184:192].strip() != str(header.n_bytes).encode():
        mended[184, 192] = str(header.n_bytes).encode().ljust(8)
        remarks.append("header size field was wrong and is taken from the number of signals")
    try:
        int(header.main[236:244])
    except ValueError:
        mended[236, 244] = b"-1".ljust(8)
        remarks.append("record count was missing and is taken from the size of the file")
    if commas := _decimal_commas(header):
        mended |= commas
        remarks.append("decimal commas in the header are read as points")
    if not mended:
        return path, []
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # changed in memory only
    for (start, end), text in mended.items():
        content[start:end] = text
    return memoryview(content), remarks


def _decimal_commas(header: Header) -> dict[tuple[int, int], bytes]:
    """Places in the file, and the text with a point, of decimals that the header has with a comma.

    Programs write them so where the computer's language has it so; EDF knows the point alone.
    """
    n = len(header.labels)
    physical = [256 + 104 * n + 8 * i for i in range(2 * n)]  # minimum of all signals, then maximum
    whole = header.main + header.rest
    fields = {(start, start + 8): whole[start : start + 8] for start in (244, *physical)}
    return {
        place: text.replace(b",", b".")
        for place, text in fields.items()
        if _COMMA.fullmatch(text.strip())
    }
