"""Recordings and their annotations to examples and batch files (step 1 of 3).

    python 1_prepare_dataset.py --paths.recordings_dir /data/nch/Sleep_Data \\
        --paths.examples_dir data/examples --paths.batches_dir data/batches --n_workers 8

Reads every recording below recordings_dir with its annotation file, cuts 30-second, 16-channel
examples at the scored epochs, and groups them into train/, val/ and test/ by patient. Recordings
that cannot be used are listed in studies.csv with the reason. Interrupt it whenever you like: run
it again and it goes on. --inspect FILE_OR_FOLDER prints which of the 16 channels files hold, and
proposes stand-ins for what they lack; --write_settings FILE.yaml writes these, for --config.
"""

import sys
from collections.abc import Sequence

import pandas as pd

from pedsleepmae import errors
from pedsleepmae.config import load_settings
from pedsleepmae.errors import SettingsError, UserError
from pedsleepmae.prepare import inspection, layouts, report
from pedsleepmae.prepare.grouping import Grouping
from pedsleepmae.prepare.ids import Ids
from pedsleepmae.prepare.outcome import Outcome
from pedsleepmae.prepare.recording_table import read_recordings
from pedsleepmae.prepare.run import PreparePaths, PrepareSettings, prepare_dataset, refuse_foreign


def read_health(paths: PreparePaths) -> pd.DataFrame | None:
    """Ages and sexes; None where there are none, which only a folder that was named may not be."""
    folder = paths.health_dir or layouts.find_health_dir(paths.recordings_dir)
    if folder is None:
        return None
    errors.require_folder(folder, "paths.health_dir", "give NCH's Health_Data folder")
    try:
        return layouts.read_health(folder)
    except (ValueError, OSError) as error:
        if paths.health_dir:
            raise SettingsError(f"paths.health_dir: {error}") from error
        errors.warn(f"ages stay unknown: {error}")
        return None


def open_inputs(
    settings: PrepareSettings,
) -> tuple[list[layouts.Study], pd.DataFrame | None, Ids | None]:
    """Recordings, health data, numbers of a table's ids; nothing of the user's may be replaced."""
    paths, ids = settings.paths, None
    if settings.layout == "table":
        errors.require_file(paths.table, "paths.table", "give the table of the recordings")
        where, folder = "paths.table", paths.table
        studies, health, ids = read_recordings(paths.table, paths.ids)
    else:
        where, folder = "paths.recordings_dir", paths.recordings_dir
        errors.require_folder(folder, where, "give the folder of the EDF files")
        health = read_health(paths)
        studies = layouts.find_studies(folder, settings.layout)
    if not studies:
        raise SettingsError(
            f"{where}: no recording of layout {settings.layout} in {folder}; give another one, or "
            "another layout"
        )
    refuse_foreign(studies, paths)
    return studies, health, ids


def print_outcomes(outcomes: Sequence[Outcome], plan: Grouping) -> None:
    """How many recordings give how many examples, and why the others do not."""
    n_usable = sum(outcome.usable for outcome in outcomes)
    simulated = " (simulated)" if plan.simulated else ""
    print(f"{n_usable} of {len(outcomes)} recordings{simulated} give examples:")
    for split, n_patients, _, n_examples in report.split_rows(plan):
        print(f"  {split:5s} {n_examples:9,d} examples of {n_patients:5,d} patients")
    if not plan.patient_disjoint:
        print("  split in time: a patient stands in all three, scores will be flattered")
    for reason, n in report.count_reasons(outcomes)[:8]:
        print(f"  left out {n:5d}: {reason}")


def main(argv: list[str]) -> int:
    settings = load_settings(PrepareSettings, "prepare.yaml", __doc__, argv)
    named = settings.inspect, settings.write_settings
    if any(named):
        return errors.run_script(
            lambda: inspection.find_files(*named),
            lambda files: inspection.inspect_files(files, settings, *named),
        )

    def work(inputs) -> int:
        studies, health, ids = inputs
        if ids is not None:
            ids.write()
        outcomes, plan = prepare_dataset(studies, health, settings)
        batches_dir = settings.paths.batches_dir
        page = report.write_report(outcomes, plan, batches_dir)
        if not plan.studies:
            raise UserError(
                f"none of the {len(outcomes)} recordings found can be used; the reasons stand in "
                f"{batches_dir / 'studies.csv'} and {page} (the first: {outcomes[0].reason})"
            )
        print_outcomes(outcomes, plan)
        print(f"Tables and report: {batches_dir / 'studies.csv'}, {page}")
        all_usable = all(outcome.usable for outcome in outcomes)
        return errors.EXIT_SKIPPED if settings.strict and not all_usable else errors.EXIT_DONE

    return errors.run_script(lambda: open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
