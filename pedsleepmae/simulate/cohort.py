"""A simulated cohort: who comes when, with which montage, lacking what; and the night of a visit.

Everything is drawn from the seed alone: each visit has its own random stream, so that neither the
number of workers nor the order in which they finish changes a byte. The same cohort becomes NCH's
files in `nch_files` (which needs edfio) or batch files in `batches` (which does not).
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator

from pedsleepmae.channels import CHANNEL_GROUPS, CHANNEL_NAMES, EPOCH_S, N_CHANNELS
from pedsleepmae.errors import SettingsError, UserError, bounded
from pedsleepmae.prepare.annotations import Scoring, read_tsv
from pedsleepmae.simulate.chain import Chain, Variation, draw_chain, vary_child
from pedsleepmae.simulate.events import EventRates, draw_night, night_from_scoring
from pedsleepmae.simulate.night import Child, Night, draw_ages, draw_child, with_prader_willi
from pedsleepmae.tasks import UNSCORED


@dataclass
class SimulateSettings:
    """Simulated cohort in the layout of the NCH Sleep DataBank."""

    output_dir: Path = Path("data/simulated")
    """Folder to create: Sleep_Data/ (EDF and .tsv) and Health_Data/ (CSV)."""
    batches_dir: Path | None = None
    """Write batch files for scripts 2 and 3 straight to this folder, and no EDF; none: EDF.
    Health_Data/ stands in output_dir all the same."""
    n_patients: int = bounded(12, 1)
    """Number of children."""
    n_repeat_studies: int = bounded(1, 0)
    """How many of them come a second time."""
    hours: float = bounded(1.5, 0.25, 14)
    """Length of a recording, hours (each is within a tenth of it); sleep cycles are compressed to
    fit short nights. With event_dir: the longest excerpt of a night."""
    events: EventRates = field(default_factory=EventRates)
    montage_b_fraction: float = bounded(0.3, 0, 1)
    """Share of recordings with NCH's montage B (OSAT, Resp Chest, 256 or 512 Hz); it shapes the EDF
    file, not the 16 channels, and so changes nothing with batches_dir."""
    absent_channel_fraction: float = bounded(0.2, 0, 1)
    """Share of recordings that lack one or more of the 16 channels."""
    absent_group_fraction: float = bounded(0.0, 0, 1)
    """Share of recordings that lack whole groups: no EEG, nothing on the head, no respiration."""
    variation: Variation = "none"
    """How much recordings differ beyond the children's physiology. none: one laboratory without
    faults. realistic: levels, amplifiers, references, mains and faults as laboratories have them.
    wide: more than that, to learn from. Stages and events stay as they are."""
    rates_hz: list[int] = field(default_factory=lambda: [256, 256, 256, 400])
    """Sampling rates drawn for montage A, Hz, multiples of 4; repeat one to draw it more often.
    With batches_dir everything is simulated at 128 Hz."""
    prader_willi_fraction: float = bounded(0.0, 0, 1)
    """Share of the children with Prader-Willi syndrome (DIAGNOSIS.csv says who): more and longer
    apneas, rather central ones in the young, deeper desaturations, low muscle tone."""
    event_dir: Path | None = None
    """Folder with NCH .tsv files whose stages and events drive the nights; none: drawn by age."""
    first_id: int = bounded(900_001, 1)
    """Number of the first patient and of the first study, above NCH's (patients to 20,830, studies
    to 26,278). Cohorts that meet in one evaluation need ranges of their own."""
    scaling: Literal["policy", "robust"] = "policy"
    """With batches_dir: standardisation, as in script 1."""
    val_fraction: float = bounded(0.15, 0, below=1)
    """With batches_dir: share of the patients in val."""
    test_fraction: float = bounded(0.15, 0, below=1)
    """With batches_dir: share of the patients in test."""
    n_workers: int = bounded(2, 1)
    """Processes; the files do not depend on it."""
    seed: int = bounded(0, 0)
    """Everything is drawn from it."""

    def check(self) -> None:
        if self.n_repeat_studies > self.n_patients:
            raise SettingsError(
                f"n_repeat_studies is {self.n_repeat_studies} with n_patients "
                f"{self.n_patients}; a second visit needs a first: give at most n_patients"
            )
        if not self.rates_hz or any(rate % 4 or not 100 <= rate <= 2048 for rate in self.rates_hz):
            raise SettingsError(
                f"rates_hz is {self.rates_hz}; give multiples of 4 from 100 to 2048, such as 256"
            )
        if self.val_fraction + self.test_fraction >= 1:
            raise SettingsError(
                f"val_fraction + test_fraction is {self.val_fraction + self.test_fraction:g}; "
                "keep it below 1 so that patients remain for training"
            )


# What a recording may lack: all of a group at once, as when a sensor was not put on.
_SENSORS = ("flow", "CO2", "SpO2", "snore", "EMG", "EOG", "effort")
ABSENT_GROUPS = [[CHANNEL_NAMES[i] for i in CHANNEL_GROUPS[sensor]] for sensor in _SENSORS]
ABSENT_GROUPS += [["EEG CZ-O1"]]
# Of CHANNEL_GROUPS: what is absent whole, as in a polygraphy (no head) or an EEG study.
ABSENT_WHOLE = (
    ("EEG",),
    ("EEG", "EOG", "EMG"),
    ("EOG", "EMG"),
    ("effort", "flow", "snore", "CO2"),
    ("effort", "flow", "snore", "CO2", "SpO2"),
)

# Share of recordings without whole groups that a variation adds to absent_group_fraction.
LACKS_GROUPS = {"none": 0.0, "realistic": 0.08, "wide": 0.25}


@dataclass(frozen=True)
class Visit:
    """One study of one patient, before it is simulated.

    ``montage`` is NCH's "A" or "B"; ``first_onset_s`` where the scoring begins, a multiple of one
    sample; ``absent`` the names of the 16 channels that it lacks; ``stream`` seeds its random
    numbers; ``event_file`` the scoring that drives it, None: drawn; ``chain`` the laboratory's,
    None: without variation.
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
    chain: Chain | None = None

    @property
    def key(self) -> str:
        return f"{self.patient_id}_{self.study_id}"

    @property
    def age_days(self) -> int:
        return round(self.child.age_years * 365.25)


# ------------------------------------------------------------------ the plan
def plan_cohort(settings: SimulateSettings) -> list[Visit]:
    """Visits of the cohort in order of patient and study.

    The first ``n_repeat_studies`` patients come again, months later, less ill (as after the
    removal of the tonsils). Raises SettingsError when event_dir holds no .tsv file.
    """
    event_dir = settings.event_dir
    event_files = [None] if event_dir is None else sorted(event_dir.glob("*.tsv"))
    if not event_files:
        raise SettingsError(f"event_dir: no .tsv file in {event_dir}; give a folder of NCH's")
    n_patients, ages = settings.n_patients, _ages(settings)
    # From a stream of their own: the others' nights are the same whatever the share.
    in_random_order = np.random.default_rng((settings.seed, 4)).permutation(n_patients)
    with_syndrome = in_random_order[: round(settings.prader_willi_fraction * n_patients)]
    visits = []
    for patient in range(n_patients):
        rng = np.random.default_rng((settings.seed, 1, patient))
        child = draw_child(rng, ages[patient])
        if patient in with_syndrome:
            child = with_prader_willi(child)
        varied = np.random.default_rng((settings.seed, 5, patient))
        child = vary_child(child, varied, settings.variation)
        for number in range(1 + (patient < settings.n_repeat_studies)):
            if number:
                age_years = child.age_years + rng.uniform(0.4, 1.2)
                severity = max(0.5 * child.severity, 0.3)
                child = replace(child, age_years=age_years, severity=severity)
            study, stream = len(visits), (settings.seed, 2, patient, number)
            file = event_files[study % len(event_files)]
            visits.append(_plan_visit(settings, patient, study, child, stream, file))
    return visits


def _ages(settings: SimulateSettings) -> list[float]:
    """Ages of the patients, evenly over NCH's distribution in random order: a small cohort has
    toddlers and adolescents too."""
    rng = np.random.default_rng((settings.seed, 0))
    ages = np.sort(draw_ages(rng, 4096))
    place = (rng.permutation(settings.n_patients) + 0.5) / settings.n_patients
    return ages[(place * len(ages)).astype(int)].tolist()


def _plan_visit(
    settings: SimulateSettings, patient: int, study: int, child: Child, stream, event_file
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
    day, second = int(rng.integers(365 * 9)), int(rng.integers(19 * 3600, 22 * 3600))
    rng = np.random.default_rng((*stream, 4))  # whole groups do not change the rest
    if rng.random() < settings.absent_group_fraction:
        absent |= _whole_groups(rng)
    rng = np.random.default_rng((*stream, 5))  # nor does the laboratory
    chain = draw_chain(rng, settings.variation)
    if rng.random() < LACKS_GROUPS[settings.variation]:
        more = absent | _whole_groups(rng)
        absent = more if len(more) < N_CHANNELS else absent  # nobody records nothing
    return Visit(
        patient_id=settings.first_id + patient,
        study_id=settings.first_id + study,
        child=child,
        start=datetime(2008, 1, 1) + timedelta(days=day, seconds=second),
        duration_s=float(duration_s),
        first_onset_s=round(first_onset_s * rate_hz) / rate_hz,
        montage="B" if is_b else "A",
        rate_hz=rate_hz,
        absent=tuple(sorted(absent)),
        stream=stream,
        event_file=event_file,
        chain=chain,
    )


def _whole_groups(rng: Generator) -> set[str]:
    """Names of the channels that one of ABSENT_WHOLE takes away."""
    groups = ABSENT_WHOLE[rng.integers(len(ABSENT_WHOLE))]
    return {CHANNEL_NAMES[place] for group in groups for place in CHANNEL_GROUPS[group]}


# ------------------------------------------------------------------ one visit
def visit_night(visit: Visit, settings: SimulateSettings) -> Night:
    """The night of a visit, drawn or driven by its event file."""
    rng = np.random.default_rng((*visit.stream, 1))
    if visit.event_file is None:
        return draw_night(visit.child, visit.duration_s, visit.first_onset_s, settings.events, rng)
    scoring = read_tsv(visit.event_file)
    if not (scoring.stages != UNSCORED).any():
        raise UserError(f"{visit.event_file}: no scored stage; give the .tsv of a scored night")
    scoring = excerpt(scoring, visit.duration_s, visit.first_onset_s, rng)
    end_s = scoring.stage_onsets_s[-1] + EPOCH_S
    duration_s = min(visit.duration_s, float(4 * np.ceil(end_s / 4)))
    return night_from_scoring(visit.child, scoring, duration_s, settings.events, rng)


def excerpt(scoring: Scoring, duration_s: float, first_onset_s: float, rng: Generator) -> Scoring:
    """A stretch of a scored night that fits a recording and begins at ``first_onset_s``.

    Where the night is longer the stretch is drawn; of ten draws the one with most events counts.
    """
    n_epochs = int((duration_s - first_onset_s) / EPOCH_S)
    last = len(scoring.stages) - n_epochs
    event_onsets_s = np.array([event.onset_s for event in scoring.events])

    def n_events(first: int) -> int:
        start_s = scoring.stage_onsets_s[first]
        inside = (event_onsets_s >= start_s) & (event_onsets_s < start_s + duration_s)
        return inside.sum() * (scoring.stages[first : first + n_epochs] > 0).any()

    best = max(rng.integers(0, last + 1, 10) if last > 0 else [0], key=n_events)
    shift_s = first_onset_s - scoring.stage_onsets_s[best]
    events = [replace(event, onset_s=event.onset_s + shift_s) for event in scoring.events]
    return Scoring(
        stage_onsets_s=scoring.stage_onsets_s[best : best + n_epochs] + shift_s,
        stages=scoring.stages[best : best + n_epochs],
        events=[event for event in events if event.onset_s >= 0],
    )
