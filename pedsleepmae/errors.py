"""What goes wrong, for the user: errors that are one sentence, exit codes, bounds of settings.

Every error that a user can mend is a :class:`UserError`: where, what was found, what is wanted,
what to do. All else is a defect of ours and keeps its traceback.
"""

import dataclasses
import errno
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

EXIT_DONE, EXIT_FAILED, EXIT_BAD_SETTINGS, EXIT_SKIPPED = 0, 1, 2, 3
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)  # what a place refuses for good
LARGEST = 2**63  # no number in a setting is as large
Inputs = TypeVar("Inputs")


class UserError(ValueError):
    """The message is one sentence for the user: where, got, wanted, remedy."""


class SettingsError(UserError):
    """A setting cannot be used."""


class ProbeError(UserError):
    """The probes cannot be run on these data."""


class GenerationError(UserError):
    """What was asked for cannot be generated."""


class Stopped(BaseException):
    """SIGTERM came; no Exception, so that nothing on the way takes it for a failure of its own."""


# ------------------------------------------------------------------ a script
def run_script(
    open_inputs: Callable[[], Inputs],
    work: Callable[[Inputs], int | None],
    again: str = "it goes on where it stopped",
) -> int:
    """The exit code of a script, and on stderr the sentence that goes with it.

    ``open_inputs`` looks at what the script was given and opens it, before anything is written:
    what fails there was a bad call (2). ``work`` does the rest and returns its exit code, none for
    done; what fails there is a failure (1), as is a signal, unless a setting turns out bad (2).
    ``again``: what the same command does after such a failure.
    """
    write_any_letter()
    signal.signal(signal.SIGTERM, _stop)
    try:
        try:
            inputs = open_inputs()
        except UserError as error:
            return tell(error, EXIT_BAD_SETTINGS)
        return work(inputs) or EXIT_DONE
    except SettingsError as error:
        return tell(error, EXIT_BAD_SETTINGS)
    except UserError as error:
        return tell(error, EXIT_FAILED)
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename or 'while reading or writing'})"
        if error.errno in NOT_ALLOWED:
            return tell(f"{what}; give a place that you may write to", EXIT_BAD_SETTINGS)
        remedy = f"make room or mend the disk and run it again: {again}"
        return tell(f"{what}; {remedy}", EXIT_FAILED)
    except (KeyboardInterrupt, Stopped):
        return tell(f"stopped by a signal; run it again: {again}", EXIT_FAILED)


def _stop(_number, _frame) -> NoReturn:
    raise Stopped


def tell(problem: Exception | str, exit_code: int) -> int:
    """Say on stderr, in one line with the script's name, what is wrong; gives back the code."""
    print(f"{Path(sys.argv[0]).name}: {printable(problem)}", file=sys.stderr)
    return exit_code


def printable(words: Exception | str) -> str:
    """In one line, control characters spelt out: what a file holds must not act on a terminal."""
    line = " ".join(str(words).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def write_any_letter() -> None:
    """Let no print fail because the terminal's encoding lacks a letter, such as the micro sign."""
    for stream, instead in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # tests and notebooks put other streams there
            stream.reconfigure(errors=instead)


def warn(sentence: str) -> None:
    """Say on stderr what may be wrong; nothing where there is nothing to say."""
    if sentence:
        tell(sentence, EXIT_DONE)


def where_it_failed(error: BaseException) -> str:
    """The traceback of an error, frame by frame, and the types of the errors on the way.

    Without their messages, which may quote what a file says of a patient: it is made to be sent.
    """
    lines = []
    while error is not None:
        lines += traceback.format_tb(error.__traceback__)
        lines.append(f"{type(error).__name__}\n")
        error = error.__cause__ or error.__context__
    return "".join(lines)


# ------------------------------------------------------------------ settings
def bounded(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A setting between bounds: from ``low`` to ``high``, ``above`` and ``below`` exclusive."""
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def check_bounds(settings: Any, prefix: str = "") -> None:
    """Raise SettingsError for the first setting, nested ones included, outside its bounds.

    No number may be infinite or NaN, or larger than a machine's whole numbers.
    """
    for item in dataclasses.fields(settings):
        value, key = getattr(settings, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{key}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not abs(number) < LARGEST:  # NaN neither
                got = f"{number:g}" if isinstance(number, float) else "too large"
                raise SettingsError(f"{key} is {got}; give a finite number below {LARGEST:.2g}")
        bounds = item.metadata.get("bounds")
        if bounds is None or value is None:
            continue
        low, high, above, below = bounds.values()
        fits = (low is None or value >= low) and (high is None or value <= high)
        fits = fits and (above is None or value > above) and (below is None or value < below)
        if not fits:
            raise SettingsError(f"{key} is {value:g}; give {_bounds_in_words(**bounds)}")


def _bounds_in_words(low, high, above, below) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    words = [] if low is None else [f"{low:g} or more"]
    words += [] if above is None else [f"more than {above:g}"]
    words += [] if high is None else [f"{high:g} or less"]
    words += [] if below is None else [f"less than {below:g}"]
    return " and ".join(words)


def require_folder(path: Path, key: str, remedy: str) -> None:
    """Raise SettingsError unless ``path`` (the value of setting ``key``) is a folder."""
    if not path.is_dir():
        raise SettingsError(f"{key}: there is no folder {path}; {remedy}")


def require_file(path: Path, key: str, remedy: str) -> None:
    """Raise SettingsError unless ``path`` (the value of setting ``key``) is a file."""
    if not path.is_file():
        raise SettingsError(f"{key}: there is no file {path}; {remedy}")


def as_plain_dict(settings: Any) -> dict[str, Any]:
    """Settings as nested dicts of strings, numbers, booleans and lists (for YAML, checkpoints)."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(settings))
