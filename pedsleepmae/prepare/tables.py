"""The tables beside batch files: studies.csv, a row a recording; splits.csv, a row a patient."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pedsleepmae.disk import write_table
from pedsleepmae.tasks import EVENT_COUNTS

_WHOLE_NUMBERS = ("patient_id", "study_id", "age_days", *EVENT_COUNTS.values())


def write_studies(batches_dir: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write studies.csv; whole numbers stay whole in a column that lacks some."""
    table = pd.DataFrame(rows).astype(dict.fromkeys(_WHOLE_NUMBERS, "Int64"))
    write_table(batches_dir / "studies.csv", table)


def write_splits(batches_dir: Path, assignment: Mapping[int, str]) -> None:
    """Write splits.csv: each patient's split, by patient."""
    table = pd.DataFrame(sorted(assignment.items()), columns=["patient_id", "split"])
    write_table(batches_dir / "splits.csv", table)
