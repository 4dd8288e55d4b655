"""Which signals of a recording the 16 channels come from."""

from pathlib import Path

import pytest
import yaml

from pedsleepmae.channels import (
    CHANNEL_NAMES,
    Absent,
    SignalInfo,
    Source,
    canonical_label,
    resolve_channels,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"

MONTAGE_A = """Patient Event|EOG LOC-M2|EOG ROC-M1|EMG Chin1-Chin2|EEG F3-M2|EEG F4-M1|EEG C3-M2|
EEG C4-M1|EEG O1-M2|EEG O2-M1|EEG CZ-O1|EMG LLeg-RLeg|ECG EKG2-EKG|Snore|Resp PTAF|Resp Airflow|
Resp Thoracic|Resp Abdominal|SpO2|Rate|EtCO2|Capno|Resp Rate|C-flow|Tidal Vol|Pressure"""
MONTAGE_B = """EOG LOC-M2|EOG ROC-M1|EMG CHIN1-CHIN2|EEG F3-M2|EEG F4-M1|EEG C3-M2|EEG C4-M1|
EEG O1-M2|EEG O2-M1|EEG Cz-O1|EMG LLEG+-LLEG-|EMG RLEG+-RLEG-|ECG LA-RA|Snore|Snore_DR|Flow_DR|
Resp Flow|XFlow|Resp Chest|Resp Abdomen|OSAT|Rate|EtCO2|Capno|Resp Rate|TcCO2|C-Flow|C-Pressure"""
REFERENTIAL = """EEG C3|EEG C4|EEG F3|EEG F4|EEG O1|EEG O2|EEG M1|EEG M2|EEG E1|EEG E2|EEG Chin1|
EEG Chin2|EEG Chin3|EEG EKG1|EEG EKG2|EEG LLeg1|EEG Therm|EEG Snore|EEG Press|EEG Chest|EEG Abd|
EEG Spare|EEG 20|EEG 40"""
TEN_TWENTY = """Fp1|Fp2|FPZ|F7|F8|F3|F4|FZ|T3|T4|C3|C4|CZ|O1|O2|M1|M2|LOC|ROC|Chin1|Chin2|Chin3|
EKG|EKG2|LLeg|RLeg|Airflow|Thoracic|Abdominal|Position|PPG|Pleth|PR|OSat|DC3|38"""
CHAT = """E1|E2|F3|F4|C3|C4|T3|T4|O1|O2|M1|m2|Lchin|Rchiin|Cchin|ECG1|Airlfow|CannulaFlow|Chest|ABD|
SUM|SA02nonin|Pleth|Position|Cap|EtCO2|Snore 2|DHR"""


def info(label, unit="uV", rate_hz=256.0, physical=(8711.0, -8711.0), problem=""):
    return SignalInfo(label, unit, rate_hz, *physical, -32768.0, 32767.0, problem)


def labels(text):
    return [info(label.strip()) for label in text.replace("\n", "").split("|")]


def resolve(signals, stand_ins=None):
    """Channel -> how, "" when it is absent."""
    found = resolve_channels(signals, stand_ins)
    return {
        name: source.origin if isinstance(source, Source) else ""
        for name, source in zip(CHANNEL_NAMES, found, strict=True)
    }


def one(channel, signals, stand_ins=None):
    return resolve_channels(signals, stand_ins)[CHANNEL_NAMES.index(channel)]


# ------------------------------------------------------------------ montages
@pytest.mark.parametrize("montage", [MONTAGE_A, MONTAGE_B])
def test_2_both_montages_of_nch_offer_all_16(montage):
    assert all(resolve(labels(montage)).values())


def test_2_montage_b_names_are_the_same_channels():
    how = resolve(labels(MONTAGE_B))
    assert how["SPO2"] == "OSAT"
    assert how["RESP THORACIC"] == "Resp Chest"
    assert how["RESP ABDOMINAL"] == "Resp Abdomen"
    assert how["SNORE"] == "Snore"  # not Snore_DR, which is another signal
    assert how["C-FLOW"] == "C-Flow"  # not Resp Flow, Flow_DR or XFlow
    assert how["CAPNO"] == "Capno"  # the wave, not the EtCO2 number


def test_2_the_12_referential_files_give_derived_channels():
    how = resolve(labels(REFERENTIAL))
    assert how["EEG C3-M2"] == "EEG C3 - EEG M2"
    assert how["EEG F4-M1"] == "EEG F4 - EEG M1"
    assert how["EOG LOC-M2"] == "EEG E1 - EEG M2"
    assert how["EMG CHIN1-CHIN2"] == "EEG Chin1 - EEG Chin2"
    assert how["RESP THORACIC"] == "EEG Chest"
    assert how["RESP ABDOMINAL"] == "EEG Abd"
    assert how["SNORE"] == "EEG Snore"
    absent = [name for name, source in how.items() if not source]
    assert absent == ["EEG CZ-O1", "CAPNO", "SPO2", "C-FLOW"]


def test_2_the_ten_twenty_file_gives_derived_channels():
    how = resolve(labels(TEN_TWENTY))
    assert how["EEG CZ-O1"] == "CZ - O1"
    assert how["EOG ROC-M1"] == "ROC - M1"
    assert how["SPO2"] == "OSat"
    assert [name for name, source in how.items() if not source] == ["CAPNO", "SNORE", "C-FLOW"]


def test_6_chat_spellings_and_fpz_referenced_channels():
    how = resolve(labels(CHAT))
    assert how["EEG C3-M2"] == "C3 - m2"
    assert how["EMG CHIN1-CHIN2"] == "Lchin - Rchiin"
    assert how["SPO2"] == "SA02nonin"
    assert how["CAPNO"] == "Cap"
    assert how["SNORE"] == "Snore 2"
    assert [name for name, source in how.items() if not source] == ["EEG CZ-O1", "C-FLOW"]


@pytest.mark.parametrize(
    ("plus", "minus", "difference"),
    [
        ("C3-Ref", "M2-Ref", "C3-Ref - M2-Ref"),
        ("C3-Fpz", "M2-Fpz", "C3-Fpz - M2-Fpz"),
        ("C3", "M2-Fpz", "C3 - M2-Fpz"),
        ("C3-Ref", "M2-Fpz", None),
    ],
)
def test_2_signals_against_two_references_are_not_subtracted(plus, minus, difference):
    source = one("EEG C3-M2", [info(plus), info(minus)])
    assert (source.origin if isinstance(source, Source) else None) == difference


# ------------------------------------------------------------------ names
@pytest.mark.parametrize(
    "label",
    ["EEG C3-M2", "eeg c3-m2", "EEG_C3-M2", " C3 - M2 ", "C3:M2", "C3/M2", "EEG C3-A2", "C3-A2"],
)
def test_2_a_derivation_is_known_in_any_spelling(label):
    assert one("EEG C3-M2", [info(label)]) == Source(0, None, 1e-6, 256.0, "uV", label)


@pytest.mark.parametrize(
    ("label", "sign"),
    [
        ("EMG Chin1-Chin2", 1),
        ("EMG CHIN1-CHIN2", 1),
        ("EEG Chin1-Chin2", 1),
        ("EMG Chin2-Chin1", -1),
        ("EMG Chin3-Chin2", 1),
        ("EEG Chin3-Chin2", 1),
        ("EMG CHIN1-CHIN3", 1),
        ("EEG Chin1-Chin3", 1),
    ],
)
def test_2_every_chin_variant_of_nch_and_its_sign(label, sign):
    assert one("EMG CHIN1-CHIN2", [info(label)]).factor == pytest.approx(sign * 1e-6)


@pytest.mark.parametrize("label", ["EEG LOC-M2", "EOG LOC-M2", "E1-M2", "LOC-A2"])
def test_2_eog_variants(label):
    assert one("EOG LOC-M2", [info(label)]) == Source(0, None, 1e-6, 256.0, "uV", label)


@pytest.mark.parametrize(
    "label", ["Snore_DR", "Resp Rate", "EEG C3-M1", "EEG F4-M2", "C3", "XFlow", "EEG 20", "Rate"]
)
def test_2_other_signals_are_never_taken_for_one_of_the_16(label):
    assert not any(resolve([info(label)]).values())


def test_0_9_upper_and_lower_case_are_one_name():
    assert canonical_label("EEG Cz-O1") == canonical_label("eeg CZ-O1") == "CZ-O1"


def test_1_of_duplicate_labels_the_first_usable_one_is_taken():
    broken = info("Snore", problem="undefined calibration")
    assert one("SNORE", [broken, info("Snore"), info("Snore")]).plus == 1


def test_a_recorded_derivation_goes_before_one_made_of_two_signals():
    assert one("EEG C3-M2", [info("C3"), info("M2"), info("C3-M2")]).plus == 2


# ------------------------------------------------------------------ stand-ins
def test_2_a_stand_in_is_taken_only_when_named_and_only_when_the_channel_is_absent():
    signals = [info("EEG Fpz-Cz"), info("EEG Pz-Oz")]
    stand_ins = {"EEG C3-M2": ["EEG Fpz-Cz"]}
    assert not any(resolve(signals).values())
    assert resolve(signals, stand_ins)["EEG C3-M2"] == "stand-in EEG Fpz-Cz"
    assert resolve([*signals, info("C3-M2")], stand_ins)["EEG C3-M2"] == "C3-M2"


def test_a_stand_in_for_an_unknown_channel_is_an_error():
    with pytest.raises(ValueError, match="C3-M3"):
        resolve_channels([info("C3")], {"EEG C3-M3": ["C3"]})


# ------------------------------------------------------------------ preference
def preferred(channel, signals, prefer, stand_ins=None):
    found = resolve_channels(signals, stand_ins, prefer=prefer)
    return found[CHANNEL_NAMES.index(channel)]


@pytest.mark.parametrize(
    ("montage", "origin"),
    [
        (MONTAGE_A, "preferred Resp PTAF"),
        (MONTAGE_B, "preferred Resp Flow"),
        (REFERENTIAL, "preferred EEG Press"),
        (TEN_TWENTY, "preferred Airflow"),
        ("Resp Rate|C-flow|Pressure", "C-flow"),
    ],
)
def test_2_the_airflow_settings_find_the_airflow_of_every_montage_of_nch(montage, origin):
    settings = Path(__file__).resolve().parents[1] / "configs" / "prepare_airflow.yaml"
    prefer = yaml.safe_load(settings.read_text())["prefer"]
    assert preferred("C-FLOW", labels(montage), prefer).origin == origin


def test_preferred_signals_go_before_the_channel_itself_in_the_order_of_the_setting():
    signals = [info("C-flow"), info("Resp Airflow"), info("Resp PTAF", problem="has no samples")]
    prefer = {"c_flow": ["ptaf", "RESP_AIRFLOW"]}  # any spelling, of channel and label
    assert preferred("C-FLOW", signals, {"C-Flow": ["ptaf", "RESP_AIRFLOW"]}).plus == 1
    assert preferred("C-FLOW", signals, {"C-FLOW": ["Resp PTAF"]}).origin == "C-flow"
    assert preferred("C-FLOW", signals, {"C-FLOW": ["C-FLOW", "Resp Airflow"]}).origin == "C-flow"
    with pytest.raises(ValueError, match="prefer: 'c_flow' is none of the 16 channels"):
        preferred("C-FLOW", signals, prefer)


def test_the_preference_of_one_channel_leaves_the_other_15_as_they_were():
    signals = labels(MONTAGE_A)
    before, after = resolve_channels(signals), resolve_channels(signals, prefer={"SNORE": ["Rate"]})
    changed = [n for n, a, b in zip(CHANNEL_NAMES, before, after, strict=True) if a != b]
    assert changed == ["SNORE"]


@pytest.mark.parametrize(
    ("recorded", "origin", "factor"),
    [
        (["C3-A1"], "preferred C3-A1", 1e-6),
        (["M1-C3"], "preferred -(M1-C3)", -1e-6),
        (["C3", "M1"], "preferred C3 - M1", 1e-6),
        (["C3", "M2"], "C3-M2", 1e-6),  # no M1: the derivation itself
    ],
)
def test_a_preferred_derivation_is_found_as_the_channels_own_are(recorded, origin, factor):
    signals = [*map(info, recorded), info("C3-M2")]
    source = preferred("EEG C3-M2", signals, {"EEG C3-M2": ["EEG C3-M1"]})
    assert (source.origin, source.factor) == (origin, pytest.approx(factor))


def test_a_channel_without_its_preferred_signals_goes_on_to_stand_ins_and_tells_what_it_sought():
    prefer, stand_ins = {"C-FLOW": ["Resp PTAF", "C-FLOW"]}, {"C-FLOW": ["XFlow"]}
    found = preferred("C-FLOW", [info("XFlow")], prefer, stand_ins)
    assert found.origin == "stand-in XFlow"
    sought = Absent("no signal named Resp PTAF or C-FLOW")
    assert preferred("C-FLOW", [info("XFlow")], prefer) == sought


# ------------------------------------------------------------------ units
@pytest.mark.parametrize(
    ("unit", "physical", "factor"),
    [
        ("uV", (8711.0, -8711.0), 1e-6),
        ("µV", (-200.0, 200.0), 1e-6),
        ("Â\u00b5V", (-200.0, 200.0), 1e-6),  # UTF-8 bytes read as latin-1
        ("\u00ce\u00bcV", (-200.0, 200.0), 1e-6),
        ("mV", (-3.2, 3.2), 1e-3),
        ("V", (-0.0032, 0.0032), 1.0),
        ("", (-8711.0, 8711.0), 1e-6),  # blank: by the range
        ("", (-3.2, 3.2), 1e-3),
        ("", (-0.0032, 0.0032), 1.0),
    ],
)
def test_2_voltages_become_volts_whatever_their_unit(unit, physical, factor):
    assert one("EEG C3-M2", [info("C3-M2", unit, physical=physical)]).factor == factor


def test_2_a_blank_unit_is_told():
    assert "blank unit" in one("EEG C3-M2", [info("C3-M2", "")]).origin


def test_2_a_voltage_channel_in_another_unit_is_refused():
    absent = one("EEG C3-M2", [info("C3-M2", "cmH2O")])
    assert absent == Absent("C3-M2: unit 'cmH2O' is no voltage")


def test_2_other_channels_keep_the_unit_of_the_file_unless_it_is_a_voltage():
    assert one("CAPNO", [info("Capno", "mmHg")]).factor == 1.0
    assert one("RESP THORACIC", [info("Resp Thoracic", "uV")]).factor == 1e-6
    assert one("SPO2", [info("OSAT", "uV")]).factor == 1.0  # judged by its values later


def test_electrodes_of_different_rates_give_no_derivation():
    absent = one("EEG C3-M2", [info("C3", rate_hz=200.0), info("M2", rate_hz=256.0)])
    assert absent == Absent("C3 and M2 have different rates (200 Hz and 256 Hz)")


def test_electrodes_of_different_units_give_no_derivation():
    absent = one("EEG C3-M2", [info("C3"), info("M2", "mV")])
    assert absent == Absent("C3 and M2 have different units")


# ------------------------------------------------------------------ a real recording
@pytest.mark.skipif(not (SHARED / "psg").exists(), reason="no ../shared/psg: recording absent")
def test_the_nox_recording_offers_14_channels_through_its_settings_file():
    import numpy as np

    from pedsleepmae.channels import CHANNELS
    from pedsleepmae.prepare.channel_reader import read_channel
    from pedsleepmae.prepare.recordings import open_edf

    settings = Path(__file__).resolve().parents[1] / "configs" / "nox_a1.yaml"
    stand_ins = yaml.safe_load(settings.read_text())["stand_ins"]
    recording = open_edf(SHARED / "psg" / "nox_a1_rsleep" / "subject1.edf")
    sources = dict(zip(CHANNEL_NAMES, resolve_channels(recording.signals, stand_ins), strict=True))
    found = {name: source for name, source in sources.items() if isinstance(source, Source)}
    assert len(found) >= 14
    rates = {name: source.rate_hz for name, source in found.items()}
    assert {rates[name] for name in rates if name.startswith(("EEG", "EOG", "EMG"))} == {200.0}
    assert (rates["RESP THORACIC"], rates["SPO2"], rates["C-FLOW"]) == (25.0, 3.0, 200.0)
    # An awake adult's EEG has a robust sd of some 5 to 60 uV; its oximeter reads 90 to 100 %.
    for channel in CHANNELS:
        if channel.name.startswith("EEG") and channel.name in found:
            x, _, _ = read_channel(recording, channel, found[channel.name])
            assert 5e-6 < np.subtract(*np.percentile(x, (75, 25))) / 1.349 < 6e-5
    spo2 = CHANNELS[CHANNEL_NAMES.index("SPO2")]
    x, _, _ = read_channel(recording, spo2, found["SPO2"])
    assert 90 < np.median(x) <= 100


# ------------------------------------------------------------------ other programs' spellings
@pytest.mark.parametrize(
    "label",
    ["C3:M2", "C3M2", "EEG(C3-M2)", "EEG (C3 - A2)", "C3-A2 ", "EEG:C3-A2", "EEG-C3_M2", "C3 (A2)",
     "C3\u2013M2"],
)  # fmt: skip
def test_a_pair_of_electrodes_is_known_in_any_spelling(label):
    assert resolve([info(label)])["EEG C3-M2"] == label


@pytest.mark.parametrize("label", ["C3-M1", "C3-M1M2", "C3M2M1", "C3-M2-IMP", "C3", "FC3-M2"])
def test_what_is_no_such_pair_is_none_in_any_spelling(label):
    assert not any(resolve([info(label)]).values())


@pytest.mark.parametrize("reference", ["AVG", "Cz", "A1A2", "REF1"])
def test_any_reference_that_two_signals_share_drops_out_of_their_difference(reference):
    signals = [info(f"EEG C3-{reference}"), info("EEG C3-LE"), info(f"EEG A2-{reference}")]
    assert resolve(signals)["EEG C3-M2"] == f"EEG C3-{reference} - EEG A2-{reference}"
    assert not any(resolve([info("C3-AVG"), info("M2-LE")]).values())
