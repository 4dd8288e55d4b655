"""Mean embeddings of a class, decoded to signals."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pedsleepmae import data, store
from pedsleepmae.generate.imputation import read_where_hidden
from pedsleepmae.generate.space import Space, by_distance_to_mean
from pedsleepmae.machine import Compute
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.tasks import CLASSES, class_members

N_SHOWN = 2  # real epochs on each side of a mean


@dataclass(frozen=True)
class Side:
    """Positions of real epochs, and their distances to the mean."""

    positions: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class ClassMean:
    """The mean embedding of one patient's epochs of a class, decoded (16, 3840), and which of the
    patient's own epochs of the class lie nearest to it and farthest from it."""

    name: str
    n_epochs: int
    decoded_CT: np.ndarray
    present_C: np.ndarray
    nearest: Side
    farthest: Side


@torch.no_grad()
def decode_mean(
    model: MaskedAutoencoder, index: store.ExampleIndex, positions: np.ndarray, compute: Compute
) -> np.ndarray:
    """The mean over these examples of all tokens that the encoder gives, decoded: (16, 3840).

    Each patch is read off where it was hidden from the encoder (see read_where_hidden), since only
    there has a decoder with its loss on masked patches learnt anything. One batch is held at a
    time.
    """

    def decode(keep_1CK: torch.Tensor) -> torch.Tensor:
        class_1CE, z_1CKE = 0.0, 0.0
        for x_BCT, present_BC in data.sample_batches(index, positions, compute.batch_size):
            keep_BCK = keep_1CK.expand(len(x_BCT), -1, -1)
            with compute.autocast():
                class_BCE, z_BCKE = model.encode(x_BCT.to(compute.device), present_BC, keep_BCK)
            class_1CE = class_1CE + class_BCE.double().sum(dim=0, keepdim=True)
            z_1CKE = z_1CKE + z_BCKE.double().sum(dim=0, keepdim=True)
        means = ((total / len(positions)).float() for total in (class_1CE, z_1CKE))
        with compute.autocast():
            return model.decode(*means, keep_1CK)

    return read_where_hidden(model, decode)[0].cpu().numpy()


def decode_class_means(
    model: MaskedAutoencoder,
    space: Space,
    split: str,
    n_max: int,
    patient_id: int | None,
    seed: int,
    compute: Compute,
) -> list[ClassMean]:
    """For each class that a patient of the split shows: the decoded mean, and real epochs.

    ``patient_id`` None: of each class the patient with most epochs. At most ``n_max`` epochs, drawn
    by the seed.
    """
    index, rows = space.index, space.index.rows(split)
    members, means = class_members(index.labels), []
    for name in tqdm(CLASSES[1:], desc="decoding means", unit="class", leave=False):
        here = rows[members[name][rows]]
        most = pd.Series(index.patient_ids[here]).mode()[:1]  # the lowest number of several
        chosen = most if patient_id is None else [patient_id]
        here = here[np.isin(index.patient_ids[here], chosen)]
        here = data.fixed_sample(here, n_max, seed)
        if not len(here):
            continue
        order, distance = by_distance_to_mean(space.read(here))
        near, far = order[:N_SHOWN], order[N_SHOWN:][::-1][:N_SHOWN]
        decoded_CT = decode_mean(model, index, here, compute)
        nearest, farthest = Side(here[near], distance[near]), Side(here[far], distance[far])
        present_C = index.present[here].all(axis=0)
        means.append(ClassMean(name, len(here), decoded_CT, present_C, nearest, farthest))
    return means
