"""Recordings to sleep stages, events and a summary of the night, from any folder.

    pedsleepmae-score RECORDING.edf
    python -m pedsleepmae.score RECORDING.edf --paths.output_dir scored

This is script 4 of the repository, 4_score_recording.py, as it is installed; without settings it
scores with the checkpoint and the probes that ship. No medical device.
"""

import sys
from collections.abc import Mapping

import pandas as pd

from pedsleepmae import errors
from pedsleepmae.checkpoints import other_scaling
from pedsleepmae.config import load_settings
from pedsleepmae.errors import SettingsError, require_file
from pedsleepmae.pages.page import in_digits
from pedsleepmae.score import night
from pedsleepmae.score.report import quantity_name
from pedsleepmae.score.run import ScoreSettings, score_recording
from pedsleepmae.shipped import find_file


def main(argv: list[str] | None = None, doc: str = __doc__) -> int:
    """Exit code of the command line ``argv`` (none: this process's); ``doc`` is for --help."""
    argv = sys.argv[1:] if argv is None else argv
    settings = load_settings(ScoreSettings, "score.yaml", doc, argv, "recording")

    def work(scorer: night.Scorer) -> None:
        summary, page = score_recording(scorer, settings.recording, settings)
        print(text_summary(summary))
        print(f"report: {page}")

    return errors.run_script(lambda: open_inputs(settings), work, "it begins anew")


def open_inputs(settings: ScoreSettings) -> night.Scorer:
    """Encoder and probes; a UserError names what is missing, or does not belong together."""
    paths = settings.paths
    if settings.recording is None:
        raise SettingsError("recording: none given; name an EDF file, as in --help")
    require_file(settings.recording, "recording", "give the path of an EDF file")
    ours = "take that of the repository's folder checkpoint/"
    require_file(find_file(paths.checkpoint), "paths.checkpoint", f"run script 2 first, or {ours}")
    remedy = f"run script 3 on that checkpoint first, or {ours}"
    require_file(find_file(paths.probes), "paths.probes", remedy)
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
    return scorer


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
