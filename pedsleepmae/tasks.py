"""The one vocabulary: sleep stages, labels, kinds of events, the six tasks and their words."""

from collections.abc import Mapping

import numpy as np

TASK_NAMES = {
    "sleep": "sleep stage",
    "apnea": "apnea",
    "hypopnea": "hypopnea",
    "apnea_hypopnea": "apnea or hypopnea",
    "desaturation": "oxygen desaturation",
    "arousal": "EEG arousal",
}

TASKS = ("sleep", "apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal")

STAGES = ("W", "N1", "N2", "N3", "R")
N_CLASSES = {
    "sleep": 5,
    "apnea": 2,
    "hypopnea": 2,
    "apnea_hypopnea": 2,
    "desaturation": 2,
    "arousal": 2,
}

UNSCORED = -1
# Stands in every file that script 4 writes, so that its predictions are never taken for a scoring.
NOTICE = "Research software, no medical device: not for diagnosis or treatment."

STAGE_NAMES = ("W", "N1", "N2", "N3", "R")

EVENT_KINDS = ("apnea", "hypop", "desat", "eeg")

# Texts of EDF+ (edfplus.info, standard texts) where it has one; NCH's for desaturations.
EVENT_TEXTS = {
    "apnea": "Apnea",
    "hypopnea": "Hypopnea",
    "apnea_hypopnea": "Apnea or hypopnea",
    "desaturation": "Oxygen desaturation",
    "arousal": "EEG arousal",
}

LABELS = {  # label of an epoch -> (dataset in an example file, dataset in a batch file)
    "sleep": ("sleep_label", "sleep_labels"),
    "apnea": ("apnea_label", "apnea_labels"),
    "hypop": ("hypop_label", "hypop_labels"),
    "desat": ("desat_label", "desat_labels"),
    "eeg": ("eeg_label", "eeg_labels"),
}

EVENT_COUNTS = {  # kind of event -> column of studies.csv: those that begin in sleep
    "apnea": "n_apneas",
    "hypop": "n_hypopneas",
    "desat": "n_desaturations",
    "eeg": "n_arousals",
}

EVENTS = ("apnea", "hypopnea", "desaturation", "arousal")
CLASSES = ("all", *STAGES, *EVENTS)


def _words(task: str) -> str:
    return {"apnea_hypopnea": "apnea or hypopnea", "sleep": "sleep stage"}.get(task, task)


def task_labels(labels: Mapping[str, np.ndarray], task: str) -> np.ndarray:
    """Class of each epoch, (N,), -1 for epochs that the task leaves out; by the keys of LABELS.

    Types of event are collapsed to 0 and 1, as in the paper; unscored epochs have no stage.
    """
    if task == "sleep":
        return np.where(labels["sleep"] < N_CLASSES["sleep"], labels["sleep"], -1)
    apnea, hypopnea = labels["apnea"] > 0, labels["hypop"] > 0
    events = {
        "apnea": apnea,
        "hypopnea": hypopnea,
        "apnea_hypopnea": apnea | hypopnea,
        "desaturation": labels["desat"] > 0,
        "arousal": labels["eeg"] > 0,
    }
    return events[task].astype(np.int64)


def class_members(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each of CLASSES which examples belong to it, (N,) booleans; events may overlap."""
    stage_N = task_labels(labels, "sleep")
    members = {"all": np.ones(len(stage_N), bool)}
    members |= {stage: stage_N == k for k, stage in enumerate(STAGES)}
    return members | {event: task_labels(labels, event) == 1 for event in EVENTS}
