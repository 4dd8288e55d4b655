"""Patients and studies under names of any text, and the numbers that stand for them.

Only numbers reach examples, batches and logs. ids.csv tells whose they are: the key of a
pseudonymised data set, which lies beside the user's own table and not beside what is handed on
(GDPR, article 4(5): kept separately).
"""

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pedsleepmae import disk
from pedsleepmae.errors import SettingsError
from pedsleepmae.foreign import LARGEST_TABLE, TableError, as_id, one_spelling
from pedsleepmae.prepare.delimited import read_delimited

COLUMNS = ("patient", "study", "patient_id", "study_id")


@dataclass
class Ids:
    """Numbers of patients by their text, and of studies by (patient's, study's) text.

    ``path``: ids.csv, as it is or will be.
    """

    path: Path
    patients: dict[str, int] = field(default_factory=dict)
    studies: dict[tuple[str, str], int] = field(default_factory=dict)

    def extend(self, named: Iterable[tuple[str, str]]) -> "Ids":
        """With the (patient, study) texts that are not numbered yet; what is numbered stays."""
        new: dict[str, list[str]] = {}
        for patient, study in named:
            new.setdefault(patient, []).append(study)
        known = {patient: {} for patient in self.patients}
        for (patient, study), number in self.studies.items():
            known[patient][study] = number
        patients = number_texts(new, self.patients)
        studies = {
            (patient, study): number
            for patient in patients
            for study, number in number_texts(new.get(patient, []), known.get(patient, {})).items()
        }
        return Ids(self.path, patients, studies)

    @property
    def as_they_are(self) -> bool:
        """True when every text is the number that stands for it."""
        texts = itertools.chain(
            self.patients.items(), ((study, n) for (_, study), n in self.studies.items())
        )
        return all(text == str(number) for text, number in texts)

    def write(self) -> None:
        """Write ids.csv where a text needs a number, or where it is there and says less."""
        if read_ids(self.path) == self or (self.as_they_are and not self.path.exists()):
            return
        rows = [(*key, self.patients[key[0]], number) for key, number in self.studies.items()]
        rows.sort(key=lambda row: row[2:])
        try:
            disk.write_table(self.path, pd.DataFrame(rows, columns=list(COLUMNS)))
        except OSError as error:
            raise SettingsError(
                f"paths.ids: {self.path} cannot be written ({error.strerror}); name a place that "
                "stays with you"
            ) from error


def plain_id(text: str) -> str:
    """One spelling of an id: single spaces; a whole number without leading zeros."""
    text = one_spelling(text).lstrip("'")  # a spreadsheet's mark of a text
    number = as_id(text)
    return text if number is None else str(number)


def number_texts(texts: Iterable[str], known: Mapping[str, int]) -> dict[str, int]:
    """A number for each text: the known ones stay, whole numbers are their own where that is free.

    All others get the smallest free number in their order.
    """
    numbers = dict(known)
    new = [text for text in dict.fromkeys(texts) if text not in numbers]
    taken = set(numbers.values())
    for text in new:
        number = as_id(text)
        if number is not None and number not in taken:
            numbers[text] = number
            taken.add(number)
    free = (number for number in itertools.count(1) if number not in taken)
    return numbers | {text: next(free) for text in new if text not in numbers}


# ------------------------------------------------------------------ ids.csv
def read_ids(path: Path) -> Ids:
    """What an earlier run wrote; no ids where there is no file. TableError for any other file."""
    ids, owners = Ids(path), {}
    if not os.path.lexists(path):
        return ids
    header, rows = read_delimited(path, COLUMNS, LARGEST_TABLE)
    for line, cells in rows:
        cells += [""] * (len(header) - len(cells))
        patient, study, *numbers = (cells[header.index(name)] for name in COLUMNS)
        patient, study = plain_id(patient), plain_id(study)
        patient_id, study_id = map(as_id, numbers)
        agree = None not in (patient_id, study_id)
        agree = agree and ids.patients.setdefault(patient, patient_id) == patient_id
        agree = agree and ids.studies.setdefault((patient, study), study_id) == study_id
        agree = agree and owners.setdefault(patient_id, patient) == patient
        agree = agree and owners.setdefault((patient_id, study_id), study) == study
        if not agree:
            raise TableError(
                f"{path.name}: line {line} gives no whole numbers, or others than a line above"
            )
    return ids
