"""Readers of recordings, annotations, tables, examples, batches, features and states.

They are called as the scripts call them; for each, the good files that it starts from.
"""

from pathlib import Path

import edf_files
import edfio
import h5py
import numpy as np
import small_batches
import torch
import yaml

from pedsleepmae import data, store
from pedsleepmae.channels import EPOCH_S, EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.explore import diagnoses
from pedsleepmae.prepare import grouping, layouts, recording_table, tables
from pedsleepmae.prepare import studies as prepare
from pedsleepmae.prepare.examples import ExampleSettings, Outcome
from pedsleepmae.prepare.grouping import SplitSettings
from pedsleepmae.prepare.inspection import inspect_recording, settings_file
from pedsleepmae.prepare.layouts import Study
from pedsleepmae.prepare.text_annotations import AnnotationTable
from pedsleepmae.probe import embeddings, nights, truth
from pedsleepmae.probe.detection import count_matches
from pedsleepmae.probe.tables import open_tables
from pedsleepmae.tasks import EVENT_KINDS, EVENT_NAMES, LABELS

from .pool import Refused, Unforeseen
from .sense import SECRET, check_examples, check_labels, check_scoring, require, require_printable


# ------------------------------------------------------------------ recordings
def build_recording(folder: Path) -> None:
    """Two epochs of 16 channels at 64 Hz."""
    file = edf_files.nch_file(seconds=80, rate_hz=64)
    file.header["patient"] = f"X {SECRET} 01-JAN-2001".encode()
    for signal in file.signals[13:15]:
        signal.per_record, signal.digital = 128, signal.digital[::2]
    file.write(folder / "1_2.edf")
    rows = [*edf_files.stage_rows(10.25, "2R"), (15.0, 12.5, "Obstructive Apnea")]
    edf_files.write_tsv(folder / "1_2.tsv", rows)


def build_laboratory(folder: Path) -> None:
    """Two of the 16, and other signals under a laboratory's own names, one of them twice."""
    labels = ["EEG C3-M2", "Abdomen", "VTH", "VTH", "NAF1", "PHONO", "EEG Fp1-A1", "EOG left"]
    labels += ["EMG submental", "Saturation", "Resp Rate", "CO2", "Light"]
    file = edf_files.nch_file(seconds=80, rate_hz=64, labels=labels)
    for signal in file.signals[9:]:
        signal.per_record, signal.digital = 4, signal.digital[::64]
    file.write(folder / "1_2.edf")


def read_recording(folder: Path, _rng: np.random.Generator) -> None:
    """As a worker of script 1 prepares it, and what it left on disk."""
    study = Study(folder / "1_2.edf", folder / "1_2.tsv", 1, 2)
    examples_dir = folder / "examples"
    outcome = prepare.prepare_study(study, ExampleSettings(min_channels=1), examples_dir)
    for trace in examples_dir.glob(".prepared/*.traceback.txt"):
        raise Unforeseen(outcome.reason, trace.read_text(encoding="utf-8"))
    told = [outcome.reason, *outcome.remarks, *outcome.channels.values(), *outcome.absent.values()]
    require_printable(" ".join(told), "what is told of the recording")
    require(np.isfinite(outcome.duration_s), f"it lasts {outcome.duration_s} s")
    if not outcome.usable:
        raise Refused(outcome.reason)
    require((np.diff(outcome.onsets_s) >= EPOCH_S - 1e-3).all(), "epochs overlap")
    made = store.example_folder(examples_dir, 1, 2)
    paths = [made / store.example_name("1_2", k) for k in range(outcome.n_examples)]
    check_examples(store.read_examples(paths))
    _write_studies([outcome], folder)


def _write_studies(outcomes: list[Outcome], folder: Path) -> None:
    grouping.write_tables(outcomes, {1: "train"}, "patient", None, folder / "batches")
    nights.read_studies(folder / "batches")


def inspect(folder: Path, _rng: np.random.Generator) -> None:
    found = inspect_recording(folder / "1_2.edf", ExampleSettings())
    require_printable(found.text, "the tables of --inspect")
    text = settings_file(ExampleSettings(), found.proposals, "1_2.edf")
    require_printable(text, "what --write_settings writes")
    yaml.safe_load(text)


def build_hypnogram(folder: Path) -> None:
    rows = [(0.0, 300.0, "Sleep stage W"), (300.0, 60.0, "Sleep stage 1")]
    rows += [(360.0, 900.0, "Sleep stage 2"), (1260.0, 30.0, "Movement time")]
    rows += [(1290.0, 600.0, "Sleep stage R"), (1890.0, 30.0, "Sleep stage ?")]
    annotations = [edfio.EdfAnnotation(*row) for row in rows]
    edfio.Edf([], annotations=annotations).write(folder / "SC4001EC-Hypnogram.edf")


def build_tsv(folder: Path) -> None:
    rows = edf_files.stage_rows(10.25, "WW1223?RRW" * 8)
    rows += [(100.0 + 70 * i, 12.5, "Obstructive Apnea") for i in range(10)]
    rows += [(112.0, 20, "Oxygen Desaturation"), (120.5, 0, "EEG Arousal"), (5, 1, 'note "x", y')]
    edf_files.write_tsv(folder / "1_2.tsv", rows)


def build_xml(folder: Path) -> None:
    events = [("Stages|Stages", "Wake|0", 0, 300), ("Stages|Stages", "Stage 2 sleep|2", 300, 900)]
    events += [("Stages|Stages", "REM sleep|5", 1200, 600)]
    events += [("Respiratory|Respiratory", "Obstructive apnea|Obstructive Apnea", 400.5, 14)]
    events += [("Arousals|Arousals", "Arousal|Arousal ()", 410.5, 3.5)]
    lines = "".join(
        f"<ScoredEvent>\n<EventType>{kind}</EventType>\n<EventConcept>{concept}</EventConcept>\n"
        f"<Start>{start}</Start>\n<Duration>{duration}</Duration>\n</ScoredEvent>\n"
        for kind, concept, start, duration in events
    )
    text = '<?xml version="1.0" encoding="UTF-8"?>\n<PSGAnnotation><ScoredEvents>\n'
    (folder / "chat-baseline-1-nsrr.xml").write_text(
        f"{text}{lines}</ScoredEvents></PSGAnnotation>\n", encoding="utf-8"
    )


def build_text(folder: Path) -> None:
    """Times of day, decimal commas, own words."""
    edf_files.nch_file(seconds=80, rate_hz=4, labels=["C3-M2"]).write(folder / "1_2.edf")
    clocks = [f"20:{3 + i // 2:02d}:{7 + 30 * (i % 2):02d}" for i in range(60)]
    rows = [f"{clock};30,0;{'Wach' if i < 20 else 'N2'}" for i, clock in enumerate(clocks)]
    rows += ["20:10:00,5;12,25;Apnoe", '20:12:00;3;"note; quoted"', "20:20:00;;Hypopnea"]
    text = "\r\n".join(["Lab export", "Onset;Duration;Description", *rows])
    (folder / "1_2.csv").write_text(text, encoding="utf-16")


def read_text(folder: Path, _rng: np.random.Generator) -> None:
    table = AnnotationTable(
        stage_words={"wach": "W"}, event_words={"apnoe": "central_apnea"}, times="clock"
    )
    check_scoring(layouts.read_annotations(folder / "1_2.csv", table, folder / "1_2.edf"))


def build_recordings(folder: Path) -> None:
    """A table of three recordings that are there, and one that is not, with the ids' file."""
    for name in "abc":
        (folder / f"{name}.edf").write_bytes(b"0")
        (folder / f"{name}.tsv").write_bytes(b"0")
    (folder / "recordings.csv").write_text(
        "recording,patient,study,age_years,sex,lights_off,lights_on\na.edf,Zo\u00eb,1,7.5,F,22:15,\n"
        "b.edf,P-2,,12,M,,30000\nc.edf,7,night 2,,,,\nd.edf,7,,,,,\n"
    )
    (folder / "ids.csv").write_text("patient,study,patient_id,study_id\nP-2,1,41,1\n")


def read_recordings(folder: Path, _rng: np.random.Generator) -> None:
    """As script 1 lists them, and the ids that it keeps and reads again."""
    studies, _, ids = recording_table.read_recordings(folder / "recordings.csv")
    for study in studies:
        require_printable(study.problem, "the problem of a row")
        numbers = (study.patient_id, study.study_id)
        require(bool(study.problem) or None not in numbers, "a usable row has no numbers")
    keys = [study.key for study in studies if not study.problem]
    require(len(set(keys)) == len(keys), "two usable rows have one key")
    ids.write()
    again, _, _ = recording_table.read_recordings(folder / "recordings.csv")
    require(again == studies, "numbers of ids changed from one run to the next")


def read_annotations(folder: Path, _rng: np.random.Generator) -> None:
    (path,) = folder.iterdir()
    check_scoring(layouts.read_annotations(path))


# ------------------------------------------------------------------ tables
def build_health(folder: Path) -> None:
    (folder / "SLEEP_STUDY.csv").write_text(
        "STUDY_PAT_ID,SLEEP_STUDY_ID,SLEEP_STUDY_START_DATETIME,AGE_AT_SLEEP_STUDY_DAYS\n"
        "1,2,2020-01-01,1200\n1,3,2021-01-01,1600\n2,4,2019-01-01,4000\n"
    )
    (folder / "DEMOGRAPHIC.csv").write_text(
        "STUDY_PAT_ID,BIRTH_DATE,PCORI_GENDER_CD\n1,2016-01-01,F\n2,2008-01-01,M\n"
    )


def read_health(folder: Path, _rng: np.random.Generator) -> None:
    try:
        health = layouts.read_health(folder)
    except (ValueError, OSError) as error:  # as script 1 does, which tells it or goes on without
        raise Refused(str(error)) from error
    split = SplitSettings()
    assigned = grouping.assign_patients({1, 2, 3}, folder / "none", split, 0, health)
    outcomes = [Outcome(1, 2, "1_2.edf"), Outcome(2, 4, "2_4.edf")]
    grouping.write_tables(outcomes, assigned, "patient", health, folder / "batches")
    studies = nights.read_studies(folder / "batches")
    ages = np.asarray(studies["age_days"], float)
    require(not (np.abs(ages) > 1e6).any(), f"an age of {np.nanmax(np.abs(ages)):g} days")


def build_diagnoses(folder: Path) -> None:
    (folder / "DIAGNOSIS.csv").write_text(
        "STUDY_PAT_ID,DX_SOURCE_TYPE,DX_CODE,DX_NAME,DX_ALT_CODE\n"
        '1,Final Dx,Q87.1,"Prader-Willi syndrome","Q87.11,Q87.1"\n'
        '2,Problem List,G47.33,"Apnea, obstructive",327.23\n'
    )
    (folder / "patients.csv").write_text("patient_id,note\n1,x\n2,y\n")


def read_diagnoses(folder: Path, rng: np.random.Generator) -> None:
    if rng.random() < 0.5:
        by_code = diagnoses.read_diagnosed(folder, ["Q87.1", "G47.33"], "", ["Final Dx"])
        found = set().union(*by_code.values())
    else:
        found = diagnoses.read_patient_list(folder / "patients.csv")
    require(all(isinstance(patient, int) for patient in found), "a patient is no number")


def build_splits(folder: Path) -> None:
    (folder / "splits.csv").write_text("patient_id,split\n1,train\n2,val\n3,test\n4,train\n")


def read_splits(folder: Path, _rng: np.random.Generator) -> None:
    split = SplitSettings()
    assigned = grouping.assign_patients({1, 2, 3, 4, 9}, folder, split, 0, None)
    require(set(assigned.values()) <= {"train", "val", "test"}, "an unknown split")
    grouping.write_tables([Outcome(1, 2, "x.edf")], assigned, "patient", None, folder / "new")


def build_studies(folder: Path) -> None:
    counts = dict.fromkeys(EVENT_KINDS, 3)
    outcomes = [
        Outcome(p, p + 10, f"{p}.edf", onsets_s=[0.0, 30.0], event_counts=counts) for p in (1, 2, 3)
    ]
    outcomes.append(Outcome(4, 5, "4.edf", reason="µ is no channel"))
    assigned = {1: "train", 2: "val", 3: "test"}
    grouping.write_tables(outcomes, assigned, "patient", None, folder)
    (folder / "splits.csv").unlink()


def read_studies(folder: Path, _rng: np.random.Generator) -> None:
    studies = nights.read_studies(folder)
    if studies is not None:
        np.asarray(studies.drop(columns="sex"), float)  # what all users of the table do with it
        require(studies.index.is_unique, "a night twice")


def build_events(folder: Path) -> None:
    spans = [(kind, 30.0 * i, 10.25) for i, kind in enumerate(EVENT_NAMES.values())]
    tables.write_events(folder, [(1, 11, spans), (2, 12, spans[:2])])


def read_events(folder: Path, _rng: np.random.Generator) -> None:
    for spans_of in truth.read_events(folder).values():
        for kind, spans in spans_of.items():
            require((np.diff(spans) >= 0).all(), f"{kind}: an event ends before it begins")
            count_matches(spans, spans, 0.2)


# ------------------------------------------------------------------ examples and batches
def build_examples(folder: Path) -> None:
    examples = small_batches.make_examples(2, (1,), 0)
    store.write_examples([folder / f"1_2_sample_{k}.hdf5" for k in range(2)], examples)


def read_examples(folder: Path, _rng: np.random.Generator) -> None:
    check_examples(store.read_examples(sorted(folder.glob("1_2_*.hdf5"))))


def build_batches(folder: Path) -> None:
    small_batches.write_folder(folder, train=[2, 1], val=[1], test=[1])


def build_original(folder: Path) -> None:
    """Batch files as the original authors' script writes them."""
    examples = small_batches.make_examples(3, (1, 2, 3), 0)
    with h5py.File(folder / "combined_0.hdf5", "w") as file:
        file["signals"] = examples.signals.astype(np.float64)
        for name, (_, dataset) in LABELS.items():
            file[dataset] = examples.labels[name]
        file["patient_ids"], file["study_ids"] = examples.patient_ids, examples.study_ids


def read_batches(folder: Path, _rng: np.random.Generator) -> None:
    """As scripts 2 and 3 read them: index, training batches, signals, fingerprints."""
    index = store.load_index(folder, val_fraction=0.2, test_fraction=0.2)
    check_labels(index.labels)
    n = len(index)
    shapes = [len(index.patient_ids), len(index.study_ids), len(index.onsets_s), len(index.present)]
    require(set(shapes) <= {n}, f"columns of {shapes} for {n} examples")
    require(index.present.shape == (n, N_CHANNELS), "channels_present of another shape")
    require(n < 100, f"{n} examples in a folder of 5")
    everything = np.arange(n)
    signals = store.read_signals(index, everything)
    require(signals.shape == (n, N_CHANNELS, EPOCH_SAMPLES), "signals of another shape")
    for x_BCT, _present in data.sample_batches(index, everything, 4):
        require(bool(torch.isfinite(x_BCT).all()), "a training batch that is not finite")
    for path in index.files:
        embeddings.fingerprint(path)


def build_features(folder: Path) -> None:
    build_batches(folder / "batches")
    index = store.load_index(folder / "batches")
    embeddings.compute_handmade(index, folder / "features", 1)


def read_features(folder: Path, _rng: np.random.Generator) -> None:
    """As script 3 finds, mends and reads them."""
    index = store.load_index(folder / "batches")
    embeddings.compute_handmade(index, folder / "features", 1)
    table = open_tables(index, folder / "features", ["handmade"])["handmade"]
    features = table.read(np.arange(len(index)))
    require(features.shape == (len(index), table.n_features), "features of another shape")


# ------------------------------------------------------------------ states
def build_states(folder: Path) -> None:
    build_recording(folder)
    study, examples_dir = _study(folder)
    prepare.prepare_study(study, ExampleSettings(), examples_dir)
    prepare.measure_study(study, ExampleSettings(), examples_dir)
    (folder / "batches").mkdir()
    (folder / "batches" / ".grouping.json").write_text('{"fingerprint": "abc", "complete": true}')


def _study(folder: Path) -> tuple[Study, Path]:
    return Study(folder / "1_2.edf", folder / "1_2.tsv", 1, 2), folder / "examples"


def read_states(folder: Path, _rng: np.random.Generator) -> None:
    """As script 1 asks what an earlier run has finished, and goes on from it."""
    study, examples_dir = _study(folder)
    settings = ExampleSettings()
    outcome = prepare.finished_outcome(study, settings, examples_dir)
    if outcome is None:
        outcome = prepare.prepare_study(study, settings, examples_dir)
    prepare.has_examples(outcome, examples_dir)
    moments = prepare.measure_study(study, settings, examples_dir)
    prepare.fit_standard([moments])
    plan = grouping.Grouping([outcome], {1: "train"}, SplitSettings(), 0, "policy")
    grouping.is_grouped(plan, folder / "batches")
    _write_studies([outcome], folder)
