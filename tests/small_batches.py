"""Small folders of batch files for the tests of data, checkpoints and training."""

from pathlib import Path

import numpy as np

from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS, RATE_HZ
from pedsleepmae.store import Examples, batch_path, write_batch
from pedsleepmae.tasks import LABELS


def make_examples(n: int, patients: tuple[int, ...], seed: int, dtype=np.float16) -> Examples:
    """Sine waves of another frequency in each channel and example; a tenth of channels absent.

    The sleep label of an example is 0 for slow waves and 1 for fast ones.
    """
    rng = np.random.default_rng(seed)
    fast = rng.integers(0, 2, n)
    rate_hz = rng.uniform(0.2, 0.6, (n, N_CHANNELS, 1)) * (1 + 2 * fast[:, None, None])
    phase = rng.uniform(0, 2 * np.pi, (n, N_CHANNELS, 1))
    time_s = np.arange(EPOCH_SAMPLES) / RATE_HZ
    present = rng.random((n, N_CHANNELS)) > 0.1
    signals = np.sin(2 * np.pi * rate_hz * time_s + phase) * present[:, :, None]
    labels = {name: np.zeros(n, np.int64) for name in LABELS} | {"sleep": fast}
    return Examples(
        signals=signals.astype(dtype),
        labels=labels,
        patient_ids=np.array(patients)[np.arange(n) % len(patients)],
        study_ids=np.arange(n) % 3,
        onsets_s=np.arange(n) * 30.0,
        present=present,
        center=np.zeros((n, N_CHANNELS)),
        scale=np.ones((n, N_CHANNELS)),
    )


def write_folder(folder: Path, *, simulated: bool = True, **sizes: list[int]) -> Path:
    """Batch files of these sizes: ``write_folder(folder, train=[5, 3], val=[4])``.

    Patients 1 and 2 are in train, 3 and 4 in val, 5 and 6 in test.
    """
    patients = {"train": (1, 2), "val": (3, 4), "test": (5, 6)}
    for split, numbers in sizes.items():
        for i, n in enumerate(numbers):
            seed = 100 * list(patients).index(split) + i
            write_batch(
                batch_path(folder, split, i),
                make_examples(n, patients[split], seed),
                split_hash="0123456789abcdef",
                patient_disjoint=True,
                simulated=simulated,
                scaling="policy",
            )
    return folder
