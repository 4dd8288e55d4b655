"""Which files belong together: recording, annotations, patient and study, age and sex.

nch: Sleep_Data/<patient>_<study>.edf with .tsv, Health_Data/*.csv (both spellings of the folders).
nsrr: edfs/<group>/chat-<group>-<patient>.edf with ...-nsrr.xml. sleep_edf: SC4001E0-PSG.edf with
SC4001EC-Hypnogram.edf. Names are checked before anything is made of them: the ids are integers,
and only integers reach an output path.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from pedsleepmae.errors import printable
from pedsleepmae.foreign import (
    ID_DIGITS,
    OLDEST_DAYS,
    TableError,
    as_id,
    as_number,
    file_problem,
    read_table,
)
from pedsleepmae.prepare.annotations import (
    AnnotationError,
    Scoring,
    read_nsrr_xml,
    read_tsv,
)
from pedsleepmae.prepare.cells import as_onset, is_clock
from pedsleepmae.prepare.recordings import (
    RecordingError,
    other_start,
    read_edf_annotations,
    read_start_clock,
    refuse_other_start,
)
from pedsleepmae.prepare.text_annotations import AnnotationTable, read_text_annotations

_ID = rf"[0-9]{{1,{ID_DIGITS}}}"
# Recordings that cannot be opened as they are; (name, ".edf" or None) of the packed ones.
_PACKED = re.compile(r"(.*?)(\.(?i:edf))?\.(?i:gz|zip|bz2|xz|zst|7z|rar)", re.DOTALL)
_OTHER_FORMAT = re.compile(r"(.*)\.(?i:bdf|rec)", re.DOTALL)
TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
CHAT_STUDIES = {"baseline": 1, "followup": 2, "nonrandomized": 3}


@dataclass(frozen=True)
class Layout:
    """How files are named: patterns of the whole name of a recording and of its annotations.

    Their group is the key that both share; ``ids`` reads patient and study from it.
    """

    recording: str
    annotations: str
    ids: str
    recording_in_words: str
    annotations_in_words: str


LAYOUTS = {
    "nch": Layout(
        recording=r"(.*)\.(?i:edf)",
        annotations=r"(.*)\.(?i:tsv)",
        ids=rf"(?P<patient>{_ID})_(?P<study>{_ID})",
        recording_in_words=f"<patient>_<study>.edf, two whole numbers up to {ID_DIGITS} digits",
        annotations_in_words=".tsv beside it",
    ),
    "nsrr": Layout(
        recording=r"(.*)\.(?i:edf)",
        annotations=r"(.*)-nsrr\.(?i:xml)",
        ids=rf"chat-([a-z-]*-)?(?P<study>{'|'.join(CHAT_STUDIES)})-(?P<patient>{_ID})",
        recording_in_words=f"chat-<group>-<patient>.edf with a group of {', '.join(CHAT_STUDIES)}",
        annotations_in_words="-nsrr.xml of its name",
    ),
    # SC4ssN.., ST7ssN..: study letter code, subject, night. 4ss and 7ss keep them apart. The
    # scorer's letter makes the 8th character differ: SC4001E0-PSG, SC4001EC-Hypnogram.
    "sleep_edf": Layout(
        recording=r"(.{0,7}).*-(?i:psg\.edf)",
        annotations=r"(.{0,7}).*-(?i:hypnogram\.edf)",
        ids=r"S[CT](?P<patient>\d{3})(?P<study>\d).?",
        recording_in_words="SC4ssN..-PSG.edf or ST7ssN..-PSG.edf",
        annotations_in_words="-Hypnogram.edf of its name",
    ),
}


@dataclass(frozen=True)
class Study:
    """One recording and its annotation file; ``problem`` says why it cannot be used, else "".

    ``annotations`` None: in the recording itself. ``lights``: times of lights off and on, seconds
    from recording start or times of day, "" where they are not known.
    """

    edf: Path
    annotations: Path | None
    patient_id: int | None
    study_id: int | None
    problem: str = ""
    lights: tuple[str, str] = ("", "")

    @property
    def key(self) -> str:
        """<patient>_<study>, the name of its folder of examples."""
        return f"{self.patient_id}_{self.study_id}"


# ------------------------------------------------------------------ many recordings
def find_studies(recordings_dir: Path, layout: str) -> list[Study]:
    """Every recording below a folder, sorted by patient and study; unusable ones with a problem."""
    studies = _pair(sorted(walk(Path(recordings_dir))), LAYOUTS[layout])
    seen: dict[str, Path] = {}
    files: dict[str, Path] = {}
    for i, study in enumerate(studies):
        if study.problem:
            continue
        first = seen.setdefault(study.key, study.edf)
        # A link under another name would make two patients of one.
        file = files.setdefault(os.path.realpath(study.edf), study.edf)
        for other, what in ((first, "same patient and study"), (file, "same file")):
            if other != study.edf:
                same = printable(str(other.relative_to(recordings_dir)))
                studies[i] = replace(study, problem=f"{what} as {same}")
                break
    return in_order(studies)


def in_order(studies: Iterable[Study]) -> list[Study]:
    """By patient and study; recordings without ids come last."""
    last = 1 << 62
    return sorted(studies, key=lambda s: (s.patient_id or last, s.study_id or last, s.edf))


def find_edf_files(folder: Path) -> list[Path]:
    """Every EDF file below a folder that is no layout's annotation file, in the order of names."""
    patterns = [layout.annotations for layout in LAYOUTS.values()]
    return [
        path
        for path in sorted(walk(Path(folder)))
        if path.suffix.lower() == ".edf"
        and not any(re.fullmatch(pattern, path.name, re.DOTALL) for pattern in patterns)
    ]


def _pair(files: list[Path], layout: Layout) -> list[Study]:
    """Pair recordings with annotations by key; of several, the one in the same folder first."""
    recordings, annotations = [], {}
    for path in files:
        if match := re.fullmatch(layout.recording, path.name, re.DOTALL):
            recordings.append((match[1], path))
        elif match := re.fullmatch(layout.annotations, path.name, re.DOTALL):
            annotations.setdefault(match[1], []).append(path)
    studies = []
    for key, edf in recordings:
        found = sorted(annotations.get(key, []), key=lambda path: path.parent != edf.parent)
        patient_id, study_id = _ids(key, layout)
        problem = _problem(edf, found, layout)
        if patient_id is None:
            problem = f"file name is not {layout.recording_in_words}"
        studies.append(Study(edf, found[0] if found else None, patient_id, study_id, problem))
    studies += _not_readable(files, layout, known=dict(recordings))
    for key in annotations.keys() - dict(recordings):
        patient_id, study_id = _ids(key, layout)
        if patient_id is not None:
            path, problem = annotations[key][0], "annotations without a recording"
            studies.append(Study(path, path, patient_id, study_id, problem))
    return studies


def _not_readable(files: list[Path], layout: Layout, known: Collection[str]) -> Iterator[Study]:
    """Recordings, by their names, that are packed or no EDF; ``known``: keys of the others."""
    for path in files:
        packed = _PACKED.fullmatch(path.name)
        other = _OTHER_FORMAT.fullmatch(path.name)
        if not (packed or other):
            continue
        name = f"{(packed or other)[1]}.edf"
        match = re.fullmatch(layout.recording, name, re.DOTALL)
        patient_id, study_id = _ids(match[1], layout) if match else (None, None)
        is_recording = patient_id is not None or (packed and packed[2])
        if is_recording and not (match and match[1] in known):
            problem = "is compressed: unpack it"
            if other:
                problem = "is not named .edf: convert it to EDF, or rename it where it is one"
            problem = f"{printable(path.name)}: {problem}"
            yield Study(path, None, patient_id, study_id, problem)


def _problem(edf: Path, annotations: list[Path], layout: Layout) -> str:
    """Why a recording and its annotations, best first, cannot be opened; "" when they can."""
    if not annotations:
        return f"no {layout.annotations_in_words}"
    for path in (edf, annotations[0]):
        if problem := file_problem(path):
            return f"{printable(path.name)}: {problem}"
    return ""


def _ids(key: str, layout: Layout) -> tuple[int, int] | tuple[None, None]:
    """Patient and study, both None when the name does not tell them."""
    match = re.fullmatch(layout.ids, key, re.ASCII)
    if match is None:
        return None, None
    study = match["study"]
    return int(match["patient"]), CHAT_STUDIES.get(study) or int(study)


def walk(folder: Path) -> Iterator[Path]:
    """All below a folder but what is hidden, linked folders included.

    OSError for one that cannot be listed.
    """

    def refuse(error: OSError):
        raise error

    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above or seen before
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in names if not name.startswith(".")]
        yield from (Path(place) / name for name in folders + names)  # a folder may be named .edf


# ------------------------------------------------------------------ one recording's scoring
def find_annotations(recording: Path) -> Path | None:
    """The annotation file beside a recording, by the names of the layouts; else None.

    Names are compared without case, as the layouts compare their ends.
    """
    recording = Path(recording)
    try:
        beside = {name.lower(): name for name in sorted(os.listdir(recording.parent))}
    except OSError:  # whoever opens the recording will say so
        return None
    stem = recording.stem.lower()
    named = [f"{stem}.tsv", f"{stem}-nsrr.xml"]
    if stem.endswith("-psg"):
        named += [
            name for name in beside if name.endswith("-hypnogram.edf") and name[:7] == stem[:7]
        ]
    named.append(f"{stem}.csv")
    found = next((beside[name] for name in named if name in beside), None)
    return found and recording.with_name(found)


def read_annotations(
    path: Path, table: AnnotationTable | None = None, recording: Path | None = None
) -> Scoring:
    """Scoring of an annotation file, its format by its suffix: .xml (NSRR), EDF+ or text.

    ``table``: how text reads (.csv, .txt, .tsv), and whose words it and EDF+ hold; None: its
    defaults, and a .tsv is NCH's. ``recording``: whose start times of day count from. Raises
    AnnotationError or RecordingError when it cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".tsv" and table is None:
        return read_tsv(path)
    if suffix == ".xml":
        scoring = read_nsrr_xml(path)
        if recording is not None and (told := other_start(scoring.start_clock_s, recording)):
            scoring.remarks.append(told)
        return scoring
    table = table or AnnotationTable()
    if suffix in TEXT_SUFFIXES:
        return read_text_annotations(path, table, recording)
    if recording is not None:
        refuse_other_start(path, recording)
    return table.scoring(read_edf_annotations(path))


def find_scoring(
    recording: Path, annotations: Path | None = None, table: AnnotationTable | None = None
) -> Scoring | None:
    """Scoring of one recording: from the file given, the one beside it, or its own EDF+ rows.

    None when there is none. ``table``: as in :func:`read_annotations`. Raises AnnotationError for
    one that cannot be read.
    """
    annotations = annotations or find_annotations(recording)
    try:
        if annotations is not None:
            return read_annotations(annotations, table, recording)
        scoring = own_rows(recording, table)
    except RecordingError as error:
        raise AnnotationError(str(error)) from error
    return scoring if (scoring.stages >= 0).any() else None


def own_rows(recording: Path, table: AnnotationTable | None = None) -> Scoring:
    """What a recording's own EDF+ rows say, staged or not; RecordingError where they are broken."""
    return (table or AnnotationTable()).scoring(read_edf_annotations(recording))


def read_lights(study: Study) -> tuple[float, float]:
    """Lights off and on, seconds from recording start, infinite where they are not known."""
    start_s = read_start_clock(study.edf) if any(map(is_clock, study.lights)) else None
    off, on = study.lights
    off_s = as_onset(off, start_s) if off else -np.inf
    on_s = as_onset(on, start_s) if on else np.inf
    return off_s, on_s


# ------------------------------------------------------------------ health data
def read_health(health_dir: Path) -> pd.DataFrame:
    """Age and sex of NCH's studies: columns patient_id, study_id, age_days, sex ("F", "M", "").

    From SLEEP_STUDY.csv and DEMOGRAPHIC.csv (file names in any case); what is missing or can be
    none is left blank. Raises TableError when SLEEP_STUDY.csv is not there or one is no table.
    """
    tables = {path.name.upper(): path for path in sorted(Path(health_dir).iterdir())}
    if "SLEEP_STUDY.CSV" not in tables:
        raise TableError(f"{health_dir}: no SLEEP_STUDY.csv in it; give NCH's Health_Data folder")
    ids = ["STUDY_PAT_ID", "SLEEP_STUDY_ID"]
    table = read_table(tables["SLEEP_STUDY.CSV"], [*ids, "AGE_AT_SLEEP_STUDY_DAYS"])
    health = table[ids].map(as_id).set_axis(["patient_id", "study_id"], axis=1)
    ages = [as_number(text, 0, OLDEST_DAYS) for text in table["AGE_AT_SLEEP_STUDY_DAYS"]]
    health["age_days"] = np.array(ages, float)
    health = health.dropna(subset=["patient_id", "study_id"])
    health = health.astype({"patient_id": int, "study_id": int})
    sex = {}
    if "DEMOGRAPHIC.CSV" in tables:
        wanted = ["STUDY_PAT_ID", "PCORI_GENDER_CD"]
        for patient, code in read_table(tables["DEMOGRAPHIC.CSV"], wanted).to_numpy():
            if code.strip().upper() in ("F", "M"):
                sex.setdefault(as_id(patient), code.strip().upper())
    health["sex"] = [sex.get(patient, "") for patient in health["patient_id"]]
    return health.drop_duplicates(["patient_id", "study_id"])


def find_health_dir(recordings_dir: Path) -> Path | None:
    """Health_Data (in any case) in the recordings' folder or beside it, None when there is none."""
    for folder in (Path(recordings_dir), Path(recordings_dir).resolve().parent):
        if not os.access(folder, os.R_OK):  # a parent may be closed, and holds nothing we must have
            continue
        for path in sorted(folder.iterdir()):
            if path.is_dir() and path.name.lower() == "health_data":
                return path
    return None
