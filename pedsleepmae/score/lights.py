"""Lights off and lights on: where the time in bed begins and ends, told by settings or by rows."""

from dataclasses import dataclass

import numpy as np

from pedsleepmae.channels import EPOCH_S
from pedsleepmae.errors import SettingsError
from pedsleepmae.prepare.annotations import Scoring
from pedsleepmae.prepare.cells import DAY_S, as_clock, as_decimal


@dataclass(frozen=True)
class Lights:
    """Lights off and on in seconds from the recording's start, None where not known.

    ``off_from``, ``on_from``: who says so, "settings" or "annotations"; "" for nobody.
    """

    off_s: float | None = None
    on_s: float | None = None
    off_from: str = ""
    on_from: str = ""

    @property
    def known(self) -> bool:
        return self.off_s is not None and self.on_s is not None

    def in_bed(self, onsets_s: np.ndarray) -> np.ndarray:
        """Which epochs lie between lights off and on with half of their 30 s or more, (N,)."""
        middle_s = onsets_s + EPOCH_S / 2
        off_s = -np.inf if self.off_s is None else self.off_s
        on_s = np.inf if self.on_s is None else self.on_s
        return (middle_s >= off_s) & (middle_s <= on_s)


NOT_KNOWN = Lights()


def find_lights(
    off: str | None,
    on: str | None,
    scoring: Scoring | None,
    onsets_s: np.ndarray,
    duration_s: float,
    start_clock_s: float | None,
) -> Lights:
    """Lights of a recording: by the settings ``off`` and ``on``, else by the scoring's rows.

    ``onsets_s`` (N,): its epochs. ``start_clock_s``: the time of day at which the recording starts,
    seconds from midnight; None where the header does not tell it. SettingsError for settings that
    leave no time in bed. Rows that leave none say nothing.
    """
    rows = NOT_KNOWN if scoring is None else _lights_of_rows(scoring, duration_s)
    rows = rows if rows.in_bed(onsets_s).any() else NOT_KNOWN
    lights = Lights(
        rows.off_s if off is None else _place(off, "lights_off", duration_s, start_clock_s),
        rows.on_s if on is None else _place(on, "lights_on", duration_s, start_clock_s),
        rows.off_from if off is None else "settings",
        rows.on_from if on is None else "settings",
    )
    if lights.known and lights.on_s <= lights.off_s:
        raise SettingsError(_not_after(on or "of the annotations", off or "of the annotations"))
    if not lights.in_bed(onsets_s).any():
        raise SettingsError("lights_off, lights_on: no epoch lies between them; mend them")
    return lights


def check_lights(off: str | None, on: str | None) -> None:
    """SettingsError for what is no time, or is wrong in every recording."""
    times = [
        _read_time(text, key)
        for text, key in ((off, "lights_off"), (on, "lights_on"))
        if text is not None
    ]
    if len(times) < 2 or times[0][1] != times[1][1]:
        return
    (off_s, is_clock), (on_s, _) = times
    if on_s == off_s or (on_s < off_s and not is_clock):  # clock times may pass midnight
        raise SettingsError(_not_after(on, off))


def _not_after(on: str, off: str) -> str:
    rule = "a clock time is the first one after the recording's start"
    return f"lights_on {on} is not after lights_off {off} ({rule}); mend one of them"


def _read_time(text: str, key: str) -> tuple[float, bool]:
    """(seconds, whether from midnight) of a clock time or of seconds from the recording's start."""
    if (seconds := as_decimal(text)) is not None and seconds >= 0:
        return seconds, False
    if (seconds := as_clock(text)) is not None and seconds < DAY_S:
        return seconds, True
    raise SettingsError(
        f"{key} is {text[:30]!r}; give a clock time such as 21:30:00 or seconds from the "
        "recording's start such as 1800"
    )


def _place(text: str, key: str, duration_s: float, start_clock_s: float | None) -> float:
    """A setting's time in seconds from the recording's start; SettingsError where it is not in it.

    No sentence may tell the time at which the recording starts: it is the patient's.
    """
    remedy = f"give seconds from its start, 0 to {duration_s:g}"
    time_s, is_clock = _read_time(text, key)
    if is_clock and start_clock_s is None:
        raise SettingsError(
            f"{key} is {text}, and the recording's header has no start time; {remedy}"
        )
    if is_clock:
        time_s = (time_s - start_clock_s) % DAY_S
    if time_s > duration_s:
        raise SettingsError(f"{key} {text} is not within the recording; {remedy}")
    return time_s


def _lights_of_rows(scoring: Scoring, duration_s: float) -> Lights:
    """Lights by a scoring's rows, of which a night may hold several.

    Off is the last row before the sleep that was scored, on the first after it: a light in between
    is an interruption, one before it a test. Without scored sleep: the first and the last.
    """
    off_s = [t for t in sorted(scoring.lights_off_s) if 0 <= t <= duration_s]
    on_s = [t for t in sorted(scoring.lights_on_s) if 0 <= t <= duration_s]
    asleep_s = scoring.stage_onsets_s[scoring.stages > 0]
    if len(asleep_s):
        off_s = [t for t in off_s if t <= asleep_s[0]][-1:] or off_s
        on_s = [t for t in on_s if t >= asleep_s[-1]][:1] or on_s
    first_s = off_s[0] if off_s else None
    last_s = on_s[-1] if on_s and on_s[-1] > (first_s or 0) else None
    told = ["annotations" if time_s is not None else "" for time_s in (first_s, last_s)]
    return Lights(first_s, last_s, *told)
