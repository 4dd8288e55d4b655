"""Who belongs to a cohort: patients by ICD codes of NCH's DIAGNOSIS.csv, or by a list of ids.

Only patient numbers leave this module; names of diagnoses are compared and forgotten.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from pedsleepmae.errors import UserError

COLUMNS = ("STUDY_PAT_ID", "DX_SOURCE_TYPE", "DX_CODE", "DX_NAME", "DX_ALT_CODE")
ROWS_AT_A_TIME = 200_000  # of NCH's 1.5 million


class DiagnosisError(UserError):
    """A table of patients or diagnoses cannot be used; the message says which and why."""


def normalise_code(code: str) -> str:
    """An ICD code without dots, blanks and case: q87.11 -> Q8711."""
    return "".join(code.split()).replace(".", "").upper()


def read_diagnosed(
    health_dir: Path, codes: Sequence[str], name_holds: str = "", source_types: Collection[str] = ()
) -> dict[str, set[int]]:
    """Of each of ``codes`` the patients whose DX_CODE, or a code of the list in DX_ALT_CODE, it is.

    Codes must be equal once normalised: Q87.1 finds neither Q87.11 nor Q87.19. ``name_holds``
    keeps the rows whose DX_NAME holds this text in any case (Q87.1 covers other syndromes too),
    ``source_types`` those whose DX_SOURCE_TYPE is one of them ("Final Dx": the authors' rule);
    empty: all rows. Raises DiagnosisError without the file or one of its columns.
    """
    wanted = {normalise_code(code): code for code in codes}
    types = {text.strip().lower() for text in source_types}
    found: dict[str, set[int]] = {code: set() for code in codes}
    for table in _pieces(_diagnosis_file(health_dir)):
        if types:
            table = table[table["DX_SOURCE_TYPE"].str.strip().str.lower().isin(types)]
        if name_holds:
            table = table[table["DX_NAME"].str.contains(name_holds, case=False, regex=False)]
        listed = table["DX_CODE"] + "," + table["DX_ALT_CODE"]
        for patient, text in zip(table["STUDY_PAT_ID"], listed, strict=True):
            for code in {normalise_code(part) for part in text.split(",")} & wanted.keys():
                if patient.strip().isdigit():
                    found[wanted[code]].add(int(patient))
    return found


def read_patient_list(path: Path) -> frozenset[int]:
    """Patients of a CSV file with a column patient_id of whole numbers; DiagnosisError if not."""
    wanted = f"{path}: needs a column patient_id of whole numbers"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="latin-1")
        texts = table.rename(columns=lambda name: name.removeprefix("ï»¿"))["patient_id"]
    except (OSError, KeyError, ValueError) as error:
        raise DiagnosisError(f"{wanted}, which it lacks, or it cannot be read") from error
    for line, text in enumerate(texts, start=2):
        if not text.strip().isdecimal():  # whatever stands there may be a name: it is not repeated
            raise DiagnosisError(f"{wanted}; line {line} holds none")
    return frozenset(int(text) for text in texts)


def _diagnosis_file(health_dir: Path) -> Path:
    for path in sorted(Path(health_dir).iterdir()):
        if path.name.upper() == "DIAGNOSIS.CSV":
            return path
    raise DiagnosisError(f"{health_dir}: no DIAGNOSIS.csv in it; give NCH's Health_Data folder")


def _pieces(path: Path):
    """The columns that count, as text, a piece of the file at a time; latin-1 as NCH's tables."""
    try:
        with pd.read_csv(
            path,
            dtype=str,
            encoding="latin-1",
            keep_default_na=False,
            usecols=lambda name: name.strip().upper() in COLUMNS,
            chunksize=ROWS_AT_A_TIME,
        ) as pieces:
            for table in pieces:
                table.columns = [name.strip().upper() for name in table.columns]
                missing = [name for name in COLUMNS if name not in table.columns]
                if missing:
                    raise DiagnosisError(f"{path}: has no column {missing[0]}")
                yield table
    except pd.errors.ParserError as error:
        raise DiagnosisError(f"{path}: not a table ({error})") from error
    except pd.errors.EmptyDataError as error:
        raise DiagnosisError(f"{path}: is empty") from error
