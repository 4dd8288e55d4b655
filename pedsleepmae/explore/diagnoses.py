"""Who belongs to a cohort: patients by ICD codes of NCH's DIAGNOSIS.csv, or by a list of ids.

Only patient numbers leave this module; names of diagnoses are compared and forgotten.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from pedsleepmae.errors import UserError
from pedsleepmae.foreign import ID_DIGITS, TableError, as_id, read_pieces, read_table

COLUMNS = ("STUDY_PAT_ID", "DX_SOURCE_TYPE", "DX_CODE", "DX_NAME", "DX_ALT_CODE")
LARGEST_FILE = 4_000_000_000  # bytes; NCH's 1.5 million rows have a tenth, read in pieces


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
    try:
        for table in read_pieces(_diagnosis_file(health_dir), COLUMNS, largest=LARGEST_FILE):
            if types:
                table = table[table["DX_SOURCE_TYPE"].str.strip().str.lower().isin(types)]
            if name_holds:
                table = table[table["DX_NAME"].str.contains(name_holds, case=False, regex=False)]
            listed = table["DX_CODE"] + "," + table["DX_ALT_CODE"]
            for text, codes_listed in zip(table["STUDY_PAT_ID"], listed, strict=True):
                here = {normalise_code(part) for part in codes_listed.split(",")} & wanted.keys()
                if here and (patient := as_id(text)) is not None:
                    for code in here:
                        found[wanted[code]].add(patient)
    except TableError as error:
        raise DiagnosisError(str(error)) from error
    return found


def read_patient_list(path: Path) -> frozenset[int]:
    """Patients of a CSV file with a column patient_id of whole numbers; DiagnosisError if not."""
    try:
        texts = read_table(path, ["patient_id"])["patient_id"]
    except TableError as error:
        raise DiagnosisError(f"{error}; it needs a column patient_id of whole numbers") from error
    patients = [as_id(text) for text in texts]
    if None in patients:  # whatever stands there may be a name: it is not repeated
        line = patients.index(None) + 2
        raise DiagnosisError(
            f"{path}: needs a column patient_id of whole numbers of at most {ID_DIGITS} digits; "
            f"line {line} holds none"
        )
    return frozenset(patients)


def _diagnosis_file(health_dir: Path) -> Path:
    for path in sorted(Path(health_dir).iterdir()):
        if path.name.upper() == "DIAGNOSIS.CSV":
            return path
    raise DiagnosisError(f"{health_dir}: no DIAGNOSIS.csv in it; give NCH's Health_Data folder")
