"""EDF files built byte by byte, so that a test can put any defect into a header."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pedsleepmae.channels import CHANNEL_NAMES


@dataclass
class Signal:
    """One signal of a file: digital samples and the header fields as text."""

    label: str
    digital: np.ndarray
    per_record: int
    unit: str = "uV"
    physical: tuple[str, str] = ("8711", "-8711")  # NCH's inverted calibration
    limits: tuple[str, str] = ("-32768", "32767")


@dataclass
class EdfFile:
    """A file of signals; every header field can be overridden, as text or bytes."""

    signals: list[Signal]
    record_s: str = "4"
    reserved: str = "EDF+C"
    n_records: str | None = None
    recording: str = "Startdate 01-JAN-2001 X X X"
    header: dict[str, bytes] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.to_bytes())
        return path

    def to_bytes(self) -> bytes:
        n_records = min(len(s.digital) // s.per_record for s in self.signals)
        fields = {
            "version": (8, "0"),
            "patient": (80, "0000000 X 01-JAN-2001 XXXXX,XXXX"),
            "recording": (80, self.recording),
            "startdate": (8, "01.01.01"),
            "starttime": (8, "20.03.07"),
            "header_bytes": (8, str(256 * (len(self.signals) + 1))),
            "reserved": (44, self.reserved),
            "n_records": (8, str(n_records) if self.n_records is None else self.n_records),
            "record_s": (8, self.record_s),
            "n_signals": (4, str(len(self.signals))),
        }
        out = b"".join(
            self.header.get(name, text.encode("latin-1")).ljust(width)[:width]
            for name, (width, text) in fields.items()
        )
        columns = [
            (16, [s.label for s in self.signals]),
            (80, ["" for _ in self.signals]),
            (8, [s.unit for s in self.signals]),
            (8, [s.physical[0] for s in self.signals]),
            (8, [s.physical[1] for s in self.signals]),
            (8, [s.limits[0] for s in self.signals]),
            (8, [s.limits[1] for s in self.signals]),
            (80, ["" for _ in self.signals]),
            (8, [str(s.per_record) for s in self.signals]),
            (32, ["" for _ in self.signals]),
        ]
        for width, texts in columns:
            out += b"".join(text.encode("latin-1").ljust(width)[:width] for text in texts)
        for record in range(n_records):
            for s in self.signals:
                piece = s.digital[record * s.per_record : (record + 1) * s.per_record]
                out += np.asarray(piece, "<i2").tobytes()
        return out


def noise(n: int, seed: int = 0, amplitude: float = 300.0) -> np.ndarray:
    """Digital noise, (n,) int16."""
    return np.random.default_rng(seed).normal(0, amplitude, n).astype(np.int16)


def nch_file(
    seconds: int = 300,
    rate_hz: int = 256,
    record_s: int = 4,
    labels: list[str] | None = None,
    **fields,
) -> EdfFile:
    """A file as NCH's montage A has it: EDF+C without annotation signal, inverted calibration."""
    labels = labels or [name.title() if name == "SPO2" else name for name in CHANNEL_NAMES]
    signals = []
    for i, label in enumerate(labels):
        digital = noise(seconds * rate_hz, seed=i)
        signal = Signal(label, digital, rate_hz * record_s)
        if label.upper() in ("SPO2", "OSAT"):
            signal.unit, signal.physical = "%", ("0", "100")
            signal.digital = np.full(len(digital), 30_000, np.int16)  # 95.8 %
            signal.digital[:: 10 * rate_hz] -= 300
        signals.append(signal)
    return EdfFile(signals, record_s=str(record_s), **fields)


def stage_rows(first_s: float, stages: str, seconds: float = 30.0) -> list[tuple]:
    """Rows (onset, duration, description) for stages such as "W12R?"; 1, 2, 3 become N1, N2, N3."""
    names = {"W": "W", "1": "N1", "2": "N2", "3": "N3", "R": "R", "?": "?"}
    return [
        (first_s + 30.0 * i, seconds, f"Sleep stage {names[stage]}")
        for i, stage in enumerate(stages)
    ]


def write_tsv(path: Path, rows: list[tuple]) -> Path:
    lines = ["onset\tduration\tdescription"] + ["\t".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def nch_study(folder: Path, stem: str, stages: str = "W123R", first_s: float = 10.25, **fields):
    """An EDF and its .tsv; returns the two paths."""
    seconds = int(first_s + 30 * len(stages)) // 12 * 12 + 24
    edf = nch_file(seconds=seconds, **fields).write(folder / f"{stem}.edf")
    return edf, write_tsv(folder / f"{stem}.tsv", stage_rows(first_s, stages))
