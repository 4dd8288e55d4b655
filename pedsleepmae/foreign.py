"""Files of others, looked at before they are believed: what lies there, names, numbers, tables."""

import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from pedsleepmae.errors import UserError, printable

ID_DIGITS = 12  # of a patient's or study's number at most; NCH's have 5, int64 ends at 18
_ID = re.compile(rf"\s*([0-9]{{1,{ID_DIGITS}}})(\.0+)?\s*")  # spreadsheets write 12 as 12.0
OLDEST_DAYS = 130 * 366  # an age beyond is a writing error
LARGEST_TABLE = 64_000_000  # bytes; of the tables that are read whole NCH's have under 1 MB
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class TableError(UserError):
    """A table cannot be read; the message names the file and says why."""


# ------------------------------------------------------------------ files and names
def file_problem(path: Path, largest: int | None = None) -> str:
    """Why a path cannot be read as a file of up to ``largest`` bytes; "" when it can.

    To be asked before it is opened: a pipe waits for ever, a device has no end.
    """
    try:
        found = path.stat()
    except OSError as error:
        is_link = os.path.islink(path)  # no error of its own, as for a name that is too long
        return "is a link to nothing" if is_link else f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(found.st_mode):
        return f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file"
    if largest is not None and found.st_size > largest:
        return f"has {found.st_size / 1e6:,.0f} MB, and at most {largest / 1e6:,.0f} MB are read"
    return ""


# ------------------------------------------------------------------ numbers
def as_id(text: str) -> int | None:
    """A patient's or study's number; None for any other text, other scripts' digits included."""
    match = _ID.fullmatch(text)
    return int(match[1]) if match else None


def as_number(text: str, low: float, high: float) -> float:
    """A number from ``low`` to ``high``, NaN for any other text."""
    with contextlib.suppress(ValueError):
        if low <= float(text) <= high:
            return float(text)
    return float("nan")


# ------------------------------------------------------------------ tables
def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """:func:`read_pieces` in one, of a file of up to LARGEST_TABLE bytes."""
    return pd.concat(read_pieces(path, columns, optional, largest=LARGEST_TABLE), ignore_index=True)


def read_pieces(
    path: Path,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    largest: int,
    rows_at_a_time: int = 200_000,
) -> Iterator[pd.DataFrame]:
    """These columns of a CSV file as text, "" where a row lacks one, a piece at a time.

    Names are found in any case; the ``optional`` ones need not be there. Latin-1, as NCH's tables
    are: it decodes all bytes. Raises TableError when the file is no such table.
    """
    path, columns = Path(path), {_plain(name): name for name in (*columns, *optional)}
    if problem := file_problem(path, largest):
        raise TableError(f"{path}: {problem}")
    try:
        with pd.read_csv(
            path,
            dtype=str,
            encoding="latin-1",
            keep_default_na=False,
            usecols=lambda name: _plain(name) in columns,
            index_col=False,  # or a column too many in all rows would shift the names
            compression=None,  # a few bytes could stand for any number
            chunksize=rows_at_a_time,
        ) as pieces:
            for table in pieces:
                named = {_plain(name): name for name in reversed(table.columns)}  # the first counts
                for plain, name in columns.items():
                    if plain not in named and name not in optional:
                        raise TableError(f"{path}: has no column {name}")
                table = table.rename(columns={named[plain]: columns[plain] for plain in named})
                table = table.reindex(columns=list(columns.values()), fill_value="").fillna("")
                yield table
    except TableError:
        raise
    except pd.errors.EmptyDataError as error:
        raise TableError(
            f"{path}: is empty, or lacks the columns {', '.join(columns.values())}"
        ) from error
    except (OSError, ValueError, ArithmeticError) as error:
        reason = printable(error)[:200]
        raise TableError(f"{path}: not a table ({reason})") from error


def _plain(name: str) -> str:
    return name.removeprefix("\u00ef\u00bb\u00bf").strip().upper()  # a UTF-8 mark, as latin-1


# ------------------------------------------------------------------ text of any program
def decode(raw: bytes) -> str:
    """Text of UTF-16 or UTF-8, with a mark or without, else of Latin-1, which decodes all bytes."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = raw.decode("utf-16", "replace")
    elif raw[1:2] == b"\0" != raw[:1]:
        text = raw.decode("utf-16-le", "replace")
    elif raw[:1] == b"\0" != raw[1:2]:
        text = raw.decode("utf-16-be", "replace")
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
    return text.replace("\0", "")


def plain_name(text: str) -> str:
    """A name in lower case, in one spelling."""
    return one_spelling(text).lower()


def one_spelling(text: str) -> str:
    """A text with single spaces, none at its ends, and one way to write an accent."""
    return " ".join(unicodedata.normalize("NFC", text).split())
