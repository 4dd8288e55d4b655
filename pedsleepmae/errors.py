"""Errors that are a sentence for the user, exit codes, and checks of paths."""

import dataclasses
import traceback
from pathlib import Path

EXIT_DONE, EXIT_FAILED, EXIT_BAD_SETTINGS, EXIT_SKIPPED = 0, 1, 2, 3


class SettingsError(ValueError):
    """A setting cannot be used; the message is one sentence for the person who wrote it."""


def require_folder(path: Path, key: str, remedy: str) -> None:
    """Raise SettingsError unless ``path`` (the value of setting ``key``) is a folder."""
    if not path.is_dir():
        raise SettingsError(f"{key}: there is no folder {path}; {remedy}")


def require_file(path: Path, key: str, remedy: str) -> None:
    """Raise SettingsError unless ``path`` (the value of setting ``key``) is a file."""
    if not path.is_file():
        raise SettingsError(f"{key}: there is no file {path}; {remedy}")


def as_plain_dict(settings) -> dict:
    """Settings as nested dicts of strings, numbers, booleans and lists (for YAML, checkpoints)."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(settings))


class ProbeError(ValueError):
    """The probes cannot be run on these data; the message says why and what to do."""


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


class GenerationError(ValueError):
    """What was asked for cannot be generated; the message says why and what to do."""
