"""Tables in text that any program may have written: encoding, delimiter, where the header stands.

A spreadsheet in Germany writes ``;`` and ``30,5``, one in the USA ``,`` and ``30.5``; exports of
sleep software come in UTF-16, with lines above the header. What a file is follows from the columns
that it must have.
"""

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from pedsleepmae.errors import printable
from pedsleepmae.foreign import TableError, decode, file_problem, plain_name

DELIMITERS = ("\t", ";", ",", "|")
HEADER_LINES = 50  # within which the header stands, below what a program says of itself

Row = tuple[int, list[str]]  # the line of the file in which it ends, and its cells


def read_delimited(
    path: Path, columns: Collection[str], largest: int
) -> tuple[list[str], Iterator[Row]]:
    """Names of the columns, as :func:`plain_name` has them, and the rows below that are not blank.

    The header is the first line that holds all of ``columns`` (in any case) between tabs,
    semicolons, commas or bars. TableError, also while rows are taken, when the file is no such
    table of up to ``largest`` bytes; what its cells hold is not quoted.
    """
    name, wanted = printable(path.name), {plain_name(column) for column in columns}
    if problem := file_problem(path, largest):
        raise TableError(f"{name}: {problem}")
    lines = list(io.StringIO(decode(path.read_bytes()), newline=None))
    for number, line in enumerate(lines[:HEADER_LINES], 1):
        for delimiter in DELIMITERS:
            header = [plain_name(cell) for cell in _first_row(line, delimiter)]
            if wanted <= set(header):
                return header, _rows(name, lines, number, delimiter)
    raise TableError(
        f"{name}: no line with the columns {', '.join(columns)} among its first {HEADER_LINES}, "
        "between tabs, semicolons, commas or bars"
    )


def _first_row(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a cell longer than any name
        return []


def _rows(name: str, lines: list[str], first: int, delimiter: str) -> Iterator[Row]:
    """The rows after the ``first`` lines; tabs stand between cells that need no quotes."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines[first:], delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for cells in reader:
            cells = [cell.strip(' \n"' if delimiter == "\t" else None) for cell in cells]
            if any(cells):
                yield first + reader.line_num, cells
    except csv.Error as error:
        raise TableError(
            f"{name}: line {first + reader.line_num} cannot be taken apart ({printable(error)}); "
            "close its quotes"
        ) from error
