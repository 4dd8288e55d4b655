"""Recordings to sleep stages, events and a summary of each night. No medical device.

    python 4_score_recording.py RECORDING.edf --paths.checkpoint runs/m15p8/checkpoint_best.pt \\
        --paths.probes results/m15p8/probes.npz
    python 4_score_recording.py FOLDER MORE.edf 'study*/x_*.edf'

Writes <paths.output_dir>/<recording>/: epochs.csv (stages, events and probabilities of each 30-s
epoch), summary.json and summary.csv, annotations.edf (EDF+, for EDFbrowser and MNE) and
report.html. Epochs unlike the training data are flagged. Where a scorer's annotations lie beside
the recording, the agreement with them is shown.

Of a folder, a pattern or several files it also writes nights.csv: a row for each recording, of one
that could not be scored with the reason. Interrupt it whenever you like: run it again and it goes
on.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pedsleepmae import errors
from pedsleepmae.checkpoints import other_scaling
from pedsleepmae.config import load_settings
from pedsleepmae.errors import SettingsError, UserError, require_file
from pedsleepmae.pages.page import in_digits
from pedsleepmae.score import night
from pedsleepmae.score.nights import NIGHTS, find_recordings
from pedsleepmae.score.report import quantity_name
from pedsleepmae.score.run import ScoreSettings, score_alone, score_nights


def main(argv: list[str]) -> int:
    settings = load_settings(ScoreSettings, "score.yaml", __doc__, argv, "recordings")

    def work(inputs: tuple[list[Path], night.Scorer]) -> int:
        recordings, scorer = inputs
        if not settings.of_one_file:
            return tell_nights(score_nights(scorer, recordings, settings), settings)
        summary, page = score_alone(scorer, recordings[0], settings)
        print(text_summary(summary))
        print(f"report: {page}")
        return errors.EXIT_DONE

    again = "it begins anew" if settings.of_one_file else "it goes on where it stopped"
    return errors.run_script(lambda: open_inputs(settings), work, again)


def open_inputs(settings: ScoreSettings) -> tuple[list[Path], night.Scorer]:
    """Recordings, encoder and probes; a UserError names what is missing, or does not belong."""
    paths = settings.paths
    if not settings.recordings:
        raise SettingsError("recordings: none given; name an EDF file or a folder, as in --help")
    recordings = find_recordings(settings.recordings)
    require_file(paths.checkpoint, "paths.checkpoint", "run script 2 first")
    require_file(paths.probes, "paths.probes", "run script 3 on that checkpoint first")
    if paths.annotations is not None:
        require_file(paths.annotations, "paths.annotations", "give the scoring, or leave it out")
    scorer = night.load_scorer(
        paths.checkpoint,
        paths.probes,
        far_share=settings.far_share,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size,
    )
    if settings.scaling == "auto":
        settings.scaling = scorer.data_scaling
    errors.warn(other_scaling(scorer.scaling, settings.scaling))
    return recordings, scorer


def tell_nights(nights: pd.DataFrame, settings: ScoreSettings) -> int:
    """Print how many recordings are scored; the exit code. UserError when none is."""
    table, failed = settings.paths.output_dir / NIGHTS, nights[nights["status"] == "failed"]
    if len(failed) == len(nights):
        raise UserError(
            f"none of {len(nights)} recordings could be scored; the reasons stand in {table} "
            f"(the first, {failed['file'].iloc[0]}: {failed['reason'].iloc[0]})"
        )
    print(f"{len(nights) - len(failed)} of {len(nights)} recordings are scored")
    if len(failed):
        print(f"{len(failed)} could not be scored, for reasons that stand in the table")
    print(f"table: {table}")
    return errors.EXIT_SKIPPED if settings.strict and len(failed) else errors.EXIT_DONE


def text_summary(summary: Mapping) -> str:
    """The summary in lines for a terminal."""
    rows = []
    for quantity in summary["quantities"]:
        titles = {"value": "expected", "called": "called", "scored": "scored"}
        figures = {title: in_digits(quantity[way], 1) for way, title in titles.items()}
        name = quantity_name(quantity["name"])
        rows.append({"": name, **figures, "unit": quantity["unit"]})
    lines = [summary["notice"], pd.DataFrame(rows).to_string(index=False, justify="left")]
    far = summary["far"]
    lines.append(
        f"flagged as far from the training data: {far['n_epochs']} of {summary['n_epochs']} epochs"
    )
    if summary["agreement"] is not None:
        kappa = in_digits(summary["agreement"]["kappa"], 2)
        lines.append(f"agreement with the scorer: Cohen's kappa {kappa}")
    return "\n".join([*lines, *(f"caution: {line}" for line in summary["cautions"])])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
