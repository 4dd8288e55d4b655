"""Stages and events of a night, and the labels that they give each epoch.

Tests of the format are numbered as in the format notes: section 0 points 5 to 8, section 3.
"""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from edf_files import stage_rows, write_tsv

from pedsleepmae.prepare.annotations import (
    AnnotationError,
    label_epochs,
    read_nsrr_xml,
    read_tsv,
    scoring_from_rows,
    trim_wake,
)
from pedsleepmae.tasks import NOTICE

SHARED = Path(__file__).resolve().parents[2] / "shared"
NIGHT_S = 1e6


def label(rows, **options):
    return label_epochs(scoring_from_rows(rows), options.pop("recording_s", NIGHT_S), **options)


# ------------------------------------------------------------------ the files
def test_0_5_onsets_are_fractions_of_a_second_and_the_grid_has_any_phase(tmp_path):
    rows = [(4080.9609375, 30.0, "Sleep stage W"), (4110.9609375, 30.0, "Sleep stage N1")]
    labels = label_epochs(read_tsv(write_tsv(tmp_path / "1_2.tsv", rows)), NIGHT_S)
    assert labels.onsets_s.tolist() == [4080.9609375, 4110.9609375]
    assert labels.sleep.tolist() == [0, 1]


def test_0_6_old_and_new_stage_names_are_the_same_stages():
    rows = [
        (30.0 * i, 30.0, f"Sleep stage {name}")
        for i, name in enumerate(["W", "N1", "N2", "N3", "R", "1", "2", "3", "4"])
    ]
    assert label(rows).sleep.tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 3]


@pytest.mark.parametrize("name", ["EEG arousal", " eeg AROUSAL ", "EEG  Arousal"])
def test_0_7_event_names_are_matched_in_any_case_and_with_blanks(name):
    assert label([*stage_rows(0, "22"), (40.0, 5.0, name)]).events["eeg"].tolist() == [0, 1]


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\n\n", b"\0\0\n"])
def test_0_8_an_empty_or_nul_filled_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "1483_7963.tsv"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=r"1483_7963\.tsv"):
        read_tsv(path)


def test_0_8_five_rows_without_a_stage_give_no_epoch(tmp_path):
    rows = [(1.0, 0.0, "Montage:NCH Standard with TcCO2_NDx, Ref")] * 2
    rows += [(1.0, 0.0, "Start Recording"), (1.6, 0.0, "Started Analyzer - ECG")]
    rows += [(2.0, 0.0, "Video Recording ON")]
    scoring = read_tsv(write_tsv(tmp_path / "13318_16993.tsv", rows))
    assert len(label_epochs(scoring, NIGHT_S).onsets_s) == 0


def test_3_descriptions_hold_commas_quotes_and_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "1_2.tsv"
    path.write_bytes(
        b"onset\tduration\tdescription\r\n"
        b'1.5\t0.0\tMontage:"NCH", Ref\r\n'
        b"2\t0.0\t\r\n"
        b"3\t0.0\tspoke with p\xe8re\x85\tXXX\r\n"
        b"10\t30.0\tSleep stage N2\r\n"
        b"12\t4.5\tOxygen Desaturation\r\n"
    )
    labels = label_epochs(read_tsv(path), NIGHT_S)
    assert labels.sleep.tolist() == [2]
    assert labels.events["desat"].tolist() == [1]


def test_3_exact_duplicate_rows_count_once():
    rows = stage_rows(0, "23") * 2 + [(31.0, 5.0, "Central Apnea")] * 2
    scoring = scoring_from_rows(rows)
    assert scoring.stages.tolist() == [2, 3]
    assert len(scoring.events) == 1
    assert scoring.remarks == []


def test_3_an_epoch_scored_twice_and_differently_is_left_out_and_told():
    scoring = scoring_from_rows([*stage_rows(0, "23"), (30.0, 30.0, "Sleep stage R")])
    assert scoring.stage_onsets_s.tolist() == [0.0]
    assert scoring.remarks == ["1 epochs scored twice and differently left out"]


@pytest.mark.parametrize("row", ["x\t30\tSleep stage W", "12\ty\tSleep stage W"])
def test_rows_without_numbers_are_counted_not_guessed(tmp_path, row):
    path = tmp_path / "1_2.tsv"
    path.write_text(f"onset\tduration\tdescription\n{row}\n0\t30\tSleep stage R\n")
    scoring = read_tsv(path)
    assert scoring.stages.tolist() == [4]
    assert scoring.remarks == ["1 rows without a numeric onset and duration left out"]


@pytest.mark.parametrize("onset", ["nan", "inf", "-inf"])
def test_impossible_times_are_counted_not_guessed(tmp_path, onset):
    path = tmp_path / "1_2.tsv"
    path.write_text(f"onset\tduration\tdescription\n{onset}\t30\tSleep stage R\n")
    scoring = read_tsv(path)
    assert len(scoring.stages) == 0
    assert scoring.remarks == ["1 stage or event rows with an impossible time left out"]


@pytest.mark.parametrize(
    "note",
    ["not a desat", "desat to 90", "c apnea", "possible obstructive apnea", "RERA", "Apnea"],
)
def test_3_free_text_notes_mark_nothing(note):
    labels = label([*stage_rows(0, "22"), (5.0, 20.0, note)])
    assert not any(codes.any() for codes in labels.events.values())


# ------------------------------------------------------------------ which epochs
def test_3_unscored_rows_are_no_epochs_unless_asked_for():
    rows = [*stage_rows(0, "W?2"), (35.0, 10.0, "Central Apnea")]
    labels = label(rows)
    assert labels.onsets_s.tolist() == [0.0, 60.0]
    assert labels.events["apnea"].tolist() == [0, 0]  # an event in an unscored stretch
    kept = label(rows, keep_unscored=True)
    assert kept.sleep.tolist() == [0, -1, 2]
    assert kept.events["apnea"].tolist() == [0, 0, 0]


def test_3_a_gap_in_the_scoring_is_no_epoch_and_carries_no_event():
    # 4480_5926: the headbox was off between two stage runs; the grid keeps its phase.
    rows = stage_rows(0.5, "22") + stage_rows(120.5, "3")
    labels = label([*rows, (70.0, 40.0, "Oxygen Desaturation")])
    assert labels.onsets_s.tolist() == [0.5, 30.5, 120.5]
    assert labels.events["desat"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("recording_s", "n"), [(90.0, 3), (89.9, 2), (60.0, 2), (29.0, 0)])
def test_0_8_an_epoch_must_lie_inside_the_recording(recording_s, n):
    assert len(label(stage_rows(0, "223"), recording_s=recording_s).onsets_s) == n


def test_3_a_last_row_shorter_than_30_s_is_an_epoch_only_if_30_s_were_recorded():
    rows = [*stage_rows(0, "2"), (30.0, 11.5, "Sleep stage W")]
    assert len(label(rows, recording_s=41.5).onsets_s) == 1
    assert len(label(rows, recording_s=61.0).onsets_s) == 2


def test_epochs_before_the_recording_are_left_out():
    assert label(stage_rows(-30.0, "23")).sleep.tolist() == [3]


def test_a_long_row_is_a_run_of_epochs():
    labels = label([(15.0, 90.0, "Sleep stage 2"), (105.0, 30.0, "Sleep stage R")])
    assert labels.onsets_s.tolist() == [15.0, 45.0, 75.0, 105.0]
    assert labels.sleep.tolist() == [2, 2, 2, 4]


def test_wake_far_from_sleep_is_trimmed_to_the_margin():
    labels = trim_wake(label(stage_rows(0, "WWWW22WWWW")), margin_min=1.0)
    assert labels.sleep.tolist() == [0, 0, 2, 2, 0, 0]
    assert labels.onsets_s[0] == 60.0


# ------------------------------------------------------------------ events on epochs
def test_an_event_marks_every_epoch_that_it_overlaps():
    # 25 to 65 s: 5 s of epoch 0, all of epoch 1, 5 s of epoch 2.
    labels = label([*stage_rows(0, "2222"), (25.0, 40.0, "Hypopnea")])
    assert labels.events["hypop"].tolist() == [2, 2, 2, 0]


def test_touching_is_no_overlap():
    labels = label([*stage_rows(0, "222"), (30.0, 30.0, "Oxygen Desaturation")])
    assert labels.events["desat"].tolist() == [0, 1, 0]


def test_min_overlap_must_be_exceeded():
    rows = [*stage_rows(0, "222"), (25.0, 15.0, "Oxygen Desaturation")]  # 5 s and 10 s
    assert label(rows, min_overlap_s=5.0).events["desat"].tolist() == [0, 1, 0]
    assert label(rows, min_overlap_s=4.9).events["desat"].tolist() == [1, 1, 0]
    assert label(rows, min_overlap_s=10.0).events["desat"].tolist() == [0, 0, 0]


def test_3_an_event_of_zero_duration_marks_the_epoch_that_holds_its_onset():
    rows = [*stage_rows(0, "222"), (30.0, 0.0, "EEG arousal")]
    assert label(rows, min_overlap_s=5.0).events["eeg"].tolist() == [0, 1, 0]


def test_between_types_the_longest_overlap_wins_whatever_the_order():
    rows = stage_rows(0, "22")
    rows += [(20.0, 5.0, "Central Apnea"), (26.0, 20.0, "Obstructive Apnea")]
    # Epoch 0: central 5 s, obstructive 4 s. Epoch 1: obstructive 16 s.
    assert label(rows).events["apnea"].tolist() == [1, 2]
    assert label(rows[::-1]).events["apnea"].tolist() == [1, 2]


def test_codes_are_those_of_the_original_authors():
    names = ["Central Apnea", "Obstructive Apnea", "Mixed Apnea"]
    names += ["Obstructive Hypopnea", "Hypopnea"]
    rows = stage_rows(0, "2" * len(names))
    rows += [(30.0 * i + 5, 10.0, name) for i, name in enumerate(names)]
    labels = label(rows)
    assert labels.events["apnea"].tolist() == [1, 2, 3, 0, 0]
    assert labels.events["hypop"].tolist() == [0, 0, 0, 1, 2]


# ------------------------------------------------------------------ NSRR
XML = """<?xml version="1.0" encoding="UTF-8"?>
<PSGAnnotation><ScoredEvents>
<ScoredEvent><EventConcept>Recording Start Time</EventConcept>
<Start>0</Start><Duration>900</Duration></ScoredEvent>
{events}
</ScoredEvents></PSGAnnotation>"""


def nsrr(tmp_path, *events):
    text = "".join(
        f"<ScoredEvent><EventConcept>{concept}</EventConcept><Start>{start}</Start>"
        f"<Duration>{duration}</Duration></ScoredEvent>"
        for concept, start, duration in events
    )
    path = tmp_path / "chat-baseline-300001-nsrr.xml"
    path.write_text(XML.format(events=text))
    return read_nsrr_xml(path)


def test_6_nsrr_stages_are_run_lengths(tmp_path):
    scoring = nsrr(
        tmp_path,
        ("Wake|0", 0, 60),
        ("Stage 1 sleep|1", 60, 30),
        ("Stage 2 sleep|2", 90, 60),
        ("Stage 4 sleep|4", 150, 30),
        ("REM sleep|5", 180, 30),
        ("Unscored|9", 210, 30),
    )
    assert scoring.stages.tolist() == [0, 0, 1, 2, 2, 3, 4, -1]


def test_6_nsrr_events_are_known_by_the_part_before_the_bar_and_unsure_is_mixed(tmp_path):
    scoring = nsrr(
        tmp_path,
        ("Stage 2 sleep|2", 0, 150),
        ("Unsure|Unsure", 5, 10),
        ("Obstructive apnea|Obstructive Apnea", 35, 10),
        ("Hypopnea|Hypopnea", 65, 10),
        ("SpO2 desaturation|SpO2 desaturation", 95, 10),
        ("ASDA arousal|Arousal (ASDA)", 125, 3),
        ("SpO2 artifact|SpO2 artifact", 0, 150),
    )
    events = label_epochs(scoring, NIGHT_S).events
    assert events["apnea"].tolist() == [3, 2, 0, 0, 0]
    assert events["hypop"].tolist() == [0, 0, 2, 0, 0]
    assert events["desat"].tolist() == [0, 0, 0, 1, 0]
    assert events["eeg"].tolist() == [0, 0, 0, 0, 1]


def test_a_broken_xml_is_refused_by_name(tmp_path):
    path = tmp_path / "chat-baseline-300001-nsrr.xml"
    path.write_text("<PSGAnnotation>")
    with pytest.raises(AnnotationError, match="chat-baseline-300001"):
        read_nsrr_xml(path)


# ------------------------------------------------------------------ real nights
def slow_reference(path: Path) -> dict[str, list]:
    """The rule of the labels spelled out epoch by epoch and event by event."""
    stages, events = [], []
    for line in path.read_text().splitlines()[1:]:
        onset, duration, text = line.split("\t")
        text = text.strip().lower()
        if text.startswith("sleep stage ") and not text.endswith("?"):
            stages.append((float(onset), ["w", "n1", "n2", "n3", "r"].index(text.split()[-1])))
        codes = {"central apnea": (0, 1), "obstructive apnea": (0, 2), "mixed apnea": (0, 3)}
        codes |= {"obstructive hypopnea": (1, 1), "hypopnea": (1, 2)}
        if text in codes:
            events.append((float(onset), float(duration), *codes[text]))
    result = {"onset": [], "sleep": [], "apnea": [], "hypop": []}
    for start, stage in sorted(stages):
        best = [(0.0, 0), (0.0, 0)]
        for onset, duration, kind, code in sorted(events):
            overlap = min(onset + duration, start + 30) - max(onset, start)
            if overlap > best[kind][0]:
                best[kind] = (overlap, code)
        for name, value in zip(result, (start, stage, best[0][1], best[1][1]), strict=True):
            result[name].append(value)
    return result


@pytest.mark.skipif(not (SHARED / "psg").exists(), reason="no ../shared/psg: real nights absent")
def test_the_25_real_nights_are_labelled_as_the_slow_reference_says():
    paths = sorted((SHARED / "psg" / "ucddb_tsv").glob("*.tsv"))
    assert len(paths) == 25
    n_apnea = 0
    for path in paths:
        labels, slow = label_epochs(read_tsv(path), NIGHT_S), slow_reference(path)
        assert labels.onsets_s.tolist() == slow["onset"], path.name
        assert labels.sleep.tolist() == slow["sleep"], path.name
        assert labels.events["apnea"].tolist() == slow["apnea"], path.name
        assert labels.events["hypop"].tolist() == slow["hypop"], path.name
        n_apnea += np.count_nonzero(labels.events["apnea"])
    assert n_apnea > 500  # the nights hold 695 scored apneas: the test is not vacuous


def test_rounding_of_onsets_marks_no_neighbour():
    # On the 1/400-s grid the sum of onset and duration exceeds the next epoch's start by 4e-12.
    rows = [(17546.0575, 30.0, "Sleep stage N2"), (17576.0575, 30.0, "Sleep stage N2")]
    labels = label([*rows, (17556.29, 19.7675, "EEG arousal")])
    assert labels.events["eeg"].tolist() == [1, 0]


def test_a_scored_row_goes_before_an_unscored_one_at_the_same_onset():
    scoring = scoring_from_rows([*stage_rows(0, "2?"), (30.0, 30.0, "Sleep stage R")])
    assert scoring.stages.tolist() == [2, 4]


def test_a_row_of_its_own_overrules_a_run():
    scoring = scoring_from_rows([(0.0, 90.0, "Sleep stage 2"), (30.0, 30.0, "Sleep stage R")])
    assert scoring.stages.tolist() == [2, 4, 2]


def test_further_columns_and_quotes_do_not_hide_a_label(tmp_path):
    path = tmp_path / "1_2.tsv"
    path.write_text('onset\tduration\tdescription\n0\t30\t"Sleep stage N2"\tcomment\n')
    assert read_tsv(path).stages.tolist() == [2]


def test_indices_count_each_event_once_and_only_those_that_begin_in_sleep():
    rows = [(0.0, 30.0, "Sleep stage W"), (30.0, 30.0, "Sleep stage N2")]
    rows += [(60.0, 30.0, "Sleep stage N2"), (90.0, 30.0, "Sleep stage ?")]
    rows += [
        (20.0, 25.0, "Hypopnea"),  # begins in wake
        (31.0, 5.0, "Central Apnea"),
        (40.0, 5.0, "Obstructive Apnea"),  # two in one epoch
        (55.0, 20.0, "Hypopnea"),  # one in two epochs
        (60.0, 0.0, "EEG arousal"),
        (95.0, 10.0, "Oxygen Desaturation"),  # not scored
        (500.0, 10.0, "Oxygen Desaturation"),  # after the end
    ]
    labels = label_epochs(scoring_from_rows(rows), recording_s=120)
    assert labels.n_events == {"apnea": 2, "hypop": 1, "desat": 0, "eeg": 1}


def test_predictions_of_script_4_are_no_scoring():
    rows = [(0.0, 0.0, NOTICE), (0.0, 30.0, "Sleep stage N2")]
    with pytest.raises(AnnotationError, match="own predictions"):
        scoring_from_rows(rows)


@pytest.mark.parametrize("encoding", ["UTF1e5", "idna", "utf-16", "no such one"])
def test_an_xml_of_an_encoding_that_cannot_be_read_is_refused_by_name(tmp_path, encoding):
    path = tmp_path / "1-nsrr.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?><PSGAnnotation/>')
    with pytest.raises(AnnotationError, match=r"1-nsrr\.xml"):
        read_nsrr_xml(path)


# ------------------------------------------------------------------ borders
@pytest.mark.parametrize(("read", "name"), [(read_tsv, "1_2.tsv"), (read_nsrr_xml, "1-nsrr.xml")])
def test_what_is_no_small_file_is_refused_before_it_is_read(read, name, tmp_path, monkeypatch):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(AnnotationError, match=f"{name}: is a pipe, not a file"):
        read(path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(8_000_000_000)  # takes no room on the disk
    with pytest.raises(AnnotationError, match=f"{name}: has 8,000 MB, and at most 32 MB are read"):
        read(path)
    path.write_bytes(gzip.compress(b"onset\tduration\tdescription\n0\t30\tSleep stage W\n"))
    with pytest.raises(AnnotationError, match=name):
        read(path)


def test_rows_that_claim_days_are_bounded_by_what_a_night_can_hold(tmp_path):
    text = "".join(f"{30 * i}\t172800\tSleep stage N2\n" for i in range(3000))
    text += "".join(f"{i}\t172800\tHypopnea\n" for i in range(3000))
    path = tmp_path / "1_2.tsv"
    path.write_text(text)
    scoring = read_tsv(path)
    assert len(scoring.stages) == (30 * 2999 + 172800) / 30
    labels = label_epochs(scoring, 36_000.0)
    assert len(labels.sleep) == 1200
    assert labels.events["hypop"].tolist() == [2] * 100 + [0] * 1100  # where one begins
    assert labels.n_events["hypop"] == 3000


@pytest.mark.parametrize("time", ["1e300", "inf", "-inf", "nan", "-1", "172801"])
def test_a_duration_that_cannot_be_is_counted_not_guessed(time, tmp_path):
    path = tmp_path / "1_2.tsv"
    path.write_text(f"0\t30\tSleep stage W\n30\t{time}\tSleep stage R\n5\t{time}\tHypopnea\n")
    scoring = read_tsv(path)
    assert scoring.stages.tolist() == [0]
    assert scoring.events == []
    assert scoring.remarks == ["2 stage or event rows with an impossible time left out"]


def test_control_characters_of_annotations_reach_no_remark(tmp_path):
    path = tmp_path / "1_2.tsv"
    path.write_text("0\t30\tSleep stage W\n30\t30\tSleep stage \x1b[2J\x9b\u202e\n")
    (remark,) = read_tsv(path).remarks
    assert "Sleep stage" in remark
    assert remark.isprintable()


# ------------------------------------------------------------------ other files than NCH's
TSV = "onset\tduration\tdescription\n0\t30\tSleep stage N2\n35\t20\tCentral Apnea\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "latin-1"])
def test_a_tsv_is_read_in_any_encoding(encoding, tmp_path):
    path = tmp_path / "1_2.tsv"
    path.write_bytes(TSV.encode(encoding))
    scoring = read_tsv(path)
    assert scoring.stages.tolist() == [2]
    assert [event.onset_s for event in scoring.events] == [35]


def test_columns_are_found_by_their_names_and_others_refused(tmp_path):
    path = tmp_path / "1_2.tsv"
    path.write_text("epoch\tduration\tonset\tdescription\n7\t30\t90\tSleep stage N2\n")
    assert read_tsv(path).stage_onsets_s.tolist() == [90]
    path.write_text("onset\tend\tdescription\n0\t30\tSleep stage N2\n35\t55\tCentral Apnea\n")
    with pytest.raises(AnnotationError, match="columns onset, duration, description"):
        read_tsv(path)  # an end read as a duration would make events longer


def test_events_in_unknown_words_are_told_and_only_frequent_words_quoted():
    stages = [(30.0 * i, 30.0, "Sleep stage N2") for i in range(4)]
    rare = [(35.0, 12.0, "Ms Roe, apnea?")]
    remarks = scoring_from_rows(stages + rare).remarks
    assert remarks == ["1 rows whose words are no known event left out"]
    often = [(10.0 * i, 5.0, "Obstr. apnea") for i in range(6)]
    (remark,) = scoring_from_rows(stages + often).remarks[:1]
    assert "'Obstr. apnea' (6)" in remark
    assert scoring_from_rows([*stages, (35.0, 0.0, "not an apnea")]).remarks == []


@pytest.mark.parametrize(
    ("words", "kind", "code"),
    [
        ("Central Apnoea", "apnea", 1),
        ("Apnea - Obstructive", "apnea", 2),
        ("Apnea, mixed", "apnea", 3),
        ("Zentrale Apnoe", "apnea", 1),
        ("Obstructive apnea@@Flow", "apnea", 2),
        ("Hypopnea - Obstructive", "hypop", 1),
        ("Hypopnoe", "hypop", 2),
        ("Desaturation 88%", "desat", 1),
        ("SpO2 desat", "desat", 1),
        ("Entsättigung", "desat", 1),
        ("Arousal (ARO SPONT)", "eeg", 1),
        ("Spontaneous arousal", "eeg", 1),
        ("A. Centrale", "apnea", 1),  # this and the next two: Noxturnal in French
        ("Hypopnée", "hypop", 2),
        ("Micro-éveil", "eeg", 1),
    ],
)
def test_events_in_another_spelling_are_no_epochs_without_events(words, kind, code):
    found = scoring_from_rows([*stage_rows(0, "22"), (35.0, 12.0, words)])
    labels = label_epochs(found, NIGHT_S)
    assert labels.events[kind].tolist() == [0, code]
    assert found.remarks == []
    note = scoring_from_rows([*stage_rows(0, "22"), (35.0, 0.0, words)])
    assert note.events == []  # without a duration it may be a technician's note


@pytest.mark.parametrize(
    "words", ["Obstructive Apnea (central)", "no desat", "RERA", "Apnea start"]
)
def test_words_that_say_something_else_beside_an_event_are_none(words):
    assert scoring_from_rows([*stage_rows(0, "22"), (35.0, 12.0, words)]).events == []


def test_where_nch_words_score_a_kind_other_words_of_it_are_told_and_not_counted():
    rows = [*stage_rows(0, "222"), (5.0, 9.0, "Oxygen Desaturation"), (65.0, 9.0, "desat")]
    scoring = scoring_from_rows([*rows, (35.0, 9.0, "Arousal")])
    assert [(event.onset_s, event.kind) for event in scoring.events] == [(5, "desat"), (35, "eeg")]
    assert scoring.remarks == ["1 rows whose words are no known event left out"]


def test_6_kinds_of_arousal_of_nsrr_are_arousals_and_unsure_is_not_mixed_in_mesa(tmp_path):
    events = [("Stage 2 sleep|2", 0, 150), ("Arousal|Arousal ()", 5, 4), ("Unsure|Unsure", 100, 9)]
    events += [("Spontaneous arousal|Arousal (ARO SPONT)", 35, 4)]
    events += [("Arousal resulting from respiratory effort|Arousal (ARO RES)", 65, 4)]
    chat = nsrr(tmp_path, *events)
    assert [event.onset_s for event in chat.events if event.kind == "eeg"] == [5, 35, 65]
    assert [event.onset_s for event in chat.events if event.kind == "apnea"] == [100]
    path = (tmp_path / "chat-baseline-300001-nsrr.xml").rename(tmp_path / "mesa-sleep-1-nsrr.xml")
    other = read_nsrr_xml(path)  # there it is a hypopnea of more than 50 %
    assert {event.kind for event in other.events} == {"eeg"}
    assert other.remarks == ["1 rows whose words are no known event left out"]


# ------------------------------------------------------------------ times
def tsv(folder, rows):
    return read_tsv(write_tsv(folder / "1_2.tsv", rows))


def test_times_in_milliseconds_are_no_epochs_of_hours(tmp_path):
    seconds = [*stage_rows(17.0, "W123R2"), (50.0, 12.5, "Hypopnea")]
    wanted = tsv(tmp_path, seconds)
    for onset_in_s, duration_in_s, what in ((1000, 1000, "times"), (1, 1000, "durations"),
                                            (1000, 1, "onsets")):  # fmt: skip
        rows = [(onset * onset_in_s, length * duration_in_s, t) for onset, length, t in seconds]
        found = tsv(tmp_path, rows)
        assert found.stage_onsets_s.tolist() == wanted.stage_onsets_s.tolist()
        assert found.stages.tolist() == wanted.stages.tolist()
        assert found.events == wanted.events
        assert found.remarks == [f"7 rows whose {what} are taken for milliseconds"]


def test_an_event_without_an_end_marks_no_whole_night(tmp_path):
    rows = [*stage_rows(0, "2" * 200), (45.0, 5000.0, "Hypopnea"), (95.0, 700.0, "EEG arousal")]
    scoring = tsv(tmp_path, [*rows, (95.0, 3000.0, "Oxygen Desaturation")])
    events = label_epochs(scoring, NIGHT_S).events
    assert np.flatnonzero(events["hypop"]).tolist() == [1]
    assert np.flatnonzero(events["eeg"]).tolist() == list(range(3, 27))
    assert np.flatnonzero(events["desat"]).tolist() == list(range(3, 104))
    assert scoring.remarks == [
        "1 events last too long to be any: each marks the epoch of its onset"
    ]


def test_decimal_commas_and_durations_that_are_not_available_are_read(tmp_path):
    rows = [("17,25", "30,0", "Sleep stage R"), ("47,25", "30", "Sleep stage W")]
    scoring = tsv(tmp_path, [*rows, ("20,5", "n/a", "Hypopnea")])
    assert scoring.stage_onsets_s.tolist() == [17.25, 47.25]
    assert [(event.onset_s, event.duration_s) for event in scoring.events] == [(20.5, 0)]
    assert scoring.remarks == []
    rows = [("990", "30", "Sleep stage R"), ("1,020", "30", "Sleep stage W")]
    with pytest.raises(AnnotationError, match="commas between thousands"):
        tsv(tmp_path, rows)


def test_stages_told_only_where_they_change_are_told(tmp_path):
    scoring = tsv(tmp_path, [(0, 0, "Sleep stage W"), (300, 0, "Sleep stage N2")])
    assert scoring.stage_onsets_s.tolist() == [0, 300]
    what = "stage rows without a duration taken for 30 s though the next begins later"
    assert scoring.remarks == [f"1 {what}"]
