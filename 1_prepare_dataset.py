"""Recordings and their annotations to examples and batch files (step 1 of 3).

    python 1_prepare_dataset.py --paths.recordings_dir /data/nch/Sleep_Data \\
        --paths.examples_dir data/examples --paths.batches_dir data/batches --n_workers 8

Reads every recording below recordings_dir with its annotation file, cuts 30-second, 16-channel
examples at the scored epochs, and groups them into train/, val/ and test/ by patient. Recordings
that cannot be used are listed in studies.csv with the reason. Interrupt it whenever you like: run
it again and it goes on. --inspect FILE.edf prints which of the 16 channels a file holds.
"""

import sys

from pedsleepmae.config import load_settings
from pedsleepmae.errors import EXIT_DONE, EXIT_SKIPPED, UserError, require_file, run_script
from pedsleepmae.prepare.report import describe_outcomes, inspect_recording, write_report
from pedsleepmae.prepare.run import PrepareSettings, open_inputs, prepare_dataset


def main(argv: list[str]) -> int:
    settings = load_settings(PrepareSettings, "prepare.yaml", __doc__, argv)

    def open_file() -> None:
        require_file(settings.inspect, "inspect", "give the path of an EDF file")

    def inspect(_) -> None:
        print(inspect_recording(settings.inspect, settings.stand_ins))

    def prepare(inputs) -> int:
        outcomes, plan = prepare_dataset(inputs, settings)
        report = write_report(outcomes, plan, settings.paths.batches_dir)
        studies = settings.paths.batches_dir / "studies.csv"
        if not plan.studies:
            raise UserError(
                f"none of the {len(outcomes)} recordings found can be used; the reasons stand in "
                f"{studies} and {report} (the first: {outcomes[0].reason})"
            )
        print(describe_outcomes(outcomes, plan))
        print(f"Tables and report: {studies}, {report}")
        some_left_out = not all(outcome.usable for outcome in outcomes)
        return EXIT_SKIPPED if settings.strict and some_left_out else EXIT_DONE

    if settings.inspect is not None:
        return run_script(open_file, inspect)
    return run_script(lambda: open_inputs(settings), prepare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
