"""A simulated cohort as NCH's recordings: EDF with NCH's header, and .tsv.

Quirks of the real files that are reproduced, by their number in NCH_FORMAT.md's checklist: EDF+C
without an annotation signal (1), inverted calibration (2), one rate and 4-s or 2-s records (3),
anonymised date with a true clock time (4), a stage grid of arbitrary phase (5), `Sleep stage 1`
(6), names in another case (7), truncated last epochs (8), two montages (9). The recording field of
the header holds the word SIMULATED.
"""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import edfio
import joblib
import numpy as np
from numpy.random import Generator

from pedsleepmae.channels import EPOCH_S
from pedsleepmae.disk import write_text, write_whole
from pedsleepmae.prepare.recordings import SIMULATED_MARK
from pedsleepmae.simulate.cohort import SimulateSettings, Visit, visit_night
from pedsleepmae.simulate.events import STAGE_TEXTS, UNSCORED_TEXT, scored_rows
from pedsleepmae.simulate.night import Night
from pedsleepmae.simulate.signals import simulate_signals

DIGITAL = (-32768, 32767)
ANONYMISED = datetime.date(2001, 1, 1)


@dataclass(frozen=True)
class Slot:
    """One signal of a montage: its label, which simulated signal it shows, unit and header range.

    ``factor`` turns the simulated value into the file's unit. Natus exports voltages upside down.
    """

    label: str
    name: str
    unit: str = "uV"
    physical_min: float = 8711.0
    physical_max: float = -8711.0
    factor: float = 1.0


def _volts(*labels: str) -> list[Slot]:
    """Slots in uV that show the signal of their label's name."""
    return [Slot(label, label.upper()) for label in labels]


_EEG = _volts("EEG F3-M2", "EEG F4-M1", "EEG C3-M2", "EEG C4-M1", "EEG O1-M2", "EEG O2-M1")
_DEVICES = [
    Slot("Rate", "RATE", "bpm", 0, 300),
    Slot("EtCO2", "ETCO2", "mmHg", 0, 150),
    Slot("Capno", "CAPNO", "mmHg", -10, 150),
    Slot("Resp Rate", "RESP RATE", "bpm", 0, 150),
]
_TCCO2 = Slot("TcCO2", "TCCO2", "mmHg", 0, 150)
# The order of 10000_17728; `Patient Event` stands first in 97 % of montage A's files.
MONTAGE_A = [
    Slot("Patient Event", "PATIENT EVENT", "", -1, 1),
    *_volts("EOG LOC-M2", "EOG ROC-M1", "EMG Chin1-Chin2"),
    *_EEG,
    *_volts("EEG CZ-O1"),
    Slot("EMG LLeg-RLeg", "EMG LLEG"),
    Slot("ECG EKG2-EKG", "ECG"),
    *_volts("Snore", "Resp PTAF", "Resp Airflow", "Resp Thoracic", "Resp Abdominal"),
    Slot("SpO2", "SPO2", "%", 0, 102.3),
    *_DEVICES,
    Slot("C-flow", "C-FLOW", "LPM", -500, 500),
    Slot("Tidal Vol", "TIDAL VOL", "mL", 0, 3000),
    Slot("Pressure", "PRESSURE", "cmH2O", -10, 40),
]
# The order of 18685_16246. OSAT and the belts carry a voltage unit here: another scale than A's.
MONTAGE_B = [
    *_volts("EOG LOC-M2", "EOG ROC-M1", "EMG CHIN1-CHIN2"),
    *_EEG,
    *_volts("EEG Cz-O1"),
    Slot("EMG LLEG+-LLEG-", "EMG LLEG"),
    Slot("EMG RLEG+-RLEG-", "EMG RLEG"),
    Slot("ECG LA-RA", "ECG"),
    *_volts("Snore", "Snore_DR", "Flow_DR"),
    Slot("Resp Flow", "RESP PTAF"),
    *_volts("XFlow"),
    Slot("Resp Chest", "RESP THORACIC", "mV", 8711, -8711, 0.7),
    Slot("Resp Abdomen", "RESP ABDOMINAL", "mV", 8711, -8711, 0.7),
    Slot("OSAT", "SPO2", "uV", 0, 102.3),
    *_DEVICES,
    _TCCO2,
    Slot("C-Flow", "C-FLOW", "LPM", -500, 500),
    Slot("C-Pressure", "PRESSURE", "cmH2O", -10, 40),
]
# Chin labels of NCH besides the common one, with the sign of their derivation.
CHIN_VARIANTS = (("EEG Chin1-Chin2", 1), ("EMG Chin2-Chin1", -1), ("EMG Chin3-Chin2", 1))
_NOTES = ("not a desat", "desat to 90", "possible obstructive apnea", "c apnea", "move", "snoring")
_NOTES += ("mom in room, adjusting cannula", "tech in, SpO2 probe replaced", "left foot stim", "")


# ------------------------------------------------------------------ EDF
def montage_of(visit: Visit, rng: Generator) -> list[Slot]:
    """Signals of a visit's recording, without its absent channels; labels vary as NCH's do."""
    slots = list(MONTAGE_A if visit.montage == "A" else MONTAGE_B)
    if visit.montage == "A":
        if rng.random() < 0.03:
            slots = slots[1:]
        if rng.random() < 0.35:
            slots.append(_TCCO2)
        if rng.random() < 0.15:
            label, sign = CHIN_VARIANTS[rng.integers(len(CHIN_VARIANTS))]
            place = [slot.name for slot in slots].index("EMG CHIN1-CHIN2")
            slots[place] = Slot(label, "EMG CHIN1-CHIN2", factor=sign)
    return [slot for slot in slots if slot.name not in visit.absent]


def to_digital(x: np.ndarray, slot: Slot) -> np.ndarray:
    """Samples (n,) as the file holds them, int16, cut off at the ends of the range."""
    step = (slot.physical_max - slot.physical_min) / (DIGITAL[1] - DIGITAL[0])
    zero = DIGITAL[0] - slot.physical_min / step
    digital = np.rint(x * np.float32(slot.factor / step) + np.float32(zero))
    return np.clip(digital, *DIGITAL).astype(np.int16)


def write_edf(
    path: Path, slots: list[Slot], signals: dict[str, np.ndarray], rate_hz: int, start
) -> None:
    """Write a recording with NCH's header, whole or not at all.

    edfio writes the samples and all of the header but one field: it keeps `EDF+C` for files with
    an annotation signal, and NCH's files have the one without the other. So the five bytes of the
    reserved field are patched afterwards.
    """
    edf_signals = [
        edfio.EdfSignal.from_digital(
            to_digital(signals[slot.name], slot),
            rate_hz,
            label=slot.label,
            physical_dimension=slot.unit,
            physical_range=(slot.physical_min, slot.physical_max),
            digital_range=DIGITAL,
        )
        for slot in slots
    ]
    edf = edfio.Edf(
        edf_signals,
        patient=edfio.Patient(code="0000000", birthdate=ANONYMISED, name="XXXXX,XXXX"),
        recording=edfio.Recording(startdate=ANONYMISED, additional=[SIMULATED_MARK]),
        starttime=start.time(),
        data_record_duration=4 if rate_hz <= 256 else 2,
    )
    with write_whole(path) as temporary:
        edf.write(temporary)
        with open(temporary, "r+b") as file:
            file.seek(192)  # the place of the reserved field
            file.write(b"EDF+C")


# ------------------------------------------------------------------ .tsv
def tsv_rows(
    night: Night, visit: Visit, spo2_S: np.ndarray | None, rng: Generator
) -> list[tuple[float, float, str]]:
    """Rows of a visit's .tsv in onset order, times in multiples of one sample.

    Besides the scored epochs and events: the preamble with NCH's duplicate row, `Sleep stage ?`
    up to the first scored epoch and in some breaks, body positions, lights, oximeter events where
    the probe is off, and technicians' notes that are no scored events. Some studies have the
    older stage names, some another case.
    """
    stages, events = [], []
    for onset_s, duration_s, text in scored_rows(night):
        if text in STAGE_TEXTS:
            stages.append((onset_s, min(duration_s, night.duration_s - onset_s), text))
        else:
            events.append((onset_s, duration_s, text))
    awake = [i for i, row in enumerate(stages) if row[2] == STAGE_TEXTS[0]]
    if awake and rng.random() < 0.2:  # the child was out of bed
        for i in range(awake[-1], min(awake[-1] + 3, len(stages))):
            stages[i] = (*stages[i][:2], UNSCORED_TEXT)
    if rng.random() < 0.1:  # 59 of NCH's 3,984 studies
        stages = [(*row[:2], row[2].replace("stage N", "stage ")) for row in stages]
    if rng.random() < 0.15:
        events = [(*row[:2], row[2].lower()) for row in events]
    first_s = stages[0][0]
    before_s = [first_s - k * EPOCH_S for k in range(int(first_s // EPOCH_S), 0, -1)]
    before = [(onset_s, EPOCH_S, UNSCORED_TEXT) for onset_s in before_s]
    rows = [*_technical_rows(night, first_s, spo2_S, rng), *before, *stages, *events]
    rows = [(*(round(s * visit.rate_hz) / visit.rate_hz for s in row[:2]), row[2]) for row in rows]
    return sorted(rows, key=lambda row: row[0])


def _technical_rows(night, first_s, spo2_S, rng) -> list[tuple[float, float, str]]:
    """Preamble, lights, body positions, oximeter events, limb movements and notes."""
    start_s = rng.uniform(0.5, 2)
    rows = [
        *[(start_s, 0.0, "Montage:NCH_PSG_STANDARD, Ref")] * 2,
        (start_s, 0.0, "Start Recording"),
        (start_s + 0.13, 0.0, "Recording Analyzer - ECG"),
        (start_s + 0.6, 0.0, "Video Recording ON"),
        (start_s + 5, 0.0, "Montage:Channel Test Referential"),
        (first_s - 1.5, 0.0, str(rng.choice(["Lights Off", "LIGHTS OFF", "lights off"]))),
        (night.duration_s - 3, 0.0, str(rng.choice(["Lights On", "Lights ON"]))),
    ]

    def times(n: int) -> np.ndarray:
        return rng.uniform(first_s, night.duration_s - 5, n)

    hours = night.duration_s / 3600
    for onset_s in times(1 + rng.poisson(1.5 * hours)):
        rows.append((onset_s, 0.0, f"Body Position: {rng.choice(['Supine', 'Left', 'Right'])}"))
    for onset_s in times(rng.poisson(4 * hours)):
        rows.append((onset_s, rng.uniform(0.5, 4), "Limb Movement"))
    for onset_s in times(2 + rng.poisson(4 * hours)):
        rows.append((onset_s, 0.0, str(rng.choice(_NOTES))))
    if spo2_S is not None:
        edges = np.flatnonzero(np.diff(np.r_[0, (spo2_S == 0).astype(int), 0]))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            rows.append((float(first), float(last - first), "Oximeter Event"))
    return rows


# ------------------------------------------------------------------ the cohort
def write_visit(visit: Visit, settings: SimulateSettings) -> int:
    """Simulate one visit and write its EDF and .tsv; returns the number of scored epochs."""
    night = visit_night(visit, settings)
    rng = np.random.default_rng((*visit.stream, 2))
    signals = simulate_signals(night, visit.rate_hz, rng, all_sensors=True, chain=visit.chain)
    rng = np.random.default_rng((*visit.stream, 3))
    slots = montage_of(visit, rng)
    folder = settings.output_dir / "Sleep_Data"
    spo2_S = None if "SPO2" in visit.absent else signals["SPO2"][:: visit.rate_hz]
    lines = ["onset\tduration\tdescription"]
    lines += ["\t".join(map(str, row)) for row in tsv_rows(night, visit, spo2_S, rng)]
    write_text(folder / f"{visit.key}.tsv", "\n".join(lines) + "\n")
    write_edf(folder / f"{visit.key}.edf", slots, signals, visit.rate_hz, visit.start)
    return len(night.epoch_onsets_s)


def write_recordings(visits: list[Visit], settings: SimulateSettings) -> Iterator[int]:
    """Write each visit's files; yields each one's number of scored epochs, as they are done."""
    in_parallel = joblib.Parallel(n_jobs=settings.n_workers, return_as="generator_unordered")
    yield from in_parallel(joblib.delayed(write_visit)(visit, settings) for visit in visits)
