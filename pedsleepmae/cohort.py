"""A simulated cohort: who comes when, with which montage; and its examples as batch files.

Everything is drawn from the seed alone: each visit has its own random stream, so that neither the
number of workers nor the order in which they finish changes a byte. The same cohort becomes NCH's
files in `cohort_files` (which needs edfio) or batch files here (which do not).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pandas as pd

from pedsleepmae import simulate
from pedsleepmae.annotations import EPOCH_S, Scoring, read_tsv
from pedsleepmae.channels import CHANNEL_GROUPS, CHANNEL_NAMES, N_CHANNELS, RATE_HZ
from pedsleepmae.simulate import Child, Night
from pedsleepmae.splits import SPLITS, split_hash, split_patients
from pedsleepmae.standardise import standardise_epochs
from pedsleepmae.store import (
    BATCH_EXAMPLES,
    EVENT_COUNTS,
    LABELS,
    Examples,
    batch_path,
    grouping_state_path,
    read_splits,
    write_batch,
    write_table,
    write_whole,
)

if TYPE_CHECKING:
    from pedsleepmae.config import SimulateSettings

VISITS_IN_MEMORY = 16  # nights whose examples are mixed at a time when batch files are written
# What a recording may lack: all of a group at once, as when a sensor was not put on.
ABSENT_GROUPS = (
    ("C-FLOW",),
    ("CAPNO",),
    ("SPO2",),
    ("SNORE",),
    ("EMG CHIN1-CHIN2",),
    ("EOG LOC-M2", "EOG ROC-M1"),
    ("RESP THORACIC", "RESP ABDOMINAL"),
    ("EEG CZ-O1",),
)
# Of CHANNEL_GROUPS: what is absent whole, as in a polygraphy (no head) or an EEG study.
ABSENT_WHOLE = (
    ("EEG",),
    ("EEG", "EOG", "EMG"),
    ("EOG", "EMG"),
    ("effort", "flow", "snore", "CO2"),
    ("effort", "flow", "snore", "CO2", "SpO2"),
)


@dataclass(frozen=True)
class Visit:
    """One study of one patient, before it is simulated.

    ``montage`` is NCH's "A" or "B"; ``first_onset_s`` where the scoring begins, a multiple of one
    sample; ``absent`` the names of the 16 channels that it lacks; ``stream`` seeds its random
    numbers; ``event_file`` the scoring that drives it, None: drawn.
    """

    patient_id: int
    study_id: int
    child: Child
    start: datetime
    duration_s: float
    first_onset_s: float
    montage: str
    rate_hz: int
    absent: tuple[str, ...]
    stream: tuple[int, ...]
    event_file: Path | None

    @property
    def key(self) -> str:
        return f"{self.patient_id}_{self.study_id}"

    @property
    def age_days(self) -> int:
        return round(self.child.age_years * 365.25)


# ------------------------------------------------------------------ the plan
def plan_cohort(settings: "SimulateSettings") -> list[Visit]:
    """Visits of the cohort in order of patient and study.

    The first ``n_repeat_studies`` patients come again, months later, less ill (as after the
    removal of the tonsils). Raises ValueError when event_dir holds no .tsv file.
    """
    event_files = [None]
    if settings.event_dir is not None:
        event_files = sorted(Path(settings.event_dir).glob("*.tsv"))
        if not event_files:
            raise ValueError(f"event_dir: no .tsv file in {settings.event_dir}")
    affected = _with_prader_willi(settings)
    visits = []
    for patient in range(settings.n_patients):
        rng = np.random.default_rng((settings.seed, 1, patient))
        # Ages spread over the range, so that a small cohort has toddlers and adolescents.
        child = simulate.draw_child(rng, _age_of(patient, settings))
        if patient in affected:
            child = simulate.with_prader_willi(child)
        for number in range(1 + (patient < settings.n_repeat_studies)):
            if number:
                child = replace(
                    child,
                    age_years=child.age_years + rng.uniform(0.4, 1.2),
                    severity=max(0.5 * child.severity, 0.3),
                )
            stream = (settings.seed, 2, patient, number)
            file = event_files[len(visits) % len(event_files)]
            visits.append(_plan_visit(settings, patient, len(visits), child, stream, file))
    return visits


def _with_prader_willi(settings: "SimulateSettings") -> set[int]:
    """Which patients have Prader-Willi syndrome, drawn from a stream of their own: the others'
    nights are the same whatever the share."""
    n_affected = round(settings.prader_willi_fraction * settings.n_patients)
    order = np.random.default_rng((settings.seed, 4)).permutation(settings.n_patients)
    return set(order[:n_affected].tolist())


def _age_of(patient: int, settings: "SimulateSettings") -> float:
    """Age of a patient: the cohort's ages are spread evenly over NCH's distribution, shuffled."""
    rng = np.random.default_rng((settings.seed, 0))
    ages = np.sort(0.5 + 17.5 * rng.beta(1.3, 1.6, 4096))
    place = (rng.permutation(settings.n_patients)[patient] + 0.5) / settings.n_patients
    return float(ages[int(place * len(ages))])


def _plan_visit(
    settings: "SimulateSettings",
    patient: int,
    study: int,
    child: Child,
    stream: tuple[int, ...],
    event_file: Path | None,
) -> Visit:
    """Montage, rate, length, absent channels and date of one visit."""
    rng = np.random.default_rng((*stream, 0))
    # The montages are dealt out rather than drawn, so that a small cohort has its share of each.
    is_b = (study + 1) * settings.montage_b_fraction % 1 < settings.montage_b_fraction
    rate_hz = int(rng.choice([256, 512] if is_b else settings.rates_hz))
    duration_s = 4 * round(settings.hours * rng.uniform(0.92, 1.08) * 900)
    first_onset_s = 20 + rng.uniform(0.01, 0.04) * duration_s
    lacks = (study + 1) * settings.absent_channel_fraction % 1 < settings.absent_channel_fraction
    groups = rng.choice(len(ABSENT_GROUPS), 1 + int(rng.random() < 0.3), replace=False)
    absent = {name for group in groups for name in ABSENT_GROUPS[group]} if lacks else set()
    absent |= _absent_whole(settings, stream)
    start = datetime(2008, 1, 1) + timedelta(
        days=int(rng.integers(365 * 9)), seconds=int(rng.integers(19 * 3600, 22 * 3600))
    )
    return Visit(
        patient_id=settings.first_id + patient,
        study_id=settings.first_id + study,
        child=child,
        start=start,
        duration_s=float(duration_s),
        first_onset_s=round(first_onset_s * rate_hz) / rate_hz,
        montage="B" if is_b else "A",
        rate_hz=rate_hz,
        absent=tuple(sorted(absent)),
        stream=stream,
        event_file=event_file,
    )


def _absent_whole(settings: "SimulateSettings", stream: tuple[int, ...]) -> set[str]:
    """Channels of whole groups that a visit lacks, from random numbers of their own."""
    rng = np.random.default_rng((*stream, 4))
    if rng.random() >= settings.absent_group_fraction:
        return set()
    groups = ABSENT_WHOLE[rng.integers(len(ABSENT_WHOLE))]
    return {CHANNEL_NAMES[place] for group in groups for place in CHANNEL_GROUPS[group]}


# ------------------------------------------------------------------ one visit
def visit_night(visit: Visit, settings: "SimulateSettings") -> Night:
    """The night of a visit, drawn or driven by its event file."""
    rng = np.random.default_rng((*visit.stream, 1))
    if visit.event_file is None:
        return simulate.draw_night(
            visit.child, visit.duration_s, visit.first_onset_s, settings.events, rng
        )
    scoring = excerpt(read_tsv(visit.event_file), visit.duration_s, visit.first_onset_s, rng)
    end_s = scoring.stage_onsets_s[-1] + EPOCH_S
    duration_s = min(visit.duration_s, 4 * np.ceil(end_s / 4))
    return simulate.night_from_scoring(
        visit.child, scoring, float(duration_s), settings.events, rng
    )


def excerpt(
    scoring: Scoring, duration_s: float, first_onset_s: float, rng: np.random.Generator
) -> Scoring:
    """A stretch of a scored night that fits a recording and begins at ``first_onset_s``.

    Where the night is longer the stretch is drawn; of ten draws the one with most events counts.
    """
    n_epochs = int((duration_s - first_onset_s) / EPOCH_S)
    last = len(scoring.stages) - n_epochs
    event_onsets_s = np.array([event.onset_s for event in scoring.events])
    best, most = 0, -1
    for first in rng.integers(0, last + 1, 10) if last > 0 else [0]:
        start_s = scoring.stage_onsets_s[first]
        inside = (event_onsets_s >= start_s) & (event_onsets_s < start_s + duration_s)
        n_sleep = (scoring.stages[first : first + n_epochs] > 0).sum()
        if (count := inside.sum() * (n_sleep > 0)) > most:
            best, most = first, count
    shift_s = first_onset_s - scoring.stage_onsets_s[best]
    events = [replace(event, onset_s=event.onset_s + shift_s) for event in scoring.events]
    return Scoring(
        stage_onsets_s=scoring.stage_onsets_s[best : best + n_epochs] + shift_s,
        stages=scoring.stages[best : best + n_epochs],
        events=[event for event in events if event.onset_s >= 0],
    )


def visit_examples(visit: Visit, settings: "SimulateSettings") -> tuple[Examples, dict[str, int]]:
    """Standardised examples of a visit, simulated straight at 128 Hz; its events by kind."""
    present_C = np.array([name not in visit.absent for name in CHANNEL_NAMES])
    grid_s = round(visit.first_onset_s * RATE_HZ) / RATE_HZ
    night = visit_night(replace(visit, first_onset_s=grid_s), settings)
    rng = np.random.default_rng((*visit.stream, 2))
    x_NCT, labels, present_NC = simulate.simulate_examples(night, rng, present_C)
    signals_NCT, center_NC, scale_NC = standardise_epochs(x_NCT, present_NC)
    examples = Examples(
        signals=signals_NCT,
        labels={"sleep": labels.sleep, **labels.events},
        patient_ids=np.full(len(x_NCT), visit.patient_id),
        study_ids=np.full(len(x_NCT), visit.study_id),
        onsets_s=labels.onsets_s,
        present=present_NC,
        center=center_NC,
        scale=scale_NC,
    )
    return examples, labels.n_events


# ------------------------------------------------------------------ batch files
def write_batches(visits: list[Visit], settings: "SimulateSettings") -> Iterator[int]:
    """Write train/, val/, test/ and the tables to ``settings.batches_dir``; yields n examples.

    Yields once for each visit. Examples are mixed over 16 visits at a time, so that memory stays
    bounded however large the cohort is. A splits.csv that is there stands for its patients. A
    folder that is not finished is refused by readers.
    """
    batches_dir = Path(settings.batches_dir)
    assignment = split_patients(
        {visit.patient_id for visit in visits},
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
        keep=read_splits(batches_dir),
    )
    for name in SPLITS:
        shutil.rmtree(batches_dir / name, ignore_errors=True)
    _write_state(batches_dir, visits, complete=False)
    table = pd.DataFrame(sorted(assignment.items()), columns=["patient_id", "split"])
    write_table(batches_dir / "splits.csv", table)
    facts = {
        "split_hash": split_hash(assignment),
        "patient_disjoint": True,
        "simulated": True,
        "scaling": "policy",
    }
    rng = np.random.default_rng((settings.seed, 3))
    waiting: dict[str, list[Examples]] = {name: [] for name in SPLITS}
    n_files, counts = dict.fromkeys(SPLITS, 0), []
    run = joblib.Parallel(n_jobs=settings.n_workers, return_as="generator")
    done = run(joblib.delayed(visit_examples)(visit, settings) for visit in visits)
    for i, (visit, (examples, n_events)) in enumerate(zip(visits, done, strict=True), start=1):
        waiting[assignment[visit.patient_id]].append(examples)
        if i % VISITS_IN_MEMORY == 0 or i == len(visits):
            for name, parts in waiting.items():
                rest = _write_full_batches(
                    batches_dir, name, parts, n_files, rng, facts, everything=i == len(visits)
                )
                waiting[name] = rest
        by_column = {column: n_events[kind] for kind, column in EVENT_COUNTS.items()}
        counts.append({"n_examples": len(examples), **by_column})
        yield len(examples)
    write_table(batches_dir / "studies.csv", _studies_table(visits, assignment, counts))
    _write_state(batches_dir, visits, complete=True)


def _studies_table(
    visits: list[Visit], assignment: dict[int, str], counts: list[dict[str, int]]
) -> pd.DataFrame:
    """A row for each visit, with those columns of script 1's studies.csv that it can fill."""
    return pd.DataFrame(
        {
            "patient_id": [visit.patient_id for visit in visits],
            "study_id": [visit.study_id for visit in visits],
            "split": [assignment[visit.patient_id] for visit in visits],
            "status": "used",
            "reason": "",
            **pd.DataFrame(counts),
            "rates": f"{RATE_HZ:g}",
            "n_channels": [N_CHANNELS - len(visit.absent) for visit in visits],
            "channels_absent": ["; ".join(visit.absent) for visit in visits],
            "remarks": "simulated, never an EDF file",
            "duration_h": [round(visit.duration_s / 3600, 3) for visit in visits],
            "age_days": [visit.age_days for visit in visits],
            "sex": [visit.child.sex for visit in visits],
        }
    )


def _write_full_batches(
    batches_dir: Path,
    split: str,
    parts: list[Examples],
    n_files: dict[str, int],
    rng: np.random.Generator,
    facts: dict,
    *,
    everything: bool,
) -> list[Examples]:
    """Write the examples of ``parts`` in random order; returns what does not fill a file."""
    if not parts:
        return []
    rows = np.array([(p, k) for p, part in enumerate(parts) for k in range(len(part))])
    rows = rng.permutation(rows)
    n_full = len(rows) // BATCH_EXAMPLES * BATCH_EXAMPLES
    end = len(rows) if everything else n_full
    for first in range(0, end, BATCH_EXAMPLES):
        chosen = rows[first : min(first + BATCH_EXAMPLES, end)]
        write_batch(batch_path(batches_dir, split, n_files[split]), _take(parts, chosen), **facts)
        n_files[split] += 1
    return [_take(parts, rows[end:])] if end < len(rows) else []


def _take(parts: list[Examples], rows: np.ndarray) -> Examples:
    """Examples at these (part, k) rows, in their order."""

    def column(values) -> np.ndarray:
        return np.stack([values(parts[p])[k] for p, k in rows])

    return Examples(
        signals=column(lambda part: part.signals),
        labels={name: column(lambda part, name=name: part.labels[name]) for name in LABELS},
        patient_ids=column(lambda part: part.patient_ids),
        study_ids=column(lambda part: part.study_ids),
        onsets_s=column(lambda part: part.onsets_s),
        present=column(lambda part: part.present),
        center=column(lambda part: part.center),
        scale=column(lambda part: part.scale),
    )


def _write_state(batches_dir: Path, visits: list[Visit], *, complete: bool) -> None:
    streams = json.dumps([(visit.key, visit.stream) for visit in visits])
    fingerprint = f"simulated-{hashlib.sha256(streams.encode()).hexdigest()[:16]}"
    with write_whole(grouping_state_path(batches_dir)) as temporary:
        state = {"fingerprint": fingerprint, "complete": complete}
        temporary.write_text(json.dumps(state), encoding="utf-8")
