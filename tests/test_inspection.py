"""What --inspect tells of files, which stand-ins it proposes, what --write_settings writes."""

import dataclasses
import importlib.util
import itertools
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from edf_files import EdfFile, Signal, nch_file, noise

from pedsleepmae.channels import CHANNEL_NAMES, SignalInfo
from pedsleepmae.config import load_settings
from pedsleepmae.prepare import inspection
from pedsleepmae.prepare.examples import ReadSettings
from pedsleepmae.prepare.inspection import inspect_recording, settings_file, stand_ins_block
from pedsleepmae.prepare.looks import Look, look_at
from pedsleepmae.prepare.proposals import GUESS, HIGH, LIKELY, Proposal, merge, propose
from pedsleepmae.prepare.recordings import open_edf
from pedsleepmae.prepare.run import PrepareSettings
from pedsleepmae.score.run import ScoreSettings

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "psg"
NOX = REAL / "nox_a1_rsleep" / "subject1.edf"
SLEEP_EDF = REAL / "sleep_edf_SC4001" / "SC4001E0-PSG.edf"


# ------------------------------------------------------------------ helpers
def seen(label: str, like: str = "nothing", unit: str = "uV", rate_hz: float = 100.0) -> Look:
    """A look at a signal that is like an oximeter, breath, muscle, a head's voltage, or nothing."""
    held, breath, fast = {
        "oximeter": (0.9, 0.4, 0.0),
        "breath": (0.0, 0.9, 0.0),
        "muscle": (0.0, 0.1, 0.7),
        "head": (0.0, 0.4, 0.1),
        "nothing": (0.0, 0.4, 0.1),
    }[like]
    signal = SignalInfo(label, unit, rate_hz, -100, 100, -32768, 32767)
    return Look(signal, 90.0, 99.0, held, breath, fast, 2e1, percent=like == "oximeter")


def proposed(*looks: Look, absent=CHANNEL_NAMES) -> list[tuple[str, str, str]]:
    return [(p.channel, p.label, p.confidence) for p in propose(looks, absent)]


def edf(*signals: Signal) -> EdfFile:
    return EdfFile(list(signals), record_s="4")


def tone(label: str, hz: float, rate_hz: int = 200, seconds: int = 600, **fields) -> Signal:
    t = np.arange(seconds * rate_hz) / rate_hz
    digital = np.round(3000 * np.sin(2 * np.pi * hz * t)).astype(np.int16)
    return Signal(label, digital, 4 * rate_hz, **fields)


def oximeter(label: str, seconds: int = 600) -> Signal:
    """97 % and 94 %, 20 s each, at 4 samples a second."""
    percent = np.where(np.arange(seconds * 4) // 80 % 2, 94, 97).astype(np.int16)
    return Signal(label, percent, 16, "%", ("0", "100"), ("0", "100"))


def a_night(seconds: int = 600) -> EdfFile:
    """Three of the 16 under their own names, the others of a laboratory of its own."""
    signals = [
        Signal(f"EEG {name}", noise(seconds * 200, k), 800, physical=("-1000", "1000"))
        for k, name in enumerate(("C3-M2", "C4-M1", "O1-M2"))
    ]
    signals += [
        tone("VTH", 0.25, 25, seconds),
        tone("NAF1", 0.25, 25, seconds),
        oximeter("Pulse oximetry", seconds),
        tone("Resp Rate", 0.25, 25, seconds),
    ]
    return edf(*signals)


@pytest.fixture
def script_1():
    """Script 1's main, in this process: its exit code."""
    spec = importlib.util.spec_from_file_location("script_1", ROOT / "1_prepare_dataset.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda *options: module.main([str(option) for option in options])
    signal.signal(signal.SIGTERM, handler)


# ------------------------------------------------------------------ words and looks
@pytest.mark.parametrize(
    ("label", "like", "channel", "confidence"),
    [
        ("VTH", "breath", "RESP THORACIC", "high"),
        ("Thorax", "breath", "RESP THORACIC", "high"),
        ("THOR RES", "breath", "RESP THORACIC", "high"),
        ("Belt", "breath", "RESP THORACIC", "likely"),
        ("VAB", "breath", "RESP ABDOMINAL", "high"),
        ("Resp Belt Abdo", "breath", "RESP ABDOMINAL", "high"),
        ("NAF1", "breath", "C-FLOW", "high"),
        ("Resp PTAF", "breath", "C-FLOW", "high"),
        ("Nasal Pressure", "breath", "C-FLOW", "high"),
        ("CannulaFlow", "breath", "C-FLOW", "high"),
        ("Thermistor", "breath", "C-FLOW", "high"),
        ("Resp oro-nasal", "breath", "C-FLOW", "high"),
        ("PHONO", "muscle", "SNORE", "high"),
        ("Microphone", "muscle", "SNORE", "likely"),
        ("SaO2_finger", "oximeter", "SPO2", "high"),
        ("Pulse oximetry", "oximeter", "SPO2", "high"),
        ("CO2 wave", "breath", "CAPNO", "high"),
        ("EtCO2", "breath", "CAPNO", "likely"),
        ("EMG submental", "muscle", "EMG CHIN1-CHIN2", "high"),
        ("EMG1", "muscle", "EMG CHIN1-CHIN2", "high"),
        ("EMG 3", "muscle", "EMG CHIN1-CHIN2", "likely"),
        ("1-F", "muscle", "EMG CHIN1-CHIN2", "likely"),
        ("EOG left", "head", "EOG LOC-M2", "high"),
        ("EOG(L)", "head", "EOG LOC-M2", "high"),
        ("E2-M2", "head", "EOG ROC-M1", "high"),
        ("EOG2", "head", "EOG ROC-M1", "high"),
        ("EOG Pos8-M1", "head", "EOG ROC-M1", "likely"),
        ("EOG horizontal", "head", "EOG LOC-M2", "likely"),
        ("EEG C3-A1", "head", "EEG C3-M2", "high"),
        ("C4-M2", "head", "EEG C4-M1", "high"),
        ("C3-CLE", "head", "EEG C3-M2", "likely"),
        ("FP1-A1", "head", "EEG F3-M2", "likely"),
        ("EEG Fpz-Cz", "head", "EEG C3-M2", "likely"),
        ("EEG Pz-Oz", "head", "EEG O1-M2", "likely"),
        ("Cz-Oz", "head", "EEG CZ-O1", "likely"),
        ("EEG(sec)", "head", "EEG C3-M2", "guess"),
        ("DC7", "breath", "C-FLOW", "guess"),
        ("DC8", "oximeter", "SPO2", "guess"),
    ],
)
def test_a_label_of_the_field_and_its_look_propose_a_channel(label, like, channel, confidence):
    unit = "%" if like == "oximeter" else "uV"
    assert proposed(seen(label, like, unit))[0] == (channel, label, confidence)


OTHER = [
    "C3 (Imp)",
    "Resp Rate",
    "Heart Rate",
    "Pulse",
    "RIP Flow",
    "XFlow",
    "EMG LLeg-RLeg",
    "H.R.",
]
OTHER += [
    "EMG RLEG+-RLEG-",
    "ECG EKG2-EKG",
    "EEG EKG1",
    "TcCO2",
    "Position",
    "M1",
    "A1-A2",
    "Pleth",
]
OTHER += ["CPAP Pressure", "Flow Limitation", "EMG RAT1-RAT2", "OX STAT", "Temp rectal", "Marker"]


@pytest.mark.parametrize("label", OTHER)
@pytest.mark.parametrize("like", ["oximeter", "breath", "muscle", "head"])
def test_what_is_another_quantity_is_proposed_for_nothing(label, like):
    assert proposed(seen(label, like)) == []


@pytest.mark.parametrize("unit", ["Ohm", "bpm", "g", "\u00c2\u00b0", "DegC"])
def test_a_unit_of_another_quantity_is_proposed_for_nothing(unit):
    assert proposed(seen("Thorax", "breath", unit)) == []


def test_a_voltage_channel_takes_no_signal_in_another_unit():
    assert proposed(seen("EMG submental", "muscle", "mmHg")) == []


def test_a_look_that_cannot_tell_costs_one_step_and_one_against_it_two():
    assert proposed(seen("Thorax", "breath")) == [("RESP THORACIC", "Thorax", "high")]
    assert proposed(seen("Thorax", "nothing")) == [("RESP THORACIC", "Thorax", "likely")]
    assert proposed(seen("Thorax", "muscle")) == [("RESP THORACIC", "Thorax", "guess")]
    assert proposed(seen("Belt", "nothing")) == [("RESP THORACIC", "Belt", "guess")]
    assert proposed(seen("Belt", "muscle")) == []


def test_an_envelope_under_the_name_of_the_chin_is_a_guess_that_says_why():
    (proposal,) = propose([seen("EMG submental", "muscle", rate_hz=1.0)], CHANNEL_NAMES)
    assert proposal.confidence == "guess"
    assert "against it: at 1 Hz an envelope" in proposal.why


def test_no_electrode_gives_such_a_voltage():
    look = dataclasses.replace(seen("C3-A1", "head"), swing=4e7)  # 40 V
    (proposal,) = propose([look], ["EEG C3-M2"])
    assert proposal.confidence == "guess"
    assert "40 V" in proposal.why


def test_an_eeg_from_elsewhere_is_never_of_high_confidence():
    electrodes = ["Fp1", "Fpz", "F4", "C3", "Cz", "T3", "P4", "O1", "O2"]
    found = [
        proposal
        for plus, minus in itertools.permutations(electrodes, 2)
        for channel in CHANNEL_NAMES
        for proposal in propose([seen(f"{plus}-{minus}", "head")], [channel])
    ]
    assert found
    assert [proposal for proposal in found if proposal.level >= HIGH] == []


def test_a_signal_is_proposed_for_one_channel_only():
    looks = [seen("Fpz-Cz", "head"), seen("C3-A1", "head"), seen("EOG", "head"), seen("C3", "head")]
    labels = [label for _, label, _ in proposed(*looks)]
    assert sorted(labels) == ["C3", "C3-A1", "EOG", "Fpz-Cz"]


def test_the_surer_signal_comes_first_and_keeps_guesses_out():
    looks = [seen("Belt", "breath"), seen("Chest wall", "breath"), seen("Thorax 2", "muscle")]
    assert proposed(*looks) == [
        ("RESP THORACIC", "Chest wall", "high"),
        ("RESP THORACIC", "Belt", "likely"),
    ]


def test_only_absent_channels_get_proposals():
    looks = [seen("VTH", "breath"), seen("VAB", "breath")]
    assert proposed(*looks, absent=["RESP ABDOMINAL"]) == [("RESP ABDOMINAL", "VAB", "high")]


def test_what_preparation_has_tried_and_refused_is_not_proposed():
    assert proposed(seen("SpO2", "muscle"), absent=["SPO2"]) == []
    assert proposed(seen("EEG M2-C3", "head"), absent=["EEG C3-M2"]) == []


# ------------------------------------------------------------------ what a look measures
def test_a_look_measures_breath_speed_and_steps(tmp_path):
    hum = tone("mains", 50, 200)  # three times as large as the 5 Hz below it
    hum.digital += tone("", 5, 200).digital // 3
    file = edf(
        tone("breath", 0.25, 32),
        tone("fast", 40, 200),
        hum,
        tone("slow", 5, 200),
        oximeter("percent"),
        Signal("flat", np.full(600 * 4, 7, np.int16), 16),
    )
    recording = open_edf(file.write(tmp_path / "1_1.edf"))
    breath, fast, mains, slow, percent, flat = (look_at(recording, i) for i in range(6))
    assert breath.breath > 0.99
    assert fast.fast > 0.99
    assert fast.breath < 0.01
    assert slow.fast < 0.01
    assert mains.fast < 0.01
    assert percent.percent
    # 97, 94, 97 % within a minute of 240 samples: 3 changes at most among 239.
    assert 1 - percent.held <= 3 / 239
    assert (percent.low, percent.high) == (94, 97)
    assert flat.flat
    assert not breath.flat


def test_rates_that_cannot_show_it_leave_breath_and_speed_open(tmp_path):
    recording = open_edf(edf(tone("a", 0.2, 1), tone("b", 0.2, 4)).write(tmp_path / "1_1.edf"))
    one_hz, four_hz = look_at(recording, 0), look_at(recording, 1)
    assert np.isnan(one_hz.breath)
    assert four_hz.breath > 0.99
    assert np.isnan(four_hz.fast)


def test_a_look_reads_five_minutes_of_a_night(tmp_path):
    recording = open_edf(edf(tone("a", 1, 10, seconds=3600)).write(tmp_path / "1_1.edf"))
    spans_s = []

    def read_digital(i, start_s, end_s):
        spans_s.append((start_s, end_s))
        return recording.read_digital(i, start_s, end_s)

    look_at(dataclasses.replace(recording, read_digital=read_digital), 0)
    # A tenth of 3600 - 60 s, then every fifth of it.
    assert np.allclose(spans_s, [(s, s + 60) for s in (354, 1062, 1770, 2478, 3186)])


def test_a_part_of_a_signal_is_that_part_of_the_whole(tmp_path):
    digital = np.arange(200, dtype=np.int16)
    file = edf(Signal("a", digital, 20), Signal("b", digital[:100] + 1000, 10))
    recording = open_edf(file.write(tmp_path / "1_1.edf"))  # 10 records of 4 s: 5 and 2.5 Hz
    np.testing.assert_array_equal(recording.read_digital(0, 3.0, 9.0), np.arange(15, 45))
    np.testing.assert_array_equal(recording.read_digital(1, 8.0, 40.0), np.arange(1020, 1100))
    np.testing.assert_array_equal(recording.read_digital(0), digital)


# ------------------------------------------------------------------ one file
def test_unused_signals_are_listed_with_rate_unit_range_and_what_they_are_proposed_for(tmp_path):
    found = inspect_recording(a_night().write(tmp_path / "1_1.edf"), ReadSettings())
    rows = {re.split(r"  +", line)[0]: line for line in found.text.splitlines()}
    assert re.split(r"  +", rows["Pulse oximetry"]) == [
        *("Pulse oximetry", "4 Hz", "%", "94 to 97", "within 50-100 % and in steps"),
        "SPO2 (high)",
    ]
    assert rows["VTH"].endswith("RESP THORACIC (high)")
    assert rows["Resp Rate"].endswith("Hz")  # proposed for nothing
    assert "3 of 16 channels found" in found.text


def test_a_label_that_stands_twice_is_proposed_once_by_what_it_would_be(tmp_path):
    # Of two signals named VTH the first that holds something is read: here the second.
    flat = Signal("VTH", np.full(600 * 25, 5, np.int16), 100)
    file = edf(flat, tone("VTH", 0.25, 25), tone("vth", 60, 200))
    found = inspect_recording(file.write(tmp_path / "1_1.edf"), ReadSettings())
    assert [(p.label, p.confidence) for p in found.proposals] == [("VTH", "high")]


def test_the_name_of_a_used_signal_is_not_proposed(tmp_path):
    file = edf(tone("Chest", 0.25, 25), tone("Chest", 0.25, 25))
    found = inspect_recording(file.write(tmp_path / "1_1.edf"), ReadSettings())
    assert found.proposals == []


def test_a_stand_in_that_was_given_and_refused_is_not_proposed_again(tmp_path):
    file = edf(tone("Saturation", 0.1, 4, unit="%", physical=("-100", "100")))  # no oximeter
    path = file.write(tmp_path / "1_1.edf")
    (proposal,) = inspect_recording(path, ReadSettings()).proposals
    assert (proposal.channel, proposal.confidence) == ("SPO2", "guess")
    given = ReadSettings(stand_ins={"spo2": ["saturation"]})
    assert inspect_recording(path, given).proposals == []


def test_control_characters_of_labels_reach_neither_terminal_nor_file(tmp_path):
    file = edf(tone("VTH\x1b[2J\x07", 0.25, 25))
    found = inspect_recording(file.write(tmp_path / "1_1.edf"), ReadSettings())
    text = found.text + settings_file(PrepareSettings(), found.proposals, "a\x1b.edf")
    assert len(found.proposals) == 1
    assert all(c.isprintable() for c in text.replace("\n", ""))


@pytest.mark.skipif(not NOX.exists(), reason="needs ../shared/psg, which is not there")
def test_the_stand_ins_that_a_person_chose_for_a_nox_recording_are_proposed():
    found = inspect_recording(NOX, ReadSettings()).proposals
    chosen = yaml.safe_load((ROOT / "configs" / "nox_a1.yaml").read_text())["stand_ins"]
    by_hand = {(channel, label) for channel, labels in chosen.items() for label in labels}
    ours = {(p.channel, p.label) for p in found if p.level >= LIKELY}
    assert by_hand <= ours
    assert ours - by_hand == {("SPO2", "SpO2 B-B")}


@pytest.mark.skipif(not SLEEP_EDF.exists(), reason="needs ../shared/psg, which is not there")
def test_the_stand_ins_that_a_person_chose_for_sleep_edf_are_proposed():
    found = inspect_recording(SLEEP_EDF, ReadSettings()).proposals
    chosen = yaml.safe_load((ROOT / "configs" / "sleep_edf" / "prepare.yaml").read_text())
    assert {p.channel: [p.label] for p in found} == chosen["stand_ins"]
    # An envelope at 1 Hz is no EMG, and a flow at 1 Hz shows no breath for certain.
    levels = {p.label: p.level for p in found}
    assert levels.pop("EMG submental") == GUESS
    assert set(levels.values()) == {LIKELY}


# ------------------------------------------------------------------ a folder
def test_a_folder_is_told_by_montage_and_its_unreadable_files_with_the_reason(
    tmp_path, script_1, capsys
):
    for name in ("a", "b", "c", "d"):
        a_night(seconds=320 if name == "c" else 160).write(tmp_path / "in" / f"{name}.edf")
    edf(tone("Thorax", 0.25, 25)).write(tmp_path / "in" / "deep" / "e.EDF")
    (tmp_path / "in" / "bad\x07.edf").write_bytes(b"no header")
    (tmp_path / "in" / "SC4001EC-Hypnogram.edf").write_bytes(b"annotations")
    assert script_1("--inspect", tmp_path / "in") == 0
    out = capsys.readouterr().out
    assert "6 EDF files, 2 montages, 1 unreadable files" in out
    assert "Montage 1 of 2: 4 files (a.edf, b.edf, c.edf, ...)\nlooked at: c.edf: 0.09 h" in out
    assert "Montage 2 of 2: 1 files (e.EDF)" in out
    assert r"  bad\x07.edf: no readable EDF file" in out
    everything = yaml.safe_load(out.split("All montages in one:")[1].split("settings:", 1)[1])
    assert everything["stand_ins"]["RESP THORACIC"] == ["VTH", "Thorax"]


def test_files_of_other_rates_are_another_montage(tmp_path):
    paths = [
        edf(tone("Thorax", 0.25, rate_hz, 60)).write(tmp_path / f"{name}.edf")
        for name, rate_hz in (("a", 25), ("b", 32), ("c", 25))
    ]
    montages, unreadable = inspection.group_by_montage(paths)
    assert montages == [[paths[0], paths[2]], [paths[1]]]
    assert unreadable == {}


def test_montages_that_differ_on_a_label_make_it_a_guess_for_all_but_one():
    first = [Proposal("C-FLOW", "Sensor", HIGH, "a"), Proposal("SNORE", "Mic", LIKELY, "b")]
    second = [Proposal("RESP THORACIC", "sensor", LIKELY, "c"), Proposal("SNORE", "Mic", HIGH, "d")]
    assert [(p.channel, p.label, p.confidence) for p in merge([first, second])] == [
        ("C-FLOW", "Sensor", "high"),
        ("SNORE", "Mic", "high"),
        ("RESP THORACIC", "sensor", "guess"),
    ]


def test_a_folder_without_a_readable_file_fails(tmp_path, script_1, capsys):
    (tmp_path / "a.edf").write_bytes(b"no header")
    assert script_1("--inspect", tmp_path) == 1
    assert "none of the 1 EDF files can be read" in capsys.readouterr().err


# ------------------------------------------------------------------ YAML
NASTY = ["no", "1e3", "12", "1_0", "0x1F", "2001-01-01", "1:30", "null", "~", "C3: A2", "#1", "- x"]
NASTY += [
    "'q'",
    '"',
    "\\",
    "@a",
    "%",
    "{a}",
    "a # b",
    "[",
    "*x",
    "&y",
    "!t",
    "Imp\u00c3\u00a9",
    " ",
]


def read_back(path: Path, settings_class=PrepareSettings, default="prepare.yaml"):
    return load_settings(settings_class, default, "", ["--config", str(path)])


def test_every_label_comes_back_from_the_file_as_it_is_spelt(tmp_path):
    found = [Proposal("SNORE", label, HIGH, "why") for label in NASTY]
    path = tmp_path / "s.yaml"
    path.write_text(settings_file(PrepareSettings(), found, "x"), encoding="utf-8")
    assert read_back(path).stand_ins == {"SNORE": NASTY}


def test_guesses_stand_as_comments_and_the_given_ones_first():
    found = [
        Proposal("C-FLOW", "Flow", HIGH, "a"),
        Proposal("SNORE", "Mic", GUESS, "b"),
        Proposal("C-FLOW", "Air", GUESS, "c"),
    ]
    lines = stand_ins_block({"c-flow": ["Mine"]}, found)
    assert yaml.safe_load("\n".join(lines)) == {"stand_ins": {"C-FLOW": ["Mine", "Flow"]}}
    uncommented = "\n".join(re.sub("^  # ", "  ", line) for line in lines)
    assert yaml.safe_load(uncommented)["stand_ins"] == {
        "SNORE": ["Mic"],
        "C-FLOW": ["Mine", "Flow", "Air"],
    }


def test_a_file_of_guesses_alone_is_read_as_no_stand_ins(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(settings_file(PrepareSettings(), [Proposal("SNORE", "Mic", GUESS, "b")], "x"))
    assert "Mic" in path.read_text()
    assert read_back(path).stand_ins == {}


def test_what_was_given_stands_in_the_file_and_what_script_4_cannot_read_is_named():
    settings = PrepareSettings(units={"EEG": "uV"}, layout="sleep_edf", scaling="robust")
    settings.paths.batches_dir = Path("elsewhere")
    text = settings_file(settings, [], "x")
    assert yaml.safe_load(text) == {
        "units": {"EEG": "uV"},
        "layout": "sleep_edf",
        "scaling": "robust",
        "paths": {"batches_dir": "elsewhere"},
        "stand_ins": {},
    }
    assert "Script 4 reads it without layout, paths." in text


# ------------------------------------------------------------------ script 1
def test_the_written_file_is_read_by_scripts_1_and_4_and_finds_the_channels(
    tmp_path, script_1, capsys
):
    recording = a_night().write(tmp_path / "1_1.edf")
    written = tmp_path / "new" / "mine.yaml"
    options = ["--stand_ins", '{"SNORE": ["Mine"]}', "--units", '{"EEG": "uV"}']
    assert script_1("--inspect", recording, "--write_settings", written, *options) == 0
    expected = {
        "SPO2": ["Pulse oximetry"],
        "RESP THORACIC": ["VTH"],
        "SNORE": ["Mine"],
        "C-FLOW": ["NAF1"],
    }
    for settings in (read_back(written), read_back(written, ScoreSettings, "score.yaml")):
        assert settings.stand_ins == expected
        assert settings.units == {"EEG": "uV"}
    capsys.readouterr()
    assert script_1("--config", written, "--inspect", recording) == 0
    out = capsys.readouterr().out
    assert "6 of 16 channels found" in out
    assert "stand-in VTH" in out


def test_a_settings_file_that_is_there_is_never_replaced(tmp_path, script_1, capsys):
    recording = a_night(seconds=60).write(tmp_path / "1_1.edf")
    mine = tmp_path / "mine.yaml"
    mine.write_text("seed: 1\n")
    assert script_1("--inspect", recording, "--write_settings", mine) == 2
    assert "is not replaced" in capsys.readouterr().err
    assert mine.read_text() == "seed: 1\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--inspect", "nowhere"], "inspect: there is no file or folder"),
        (["--inspect", "."], "inspect: no EDF file in"),
        (["--write_settings", "a.yaml"], "give inspect too"),
    ],
)
def test_what_is_not_there_is_a_bad_call(
    tmp_path, monkeypatch, script_1, capsys, options, sentence
):
    monkeypatch.chdir(tmp_path)
    assert script_1(*options) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_all_sixteen_found_leaves_nothing_to_propose(tmp_path):
    found = inspect_recording(nch_file(seconds=60).write(tmp_path / "1_1.edf"), ReadSettings())
    assert found.text.endswith("16 of 16 channels found")
    assert found.proposals == []
