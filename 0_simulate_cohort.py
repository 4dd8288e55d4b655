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

from pedsleepmae import config, errors
from pedsleepmae.simulate import run
from pedsleepmae.simulate.cohort import SimulateSettings


def main(argv: list[str]) -> int:
    settings = config.load_settings(SimulateSettings, "simulate.yaml", __doc__, argv)
    return errors.run_script(
        lambda: run.open_inputs(settings), lambda visits: print(run.simulate(visits, settings))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
