"""Linear probes on the frozen encoder: how much of sleep and breathing its embeddings hold.

    python 3_train_classifier.py --config configs/probe.yaml

Embeddings are computed once and kept below paths.output_dir; on several GPUs, start with torchrun:

    torchrun --nproc_per_node 4 3_train_classifier.py --config configs/probe.yaml

Two checkpoints on the same patients, each with its own best pooling:

    python 3_train_classifier.py --paths.checkpoint run/checkpoint_best.pt --paths.compare_with \\
        checkpoint/m15p8_checkpoint.pt

With `--mode lora`, `full` or `scratch` the encoder is trained first (configs/finetune.yaml);
`--label_curve` measures what a few labelled patients are worth.

Writes metrics.json, report.html, tables/, pictures/ and probes.npz, and prints the table of tasks.
Script 5 draws maps of the embeddings that are kept here, script 4 scores nights with probes.npz.
"""

import sys

from pedsleepmae import config, machine
from pedsleepmae.errors import run_script
from pedsleepmae.finetune import curve
from pedsleepmae.finetune.run import ClassifierSettings, finetune_encoder
from pedsleepmae.probe import evaluation, report, run
from pedsleepmae.probe.linear import FitSettings
from pedsleepmae.probe.montages import judge_montages
from pedsleepmae.probe.nights import read_studies


def main(argv: list[str]) -> int:
    settings = config.load_settings(ClassifierSettings, "probe.yaml", __doc__, argv)

    def work(inputs: tuple) -> None:
        index, encoders, n_seen, compute = inputs
        fitting = FitSettings(
            settings.regularisation, settings.memory_gb, settings.n_workers, compute.device
        )
        tuning, world = None, machine.join_world(compute.device)
        if settings.mode != "probe":
            encoders["frozen"] = encoders["encoder"]
            encoders["encoder"], tuning = finetune_encoder(
                settings, index, encoders["frozen"], compute, world, fitting
            )
        tables = run.compute_tables(settings, index, encoders, compute, world)
        machine.leave_world(world)
        if tables is None:  # torchrun's first process goes on alone
            return
        studies = read_studies(settings.paths.batches_dir)
        results = evaluation.compare(settings, index, tables, studies, fitting)
        facts = run.describe(settings, encoders, n_seen, compute.precision)
        content = report.as_metrics(results, facts)
        content |= {"mode": settings.mode, "finetuning": tuning}
        montages, encoder = {}, encoders["encoder"]
        if settings.montage_epochs and results.fitted:
            folder = settings.paths.output_dir / "embeddings"
            montages = judge_montages(settings, index, encoder, results, folder, compute, fitting)
        single = None
        if settings.events and results.fitted:
            single = run.judge_events(settings, index, encoder, results, compute)
        more = {}
        if settings.age and results.fitted:
            ages = run.judge_ages(settings, index, tables, results, studies)
            content["age"], more["ages"] = ages.figures, ages.nights
        if settings.label_curve:
            frozen = encoders.get("frozen", encoder)
            names = run.read_outs(settings, frozen)
            found = curve.measure_curve(settings, index, frozen, tables, names, compute, fitting)
            content["label_curve"] = found.rows
            more |= {"curve": curve.curve_table(found.rows), "label_draws": found.draws}
        place = run.write_results(settings, encoder, results, content, montages, single, more)
        print(report.text_table(content))
        print(f"report: {place}")
        if settings.paths.publish_to is not None:
            print(f"published: {settings.paths.publish_to}")

    return run_script(lambda: run.open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
