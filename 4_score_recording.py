"""One recording to sleep stages, events and a summary of the night. No medical device.

    python 4_score_recording.py RECORDING.edf --paths.checkpoint runs/m15p8/checkpoint_best.pt \\
        --paths.probes results/m15p8/probes.npz

Writes <paths.output_dir>/<recording>/: epochs.csv (stages, events and probabilities of each 30-s
epoch), summary.json and summary.csv, annotations.edf (EDF+, for EDFbrowser and MNE) and
report.html. Epochs unlike the training data are flagged. Where a scorer's annotations lie beside
the recording, the agreement with them is shown.
"""

import sys

from pedsleepmae import config, errors
from pedsleepmae.checkpoints import CheckpointError, load_checkpoint, other_scaling
from pedsleepmae.errors import ProbeError, SettingsError, require_file
from pedsleepmae.machine import MachineError
from pedsleepmae.prepare import layouts
from pedsleepmae.prepare.annotations import AnnotationError
from pedsleepmae.prepare.examples import UNFORESEEN, ExampleSettings, examples_to_score
from pedsleepmae.prepare.recordings import RecordingError, open_edf
from pedsleepmae.score import files, report
from pedsleepmae.score.night import Scorer, ScoreSettings, load_scorer, score_examples, summarise


def main(argv: list[str]) -> int:
    settings = config.load_settings(ScoreSettings, "score.yaml", __doc__, argv, "recording")
    paths = settings.paths
    try:
        if settings.recording is None:
            raise SettingsError("recording: none given; name an EDF file, as in --help")
        require_file(settings.recording, "recording", "give the path of an EDF file")
        require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
        require_file(paths.probes, "paths.probes", "run script 3 on that checkpoint first")
        if paths.annotations is not None:
            require_file(
                paths.annotations, "paths.annotations", "give the scoring, or leave it out"
            )
        scorer = load_scorer(
            paths.checkpoint,
            paths.probes,
            device=settings.device,
            precision=settings.precision,
            batch_size=settings.batch_size,
        )
        errors.warn(other_scaling(load_checkpoint(paths.checkpoint)["scaling"], settings.scaling))
    except (SettingsError, CheckpointError, ProbeError, MachineError) as error:
        config.exit_bad_settings(str(error))
    try:
        return run(settings, scorer)
    except AnnotationError as error:
        problem = f"{error}; --use_annotations false passes the annotations over"
    except (RecordingError, OSError) as error:
        problem = str(error)
    except UNFORESEEN as error:  # of a file that nobody foresaw
        name = settings.recording.name
        print(errors.where_it_failed(error), file=sys.stderr)
        problem = f"{name}: unforeseen {type(error).__name__}: {error}; please report it"
    print(f"4_score_recording.py: {problem}", file=sys.stderr)
    return errors.EXIT_FAILED


def run(settings: ScoreSettings, scorer: Scorer) -> int:
    recording = open_edf(settings.recording)
    annotations = None
    if settings.use_annotations:
        annotations = layouts.find_scoring(settings.recording, settings.paths.annotations)
    example_settings = ExampleSettings(
        stand_ins=settings.stand_ins,
        min_channels=settings.min_channels,
        wake_margin_min=settings.wake_margin_min,
        scaling=settings.scaling,
        clip=settings.clip,
    )
    examples, outcome = examples_to_score(
        recording, annotations, example_settings, settings.grid_offset_s
    )
    night = score_examples(scorer, examples, far_share=settings.far_share, title="Scoring")
    name = files.safe_name(settings.recording.stem)
    summary = summarise(
        scorer,
        night,
        recording=name,
        duration_s=recording.duration_s,
        origins=outcome.channels,
        simulated=recording.simulated,
        far_share=settings.far_share,
        event_counts=outcome.event_counts,
    )
    folder = settings.paths.output_dir / name
    files.write_night(folder, night, summary)
    page = report.write_report(folder, night, summary, examples)
    print(report.text_summary(summary))
    print(f"report: {page}")
    return errors.EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
