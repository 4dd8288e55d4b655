"""A child, its night and the events in it; drawing a child and a hypnogram, and scoring it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from pedsleepmae.simulate import norms
from pedsleepmae.simulate.norms import N1, N2, N3, REM, WAKE

FEWEST_EPOCHS = 20  # below that a night cannot hold all stages
AROUSAL, DESATURATION = "EEG arousal", "Oxygen Desaturation"
SHALLOW_DIP = "dip"  # a fall of SpO2 below 3 %, which nobody scores
# A scorer errs more beside a change of stage and less elsewhere: factors of STAGE_CONFUSION.
BESIDE_CHANGE, ELSEWHERE = 1.8, 0.7
RESPIRATORY = (*norms.APNEA_SHARES, *norms.HYPOPNEA_SHARES)


@dataclass(frozen=True)
class Child:
    """What stays the same between two nights of a child; factors are relative to the norm."""

    age_years: float
    sex: str
    severity: float
    arousability: float
    snoring: float
    spo2_percent: float
    desaturation_lag_s: float
    eeg_gain: float
    posterior_gain: float
    posterior_shift_hz: float
    spindle_shift_hz: float
    spindle_gain: float
    breath_factor: float
    heart_factor: float
    hypersynchrony: float
    muscle_gain: float
    prader_willi: bool = False
    eye_gain: float = 1.0
    scalp_muscle_uv: float = 0.0


class Event(NamedTuple):
    """Something that happens: seconds from the start of the recording, named as NCH names it.

    ``size``: flow that is left in a hypopnea (1: all), fall of SpO2 in percent in a desaturation,
    1 otherwise.
    """

    onset_s: float
    duration_s: float
    name: str
    size: float = 1.0

    @property
    def end_s(self) -> float:
        return self.onset_s + self.duration_s


@dataclass(frozen=True)
class Night:
    """One night: the truth that makes the signals, and the scoring that makes the labels.

    ``stages`` (M,) are the true stages from ``stage_onsets_s`` (M,) on, the first at 0.
    ``scored_stages`` (N,) belong to 30-s epochs at ``epoch_onsets_s`` (N,).
    """

    child: Child
    duration_s: float
    stage_onsets_s: np.ndarray
    stages: np.ndarray
    events: list[Event]
    epoch_onsets_s: np.ndarray
    scored_stages: np.ndarray
    scored_events: list[Event]

    def stage_at(self, times_s: np.ndarray) -> np.ndarray:
        """True stage at these times."""
        return self.stages[np.searchsorted(self.stage_onsets_s, times_s, side="right") - 1]

    def stage_of_seconds(self) -> np.ndarray:
        """True stage in the middle of each whole second, (S,)."""
        return self.stage_at(np.arange(int(self.duration_s)) + 0.5)


def draw_ages(rng: Generator, n: int) -> np.ndarray:
    """Ages in years, (n,): 6 months to 18 years, around NCH's mean of 8.8 and median of 7.9."""
    return 0.5 + 17.5 * rng.beta(1.3, 1.6, n)


def draw_child(rng: Generator, age_years: float) -> Child:
    """A child of this age.

    Spreads between children are ours: wide enough that no fixed threshold works for all.
    """
    return Child(
        age_years=float(age_years),
        sex="M" if rng.random() < 0.56 else "F",  # NCH: 2,068 boys, 1,604 girls
        severity=float(np.clip(rng.gamma(4.0, 0.25), 0.4, 2.2)),
        arousability=float(np.clip(rng.gamma(8.0, 1 / 8), 0.5, 1.8)),
        snoring=float(rng.beta(1.3, 1.8)),
        spo2_percent=float(rng.uniform(95.5, 98.8)),
        desaturation_lag_s=float(rng.uniform(12, 20)),
        eeg_gain=float(np.exp(0.2 * rng.standard_normal())),
        posterior_gain=float(np.exp(0.4 * rng.standard_normal())),
        posterior_shift_hz=float(0.4 * rng.standard_normal()),
        spindle_shift_hz=float(0.35 * rng.standard_normal()),
        spindle_gain=float(np.exp(0.3 * rng.standard_normal())),
        breath_factor=float(np.exp(0.1 * rng.standard_normal())),
        heart_factor=float(np.exp(0.1 * rng.standard_normal())),
        hypersynchrony=float(rng.uniform(0, 1) if age_years < 13 else 0.0),
        muscle_gain=float(np.exp(0.3 * rng.standard_normal())),
    )


def with_prader_willi(child: Child) -> Child:
    """The same child with Prader-Willi syndrome; rules and sources: `norms.PRADER_WILLI`."""
    return replace(
        child,
        severity=norms.PRADER_WILLI["severity"] * child.severity,
        muscle_gain=norms.PRADER_WILLI["muscle_gain"] * child.muscle_gain,
        spo2_percent=child.spo2_percent - norms.PRADER_WILLI_SPO2_LOWER,
        prader_willi=True,
    )


def draw_hypnogram(n_epochs: int, age_years: float, rng: Generator) -> np.ndarray:
    """Stages (n_epochs,) of one night, W N1 N2 N3 R as 0 to 4.

    The stages' budgets are drawn around `norms.stage_shares` and dealt out to cycles of
    N1-N2-N3-N2-R: most N3 to the first cycles, most R to the last. A recording shorter than two
    cycles gets two compressed ones, so that it holds all five stages. Wake lies before sleep
    onset, between, and at the end.
    """
    if n_epochs < FEWEST_EPOCHS:
        raise ValueError(
            f"a simulated night of {n_epochs} epochs cannot hold all stages; "
            f"give at least {FEWEST_EPOCHS} (10 minutes)"
        )
    # How long each stage lasts in this night, in epochs.
    spread = np.array([0.55, 0.15, 0.1, 0.18, 0.18])  # of each share between nights
    shares = norms.stage_shares(age_years)
    confused = norms.STAGE_CONFUSION - np.eye(5)
    confused[N1] *= BESIDE_CHANGE  # N1 is brief
    shares = shares - shares @ confused  # so that the scored shares are these
    shares = shares * np.exp(spread * rng.standard_normal(5) - spread**2 / 2)
    budget = _deal(n_epochs, shares, least=3 if n_epochs >= 60 else 1)

    # How the cycles share it.
    n_cycles = round(budget[1:].sum() / 2 / norms.cycle_minutes(age_years))
    n_cycles = max(n_cycles, 2 if n_epochs >= 60 else 1)
    order = np.arange(n_cycles)
    n3 = _deal(budget[N3], 0.55**order * rng.gamma(20, 0.05, n_cycles))
    rem = _deal(budget[REM], (order + 0.7) * rng.gamma(20, 0.05, n_cycles))
    n2 = _deal(budget[N2], (1 + 0.3 * order) * rng.gamma(20, 0.05, n_cycles))
    latency = round(budget[WAKE] * rng.uniform(0.3, 0.55))
    last_wake = round(budget[WAKE] * rng.uniform(0.03, 0.12))
    onset_n1 = min(budget[N1], 1 + rng.integers(3))
    sleep = [N1] * onset_n1
    for cycle in range(n_cycles):
        before = round(n2[cycle] * rng.uniform(0.35, 0.55))
        sleep += [N2] * before + [N3] * n3[cycle] + [N2] * (n2[cycle] - before)
        sleep += [REM] * rem[cycle]

    # Awakenings from N2 or R, and falling asleep again by N1.
    awake, drowsy = budget[WAKE] - latency - last_wake, budget[N1] - onset_n1
    for n_wake, n_n1 in _awakenings(awake, drowsy, rng):
        places = [i for i in range(onset_n1 + 1, len(sleep)) if sleep[i - 1] in (N2, REM)]
        place = int(rng.choice(places)) if places else len(sleep)
        sleep[place:place] = [WAKE] * n_wake + [N1] * n_n1
    return np.array([WAKE] * latency + sleep + [WAKE] * last_wake)


def _deal(total: int, weights: np.ndarray, least: int = 0) -> np.ndarray:
    """Whole numbers in proportion to the weights that sum to ``total`` (largest remainder).

    Numbers below ``least`` are raised to it at the cost of the largest.
    """
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact)[: total - counts.sum()]] += 1
    while counts.min() < least < counts.max():
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return counts


def _awakenings(awake: int, drowsy: int, rng: Generator) -> list[tuple[int, int]]:
    """(epochs W, epochs N1) of each awakening that together use up both budgets."""
    found = []
    while awake > 0 or drowsy > 0:
        n_wake = min(awake, int(rng.geometric(0.35))) if awake else 0
        n_n1 = min(drowsy, 1 + int(rng.random() < 0.3)) if drowsy else 0
        found.append((n_wake, n_n1))
        awake, drowsy = awake - n_wake, drowsy - n_n1
    return found


def night_without_events(
    child: Child, duration_s: float, epoch_onsets_s: np.ndarray, stages: np.ndarray, rng: Generator
) -> Night:
    """A night scored by these epochs (N,), with the true stages behind them, drawn.

    Before the first epoch the child is awake. Stages change up to 12 s before or after the
    epoch's boundary, so that epochs at a change are of two minds (hardest to score: Rosenberg).
    """
    changes = np.r_[0, np.flatnonzero(np.diff(stages)) + 1]
    onsets_s = np.maximum(epoch_onsets_s[changes] + rng.uniform(-12, 12, len(changes)), 0.5)
    return Night(
        child=child,
        duration_s=duration_s,
        stage_onsets_s=np.r_[0.0, np.maximum.accumulate(onsets_s)],
        stages=np.r_[WAKE, stages[changes]],
        events=[],
        epoch_onsets_s=epoch_onsets_s,
        scored_stages=stages,
        scored_events=[],
    )


def score_stages(stages: np.ndarray, rng: Generator) -> np.ndarray:
    """Epoch stages (N,) as a scorer writes them: confused by `norms.STAGE_CONFUSION`.

    Confusion is more frequent beside a change of stage; a stage that occurs is scored somewhere.
    """
    changes = np.diff(stages) != 0
    beside = np.r_[False, changes] | np.r_[changes, False]
    error = 1 - np.diag(norms.STAGE_CONFUSION)[stages]
    wrong = rng.random(len(stages)) < error * np.where(beside, BESIDE_CHANGE, ELSEWHERE)
    scored = stages.copy()
    others = norms.STAGE_CONFUSION * (1 - np.eye(5))
    for epoch in np.flatnonzero(wrong):
        weights = others[stages[epoch]]
        scored[epoch] = rng.choice(5, p=weights / weights.sum())
    for stage in np.unique(stages):
        if stage not in scored:
            scored[stages == stage] = stage
    return scored
