"""The tables beside batch files: a row a recording, an event, a patient."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pedsleepmae.disk import write_table
from pedsleepmae.foreign import TableError, as_id, read_table
from pedsleepmae.splits import SPLITS
from pedsleepmae.store import StoreError
from pedsleepmae.tasks import EVENT_COLUMNS, EVENT_COUNTS, EVENTS_FILE

STUDIES = "studies.csv"
_WHOLE_NUMBERS = ("patient_id", "study_id", "age_days", *EVENT_COUNTS.values())


def write_studies(batches_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write studies.csv; whole numbers stay whole in a column that lacks some."""
    table = pd.DataFrame(rows).astype(dict.fromkeys(_WHOLE_NUMBERS, "Int64"))
    write_table(batches_dir / STUDIES, table)


def write_events(
    batches_dir: Path, studies: Iterable[tuple[int, int, Iterable[tuple[str, float, float]]]]
) -> None:
    """Write events.csv of (patient, study, its events: kind, onset and duration in s)."""
    rows = [(patient, study, *event) for patient, study, events in studies for event in events]
    table = pd.DataFrame(rows, columns=EVENT_COLUMNS)
    write_table(batches_dir / EVENTS_FILE, table)


def foreign_table(batches_dir: Path) -> Path | None:
    """A studies.csv or events.csv that lacks the columns of ours; None: there is none."""
    begins = {
        STUDIES: "patient_id,study_id,split,status,reason",
        EVENTS_FILE: "patient_id,study_id,kind",
    }
    for name, columns in begins.items():
        path = batches_dir / name
        if not path.exists():
            continue
        if not path.is_file():
            return path
        with open(path, "rb") as file:
            if not file.readline(200).startswith(columns.encode()):
                return path
    return None


def write_splits(batches_dir: Path, assignment: Mapping[int, str]) -> None:
    """Write splits.csv: each patient's split, by patient; one that says so already stays."""
    if read_splits(batches_dir) == assignment:
        return
    table = pd.DataFrame(sorted(assignment.items()), columns=["patient_id", "split"])
    write_table(batches_dir / "splits.csv", table)


def read_splits(batches_dir: Path) -> dict[int, str] | None:
    """patient_id -> split from splits.csv, None when there is none; StoreError when it is bad."""
    path = Path(batches_dir) / "splits.csv"
    if not os.path.lexists(path):
        return None
    wanted = "needs the columns patient_id (whole numbers) and split"
    try:
        table = read_table(path, ["patient_id", "split"])
    except TableError as error:
        raise StoreError(f"{error}; it {wanted}") from error
    patients = [as_id(text) for text in table["patient_id"]]
    splits = [text.strip() for text in table["split"]]
    if None in patients:
        line = patients.index(None) + 2
        raise StoreError(f"{path}: {wanted}; line {line} holds no such number")
    assignment = dict(zip(patients, splits, strict=True))
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise StoreError(f"{path}: unknown split {unknown[0]!r}; known: {', '.join(SPLITS)}")
    if [assignment[patient] for patient in patients] != splits:
        raise StoreError(f"{path}: a patient stands in two splits; give each patient one")
    return assignment
