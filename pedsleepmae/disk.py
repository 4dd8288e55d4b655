"""Files that are written whole or not at all."""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that is computed
# As partial_path and tempfile name what is not finished.
PARTIAL = re.compile(r"^\..+\.[0-9a-z_]{8}\.partial$")


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends without an error.

    A process killed meanwhile leaves ``path`` as it was (absent, or the previous version).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path)
    try:
        temporary.touch(exist_ok=False)  # with the permissions that the user's umask leaves
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write what a run has done (plain values), so that :func:`read_state` knows it whole."""
    write_text(path, json.dumps({**content, "sum": _sum(content)}))


def read_state(path: Path) -> dict[str, Any]:
    """What :func:`write_state` wrote; {} for none, and for one that was changed or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("sum", None) == _sum(content):
            return content
    return {}


def _sum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remove_partial(folder: Path, *patterns: str) -> None:
    """Remove what killed runs left under temporary names; only by the run that holds the folder."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if not PARTIAL.search(path.name):
                continue  # somebody else's
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """A hidden name beside ``path``, of its own at every call, for what is not finished yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def write_table(path: Path, table: pd.DataFrame, separator: str = ",", missing: str = "") -> None:
    """Write a CSV file, or a TSV file by its ``separator``, whole or not at all.

    A text that a spreadsheet would take for a formula gets a ' before it (OWASP, "CSV injection"):
    labels of signals and names of files are other people's.
    """
    texts = table.select_dtypes(["object", "string"])
    with write_whole(path) as temporary:
        table.assign(**{name: texts[name].map(_as_text) for name in texts}).to_csv(
            temporary,
            sep=separator,
            na_rep=missing,
            index=False,
            lineterminator="\n",
            errors="backslashreplace",
        )


def _as_text(cell: Any) -> Any:
    """A cell that stands for itself; numbers in a column of texts stay numbers."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}"
