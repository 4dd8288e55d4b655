"""Script 1: recordings to batch files, from where an earlier run stopped."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from pedsleepmae import disk, errors
from pedsleepmae.errors import SettingsError, bounded
from pedsleepmae.machine import only_run_in
from pedsleepmae.prepare import grouping
from pedsleepmae.prepare.examples import ExampleSettings, Outcome, Standards
from pedsleepmae.prepare.grouping import SplitSettings
from pedsleepmae.prepare.layouts import Study
from pedsleepmae.prepare.studies import (
    finished_outcome,
    fit_standard,
    foreign_entry,
    forget_study,
    has_examples,
    measure_studies,
    prepare_studies,
    remove_examples,
)
from pedsleepmae.prepare.tables import read_splits
from pedsleepmae.prepare.workers import Workers, open_workers
from pedsleepmae.store import DamagedExampleError, example_folder

Health = pd.DataFrame | None  # ages and sexes by study; None: unknown


@dataclass
class PreparePaths:
    """Folders."""

    recordings_dir: Path = Path("data/nch")
    """Folder with the recordings (searched with its sub-folders) and their annotation files; not
    read by layout table."""
    table: Path | None = None
    """Layout table: a table (.csv) of the recordings with the columns recording (EDF file), patient
    and, if you like, study, annotations (file; blank: beside the recording or in it), age_years,
    sex, lights_off, lights_on (22:15:00, or seconds from recording start). Files are relative to
    the table's folder; patient and study are any text."""
    ids: Path | None = None
    """Layout table: where the numbers of patients and studies that are no whole numbers are kept,
    and looked up by later runs; it tells who is who, keep it to yourself. none: ids.csv beside the
    table."""
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
    """Only print which of the 16 channels this EDF file (or, by montage, all EDF files of this
    folder) holds, at which rate and scale, and propose stand-ins for those that it lacks."""
    write_settings: Path | None = None
    """With inspect: write what is proposed, and what else was given, as a new YAML settings file
    for --config; a file that is there is not replaced."""

    def check(self) -> None:
        super().check()
        self._check_table()
        held_out = self.split.val_fraction + self.split.test_fraction
        if held_out >= 1:
            raise SettingsError(
                f"split.val_fraction + split.test_fraction is {held_out:g}; keep it below 1 so "
                "that patients remain for training"
            )

    def _check_table(self) -> None:
        paths, by_table = self.paths, self.layout == "table"
        if by_table and paths.table is None:
            raise SettingsError("layout is table; give the table with --paths.table FILE.csv")
        if not by_table and (paths.table or paths.ids):
            raise SettingsError(
                f"paths.table and paths.ids are for layout table, and layout is {self.layout}; "
                "add --layout table, or leave them out"
            )
        if by_table and paths.health_dir:
            raise SettingsError(
                "paths.health_dir is not read by layout table; leave it out and give the table the "
                "columns age_years and sex"
            )


def prepare_dataset(
    studies: list[Study], health: Health, settings: PrepareSettings
) -> tuple[list[Outcome], grouping.Grouping]:
    """Write example files, batch files and tables: outcomes of all recordings, plan of the files.

    Only what is not finished is done. The examples' and the batches' folder are held meanwhile.
    """
    paths = settings.paths
    with contextlib.ExitStack() as held:
        held.enter_context(only_run_in(paths.examples_dir, "paths.examples_dir"))
        if paths.batches_dir.resolve() != paths.examples_dir.resolve():
            held.enter_context(only_run_in(paths.batches_dir, "paths.batches_dir"))
        disk.remove_partial(paths.batches_dir, ".*.partial")  # of a run that was killed
        workers = held.enter_context(open_workers(settings.n_workers, settings.cluster.address))
        if settings.split.by == "patient":
            read_splits(paths.batches_dir)  # a bad splits.csv is told before the work, not after
        fitted = {}
        if settings.scaling == "fitted":
            fitted = _fit(workers, studies, health, settings)
        remade = set()
        while True:
            outcomes, plan = _prepare_all(workers, studies, health, settings, fitted)
            try:
                _group(workers, plan, settings)
                break
            except DamagedExampleError as error:
                key = error.path.parent.name
                if key in remade:
                    raise
                errors.warn(f"{error.path}: {error.problem}; its recording is prepared anew")
                remade.add(key)
                forget_study(key, paths.examples_dir)
        if not settings.keep_examples:
            for study in plan.studies:
                remove_examples(
                    example_folder(paths.examples_dir, study.patient_id, study.study_id)
                )
    return outcomes, plan


def _group(workers: Workers, plan: grouping.Grouping, settings: PrepareSettings) -> None:
    """Write the batch files that are not there; without a usable recording the old ones stay."""
    paths = settings.paths
    if plan.studies and not grouping.is_grouped(plan, paths.batches_dir):
        written = grouping.write_batches(workers, plan, paths.examples_dir, paths.batches_dir)
        for _ in tqdm(written, total=plan.n_files, desc="Grouping", unit="file"):
            pass


def refuse_foreign(studies: Sequence[Study], paths: PreparePaths) -> None:
    """SettingsError where the folders to be written hold what is not ours to replace."""
    for study in studies:
        if not study.problem and (found := foreign_entry(study, paths.examples_dir)):
            raise SettingsError(
                f"paths.examples_dir: {found} was not written by script 1 and stands where the "
                f"examples of {study.key} belong; move it away, or give a folder of its own"
            )
    if found := grouping.foreign_file(paths.batches_dir):
        raise SettingsError(
            f"paths.batches_dir: {found} was not written by script 1, which would replace it; "
            "move it away, or give a folder of its own"
        )


def _fit(
    workers: Workers, studies: list[Study], health: Health, settings: PrepareSettings
) -> Standards:
    """Mean and sd of each channel over the training patients."""
    paths = settings.paths
    found = measure_studies(workers, studies, settings, paths.examples_dir)
    moments = dict(tqdm(found, total=len(studies), desc="Measuring", unit="recording"))
    usable = [study for study in studies if not study.problem and moments.get(study.key)]
    patients = {study.patient_id for study in usable}
    assignment = grouping.assign_patients(
        patients, paths.batches_dir, settings.split, settings.seed, health
    )
    return fit_standard(moments[s.key] for s in usable if assignment[s.patient_id] == "train")


def _prepare_all(
    workers: Workers,
    studies: list[Study],
    health: Health,
    settings: PrepareSettings,
    fitted: Standards,
) -> tuple[list[Outcome], grouping.Grouping]:
    """Outcomes of all studies in their order, and the plan of the batch files."""
    examples_dir = settings.paths.examples_dir
    found = {study: finished_outcome(study, settings, examples_dir, fitted) for study in studies}
    done = {study: outcome for study, outcome in found.items() if outcome is not None}
    # Once grouped, finished recordings need their examples only if these are to be kept.
    with_examples = {s: o for s, o in done.items() if has_examples(o, examples_dir)}
    if len(with_examples if settings.keep_examples else done) == len(studies):
        outcomes = list(done.values())
        plan = _plan_batches(outcomes, health, settings)
        if grouping.is_grouped(plan, settings.paths.batches_dir):
            return outcomes, plan

    done = with_examples
    todo = [study for study in studies if study not in done]
    if done:
        print(f"{len(done)} of {len(studies)} recordings are finished already", file=sys.stderr)
    n_examples, n_skipped = 0, 0
    with tqdm(total=len(todo), desc="Preparing", unit="recording") as bar:
        for study, outcome in prepare_studies(workers, todo, settings, examples_dir, fitted):
            done[study] = outcome
            n_examples += outcome.n_examples
            n_skipped += not outcome.usable
            bar.update()
            rate = n_examples / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{rate:.0f} examples/s, {n_skipped} skipped")
    outcomes = [done[study] for study in studies]
    return outcomes, _plan_batches(outcomes, health, settings)


def _plan_batches(
    outcomes: list[Outcome], health: Health, settings: PrepareSettings
) -> grouping.Grouping:
    """The plan of the batch files; splits.csv and studies.csv are written on the way."""
    split, seed, batches_dir = settings.split, settings.seed, settings.paths.batches_dir
    usable = [outcome for outcome in outcomes if outcome.usable]
    patients = {outcome.patient_id for outcome in usable}
    assignment = grouping.assign_patients(patients, batches_dir, split, seed, health)
    grouping.write_tables(outcomes, assignment, split.by, health, batches_dir)
    return grouping.Grouping(usable, assignment, split, seed, settings.scaling)
