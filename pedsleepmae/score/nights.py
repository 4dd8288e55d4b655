"""Several recordings of script 4: which they are, and nights.csv, a row for each of them."""

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from pedsleepmae import disk
from pedsleepmae.errors import SettingsError, printable, warn
from pedsleepmae.prepare.layouts import walk
from pedsleepmae.prepare.recordings import holds_rows_alone
from pedsleepmae.score import NIGHTS, UNITS
from pedsleepmae.tasks import NOTICE

FIRST = ["recording", "file", "status", "reason", "hours", "epochs", "montage", "n_channels"]
FIRST += ["n_cautions", "far_share", "kappa"]  # columns, before those of the quantities
COUNTS = dict.fromkeys(("epochs", "n_channels", "n_cautions"), "Int64")  # blank where it failed


# ------------------------------------------------------------------ which recordings
def find_recordings(given: Sequence[str]) -> list[Path]:
    """EDF files by files, folders and patterns, in that order, each once however it is reached.

    Of folders (with their sub-folders) and patterns what is called .edf and not hidden. EDF+ files
    of annotations alone, such as hypnograms and our annotations.edf, are left out, and counted on
    stderr. SettingsError where there is nothing.
    """
    found: dict[str, Path] = {}
    for word in given:
        for path in _edf_files(word):
            found.setdefault(os.path.realpath(path), path)
    recordings = [path for path in found.values() if not holds_rows_alone(path)]
    if not recordings:
        raise SettingsError("recordings: hold annotations alone; give EDF files with signals")
    if n_left_out := len(found) - len(recordings):
        warn(f"EDF files of annotations alone, which are no recordings: {n_left_out} left out")
    return recordings


def names_file(word: str) -> bool:
    """True for one file, whether it is there or not; False for a folder or a pattern."""
    return not os.path.isdir(word) and (os.path.lexists(word) or not glob.has_magic(word))


def _edf_files(word: str) -> list[Path]:
    """EDF files of one file, folder or pattern; SettingsError when there are none."""
    if names_file(word):
        paths, problem = [Path(word)] if os.path.lexists(word) else [], f"there is no file {word}"
    elif os.path.isdir(word):
        paths, problem = _below(Path(word)), f"no EDF file in the folder {word}"
    else:
        matches = map(Path, sorted(glob.glob(word, recursive=True)))
        paths = [
            path for match in matches for path in ([match] if _is_edf(match) else _below(match))
        ]
        problem = f"no EDF file matches the pattern {word}"
    if not paths:
        raise SettingsError(f"recordings: {problem}; give EDF files, their folder or a pattern")
    return paths


def _below(folder: Path) -> list[Path]:
    return sorted(filter(_is_edf, walk(folder)))


def _is_edf(path: Path) -> bool:
    """By its name: what it is shows when it is read."""
    return path.suffix.lower() == ".edf"


# ------------------------------------------------------------------ nights.csv
def scored_row(path: Path, summary: Mapping) -> dict:
    """Of a recording that was scored: quantities by name, those of a scorer as <name>_scored."""
    row = {
        "recording": summary["recording"],
        "file": printable(str(path)),
        "status": "scored",
        "hours": summary["hours_recorded"],
        "epochs": summary["n_epochs"],
        "montage": summary["probes"]["montage"],
        "n_channels": len(summary["channels"]),
        "n_cautions": len(summary["cautions"]),
        "far_share": summary["far"]["share"],
        "kappa": (summary["agreement"] or {}).get("kappa"),
        "units": {quantity["name"]: quantity["unit"] for quantity in summary["quantities"]},
    }
    for quantity in summary["quantities"]:
        row[quantity["name"]] = quantity["value"]
        row[f"{quantity['name']}_scored"] = quantity.get("scored")
    return row


def failed_row(path: Path, name: str, problem: Exception | str) -> dict:
    """Of a recording that could not be scored."""
    reason = printable(problem).removeprefix(f"{printable(path.name)}: ")  # to be counted
    told = {"recording": name, "file": printable(str(path))}
    return told | {"status": "failed", "reason": reason}


def write_nights(output_dir: Path, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Write nights.csv, and nights_units.csv: what an index counts depends on the probes."""
    rows, units = list(rows), {}
    for row in rows:
        units |= row.get("units", {})
    table = pd.DataFrame(rows, columns=list(dict.fromkeys(FIRST + [k for r in rows for k in r])))
    table = table.drop(columns="units", errors="ignore").astype(COUNTS)
    nobody = [f"{name}_scored" for name in units if table[f"{name}_scored"].isna().all()]
    table = table.drop(columns=nobody)
    disk.write_table(output_dir / NIGHTS, table.assign(notice=NOTICE))
    columns = pd.DataFrame(units.items(), columns=["quantity", "unit"])
    disk.write_table(output_dir / UNITS, columns.assign(notice=NOTICE))
    return table
