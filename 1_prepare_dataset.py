"""Recordings and their annotations to examples and batch files (step 1 of 3).

    python 1_prepare_dataset.py --paths.recordings_dir /data/nch/Sleep_Data \\
        --paths.examples_dir data/examples --paths.batches_dir data/batches --n_workers 8

Reads every recording below recordings_dir with its annotation file, cuts 30-second, 16-channel
examples at the scored epochs, and groups them into train/, val/ and test/ by patient. Recordings
that cannot be used are listed in studies.csv with the reason. Interrupt it whenever you like: run
it again and it goes on. --inspect FILE.edf prints which of the 16 channels a file holds.
"""

import contextlib
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from pedsleepmae import config, errors
from pedsleepmae.errors import SettingsError, UserError, require_file, require_folder
from pedsleepmae.prepare import grouping, layouts, workers
from pedsleepmae.prepare.report import describe_outcomes, inspect_recording, write_report
from pedsleepmae.prepare.run import (
    PrepareSettings,
    finished_outcome,
    fit_standard,
    has_examples,
    measure_studies,
    prepare_studies,
)
from pedsleepmae.prepare.workers import use_workers
from pedsleepmae.store import example_folder, read_splits


def main() -> int:
    settings = config.load_settings(PrepareSettings, "prepare.yaml", __doc__, sys.argv[1:])
    try:
        if settings.inspect is not None:
            require_file(settings.inspect, "inspect", "give the path of an EDF file")
            print(inspect_recording(settings.inspect, settings.stand_ins))
            return errors.EXIT_DONE
        return run(settings)
    except SettingsError as error:
        config.exit_bad_settings(str(error))
    except UserError as error:
        print(f"1_prepare_dataset.py: {error}", file=sys.stderr)
    except OSError as error:
        what = f"{error.strerror or error} ({error.filename or 'while writing'})"
        remedy = "make room or mend the disk and run it again: it goes on where it stopped"
        print(f"1_prepare_dataset.py: {what}; {remedy}", file=sys.stderr)
    return errors.EXIT_FAILED


def run(settings: PrepareSettings) -> int:
    paths = settings.paths
    require_folder(paths.recordings_dir, "paths.recordings_dir", "give the folder of the EDF files")
    health = read_health(settings)
    with contextlib.ExitStack() as held:
        for folder in {paths.examples_dir.resolve(), paths.batches_dir.resolve()}:
            hold(folder, held)
        held.enter_context(use_workers(settings.n_workers, settings.cluster.address))
        studies = layouts.find_studies(paths.recordings_dir, settings.layout)
        if not studies:
            raise SettingsError(
                f"paths.recordings_dir: no recording of layout {settings.layout} in "
                f"{paths.recordings_dir}; give another folder, or another layout"
            )
        refuse_to_overwrite(studies, paths.examples_dir)
        if settings.split.by == "patient":
            read_splits(paths.batches_dir)  # a bad splits.csv is told before the work, not after
        fitted = fit(studies, settings, health) if settings.scaling == "fitted" else {}
        outcomes, plan = prepare_all(studies, fitted, settings, health)
        if plan.studies:  # else the batch files of an earlier run stay, should there be any
            write_batches(plan, settings)
    if not settings.keep_examples:
        for study in plan.studies:
            folder = example_folder(paths.examples_dir, study.patient_id, study.study_id)
            shutil.rmtree(folder, ignore_errors=True)
    report = write_report(outcomes, plan, health, paths.batches_dir)
    if not plan.studies:
        raise UserError(
            f"none of the {len(outcomes)} recordings found can be used; the reasons stand in "
            f"{paths.batches_dir / 'studies.csv'} and {report} (the first: {outcomes[0].reason})"
        )
    print(describe_outcomes(outcomes, plan))
    print(f"Tables and report: {paths.batches_dir / 'studies.csv'}, {report}")
    n_unusable = sum(not outcome.usable for outcome in outcomes)
    return errors.EXIT_SKIPPED if settings.strict and n_unusable else errors.EXIT_DONE


def hold(folder: Path, held: contextlib.ExitStack) -> None:
    """Hold a folder of ours for this run; SettingsError where none can be made or written."""
    try:
        held.enter_context(workers.only_run_in(folder))
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise SettingsError(
            f"paths.examples_dir, paths.batches_dir: {folder} cannot be made or written "
            f"({error.strerror}); give a folder of your own"
        ) from error


def refuse_to_overwrite(studies, examples_dir) -> None:
    """Stop when a study's folder of examples, which is made anew, holds recordings."""
    for study in studies:
        folder = examples_dir.resolve() / study.key
        if folder in study.edf.resolve().parents:
            raise SettingsError(
                f"paths.examples_dir: {folder} holds recordings, which the examples would replace; "
                "give a folder of its own"
            )


def read_health(settings: PrepareSettings):
    """Ages and sexes from the health data, None when there are none."""
    given = settings.paths.health_dir
    folder = given or layouts.find_health_dir(settings.paths.recordings_dir)
    if folder is None:
        return None
    require_folder(folder, "paths.health_dir", "give NCH's Health_Data folder")
    try:
        return layouts.read_health(folder)
    except (ValueError, OSError) as error:
        if given:
            raise SettingsError(f"paths.health_dir: {error}") from error
        print(f"ages stay unknown: {error}", file=sys.stderr)
        return None


def fit(studies, settings: PrepareSettings, health):
    """Mean and sd of the training patients' channels."""
    moments = measure_studies(studies, settings, settings.paths.examples_dir)
    moments = dict(tqdm(moments, total=len(studies), desc="Measuring", unit="recording"))
    measured = {study.patient_id for study in studies if moments.get(study.key)}
    assignment = grouping.assign_patients(
        measured, settings.paths.batches_dir, settings.split, settings.seed, health
    )
    training = [
        moments[study.key] for study in studies if assignment.get(study.patient_id) == "train"
    ]
    return fit_standard(training)


def prepare_all(studies, fitted, settings: PrepareSettings, health):
    """Outcomes of all studies in their order, and the plan of the batch files."""
    paths = settings.paths
    done = {}
    for study in studies:
        outcome = finished_outcome(study, settings, paths.examples_dir, fitted)
        if outcome is not None:
            done[study] = outcome
    if len(done) == len(studies):  # nothing changed: are the batch files all there is to do?
        plan = make_plan(list(done.values()), settings, health)
        complete = not settings.keep_examples or all(
            has_examples(outcome, paths.examples_dir) for outcome in done.values()
        )
        if complete and grouping.is_grouped(plan, paths.batches_dir):
            return list(done.values()), plan
    done = {s: o for s, o in done.items() if has_examples(o, paths.examples_dir)}
    todo = [study for study in studies if study not in done]
    if done:
        print(f"{len(done)} of {len(studies)} recordings are finished already", file=sys.stderr)
    n_examples, n_skipped = 0, 0
    with tqdm(total=len(todo), desc="Preparing", unit="recording") as bar:
        for study, outcome in prepare_studies(todo, settings, paths.examples_dir, fitted):
            done[study] = outcome
            n_examples += outcome.n_examples
            n_skipped += not outcome.usable
            bar.update()
            rate = n_examples / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate:.0f} examples/s, {n_skipped} skipped")
    outcomes = [done[study] for study in studies]
    return outcomes, make_plan(outcomes, settings, health)


def make_plan(outcomes, settings: PrepareSettings, health) -> grouping.Grouping:
    """The plan of the batch files; splits.csv and studies.csv are written on the way."""
    batches_dir = settings.paths.batches_dir
    usable = [outcome for outcome in outcomes if outcome.usable]
    assignment = grouping.assign_patients(
        {outcome.patient_id for outcome in usable},
        batches_dir,
        settings.split,
        settings.seed,
        health,
    )
    grouping.write_tables(outcomes, assignment, settings.split.by, health, batches_dir)
    return grouping.Grouping(usable, assignment, settings.split, settings.seed, settings.scaling)


def write_batches(plan: grouping.Grouping, settings: PrepareSettings) -> None:
    paths = settings.paths
    if grouping.is_grouped(plan, paths.batches_dir):
        return
    written = grouping.write_batches(plan, paths.examples_dir, paths.batches_dir)
    for _ in tqdm(written, total=plan.n_files, desc="Grouping", unit="file"):
        pass


if __name__ == "__main__":
    sys.exit(main())
