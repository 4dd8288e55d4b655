"""Script 4's work: recordings scored one after the other, from where an earlier run stopped."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import pandas as pd
from tqdm import tqdm

from pedsleepmae import disk, errors
from pedsleepmae.errors import SettingsError, UserError, as_plain_dict, bounded
from pedsleepmae.machine import only_run_in
from pedsleepmae.prepare.annotations import AnnotationError, count_onsets
from pedsleepmae.prepare.examples import UNFORESEEN, Outcome, ReadSettings, examples_to_score
from pedsleepmae.prepare.layouts import find_annotations, find_scoring, own_rows
from pedsleepmae.prepare.recordings import RecordingError, open_edf
from pedsleepmae.score import exports, files, nights, report
from pedsleepmae.score.lights import check_lights, find_lights
from pedsleepmae.score.night import Scorer, score_examples
from pedsleepmae.score.summary import summarise
from pedsleepmae.shipped import find_file
from pedsleepmae.store import Examples

SCORE_VERSION = 3  # raised when what is written for the same recording and settings changes
STATE, TRACEBACK = ".state.json", "traceback.txt"  # in the folder of a recording


@dataclass
class ScorePaths:
    """Files and folders."""

    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint of the encoder; the default ships, and is found from any folder."""
    probes: Path = Path("checkpoint/probes.npz")
    """Probes that script 3 fitted on this very encoder; the default ships, as the checkpoint."""
    adapter: Path | None = None
    """adapter.pt of script 3's mode lora, which fitted the probes with it; none: the encoder as it
    is."""
    output_dir: Path = Path("results/scored")
    """Written: a folder named after each recording with epochs.csv, summary.json, summary.csv,
    annotations.edf, hypnogram.json (YASA), <recording>_events.tsv (BIDS) and report.html; of
    several recordings nights.csv, a row each."""
    annotations: Path | None = None
    """The scoring of one recording (.tsv, .csv or .txt as annotation_table says, -nsrr.xml or
    EDF+); none: looked for beside each recording and in it."""


@dataclass
class ScoreSettings(ReadSettings):
    """Recordings to stages, events and a summary of each night; no medical device."""

    scaling: Literal["auto", "policy", "robust", "original"] = "auto"
    """Standardisation (see script 1); auto: that of the data that the probes were fitted on."""
    recordings: list[str] = field(default_factory=list)
    """What to score: EDF files, folders (searched with their sub-folders) and patterns such as
    'study*/*.edf' (** for folders of any depth); stand without --recordings, as in
    `4_score_recording.py FILE.edf FOLDER`."""
    paths: ScorePaths = field(default_factory=ScorePaths)
    use_annotations: bool = True
    """Score the epochs that a scorer scored, as script 1 cuts them, and show the agreement; false:
    pass annotations over and cut a 30-s grid."""
    grid_offset_s: float = bounded(0.0, 0, 1e6)
    """Without annotations: start of the first 30-s epoch, seconds from recording start."""
    lights_off: str | None = None
    """Lights off, clock time such as 21:30:00 or seconds from recording start such as 1800, in YAML
    in quotes; none: by the annotations. What lies before it counts in no figure of the night."""
    lights_on: str | None = None
    """Lights on, likewise; a clock time is the first one after the start of the recording."""
    far_share: float = bounded(0.01, 0.001, 0.5)
    """An epoch is flagged when its embedding lies farther from the training data than this share of
    the validation epochs did."""
    batch_size: int = bounded(64, 1, 1_000_000)
    """Epochs embedded at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto: the one in which the probes' embeddings were computed, but
    float32 where the machine is not faster in bfloat16."""
    strict: bool = False
    """Exit with 3 when any of several recordings could not be scored."""

    @property
    def of_one_file(self) -> bool:
        """True for one file, whether it is there or not; not for a folder or a pattern."""
        return len(self.recordings) == 1 and nights.names_file(self.recordings[0])

    def check(self) -> None:
        super().check()
        if self.recordings and not self.of_one_file and self.paths.annotations is not None:
            raise SettingsError(
                "paths.annotations: is the scoring of one recording, and several are given; leave "
                "it out: annotations beside each recording are found by their names"
            )
        check_lights(self.lights_off, self.lights_on)


def score_alone(scorer: Scorer, recording: Path, settings: ScoreSettings) -> tuple[dict, Path]:
    """As :func:`score_recording` under a progress bar, of a file that is the only one.

    UserError says why it cannot be scored; for what nobody foresaw it stands below a traceback.
    """
    try:
        name = files.safe_name(recording.stem)
        return score_recording(scorer, recording, name, settings, title="Scoring")
    except (UserError, OSError):
        raise
    except UNFORESEEN as error:
        print(errors.where_it_failed(error), file=sys.stderr)
        problem = f"unforeseen {type(error).__name__}: {error}; please report it"
        raise UserError(f"{recording.name}: {problem}") from error


def score_recording(
    scorer: Scorer, recording: Path, name: str, settings: ScoreSettings, title: str | None = None
) -> tuple[dict, Path]:
    """Score a recording and write the folder ``name``: its summary and where report.html is.

    UserError: it cannot be scored; OSError: the disk does not take its results.
    """
    mark = fingerprint(scorer, recording, settings)
    try:
        examples, outcome, told = read_examples(recording, settings)
    except OSError as error:
        path = Path(error.filename) if error.filename else recording
        raise RecordingError(f"{path.name}: cannot be read ({error.strerror or error})") from error
    night = replace(score_examples(scorer, examples, title), **told)
    summary = summarise(scorer, night, name, outcome)
    folder = settings.paths.output_dir / name
    with only_run_in(folder, "paths.output_dir"):
        # The old state goes first and the new one comes last: killed between, nothing is finished.
        (folder / STATE).unlink(missing_ok=True)
        (folder / TRACEBACK).unlink(missing_ok=True)
        disk.remove_partial(folder, ".*.partial")  # of a run that was killed
        files.write_night(folder, night, summary)
        exports.write_exports(folder, night)
        page = report.write_report(folder, night, summary, examples)
        written = sorted(path.name for path in folder.glob("[!.]*") if path.is_file())
        state = {"fingerprint": mark, "files": written, "summary": summary}
        disk.write_state(folder / STATE, state)
    return summary, page


def read_examples(recording: Path, settings: ScoreSettings) -> tuple[Examples, Outcome, dict]:
    """Its examples at the scored epochs, or on a 30-s grid, and what its Night is told besides.

    That is ``lights`` and ``begun``. RecordingError, AnnotationError or, for its lights,
    SettingsError.
    """
    opened, paths = open_edf(recording), settings.paths
    scoring = rows = None
    try:
        if settings.use_annotations:
            table = settings.text_table()
            scoring = find_scoring(recording, paths.annotations, table)
            rows = scoring or own_rows(recording, table)  # which may tell the lights and no stage
    except AnnotationError as error:
        remedy = "--use_annotations false passes the annotations over"
        raise AnnotationError(f"{error}; {remedy}") from error
    examples, outcome = examples_to_score(opened, scoring, settings, settings.grid_offset_s)
    onsets_s, times = examples.onsets_s, (opened.duration_s, opened.start_clock_s)
    try:
        lights = find_lights(settings.lights_off, settings.lights_on, rows, onsets_s, *times)
    except SettingsError as error:
        raise SettingsError(f"{opened.name}: {error}") from error
    begun = None if scoring is None else count_onsets(scoring.events, onsets_s)
    return examples, outcome, {"lights": lights, "begun": begun}


# ------------------------------------------------------------------ several
def score_nights(
    scorer: Scorer, recordings: Sequence[Path], settings: ScoreSettings
) -> pd.DataFrame:
    """Score what no earlier run has finished; nights.csv, which is written after each recording.

    OSError: the disk does not take the results, and would not take those of any other recording.
    """
    output_dir = settings.paths.output_dir
    names, rows = files.name_folders(recordings), {}
    with only_run_in(output_dir, "paths.output_dir"):
        disk.remove_partial(output_dir, ".*.partial")
        for path in recordings:
            if (summary := finished_summary(scorer, path, names[path], settings)) is not None:
                rows[path] = nights.scored_row(path, summary)
        todo = [path for path in recordings if path not in rows]
        if rows:
            print(
                f"{len(rows)} of {len(recordings)} recordings are scored already", file=sys.stderr
            )
            table = nights.write_nights(output_dir, rows.values())
        for path in tqdm(todo, desc="Scoring", unit="recording", disable=not todo):
            rows[path] = score_or_tell(scorer, path, names[path], settings)
            if reason := rows[path].get("reason"):
                tqdm.write(f"{rows[path]['file']}: {reason}", file=sys.stderr)
            so_far = [rows[path] for path in recordings if path in rows]
            table = nights.write_nights(output_dir, so_far)
    return table


def score_or_tell(scorer: Scorer, path: Path, name: str, settings: ScoreSettings) -> dict:
    """The row of a recording, scored or failed: its defect, whatever it is, costs no other one."""
    try:
        summary, _ = score_recording(scorer, path, name, settings)
        return nights.scored_row(path, summary)
    except UserError as error:
        return nights.failed_row(path, name, error)
    except OSError:
        raise
    except Exception as error:
        trace = Path(name) / TRACEBACK
        disk.write_text(settings.paths.output_dir / trace, errors.where_it_failed(error))
        problem = f"unforeseen {type(error).__name__}: {error}"
        reason = f"{problem}; please report it with {trace} in paths.output_dir"
        return nights.failed_row(path, name, reason)


# ------------------------------------------------------------------ what is finished
def fingerprint(scorer: Scorer, recording: Path, settings: ScoreSettings) -> str:
    """16 hexadecimal digits of all that a recording's results depend on."""
    annotations = None
    if settings.use_annotations:
        annotations = settings.paths.annotations or find_annotations(recording)
    used = filter(None, (recording, annotations, find_file(settings.paths.probes)))
    rules = [item.name for item in fields(ReadSettings)]
    rules += ["use_annotations", "grid_offset_s", "far_share", "lights_off", "lights_on"]
    values = as_plain_dict(settings)
    values = {name: values[name] for name in rules}
    encoder = [scorer.checkpoint.name, scorer.basis.facts["encoder_sha256"]]
    encoder.append(scorer.compute.precision)
    depends = [SCORE_VERSION, values, encoder, [_version(path) for path in used]]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def _version(path: Path) -> list:
    """Name, bytes and time of change of a file; the name alone of one that cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return [path.name]
    return [path.name, found.st_size, found.st_mtime_ns]


def finished_summary(
    scorer: Scorer, recording: Path, name: str, settings: ScoreSettings
) -> dict | None:
    """The summary that an earlier run wrote of a recording, None when it has to be scored."""
    folder = settings.paths.output_dir / name
    state = disk.read_state(folder / STATE)
    if state.get("fingerprint") != fingerprint(scorer, recording, settings):
        return None
    return state["summary"] if all((folder / file).is_file() for file in state["files"]) else None
