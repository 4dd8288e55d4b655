"""Layout table: the recordings that a table lists, under names and ids of any text."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pedsleepmae import errors
from pedsleepmae.errors import SettingsError, printable
from pedsleepmae.foreign import LARGEST_TABLE, OLDEST_DAYS, TableError, file_problem
from pedsleepmae.prepare.cells import as_decimal, as_onset
from pedsleepmae.prepare.delimited import read_delimited
from pedsleepmae.prepare.ids import Ids, plain_id, read_ids
from pedsleepmae.prepare.layouts import Study, find_annotations, in_order
from pedsleepmae.splits import DAYS_PER_YEAR

IDS = "ids.csv"
REQUIRED = ("recording", "patient")
OPTIONAL = ("study", "annotations", "age_years", "sex", "lights_off", "lights_on")
ALSO_CALLED = {"age": "age_years"}
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "": ""}


@dataclass(frozen=True)
class TableRow:
    """One line of the table: its cells as they stand, but patient and study in one spelling."""

    line: int
    recording: str
    patient: str
    study: str
    annotations: str
    age_years: str
    sex: str
    lights_off: str
    lights_on: str
    problem: str = ""


def read_recordings(
    path: Path, ids_path: Path | None = None
) -> tuple[list[Study], pd.DataFrame | None, Ids]:
    """Studies of a table, ages and sexes (None: no such column), and the numbers of its ids.

    A row that cannot be used is a study with a problem. Paths are relative to the table's folder.
    SettingsError when the table, or an ids.csv that is there, cannot be read.
    """
    try:
        header, rows = _read_rows(path)
    except TableError as error:
        raise SettingsError(f"paths.table: {error}; {_columns_in_words()}") from error
    try:
        known = read_ids(ids_path or path.with_name(IDS))  # shared by the tables of a folder
    except TableError as error:
        remedy = "mend it, or name another file with --paths.ids"
        raise SettingsError(f"paths.ids: {error}; {remedy}") from error
    rows = _number_studies(rows)
    ids = known.extend((row.patient, row.study) for row in rows if row.patient)
    studies = _refuse_second([(_study(row, path, ids), row) for row in rows])
    has_health = {"age_years", "sex"} & set(header)
    return in_order(studies), _read_health(rows, ids) if has_health else None, ids


def _columns_in_words() -> str:
    return (
        f"it needs the columns {' and '.join(REQUIRED)}, and may have {', '.join(OPTIONAL[:-1])} "
        f"and {OPTIONAL[-1]}"
    )


def _read_rows(path: Path) -> tuple[list[str], list[TableRow]]:
    """Names of the columns and the rows; TableError when it is no table of these columns."""
    header, lines = read_delimited(path, REQUIRED, LARGEST_TABLE)
    header = [ALSO_CALLED.get(name, name.replace(" ", "_")) for name in header]
    while header and not header[-1]:  # a delimiter at the end of each line
        header.pop()
    for name in header:
        if name not in REQUIRED + OPTIONAL:
            raise TableError(f"{path.name}: has an unknown column {printable(name)[:40]!r}")
        if header.count(name) > 1:
            raise TableError(f"{path.name}: has the column {name} twice")
    rows = []
    for line, cells in lines:
        problem = ""
        if any(cells[len(header) :]):
            problem = f"the table's line has {len(cells)} cells for {len(header)} columns"
        row = dict.fromkeys(REQUIRED + OPTIONAL, "") | dict(zip(header, cells, strict=False))
        row["patient"], row["study"] = plain_id(row["patient"]), plain_id(row["study"])
        rows.append(TableRow(line, **row, problem=problem))
    return header, rows


def _number_studies(rows: list[TableRow]) -> list[TableRow]:
    """Studies without an id are the 1st, 2nd, ... of their patient in the order of the table."""
    n_before = Counter()
    numbered = []
    for row in rows:
        if not row.study:
            n_before[row.patient] += 1
            row = replace(row, study=str(n_before[row.patient]))
        numbered.append(row)
    return numbered


# ------------------------------------------------------------------ one row
def _study(row: TableRow, table: Path, ids: Ids) -> Study:
    edf = table.parent / row.recording if row.recording else table
    annotations = table.parent / row.annotations if row.annotations else None
    problem = row.problem or _problem(row, edf, annotations)
    if annotations is None and not problem:
        annotations = find_annotations(edf)
        problem = annotations and _file_problem(annotations)
    return Study(
        edf,
        annotations,
        ids.patients.get(row.patient),
        ids.studies.get((row.patient, row.study)),
        f"{problem} (line {row.line} of the table)" if problem else "",
        (row.lights_off, row.lights_on),
    )


def _problem(row: TableRow, edf: Path, annotations: Path | None) -> str:
    """Why a row cannot be used, "" when its files can be opened."""
    if not row.recording:
        return "the table names no recording"
    if not row.patient:
        return "the table names no patient"
    for name in ("lights_off", "lights_on"):
        text = getattr(row, name)
        if text and as_onset(text, 0.0) is None:
            return f"{name} is no time such as 22:15:00 and no number of seconds"
    for path in filter(None, (edf, annotations)):
        if problem := _file_problem(path):
            return problem
    return ""


def _file_problem(path: Path) -> str:
    problem = file_problem(path)
    return problem and f"{printable(path.name)}: {problem}"


def _refuse_second(studies: Sequence[tuple[Study, TableRow]]) -> list[Study]:
    """Of a recording, or a patient's study, that stands in several usable rows the first counts."""
    kept, files, keys = [], {}, {}
    for study, row in studies:
        if not study.problem:
            file = os.path.realpath(study.edf)
            if file in files:
                problem = f"the same recording as another (line {row.line}, as line {files[file]})"
                study = replace(study, problem=problem)
            elif study.key in keys:
                problem = (
                    f"same patient and study as another (line {row.line}, as line "
                    f"{keys[study.key]})"
                )
                study = replace(study, problem=problem)
            files.setdefault(file, row.line)
            keys.setdefault(study.key, row.line)
        kept.append(study)
    return kept


# ------------------------------------------------------------------ ages and sexes
def _read_health(rows: list[TableRow], ids: Ids) -> pd.DataFrame:
    """patient_id, study_id, age_days, sex ("F", "M", "") as layouts.read_health has them."""
    health, unread = [], Counter()
    for row in rows:
        years, sex = as_decimal(row.age_years), SEXES.get(row.sex.lower())
        age_days = np.nan if years is None else years * DAYS_PER_YEAR
        if not 0 <= age_days <= OLDEST_DAYS:
            age_days = np.nan
            unread["age_years"] += bool(row.age_years)
        unread["sex"] += sex is None
        if row.patient:
            key = (ids.patients[row.patient], ids.studies[row.patient, row.study])
            health.append((*key, age_days, sex or ""))
    for column, n in unread.items():
        if n:
            wanted = "years from 0 to 130" if column == "age_years" else "F or M"
            errors.warn(f"paths.table: {n} values of {column} are not {wanted} and stay unknown")
    table = pd.DataFrame(health, columns=["patient_id", "study_id", "age_days", "sex"])
    return table.drop_duplicates(["patient_id", "study_id"])
