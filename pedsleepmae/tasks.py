"""The one vocabulary: sleep stages, labels, kinds of events, the six tasks and their words."""

from collections.abc import Mapping

import numpy as np

STAGES = ("W", "N1", "N2", "N3", "R")  # of AASM; a stage's code is its place here
UNSCORED = -1
LABELS = {  # label of an epoch -> (dataset in an example file, dataset in a batch file)
    "sleep": ("sleep_label", "sleep_labels"),
    "apnea": ("apnea_label", "apnea_labels"),
    "hypop": ("hypop_label", "hypop_labels"),
    "desat": ("desat_label", "desat_labels"),
    "eeg": ("eeg_label", "eeg_labels"),
}
# A label's codes run from 0 (for the stage from UNSCORED) to: types of apnea and hypopnea.
LARGEST_CODE = {"sleep": 4, "apnea": 3, "hypop": 2, "desat": 1, "eeg": 1}
EVENT_COUNTS = {  # label of an event -> column of studies.csv: those that begin in sleep
    "apnea": "n_apneas",
    "hypop": "n_hypopneas",
    "desat": "n_desaturations",
    "eeg": "n_arousals",
}
EVENT_KINDS = tuple(EVENT_COUNTS)
EVENT_NAMES = {  # label and its code -> kind of a scored event in events.csv
    ("apnea", 1): "central_apnea",
    ("apnea", 2): "obstructive_apnea",
    ("apnea", 3): "mixed_apnea",
    ("hypop", 1): "obstructive_hypopnea",
    ("hypop", 2): "hypopnea",
    ("desat", 1): "desaturation",
    ("eeg", 1): "arousal",
}

EVENTS_FILE = "events.csv"  # beside the batch files: every scored event, in sleep or not
EVENT_COLUMNS = ("patient_id", "study_id", "kind", "onset_s", "duration_s")

TASKS = {  # what probes are fitted for, in words
    "sleep": "sleep stage",
    "apnea": "apnea",
    "hypopnea": "hypopnea",
    "apnea_hypopnea": "apnea or hypopnea",
    "desaturation": "oxygen desaturation",
    "arousal": "EEG arousal",
}
N_CLASSES = {task: len(STAGES) if task == "sleep" else 2 for task in TASKS}
EVENT_TEXTS = {  # EDF+'s standard texts (edfplus.info) where it has one; NCH's for desaturations
    "apnea": "Apnea",
    "hypopnea": "Hypopnea",
    "apnea_hypopnea": "Apnea or hypopnea",
    "desaturation": "Oxygen desaturation",
    "arousal": "EEG arousal",
}
EVENTS = ("apnea", "hypopnea", "desaturation", "arousal")  # tasks that do not contain each other
CLASSES = ("all", *STAGES, *EVENTS)  # groups of epochs that script 6 tells apart

APNEAS = ("central_apnea", "obstructive_apnea", "mixed_apnea")
HYPOPNEAS = ("obstructive_hypopnea", "hypopnea")
SCORED_KINDS = {  # task -> kinds of scored events (EVENT_NAMES) that belong to it
    "apnea": APNEAS,
    "hypopnea": HYPOPNEAS,
    "apnea_hypopnea": APNEAS + HYPOPNEAS,
    "desaturation": ("desaturation",),
    "arousal": ("arousal",),
}

# Stands in every file that script 4 writes, so that its predictions are never taken for a scoring.
NOTICE = "Research software, no medical device: not for diagnosis or treatment."


def task_labels(labels: Mapping[str, np.ndarray], task: str) -> np.ndarray:
    """Class of each epoch, (N,), -1 for epochs that the task leaves out; by the keys of LABELS.

    Types of event are collapsed to 0 and 1, as in the paper. Unscored epochs (kept where script 1's
    keep_unscored asks for it) have no class in any task: nobody looked for events in them.
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
    return np.where(labels["sleep"] == UNSCORED, -1, events[task].astype(np.int64))


def class_members(labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each of CLASSES which examples belong to it, (N,) booleans; events may overlap."""
    stage_N = task_labels(labels, "sleep")
    members = {"all": np.ones(len(stage_N), bool)}
    members |= {stage: stage_N == k for k, stage in enumerate(STAGES)}
    return members | {event: task_labels(labels, event) == 1 for event in EVENTS}
