"""The embedding space: maps, the path of a night, a cohort against the rest, distances.

    python 5_explore_embeddings.py --config configs/explore.yaml

Uses the embeddings that script 3 stored (paths.embeddings_dir) and computes those that are missing.
A cohort is given by ICD codes of NCH's health data, or by a list of patients:

    python 5_explore_embeddings.py --split all --paths.health_dir data/nch/Health_Data
    python 5_explore_embeddings.py --cohort.name "my patients" --cohort.patients_file list.csv

Writes explore.json, explore.html, tables/ and pictures/.
"""

import sys

from pedsleepmae import config, errors
from pedsleepmae.explore import report, run


def main(argv: list[str]) -> int:
    settings = config.load_settings(run.ExploreSettings, "explore.yaml", __doc__, argv)

    def work(inputs: run.Inputs) -> None:
        found = run.explore(settings, inputs)
        content = run.as_content(settings, inputs, found)
        place = report.write_results(settings.paths.output_dir, found, content)
        print(report.text_summary(content))
        print(f"page: {place}")

    return errors.run_script(lambda: run.open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
