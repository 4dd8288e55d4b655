"""Script 4's work: encoder and probes, opened once, score one recording after another."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pedsleepmae import errors
from pedsleepmae.checkpoints import other_scaling
from pedsleepmae.errors import SettingsError, UserError, bounded, require_file
from pedsleepmae.prepare.annotations import AnnotationError
from pedsleepmae.prepare.examples import UNFORESEEN, Outcome, ReadSettings, examples_to_score
from pedsleepmae.prepare.layouts import find_scoring
from pedsleepmae.prepare.recordings import open_edf
from pedsleepmae.score import files, report
from pedsleepmae.score.night import Scorer, load_scorer, score_examples
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
    annotations.edf and report.html."""
    annotations: Path | None = None
    """The recording's scoring (.tsv, -nsrr.xml or EDF+); none: looked for beside the recording and
    in it."""


@dataclass
class ScoreSettings(ReadSettings):
    """One recording to stages, events and a night's summary; no medical device."""

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


def open_inputs(settings: ScoreSettings) -> Scorer:
    """Encoder and probes; a UserError names what is missing, or does not belong together."""
    paths = settings.paths
    if settings.recording is None:
        raise SettingsError("recording: none given; name an EDF file, as in --help")
    require_file(settings.recording, "recording", "give the path of an EDF file")
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    require_file(paths.probes, "paths.probes", "run script 3 on that checkpoint first")
    if paths.annotations is not None:
        require_file(paths.annotations, "paths.annotations", "give the scoring, or leave it out")
    scorer = load_scorer(
        paths.checkpoint,
        paths.probes,
        far_share=settings.far_share,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    errors.warn(other_scaling(scorer.scaling, settings.scaling))
    return scorer


def score_recording(scorer: Scorer, recording: Path, settings: ScoreSettings) -> tuple[dict, Path]:
    """Score one recording and write its folder: its summary, and where report.html is.

    UserError says why it cannot be scored; for what nobody foresaw it stands below a traceback.
    """
    try:
        examples, outcome = read_examples(recording, settings)
        night = score_examples(scorer, examples, title="Scoring")
        name = files.safe_name(recording.stem)
        summary = summarise(scorer, night, name, outcome)
        folder = settings.paths.output_dir / name
        files.write_night(folder, night, summary)
        return summary, report.write_report(folder, night, summary, examples)
    except (UserError, OSError):
        raise
    except UNFORESEEN as error:
        print(errors.where_it_failed(error), file=sys.stderr)
        problem = f"unforeseen {type(error).__name__}: {error}; please report it"
        raise UserError(f"{recording.name}: {problem}") from error


def read_examples(recording: Path, settings: ScoreSettings) -> tuple[Examples, Outcome]:
    """Its examples at the scored epochs, or on a 30-s grid; RecordingError or AnnotationError."""
    opened, scoring = open_edf(recording), None
    try:
        if settings.use_annotations:
            scoring = find_scoring(recording, settings.paths.annotations)
        return examples_to_score(opened, scoring, settings, settings.grid_offset_s)
    except AnnotationError as error:
        remedy = "--use_annotations false passes the annotations over"
        raise AnnotationError(f"{error}; {remedy}") from error
