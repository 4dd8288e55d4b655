"""A simulated cohort with known truth, in the NCH Sleep DataBank's own file layout.

    python 0_simulate_cohort.py --output_dir data/simulated --n_patients 12 --hours 1.5

Writes Sleep_Data/<patient>_<study>.edf with .tsv and Health_Data/*.csv for script 1. With
--batches_dir it writes the batch files of scripts 2 and 3 straight away, without EDF. The data
are made up: stages, breathing events and signals follow rules by age (pedsleepmae/simulate/norms.py
has their sources), and breathing events are more frequent than at NCH unless events.* says
otherwise. Every file says that it is simulated.
"""

import sys

from tqdm import tqdm

from pedsleepmae.config import exit_bad_settings, load_settings
from pedsleepmae.errors import EXIT_DONE, EXIT_FAILED, SettingsError, require_folder
from pedsleepmae.simulate import batches, cohort, health
from pedsleepmae.simulate.cohort import SimulateSettings


def main(argv: list[str]) -> int:
    settings = load_settings(SimulateSettings, "simulate.yaml", __doc__, argv)
    try:
        if settings.event_dir is not None:
            require_folder(settings.event_dir, "event_dir", "give a folder of NCH .tsv files")
        visits = cohort.plan_cohort(settings)
        refuse_other_recordings(settings, visits)
    except ValueError as error:  # SettingsError is one
        exit_bad_settings(str(error))
    try:
        print(simulate(settings, visits))
    except (OSError, ValueError) as error:
        print(f"0_simulate_cohort.py: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def refuse_other_recordings(settings: SimulateSettings, visits: list[cohort.Visit]) -> None:
    """Stop before recordings of two cohorts lie in one folder."""
    folder = settings.output_dir / "Sleep_Data"
    if settings.batches_dir is not None or not folder.is_dir():
        return
    ours = {f"{visit.key}.edf" for visit in visits}
    others = sorted(path.name for path in folder.glob("*.edf") if path.name not in ours)
    if others:
        raise SettingsError(
            f"output_dir: {folder} holds {len(others)} recordings of another cohort (first "
            f"{others[0]}); give an empty folder or delete it"
        )


def simulate(settings: SimulateSettings, visits: list[cohort.Visit]) -> str:
    """Simulate and write all visits; returns the sentence that says what is there now."""
    if settings.batches_dir is not None:
        health.write_health_data(settings.output_dir / "Health_Data", visits)
        work, unit, place = (
            batches.write_batches(visits, settings),
            "examples",
            settings.batches_dir,
        )
    else:
        from pedsleepmae.simulate import nch_files

        work, unit, place = (
            nch_files.write_cohort(visits, settings),
            "epochs",
            settings.output_dir,
        )
    done = tqdm(work, total=len(visits), desc="Simulating", unit="recording")
    n_epochs = sum(done)
    n_patients = len({visit.patient_id for visit in visits})
    return (
        f"Simulated: {len(visits)} recordings of {n_patients} children, {n_epochs} scored {unit}, "
        f"in {place}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
