"""Layout table: recordings of any name, ids of any text, annotations of any laboratory."""

import os
import runpy
import signal
from dataclasses import replace
from pathlib import Path

import edfio
import h5py
import numpy as np
import pandas as pd
import pytest
from edf_files import nch_file, stage_rows, write_tsv

from pedsleepmae.errors import SettingsError
from pedsleepmae.prepare import cells, ids, layouts
from pedsleepmae.prepare.annotations import AnnotationError, Scoring, within_lights
from pedsleepmae.prepare.examples import ExampleSettings, UnusableRecording, read_study
from pedsleepmae.prepare.recording_table import read_recordings
from pedsleepmae.prepare.recordings import RecordingError, read_start_clock
from pedsleepmae.prepare.studies import fingerprint
from pedsleepmae.prepare.text_annotations import AnnotationTable, read_text_annotations
from pedsleepmae.tasks import UNSCORED

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ExampleSettings(layout="table")
W, N1, N2, N3, R = range(5)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def recording(path: Path, start: str = "22.15.00", seconds: int = 120) -> Path:
    labels = ["EEG C3-M2", "EEG C4-M1", "EOG LOC-M2", "SPO2"]
    file = nch_file(seconds=seconds, rate_hz=128, labels=labels)
    file.header["starttime"] = start.encode()
    return file.write(path)


def scored(folder: Path, name: str, stages: str = "W12") -> Path:
    """A recording with its scoring beside it."""
    edf = recording(folder / f"{name}.edf")
    write_tsv(folder / f"{name}.tsv", stage_rows(0.0, stages))
    return edf


def studies_of(folder: Path, table: str, **options) -> list[layouts.Study]:
    return read_recordings(write(folder / "recordings.csv", table), **options)[0]


def script_1(folder: Path, *options) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    argv = ["--layout", "table", "--paths.table", folder / "recordings.csv", "--n_workers", "1"]
    argv += ["--paths.examples_dir", folder / "out" / "examples"]
    argv += ["--paths.batches_dir", folder / "out" / "batches", *options]
    try:
        main = runpy.run_path(str(ROOT / "1_prepare_dataset.py"))["main"]
        return main([str(arg) for arg in argv])
    except SystemExit as error:
        return error.code
    finally:
        signal.signal(signal.SIGTERM, handler)


def read(path: Path, edf: Path | None = None, **columns) -> Scoring:
    table = AnnotationTable(**columns)
    table.check()
    return read_text_annotations(path, table, edf)


# ------------------------------------------------------------------ the whole way
def test_a_table_of_text_ids_gives_batches_with_numbers_and_no_text_anywhere(tmp_path, capfd):
    recording(tmp_path / "first night" / "Anna Schmidt.edf")
    beside = "Beginn\tDauer\tStadium\n0,5\t90\tSchlafstadium N2\n"
    write(tmp_path / "first night" / "Anna Schmidt.tsv", beside)
    recording(tmp_path / "b.edf")
    write(
        tmp_path / "scores" / "b.csv", "Beginn;Dauer;Stadium\n22:15:00;30,0;Wach\n22:15:30;30;N3\n"
    )
    write(
        tmp_path / "recordings.csv",
        "Recording;Patient;Study;Annotations;Age_years;Sex\r\n"
        "first night/Anna Schmidt.edf;Müller-7;PSG 2;;7,5;f\r\n"
        "b.edf;Secret;;scores/b.csv;12;M\r\n"
        "gone.edf;Third;;;;\r\n",
        "utf-16",
    )
    words = ["--annotation_table.onset", "Beginn", "--annotation_table.duration", "Dauer"]
    words += ["--annotation_table.text", "Stadium"]
    words += ["--annotation_table.stage_words", "{wach: W, schlafstadium n2: N2}"]
    assert script_1(tmp_path, *words) == 0
    table = pd.read_csv(tmp_path / "out" / "batches" / "studies.csv", keep_default_na=False)
    assert table["patient_id"].tolist() == [1, 2, 3]
    assert table["study_id"].tolist() == [1, 1, 1]
    assert table["status"].tolist() == ["used", "used", "unusable"]
    assert table["n_examples"].tolist() == [3, 2, 0]
    assert table["age_days"].tolist() == ["2739", "4383", ""]
    assert table["sex"].tolist() == ["F", "M", ""]
    assert table["reason"][2] == (
        "gone.edf: cannot be read (No such file or directory) (line 4 of the table)"
    )
    key = "patient,study,patient_id,study_id\nMüller-7,PSG 2,1,1\nSecret,1,2,1\nThird,1,3,1\n"
    assert (tmp_path / "ids.csv").read_text(encoding="utf-8") == key
    with h5py.File(tmp_path / "out/examples/2_1/2_1_sample_1.hdf5") as file:
        assert (file["patID"][()], file["sleep_label"][()]) == (2, N3)
        assert file.attrs["onset_s"] == 30.0
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    said = "".join(capfd.readouterr()).encode()
    for text in ("Müller", "Secret", "Third"):
        assert text.encode() not in everything + said

    others = [*words[:-1], "{wach: W, schlafstadium n2: N2, N3: N2}"]
    assert script_1(tmp_path, *others) == 0  # a changed word makes the examples anew
    with h5py.File(tmp_path / "out/examples/2_1/2_1_sample_1.hdf5") as file:
        assert file["sleep_label"][()] == N2


# ------------------------------------------------------------------ the table
def test_files_are_relative_to_the_table_and_may_lie_anywhere(tmp_path):
    inside, outside = scored(tmp_path / "t" / "a", "x"), scored(tmp_path / "elsewhere", "y")
    third = scored(tmp_path / "third", "z")
    found = studies_of(
        tmp_path / "t", f"recording,patient\na/x.edf,1\n../elsewhere/y.edf,2\n{third},3\n"
    )
    assert [study.problem for study in found] == ["", "", ""]
    assert [study.edf.resolve() for study in found] == [inside, outside, third]
    assert [study.annotations.name for study in found] == ["x.tsv", "y.tsv", "z.tsv"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_a_table_reads_in_every_delimiter_and_encoding(tmp_path, delimiter, encoding):
    scored(tmp_path, "nächtlich")
    lines = [["patient", "AGE", "recording"], ["Zoë", "7,25" if delimiter != "," else "7.25"]]
    lines[1].append("nächtlich.edf")
    text = "".join(delimiter.join(line) + "\r\n" for line in lines)
    (study,), health, found = read_recordings(write(tmp_path / "t.csv", text, encoding))
    assert (study.problem, study.key) == ("", "1_1")
    assert found.patients == {"Zoë": 1}
    assert health["age_days"].tolist() == [7.25 * 365.25]


def test_studies_without_an_id_are_counted_for_each_patient_in_the_order_of_the_table(tmp_path):
    for name in "abcd":
        scored(tmp_path, name)
    found = studies_of(
        tmp_path, "recording,patient,study\nb.edf,5,\nc.edf,6,\na.edf,5,\nd.edf,6,9\n"
    )
    assert [(study.edf.stem, study.key) for study in found] == [
        ("b", "5_1"), ("a", "5_2"), ("c", "6_1"), ("d", "6_9"),
    ]  # fmt: skip
    assert not (tmp_path / "ids.csv").exists()


def test_every_row_that_cannot_be_used_is_listed_with_its_reason_and_stops_no_other(tmp_path):
    for name in "abcdefg":
        scored(tmp_path, name)
    (tmp_path / "folder.edf").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    os.link(tmp_path / "a.edf", tmp_path / "linked.edf")
    (tmp_path / "soft.edf").symlink_to("a.edf")
    rows = [  # from line 2 on
        ("a.edf,P1,1,,", ""),
        ("./a.edf,P2,1,,", "the same recording as another (line 3, as line 2)"),
        ("soft.edf,P3,1,,", "the same recording as another (line 4, as line 2)"),
        ("b.edf,P1,1,,", "same patient and study as another (line 5, as line 2)"),
        (",P4,1,,", "the table names no recording (line 6 of the table)"),
        ("c.edf,,1,,", "the table names no patient (line 7 of the table)"),
        ("folder.edf,P5,1,,", "folder.edf: is a folder, not a file (line 8 of the table)"),
        ("d.edf,P6,1,pipe.csv,", "pipe.csv: is a pipe, not a file (line 9 of the table)"),
        ("e.edf,P7,1,,half past ten", "lights_off is no time such as 22:15:00 and no number of "
         "seconds (line 10 of the table)"),
        ("f.edf,P8,1,,,extra", "the table's line has 6 cells for 5 columns (line 11 of the table)"),
        (f"{'x' * 300}.edf,P9,1,,", f"{'x' * 300}.edf: cannot be read (File name too long) "
         "(line 12 of the table)"),
        ("g.edf,P1,2", ""),
    ]  # fmt: skip
    lines = ["recording,patient,study,annotations,lights_off", *(row for row, _ in rows)]
    found = studies_of(tmp_path, "\n".join(lines))
    assert sorted(study.problem for study in found) == sorted(problem for _, problem in rows)
    assert [study.edf.stem for study in found if not study.problem] == ["a", "g"]
    assert len(set(found)) == len(rows)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recording,patient,gender\na.edf,1,F\n", "unknown column 'gender'"),
        ("recording,study\na.edf,1\n", "needs the columns recording and patient"),
        ("Smith,a.edf,1\n", "needs the columns recording and patient"),
        ("recording,patient,sex,sex\na.edf,1,F,M\n", "the column sex twice"),
        ('recording,patient\n"a.edf,1\n', "close its quotes"),
        ("", "needs the columns recording and patient"),
        ("recording,patient\n", "no recording"),
        ("recording,patient" + ",x" * 1_000_000, "unknown column 'x'"),
        ("\0" * 300, "needs the columns recording and patient"),
    ],
    ids=["unknown", "missing", "headless", "twice", "quote", "empty", "no row", "wide", "NUL"],
)
def test_a_table_that_is_none_stops_the_script_with_2_and_the_remedy(tmp_path, capfd, text, told):
    write(tmp_path / "recordings.csv", text)
    assert script_1(tmp_path) == 2
    said = capfd.readouterr().err
    assert told in said
    assert "paths.table" in said
    assert said.count("\n") == 1
    assert "Smith" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layout", "nch"], "add --layout table"),
        (["--paths.table", "null"], "--paths.table FILE.csv"),
        (["--paths.table", "no.csv"], "there is no file no.csv"),
        (["--paths.table", "."], "there is no file ."),
        (["--paths.health_dir", "."], "age_years and sex"),
        (["--annotation_table.stage_words", "{Wach: Wake}"], "W, N1, N2, N3, R, ?"),
        (["--annotation_table.event_words", "{Apnoe: apnea}"], "central_apnea"),
        (["--annotation_table.stage_words", "{Wach: W, wach: N1}"], "stands for two things"),
        (
            ["--annotation_table.stage_words", "{x: W}", "--annotation_table.event_words",
             "{X: arousal}"],
            "in stage_words and in event_words",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_stop_the_script_with_2(tmp_path, capfd, options, told):
    write(tmp_path / "recordings.csv", "recording,patient\na.edf,1\n")
    assert script_1(tmp_path, *options) == 2
    assert told in capfd.readouterr().err


def test_ages_and_sexes_that_cannot_be_are_unknown_and_said(tmp_path, capfd):
    table = "recording,patient,age_years,sex\na.edf,1,0.5,female\nb.edf,2,-3,x\nc.edf,3,,\n"
    _, health, _ = read_recordings(write(tmp_path / "t.csv", table))
    np.testing.assert_array_equal(health["age_days"], [0.5 * 365.25, np.nan, np.nan])
    assert health["sex"].tolist() == ["F", "", ""]
    said = capfd.readouterr().err
    assert "1 values of age_years" in said
    assert "1 values of sex" in said


# ------------------------------------------------------------------ ids
def test_numbers_of_text_ids_stay_when_the_table_grows_and_is_sorted_anew(tmp_path):
    first = [("Zoë", "b"), ("Zoë", "a"), ("4", "1"), ("=1+1", "1")]
    found = ids.Ids(tmp_path / "ids.csv").extend(first)
    assert found.patients == {"4": 4, "Zoë": 1, "=1+1": 2}
    assert found.studies[("Zoë", "b")], found.studies[("Zoë", "a")] == (1, 2)
    found.write()
    again = ids.read_ids(tmp_path / "ids.csv")
    assert again == found
    grown = again.extend([("Amy", "1"), ("2", "1"), ("007", "1"), ("Zoë", "c"), *first])
    assert grown.patients == {**found.patients, "007": 7, "Amy": 3, "2": 5}  # 2 is taken
    assert grown.studies[("Zoë", "c")] == 3
    assert grown.studies.items() >= found.studies.items()


def test_one_id_in_other_spellings_is_one(tmp_path):
    spellings = ["Zoe\u0308  A ", "Zoë A", "'Zoë A"]
    assert {ids.plain_id(text) for text in spellings} == {"Zoë A"}
    assert [ids.plain_id(text) for text in ("007", "7.0", "7", "7a")] == ["7", "7", "7", "7a"]


@pytest.mark.parametrize(
    "lines",
    ["A,1,1,1\nB,1,1,1", "A,1,1,1\nA,2,2,1", "A,1,1,1\nA,2,1,1", "A,1,x,1", "A,1,1", "A,1,-1,1"],
)
def test_an_ids_file_that_contradicts_itself_stops_the_script_and_stays(tmp_path, capfd, lines):
    text = f"patient,study,patient_id,study_id\n{lines}\n"
    write(tmp_path / "ids.csv", text)
    write(tmp_path / "recordings.csv", "recording,patient\na.edf,1\n")
    assert script_1(tmp_path) == 2
    said = capfd.readouterr().err
    assert f"line {len(text.splitlines())}" in said
    assert "--paths.ids" in said
    assert (tmp_path / "ids.csv").read_text() == text


def test_a_file_of_others_called_ids_is_never_replaced(tmp_path):
    write(tmp_path / "ids.csv", "name\nmine\n")
    write(tmp_path / "recordings.csv", "recording,patient\na.edf,A\n")
    assert script_1(tmp_path) == 2
    assert (tmp_path / "ids.csv").read_text() == "name\nmine\n"


# ------------------------------------------------------------------ annotations in text
CLOCKED = (
    "Night report;;\n\n"
    "Uhrzeit;Dauer;Ereignis\n"
    "23:59:30;30;WACH\n"
    "00:00:00;30,0;Schlaf 2\n"
    "00:00:30;30;REM\n"
    "00:00:10,5;12,25;Apnoe zentral\n"
    "23:59:00;30;N1\n"
)
GERMAN = {
    "onset": "Uhrzeit",
    "duration": "dauer",
    "text": "Ereignis",
    "stage_words": {"Wach": "W", "Schlaf 2": "N2"},
    "event_words": {"apnoe  zentral": "central_apnea"},
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_clock_times_count_from_the_start_in_the_header_past_midnight(tmp_path, encoding):
    edf = recording(tmp_path / "x.edf", start="23.59.15")
    scoring = read(write(tmp_path / "x.csv", CLOCKED, encoding), edf, **GERMAN)
    assert scoring.stage_onsets_s.tolist() == [-15.0, 15.0, 45.0, 75.0]
    assert scoring.stages.tolist() == [N1, W, N2, R]
    (event,) = scoring.events
    assert (event.onset_s, event.duration_s, event.kind, event.code) == (55.5, 12.25, "apnea", 1)
    assert scoring.remarks == []


@pytest.mark.parametrize(
    ("text", "start_s", "onset_s"),
    [
        ("90", 0.0, 90.0),
        ("90,25", 0.0, 90.25),
        ("1e2", 0.0, 100.0),
        ("22:15:00", 22 * 3600.0, 900.0),
        ("22:15", 22 * 3600.0, 900.0),
        ("10:15:00 PM", 22 * 3600.0, 900.0),
        ("12:00 am", 23 * 3600.0, 3600.0),
        ("15/01/2016 22:15:00", 22 * 3600.0, 900.0),
        ("2016-01-15T22:15:00.250", 22 * 3600.0, 900.25),
        ("21:30:00", 22 * 3600.0, -1800.0),  # up to an hour before the start
        ("20:59:59", 22 * 3600.0, 82799.0),
        ("01:00:30", None, 3630.0),  # since the start
        ("25:00:00", None, 90000.0),
        ("25:00:00", 0.0, None),
        ("22:60:00", 0.0, None),
        ("1.234,5", 0.0, None),
        ("nan", 0.0, None),
        ("", 0.0, None),
        ("T" * 100_000, 0.0, None),
    ],
)
def test_times_read_as_they_are_written(text, start_s, onset_s):
    assert cells.as_onset(text, start_s) == onset_s


def test_elapsed_times_need_no_start(tmp_path):
    path = write(tmp_path / "x.txt", "onset\tduration\tdescription\n0:01:00\t0:00:30\tN2\n")
    scoring = read(path, times="elapsed")
    assert scoring.stage_onsets_s.tolist() == [60.0]
    with pytest.raises(AnnotationError, match="times of day; give the recording"):
        read(path)


def test_a_fraction_of_the_start_second_counts_and_a_start_that_is_none_is_told(tmp_path):
    signal_ = edfio.EdfSignal(np.zeros(3000), 100, label="C3-M2", physical_range=(-1, 1))
    rows = [edfio.EdfAnnotation(0.0, 30.0, "note")]
    clock = pd.Timestamp("2001-01-01 22:15:00.25").time()
    edfio.Edf([signal_], annotations=rows, starttime=clock).write(tmp_path / "x.edf")
    assert read_start_clock(tmp_path / "x.edf") == 22 * 3600 + 15 * 60 + 0.25
    with pytest.raises(RecordingError, match="tells no start time"):
        read_start_clock(recording(tmp_path / "y.edf", start="XX.XX.XX"))
    long = nch_file(seconds=4, rate_hz=4, labels=["C3-M2"], record_s=4)
    long.signals[0].digital = np.zeros(4 * 24 * 3600, np.int16)
    with pytest.raises(RecordingError, match=r"lasts 24\.0 h"):
        read_start_clock(long.write(tmp_path / "z.edf"))


def test_without_durations_a_stage_lasts_to_the_next_row_and_30_s_at_most(tmp_path):
    text = "onset,description\n0,N2\n30,N3\n50,R\n70,R\n150,W\n160,Hypopnea\n"
    scoring = read(write(tmp_path / "x.csv", text))
    # 30 to 90 s is a grid of 20 s: 20 s of N3 and 10 s of R, then R.
    assert scoring.stage_onsets_s.tolist() == [0.0, 30.0, 60.0, 150.0]
    assert scoring.stages.tolist() == [N2, N3, R, W]
    assert [(event.onset_s, event.duration_s) for event in scoring.events] == [(160.0, 0.0)]
    told = "no stage has a duration (column 'duration'): 20 s are taken"
    assert scoring.remarks[-1] == told
    blank = text.replace("\n", ",\n").replace("description,", "description,duration")
    again = read(write(tmp_path / "y.csv", blank))
    assert again == replace(scoring, stage_onsets_s=again.stage_onsets_s, stages=again.stages)
    assert again.stages.tolist() == scoring.stages.tolist()


def test_own_words_count_beside_the_common_ones_and_before_them(tmp_path):
    text = "onset,duration,description\n0,30,1\n30,30,Sleep stage N2\n60,30,art\n90,30,REM\n"
    path = write(tmp_path / "x.csv", text)
    words = {"1": "N1", "ART": "?", "Sleep Stage N2": "N3"}
    scoring = read(path, stage_words=words)
    assert scoring.stages.tolist() == [N1, N3, UNSCORED]  # beside "Sleep stage", REM is a note


def test_rows_that_cannot_be_read_are_counted_and_what_stands_in_quotes_is_one_cell(tmp_path):
    text = (
        'onset,duration,description\n0,30,N2\nsoon,30,N2\n60,long,N2\n90,30\n120,30,"N3"\n'
        '130,5,"note, with a comma"\n150,30,N2,unquoted\n180,30,W,\n'
    )
    scoring = read(write(tmp_path / "x.csv", text))
    assert scoring.stage_onsets_s.tolist() == [0.0, 120.0, 180.0]
    assert scoring.remarks == ["3 rows without a numeric onset and duration left out"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("onset,duration,description\n" + "0,30,Wachphase\n" * 5, r"stage_words .*'Wachphase' \(5"),
        ("onset,duration,description\n0,30,Jane Doe cried\n", "names a stage"),
        ("start,length,what\n0,30,N2\n", "annotation_table.onset"),
        ("", "annotation_table.onset"),
        ("\0" * 99, "annotation_table.onset"),
        ('onset,duration,description\n0,30,"N2\n', "close its quotes"),
        ("onset,duration,description\n0,30," + "x" * 200_000, "cannot be taken apart"),
    ],
)
def test_annotations_that_cannot_be_used_say_why_and_quote_no_note(tmp_path, text, told):
    with pytest.raises(AnnotationError, match=told) as raised:
        read(write(tmp_path / "x.csv", text))
    assert "Jane" not in str(raised.value)


def test_text_without_settings_reads_as_the_reader_of_nch_does(tmp_path):
    nights = sorted((ROOT.parent / "shared" / "psg" / "ucddb_tsv").glob("*.tsv"))
    if not nights:
        pytest.skip("no ../shared/psg/ucddb_tsv")
    for path in nights:
        of_nch, scoring = layouts.read_annotations(path), read(path)
        assert scoring.stage_onsets_s.tolist() == of_nch.stage_onsets_s.tolist()
        assert scoring.stages.tolist() == of_nch.stages.tolist()
        assert scoring.events == of_nch.events


def test_a_real_export_in_french_and_utf_16_is_read(tmp_path):
    folder = ROOT.parent / "shared" / "psg" / "nox_a1_rsleep"
    if not folder.exists():
        pytest.skip("no ../shared/psg/nox_a1_rsleep")
    scoring = read(
        folder / "noxturnal_events_example_unicode_2.csv",
        recording(tmp_path / "x.edf", start="22.30.00"),
        onset="Heure de début",
        duration="Durée",
        text="Événement",
        stage_words={"Éveil": "W"},
        event_words={"Désat": "desaturation", "A. Obstructive": "obstructive_apnea"},
    )
    assert scoring.stage_onsets_s[:2].tolist() == [4560.0, 4590.0]  # 23:46:00
    counts = pd.read_csv(
        folder / "noxturnal_events_example_unicode_2.csv", encoding="utf-16", index_col=False
    )["Événement"].value_counts()
    for stage, word in enumerate(("Éveil", "N1", "N2", "N3", "REM")):
        assert (scoring.stages == stage).sum() == counts[word]
    assert [e.kind for e in scoring.events].count("desat") == counts["Désat"]


# ------------------------------------------------------------------ where annotations are found
def test_annotations_are_found_as_named_beside_the_recording_or_in_it(tmp_path):
    recording(tmp_path / "a.edf")
    write(tmp_path / "a.csv", "onset,duration,description\n0,30,N1\n")
    recording(tmp_path / "b.edf")
    signal_ = edfio.EdfSignal(np.random.default_rng(0).normal(size=12800), 128, label="C4-M1")
    rows = [edfio.EdfAnnotation(30.0, 30.0, "Wach"), edfio.EdfAnnotation(60.0, 30.0, "N3")]
    edfio.Edf([signal_], annotations=rows).write(tmp_path / "c.edf")
    edfio.Edf([], annotations=rows).write(tmp_path / "night hypnogram.edf")
    recording(tmp_path / "d.edf")
    table = "recording,patient,annotations\na.edf,1,\nb.edf,2,night hypnogram.edf\nc.edf,3,\n"
    table += "d.edf,4,\n"
    settings = replace(SETTINGS, annotation_table=AnnotationTable(stage_words={"wach": "W"}))
    found = studies_of(tmp_path, table)
    assert [study.annotations and study.annotations.name for study in found] == [
        "a.csv", "night hypnogram.edf", None, None,
    ]  # fmt: skip
    stages = [read_study(study, settings)[1].sleep.tolist() for study in found[:3]]
    assert stages == [[N1], [W, N3], [W, N3]]
    with pytest.raises(UnusableRecording, match="none beside it, and no stages in it"):
        read_study(found[3], settings)


def test_a_tsv_is_read_by_its_settings_in_layout_table_and_as_nch_elsewhere(tmp_path):
    path = write(
        tmp_path / "x.tsv", "onset\tduration\tdescription\n0.5\t00:00:30\tN2\n40\t30\tN3\n"
    )
    own = layouts.read_annotations(path, SETTINGS.text_table())
    assert own.stage_onsets_s.tolist() == [0.5, 40.0]
    of_nch = layouts.read_annotations(path, replace(SETTINGS, layout="nch").text_table())
    assert of_nch.stage_onsets_s.tolist() == [40.0]


# ------------------------------------------------------------------ lights off and on
def test_epochs_that_do_not_lie_whole_between_lights_off_and_on_are_left_out():
    scoring = Scoring(np.arange(0.0, 150, 30), np.array([W, UNSCORED, N1, N2, W]), [], ["told"])
    left = within_lights(scoring, 30.0, 119.0)
    assert left.stage_onsets_s.tolist() == [30.0, 60.0]
    assert left.remarks == [
        "told", "3 scored epochs left out that do not lie between lights off and on",
    ]  # fmt: skip
    assert within_lights(scoring, -np.inf, np.inf).remarks == ["told"]


@pytest.mark.parametrize(
    ("lights", "onsets_s"),
    [
        (("", ""), [0, 30, 60, 90]),
        (("22:15:30", ""), [30, 60, 90]),
        (("30", "22:16:30"), [30, 60]),
        (("", "89,5"), [0, 30]),
    ],
)
def test_lights_are_times_of_day_or_seconds_and_part_of_what_is_finished(
    tmp_path, lights, onsets_s
):
    scored(tmp_path, "a", "W123")
    (study,) = studies_of(
        tmp_path, f'recording,patient,lights_off,lights_on\na.edf,1,{lights[0]},"{lights[1]}"\n'
    )
    opened, labels = read_study(study, SETTINGS)
    assert labels.onsets_s.tolist() == onsets_s
    assert len(opened.remarks) == (len(onsets_s) < 4)
    bare = replace(study, lights=("", ""))
    same = fingerprint(study, SETTINGS) == fingerprint(bare, SETTINGS)
    assert same == (study == bare)


def test_lights_on_before_lights_off_is_a_reason(tmp_path):
    scored(tmp_path, "a")
    (study,) = studies_of(tmp_path, "recording,patient,lights_off,lights_on\na.edf,1,60,30\n")
    with pytest.raises(UnusableRecording, match="between lights off and lights on"):
        read_study(study, SETTINGS)


def test_a_bdf_file_is_refused_and_not_read_as_edf(tmp_path):
    write_tsv(tmp_path / "a.tsv", stage_rows(0.0, "W"))
    nch_file(seconds=60, rate_hz=4, header={"version": b"\xffBIOSEMI"}).write(tmp_path / "a.bdf")
    (study,) = studies_of(tmp_path, "recording,patient\na.bdf,1\n")
    with pytest.raises(RecordingError, match="a BDF file; convert it to EDF"):
        read_study(study, SETTINGS)


def test_an_ids_file_elsewhere_is_used_and_one_that_cannot_be_written_is_told(tmp_path):
    scored(tmp_path, "a")
    write(tmp_path / "keys" / "k.csv", "patient,study,patient_id,study_id\nA,1,41,7\n")
    (study,) = studies_of(
        tmp_path, "recording,patient\na.edf,A\n", ids_path=tmp_path / "keys" / "k.csv"
    )
    assert study.key == "41_7"
    write(tmp_path / "file", "")
    with pytest.raises(SettingsError, match=r"paths\.ids: .* cannot be written"):
        ids.Ids(tmp_path / "file" / "ids.csv").extend([("A", "1")]).write()


@pytest.mark.parametrize("hours", [-1, 1])
def test_times_of_day_across_a_change_of_the_clock_are_refused(hours, tmp_path):
    recording = nch_file(seconds=300, header={"starttime": b"23.00.00"}).write(tmp_path / "a.edf")

    def scoring_of(jump_s):
        times = [f"{(23 * 3600 + 30 * i + jump_s * (i > 4)) % 86400}" for i in range(10)]
        clocks = [f"{int(t) // 3600}:{int(t) // 60 % 60:02}:{int(t) % 60:02}" for t in times]
        text = "onset,duration,description\n" + "".join(f"{c},30,N2\n" for c in clocks)
        (tmp_path / "a.csv").write_text(text)
        return read_text_annotations(tmp_path / "a.csv", AnnotationTable(), recording)

    assert scoring_of(0).stage_onsets_s.tolist() == [30.0 * i for i in range(10)]
    with pytest.raises(AnnotationError, match="jump by an hour"):
        scoring_of(3600 * hours)


def test_commas_between_thousands_are_no_decimal_ones(tmp_path):
    def scoring_of(onsets):
        rows = "".join(f'"{onset}",30,N2\n' for onset in onsets)
        (tmp_path / "a.csv").write_text("onset,duration,description\n" + rows)
        return read_text_annotations(tmp_path / "a.csv", AnnotationTable(), None)

    with pytest.raises(AnnotationError, match="between thousands"):
        scoring_of(["960", "990", "1,020", "1,050"])
    assert scoring_of(["0,125", "30,125", "60,125"]).stage_onsets_s.tolist() == [
        0.125, 30.125, 60.125
    ]  # fmt: skip
