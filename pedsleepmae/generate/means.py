"""Mean embeddings of a class, decoded to signals."""

from dataclasses import dataclass

import numpy as np
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
class ClassMean:
    """The mean embedding of one patient's epochs of a class, decoded, and real epochs beside it.

    ``decoded_CT`` (16, 3840); ``nearest`` and ``farthest`` positions among the patient's own
    epochs of the class, by distance to their mean, with the distances.
    """

    name: str
    patient_id: int
    n_epochs: int
    decoded_CT: np.ndarray
    present_C: np.ndarray
    nearest: np.ndarray
    nearest_distance: np.ndarray
    farthest: np.ndarray
    farthest_distance: np.ndarray


def choose_patient(index: store.ExampleIndex, rows: np.ndarray) -> int | None:
    """The patient with most of these examples (the lowest number of several); None without any."""
    patients, counts = np.unique(index.patient_ids[rows], return_counts=True)
    return int(patients[np.argmax(counts)]) if len(patients) else None


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
        patient = choose_patient(index, here) if patient_id is None else patient_id
        here = data.fixed_sample(here[index.patient_ids[here] == patient], n_max, seed)
        if not len(here):
            continue
        order, distance = by_distance_to_mean(space.read(here))
        near, far = order[:N_SHOWN], order[N_SHOWN:][::-1][:N_SHOWN]
        means.append(
            ClassMean(
                name=name,
                patient_id=int(patient),
                n_epochs=len(here),
                decoded_CT=decode_mean(model, index, here, compute),
                present_C=index.present[here].all(axis=0),
                nearest=here[near],
                nearest_distance=distance[near],
                farthest=here[far],
                farthest_distance=distance[far],
            )
        )
    return means
