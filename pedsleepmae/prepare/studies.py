"""Studies prepared or measured in parallel, each once: what is finished is not done again.

What a finished recording gave stands in `<examples_dir>/.prepared/<patient>_<study>.json`, with a
fingerprint of everything that it depends on: a run that was killed goes on from there, and a
changed setting or file makes anew what depends on it and nothing else.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from pedsleepmae import disk, hdf5, store
from pedsleepmae.channels import CHANNEL_NAMES, CHANNELS, Absent, Source, resolve_channels
from pedsleepmae.errors import as_plain_dict, where_it_failed
from pedsleepmae.machine import holder, keep_freed_memory
from pedsleepmae.prepare.annotations import AnnotationError
from pedsleepmae.prepare.examples import (
    UNFORESEEN,
    ExampleSettings,
    Outcome,
    Standards,
    UnusableRecording,
    build_examples,
    cut_channels,
    native_rates,
    read_study,
)
from pedsleepmae.prepare.layouts import Study
from pedsleepmae.prepare.recordings import RecordingError, open_edf
from pedsleepmae.prepare.workers import Workers, in_parallel

# Raised when what is written for the same recording and settings changes.
PREPARE_VERSION = 6
STATES = ".prepared"
TRACEBACK_SUFFIX = ".traceback.txt"
UNUSABLE = (RecordingError, AnnotationError, UnusableRecording)  # named, with the reason

DEADLY = (
    "the process that read it died more than once (killed for its memory, or crashed over a "
    "damaged file); it is tried again by the next run"
)

Moments = dict[str, tuple[int, float, float]]  # channel -> (n, sum, sum of squares)


# ------------------------------------------------------------------ prepare
def prepare_studies(
    workers: Workers,
    studies: Sequence[Study],
    settings: ExampleSettings,
    examples_dir: Path,
    fitted: Standards | None = None,
) -> Iterator[tuple[Study, Outcome]]:
    """Prepare studies in parallel, in any order; see :func:`prepare_study`."""
    _make_ready(examples_dir)
    run = holder(examples_dir)
    work = partial(
        prepare_study, settings=settings, examples_dir=examples_dir, run=run, fitted=fitted
    )
    return in_parallel(workers, work, studies, partial(_unusable, reason=DEADLY), examples_dir)


def prepare_study(
    study: Study,
    settings: ExampleSettings,
    examples_dir: Path,
    run: str = "",
    fitted: Standards | None = None,
) -> Outcome:
    """Write a study's example files, whole folder or none, and its state; never stops the run.

    Only a full or read-only disk is raised (OSError): every further recording would fail too.
    ``run``: the holder of the folder (see only_run_in) for whom this is done. ``fitted``: what
    scaling "fitted" takes.
    """
    if study.problem:  # it may name the study of another, good recording: touch nothing
        return _unusable_with_header(study, study.problem, settings)
    keep_freed_memory()
    mark = trace = ""  # what may pass (a failing disk) has no mark: the next run tries it again
    try:
        mark = fingerprint(study, settings, fitted)
        examples, outcome = build_examples(study, settings, fitted)
    except UNUSABLE as error:
        outcome = _unusable_with_header(study, str(error), settings)
    except UNFORESEEN as error:
        # What nobody foresaw in one of 4,000 recordings must not cost the other 3,999.
        mark, outcome = "", _unusable(study, _describe_unforeseen(study, error))
        trace = where_it_failed(error)
    outcome = replace(outcome, fingerprint=mark)
    if holder(examples_dir) != run:
        return outcome  # a worker whose run was killed: another run holds the folder by now

    # The old state goes first and the new one comes last: killed between, the study is unfinished.
    state = examples_dir / STATES / f"{study.key}.json"
    state.unlink(missing_ok=True)
    log = examples_dir / STATES / f"{study.key}{TRACEBACK_SUFFIX}"
    log.unlink(missing_ok=True)
    folder = store.example_folder(examples_dir, study.patient_id, study.study_id)
    remove_examples(folder)
    if outcome.usable:
        _write_folder(folder, examples)
    if trace:
        disk.write_text(log, trace)
    disk.write_state(state, asdict(outcome))
    return outcome


def _unusable(study: Study, reason: str) -> Outcome:
    return Outcome(study.patient_id, study.study_id, study.edf.name, reason=reason)


def _unusable_with_header(study: Study, reason: str, settings: ExampleSettings) -> Outcome:
    """An unusable recording with what its header tells, where it can be read at all."""
    try:
        recording = open_edf(study.edf)
    except (RecordingError, *UNFORESEEN):
        return _unusable(study, reason)
    named = (settings.stand_ins, settings.units, settings.prefer)
    resolved = resolve_channels(recording.signals, *named)
    sources = dict(zip(CHANNEL_NAMES, resolved, strict=True))
    return replace(
        _unusable(study, reason),
        duration_s=recording.duration_s,
        rates_hz=native_rates(recording),
        channels={name: s.origin for name, s in sources.items() if isinstance(s, Source)},
        absent={name: s.reason for name, s in sources.items() if isinstance(s, Absent)},
        remarks=recording.remarks,
        simulated=recording.simulated,
    )


def _describe_unforeseen(study: Study, error: Exception) -> str:
    if isinstance(error, OSError):
        name = Path(error.filename).name if error.filename else study.edf.name
        return f"{name}: cannot be read ({error.strerror})"
    return (
        f"unforeseen {type(error).__name__}: {error}; please report it with "
        f"{STATES}/{study.key}{TRACEBACK_SUFFIX} in paths.examples_dir"
    )


def _write_folder(folder: Path, examples: store.Examples) -> None:
    unfinished = disk.partial_path(folder)
    unfinished.mkdir(parents=True)
    paths = [unfinished / store.example_name(folder.name, k) for k in range(len(examples))]
    store.write_examples(paths, examples)
    unfinished.rename(folder)


# ------------------------------------------------------------------ measure
def measure_studies(
    workers: Workers, studies: Iterable[Study], settings: ExampleSettings, examples_dir: Path
) -> Iterator[tuple[str, Moments]]:
    """(key, moments) of the studies that can be opened, in any order."""
    _make_ready(examples_dir)
    work = partial(measure_study, settings=settings, examples_dir=examples_dir)
    named = [study for study in studies if not study.problem]
    found = in_parallel(workers, work, named, lambda _: {}, examples_dir)
    return ((study.key, moments) for study, moments in found)


def measure_study(study: Study, settings: ExampleSettings, examples_dir: Path) -> Moments:
    """Moments of a study that will be used, {} of any other: preparing it tells why.

    Kept beside the state of the study, so that it is read once however often a run is restarted.
    """
    mark = fingerprint(study, settings)
    path = examples_dir / STATES / f"{study.key}.moments.json"
    stored = disk.read_state(path)
    if stored.get("fingerprint") == mark:
        return stored["moments"]
    moments = {}
    try:
        recording, labels = read_study(study, settings)
        found_in_turn = cut_channels(recording, labels.onsets_s, settings)
        for channel, found in zip(CHANNELS, found_in_turn, strict=True):
            if not isinstance(found, Absent):
                x_M = found[1][np.isfinite(found[1])].astype(np.float64)
                moments[channel.name] = (x_M.size, float(x_M.sum()), float((x_M**2).sum()))
    except UNUSABLE:
        moments = {}
    except UNFORESEEN:
        return {}
    if len(moments) < settings.min_channels:
        moments = {}
    disk.write_state(path, {"fingerprint": mark, "moments": moments})
    return moments


def fit_standard(all_moments: Iterable[Mapping[str, tuple[int, float, float]]]) -> Standards:
    """(mean, sd) of each channel over the training patients' studies, for scaling "fitted"."""
    totals: dict[str, np.ndarray] = {}
    for moments in all_moments:
        for name, values in moments.items():
            totals[name] = totals.get(name, 0) + np.array(values)
    fitted = {}
    for name, (n, total, squares) in totals.items():
        if n:
            mean = total / n
            fitted[name] = (mean, float(np.sqrt(max(squares / n - mean**2, 0.0))) or 1.0)
    return fitted


# ------------------------------------------------------------------ what is finished
def fingerprint(study: Study, settings: ExampleSettings, fitted: Standards | None = None) -> str:
    """16 hexadecimal digits of all that a study's examples depend on."""
    files = []
    for path in filter(None, (study.edf, study.annotations)):
        stat = path.stat()
        files.append((path.name, stat.st_size, stat.st_mtime_ns))
    values = as_plain_dict(settings)
    values = {item.name: values[item.name] for item in fields(ExampleSettings)}
    if not settings.prefer:  # a later setting counts once it is used: what is finished stays so
        del values["prefer"]
    if settings.text_table() is None:
        del values["annotation_table"]
    depends = [PREPARE_VERSION, values | {"fitted": fitted or {}}, study.problem, files]
    depends += [study.lights] if any(study.lights) else []
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def finished_outcome(
    study: Study, settings: ExampleSettings, examples_dir: Path, fitted: Standards | None = None
) -> Outcome | None:
    """What an earlier run made of a study, None when it has to be made (anew)."""
    if study.problem:
        return _unusable_with_header(study, study.problem, settings)
    state = disk.read_state(examples_dir / STATES / f"{study.key}.json")
    try:
        made = state.get("fingerprint") == fingerprint(study, settings, fitted)
        return Outcome(**state) if made else None
    except (OSError, TypeError):  # a file is gone by now, or another version's state
        return None


def has_examples(outcome: Outcome, examples_dir: Path) -> bool:
    """True when all example files of a usable study are there (an unusable one needs none)."""
    if not outcome.usable:
        return True
    folder = store.example_folder(examples_dir, outcome.patient_id, outcome.study_id)
    sizes = [entry.stat().st_size for entry in _entries(folder) if _is_example(entry, folder.name)]
    return len(sizes) == outcome.n_examples and len(set(sizes)) == 1


def forget_study(key: str, examples_dir: Path) -> None:
    """Let a study count as unfinished."""
    (examples_dir / STATES / f"{key}.json").unlink(missing_ok=True)


# ------------------------------------------------------------------ what is ours to remove
def foreign_entry(study: Study, examples_dir: Path) -> Path | None:
    """What stands where a study's examples belong and is not of our making; None: nothing.

    Example files are known by their names, and by the study's state or the first one's content.
    """
    folder = store.example_folder(examples_dir, study.patient_id, study.study_id)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return folder
    entries = list(_entries(folder))
    for entry in entries:
        if not _is_example(entry, folder.name):
            return Path(entry.path)
    if not entries or (examples_dir / STATES / f"{study.key}.json").is_file():
        return None
    first = Path(min(entries, key=lambda entry: entry.name).path)
    with contextlib.suppress(hdf5.Hdf5Error), hdf5.open_file(first) as file:
        if "format_version" in file.attrs:
            return None
    return first


def remove_examples(folder: Path) -> None:
    """Remove a folder of example files; what else was put there stays, and the folder with it."""
    for entry in _entries(folder):
        if _is_example(entry, folder.name):
            os.unlink(entry.path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from entries


def _is_example(entry: os.DirEntry, key: str) -> bool:
    number = entry.name.removeprefix(f"{key}_sample_").removesuffix(".hdf5")
    named = number.isdecimal() and entry.name == store.example_name(key, int(number))
    return named and entry.is_file(follow_symlinks=False)


def _make_ready(examples_dir: Path) -> None:
    examples_dir.mkdir(parents=True, exist_ok=True)
    disk.remove_partial(examples_dir, ".*.partial", f"{STATES}/.*.partial")
