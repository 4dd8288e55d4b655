"""The events of a simulated night: apneas and hypopneas, what they cause, and how they are scored.

Axes: S seconds. The truth is drawn over the stage of each second (``stage_of_S``); a scorer misses
some events, invents some, takes some for their neighbour and is a little off in time. Rules and
their sources stand in `norms`. With its events a night is whole: drawn by age, or driven by the
scoring of a real one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter1d

from pedsleepmae import tasks
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.errors import UserError, bounded
from pedsleepmae.prepare.annotations import Scoring
from pedsleepmae.prepare.event_words import EVENTS
from pedsleepmae.simulate import norms, oxygen
from pedsleepmae.simulate.night import (
    AROUSAL,
    DESATURATION,
    RESPIRATORY,
    SHALLOW_DIP,
    Child,
    Event,
    Night,
    draw_hypnogram,
    night_without_events,
    score_stages,
)
from pedsleepmae.simulate.norms import REM

MOST_PER_HOUR = 240  # more do not fit: each event takes 20 s and more of stable sleep around it


@dataclass
class EventRates:
    """Events an hour of sleep, mean over the cohort; children differ (0.4 to 2.2 times).

    The defaults are enriched so that a dozen short nights hold enough of each for six tasks: 5 %
    of the epochs with apnea, 6 % hypopnea, 9 % desaturation, 14 % arousal (NCH: 0.83, 1.97, 8.78,
    4.71 %). NCH's prevalence comes of 0.85, 1.8, 6, 4.3 and min_events 0. Spontaneous arousals are
    as frequent as in healthy children (9 to 16 an hour: Beck & Marcus, Sleep Med Clin 2009;4:393).
    """

    apneas_per_hour: float = bounded(5.0, 0, MOST_PER_HOUR)
    """Obstructive, central and mixed apneas."""
    hypopneas_per_hour: float = bounded(6.0, 0, MOST_PER_HOUR)
    """Hypopneas, obstructive or not."""
    spontaneous_desaturations_per_hour: float = bounded(2.5, 0, MOST_PER_HOUR)
    """Desaturations besides those that apneas and hypopneas cause."""
    spontaneous_arousals_per_hour: float = bounded(11.0, 0, MOST_PER_HOUR)
    """Arousals besides those that end apneas and hypopneas."""
    min_events: int = bounded(4, 0, MOST_PER_HOUR)
    """Each recording has at least this many apneas, hypopneas, desaturations and arousals."""


_CONFUSED_WITH = {  # what a scorer takes an event for instead
    "Obstructive Apnea": "Obstructive Hypopnea",
    "Mixed Apnea": "Obstructive Apnea",
    "Central Apnea": "Hypopnea",
    "Obstructive Hypopnea": "Obstructive Apnea",
    "Hypopnea": "Obstructive Hypopnea",
}
STAGE_TEXTS = tuple(f"Sleep stage {name}" for name in tasks.STAGES)
UNSCORED_TEXT = "Sleep stage ?"
# (kind, code) of a scored event -> NCH's text for it
NCH_EVENT_TEXTS = {EVENTS[text.lower()]: text for text in (*RESPIRATORY, DESATURATION, AROUSAL)}
QUIET_END_S = 45  # no event begins later: its desaturation still fits into the recording


# ------------------------------------------------------------------ the truth
def draw_events(
    child: Child, stage_of_S: np.ndarray, rates: EventRates, rng: Generator
) -> list[Event]:
    """True events of a night whose true stage in each second is ``stage_of_S`` (S,).

    Respiratory events come in clusters, more of them in REM; desaturations and arousals follow
    them or come by themselves. At least ``rates.min_events`` of each kind.
    """
    apnea_shares = norms.APNEA_SHARES
    if child.prader_willi:
        apnea_shares = norms.prader_willi_apnea_shares(child.age_years)
    sleep_h = (stage_of_S > 0).sum() / 3600
    n_apneas = rng.poisson(rates.apneas_per_hour * child.severity * sleep_h)
    n_hypopneas = rng.poisson(rates.hypopneas_per_hour * child.severity * sleep_h)
    names = []
    for shares, n in ((apnea_shares, n_apneas), (norms.HYPOPNEA_SHARES, n_hypopneas)):
        n = max(rates.min_events, n)
        names += list(rng.choice(list(shares), size=n, p=list(shares.values())))
    rng.shuffle(names)
    clusters = gaussian_filter1d(rng.standard_normal(len(stage_of_S)), 90, mode="wrap", truncate=3)
    clusters = np.exp(0.9 * clusters / clusters.std())
    free_S, breathing = _free_seconds(stage_of_S), []
    for name in names:
        risk_S = np.array(norms.STAGE_RISK[name])[stage_of_S] * clusters
        event = _place(name, _event_duration_s(name, child, rng), risk_S, free_S, rng)
        if event is not None:
            if stage_of_S[int(event.onset_s)] == REM:
                event = event._replace(duration_s=event.duration_s * norms.REM_LONGER)
            event = draw_size(event, rng)
            breathing.append(event)
            _occupy(free_S, event, rng.uniform(10, 16))
    return sorted(breathing + add_consequences(breathing, child, stage_of_S, rates, rng))


def _free_seconds(stage_of_S: np.ndarray) -> np.ndarray:
    """Where events may be in a night that has none yet, (S,): in sleep, not at the very end."""
    return (stage_of_S > 0) & (np.arange(len(stage_of_S)) < len(stage_of_S) - QUIET_END_S)


def _occupy(free_S: np.ndarray, event: Event, after_s: float = 10.0) -> None:
    """Take the seconds of an event, and stable sleep before and after it, out of the free ones."""
    before_s = norms.STABLE_SLEEP_BEFORE_AROUSAL_S
    free_S[max(int(event.onset_s - before_s), 0) : int(event.end_s + after_s) + 1] = False


def _event_duration_s(name: str, child: Child, rng: Generator) -> float:
    """Two breaths at least (AASM); medians of 11 s (apneas) and 14 s (hypopneas) are ours."""
    median_s = 11.0 if "Apnea" in name else 14.0
    if child.prader_willi and "Apnea" in name:
        median_s *= norms.PRADER_WILLI["apnea_duration"]
    shortest_s = norms.shortest_event_s(child.age_years) / child.breath_factor
    return float(np.clip(median_s * np.exp(0.35 * rng.standard_normal()), shortest_s, 45))


def _place(
    name: str, duration_s: float, risk_S: np.ndarray, free_S: np.ndarray, rng: Generator
) -> Event | None:
    """The event at a random free place, or None where 30 tries find none."""
    cumulative = np.cumsum(risk_S * free_S)
    if not cumulative[-1] > 0:
        return None
    for _ in range(30):
        second = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        onset_s = second + rng.random()
        inside = slice(second, int(onset_s + duration_s * norms.REM_LONGER) + 2)
        if inside.stop < len(free_S) and free_S[inside].all():
            return Event(onset_s, duration_s, name)
    return None


def add_consequences(
    breathing: list[Event], child: Child, stage_of_S: np.ndarray, rates: EventRates, rng: Generator
) -> list[Event]:
    """Desaturations and arousals: those that respiratory events cause, and spontaneous ones.

    Falls of SpO2 are those of `oxygen`. A hypopnea has a desaturation of 3 % or else an arousal
    (AASM).
    """
    found, sleep_h = [], (stage_of_S > 0).sum() / 3600
    dips = oxygen.falls(child, breathing, float(len(stage_of_S)))
    for event, dip in zip(breathing, dips, strict=True):
        falls = dip is not None and dip.name == DESATURATION
        wakes = rng.random() < norms.AROUSAL_AFTER[event.name] * child.arousability
        wakes |= "Hypopnea" in event.name and not falls
        if dip is not None:
            found.append(dip)
        if wakes:
            onset_s = event.end_s + rng.uniform(-1.0, 1.0)
            found.append(Event(onset_s, _arousal_duration_s(rng), AROUSAL))

    # The spontaneous ones keep clear of those, arousals of the respiratory events too.
    n_arousals = rates.spontaneous_arousals_per_hour * child.arousability * sleep_h
    n_falls = rates.spontaneous_desaturations_per_hour * child.severity * sleep_h
    for name, expected in ((AROUSAL, n_arousals), (DESATURATION, n_falls)):
        caused = [event for event in found if event.name == name]
        free_S = _free_seconds(stage_of_S)
        for event in [*caused, *(breathing if name == AROUSAL else [])]:
            _occupy(free_S, event)
        risk_S = np.array(norms.STAGE_RISK[name])[stage_of_S]
        for _ in range(max(rng.poisson(expected), rates.min_events - len(caused))):
            duration_s = _arousal_duration_s(rng) if name == AROUSAL else rng.uniform(10, 30)
            event = _place(name, duration_s, risk_S, free_S, rng)
            if event is not None:
                depth = norms.LEAST_DESATURATION + rng.gamma(1.3, 0.9)
                found.append(event._replace(size=depth if name == DESATURATION else 1.0))
                _occupy(free_S, event)
    return [event for event in found if event.end_s < len(stage_of_S)]


def _arousal_duration_s(rng: Generator) -> float:
    return float(np.clip(6.0 * np.exp(0.4 * rng.standard_normal()), 3.2, 15))


def draw_size(event: Event, rng: Generator) -> Event:
    """The event with a flow that is left (hypopneas) or a fall of SpO2 (desaturations)."""
    if "Hypopnea" in event.name:
        return event._replace(size=rng.uniform(0.25, 1 - norms.LEAST_FLOW_DROP - 0.05))
    if event.name == DESATURATION:
        return event._replace(size=norms.LEAST_DESATURATION + rng.gamma(1.5, 0.9))
    return event


# ------------------------------------------------------------------ the scorer
def score_events(events: Iterable[Event], stage_of_S: np.ndarray, rng: Generator) -> list[Event]:
    """Scored events: some missed, some taken for a neighbouring kind, some spurious, all jittered.

    Rates: `norms.MISSED_EVENTS` and its neighbours, after Rosenberg.
    """
    real = [event for event in events if event.name != SHALLOW_DIP]
    scored = []
    for event in real:
        if rng.random() < norms.MISSED_EVENTS:
            continue
        if event.name in _CONFUSED_WITH and rng.random() < norms.CONFUSED_EVENTS:
            event = event._replace(name=_CONFUSED_WITH[event.name])
        scored.append(jitter(event, rng))
    asleep = np.flatnonzero(stage_of_S[:-QUIET_END_S] > 0)
    for _ in range(rng.poisson(norms.SPURIOUS_EVENTS * len(real)) if len(asleep) else 0):
        model = real[rng.integers(len(real))]
        scored.append(jitter(model._replace(onset_s=float(rng.choice(asleep))), rng))
    return sorted(event for event in scored if event.end_s < len(stage_of_S))


def jitter(event: Event, rng: Generator) -> Event:
    """The event with another onset and duration, as two scorers differ; not shorter than 3 s."""
    onset_s = max(event.onset_s + norms.ONSET_JITTER_S * rng.standard_normal(), 0.0)
    factor = np.exp(norms.DURATION_JITTER * rng.standard_normal())
    duration_s = max(event.duration_s * factor, norms.SHORTEST_AROUSAL_S)
    return event._replace(onset_s=float(onset_s), duration_s=float(duration_s))


# ------------------------------------------------------------------ whole nights
def draw_night(
    child: Child, duration_s: float, first_s: float, rates: EventRates, rng: Generator
) -> Night:
    """A night of a child, scored from ``first_s`` on to the end of the recording.

    The last epoch may reach beyond the recording: it is the truncated one of NCH's files.
    """
    n_epochs = int(np.ceil((duration_s - first_s) / EPOCH_S))
    stages = draw_hypnogram(n_epochs, child.age_years, rng)
    epoch_onsets_s = first_s + EPOCH_S * np.arange(n_epochs)
    night = night_without_events(child, duration_s, epoch_onsets_s, stages, rng)
    stage_of_S = night.stage_of_seconds()
    events = draw_events(child, stage_of_S, rates, rng)
    return replace(
        night,
        events=events,
        scored_stages=score_stages(stages, rng),
        scored_events=score_events(events, stage_of_S, rng),
    )


def night_from_scoring(
    child: Child, scoring: Scoring, duration_s: float, rates: EventRates, rng: Generator
) -> Night:
    """A night driven by the scoring of a real one, which is the scoring of this one too.

    The truth behind it differs as a scorer does. Desaturations and arousals that the file does not
    have (UCDDB has none) are drawn as consequences of its respiratory events and scored too.
    Raises UserError when no stage is scored within the recording.
    """
    kept = (scoring.stages != tasks.UNSCORED) & (scoring.stage_onsets_s < duration_s)
    if not kept.any():
        raise UserError("no scored stage in the recording; give the .tsv of a scored night")
    night = night_without_events(
        child, duration_s, scoring.stage_onsets_s[kept], scoring.stages[kept], rng
    )
    stage_of_S = night.stage_of_seconds()
    given = [
        Event(event.onset_s, event.duration_s, NCH_EVENT_TEXTS[event.kind, event.code])
        for event in scoring.events
        if event.duration_s > 0 and event.onset_s + event.duration_s < duration_s - 1
    ]
    truth = [draw_size(jitter(event, rng), rng) for event in given]
    truth = [event for event in truth if event.end_s < duration_s]
    breathing = [event for event in truth if event.name in RESPIRATORY]
    added = add_consequences(breathing, child, stage_of_S, rates, rng)
    given_names = {event.name for event in given}
    if DESATURATION in given_names:  # a dip beside it would let all falls of the model in
        given_names.add(SHALLOW_DIP)
    added = [event for event in added if event.name not in given_names]
    scored_events = sorted(given + score_events(added, stage_of_S, rng))
    return replace(night, events=sorted(truth + added), scored_events=scored_events)


def scored_rows(night: Night) -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, description) of the scored epochs and events, in time order."""
    rows = [
        (float(onset_s), EPOCH_S, STAGE_TEXTS[stage])
        for onset_s, stage in zip(night.epoch_onsets_s, night.scored_stages, strict=True)
    ]
    rows += [(event.onset_s, event.duration_s, event.name) for event in night.scored_events]
    return sorted(rows, key=lambda row: row[0])
