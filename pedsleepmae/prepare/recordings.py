"""An EDF file, or an MNE Raw, as a :class:`Recording`: native rates, physical units, what is wrong.

edfio reads the file: it keeps each signal's own rate and opens what EDFlib refuses, above all the
header of NCH (`EDF+C` without an annotation signal). Calibration is taken as the header states it,
inverted ranges (+8711 to -8711 uV) included.
"""

import functools
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import edfio
import mne
import numpy as np

from pedsleepmae.channels import EPOCH_S, SignalInfo, Source, canonical_label
from pedsleepmae.errors import UserError, printable
from pedsleepmae.foreign import file_problem
from pedsleepmae.prepare.edf_header import HEADER_ENCODING, Header, mended_file, read_header

# What edfio raises on headers that are none. OSError is the disk's, and may pass.
_HEADER_ERRORS = (ValueError, ArithmeticError, IndexError, TypeError, NameError)
LONGEST_FOR_CLOCK_S = 23 * 3600.0  # a scorer's first rows may lie up to an hour before the start
LONGEST_RECORDING_S = 7 * 86400.0  # beyond, the header's durations are a writing error
HIGHEST_RATE_HZ = 1e5  # no amplifier of the night is faster; resampling would take the memory
# What is read of an EDF+ file's rows: a night has some 3,000, between many more 0 bytes. Five
# million take 1 GB of memory.
LARGEST_ROWS, MOST_ROWS = 256_000_000, 5_000_000  # bytes, rows
SMALLEST_READ = 64  # bytes that a look at one record counts for at least
_START_TIME = re.compile(rb"([01][0-9]|2[0-3])[.:]([0-5][0-9])[.:]([0-5][0-9])")
# Between the time that a record of EDF+ tells and the end of the one before; and in sum: record
# durations are rounded text.
LARGEST_JUMP_S, LARGEST_DRIFT_S = 0.1, 1.0
DAY_S = 86400.0
LONGEST_CLOCK = 64  # bytes of a record's own time
_ROWS_LABEL = "EDF Annotations"
LONGEST_REASON = 200  # characters of what a library says
_CACHED_SAMPLES = 1 << 16  # 256 kB of float32: stays in the processor's cache from step to step
SIMULATED_MARK = "SIMULATED"  # in the recording field of the header of simulated files


class RecordingError(UserError):
    """A recording cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Recording:
    """One night's signals, read when asked for.

    ``read_digital(i)`` gives the samples of signal ``i`` as the file holds them, (n_native,); of an
    EDF file ``read_digital(i, start_s, end_s)`` those between two times, without reading the rest.
    ``start_clock_s``: the time of day at which it starts, seconds from midnight, None where the
    header has none: for arithmetic, never to be told.
    """

    name: str
    duration_s: float
    signals: Sequence[SignalInfo]
    read_digital: Callable[..., np.ndarray]
    simulated: bool = False
    remarks: list[str] = field(default_factory=list)
    start_clock_s: float | None = field(default=None, repr=False)

    def read(self, i: int, digital: np.ndarray | None = None, factor: float = 1.0) -> np.ndarray:
        """Samples of signal ``i`` in the unit of its header times ``factor``, (n_native,) float32.

        ``digital``: its digital samples, where the caller has read them.
        """
        signal = self.signals[i]
        if digital is None:
            digital = self.read_digital(i)
        offset = signal.physical_max - signal.step * signal.digital_max
        x = np.empty(len(digital), np.float32)
        for first in range(0, len(x), _CACHED_SAMPLES):
            part = slice(first, first + _CACHED_SAMPLES)
            np.multiply(digital[part], np.float32(signal.step * factor), x[part], dtype=np.float32)
            x[part] += np.float32(offset * factor)
        return x

    def read_source(self, source: Source, digital: np.ndarray | None = None) -> np.ndarray:
        """Samples of a channel, (n_native,) float32: volts, or the file's unit.

        ``digital``: the digital samples of ``source.plus``, where the caller has read them.
        """
        x = self.read(source.plus, digital, source.factor)
        if source.minus is not None:
            x -= self.read(source.minus, factor=source.factor)
        return x

    def has_rival(self, i: int) -> bool:
        """Whether another signal of the same label holds something, and something else."""
        label = canonical_label(self.signals[i].label)
        for j, other in enumerate(self.signals):
            if j == i or other.problem or canonical_label(other.label) != label:
                continue
            x = self.read(j)
            if x.min() != x.max() and not np.array_equal(x, self.read(i)):
                return True
        return False


def open_edf(path: Path) -> Recording:
    """Recording of an EDF or EDF+C file; RecordingError says why it is none, OSError that the disk
    did not give it.

    The record count of the header may be wrong or -1: the file's size decides, and a last record
    that was cut off is left out.
    """
    path = Path(path)
    name = _checked_name(path)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source, header_remarks = mended_file(path)
            edf = edfio.read_edf(source, header_encoding=HEADER_ENCODING)
            record_s = float(edf.data_record_duration)
            n_records = int(edf.num_data_records)
            discontinuous = edf.reserved.upper().startswith("EDF+D")
            recording_field = edf.local_recording_identification
            start_clock_s = _start_clock(path)
    except _HEADER_ERRORS as error:
        raise RecordingError(f"{name}: no readable EDF file ({_one_line(error)})") from error
    if discontinuous:
        raise RecordingError(
            f"{name}: a discontinuous EDF+D file; its gaps would shift the epochs: export it as "
            "EDF+C"
        )
    if not edf.signals or n_records < 1:
        raise RecordingError(f"{name}: holds no {'samples' if edf.signals else 'signals'}")
    if n_records * record_s > LONGEST_RECORDING_S:
        raise RecordingError(
            f"{name}: its header says {n_records} records of {record_s:g} s, longer than "
            f"{LONGEST_RECORDING_S / 86400:.0f} days; mend the header, or cut the file"
        )
    if jump := _jump_in_time(path, n_records):
        raise RecordingError(
            f"{name}: {jump}; a gap would shift the epochs: export it as EDF+C without gaps"
        )
    return Recording(
        name=name,
        duration_s=n_records * record_s,
        signals=[_signal_info(signal, record_s) for signal in edf.signals],
        read_digital=_sample_reader(path, edf, n_records * record_s),
        simulated=SIMULATED_MARK in recording_field,
        remarks=header_remarks + [_one_line(warning.message) for warning in caught],
        start_clock_s=start_clock_s,
    )


def _start_clock(path: Path) -> float | None:
    """Seconds from midnight to the start; None where that field of the header is no time."""
    found = _START_TIME.fullmatch(read_header(path).main[176:184])
    if found is None:
        return None
    hours, minutes, seconds = map(int, found.groups())
    return 3600.0 * hours + 60 * minutes + seconds


def _checked_name(path: Path) -> str:
    """A file's name as it can be printed; RecordingError where there is no file to be opened."""
    if problem := file_problem(path):
        raise RecordingError(f"{printable(path.name)}: {problem}")
    return printable(path.name)


def _sample_reader(path: Path, edf: edfio.Edf, duration_s: float) -> Callable[..., np.ndarray]:
    """``read_digital`` of a recording; OSError when the disk does not give all that is asked for.

    edfio maps the file into memory, where a sector that cannot be read kills the process instead
    of raising an error. So the records that a call needs (all of them, if no times are given) are
    read once before, which also brings them into memory in the disk's own order.
    """
    header = read_header(path)
    record_bytes, record_s = 2 * sum(header.per_record), header.record_s

    @functools.cache
    def read_through(first: int, end: int) -> None:
        buffer = memoryview(bytearray(1 << 20))
        with open(path, "rb", buffering=0) as file:
            left = (end - first) * record_bytes
            file.seek(header.n_bytes + first * record_bytes)
            while left > 0 and (n := file.readinto(buffer[:left])):
                left -= n

    def read_digital(i: int, start_s: float = 0.0, end_s: float = duration_s) -> np.ndarray:
        read_through(int(start_s / record_s), math.ceil(end_s / record_s))
        return edf.signals[i].get_digital_slice(start_s, end_s)

    return read_digital


def read_start_clock(path: Path) -> float:
    """Time of day of a recording's first sample, seconds from midnight.

    RecordingError where the header tells none, or where a time of day may mean two moments.
    """
    recording = open_edf(path)
    if recording.start_clock_s is None:
        raise RecordingError(
            f"{recording.name}: its header tells no start time, from which times of day could be "
            "counted; give them in seconds from recording start"
        )
    if recording.duration_s > LONGEST_FOR_CLOCK_S:
        raise RecordingError(
            f"{recording.name}: lasts {recording.duration_s / 3600:.1f} h, in which a time of day "
            "may mean two moments; give them in seconds from recording start"
        )
    return recording.start_clock_s + _start_fraction_s(path, read_header(path))


def refuse_other_start(path: Path, recording: Path) -> None:
    """RecordingError for EDF+ annotations that start at another time of day than the recording.

    Its onsets count from its own start. Midnight is what programs write that do not know the time;
    dates do not count, which are shifted to hide who it was.
    """
    name = _checked_name(path)
    try:
        clocks_s = [_start_clock(file) for file in (path, recording)]
    except ValueError:  # told where the file is read
        return
    if when := _in_words_apart(*clocks_s):
        raise RecordingError(
            f"{name}: starts {when} than the recording, so its onsets are others: export it from "
            "the start of the recording"
        )


def other_start(clock_s: float | None, recording: Path) -> str:
    """What to tell of annotations whose recording starts at ``clock_s``, where this one does not.

    They are told, not refused: onsets count from the first sample whatever a changed clock says.
    """
    try:
        when = _in_words_apart(clock_s, _start_clock(recording))
    except (ValueError, OSError):  # told where the file is read
        return ""
    return when and (
        f"the annotations say that their recording starts {when} than this one: are their onsets "
        "this recording's?"
    )


def _in_words_apart(clock_s: float | None, other_s: float | None) -> str:
    """How much later or earlier one start is than the other; "" where that is not known, or not."""
    if not clock_s or not other_s:
        return ""
    apart_s = (clock_s - other_s + DAY_S / 2) % DAY_S - DAY_S / 2
    if abs(apart_s) <= LARGEST_DRIFT_S:
        return ""
    return f"{abs(apart_s):g} s {'later' if apart_s > 0 else 'earlier'}"


# ------------------------------------------------------------------ rows of EDF+
def holds_rows_alone(path: Path) -> bool:
    """True for an EDF+ file of annotations without signals; False where that cannot be told."""
    if file_problem(path):
        return False
    try:
        return set(read_header(path).labels) == {_ROWS_LABEL}
    except (ValueError, OSError):
        return False


# Neither by edfio (0.4.18) nor by MNE (1.13): over one byte of a note that is not UTF-8 both refuse
# the whole file, rows whose onset lacks its sign or is no number they pass over without a word, and
# neither bounds what it reads. Here such a note is read, such a row is read or counted.
def read_edf_annotations(path: Path) -> list[tuple[float, float, str] | None]:
    """(onset_s, duration_s, text) rows of an EDF+ file such as Sleep-EDF's hypnogram.

    None stands for a row that cannot be read; [] for a file without any. Raises RecordingError.
    """
    path = Path(path)
    name = _checked_name(path)
    try:
        header = read_header(path)
    except ValueError as error:
        raise RecordingError(f"{name}: no readable EDF+ file ({_one_line(error)})") from error
    places, record_bytes = _places_of_rows(header)
    n_records = (path.stat().st_size - header.n_bytes) // max(record_bytes, 1)
    n_bytes = n_records * sum(max(n, SMALLEST_READ) for _, n in places)
    if n_bytes > LARGEST_ROWS:
        raise RecordingError(
            f"{name}: {n_bytes / 1e6:,.0f} MB of annotations, and at most "
            f"{LARGEST_ROWS / 1e6:.0f} MB are read"
        )
    rows, start_s = [], 0.0
    with open(path, "rb") as file:
        for record, (i, (first, n)) in itertools.product(range(n_records), enumerate(places)):
            file.seek(header.n_bytes + record_bytes * record + first)
            found = list(_rows_of(file.read(n)))
            if i == 0 and found:  # the first row tells when the record begins
                clock = found.pop(0)
                start_s = clock[0] if record == 0 and clock else start_s
            rows += found
            if len(rows) > MOST_ROWS:
                raise RecordingError(f"{name}: more than {MOST_ROWS:,} rows of annotations")
    if rows and not any(rows):
        raise RecordingError(f"{name}: no readable row among its annotations")
    return [row and (round(row[0] - start_s, 12), *row[1:]) for row in rows]


def _places_of_rows(header: Header) -> tuple[list[tuple[int, int]], int]:
    """(first byte in a record, how many) of each annotation signal, and the bytes of a record."""
    ends = np.cumsum(header.per_record).tolist()
    places = [
        (2 * (end - n), 2 * n)
        for label, n, end in zip(header.labels, header.per_record, ends, strict=True)
        if label == _ROWS_LABEL
    ]
    return places, 2 * ends[-1]


def _jump_in_time(path: Path, n_records: int) -> str:
    """Where the records of an EDF+ file do not follow each other by what they say; "" nowhere.

    Each begins with its time. A file with gaps may be called EDF+C, or plain EDF, all the same.
    """
    header = read_header(path)
    places, record_bytes = _places_of_rows(header)
    if not places:
        return ""
    first, n = places[0]
    onsets_s = np.full(n_records, np.nan)
    with open(path, "rb") as file:
        for record in range(n_records):
            file.seek(header.n_bytes + record_bytes * record + first)
            row = next(_rows_of(file.read(min(n, LONGEST_CLOCK))), None)
            if row is not None and row[2] == "":
                onsets_s[record] = row[0]
    told = np.flatnonzero(np.isfinite(onsets_s))
    if len(set(onsets_s[told])) < 2:  # some programs leave the first time in every record
        return ""
    off_s = onsets_s[told] - onsets_s[told[0]] - header.record_s * (told - told[0])
    jumps_s = np.diff(off_s)
    worst = int(np.abs(jumps_s).argmax())
    if np.abs(jumps_s[worst]) <= LARGEST_JUMP_S and np.abs(off_s).max() <= LARGEST_DRIFT_S:
        return ""
    return (
        f"its records do not follow each other in time (off by {jumps_s[worst]:.3g} s after second "
        f"{told[worst + 1] * header.record_s:g} of the samples, {off_s[-1]:.3g} s at the end)"
    )


def _start_fraction_s(path: Path, header: Header) -> float:
    """The part of a second by which an EDF+ file starts later than its header says."""
    places, _ = _places_of_rows(header)
    if not places:
        return 0.0
    with open(path, "rb") as file:
        file.seek(header.n_bytes + places[0][0])
        first = next(_rows_of(file.read(places[0][1])), None)
    return first[0] if first is not None and 0 <= first[0] < 1 else 0.0


def _rows_of(raw: bytes) -> Iterator[tuple[float, float, str] | None]:
    """Rows of one record: <onset>[0x15<duration>](0x14<text>)*0x14, with 0 bytes between them."""
    for entry in filter(None, raw.split(b"\0")):
        stamp, *texts = entry.split(b"\x14")
        onset, _, duration = stamp.partition(b"\x15")
        try:
            times_s = float(onset), float(duration or 0)
        except ValueError:
            yield None
            continue
        for text in texts[:-1]:
            yield (*times_s, text.decode("utf-8", "replace"))


# ------------------------------------------------------------------ MNE
def open_raw(raw: "mne.io.BaseRaw") -> Recording:
    """Recording of an MNE Raw; its values are in volts, or in the file's unit where MNE left it.

    MNE has brought all channels to one rate; preload the Raw, or each channel reads the file anew.
    """
    # There is no digital range: one far beyond every value, so that a step is 1, nothing clipped.
    low, high = -1e9, 1e9
    rate_hz = float(raw.info["sfreq"])
    names = [Path(name).name for name in raw.filenames if name is not None]
    return Recording(
        name=names[0] if names else "raw",
        duration_s=raw.n_times / rate_hz,
        signals=[SignalInfo(label, "V", rate_hz, low, high, low, high) for label in raw.ch_names],
        read_digital=lambda i: raw.get_data(picks=[i])[0],
    )


def read_raw_annotations(raw: "mne.io.BaseRaw") -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, text) rows of an MNE Raw's annotations, from its first sample on.

    Cropping cuts the row that it meets: what is left of a 30-s stage row is no epoch, left out.
    """
    rows = []
    for row in raw.annotations:
        onset_s = float(row["onset"] - raw.first_time)
        text, duration_s = str(row["description"]), float(row["duration"])
        is_rest = raw.first_samp > 0 and onset_s < 1 / raw.info["sfreq"] and duration_s < EPOCH_S
        if not (is_rest and text.lower().startswith("sleep stage")):
            rows.append((onset_s, duration_s, text))
    return rows


def _signal_info(signal: edfio.EdfSignal, record_s: float) -> SignalInfo:
    """Header of one signal; a field that cannot be read becomes its ``problem``."""
    label = "".join(c if c.isprintable() else "?" for c in signal.label)
    unit = printable(signal.physical_dimension)
    try:
        n_record = signal.samples_per_data_record
        ranges = (signal.physical_min, signal.physical_max, signal.digital_min, signal.digital_max)
        info = SignalInfo(label, unit, n_record / record_s, *ranges)
    except ValueError as error:
        problem = f"header field cannot be read ({_one_line(error)})"
        return SignalInfo(label, "", *[np.nan] * 5, problem)
    problem = ""
    if n_record < 1:
        problem = "has no samples"
    elif not info.rate_hz <= HIGHEST_RATE_HZ:
        problem = f"its rate is {info.rate_hz:g} Hz, above {HIGHEST_RATE_HZ:g} Hz"
    elif info.digital_min == info.digital_max:
        problem = f"undefined calibration (digital minimum and maximum {info.digital_min:g})"
    elif info.physical_min == info.physical_max:
        problem = f"undefined calibration (physical minimum and maximum {info.physical_min:g})"
    elif not np.isfinite([info.physical_min, info.physical_max]).all():
        problem = "undefined calibration (physical range not finite)"
    return replace(info, problem=problem)


def _one_line(message) -> str:
    return printable(message)[:LONGEST_REASON]
