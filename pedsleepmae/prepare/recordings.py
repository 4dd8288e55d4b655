"""An EDF file, or an MNE Raw, as a :class:`Recording`: native rates, physical units, what is wrong.

edfio reads the file: it keeps each signal's own rate and opens what EDFlib refuses, above all the
header of NCH (`EDF+C` without an annotation signal). Calibration is taken as the header states it,
inverted ranges (+8711 to -8711 uV) included.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import edfio
import mne
import numpy as np

from pedsleepmae.channels import EPOCH_S, SignalInfo, Source
from pedsleepmae.errors import UserError

# What edfio raises on headers that are none. OSError is the disk's, and may pass.
_HEADER_ERRORS = (ValueError, ArithmeticError, IndexError, TypeError, NameError)
# Latin-1 decodes every byte, so that no umlaut or degree sign in a label stops a recording.
_HEADER_ENCODING = "latin-1"
_CACHED_SAMPLES = 1 << 16  # 256 kB of float32: stays in the processor's cache from step to step
SIMULATED_MARK = "SIMULATED"  # in the recording field of the header of simulated files


class RecordingError(UserError):
    """A recording cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Recording:
    """One night's signals, read when asked for.

    ``read_digital(i)`` gives the samples of signal ``i`` as the file holds them, (n_native,).
    """

    name: str
    duration_s: float
    signals: Sequence[SignalInfo]
    read_digital: Callable[[int], np.ndarray]
    simulated: bool = False
    remarks: list[str] = field(default_factory=list)

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


def open_edf(path: Path) -> Recording:
    """Recording of an EDF or EDF+C file; RecordingError says why it is none, OSError that the disk
    did not give it.

    The record count of the header may be wrong or -1: the file's size decides, and a last record
    that was cut off is left out.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source, header_remarks = _mended(path)
            edf = edfio.read_edf(source, header_encoding=_HEADER_ENCODING)
            record_s = float(edf.data_record_duration)
            n_records = int(edf.num_data_records)
            discontinuous = edf.reserved.startswith("EDF+D")
            recording_field = edf.local_recording_identification
    except _HEADER_ERRORS as error:
        raise RecordingError(f"{path.name}: no readable EDF file ({_one_line(error)})") from error
    if discontinuous:
        raise RecordingError(
            f"{path.name}: a discontinuous EDF+D file; its gaps would shift the epochs: export it "
            "as EDF+C"
        )
    if not edf.signals or n_records < 1:
        raise RecordingError(f"{path.name}: holds no {'samples' if edf.signals else 'signals'}")
    return Recording(
        name=path.name,
        duration_s=n_records * record_s,
        signals=[_signal_info(signal, record_s) for signal in edf.signals],
        read_digital=_sample_reader(path, edf, n_records * record_s),
        simulated=SIMULATED_MARK in recording_field,
        remarks=header_remarks + [_one_line(warning.message) for warning in caught],
    )


def _sample_reader(path: Path, edf: edfio.Edf, duration_s: float) -> Callable[[int], np.ndarray]:
    """``read_digital`` of a recording; OSError when the disk does not give all of the file.

    edfio maps the file into memory, where a sector that cannot be read kills the process instead
    of raising an error. So the first call reads the file once from end to end, which also brings it
    into memory in the disk's own order.
    """

    @functools.cache
    def read_through() -> None:
        buffer = bytearray(1 << 20)
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def read_digital(i: int) -> np.ndarray:
        read_through()
        return edf.signals[i].get_digital_slice(0, duration_s)

    return read_digital


def _mended(path: Path, any_record: bool = False) -> tuple[Path | memoryview, list[str]]:
    """The file, or a copy of its bytes with those header fields put right that can be known.

    The size of the header follows from the number of signals, and -1 is EDF's own way to say that
    the number of records is not known; a file with wrong ones would be read from a wrong place or
    not at all. Raises ValueError for a record without a duration, unless ``any_record``: files of
    annotations alone have such records.
    """
    with open(path, "rb") as file:
        header = file.read(256)
    n_signals, record_s = int(header[252:256]), float(header[244:252])
    if not (record_s > 0 or any_record):
        raise ValueError(f"its record duration is {record_s:g} s: the samples cannot be timed")
    mended, remarks = {}, []
    if header[184:192].strip() != str(256 * (n_signals + 1)).encode():
        mended[184, 192] = str(256 * (n_signals + 1)).encode().ljust(8)
        remarks.append("header size field was wrong and is taken from the number of signals")
    try:
        int(header[236:244])
    except ValueError:
        mended[236, 244] = b"-1".ljust(8)
        remarks.append("record count was missing and is taken from the size of the file")
    if not mended:
        return path, []
    content = bytearray(path.read_bytes())
    for (start, end), text in mended.items():
        content[start:end] = text
    return memoryview(content), remarks


def read_edf_annotations(path: Path) -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, text) rows of an EDF+ annotation file such as Sleep-EDF's hypnogram."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the header's own defects do not concern the rows
            source, _ = _mended(path, any_record=True)
            annotations = edfio.read_edf(source, header_encoding=_HEADER_ENCODING).annotations
    except _HEADER_ERRORS as error:
        raise RecordingError(f"{path.name}: no readable EDF+ file ({_one_line(error)})") from error
    return [(row.onset, row.duration or 0.0, row.text) for row in annotations]


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
    try:
        n_record = signal.samples_per_data_record
        ranges = (signal.physical_min, signal.physical_max, signal.digital_min, signal.digital_max)
        info = SignalInfo(label, signal.physical_dimension, n_record / record_s, *ranges)
    except ValueError as error:
        problem = f"header field cannot be read ({_one_line(error)})"
        return SignalInfo(label, "", *[np.nan] * 5, problem)
    problem = ""
    if n_record < 1:
        problem = "has no samples"
    elif info.digital_min == info.digital_max:
        problem = f"undefined calibration (digital minimum and maximum {info.digital_min:g})"
    elif info.physical_min == info.physical_max:
        problem = f"undefined calibration (physical minimum and maximum {info.physical_min:g})"
    elif not np.isfinite([info.physical_min, info.physical_max]).all():
        problem = "undefined calibration (physical range not finite)"
    return replace(info, problem=problem)


def _one_line(message) -> str:
    return " ".join(str(message).split())
