"""Linear probes on the frozen encoder: how much of sleep and breathing its embeddings hold.

    python 3_train_classifier.py --config configs/probe.yaml

Embeddings are computed once and kept below paths.output_dir; on several GPUs, start with torchrun:

    torchrun --nproc_per_node 4 3_train_classifier.py --config configs/probe.yaml

Two checkpoints on the same patients, each with its own best pooling:

    python 3_train_classifier.py --paths.checkpoint run/checkpoint_best.pt --paths.compare_with \\
        checkpoint/m15p8_checkpoint.pt

Writes metrics.json, report.html, tables/, pictures/ and probes.npz, and prints the table of tasks.
Script 5 draws maps of the embeddings that are kept here, script 4 scores nights with probes.npz.
"""

import sys

from pedsleepmae import config, errors
from pedsleepmae.probe import report, run
from pedsleepmae.probe.evaluation import ProbeSettings


def main(argv: list[str]) -> int:
    settings = config.load_settings(ProbeSettings, "probe.yaml", __doc__, argv)

    def work(inputs: run.Inputs) -> None:
        results = run.compare(settings, inputs)
        if results is None:  # torchrun's first process goes on alone
            return
        content = report.as_metrics(results, run.describe(settings, inputs))
        place = run.write_results(settings, inputs, results, content)
        print(report.text_table(content))
        print(f"report: {place}")
        if settings.paths.publish_to is not None:
            print(f"published: {settings.paths.publish_to}")

    return errors.run_script(lambda: run.open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
