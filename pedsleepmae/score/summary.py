"""A scored night in figures: what summary.json holds, what it rests on, what to beware of.

Axes: **N** epochs, **K** stages.
"""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
from sklearn.metrics import cohen_kappa_score

from pedsleepmae.channels import ALL_CHANNELS, CHANNEL_NAMES, EPOCH_S
from pedsleepmae.prepare.outcome import Outcome
from pedsleepmae.probe.nights import EPOCH_MINUTES, INDICES, count_index_events
from pedsleepmae.score.laboratory import (
    MEANINGS,
    RATES,
    Count,
    Figure,
    Undefined,
    events_per_hour,
    hypnogram_figures,
    one_stage,
    stage_shares,
)
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
            "read_outs": {task: asdict(read_out) for task, read_out in scorer.read_outs.items()},
            "montage": night.montage,
            **{key: facts[key] for key in ("simulated", "patient_disjoint", "n_patients")},
        },
        "lights": asdict(night.lights) | {"not_analysed_min": not_analysed_min(night)},
        "quantities": night_quantities(scorer, night),
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


def not_analysed_min(night: Night) -> float | None:
    """Minutes from lights off to on in no epoch, which count in the time in bed alone."""
    if not night.lights.known:
        return None
    in_bed_min = (night.lights.on_s - night.lights.off_s) / 60
    return max(in_bed_min - int(night.in_bed_N.sum()) * EPOCH_MINUTES, 0.0)


def night_quantities(scorer: Scorer, night: Night) -> list[dict]:
    """One dict for each quantity of the night in bed: value, how it was reached, what it rests on.

    ``value`` sums recalibrated probabilities (as script 3 does, so that its error on test nights
    is this one's); ``called`` counts the epochs as called, ``scored`` those of the scorer and the
    events that begin in them. Of latencies and WASO, which only a hypnogram has, ``value`` is the
    called one. ``reason`` says why a value is None; so do ``called_reason``, ``scored_reason``.
    """
    counts, facts, lights = count_night(night, scorer.basis.facts), scorer.basis.facts, night.lights
    in_bed_min = (lights.on_s - lights.off_s) / 60 if lights.known else None
    analysed = {"value": int(night.in_bed_N.sum()) * EPOCH_MINUTES}
    time_in_bed = {"value": in_bed_min}
    if not lights.known:
        time_in_bed["value"] = Undefined("lights off and on are not both known")
    of_what = "% of the time in bed" if lights.known else "% of the analysed time"
    sleep, efficiency = {}, {}
    for way, count in counts.items():
        sleep[way] = float(count.minutes_K[1:].sum())
        whole_min = in_bed_min or count.minutes_K.sum()
        efficiency[way] = Undefined("no scored epoch")
        if whole_min:
            efficiency[way] = float(100 * sleep[way] / whole_min)
    rows = [
        _quantity(facts, None, "analysed_min", "min", analysed),
        _quantity(facts, None, "time_in_bed_min", "min", time_in_bed),
        _quantity(facts, "sleep", "sleep_min", "min", sleep),
        _quantity(facts, "sleep", "sleep_efficiency", of_what, efficiency),
        *_hypnogram_rows(facts, night),
    ]
    for k, stage in enumerate(STAGES):
        of_stage = {way: float(count.minutes_K[k]) for way, count in counts.items()}
        rows.append(_quantity(facts, "sleep", f"{stage}_min", "min", of_stage))
    shares = {way: stage_shares(count) for way, count in counts.items()}
    for name in [f"{stage}_percent" for stage in STAGES[1:]]:
        of_stage = {way: share[name] for way, share in shares.items()}
        rows.append(_quantity(facts, "sleep", name, "% of total sleep time", of_stage))
    return rows + [_rate(facts, night, counts, rate) for rate in RATES]


def count_night(night: Night, facts: Mapping) -> dict[str, Count]:
    """By way (value, called, scored) what each epoch in bed counts; events where they are known.

    Single events count where they begin. Without probes of these, epochs with an event count as
    many as one such epoch of sleep had among the val patients; where that is not known all ways
    count epochs.
    """
    bed, per_epoch = night.in_bed_N, facts["nights"]["events_per_epoch"]
    counts = {}
    if "sleep" in night.prob:
        counted = night.prob.keys() - night.not_counted.keys()
        seen = {name: task for name, task in INDICES.items() if task in counted}
        ratio = {name: per_epoch.get(name, 1.0) for name in seen}
        expected = {name: night.prob[task][bed, 1] * ratio[name] for name, task in seen.items()}
        called = {name: night.called[task][bed] * ratio[name] for name, task in seen.items()}
        for name, task in INDICES.items():
            if task in night.found:
                called[name] = onsets_in_epochs(night.found[task][:, 0], night.onsets_s)[bed]
        counts["value"] = Count(night.prob["sleep"][bed], expected)
        counts["called"] = Count(one_stage(night.called["sleep"][bed]), called)
    if night.scored:
        events_N = {}
        for name, task in INDICES.items():
            if not any((night.scored[t] == 1).any() for t in EVENT_TEXTS):
                continue  # stages alone were scored
            if name not in per_epoch and INDICES[name] not in night.found:
                events_N[name] = (night.scored[task][bed] == 1).astype(float)
            elif night.begun is not None:
                events_N[name] = count_index_events(name, night.begun)[bed].astype(float)
        counts["scored"] = Count(one_stage(night.scored["sleep"][bed]), events_N)
    return counts


def onsets_in_epochs(onset_s: np.ndarray, onsets_s: np.ndarray) -> np.ndarray:
    """How many events begin in each epoch, (N,); those before it and in gaps in the next one."""
    place = np.searchsorted(onsets_s + EPOCH_S, onset_s + 1e-6, side="right")
    return np.bincount(np.minimum(place, len(onsets_s) - 1), minlength=len(onsets_s)).astype(float)


def _hypnogram_rows(facts: Mapping, night: Night) -> list[dict]:
    """Latencies and WASO of the called and of the scored hypnogram, with what bounds them."""
    bed, figures = night.in_bed_N, {}
    if "sleep" in night.called:
        stage_N = night.called["sleep"][bed]
        figures["called"] = hypnogram_figures(night.onsets_s[bed], stage_N, night.lights)
        figures["value"] = figures["called"]
    if night.scored:
        stage_N = night.scored["sleep"][bed]
        figures["scored"] = hypnogram_figures(night.onsets_s[bed], stage_N, night.lights)
    notes = {}
    if night.lights.off_s is None:
        notes["sleep_latency_min"] = "lights off is not known: from the first analysed epoch"
    if night.lights.on_s is None:
        notes["waso_min"] = "lights on is not known: to the last analysed epoch"
    rows = []
    for name in ("sleep_latency_min", "rem_latency_min", "waso_min"):
        of_name = {way: found[name] for way, found in figures.items()}
        row = _quantity(facts, "sleep", name, "min", of_name)
        rows.append(row | ({"note": notes[name]} if name in notes else {}))
    return rows


def _rate(facts: Mapping, night: Night, counts: Mapping[str, Count], rate: str) -> dict:
    """Events per hour of the stages of one of RATES; ``counted``: the events themselves.

    Where events are not known the row counts epochs, with the range of events per hour that this
    would be.
    """
    index = RATES[rate][0]
    task, per_epoch = INDICES[index], facts["nights"]["events_per_epoch"].get(index)
    single = task in night.found
    what = "epochs with an event" if per_epoch is None and not single else "events"
    if single and "called" in counts:  # an event has one stage, as script 3 counts it
        counts = {**counts, "value": counts["called"]}
    found = {way: events_per_hour(c, rate) for way, c in counts.items() if index in c.events_N}
    per_hour = {way: figure for way, (_, figure) in found.items()}
    row = _quantity(facts, task, rate, f"{what} per hour of {RATES[rate][2]}", per_hour)
    row["counted"] = {way: n_events for way, (n_events, _) in found.items()}
    if task in night.not_counted:
        row["reason"] = row["called_reason"] = night.not_counted[task]
    elif "sleep" not in night.prob and task in night.prob:
        row["reason"] = "the probe file holds no probe for sleep, so no time of sleep is known"
    elif single:
        row["found_by"] = "seconds"
        if row["rests_on"] is not None and facts.get("events"):
            error = facts["events"]["indices"].get(rate)
            row["rests_on"] |= {"error_on_test_nights": error}
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


def _quantity(
    facts: Mapping, task: str | None, name: str, unit: str, figures: Mapping[str, Figure]
) -> dict:
    """A row of the summary; ``figures`` by way: value, called, scored, those that can be had.

    ``rests_on`` is the calibration behind it; None without a probe.
    """
    row = {"name": name, "unit": unit, "value": None, "called": None, "scored": None}
    for way, figure in figures.items():
        if isinstance(figure, Undefined):
            row["reason" if way == "value" else f"{way}_reason"] = figure.reason
        else:
            row[way] = figure
    if "value" not in figures:
        row["reason"] = "the probe file holds no probe for it"
    row |= {"definition": MEANINGS[name].definition, "source": MEANINGS[name].source}
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
    """Cohen's kappa and accuracy of the called stages against the scorer's, in bed.

    None without both.
    """
    if night.scored is None or "sleep" not in night.called:
        return None
    scored_N, called_N = night.scored["sleep"], night.called["sleep"]
    known = (scored_N >= 0) & night.in_bed_N
    scored_N, called_N = scored_N[known], called_N[known]
    if not known.any():
        reason = "no scored epoch between lights off and on"
        return {"n_epochs": 0, "accuracy": None, "kappa": None, "reason": reason}
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
    ways = {read_out["normalise"] for read_out in content["probes"]["read_outs"].values()}
    if "night" in ways and hours < SHORT_HOURS:
        lines.append(
            f"Features are standardised within the recording, and {hours:.2g} hours of it are "
            "little to rest on."
        )
    lights = content["lights"]
    if None in (lights["off_s"], lights["on_s"]) and content["epochs"] == "on a 30-s grid":
        lines.append(
            "Lights off and on are not both known (--lights_off, --lights_on tell them): sleep "
            "efficiency counts all analysed time."
        )
    elif (lights["not_analysed_min"] or 0) > 1:
        lines.append(
            f"{lights['not_analysed_min']:.0f} min from lights off to lights on are in no epoch: "
            "they count in the time in bed and lower sleep efficiency."
        )
    return lines
