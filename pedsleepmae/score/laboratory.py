"""The figures of a night as a sleep laboratory reports them: what they mean, how they are counted.

Axes: **N** epochs in bed, **K** stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pedsleepmae.probe.nights import EPOCH_MINUTES, INDICES, MIN_SLEEP_HOURS
from pedsleepmae.score.lights import Lights
from pedsleepmae.tasks import STAGES

# ------------------------------------------------------------------ what they mean
_MANUAL = "AASM Manual for the Scoring of Sleep and Associated Events, version 3 (2023)"
_REPORTED = f"{_MANUAL}: parameters to be reported"
_STAGES = f"{_MANUAL}: staging rules for children, parameters to be reported"
_BREATHING = (
    f"{_MANUAL}: respiratory rules for children, by which an event lasts two breaths or more; "
    "ICSD-3-TR (2023), whose criterion of 1 an hour in children leaves central apneas out"
)
_OXYGEN = f"{_MANUAL}: parameters to be reported, a fall by 3 % or 4 %"
_AROUSAL = f"{_MANUAL}: arousal rule, a shift of EEG frequency of 3 s or more after 10 s of sleep"
_OWN = "this software"


class Meaning(NamedTuple):
    """A quantity in words: its name, how it is defined, and who defines it so."""

    title: str
    definition: str
    source: str


MEANINGS = {
    "analysed_min": Meaning(
        "time analysed",
        "Epochs that the probes scored, between lights off and lights on where these are known.",
        _OWN,
    ),
    "time_in_bed_min": Meaning(
        "time in bed", "Lights off to lights on, the total recording time of AASM.", _REPORTED
    ),
    "sleep_min": Meaning(
        "total sleep time (TST)",
        "Time in N1, N2, N3 and R from lights off to lights on.",
        _REPORTED,
    ),
    "sleep_efficiency": Meaning(
        "sleep efficiency",
        "Total sleep time in % of the time in bed; of the time analysed where lights off or on is "
        "not known.",
        _REPORTED,
    ),
    "sleep_latency_min": Meaning(
        "sleep latency",
        "Lights off to the start of the first epoch of any sleep; as expected value the called "
        "one, since a sum of probabilities has no onset.",
        _REPORTED,
    ),
    "rem_latency_min": Meaning(
        "REM latency",
        "Start of the first epoch of sleep to that of the first in R; as expected value the called "
        "one.",
        _REPORTED,
    ),
    "waso_min": Meaning(
        "wake after sleep onset (WASO)",
        "Time in W from the first epoch of sleep to lights on; as expected value the called one.",
        _REPORTED,
    ),
    **{
        f"{stage}_min": Meaning(
            f"stage {stage}", f"Time in {stage} from lights off to lights on.", _STAGES
        )
        for stage in STAGES
    },
    **{
        f"{stage}_percent": Meaning(
            f"stage {stage}, share", f"Time in {stage} in % of total sleep time.", _STAGES
        )
        for stage in STAGES[1:]
    },
    "apnea_hypopnea_index": Meaning(
        "apnea-hypopnea index (AHI)",
        "Apneas and hypopneas of all types, central ones too, in sleep, per hour of sleep.",
        _BREATHING,
    ),
    "ahi_rem": Meaning("AHI in REM", "Apneas and hypopneas in R, per hour of R.", _BREATHING),
    "ahi_nrem": Meaning(
        "AHI in NREM", "Apneas and hypopneas in N1, N2 and N3, per hour of these.", _BREATHING
    ),
    "desaturation_index": Meaning(
        "oxygen desaturation index (ODI)",
        "Oxygen desaturations in sleep, per hour of sleep, by the depth that the scorers behind "
        "the probes asked for.",
        _OXYGEN,
    ),
    "arousal_index": Meaning(
        "arousal index", "EEG arousals in sleep, per hour of sleep.", _AROUSAL
    ),
}


class Undefined(NamedTuple):
    """In place of a figure that a night does not have."""

    reason: str


Figure = float | Undefined


# ------------------------------------------------------------------ how they are counted
@dataclass(frozen=True)
class Count:
    """The epochs in bed in one way of counting them.

    ``stage_NK``: how much of each epoch is in each stage, its probabilities or 1 for one of them;
    0 throughout where it was not scored. ``events_N``: by the names of INDICES, how many events (or
    epochs with one) each epoch counts, whatever its stage.
    """

    stage_NK: np.ndarray
    events_N: Mapping[str, np.ndarray]

    @property
    def minutes_K(self) -> np.ndarray:
        return self.stage_NK.sum(0) * EPOCH_MINUTES

    def events_by_stage(self, index: str) -> np.ndarray:
        """Events of an index in each stage, (K,): those in sleep are the sum of all but the first.

        With probabilities: an epoch's events go to its stages in their shares.
        """
        return self.events_N[index] @ self.stage_NK


def one_stage(stage_N: np.ndarray) -> np.ndarray:
    """``stage_NK`` of a hypnogram: 1 for each epoch's stage; 0 throughout where it is -1."""
    return (stage_N[:, None] == np.arange(len(STAGES))).astype(float)


RATES = {  # index -> (the one of INDICES whose events it counts, stages that count, in words)
    "apnea_hypopnea_index": ("apnea_hypopnea_index", slice(1, 5), "sleep"),
    "ahi_rem": ("apnea_hypopnea_index", slice(4, 5), "REM sleep"),
    "ahi_nrem": ("apnea_hypopnea_index", slice(1, 4), "NREM sleep"),
    "desaturation_index": ("desaturation_index", slice(1, 5), "sleep"),
    "arousal_index": ("arousal_index", slice(1, 5), "sleep"),
}
assert {index for index, _, _ in RATES.values()} == set(INDICES)


def events_per_hour(count: Count, rate: str) -> tuple[float, Figure]:
    """(events, events per hour) of one of RATES, in its stages; undefined on too little of them."""
    index, stages, words = RATES[rate]
    n_events = float(count.events_by_stage(index)[stages].sum())
    minutes = float(count.minutes_K[stages].sum())
    least_min = 60 * MIN_SLEEP_HOURS
    if minutes == 0:
        return n_events, Undefined(f"no {words}")
    if minutes < least_min:
        return n_events, Undefined(f"less than {least_min:g} minutes of {words}")
    return n_events, 60 * n_events / minutes


def stage_shares(count: Count) -> dict[str, Figure]:
    """Each stage of sleep in % of total sleep time."""
    minutes_K = count.minutes_K
    names = [f"{stage}_percent" for stage in STAGES[1:]]
    if minutes_K[1:].sum() == 0:
        return dict.fromkeys(names, Undefined("no sleep"))
    return dict(zip(names, (100 * minutes_K[1:] / minutes_K[1:].sum()).tolist(), strict=True))


def hypnogram_figures(
    onsets_s: np.ndarray, stage_N: np.ndarray, lights: Lights
) -> dict[str, Figure]:
    """Sleep latency, REM latency and WASO, minutes, of a hypnogram in bed; -1: not scored.

    Where lights off is not known, the first epoch stands for it.
    """
    asleep, rem = np.flatnonzero(stage_N > 0), np.flatnonzero(stage_N == STAGES.index("R"))
    if not len(asleep):
        names = ("sleep_latency_min", "rem_latency_min", "waso_min")
        return dict.fromkeys(names, Undefined("no sleep"))
    onset_s = float(onsets_s[asleep[0]])
    off_s = onsets_s[0] if lights.off_s is None else lights.off_s
    awake_N = stage_N[asleep[0] :] == 0
    return {
        "sleep_latency_min": max(float(onset_s - off_s), 0.0) / 60,
        "rem_latency_min": (
            float(onsets_s[rem[0]] - onset_s) / 60 if len(rem) else Undefined("no REM sleep")
        ),
        "waso_min": float(awake_N.sum() * EPOCH_MINUTES),
    }
