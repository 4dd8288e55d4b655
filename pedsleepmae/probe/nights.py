"""Figures of whole nights: sleep time and events an hour, scored against predicted."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pedsleepmae import metrics, store
from pedsleepmae.errors import warn
from pedsleepmae.foreign import OLDEST_DAYS, TableError, as_id, as_number, read_table
from pedsleepmae.tasks import EVENT_COUNTS, STAGES, task_labels

NIGHT = ["patient_id", "study_id"]  # what a night is known by
EPOCH_MINUTES = 0.5
MIN_SLEEP_HOURS = 0.25  # an index per hour of sleep means nothing on less
MOST_EVENTS = 100_000  # of a night: one a second, around the clock
INDICES = {  # index of a night -> the task whose epochs it counts
    "apnea_hypopnea_index": "apnea_hypopnea",
    "desaturation_index": "desaturation",
    "arousal_index": "arousal",
}
INDEX_EVENTS = {  # … and the columns of studies.csv whose events it counts
    "apnea_hypopnea_index": ["n_apneas", "n_hypopneas"],
    "desaturation_index": ["n_desaturations"],
    "arousal_index": ["n_arousals"],
}


def read_studies(batches_dir: Path) -> pd.DataFrame | None:
    """What studies.csv knows of each night, NaN where it does not; None without such a file.

    Indexed by patient and study: age_days, sex, and for each of INDICES the number of its events.
    What cannot be such a number is unknown.
    """
    path = Path(batches_dir) / "studies.csv"
    if not os.path.lexists(path):
        return None
    counts = list(EVENT_COUNTS.values())
    try:
        table = read_table(path, NIGHT, ["age_days", "sex", *counts])
    except TableError as error:
        warn(f"{error}; ages, sexes and numbers of events stay unknown")
        return None
    studies = table[NIGHT].map(as_id)
    studies["age_days"] = [as_number(text, 0, OLDEST_DAYS) for text in table["age_days"]]
    studies["sex"] = [{"F": "F", "M": "M"}.get(text.strip()) for text in table["sex"]]
    for name in counts:
        studies[name] = [as_number(text, 0, MOST_EVENTS) for text in table[name]]
    # A recording that could not be used may have the same night as one that was, without numbers.
    known_first = studies[counts].isna().sum(axis=1).sort_values(kind="stable").index
    studies = studies.loc[known_first].dropna(subset=NIGHT).drop_duplicates(NIGHT).sort_index()
    studies = studies.astype(dict.fromkeys(NIGHT, int)).set_index(NIGHT)
    for name, columns in INDEX_EVENTS.items():
        studies[name] = studies[columns].sum(axis=1, skipna=False)
    return studies[["age_days", "sex", *INDICES]]


def events_per_epoch(index: store.ExampleIndex, studies: pd.DataFrame | None) -> dict[str, float]:
    """For each of INDICES the scored events in sleep for one epoch of sleep that holds such a one.

    From the scoring of the val nights: probes find epochs, and this turns their number into that
    of events. Left out where studies.csv does not count events, and where the nights are split in
    time, since then only parts of them are judged.
    """
    if studies is None or not index.patient_disjoint:
        return {}
    val = index.rows("val")
    nights = pd.MultiIndex.from_arrays([index.patient_ids[val], index.study_ids[val]])
    known = studies.reindex(nights.unique())
    asleep = task_labels(index.labels, "sleep")[val] > 0
    ratios = {}
    for name, task in INDICES.items():
        n_events = known[name].dropna()
        counted = nights.isin(n_events.index)
        n_epochs = (task_labels(index.labels, task)[val][counted & asleep] == 1).sum()
        if n_epochs:
            ratios[name] = float(n_events.sum() / n_epochs)
    return ratios


def count_index_events(name: str, event_counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Events that the index ``name`` counts, (N,), of events by kind in each epoch, (N,) each."""
    return sum(event_counts[k] for k, c in EVENT_COUNTS.items() if c in INDEX_EVENTS[name])


def night_table(
    index: store.ExampleIndex,
    test: np.ndarray,
    prob_of: Mapping[str, np.ndarray],
    studies: pd.DataFrame | None,
    per_epoch: Mapping[str, float],
) -> pd.DataFrame:
    """One row for each test night: scored and predicted minutes of sleep, stages, and indices.

    ``prob_of``: by task that could be fitted the encoder's probabilities, (n_test, classes).
    Predicted counts are sums of recalibrated probabilities. An index is the number of scored
    events that begin in sleep, per hour of sleep; predicted, the number of epochs of sleep with
    such an event times ``per_epoch`` of :func:`events_per_epoch`. Where single events are not known
    it is the number of epochs on both sides, which lies near the clinical index but is not the
    same. Without the sleep task the scored sleep serves both.
    """
    stage_N, night_N = task_labels(index.labels, "sleep")[test], index.nights()[test]
    rows = []
    for night in np.unique(night_N[stage_N >= 0]):
        here = np.flatnonzero((night_N == night) & (stage_N >= 0))
        scored_K = np.bincount(stage_N[here], minlength=5) * EPOCH_MINUTES
        first = test[here[0]]
        row = {"patient_id": int(index.patient_ids[first]), "study_id": int(index.study_ids[first])}
        row |= {"epochs": len(here), "sleep_min_scored": scored_K[1:].sum()}
        predicted_K = scored_K
        asleep_N = p_asleep_N = (stage_N[here] > 0).astype(float)
        if "sleep" in prob_of:
            predicted_K = prob_of["sleep"][here].sum(0) * EPOCH_MINUTES
            p_asleep_N = 1 - prob_of["sleep"][here, 0]
            row["sleep_min_predicted"] = predicted_K[1:].sum()
            for k, stage in enumerate(STAGES):
                row[f"{stage}_min_scored"] = scored_K[k]
                row[f"{stage}_min_predicted"] = predicted_K[k]
        hours = {"scored": scored_K[1:].sum() / 60, "predicted": predicted_K[1:].sum() / 60}
        for name, task in INDICES.items():
            if task not in prob_of or hours["scored"] < MIN_SLEEP_HOURS:
                continue
            n_scored = task_labels(index.labels, task)[test[here]] @ asleep_N
            if name in per_epoch:
                n_scored = studies[name].get((row["patient_id"], row["study_id"]), np.nan)
            row[f"{name}_scored"] = n_scored / hours["scored"]
            n_predicted = prob_of[task][here, 1] @ p_asleep_N * per_epoch.get(name, 1.0)
            row[f"{name}_predicted"] = n_predicted / max(hours["predicted"], MIN_SLEEP_HOURS)
        rows.append(row)
    return pd.DataFrame(rows)


def night_agreement(nights: pd.DataFrame) -> dict[str, dict]:
    """Bland-Altman figures of every quantity that a night has both scored and predicted."""
    agreement = {}
    for column in [column for column in nights.columns if column.endswith("_predicted")]:
        name = column.removesuffix("_predicted")
        predicted, scored = nights[[column, f"{name}_scored"]].dropna().to_numpy().T
        agreement[name] = metrics.bland_altman(predicted, scored)
    return agreement
