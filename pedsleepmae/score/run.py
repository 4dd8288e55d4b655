"""Script 4's work: encoder and probes, opened once, score one recording after another."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pedsleepmae import disk, errors
from pedsleepmae.errors import UserError, bounded
from pedsleepmae.machine import only_run_in
from pedsleepmae.prepare.annotations import AnnotationError
from pedsleepmae.prepare.examples import UNFORESEEN, Outcome, ReadSettings, examples_to_score
from pedsleepmae.prepare.layouts import find_scoring
from pedsleepmae.prepare.recordings import open_edf
from pedsleepmae.score import exports, files, report
from pedsleepmae.score.night import Scorer, score_examples
from pedsleepmae.score.summary import summarise
from pedsleepmae.store import Examples


@dataclass
class ScorePaths:
    """Files and folders."""

    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint of the encoder."""
    probes: Path = Path("checkpoint/probes.npz")
    """Probes that script 3 fitted on this very encoder."""
    output_dir: Path = Path("results/scored")
    """Written: a folder named after the recording with epochs.csv, summary.json, summary.csv,
    annotations.edf, hypnogram.json (YASA), <recording>_events.tsv (BIDS) and report.html."""
    annotations: Path | None = None
    """The recording's scoring (.tsv, -nsrr.xml or EDF+); none: looked for beside the recording and
    in it."""


@dataclass
class ScoreSettings(ReadSettings):
    """One recording to stages, events and a night's summary; no medical device."""

    scaling: Literal["auto", "policy", "robust", "original"] = "auto"
    """Standardisation (see script 1); auto: that of the data that the probes were fitted on."""
    recording: Path | None = None
    """EDF file to score; may stand without its name, as in `4_score_recording.py FILE.edf`."""
    paths: ScorePaths = field(default_factory=ScorePaths)
    use_annotations: bool = True
    """Score the epochs that a scorer scored, as script 1 cuts them, and show the agreement; false:
    pass annotations over and cut a 30-s grid."""
    grid_offset_s: float = bounded(0.0, 0, 1e6)
    """Without annotations: start of the first 30-s epoch, seconds from recording start."""
    far_share: float = bounded(0.01, 0.001, 0.5)
    """An epoch is flagged when its embedding lies farther from the training data than this share of
    the validation epochs did."""
    batch_size: int = bounded(64, 1, 1_000_000)
    """Epochs embedded at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto: the one in which the probes' embeddings were computed."""


def score_recording(scorer: Scorer, recording: Path, settings: ScoreSettings) -> tuple[dict, Path]:
    """Score one recording and write its folder; gives its summary and where report.html is.

    UserError says why it cannot be scored; for what nobody foresaw it stands below a traceback.
    """
    try:
        examples, outcome = read_examples(recording, settings)
        night = score_examples(scorer, examples, title="Scoring")
        name = files.safe_name(recording.stem)
        summary = summarise(scorer, night, name, outcome)
        folder = settings.paths.output_dir / name
        with only_run_in(folder, "paths.output_dir"):
            disk.remove_partial(folder, ".*.partial")  # of a run that was killed
            files.write_night(folder, night, summary)
            exports.write_exports(folder, night)
            return summary, report.write_report(folder, night, summary, examples)
    except (UserError, OSError):
        raise
    except UNFORESEEN as error:
        print(errors.where_it_failed(error), file=sys.stderr)
        problem = f"unforeseen {type(error).__name__}: {error}; please report it"
        raise UserError(f"{recording.name}: {problem}") from error


def read_examples(recording: Path, settings: ScoreSettings) -> tuple[Examples, Outcome]:
    """Its examples at the scored epochs, or on a 30-s grid; RecordingError or AnnotationError."""
    opened, paths = open_edf(recording), settings.paths
    try:
        scoring = find_scoring(recording, paths.annotations) if settings.use_annotations else None
        return examples_to_score(opened, scoring, settings, settings.grid_offset_s)
    except AnnotationError as error:
        remedy = "--use_annotations false passes the annotations over"
        raise AnnotationError(f"{error}; {remedy}") from error
