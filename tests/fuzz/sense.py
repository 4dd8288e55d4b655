"""What sense an accepted input must make: times, codes, shapes, sizes, words."""

import numpy as np

from pedsleepmae import store
from pedsleepmae.channels import EPOCH_S, EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.prepare.annotations import Scoring, label_epochs
from pedsleepmae.tasks import EVENT_KINDS

from .pool import Wrong

# What a label can be, beside unscored (-1) for the stage.
LARGEST_CODE = {"sleep": 4, "apnea": 3, "hypop": 2, "desat": 1, "eeg": 1}
LARGEST_EEG = 1e4  # standard deviations; no head makes them
LONGEST_NIGHT_EPOCHS = 50_000
SECRET = "SECRETNAME"  # in the header's patient field: must never be told


def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise Wrong(sentence)


def require_printable(text: str, what: str) -> None:
    bad = [c for c in text if not c.isprintable() and c != "\n"]
    require(not bad, f"{what} holds {bad[:1]!r}")
    require(SECRET not in text, f"{what} tells the patient field")


def check_scoring(scoring: Scoring) -> None:
    """Stage rows on finite times that never overlap, codes in range, events on finite times."""
    onsets_s = np.asarray(scoring.stage_onsets_s, float)
    require(len(onsets_s) < LONGEST_NIGHT_EPOCHS, f"{len(onsets_s)} stage rows")
    require(np.isfinite(onsets_s).all(), "a stage row at no finite time")
    require((np.diff(onsets_s) >= EPOCH_S - 1e-3).all(), "stage rows overlap")
    require(np.isin(scoring.stages, range(-1, 5)).all(), "a stage out of range")
    for event in scoring.events:
        finite = np.isfinite([event.onset_s, event.duration_s]).all() and event.duration_s >= 0
        require(finite, f"an event at {event.onset_s} s lasts {event.duration_s} s")
        require(event.kind in EVENT_KINDS, f"an event of kind {event.kind}")
    for remark in scoring.remarks:
        require_printable(remark, "a remark")
    labels = label_epochs(scoring, 3600.0)
    check_labels({"sleep": labels.sleep, **labels.events})
    require((np.diff(labels.onsets_s) >= EPOCH_S - 1e-3).all(), "epochs overlap")


def check_labels(labels: dict[str, np.ndarray]) -> None:
    lengths = {len(values) for values in labels.values()}
    require(len(lengths) == 1, f"labels of {lengths} epochs")
    for name, largest in LARGEST_CODE.items():
        lowest = -1 if name == "sleep" else 0
        inside = (labels[name] >= lowest) & (labels[name] <= largest)
        require(bool(inside.all()), f"{name} labels out of range")


def check_examples(examples: store.Examples) -> None:
    n = len(examples.signals)
    require(examples.signals.shape == (n, N_CHANNELS, EPOCH_SAMPLES), "signals of another shape")
    require(examples.present.shape == (n, N_CHANNELS), "channels_present of another shape")
    require(bool(np.isfinite(examples.onsets_s).all()), "an epoch at no finite time")
    require(bool((examples.scale > 0).all()), "a scale that is not above 0")
    require(bool(np.isfinite(examples.center).all()), "a centre that is not finite")
    check_labels(examples.labels)
    check_signals(examples.signals)


def check_signals(signals_NCT: np.ndarray) -> None:
    """Of EEG, EOG and EMG as a whole: a flipped bit in one sample is a number like another."""
    if signals_NCT.size:
        usual = np.nanpercentile(np.abs(signals_NCT[:, :7].astype(np.float32)), 99)
        require(not usual > LARGEST_EEG, f"EEG of {usual:.3g} standard deviations")
