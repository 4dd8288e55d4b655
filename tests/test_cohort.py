"""The simulated cohort on disk: NCH's files byte by byte, batch files, and who is in it."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import edfio
import mne
import numpy as np
import pandas as pd
import pytest

from pedsleepmae import channels, store, tasks
from pedsleepmae.errors import SettingsError, UserError, check_bounds
from pedsleepmae.prepare import annotations, layouts, recordings, tables
from pedsleepmae.prepare.stages import stage_of
from pedsleepmae.simulate import batches, cohort, events, health, nch_files
from pedsleepmae.simulate.cohort import SimulateSettings
from pedsleepmae.simulate.events import EventRates
from pedsleepmae.simulate.signals import simulate_signals
from pedsleepmae.splits import SPLITS

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"n_patients": 3, "n_repeat_studies": 1, "hours": 0.25, "n_workers": 1}


def settings_for(folder: Path, **fields) -> SimulateSettings:
    return SimulateSettings(output_dir=folder, **(SMALL | fields))


def write(settings) -> list[cohort.Visit]:
    visits = cohort.plan_cohort(settings)
    health.write_health_data(settings.output_dir / "Health_Data", visits)
    assert all(nch_files.write_recordings(visits, settings))
    return visits


def digest(folder: Path) -> dict[str, str]:
    """Name -> hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(settings, visits) of four written recordings of 15 minutes: A, B (512 Hz), one lacking."""
    folder = tmp_path_factory.mktemp("cohort")
    settings = settings_for(
        folder, montage_b_fraction=0.5, absent_channel_fraction=0.3, rates_hz=[256, 400], seed=5
    )
    return settings, write(settings)


def edf_path(settings, visit) -> Path:
    return settings.output_dir / "Sleep_Data" / f"{visit.key}.edf"


def signals_of(visit, settings) -> dict[str, np.ndarray]:
    """The simulated signals of a visit, made again."""
    night = cohort.visit_night(visit, settings)
    rng = np.random.default_rng((*visit.stream, 2))
    return simulate_signals(night, visit.rate_hz, rng, all_sensors=True)


def slots_of(visit) -> list[nch_files.Slot]:
    return nch_files.montage_of(visit, np.random.default_rng((*visit.stream, 3)))


# ------------------------------------------------------------------ the plan
def test_a_cohort_has_its_share_of_everything():
    settings = SimulateSettings(
        n_patients=40, n_repeat_studies=4, montage_b_fraction=0.25, absent_channel_fraction=0.2
    )
    visits = cohort.plan_cohort(settings)
    assert len(visits) == 44
    assert len({visit.study_id for visit in visits}) == 44
    assert len({visit.patient_id for visit in visits}) == 40
    assert min(visit.patient_id for visit in visits) > 20_830  # none of NCH's
    assert sum(visit.montage == "B" for visit in visits) == 11
    assert sum(bool(visit.absent) for visit in visits) in (8, 9)
    ages = np.array([visit.child.age_years for visit in visits])
    assert 7.9 < ages.mean() < 8.8  # NCH's median and mean
    assert ages.min() < 2
    assert ages.max() > 15
    for visit in visits:
        assert visit.duration_s % 4 == 0
        samples = visit.first_onset_s * visit.rate_hz
        assert samples == pytest.approx(round(samples), abs=1e-6)
        assert visit.rate_hz in ((256, 512) if visit.montage == "B" else settings.rates_hz)
        assert set(visit.absent) < set(channels.CHANNEL_NAMES)


def test_whole_groups_are_absent_in_their_share_and_change_nothing_else():
    plain = SimulateSettings(n_patients=60, absent_channel_fraction=0.0, first_id=1_000_001)
    visits = cohort.plan_cohort(replace(plain, absent_group_fraction=0.3))
    eeg = {channels.CHANNEL_NAMES[place] for place in channels.CHANNEL_GROUPS["EEG"]}
    lacking = [set(visit.absent) for visit in visits if visit.absent]
    assert 10 <= len(lacking) <= 26
    assert any(absent == eeg for absent in lacking)
    assert any("C-FLOW" in absent and not absent & eeg for absent in lacking)
    assert [replace(visit, absent=()) for visit in visits] == cohort.plan_cohort(plain)
    assert visits[0].patient_id == visits[0].study_id == 1_000_001


def test_a_child_that_comes_again_is_older_and_less_ill():
    visits = cohort.plan_cohort(SimulateSettings(n_patients=3, n_repeat_studies=2))
    assert [visit.patient_id - visits[0].patient_id for visit in visits] == [0, 0, 1, 1, 2]
    for first, second in (visits[0:2], visits[2:4]):
        assert 0.4 <= second.child.age_years - first.child.age_years <= 1.2
        assert second.child.severity < first.child.severity
        assert second.child.sex == first.child.sex
        assert second.stream != first.stream


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_patients": 0}, "n_patients is 0"),
        ({"n_repeat_studies": 5}, "n_repeat_studies is 5 with n_patients 3"),
        ({"hours": 0.1}, "hours is 0.1"),
        ({"montage_b_fraction": 1.5}, "montage_b_fraction is 1.5"),
        ({"rates_hz": [130]}, "rates_hz"),
        ({"rates_hz": []}, "rates_hz"),
        ({"events": EventRates(apneas_per_hour=-1)}, "events.apneas_per_hour is -1"),
        ({"events": EventRates(hypopneas_per_hour=1e9)}, "events.hypopneas_per_hour is 1e"),
        ({"events": EventRates(min_events=5000)}, "events.min_events is 5000"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    settings = SimulateSettings(**(SMALL | fields))

    def check():  # as load_settings does
        check_bounds(settings)
        settings.check()

    with pytest.raises(SettingsError, match=message):
        check()


# ------------------------------------------------------------------ bytes
def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(small, tmp_path):
    settings, visits = small
    other = replace(settings, output_dir=tmp_path, n_workers=2)
    write(other)
    assert digest(tmp_path) == digest(settings.output_dir)
    assert len(digest(tmp_path)) == 2 * len(visits) + 3  # and three tables
    shifted = cohort.plan_cohort(replace(settings, seed=settings.seed + 1))
    assert [visit.child for visit in shifted] != [visit.child for visit in visits]


def test_a_small_cohort_begins_like_a_larger_ones_patients():
    """A visit's stream depends on seed, patient and number alone."""
    few = cohort.plan_cohort(SimulateSettings(n_patients=2, n_repeat_studies=0))
    many = cohort.plan_cohort(SimulateSettings(n_patients=9, n_repeat_studies=0))
    assert [visit.stream for visit in few] == [visit.stream for visit in many[:2]]


def test_a_recording_that_cannot_be_finished_leaves_nothing(small, tmp_path, monkeypatch):
    settings, visits = small

    def disk_full(self, target):
        Path(target).write_bytes(b"0       half a header")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edfio.Edf, "write", disk_full)
    with pytest.raises(OSError, match="No space left"):
        nch_files.write_visit(visits[0], replace(settings, output_dir=tmp_path))
    assert not list(tmp_path.rglob("*.edf"))
    assert not list(tmp_path.rglob("*.partial"))


# ------------------------------------------------------------------ EDF
def test_the_header_is_nchs_byte_by_byte(small):
    settings, visits = small
    for visit in visits:
        raw = edf_path(settings, visit).read_bytes()
        slots = slots_of(visit)
        n = len(slots)
        record_s = 4 if visit.rate_hz == 256 else 2
        n_records = int(visit.duration_s) // record_s
        assert raw[:8] == b"0       "
        assert raw[8:88] == b"0000000 X 01-JAN-2001 XXXXX,XXXX".ljust(80)
        assert raw[88:168] == b"Startdate 01-JAN-2001 X X X SIMULATED".ljust(80)
        assert raw[168:176] == b"01.01.01"
        assert raw[176:184].decode() == visit.start.strftime("%H.%M.%S")
        assert raw[184:192] == str(256 * (n + 1)).encode().ljust(8)
        assert raw[192:236] == b"EDF+C".ljust(44)
        assert raw[236:244] == str(n_records).encode().ljust(8)
        assert raw[244:252] == str(record_s).encode().ljust(8)
        assert raw[252:256] == str(n).encode().ljust(4)
        assert b"EDF Annotations" not in raw[: 256 * (n + 1)]
        fields = {}
        place = 256
        for name, width in (
            *(("label", 16), ("transducer", 80), ("unit", 8), ("pmin", 8), ("pmax", 8)),
            *(("dmin", 8), ("dmax", 8), ("filter", 80), ("samples", 8), ("reserved", 32)),
        ):
            texts = [raw[place + i * width : place + (i + 1) * width] for i in range(n)]
            fields[name] = [text.decode("ascii").rstrip() for text in texts]
            place += n * width
        assert fields["label"] == [slot.label for slot in slots]
        assert set(fields["dmin"]) == {"-32768"}
        assert set(fields["dmax"]) == {"32767"}
        assert set(fields["samples"]) == {str(visit.rate_hz * record_s)}
        for label, unit, low, high in zip(
            fields["label"], fields["unit"], fields["pmin"], fields["pmax"], strict=True
        ):
            if label.startswith(("EEG", "EOG", "EMG", "ECG")):
                assert (unit, low, high) == ("uV", "8711", "-8711")
        assert len(raw) == 256 * (n + 1) + int(visit.duration_s) * visit.rate_hz * n * 2


def test_the_montages_have_nchs_labels_in_nchs_order():
    labels_a = [slot.label for slot in nch_files.MONTAGE_A]
    assert labels_a == [
        *("Patient Event", "EOG LOC-M2", "EOG ROC-M1", "EMG Chin1-Chin2"),
        *("EEG F3-M2", "EEG F4-M1", "EEG C3-M2", "EEG C4-M1", "EEG O1-M2", "EEG O2-M1"),
        *("EEG CZ-O1", "EMG LLeg-RLeg", "ECG EKG2-EKG", "Snore", "Resp PTAF", "Resp Airflow"),
        *("Resp Thoracic", "Resp Abdominal", "SpO2", "Rate", "EtCO2", "Capno", "Resp Rate"),
        *("C-flow", "Tidal Vol", "Pressure"),
    ]
    labels_b = [slot.label for slot in nch_files.MONTAGE_B]
    assert len(labels_b) == 28
    assert {"OSAT", "Resp Chest", "Resp Abdomen", "EEG Cz-O1", "EMG CHIN1-CHIN2"} <= set(labels_b)
    assert "SpO2" not in labels_b
    osat = next(slot for slot in nch_files.MONTAGE_B if slot.label == "OSAT")
    assert osat.unit in channels.VOLTS  # tagged with a voltage unit, as at NCH
    for slot in (*nch_files.MONTAGE_A, *nch_files.MONTAGE_B):
        assert len(slot.label) <= 16


def test_edfio_and_mne_read_the_simulated_values_within_one_digital_step(small):
    settings, visits = small
    for visit in visits:
        truth = signals_of(visit, settings)
        slots = slots_of(visit)
        edf = edfio.read_edf(edf_path(settings, visit))
        raw = mne.io.read_raw_edf(edf_path(settings, visit), preload=True, verbose="error")
        assert raw.info["sfreq"] == visit.rate_hz
        assert raw.ch_names == [slot.label for slot in slots]
        values = raw.get_data()
        for i, (signal, slot) in enumerate(zip(edf.signals, slots, strict=True)):
            wanted = truth[slot.name].astype(np.float64) * slot.factor
            low, high = sorted((slot.physical_min, slot.physical_max))
            step = (high - low) / 65535
            inside = (wanted >= low) & (wanted <= high)
            assert inside.mean() > 0.99
            assert np.abs(signal.data - wanted)[inside].max() <= step
            volts = {"uV": 1e-6, "mV": 1e-3}.get(slot.unit, 1.0)
            assert np.abs(values[i] / volts - wanted)[inside].max() <= step


def test_our_reader_finds_the_16_channels_but_those_left_out(small):
    settings, visits = small
    assert any(visit.absent for visit in visits)
    for visit in visits:
        recording = recordings.open_edf(edf_path(settings, visit))
        assert recording.simulated
        assert recording.duration_s == visit.duration_s
        assert not recording.remarks
        sources = channels.resolve_channels(recording.signals)
        absent = [
            name
            for name, source in zip(channels.CHANNEL_NAMES, sources, strict=True)
            if isinstance(source, channels.Absent)
        ]
        assert sorted(absent) == sorted(visit.absent)
        truth = signals_of(visit, settings)
        for name, source in zip(channels.CHANNEL_NAMES, sources, strict=True):
            if isinstance(source, channels.Absent) or not name.startswith(("EEG", "EOG", "EMG")):
                continue
            x = recording.read_source(source)  # volts, whatever the label's sign
            assert np.corrcoef(x, truth[name])[0, 1] > 0.999
            assert x.std() == pytest.approx(1e-6 * truth[name].std(), rel=0.01)


def test_chin_variants_occur_with_their_sign():
    visit = cohort.plan_cohort(SimulateSettings(n_patients=1, n_repeat_studies=0))[0]
    visit = replace(visit, montage="A", absent=())
    found = {}
    for seed in range(200):
        slots = nch_files.montage_of(visit, np.random.default_rng(seed))
        chin = next(slot for slot in slots if slot.name == "EMG CHIN1-CHIN2")
        found.setdefault(chin.label, []).append(chin.factor)
    assert set(found) == {
        *("EMG Chin1-Chin2", "EEG Chin1-Chin2", "EMG Chin2-Chin1", "EMG Chin3-Chin2")
    }
    assert set(found["EMG Chin2-Chin1"]) == {-1}
    assert len(found["EMG Chin1-Chin2"]) > 150


def test_digital_values_are_rounded_and_cut_off():
    slot = nch_files.Slot("x", "x", "uV", 32768.0, -32767.0)  # step -1
    x = np.array([0.0, 1.4, -1.6, 32768.0, 1e6, -1e6], np.float32)
    assert nch_files.to_digital(x, slot).tolist() == [0, -1, 2, -32768, -32768, 32767]


# ------------------------------------------------------------------ .tsv
def test_times_of_the_tsv_are_whole_samples_on_a_phase_of_their_own(small):
    settings, visits = small
    phases = set()
    for visit in visits:
        path = edf_path(settings, visit).with_suffix(".tsv")
        table = pd.read_csv(path, sep="\t", keep_default_na=False)
        assert list(table.columns) == ["onset", "duration", "description"]
        for column in ("onset", "duration"):
            samples = table[column] * visit.rate_hz
            np.testing.assert_allclose(samples, samples.round(), atol=1e-6)
        assert (np.diff(table.onset) >= 0).all()
        assert table.onset.iloc[-1] < visit.duration_s
        stages = table[table.description.str.startswith("Sleep stage")]
        np.testing.assert_allclose(np.diff(stages.onset), 30)
        assert stages.description.iloc[0] == "Sleep stage ?"
        scored = stages[stages.description != "Sleep stage ?"]
        assert scored.onset.iloc[0] == visit.first_onset_s > 20
        phases.add(visit.first_onset_s % 1)
        ends = stages.onset + stages.duration
        assert ends.iloc[-1] == visit.duration_s
        assert 0 < stages.duration.iloc[-1] < 30  # the truncated last epoch
        assert (stages.duration.iloc[:-1] == 30).all()
    assert len(phases) == len(visits)


def test_the_tsv_has_nchs_other_rows(small):
    settings, visits = small
    texts = []
    for visit in visits:
        lines = edf_path(settings, visit).with_suffix(".tsv").read_text().splitlines()
        assert lines[1] == lines[2]  # the duplicate row
        texts += [line.split("\t")[2] for line in lines[1:]]
    assert {"Montage:NCH_PSG_STANDARD, Ref", "Start Recording", "Video Recording ON"} <= set(texts)
    assert any(text.startswith("Body Position: ") for text in texts)
    assert any(text.lower() == "lights off" for text in texts)
    notes = set(nch_files._NOTES)
    assert notes & set(texts)
    # A note never counts as a stage or an event.
    assert not {note.lower() for note in notes} & set(annotations.EVENTS)
    assert not any(stage_of(note, strict=True) is not None for note in notes)


def test_labels_read_back_are_those_of_the_simulated_scoring():
    settings = SimulateSettings(n_patients=25, n_repeat_studies=0, hours=0.5, seed=1)
    spellings, cases = set(), set()
    for visit in cohort.plan_cohort(settings):
        night = cohort.visit_night(visit, settings)
        rows = nch_files.tsv_rows(night, visit, None, np.random.default_rng((*visit.stream, 3)))
        read = annotations.label_epochs(annotations.scoring_from_rows(rows), visit.duration_s)
        wanted = annotations.label_epochs(
            annotations.scoring_from_rows(events.scored_rows(night)), visit.duration_s
        )
        # A break is unscored in the file.
        kept = np.isin(np.round(wanted.onsets_s, 6), np.round(read.onsets_s, 6))
        assert kept.sum() >= len(kept) - 3
        np.testing.assert_array_equal(read.sleep, wanted.sleep[kept])
        for kind in tasks.EVENT_KINDS:
            np.testing.assert_array_equal(read.events[kind], wanted.events[kind][kept])
        spellings |= {row[2] for row in rows if row[2].startswith("Sleep stage")}
        cases |= {row[2] for row in rows if row[2].lower() == "eeg arousal"}
    assert {"Sleep stage 2", "Sleep stage N2", "Sleep stage ?"} <= spellings
    assert cases == {"EEG arousal", "eeg arousal"}


def test_a_probe_that_is_off_is_an_oximeter_event():
    settings = SimulateSettings(**(SMALL | {"hours": 0.25}))
    visit = cohort.plan_cohort(settings)[0]
    spo2_S = np.full(int(visit.duration_s), 97.0)
    spo2_S[100:112] = 0
    spo2_S[-3:] = 0
    night = cohort.visit_night(visit, settings)
    rows = nch_files.tsv_rows(night, visit, spo2_S, np.random.default_rng(0))
    found = [row[:2] for row in rows if row[2] == "Oximeter Event"]
    assert found == [(100.0, 12.0), (visit.duration_s - 3, 3.0)]


# ------------------------------------------------------------------ tables
def test_health_data_say_age_and_sex_as_nchs_do(small):
    settings, visits = small
    folder = settings.output_dir / "Health_Data"
    studies = pd.read_csv(folder / "SLEEP_STUDY.csv", encoding="latin-1")
    assert list(studies.columns) == [
        *("STUDY_PAT_ID", "SLEEP_STUDY_ID", "SLEEP_STUDY_START_DATETIME"),
        *("SLEEP_STUDY_DURATION_DATETIME", "AGE_AT_SLEEP_STUDY_DAYS"),
    ]
    people = pd.read_csv(folder / "DEMOGRAPHIC.csv", encoding="latin-1", keep_default_na=False)
    assert list(people.columns) == [
        *("STUDY_PAT_ID", "BIRTH_DATE", "PCORI_GENDER_CD", "PCORI_RACE_CD", "PCORI_HISPANIC_CD"),
        *("GENDER_DESCR", "RACE_DESCR", "ETHNICITY_DESCR", "LANGUAGE_DESCR"),
        *("PEDS_GEST_AGE_NUM_WEEKS", "PEDS_GEST_AGE_NUM_DAYS"),
    ]
    assert len(studies) == len(visits)
    assert len(people) == len({visit.patient_id for visit in visits})
    found = layouts.read_health(folder).set_index(["patient_id", "study_id"])
    for visit in visits:
        row = found.loc[visit.patient_id, visit.study_id]
        assert row.age_days == visit.age_days
        assert row.sex == visit.child.sex
    first = studies.iloc[0]
    born = pd.to_datetime(people.BIRTH_DATE.iloc[0], format="%m/%d/%Y")
    came = pd.to_datetime(first.SLEEP_STUDY_START_DATETIME, format="%m/%d/%Y %H:%M:%S")
    assert (came.normalize() - born).days == first.AGE_AT_SLEEP_STUDY_DAYS
    assert layouts.find_studies(settings.output_dir, "nch")[0].problem == ""


# ------------------------------------------------------------------ batch files
def test_batch_files_hold_every_epoch_once_and_each_patient_in_one_split(tmp_path):
    made = {}
    for n_workers in (1, 2):
        folder = tmp_path / str(n_workers)
        settings = settings_for(
            tmp_path / "none", batches_dir=folder, n_workers=n_workers, absent_channel_fraction=1.0
        )
        visits = cohort.plan_cohort(settings)
        counts = list(batches.write_batches(visits, settings))
        made[n_workers] = digest(folder)
    assert made[1] == made[2]
    assert not (tmp_path / "none").exists()
    index = store.load_index(folder)
    assert index.simulated
    assert index.patient_disjoint
    assert len(index) == sum(counts)
    assert {split for split in ("train", "val", "test") if len(index.rows(split))} == {
        *("train", "val", "test")
    }
    for visit, count in zip(visits, counts, strict=True):
        rows = np.flatnonzero(index.study_ids == visit.study_id)
        night = cohort.visit_night(visit, settings)
        n_whole = int((visit.duration_s - visit.first_onset_s) // 30)
        assert len(rows) == count in (n_whole, n_whole - 1)
        rows = rows[np.argsort(index.onsets_s[rows])]
        np.testing.assert_array_equal(index.labels["sleep"][rows], night.scored_stages[:count])
        absent = [channels.CHANNEL_NAMES.index(name) for name in visit.absent]
        assert not index.present[rows][:, absent].any()
        assert index.present[rows].sum() == count * (16 - len(absent))
    signals = store.read_signals(index, np.arange(len(index)))
    assert not signals[~index.present].any()
    assert (signals[index.present].std(-1) > 0).mean() > 0.9
    studies = pd.read_csv(folder / "studies.csv")
    assert studies.n_examples.tolist() == counts
    assert studies.age_days.tolist() == [visit.age_days for visit in visits]
    assert studies.sex.tolist() == [visit.child.sex for visit in visits]
    splits = tables.read_splits(folder)
    assert studies.split.tolist() == [splits[visit.patient_id] for visit in visits]


def test_examples_are_mixed_and_none_is_lost_when_memory_holds_few_visits(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "VISITS_IN_MEMORY", 1)
    monkeypatch.setattr(store, "BATCH_EXAMPLES", 32)
    settings = settings_for(tmp_path, batches_dir=tmp_path, n_repeat_studies=0)
    visits = cohort.plan_cohort(settings)
    total = sum(batches.write_batches(visits, settings))
    index = store.load_index(tmp_path)
    assert len(index) == total
    pairs = set(zip(index.study_ids.tolist(), index.onsets_s.tolist(), strict=True))
    assert len(pairs) == total
    train = index.rows("train")
    assert (np.diff(index.onsets_s[train]) < 0).any()


def test_a_split_that_is_there_stands(tmp_path):
    settings = settings_for(tmp_path, batches_dir=tmp_path)
    visits = cohort.plan_cohort(settings)
    wanted = dict(zip(sorted({visit.patient_id for visit in visits}), SPLITS, strict=True))
    wanted = {patient: split for patient, split in wanted.items() if split != "train"}
    lines = [f"{patient},{split}" for patient, split in wanted.items()]
    (tmp_path / "splits.csv").write_text("\n".join(["patient_id,split", *lines]) + "\n")
    for _ in batches.write_batches(visits, settings):
        pass
    assert wanted.items() <= tables.read_splits(tmp_path).items()
    index = store.load_index(tmp_path)
    for patient, split in wanted.items():
        assert set(index.patient_ids[index.rows(split)]) == {patient}


def test_readers_refuse_batches_whose_writing_was_interrupted(tmp_path):
    settings = settings_for(tmp_path, batches_dir=tmp_path)
    writing = batches.write_batches(cohort.plan_cohort(settings), settings)
    for _ in range(4):
        next(writing)
    writing.close()  # all batch files are there, but nobody has said so
    with pytest.raises(store.StoreError, match="stopped before all batch files"):
        store.load_index(tmp_path)


# ------------------------------------------------------------------ driven by .tsv files
def test_event_files_drive_the_cohort_in_turn(tmp_path):
    for number in range(2):
        rows = [f"{7.5 + 30 * i}\t30.0\tSleep stage {'N2' if i > 5 else 'W'}" for i in range(90)]
        rows += [f"{900.0 + number}\t20.0\tMixed Apnea", "1000.0\t0.0\tmove"]
        text = "\n".join(["onset\tduration\tdescription", *rows]) + "\n"
        (tmp_path / f"{number}_1.tsv").write_text(text)
    settings = settings_for(tmp_path / "out", event_dir=tmp_path, hours=0.5)
    visits = cohort.plan_cohort(settings)
    assert [visit.event_file.name for visit in visits] == [f"{i}_1.tsv" for i in (0, 1, 0, 1)]
    for visit in visits[:2]:
        night = cohort.visit_night(visit, settings)
        apneas = [event for event in night.scored_events if event.name == "Mixed Apnea"]
        assert [event.duration_s for event in apneas] == [20.0]
        assert night.epoch_onsets_s[0] == pytest.approx(visit.first_onset_s)
        assert night.duration_s <= visit.duration_s
        assert set(night.scored_stages) <= {0, 2}
    empty = settings_for(tmp_path / "out", event_dir=tmp_path / "nothing")
    with pytest.raises(SettingsError, match=r"no .tsv file"):
        cohort.plan_cohort(empty)


def test_an_event_file_without_stages_is_refused_by_its_name(tmp_path):
    text = "onset\tduration\tdescription\n900.0\t20.0\tMixed Apnea\n"
    (tmp_path / "7_1.tsv").write_text(text)
    settings = settings_for(tmp_path / "out", event_dir=tmp_path, hours=0.5)
    visit = cohort.plan_cohort(settings)[0]
    with pytest.raises(UserError, match=r"7_1.tsv: no scored stage"):
        cohort.visit_night(visit, settings)


def test_an_excerpt_moves_stages_and_events_together():
    rows = [(100.0 + 30 * i, 30.0, "Sleep stage N2") for i in range(20)]
    rows += [(160.0, 10.0, "Central Apnea")]
    scoring = annotations.scoring_from_rows(rows)
    short = cohort.excerpt(scoring, 3600.0, 40.0, np.random.default_rng(0))
    np.testing.assert_allclose(short.stage_onsets_s, 40 + 30 * np.arange(20))
    assert [event.onset_s for event in short.events] == [100.0]
    long = cohort.excerpt(scoring, 200.0, 20.0, np.random.default_rng(0))
    assert len(long.stages) == 6
    assert long.stage_onsets_s[0] == 20.0


# ------------------------------------------------------------------ the script
def run_script(*args) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "0_simulate_cohort.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_simulates_and_refuses_what_it_cannot_do(tmp_path):
    out = tmp_path / "cohort"
    small = ["--n_patients", 1, "--n_repeat_studies", 0, "--hours", 0.25, "--n_workers", 1]
    done = run_script("--output_dir", out, *small)
    assert done.returncode == 0, done.stderr
    assert "Simulated: 1 recordings of 1 children" in done.stdout
    assert len(list((out / "Sleep_Data").glob("*.edf"))) == 1
    (out / "Sleep_Data" / "1_1.edf").write_bytes(b"somebody else's")
    mixed = run_script("--output_dir", out, *small)
    assert mixed.returncode == 2
    assert "1 recordings of another cohort" in mixed.stderr
    bad = run_script("--event_dir", tmp_path / "absent")
    assert bad.returncode == 2
    assert "event_dir" in bad.stderr
    assert len(bad.stderr.strip().splitlines()) == 1


def test_the_demo_cohort_fits_its_purpose():
    """Every task has positives among any third of the patients; disk and time stay small."""
    from pedsleepmae.config import load_settings

    settings = load_settings(
        SimulateSettings,
        "simulate.yaml",
        "",
        ["--config", str(ROOT / "configs/demo/simulate.yaml")],
    )
    visits = cohort.plan_cohort(settings)
    assert len(visits) == 15
    assert {visit.montage for visit in visits} == {"A", "B"}
    assert any(visit.absent for visit in visits)
    gigabytes = sum(visit.duration_s * visit.rate_hz * 27 * 2 / 1e9 for visit in visits)
    assert gigabytes < 1
    for visit in visits:
        night = cohort.visit_night(visit, settings)
        labels = annotations.label_epochs(
            annotations.scoring_from_rows(events.scored_rows(night)), visit.duration_s
        )
        assert set(labels.sleep) == set(range(5))
        for kind in tasks.EVENT_KINDS:
            assert (labels.events[kind] > 0).sum() >= 2
