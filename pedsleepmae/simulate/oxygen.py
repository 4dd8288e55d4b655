"""Oxygen of a simulated night: a store in the lung that breathing fills and the body empties.

Axes: K control knots, S seconds. The alveolar oxygen pressure P follows one balance,

    dP/dt = ventilation (P_inspired - P) / tau - uptake,    tau = lung volume / alveolar ventilation

and the saturation is P's on the dissociation curve, seen later by the circulation time. So a fall
is deeper the longer the event, the younger the child (more uptake from a smaller lung), the lower
the baseline, and after an event from which it has not recovered: the terms of Sands et al., PLoS
Comput Biol 2009;5:e1000588, without their venous blood. Nothing is drawn here: the events of a
night and the child give the same curve wherever it is asked for.
"""

from collections.abc import Sequence

import numpy as np

from pedsleepmae.simulate import norms
from pedsleepmae.simulate.night import DESATURATION, RESPIRATORY, SHALLOW_DIP, Child, Event
from pedsleepmae.simulate.waves import KNOT_HZ, soften

INSPIRED_MMHG = 150.0  # oxygen in moist air at sea level
DEAD_SPACE = (
    0.3  # of a quiet breath: what is less reaches no alveolus (West, Respiratory Physiology)
)
_RECOVERY_S = 7.0  # deeper breaths after an event, as in `body.breathe`
_RECOVERY = 1.35
_AVERAGING_S = 3.0  # of the oximeter
_LEAST_DIP = 0.3  # percent; smaller falls are none
# Pressures and their saturations in percent (Severinghaus, J Appl Physiol 1979;46:599).
_MMHG = np.arange(10.0, 150.5, 0.5)
_PERCENT = 100 / (1 + 23400 / (_MMHG**3 + 150 * _MMHG))


def saturation(mmhg: np.ndarray) -> np.ndarray:
    """Percent of haemoglobin that holds oxygen at these pressures, 10 to 150 mmHg."""
    return np.interp(mmhg, _MMHG, _PERCENT)


def caused_saturation(child: Child, causes: Sequence[Event], n_knots: int) -> np.ndarray:
    """SpO2 below the child's baseline by these respiratory events, percent, (K,), 0 or less."""
    breath = np.ones(n_knots)
    for event in sorted(causes):
        first, last = round(event.onset_s * KNOT_HZ), round(event.end_s * KNOT_HZ)
        breath[first:last] = event.size if "Hypopnea" in event.name else 0.0
        breath[last : last + round(_RECOVERY_S * KNOT_HZ)] = _RECOVERY
    ventilation = np.clip((breath - DEAD_SPACE) / (1 - DEAD_SPACE), 0, None) / KNOT_HZ
    resting = float(np.interp(child.spo2_percent, _PERCENT, _MMHG))
    fall = norms.oxygen_fall_mmhg(child.age_years)
    fall *= norms.PRADER_WILLI["oxygen_fall"] if child.prader_willi else 1.0
    tau_s = (INSPIRED_MMHG - resting) / fall
    pressures, now, disturbed = np.full(n_knots, resting), resting, breath != 1
    for k in range(n_knots):
        if not disturbed[k] and abs(now - resting) < 0.05:
            continue
        # Less is taken up where the mixed venous blood has as little as the lung.
        uptake = fall * min(max((now - 28) / 25, 0.0), 1.0) / KNOT_HZ
        now += ventilation[k] * (INSPIRED_MMHG - now) / tau_s - uptake
        now = min(now, 130.0)
        pressures[k] = now
    below = np.minimum(saturation(pressures) - saturation(resting), 0)
    late = round(circulation_s(child) * KNOT_HZ)
    return soften(np.r_[np.zeros(late), below][:n_knots], _AVERAGING_S)


def circulation_s(child: Child) -> float:
    """From lung to finger and through the oximeter: the child's lag less the curve's flat part."""
    return child.desaturation_lag_s - 3


def falls(child: Child, causes: Sequence[Event], duration_s: float) -> list[Event | None]:
    """The fall of SpO2 after each event, in order; None where there is none.

    A DESATURATION from `norms.LEAST_DESATURATION` percent on (AASM), a SHALLOW_DIP below. It
    begins where the curve leaves its level and ends where two thirds are recovered.
    """
    n_knots = round(duration_s * KNOT_HZ) + 1
    curve = caused_saturation(child, causes, n_knots)
    late_s, found = circulation_s(child), []
    for event in causes:
        first = round((event.onset_s + late_s) * KNOT_HZ)
        last = round((event.end_s + late_s + 6) * KNOT_HZ)
        window = curve[first:last]
        if len(window) < 2 or window.argmin() == 0:
            found.append(None)
            continue
        low = first + int(window.argmin())
        top = curve[first : low + 1].max()
        size = top - curve[low]
        if size < _LEAST_DIP:
            found.append(None)
            continue
        begin = first + int(np.flatnonzero(curve[first : low + 1] > top - min(0.3, size / 4))[-1])
        after = np.flatnonzero(curve[low:] >= curve[low] + size * 2 / 3)
        end = low + int(after[0]) if len(after) else n_knots
        name = DESATURATION if size >= norms.LEAST_DESATURATION else SHALLOW_DIP
        found.append(Event(begin / KNOT_HZ, (end - begin) / KNOT_HZ, name, float(size)))
    return found


def night_saturation(child: Child, events: Sequence[Event], n_knots: int) -> np.ndarray:
    """SpO2 of a night below the baseline, percent, (K,): its causes' and what has no cause.

    A fall that no event of the night causes (spontaneous, or given by a file) is drawn from the
    same balance: even decline, then recovery with the time constant of the lung.
    """
    causes = [event for event in events if event.name in RESPIRATORY]
    duration_s = (n_knots - 1) / KNOT_HZ
    by_model = dict(zip(falls(child, causes, duration_s), causes, strict=True))
    dips = [event for event in events if event.name in (DESATURATION, SHALLOW_DIP)]
    seen = [by_model[dip] for dip in dips if dip in by_model]
    # Where a file gives the falls, none is the model's and its causes move nothing.
    curve = caused_saturation(child, causes if seen else [], n_knots)
    tau_s = (INSPIRED_MMHG - 100) / norms.oxygen_fall_mmhg(child.age_years) / 2
    for dip in (dip for dip in dips if dip not in by_model):
        first = round(dip.onset_s * KNOT_HZ)
        t = np.arange(min(n_knots - first, round((dip.duration_s + 40) * KNOT_HZ))) / KNOT_HZ
        fall_s = 0.65 * dip.duration_s
        down = np.clip(t / fall_s, 0, 1)
        curve[first : first + len(t)] -= (
            dip.size * down * np.exp(-np.clip(t - fall_s, 0, None) / tau_s)
        )
    return curve
