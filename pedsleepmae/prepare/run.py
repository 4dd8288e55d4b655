"""Script 1: many recordings in parallel, restartable.

What a finished recording gave stands in `<examples_dir>/.prepared/<patient>_<study>.json`, with a
fingerprint of everything that it depends on: a run that was killed goes on from there, and a
changed setting or file makes anew what depends on it and nothing else.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from pedsleepmae.channels import CHANNELS, Absent, Source, resolve_channels
from pedsleepmae.errors import SettingsError, bounded, where_it_failed
from pedsleepmae.machine import keep_freed_memory
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
from pedsleepmae.prepare.workers import holder, in_parallel
from pedsleepmae.splits import SplitSettings
from pedsleepmae.store import (
    Examples,
    example_folder,
    example_name,
    partial_path,
    remove_partial,
    write_examples,
    write_whole,
)

# Raised when what is written for the same recording and settings changes.
PREPARE_VERSION = 3
TRACEBACK_SUFFIX = ".traceback.txt"

DEADLY = (
    "the process that read it died more than once (killed for its memory, or crashed over a "
    "damaged file); it is tried again by the next run"
)


@dataclass
class PreparePaths:
    """Folders."""

    recordings_dir: Path = Path("data/nch")
    """Folder with the recordings (searched with its sub-folders) and their annotation files."""
    examples_dir: Path = Path("data/examples")
    """Written: one HDF5 file for each 30-s example, in a folder for each study."""
    batches_dir: Path = Path("data/batches")
    """Written: train/, val/, test/ with files of 128 examples, splits.csv, studies.csv, report."""
    health_dir: Path | None = None
    """NCH's Health_Data folder (age, sex); none: found beside the recordings if it is there."""


@dataclass
class ClusterSettings:
    """Dask cluster, for more than one machine."""

    address: str | None = None
    """Address of a running Dask scheduler, such as tcp://node1:8786; none: this machine alone."""


@dataclass
class PrepareSettings(ExampleSettings):
    """Recordings and annotations to examples and batch files."""

    paths: PreparePaths = field(default_factory=PreparePaths)
    split: SplitSettings = field(default_factory=SplitSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    keep_examples: bool = True
    """Leave the per-example files in place after grouping."""
    n_workers: int = bounded(2, 1)
    """Recordings prepared at the same time."""
    seed: int = bounded(0, 0, 2**32 - 1)
    """Draws the split and the order of the examples in the batch files."""
    strict: bool = False
    """Exit with 3 when any recording was left out."""
    inspect: Path | None = None
    """Only print which of the 16 channels this EDF file holds, from what, at which rate and
    scale."""

    def check(self) -> None:
        super().check()
        held_out = self.split.val_fraction + self.split.test_fraction
        if held_out >= 1:
            raise SettingsError(
                f"split.val_fraction + split.test_fraction is {held_out:g}; keep it below 1 so "
                "that patients remain for training"
            )


def prepare_study(
    study: Study,
    settings: ExampleSettings,
    examples_dir: Path,
    run: str = "",
    fitted: Standards | None = None,
) -> Outcome:
    """Write a study's example files, whole folder or none, and its state; never stops the run.

    Only a full or read-only disk is raised (OSError): every further recording would fail too.
    ``run``: the holder of the folder (see only_run_in) for whom this is done.
    """
    if study.problem:  # it may name the study of another, good recording: touch nothing
        return _with_header(_unusable(study, study.problem), study, settings)
    keep_freed_memory()
    mark = ""  # what may pass (a failing disk, a full memory) is tried again by the next run
    trace = ""
    try:
        mark = fingerprint(study, settings, fitted)
        examples, outcome = build_examples(study, settings, fitted)
    except (RecordingError, AnnotationError, UnusableRecording) as error:
        outcome = _with_header(_unusable(study, str(error)), study, settings)
    except UNFORESEEN as error:
        # What nobody foresaw in one of 4,000 recordings must not cost the other 3,999.
        mark, outcome = "", _unusable(study, _describe_unforeseen(study, error))
        trace = where_it_failed(error)
    outcome = replace(outcome, fingerprint=mark)
    if holder(examples_dir) != run:
        return outcome  # a worker whose run was killed: another run holds the folder by now
    state = _state_path(examples_dir, outcome.key)
    state.unlink(missing_ok=True)
    log = traceback_path(examples_dir, outcome.key)
    log.unlink(missing_ok=True)
    folder = example_folder(examples_dir, outcome.patient_id, outcome.study_id)
    shutil.rmtree(folder, ignore_errors=True)
    if outcome.usable:
        _write_folder(folder, examples)
    if trace:
        with write_whole(log) as temporary:
            temporary.write_text(trace, encoding="utf-8")
    with write_whole(state) as temporary:
        temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    return outcome


def _describe_unforeseen(study: Study, error: Exception) -> str:
    if isinstance(error, OSError):
        name = Path(error.filename).name if error.filename else study.edf.name
        return f"{name}: cannot be read ({error.strerror})"
    log = f".prepared/{study.key}{TRACEBACK_SUFFIX}"
    return (
        f"unforeseen {type(error).__name__}: {error}; please report it with {log} in "
        "paths.examples_dir"
    )


def traceback_path(examples_dir: Path, key: str) -> Path:
    """Where the traceback of a recording's unforeseen error stands, beside its state."""
    return Path(examples_dir) / ".prepared" / f"{key}{TRACEBACK_SUFFIX}"


def _unusable(study: Study, reason: str) -> Outcome:
    return Outcome(study.patient_id, study.study_id, study.edf.name, reason=reason)


def _with_header(outcome: Outcome, study: Study, settings: ExampleSettings) -> Outcome:
    """An unusable recording with what its header tells, where it can be read at all."""
    try:
        recording = open_edf(study.edf)
    except (RecordingError, *UNFORESEEN):
        return outcome
    sources = dict(
        zip(
            (channel.name for channel in CHANNELS),
            resolve_channels(recording.signals, settings.stand_ins),
            strict=True,
        )
    )
    return replace(
        outcome,
        duration_s=recording.duration_s,
        rates_hz=native_rates(recording),
        channels={name: s.how for name, s in sources.items() if isinstance(s, Source)},
        absent={name: s.reason for name, s in sources.items() if isinstance(s, Absent)},
        remarks=recording.remarks,
        simulated=recording.simulated,
    )


def _write_folder(folder: Path, examples: Examples) -> None:
    unfinished = partial_path(folder)
    unfinished.mkdir(parents=True)
    paths = [unfinished / example_name(folder.name, k) for k in range(len(examples))]
    write_examples(paths, examples)
    unfinished.rename(folder)


def measure_study(
    study: Study, settings: ExampleSettings, examples_dir: Path
) -> dict[str, tuple[int, float, float]]:
    """(n, sum, sum of squares) of each channel over a study's scored epochs; {} if unusable.

    Kept beside the state of the study, so that it is read once however often a run is restarted.
    """
    mark = fingerprint(study, settings)
    path = _state_path(examples_dir, f"{study.key}.moments")
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["fingerprint"] == mark:
            return stored["moments"]
    try:
        moments = _moments(study, settings)
    except (RecordingError, AnnotationError, UnusableRecording):
        moments = {}  # prepare_study says why, in studies.csv
    except UNFORESEEN:
        return {}
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps({"fingerprint": mark, "moments": moments}))
    return moments


def _moments(study: Study, settings: ExampleSettings) -> dict[str, tuple[int, float, float]]:
    """Moments of a study that prepare_study will use, {} of one with too few channels."""
    recording, labels = read_study(study, settings)
    moments = {}
    found_in_turn = cut_channels(recording, labels.onsets_s, settings.stand_ins)
    for channel, found in zip(CHANNELS, found_in_turn, strict=True):
        if not isinstance(found, Absent):
            x_NT = found[1].astype(np.float64)
            moments[channel.name] = (x_NT.size, float(x_NT.sum()), float((x_NT**2).sum()))
    return moments if len(moments) >= settings.min_channels else {}


def fit_standard(all_moments: Iterable[Mapping[str, tuple[int, float, float]]]) -> dict:
    """Channel -> (mean, sd) over the training patients' studies, for scaling "fitted"."""
    totals: dict[str, np.ndarray] = {}
    for moments in all_moments:
        for name, values in moments.items():
            totals[name] = totals.get(name, np.zeros(3)) + np.array(values)
    fitted = {}
    for name, (n, total, squares) in totals.items():
        if n:
            mean = total / n
            fitted[name] = (mean, float(np.sqrt(max(squares / n - mean**2, 0.0))) or 1.0)
    return fitted


def fingerprint(study: Study, settings: ExampleSettings, fitted: Standards | None = None) -> str:
    """16 hexadecimal digits of all that a study's examples depend on."""
    files = []
    for path in filter(None, (study.edf, study.annotations)):
        stat = path.stat()
        files.append((path.name, stat.st_size, stat.st_mtime_ns))
    values = {item.name: getattr(settings, item.name) for item in fields(ExampleSettings)}
    depends = [PREPARE_VERSION, values | {"fitted": fitted or {}}, study.problem, files]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def finished_outcome(
    study: Study, settings: ExampleSettings, examples_dir: Path, fitted: Standards | None = None
) -> Outcome | None:
    """What an earlier run made of a study, None when it has to be made (anew)."""
    if study.problem:
        return _with_header(_unusable(study, study.problem), study, settings)
    path = _state_path(examples_dir, study.key)
    if not path.exists():
        return None
    outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
    try:
        return outcome if outcome.fingerprint == fingerprint(study, settings, fitted) else None
    except OSError:  # a file is gone since the folder was listed
        return None


def has_examples(outcome: Outcome, examples_dir: Path) -> bool:
    """True when all example files of a usable study are there (an unusable one needs none)."""
    if not outcome.usable:
        return True
    folder = example_folder(examples_dir, outcome.patient_id, outcome.study_id)
    return folder.is_dir() and sum(1 for _ in os.scandir(folder)) == outcome.n_examples


def prepare_studies(
    studies: Iterable[Study],
    settings: ExampleSettings,
    examples_dir: Path,
    fitted: Standards | None = None,
) -> Iterator[tuple[Study, Outcome]]:
    """Prepare studies in parallel, in any order, by the workers in force."""
    _make_ready(examples_dir)
    work = partial(
        prepare_study,
        settings=settings,
        examples_dir=examples_dir,
        run=holder(examples_dir),
        fitted=fitted,
    )
    return in_parallel(work, list(studies), partial(_unusable, reason=DEADLY), examples_dir)


def measure_studies(
    studies: Iterable[Study], settings: ExampleSettings, examples_dir: Path
) -> Iterator[tuple[str, dict[str, tuple[int, float, float]]]]:
    """(key, moments) of the studies that can be opened, in any order."""
    _make_ready(examples_dir)
    work = partial(measure_study, settings=settings, examples_dir=examples_dir)
    named = [study for study in studies if not study.problem]
    found = in_parallel(work, named, _no_moments, examples_dir)
    return ((study.key, moments) for study, moments in found)


def _no_moments(study: Study) -> dict:
    return {}  # prepare_study will list it


def _make_ready(examples_dir: Path) -> None:
    Path(examples_dir).mkdir(parents=True, exist_ok=True)
    remove_partial(Path(examples_dir), ".*.partial", ".prepared/.*.partial")


def _state_path(examples_dir: Path, key: str) -> Path:
    return Path(examples_dir) / ".prepared" / f"{key}.json"
