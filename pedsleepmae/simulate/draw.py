"""Simulated nights with known truth: a child, a hypnogram, events, and how a scorer sees them.

The truth (stage runs whose changes fall anywhere, events) drives the signals of
`simulate_signals`; the scored epochs and events differ from it as a scorer does: boundaries,
onsets and durations are off, some events are missed, spurious or taken for their neighbour.
Everything is numpy; nothing here reads or writes a file.
"""

import numpy as np

from pedsleepmae import tasks
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.prepare import annotations
from pedsleepmae.simulate.events import (
    EVENT_NAMES,
    RESPIRATORY,
    EventRates,
    add_consequences,
    draw_events,
    jitter,
    score_events,
    with_size,
)
from pedsleepmae.simulate.night import Child, Event, Night, draw_hypnogram, score_stages, true_runs
from pedsleepmae.simulate.norms import WAKE

STAGE_TEXTS = tuple(f"Sleep stage {name}" for name in tasks.STAGES)
UNSCORED_TEXT = "Sleep stage ?"


# ------------------------------------------------------------------ a night
def draw_night(
    child: Child,
    duration_s: float,
    first_onset_s: float,
    rates: EventRates,
    rng: np.random.Generator,
) -> Night:
    """A night of a child, scored from ``first_onset_s`` on to the end of the recording.

    The last epoch may reach beyond the recording: it is the truncated one of NCH's files.
    """
    n_epochs = int(np.ceil((duration_s - first_onset_s) / EPOCH_S))
    stages = draw_hypnogram(n_epochs, child.age_years, rng)
    onsets_s, runs = true_runs(stages, first_onset_s, rng)
    seconds = np.arange(int(duration_s)) + 0.5
    stage_of_S = runs[np.searchsorted(onsets_s, seconds, side="right") - 1]
    events = draw_events(child, stage_of_S, rates, rng)
    return Night(
        child=child,
        duration_s=duration_s,
        stage_onsets_s=onsets_s,
        stages=runs,
        events=events,
        epoch_onsets_s=first_onset_s + EPOCH_S * np.arange(n_epochs),
        scored_stages=score_stages(stages, rng),
        scored_events=score_events(events, stage_of_S, rng),
    )


def night_from_scoring(
    child: Child,
    scoring: annotations.Scoring,
    duration_s: float,
    rates: EventRates,
    rng: np.random.Generator,
) -> Night:
    """A night driven by the scoring of a real one (`annotations.read_tsv`).

    The scored epochs and events are the scoring of the night; the truth behind them differs as a
    scorer does. Desaturations and arousals that the file does not have (UCDDB has none) are drawn
    as consequences of its respiratory events and scored too. Raises ValueError when no stage is
    scored within the recording.
    """
    kept = (scoring.stages != tasks.UNSCORED) & (scoring.stage_onsets_s < duration_s)
    if not kept.any():
        raise ValueError("no scored stage in the recording; give the .tsv of a scored night")
    onsets_s, stages = scoring.stage_onsets_s[kept], scoring.stages[kept]
    changes = np.r_[0, np.flatnonzero(np.diff(stages)) + 1]
    run_onsets_s = np.maximum(onsets_s[changes] + rng.uniform(-12, 12, len(changes)), 0.5)
    run_onsets_s = np.r_[0.0, np.maximum.accumulate(run_onsets_s)]
    runs = np.r_[WAKE, stages[changes]]
    seconds = np.arange(int(duration_s)) + 0.5
    stage_of_S = runs[np.searchsorted(run_onsets_s, seconds, side="right") - 1]
    given = [
        Event(event.onset_s, event.duration_s, EVENT_NAMES[event.kind, event.code])
        for event in scoring.events
        if event.duration_s > 0 and event.onset_s + event.duration_s < duration_s - 1
    ]
    truth = [with_size(jitter(event, rng), rng) for event in given]
    truth = [event for event in truth if event.end_s < duration_s]
    breathing = [event for event in truth if event.name in RESPIRATORY]
    given_names = {event.name for event in given}
    added = [
        event
        for event in add_consequences(breathing, child, stage_of_S, rates, rng)
        if event.name not in given_names
    ]
    return Night(
        child=child,
        duration_s=duration_s,
        stage_onsets_s=run_onsets_s,
        stages=runs,
        events=sorted(truth + added),
        epoch_onsets_s=onsets_s,
        scored_stages=stages,
        scored_events=sorted(given + score_events(added, stage_of_S, rng)),
    )


# ------------------------------------------------------------------ examples
def scored_rows(night: Night) -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, description) of the scored epochs and events, in time order."""
    rows = [
        (float(onset_s), EPOCH_S, STAGE_TEXTS[stage])
        for onset_s, stage in zip(night.epoch_onsets_s, night.scored_stages, strict=True)
    ]
    rows += [(event.onset_s, event.duration_s, event.name) for event in night.scored_events]
    return sorted(rows, key=lambda row: row[0])
