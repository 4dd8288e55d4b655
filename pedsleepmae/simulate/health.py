"""A simulated cohort's Health_Data tables in NCH's columns: who came, who they are, what they have.

SLEEP_STUDY.csv, DEMOGRAPHIC.csv and DIAGNOSIS.csv in latin-1, without edfio. Diagnoses follow from
the simulated child alone: snoring or sleep apnea for all, Prader-Willi syndrome with its code of
both classifications for those that the settings ask for. As at NCH, a row names its code in the
other classification too, in places as a list, and rare diagnoses are redacted.
"""

import datetime
from pathlib import Path

import pandas as pd

from pedsleepmae.disk import write_whole
from pedsleepmae.simulate.cohort import Visit

APNEA_SEVERITY = 1.0  # children above it carry a diagnosis of sleep apnea, the others of snoring
_CODE_COLUMNS = ("DX_CODE_TYPE", "DX_CODE", "DX_NAME", "DX_ALT_CODE")
_APNEA = ("ICD10", "G47.33", "Obstructive sleep apnea (adult) (pediatric)", "327.23")
_SNORING = ("ICD10", "R06.83", "Snoring", "786.09")
_PRADER_WILLI = (  # NCH's rows before October 2015 are ICD-9
    ("ICD10", "Q87.11", "Prader-Willi syndrome", "759.81"),
    ("ICD9", "759.81", "Prader-Willi syndrome", "Q87.11, Q87.19"),
)
_OBESITY = ("ICD10", "E66.9", "Obesity, unspecified", "278.00")
_REDACTED = ("ICD10", "redacted", "redacted", "redacted")
ICD10_SINCE = datetime.date(2015, 10, 1)


def write_health_data(folder: Path, visits: list[Visit]) -> None:
    """SLEEP_STUDY.csv, DEMOGRAPHIC.csv and DIAGNOSIS.csv with NCH's columns, latin-1."""
    studies, people = [], {}
    for visit in visits:
        born = visit.start - datetime.timedelta(days=visit.age_days)
        studies.append(
            {
                "STUDY_PAT_ID": visit.patient_id,
                "SLEEP_STUDY_ID": visit.study_id,
                "SLEEP_STUDY_START_DATETIME": visit.start.strftime("%m/%d/%Y %H:%M:%S"),
                # With NCH's stray space.
                "SLEEP_STUDY_DURATION_DATETIME": f" {datetime.timedelta(seconds=visit.duration_s)}",
                "AGE_AT_SLEEP_STUDY_DAYS": visit.age_days,
            }
        )
        person = {
            "STUDY_PAT_ID": visit.patient_id,
            "BIRTH_DATE": born.strftime("%m/%d/%Y"),
            "PCORI_GENDER_CD": visit.child.sex,
            **dict.fromkeys(("PCORI_RACE_CD", "PCORI_HISPANIC_CD"), "UN"),
            "GENDER_DESCR": "Male" if visit.child.sex == "M" else "Female",
            **dict.fromkeys(("RACE_DESCR", "ETHNICITY_DESCR"), "Unknown"),
            "LANGUAGE_DESCR": "Español" if visit.patient_id % 9 == 0 else "English",
            **dict.fromkeys(("PEDS_GEST_AGE_NUM_WEEKS", "PEDS_GEST_AGE_NUM_DAYS"), ""),
        }
        people.setdefault(visit.patient_id, person)
    tables = {"SLEEP_STUDY": studies, "DEMOGRAPHIC": people.values()}
    for name, rows in (tables | {"DIAGNOSIS": _diagnoses(visits)}).items():
        text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        with write_whole(folder / f"{name}.csv") as temporary:
            temporary.write_text(text, encoding="latin-1")


def _diagnoses(visits: list[Visit]) -> list[dict]:
    """Rows of DIAGNOSIS.csv, those of each visit on its day."""
    rows = []
    for visit in visits:
        child, day = visit.child, visit.start.date()
        found = [_APNEA if child.severity > APNEA_SEVERITY else _SNORING]
        if child.prader_willi:
            found += [_PRADER_WILLI[day < ICD10_SINCE], _OBESITY]
        if visit.patient_id % 5 == 0:
            found.append(_REDACTED)
        for code in found:
            hidden = code is _REDACTED
            rows.append(
                {
                    "STUDY_DX_ID": len(rows) + 1,
                    "STUDY_ENC_ID": visit.study_id,
                    "STUDY_PAT_ID": visit.patient_id,
                    "DX_START_DATETIME": day.strftime("%m/%d/%Y"),
                    "DX_END_DATETIME": "",
                    "DX_SOURCE_TYPE": "Final Dx",
                    "DX_ENC_TYPE": "Sleep Study",
                    **dict(zip(_CODE_COLUMNS, code, strict=True)),
                    "CLASS_OF_PROBLEM": "redacted" if hidden else "",
                    "CHRONIC_YN": "redacted" if hidden else "Y",
                    "PROV_ID": "",
                }
            )
    return rows
