"""A simulated cohort with known truth, in the NCH Sleep DataBank's own file layout (step 0).

    python 0_simulate_cohort.py --output_dir data/simulated --n_patients 12 --hours 1.5

Writes Sleep_Data/<patient>_<study>.edf with .tsv and Health_Data/*.csv for script 1. With
--batches_dir it writes the batch files of scripts 2 and 3 straight away, without EDF:

    python 0_simulate_cohort.py --batches_dir data/batches --n_patients 60 --hours 8

With --event_dir the stages and events of NCH .tsv files drive the nights:

    python 0_simulate_cohort.py --output_dir data/driven --event_dir data/nch/Sleep_Data

The data are made up: stages, breathing events and signals follow rules by age
(pedsleepmae/simulate/norms.py has their sources), and breathing events are more frequent than at
NCH unless events.* says otherwise. Every file says that it is simulated.
"""

import sys

from tqdm import tqdm

from pedsleepmae.config import load_settings
from pedsleepmae.errors import SettingsError, require_folder, run_script
from pedsleepmae.simulate import batches, health
from pedsleepmae.simulate.cohort import SimulateSettings, Visit, plan_cohort


def open_inputs(settings: SimulateSettings) -> list[Visit]:
    """The visits to simulate; recordings of another cohort in the same folder are refused."""
    if settings.event_dir is not None:
        require_folder(settings.event_dir, "event_dir", "give a folder of NCH .tsv files")
    visits = plan_cohort(settings)
    if settings.batches_dir is None:
        folder = settings.output_dir / "Sleep_Data"
        names = {path.name for path in folder.glob("*.edf")}
        others = sorted(names - {f"{visit.key}.edf" for visit in visits})
        if others:
            raise SettingsError(
                f"output_dir: {folder} holds {len(others)} recordings of another cohort (first "
                f"{others[0]}); give an empty folder or delete it"
            )
    return visits


def main(argv: list[str]) -> int:
    settings = load_settings(SimulateSettings, "simulate.yaml", __doc__, argv)

    def simulate(visits: list[Visit]) -> None:
        health.write_health_data(settings.output_dir / "Health_Data", visits)
        if settings.batches_dir is not None:
            counts = batches.write_batches(visits, settings)
            unit, place = "examples", settings.batches_dir
        else:
            from pedsleepmae.simulate import nch_files  # here: batch files need no edfio

            counts = nch_files.write_recordings(visits, settings)
            unit, place = "epochs", settings.output_dir
        n_epochs = sum(tqdm(counts, total=len(visits), desc="Simulating", unit="recording"))
        n_patients = len({visit.patient_id for visit in visits})
        print(
            f"Simulated: {len(visits)} recordings of {n_patients} children, {n_epochs} scored "
            f"{unit}, in {place}"
        )

    return run_script(lambda: open_inputs(settings), simulate, "it begins anew")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
