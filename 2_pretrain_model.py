"""Pretrain the masked autoencoder on batch files: batches/ -> runs/<name>/

    python 2_pretrain_model.py --paths.batches_dir data/batches --paths.run_dir runs/m15p8

Several GPUs of one machine:

    torchrun --nproc_per_node 4 2_pretrain_model.py --paths.batches_dir data/batches

From the checkpoint that ships instead of from random weights:

    python 2_pretrain_model.py --init_from checkpoint/m15p8_checkpoint.pt

The same command goes on where an interrupted run left off: SIGTERM and Ctrl-C write a checkpoint
first and end it with exit code 1, --stop_at_step with 0. Written to paths.run_dir:
checkpoint_last.pt, checkpoint_best.pt, metrics.jsonl, tensorboard/, pictures/ of reconstructions
and the resolved settings.yaml.
"""

import sys

from pedsleepmae import config, errors
from pedsleepmae.pretrain import run
from pedsleepmae.pretrain.trainer import PretrainSettings, Trainer


def main(argv: list[str]) -> int:
    settings = config.load_settings(PretrainSettings, "pretrain.yaml", __doc__, argv)

    def work(trainer: Trainer) -> int:
        outcome = run.pretrain(trainer)
        return errors.EXIT_FAILED if outcome.stopped_by_signal else errors.EXIT_DONE

    return errors.run_script(lambda: run.open_inputs(settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
