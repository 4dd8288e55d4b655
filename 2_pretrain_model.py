"""Pretrain the masked autoencoder on batch files: batches/ -> runs/<name>/

    python 2_pretrain_model.py --paths.batches_dir data/batches --paths.run_dir runs/m15p8

Several GPUs of one machine:

    torchrun --nproc_per_node 4 2_pretrain_model.py --paths.batches_dir data/batches

From the checkpoint that ships instead of from random weights:

    python 2_pretrain_model.py --init_from checkpoint/m15p8_checkpoint.pt

The same command goes on where an interrupted run left off (SIGTERM and Ctrl-C write a checkpoint
first). Written to paths.run_dir: checkpoint_last.pt, checkpoint_best.pt, metrics.jsonl,
tensorboard/, pictures/ of reconstructions and the resolved settings.yaml.
"""

import sys
from dataclasses import replace

from pedsleepmae.checkpoints import CheckpointError, architecture, load_checkpoint, other_scaling
from pedsleepmae.config import exit_bad_settings, load_settings
from pedsleepmae.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    SettingsError,
    as_plain_dict,
    require_file,
    require_folder,
    warn,
)
from pedsleepmae.machine import MachineError
from pedsleepmae.pretrain.run import pretrain
from pedsleepmae.pretrain.trainer import DivergedError, PretrainError, PretrainSettings
from pedsleepmae.store import StoreError, load_index


def main(argv: list[str]) -> int:
    settings = load_settings(PretrainSettings, "pretrain.yaml", __doc__, argv)
    paths = settings.paths
    try:
        require_folder(paths.batches_dir, "paths.batches_dir", "run script 1 first")
        if settings.init_from is not None:
            require_file(settings.init_from, "init_from", "give a checkpoint of script 2")
            settings.model = replace(settings.model, **architecture(settings.init_from))
        index = load_index(paths.batches_dir, seed=settings.seed)
        if settings.init_from is not None:
            warn(other_scaling(load_checkpoint(settings.init_from)["scaling"], index.scaling))
        pretrain(settings, index, as_plain_dict(settings))
    except (SettingsError, StoreError, MachineError, PretrainError, CheckpointError) as error:
        exit_bad_settings(str(error))
    except DivergedError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
