"""Simulated nights with known truth: drawn by age, or driven by the scoring of a real night.

The truth (stage runs whose changes fall anywhere, events) drives the signals of `signals`; the
scored epochs and events differ from it as a scorer does: boundaries, onsets and durations are off,
some events are missed, spurious or taken for their neighbour.
"""

from dataclasses import replace

import numpy as np

from pedsleepmae import tasks
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.errors import UserError
from pedsleepmae.prepare.annotations import EVENTS, Scoring
from pedsleepmae.simulate.events import (
    EventRates,
    add_consequences,
    draw_events,
    draw_size,
    jitter,
    score_events,
)
from pedsleepmae.simulate.night import (
    AROUSAL,
    DESATURATION,
    RESPIRATORY,
    Child,
    Event,
    Night,
    draw_hypnogram,
    night_without_events,
    score_stages,
)

STAGE_TEXTS = tuple(f"Sleep stage {name}" for name in tasks.STAGES)
UNSCORED_TEXT = "Sleep stage ?"
# (kind, code) of a scored event -> NCH's text for it
NCH_EVENT_TEXTS = {EVENTS[text.lower()]: text for text in (*RESPIRATORY, DESATURATION, AROUSAL)}


def draw_night(
    child: Child, duration_s: float, first_s: float, rates: EventRates, rng: np.random.Generator
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
    child: Child, scoring: Scoring, duration_s: float, rates: EventRates, rng: np.random.Generator
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
