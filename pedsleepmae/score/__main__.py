"""Recordings to sleep stages, events and a summary of the night, from any folder.

    pedsleepmae-score RECORDING.edf
    pedsleepmae-score FOLDER MORE.edf
    python -m pedsleepmae.score RECORDING.edf --paths.output_dir scored

This is script 4 of the repository, 4_score_recording.py, as it is installed; without settings it
scores with the checkpoint and the probes that ship. No medical device.
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
from pedsleepmae.score import NIGHTS, night
from pedsleepmae.score.nights import find_recordings
from pedsleepmae.score.report import quantity_name
from pedsleepmae.score.run import ScoreSettings, score_alone, score_nights
from pedsleepmae.shipped import find_file


def main(argv: list[str] | None = None, doc: str = __doc__) -> int:
    """Exit code of the command line ``argv`` (none: this process's); ``doc`` is for --help."""
    argv = sys.argv[1:] if argv is None else argv
    settings = load_settings(ScoreSettings, "score.yaml", doc, argv, "recordings")

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
    ours = "take that of the repository's folder checkpoint/"
    require_file(find_file(paths.checkpoint), "paths.checkpoint", f"run script 2 first, or {ours}")
    remedy = f"run script 3 on that checkpoint first, or {ours}"
    require_file(find_file(paths.probes), "paths.probes", remedy)
    if paths.adapter is not None:
        require_file(
            paths.adapter, "paths.adapter", "run script 3 with --mode lora, or leave it out"
        )
    if paths.annotations is not None:
        require_file(paths.annotations, "paths.annotations", "give the scoring, or leave it out")
    scorer = night.load_scorer(
        paths.checkpoint,
        paths.probes,
        adapter=paths.adapter,
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
    sys.argv[0] = "pedsleepmae-score"  # what usage and errors call it, in place of __main__.py
    sys.exit(main())
