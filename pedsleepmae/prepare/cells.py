"""What a cell of a table says: numbers with a point or a comma, times of day, nothing."""

import itertools
import re
from collections.abc import Iterable

DAY_S = 86400.0
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"\d{1,3}(,\d{3})*", re.ASCII)
# 22:15, 22:15:00, 22:15:00.5, 10:15:00 pm, and behind a date, which does not count.
_CLOCK = re.compile(
    r"([\w./-]{1,20}[ T]{1,3})?"
    r"(?P<h>\d{1,2}):(?P<min>[0-5]\d)(:(?P<s>[0-5]\d([.,]\d*)?))?( ?(?P<half>[ap])\.?m\.?)?",
    re.ASCII | re.IGNORECASE,
)


def as_decimal(text: str) -> float | None:
    """A number with a point or a comma before its decimals; None for any other text."""
    text = text.strip()
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def as_clock(text: str) -> float | None:
    """Seconds of hours:minutes[:seconds], with am or pm or without; None for any other text."""
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    hours = int(match["h"])
    if match["half"]:
        hours = hours % 12 + (12 if match["half"].lower() == "p" else 0)
    return 3600 * hours + 60 * int(match["min"]) + float((match["s"] or "0").replace(",", "."))


def as_onset(text: str, start_s: float | None) -> float | None:
    """Seconds from recording start: a number, or a time; None for any other text.

    ``start_s``: time of day of the start, seconds from midnight; a time of day then lies from an
    hour before it to 23 hours after. None: a time counts from the start, too.
    """
    seconds = as_decimal(text)
    if seconds is not None:
        return seconds
    seconds = as_clock(text)
    if seconds is None or start_s is None:
        return seconds
    return (seconds - start_s + 3600) % DAY_S - 3600 if seconds < DAY_S else None


def is_clock(text: str) -> bool:
    return as_decimal(text) is None and as_clock(text) is not None


def is_blank(text: str) -> bool:
    """Whether a cell says that there is no value; "n/a" is how BIDS writes it."""
    return text.strip().lower() in ("", "n/a", "na", "-")


def counts_thousands(onsets: Iterable[str]) -> bool:
    """Whether commas in numbers such as 990 and 1,020 are no decimal ones: then the rows ascend."""
    whole = [onset for onset in map(str.strip, onsets) if _WHOLE.fullmatch(onset)]
    if not any("," in onset for onset in whole):
        return False
    decimals = [as_decimal(onset) or 0.0 for onset in whole]
    thousands = [float(onset.replace(",", "")) for onset in whole]
    return any(b < a for a, b in itertools.pairwise(decimals)) and all(
        a <= b for a, b in itertools.pairwise(thousands)
    )
