"""EDF files with every defect that NCH's are known to have, built byte by byte."""

import contextlib
import os
import time
from pathlib import Path

import edfio
import numpy as np
import pytest
from edf_files import EdfFile, Signal, nch_file, noise

from pedsleepmae.prepare import recordings
from pedsleepmae.prepare.recordings import RecordingError, open_edf, read_edf_annotations

SHARED = Path(__file__).resolve().parents[2] / "shared"


def simple(n_records=10, per_record=1024, **fields):
    digital = noise(n_records * per_record)
    return EdfFile([Signal("EEG C3-M2", digital, per_record)], **fields), digital


def test_0_1_edf_plus_c_without_annotation_signal_is_read(tmp_path):
    file, digital = simple(reserved="EDF+C")
    recording = open_edf(file.write(tmp_path / "1_2.edf"))
    assert len(recording.signals) == 1
    assert recording.duration_s == 40.0
    np.testing.assert_array_equal(recording.read_digital(0), digital)


def test_0_2_inverted_calibration_keeps_its_sign_and_scale(tmp_path):
    file, digital = simple()
    x = open_edf(file.write(tmp_path / "1_2.edf")).read(0)
    gain = -2 * 8711 / 65535  # uV per digital step: a positive code is a negative voltage
    np.testing.assert_allclose(x, gain * (digital + 0.5), atol=0.01)


@pytest.mark.parametrize(
    ("record_s", "per_record", "rate_hz"),
    [
        ("4", 1024, 256.0),
        ("2", 800, 400.0),
        ("2", 1024, 512.0),
        ("12", 3072, 256.0),
        ("3.59766", 921, 255.9997),
    ],
)
def test_0_3_the_rate_is_samples_over_record_duration(tmp_path, record_s, per_record, rate_hz):
    file, digital = simple(n_records=30, per_record=per_record, record_s=record_s)
    recording = open_edf(file.write(tmp_path / "1_2.edf"))
    assert recording.signals[0].rate_hz == pytest.approx(rate_hz, abs=1e-4)
    assert recording.duration_s == pytest.approx(30 * float(record_s))
    np.testing.assert_array_equal(recording.read_digital(0), digital)


@pytest.mark.parametrize("count", ["-1", "8896", "3", "0"])
def test_0_8_a_wrong_or_missing_record_count_gives_way_to_the_size(tmp_path, count):
    file, digital = simple(n_records=10)
    file.n_records = count
    recording = open_edf(file.write(tmp_path / "1_2.edf"))
    assert recording.duration_s == 40.0
    np.testing.assert_array_equal(recording.read_digital(0), digital)
    assert "10 records" in recording.remarks[0]  # told, not silent


def test_0_8_a_file_cut_off_in_mid_record_keeps_the_whole_records(tmp_path):
    file, digital = simple(n_records=10)
    path = tmp_path / "1_2.edf"
    path.write_bytes(file.to_bytes()[:-700])
    recording = open_edf(path)
    assert recording.duration_s == 36.0
    np.testing.assert_array_equal(recording.read_digital(0), digital[: 9 * 1024])
    assert any("truncated" in remark.lower() for remark in recording.remarks)


def test_0_8_bytes_that_are_no_ascii_stop_nothing(tmp_path):
    file, _ = simple()
    file.signals[0].label = "EEG C3-M2 é"
    file.header = {"patient": "Zoë X".encode("latin-1"), "startdate": b"NA", "starttime": b"\xff"}
    recording = open_edf(file.write(tmp_path / "1_2.edf"))
    assert recording.signals[0].label == "EEG C3-M2 é"
    assert len(recording.read(0)) == 10 * 1024


def test_1_duplicate_labels_are_kept_apart(tmp_path):
    signals = [Signal("Snore", np.full(1024, value), 256) for value in (5, 7)]
    recording = open_edf(EdfFile(signals).write(tmp_path / "1_2.edf"))
    assert [signal.label for signal in recording.signals] == ["Snore", "Snore"]
    assert [recording.read_digital(i)[0] for i in (0, 1)] == [5, 7]


def test_mixed_rates_stay_native(tmp_path):
    signals = [Signal("C3", noise(800), 200), Signal("SaO2", noise(40), 10)]
    recording = open_edf(EdfFile(signals, record_s="1").write(tmp_path / "1_2.edf"))
    assert [signal.rate_hz for signal in recording.signals] == [200.0, 10.0]
    assert [len(recording.read(i)) for i in (0, 1)] == [800, 40]


@pytest.mark.parametrize(
    ("physical", "limits"),
    [
        (("0", "0"), ("-32768", "32767")),
        (("-100", "100"), ("0", "0")),
        (("", ""), ("-32768", "32767")),
        (("x", "100"), ("-32768", "32767")),
        (("nan", "100"), ("-32768", "32767")),
    ],
)
def test_6_a_constant_or_undefined_calibration_is_a_problem_of_that_signal_only(
    tmp_path, physical, limits
):
    bad = Signal("Chin", noise(1024), 256, physical=physical, limits=limits)
    good = Signal("EEG C3-M2", noise(1024), 256)
    recording = open_edf(EdfFile([bad, good]).write(tmp_path / "1_2.edf"))
    assert recording.signals[0].problem
    assert recording.signals[1].problem == ""
    assert len(recording.read(1)) == 1024


def test_6_a_physical_maximum_of_zero_is_a_range_like_any_other(tmp_path):
    signal = Signal("Chin", np.array([-32768, 32767] * 512), 256, physical=("-100", "0"))
    recording = open_edf(EdfFile([signal]).write(tmp_path / "1_2.edf"))
    np.testing.assert_allclose(recording.read(0)[:2], [-100.0, 0.0], atol=1e-4)


@pytest.mark.parametrize(
    "content", [b"", b"0       ", b"\0" * 5000, b"not an EDF file at all" * 100]
)
def test_what_is_no_edf_is_refused_by_name(tmp_path, content):
    path = tmp_path / "1_2.edf"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"1_2\.edf"):
        open_edf(path)


def test_a_header_without_data_is_refused(tmp_path):
    file, _ = simple(n_records=1)
    path = tmp_path / "1_2.edf"
    path.write_bytes(file.to_bytes()[:512])
    with pytest.raises(RecordingError, match=r"1_2\.edf"):
        open_edf(path)


@pytest.mark.parametrize("record_s", ["0", "-1", "nan"])
def test_a_record_without_duration_is_refused(tmp_path, record_s):
    file, _ = simple(record_s=record_s)
    with pytest.raises(RecordingError, match=r"1_2\.edf"):
        open_edf(file.write(tmp_path / "1_2.edf"))


def test_a_discontinuous_file_is_refused_with_the_remedy(tmp_path):
    file, _ = simple(reserved="EDF+D")
    with pytest.raises(RecordingError, match=r"export it as EDF\+C"):
        open_edf(file.write(tmp_path / "1_2.edf"))


def test_a_simulated_file_is_known_by_its_header(tmp_path):
    assert not open_edf(nch_file(12).write(tmp_path / "1_2.edf")).simulated
    file = nch_file(12, recording="Startdate 01-JAN-2001 X SIMULATED X")
    assert open_edf(file.write(tmp_path / "1_3.edf")).simulated


@pytest.mark.skipif(not (SHARED / "psg").exists(), reason="no ../shared/psg: real night absent")
def test_a_real_night_is_read_as_edfio_reads_it():
    path = SHARED / "psg" / "sleep_edf_SC4001" / "SC4001E0-PSG.edf"
    recording, edf = open_edf(path), edfio.read_edf(path)
    assert recording.duration_s == 79500.0
    for i, signal in enumerate(edf.signals):
        step = abs(recording.signals[i].step)
        np.testing.assert_allclose(recording.read(i), signal.data, atol=1e-3 * step, rtol=1e-6)


@pytest.mark.skipif(not (SHARED / "psg").exists(), reason="no ../shared/psg: real night absent")
def test_a_real_hypnogram_is_read():
    rows = read_edf_annotations(SHARED / "psg" / "sleep_edf_SC4001" / "SC4001EC-Hypnogram.edf")
    assert rows[:2] == [(0.0, 30630.0, "Sleep stage W"), (30630.0, 120.0, "Sleep stage 1")]


@pytest.mark.parametrize("count", ["", "NA", "x"])
def test_0_8_a_missing_record_count_is_taken_from_the_size(tmp_path, count):
    file, digital = simple(n_records=10)
    file.n_records = count
    recording = open_edf(file.write(tmp_path / "1_2.edf"))
    np.testing.assert_array_equal(recording.read_digital(0), digital)
    assert "record count was missing" in recording.remarks[0]


@pytest.mark.parametrize("size", [b"256", b"6656", b"0", b""])
def test_a_wrong_header_size_moves_no_sample(tmp_path, size):
    file, digital = simple()
    file.header = {"header_bytes": size}
    recording = open_edf(file.write(tmp_path / "1_2.edf"))
    np.testing.assert_array_equal(recording.read_digital(0), digital)
    assert "header size" in recording.remarks[0]


# ------------------------------------------------------------------ borders
@pytest.mark.parametrize("read", [open_edf, read_edf_annotations])
@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link", "loop"])
def test_what_is_no_file_is_refused_without_waiting(read, kind, tmp_path):
    path = tmp_path / "1_2.edf"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("1_2.edf" if kind == "loop" else "nowhere")
    with pytest.raises(RecordingError, match=r"1_2\.edf: is a (pipe|folder|link to nothing)"):
        read(path)


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("n_signals", b"9999", "number of its signals is 9999, not 1 to 512"),
        ("n_signals", b"-1", "number of its signals is -1"),
        ("n_signals", b"\x1b[2J", "number of its signals is no number"),
        ("record_s", b"1e308", "longer than 7 days"),
        ("record_s", b"nan", "cannot be timed"),
        ("record_s", b"inf", "outside float range"),
        ("record_s", b"x\x9b2J", "duration of its records is no number"),
    ],
)
def test_a_header_that_cannot_be_is_one_sentence(field, text, words, tmp_path):
    file, _ = simple(header={"patient": b"Jane Doe", field: text})
    with pytest.raises(RecordingError, match=words) as refused:
        open_edf(file.write(tmp_path / "1_2.edf"))
    assert str(refused.value).isprintable()
    assert "Jane" not in str(refused.value)


def test_a_header_that_is_shifted_tells_nothing_of_the_patient(tmp_path):
    content = simple(header={"patient": b"Jane Doe " * 9})[0].to_bytes()
    for n in range(1, 260):
        (tmp_path / "1_2.edf").write_bytes(b" " * n + content)
        try:  # by a blank or two it may still be a header
            told = open_edf(tmp_path / "1_2.edf").remarks
        except RecordingError as error:
            told = [str(error)]
        assert "Doe" not in " ".join(told)


def test_a_negative_number_of_samples_moves_no_other_signal(tmp_path):
    file, _ = simple()
    file.signals.append(Signal("C4-M1", noise(10), 1))
    content = bytearray(file.to_bytes())
    start = content.index(b"1024", 256 + 2 * 200)
    content[start : start + 4] = b"-102"
    (tmp_path / "1_2.edf").write_bytes(content)
    with pytest.raises(RecordingError, match="is -102 for a signal"):
        open_edf(tmp_path / "1_2.edf")


def test_a_rate_beyond_all_amplifiers_is_a_problem_of_the_signal(tmp_path):
    file, _ = simple(record_s="1e-300")
    (signal,) = open_edf(file.write(tmp_path / "1_2.edf")).signals
    assert "above 100000 Hz" in signal.problem


def test_a_file_without_utf8_in_its_name_is_read_and_its_name_can_be_printed(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/night\xff.edf"))
    assert open_edf(simple()[0].write(path)).name == "night\\udcff.edf"
    path.write_bytes(b"x")
    with pytest.raises(RecordingError) as refused:
        open_edf(path)
    assert str(refused.value).startswith("night\\udcff.edf: ")


def hypnogram(path: Path, content: bytes) -> Path:
    """An EDF+ file of one record that holds these rows."""
    n = -(-len(content) // 2)
    signal = Signal("EDF Annotations", np.frombuffer(content.ljust(2 * n, b"\0"), "<i2"), n)
    return EdfFile([signal], record_s="0").write(path)


def test_rows_of_an_edf_plus_file_that_cannot_be_read_cost_no_other(tmp_path):
    rows = b"+0\x14\x14\0+30\x1530\x14Sleep stage W\x14\0+x\x14lost\x14\0nothing\0"
    rows += b"+60\x14one\x14tw\xf6\x14\0"
    found = read_edf_annotations(hypnogram(tmp_path / "a.edf", rows))
    wanted = [(30, 30, "Sleep stage W"), None, (60, 0, "one"), (60, 0, "tw\ufffd")]
    assert [row for row in found if row] == [row for row in wanted if row]
    assert found.count(None) == 2
    with pytest.raises(RecordingError, match="no readable row"):
        read_edf_annotations(hypnogram(tmp_path / "a.edf", b"+0\x14\x14\0+x\x14a\x14\0"))


@pytest.mark.parametrize("content", [b"+" + b"1" * 300_000, b"+1\x14" * 100_000], ids=["1", "2"])
def test_rows_without_an_end_take_no_time(content, tmp_path):
    path = hypnogram(tmp_path / "a.edf", b"+0\x14\x14\0" + content)
    start = time.monotonic()
    with contextlib.suppress(RecordingError):
        read_edf_annotations(path)
    assert time.monotonic() - start < 5  # a pattern that goes back takes minutes


def test_more_rows_than_memory_holds_are_refused_before(tmp_path, monkeypatch):
    rows = b"+0\x14\x14\0" + b"+1\x14a\x14\0" * 20
    path = hypnogram(tmp_path / "a.edf", rows)
    assert len(read_edf_annotations(path)) == 20
    monkeypatch.setattr(recordings, "MOST_ROWS", 19)
    with pytest.raises(RecordingError, match="more than 19 rows"):
        read_edf_annotations(path)
    monkeypatch.setattr(recordings, "LARGEST_ROWS", 100)
    with pytest.raises(RecordingError, match="MB of annotations"):
        read_edf_annotations(path)


# ------------------------------------------------------------------ times of records
def with_times(path: Path, onsets_s, reserved: str = "EDF+C", start: bytes = b"20.03.07") -> Path:
    """A recording of 1-s records, each with its own time."""
    file = nch_file(seconds=len(onsets_s), record_s=1, reserved=reserved)
    clocks = b"".join((b"%+g\x14\x14" % onset_s).ljust(40, b"\0") for onset_s in onsets_s)
    file.signals.append(Signal("EDF Annotations", np.frombuffer(clocks, "<i2"), 20))
    file.header["starttime"] = start
    return file.write(path)


@pytest.mark.parametrize("reserved", ["EDF+C", ""])
def test_a_gap_is_refused_whatever_the_header_calls_the_file(reserved, tmp_path):
    onsets_s = [i + 60.0 * (i >= 20) for i in range(40)]
    with pytest.raises(RecordingError, match="off by 60 s after second 20 of the samples"):
        open_edf(with_times(tmp_path / "1_2.edf", onsets_s, reserved))
    with pytest.raises(RecordingError, match="discontinuous"):
        open_edf(with_times(tmp_path / "1_2.edf", onsets_s, "edf+d"))


@pytest.mark.parametrize("first_s", [0.0, 0.5])
def test_records_that_follow_each_other_are_read(first_s, tmp_path):
    path = with_times(tmp_path / "1_2.edf", [first_s + i for i in range(40)])
    assert open_edf(path).duration_s == 40
    assert open_edf(with_times(tmp_path / "1_2.edf", [0.0] * 40)).duration_s == 40  # never filled


@pytest.mark.parametrize(
    ("start", "words"),
    [(b"20.02.07", "60 s earlier"), (b"20.03.37", "30 s later"), (b"20.03.07", ""),
     (b"00.00.00", "")],
)  # fmt: skip
def test_annotations_that_start_at_another_time_are_refused(start, words, tmp_path):
    recording = with_times(tmp_path / "1_2.edf", range(40))
    other = with_times(tmp_path / "other.edf", range(40), start=start)
    if words:
        with pytest.raises(RecordingError, match=words):
            recordings.refuse_other_start(other, recording)
    else:
        recordings.refuse_other_start(other, recording)


def test_decimal_commas_in_a_header_are_points(tmp_path):
    right = nch_file(seconds=60, record_s=4)
    wrong = nch_file(seconds=60, record_s=4)
    for file, sign in ((right, "."), (wrong, ",")):
        file.record_s = f"4{sign}0"
        for signal in file.signals[:3]:
            signal.physical = (f"8711{sign}5", f"-8711{sign}5")
    wanted, found = (
        open_edf(file.write(tmp_path / name))
        for file, name in ((right, "1_1.edf"), (wrong, "1_2.edf"))
    )
    assert found.duration_s == wanted.duration_s == 60
    assert found.signals == wanted.signals
    assert found.remarks == ["decimal commas in the header are read as points"]
    np.testing.assert_array_equal(found.read(0), wanted.read(0))
