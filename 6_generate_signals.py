"""Signals from the model: imputed channels, decoded means, nearest neighbours, outliers.

    python 6_generate_signals.py --config configs/generate.yaml

One channel or group of your own: --targets SPO2 EEG. Embeddings are computed once and kept. Writes
generate.json, generate.html, tables/ and pictures/ to paths.output_dir.
"""

import sys

from pedsleepmae import config, errors
from pedsleepmae.generate import report, run


def main(argv: list[str]) -> int:
    settings = config.load_settings(run.GenerateSettings, "generate.yaml", __doc__, argv)

    def work(inputs: run.Inputs) -> None:
        found = run.generate(settings, inputs)
        content = run.as_content(settings, inputs, found)
        place = report.write_results(settings.paths.output_dir, found, content)
        print(report.text_summary(found, content))
        print(f"report: {place}")

    return errors.run_script(lambda: run.open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
