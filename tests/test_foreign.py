"""Files of others are looked at before they are believed."""

import os
import socket

import numpy as np
import pytest
from edf_files import nch_file

from pedsleepmae import foreign
from pedsleepmae.errors import printable
from pedsleepmae.explore import diagnoses
from pedsleepmae.foreign import TableError, as_id, as_number, file_problem, read_table
from pedsleepmae.prepare import layouts, tables
from pedsleepmae.probe.nights import read_studies
from pedsleepmae.store import StoreError

READERS = {  # file -> who reads it, and what it raises
    "SLEEP_STUDY.csv": (layouts.read_health, TableError),
    "DIAGNOSIS.csv": (lambda folder: diagnoses.read_diagnosed(folder, ["G47.33"]), ValueError),
    "list.csv": (lambda folder: diagnoses.read_patient_list(folder / "list.csv"), ValueError),
    "splits.csv": (tables.read_splits, StoreError),
    "studies.csv": (read_studies, None),  # ages are not worth a night of computing: a warning
}
BROKEN = {
    "nothing": b"",
    "blank lines": b"\n\n",
    "NUL bytes": b"\0" * 300,
    "utf-16": "STUDY_PAT_ID,patient_id\n1,2\n".encode("utf-16"),
    "no such columns": b"a,b\n1,2\n",
    "an open quote": b'patient_id,"\n1,2\n',
}


def refused(folder, name) -> str:
    """The sentence with which the reader of a file refuses it."""
    read, error = READERS[name]
    if error is None:
        with pytest.MonkeyPatch.context() as patch:
            said = []
            patch.setitem(read.__globals__, "warn", said.append)
            assert read(folder) is None
        (sentence,) = said
    else:
        with pytest.raises(error) as raised:
            read(folder)
        sentence = str(raised.value)
    assert str(folder / name) in sentence
    assert sentence.isprintable()
    return sentence


# ------------------------------------------------------------------ files
def test_what_is_no_file_is_told_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "large").write_bytes(b"12345")
    (tmp_path / "good").symlink_to("large")
    told = {path.name: file_problem(path, 4) for path in tmp_path.iterdir()}
    assert told["pipe"] == "is a pipe, not a file"
    assert told["socket"] == "is a socket, not a file"
    assert told["loop"] == told["gone"] == "is a link to nothing"
    assert "at most 0 MB are read" in told["large"]
    assert file_problem(tmp_path / "good", 5) == ""
    assert file_problem(tmp_path) == "is a folder, not a file"
    assert file_problem(tmp_path / "x") == "cannot be read (No such file or directory)"
    assert file_problem(tmp_path / "/dev/zero") == "is a device, not a file"


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_place_of_a_table_is_told_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    assert "is a pipe, not a file" in refused(tmp_path, name)


def test_names_and_texts_are_printable_and_stay_one_line():
    assert printable("a\x1b[2J\n\x9b\udcff é µ 睡") == "a\\x1b[2J \\x9b\\udcff é µ 睡"
    assert printable(printable("\udcff")) == printable("\udcff")


# ------------------------------------------------------------------ numbers
@pytest.mark.parametrize(
    "text", ["²", "١٢", "-1", "1_0", "1.5", "", "1e3", "x", "9" * 13, "9" * 5000]
)
def test_only_some_ascii_digits_are_a_patient(text):
    assert as_id(text) is None


def test_a_patient_may_stand_among_blanks_or_with_a_spreadsheets_zero():
    assert [as_id(text) for text in ("7", " 7 ", "7.0", "007", "9" * 12)] == [
        7,
        7,
        7,
        7,
        10**12 - 1,
    ]


@pytest.mark.parametrize("text", ["inf", "nan", "1e300", "-1", "redacted", "", "9" * 5000, "²"])
def test_a_number_that_can_be_none_is_unknown(text):
    assert np.isnan(as_number(text, 0, 1e6))


# ------------------------------------------------------------------ tables
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_a_broken_table_is_one_sentence_with_its_name(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, name)


def test_rows_of_other_lengths_shift_no_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("A,B\n1,2,x\n3\n4,5,x,y\n")
    assert read_table(path, ["A", "B"]).values.tolist() == [["1", "2"], ["3", ""], ["4", "5"]]
    path.write_text("A,B\n1,2,x\n4,5,x\n")
    assert read_table(path, ["b", "a"]).values.tolist() == [["2", "1"], ["5", "4"]]


def test_a_table_too_large_to_be_one_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "LARGEST_TABLE", 10)
    (tmp_path / "a.csv").write_text("A,B\n1,2\n3,4\n")
    with pytest.raises(TableError, match="at most 0 MB are read"):
        read_table(tmp_path / "a.csv", ["A"])


@pytest.mark.parametrize("age", ["inf", "nan", "1e300", "-3", "redacted", "9" * 400, "60000"])
def test_an_age_that_is_none_is_unknown(age, tmp_path):
    text = f"STUDY_PAT_ID,SLEEP_STUDY_ID,AGE_AT_SLEEP_STUDY_DAYS\n1,2,{age}\n3,4,365\n²,5,365\n"
    (tmp_path / "SLEEP_STUDY.csv").write_text(text, encoding="utf-8")
    (tmp_path / "DEMOGRAPHIC.csv").write_text("STUDY_PAT_ID,PCORI_GENDER_CD\n²,F\n3,m \n")
    health = layouts.read_health(tmp_path)
    assert health["patient_id"].tolist() == [1, 3]
    np.testing.assert_array_equal(health["age_days"], [np.nan, 365])
    assert health["sex"].tolist() == ["", "M"]


def test_odd_values_of_studies_csv_are_unknown_and_its_other_rows_count(tmp_path):
    (tmp_path / "studies.csv").write_text(
        "patient_id,study_id,age_days,sex,n_apneas,n_hypopneas,n_arousals\n"
        "1,2,365,F,3,4,5\n1,3,inf,x,text,4,-1\n²,4,365,M,1,1,1\n5,1e300,1,M,1,1,1\n1,2,9,M,9,9,9\n"
        "6,7,9\n",
        encoding="utf-8",
    )
    studies = read_studies(tmp_path)
    assert studies.index.tolist() == [(1, 2), (1, 3), (6, 7)]
    np.testing.assert_array_equal(studies["age_days"], [365, np.nan, 9])
    np.testing.assert_array_equal(studies["apnea_hypopnea_index"], [7, np.nan, np.nan])
    np.testing.assert_array_equal(studies["arousal_index"], [5, np.nan, np.nan])
    assert studies["desaturation_index"].isna().all()
    assert studies["sex"].fillna("").tolist() == ["F", "", ""]


def test_odd_patient_numbers_in_diagnoses_are_passed_over(tmp_path):
    (tmp_path / "DIAGNOSIS.csv").write_text(
        "STUDY_PAT_ID,DX_SOURCE_TYPE,DX_CODE,DX_NAME,DX_ALT_CODE\n"
        "²,x,G47.33,x,x\n١,x,G47.33,x,x\n7,x,G47.33,x\n" + "9" * 30 + ",x,G47.33,x,x\n",
        encoding="utf-8",
    )
    assert diagnoses.read_diagnosed(tmp_path, ["G47.33"]) == {"G47.33": {7}}


# ------------------------------------------------------------------ packed, linked
def test_packed_recordings_and_other_formats_are_listed(tmp_path):
    for name in (
        "1_1.edf",
        "1_1.edf.gz",
        "3_3.edf.gz",
        "4_4.ZIP",
        "5_5.bdf",
        "6_6.rec",
        "notes.zip",
    ):
        (tmp_path / name).write_bytes(b"x")
    problems = {s.edf.name: s.problem for s in layouts.find_studies(tmp_path, "nch")}
    assert problems == {
        "1_1.edf": "no .tsv beside it",
        "3_3.edf.gz": "3_3.edf.gz: is compressed: unpack it",
        "4_4.ZIP": "4_4.ZIP: is compressed: unpack it",
        "5_5.bdf": "5_5.bdf: is not named .edf: convert it to EDF, or rename it where it is one",
        "6_6.rec": "6_6.rec: is not named .edf: convert it to EDF, or rename it where it is one",
    }


def test_a_link_to_a_recording_makes_no_second_patient(tmp_path):
    for suffix in ("edf", "tsv"):
        (tmp_path / f"1_1.{suffix}").write_bytes(b"x")
        (tmp_path / f"2_2.{suffix}").symlink_to(f"1_1.{suffix}")
    problems = [study.problem for study in layouts.find_studies(tmp_path, "nch")]
    assert problems == ["", "same file as 1_1.edf"]


@pytest.mark.parametrize(
    ("clock", "told"),
    [("00.00.00 20.03.07", ""), ("00.00.00 00.00.00", ""), ("01.01.85 21:03:07", "3600 s later"),
     ("00.00.00 20.02.07", "60 s earlier"), ("", "")],
)  # fmt: skip
def test_nsrr_annotations_of_another_start_are_told(clock, told, tmp_path):
    edf = nch_file(seconds=60).write(tmp_path / "chat-baseline-300001.edf")  # 20.03.07
    path = tmp_path / "chat-baseline-300001-nsrr.xml"
    path.write_text(
        "<PSGAnnotation><ScoredEvents><ScoredEvent><EventConcept>Recording Start Time"
        f"</EventConcept><Start>0</Start><Duration>60</Duration><ClockTime>{clock}</ClockTime>"
        "</ScoredEvent><ScoredEvent><EventConcept>REM sleep|5</EventConcept><Start>0</Start>"
        "<Duration>60</Duration></ScoredEvent></ScoredEvents></PSGAnnotation>"
    )
    scoring = layouts.find_scoring(edf, path)
    assert scoring.stages.tolist() == [4, 4]
    assert [told in remark for remark in scoring.remarks] == [True] * bool(told)


def test_of_two_rows_of_one_night_the_one_with_numbers_counts(tmp_path):
    (tmp_path / "studies.csv").write_text(
        "patient_id,study_id,split,status,reason,n_apneas,n_hypopneas,n_desaturations,n_arousals\n"
        "1,2,,unusable,no .tsv beside it,,,,\n1,2,train,used,,3,4,5,6\n3,4,train,used,,1,1,1,1\n"
    )
    studies = read_studies(tmp_path)
    assert studies.index.tolist() == [(1, 2), (3, 4)]
    assert studies["apnea_hypopnea_index"].tolist() == [7, 2]
