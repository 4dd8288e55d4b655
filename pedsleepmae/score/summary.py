"""A scored night in figures: what summary.json holds, what it rests on, what to beware of.

Axes: **N** epochs, **K** stages.
"""

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import cohen_kappa_score

from pedsleepmae.channels import ALL_CHANNELS, CHANNEL_NAMES, EPOCH_S
from pedsleepmae.prepare.examples import Outcome
from pedsleepmae.probe.nights import EPOCH_MINUTES, INDICES, MIN_SLEEP_HOURS, count_index_events
from pedsleepmae.score.night import Night, Scorer
from pedsleepmae.tasks import EVENT_TEXTS, NOTICE, STAGES

# Usual durations of the events, s. An event of d seconds at a random place touches 1 + d/30
# epochs on average, which leads from epochs with events back to events.
EVENT_SECONDS = {"apnea_hypopnea": (10, 30), "desaturation": (10, 60), "arousal": (3, 15)}
MANY_FAR = 10  # times the expected share of far epochs: then the night as a whole is unlike


def summarise(scorer: Scorer, night: Night, name: str, outcome: Outcome) -> dict:
    """Content of summary.json of the recording ``name``; ``outcome``: what became of reading it."""
    facts = scorer.basis.facts
    content = {
        "notice": NOTICE,
        "recording": name,
        "recording_simulated": outcome.simulated,
        "hours_recorded": outcome.duration_s / 3600,
        "n_epochs": len(night),
        "epochs": "at the scored rows" if night.scored else "on a 30-s grid",
        "checkpoint": {
            "file": scorer.checkpoint.name,
            "encoder_sha256": facts["encoder_sha256"],
            "simulated": facts["checkpoint_simulated"],
        },
        "probes": {
            "pooling": scorer.pooling,
            "normalise": scorer.normalise or "none",
            "montage": night.montage,
            **{key: facts[key] for key in ("simulated", "patient_disjoint", "n_patients")},
        },
        "quantities": night_quantities(scorer, night, outcome.event_counts),
        "far": {
            "n_epochs": int(night.far_N.sum()),
            "share": float(night.far_N.mean()),
            "expected_share": scorer.far_share,
        },
        "agreement": stage_agreement(night),
        "channels": outcome.channels,
        "absent": [name for name in CHANNEL_NAMES if name not in outcome.channels],
    }
    return content | {"cautions": cautions(content)}


def night_quantities(scorer: Scorer, night: Night, event_counts: Mapping[str, int]) -> list[dict]:
    """One dict for each quantity of the night: value, how it was reached, what it rests on.

    ``value`` sums recalibrated probabilities (as script 3 does, so that its error on test nights
    is this one's); ``called`` counts the epochs as called; ``scored`` is the scorer's, whose events
    that begin in sleep ``event_counts`` has by kind. ``reason`` says why a value is None.
    """
    facts = scorer.basis.facts
    minutes_K = {}  # in each stage
    if "sleep" in night.prob:
        minutes_K["value"] = night.prob["sleep"].sum(0) * EPOCH_MINUTES
        minutes_K["called"] = np.bincount(night.called["sleep"], minlength=5) * EPOCH_MINUTES
    if night.scored:
        stage_N = night.scored["sleep"]
        minutes_K["scored"] = np.bincount(stage_N[stage_N >= 0], minlength=5) * EPOCH_MINUTES
    sleep = {way: float(m_K[1:].sum()) for way, m_K in minutes_K.items()}
    efficiency = {way: float(100 * m_K[1:].sum() / m_K.sum()) for way, m_K in minutes_K.items()}
    rows = [
        _quantity(facts, None, "analysed_min", "min", {"value": len(night) * EPOCH_MINUTES}),
        _quantity(facts, "sleep", "sleep_min", "min", sleep),
        _quantity(facts, "sleep", "sleep_efficiency", "% of the analysed time", efficiency),
    ]
    for k, stage in enumerate(STAGES):
        of_stage = {way: float(m_K[k]) for way, m_K in minutes_K.items()}
        rows.append(_quantity(facts, "sleep", f"{stage}_min", "min", of_stage))
    return rows + [_index(facts, night, name, sleep, event_counts) for name in INDICES]


def _index(facts: Mapping, night: Night, name: str, sleep_min: Mapping, n_events: Mapping) -> dict:
    """Events per hour of sleep: epochs with an event, times the events for one such epoch.

    That ratio is of the val patients behind the probes. Where it is not known the row counts
    epochs, with the range of events per hour that this would be.
    """
    task, per_epoch = INDICES[name], facts["nights"]["events_per_epoch"].get(name)
    counts = {}  # of epochs with an event
    if task in night.prob:
        counts["value"] = float(night.prob[task][:, 1].sum())
        counts["called"] = float(night.called[task].sum())
    if night.scored and any((night.scored[t] == 1).any() for t in EVENT_TEXTS):
        counts["scored"] = float((night.scored[task] == 1).sum())
    unit = "epochs with an event per hour of sleep"
    if per_epoch is not None:
        unit = "events per hour of sleep"
        counts = {way: n * per_epoch for way, n in counts.items()}
        if "scored" in counts:
            counts["scored"] = float(count_index_events(name, n_events))
    least_min = 60 * MIN_SLEEP_HOURS
    enough = [way for way in counts if sleep_min.get(way, 0) >= least_min]
    per_hour = {way: counts[way] * 60 / sleep_min[way] for way in enough}
    row = _quantity(facts, task, name, unit, per_hour)
    if row["value"] is None and task in night.prob:
        row["reason"] = "the probe file holds no probe for sleep, so no time of sleep is known"
        if "sleep" in night.prob:
            row["reason"] = f"less than {least_min:g} minutes of sleep"
    elif per_epoch is not None:
        row["events_per_epoch"] = per_epoch
    elif row["value"] is not None:
        short_s, long_s = EVENT_SECONDS[task]
        row["events_per_hour"] = [row["value"] / (1 + s / EPOCH_S) for s in (long_s, short_s)]
        row["events_per_hour_if"] = (
            f"events of {short_s:g} to {long_s:g} s that do not share epochs: one of d seconds "
            "touches 1 + d/30 epochs; where events crowd, the true index is higher"
        )
    return row


def _quantity(facts: Mapping, task: str | None, name: str, unit: str, values: Mapping) -> dict:
    """A row of the summary; ``values`` by way: value, called, scored, those that are known.

    ``rests_on`` is the calibration behind it; None without a probe.
    """
    row = {"name": name, "unit": unit, "value": None, "called": None, "scored": None} | values
    if row["value"] is None:
        row["reason"] = "the probe file holds no probe for it"
    row["rests_on"] = None
    if task not in facts["tasks"]:
        return row
    fitted = facts["tasks"][task]
    figure = "kappa" if task == "sleep" else "auroc"
    row["rests_on"] = {
        "task": task,
        "calibration_slope": fitted["calibration_slope"],
        "n_val_patients": facts["n_patients"]["val"],
        "n_val_epochs": fitted["n_val"],
        f"val_{figure}": fitted["val"][figure],
        f"test_{figure}": fitted["test"][figure],
        "n_test_patients": facts["n_patients"]["test"],
        "error_on_test_nights": facts["nights"]["agreement"].get(name),
        "simulated": facts["simulated"],
    }
    return row


def stage_agreement(night: Night) -> dict | None:
    """Cohen's kappa and accuracy of the called stages against the scorer's; None without both."""
    if night.scored is None or "sleep" not in night.called:
        return None
    scored_N, called_N = night.scored["sleep"], night.called["sleep"]
    known = scored_N >= 0
    scored_N, called_N = scored_N[known], called_N[known]
    found = {"n_epochs": int(known.sum()), "accuracy": float((scored_N == called_N).mean())}
    if len(np.union1d(scored_N, called_N)) < 2:
        return found | {"kappa": None, "reason": "one stage only, in both"}
    return found | {"kappa": float(cohen_kappa_score(scored_N, called_N))}


SHORT_HOURS = 1.0  # of a recording, below which its own mean and spread rest on little


def cautions(content: Mapping) -> list[str]:
    """What must be known before a figure of this night is used, gravest first."""
    lines = []
    if content["probes"]["simulated"]:
        lines.append(
            "The probes were fitted and calibrated on simulated recordings: these figures show "
            "that the machinery works and say nothing about a person."
        )
    elif content["checkpoint"]["simulated"]:
        lines.append("The encoder was pretrained on simulated recordings.")
    if content["recording_simulated"]:
        lines.append("This recording is simulated.")
    if not content["probes"]["patient_disjoint"]:
        lines.append(
            "The probes were judged on other hours of the nights they were fitted on, so their "
            "figures are flattered; if this is such a night, so are these."
        )
    far = content["far"]
    if far["share"] > min(MANY_FAR * far["expected_share"], 0.5):
        lines.append(
            f"{far['share']:.0%} of the epochs lie far from the training data "
            f"({far['expected_share']:.1%} would be usual): the recording as a whole is unlike "
            "what the probes were fitted on, do not rely on their figures."
        )
    if content["absent"]:
        lines.append(
            f"{len(content['absent'])} of 16 channels are absent: {', '.join(content['absent'])}."
        )
        montage = content["probes"]["montage"]
        if montage != ALL_CHANNELS:
            lines.append(f"The probes are those for the montage “{montage}”; others were not read.")
        else:
            lines.append(
                "The probes are those of all channels, to which an absent one is at its mean: the "
                "file of probes holds none for a montage nearer to this one (script 3, "
                "montage_epochs, fits them)."
            )
    hours = content["n_epochs"] * EPOCH_S / 3600
    if content["probes"]["normalise"] == "night" and hours < SHORT_HOURS:
        lines.append(
            f"Features are standardised within the recording, and {hours:.2g} hours of it are "
            "little to rest on."
        )
    if content["epochs"] == "on a 30-s grid":
        lines.append("Lights off and on are not known: sleep efficiency counts all analysed time.")
    return lines
