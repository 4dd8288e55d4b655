"""A scored night for other tools: the hypnogram of YASA and the table of events of BIDS.

Both count seconds from the start of the recording and hold no date. ``annotations.edf``, for MNE
and EDFbrowser, is written in :mod:`pedsleepmae.score.files`.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pedsleepmae import disk
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.score.night import FAR_TEXT, Night, annotation_rows, event_rows
from pedsleepmae.tasks import EVENT_TEXTS, NOTICE, STAGES, TASKS

YASA_STAGES = ("WAKE", "N1", "N2", "N3", "REM")  # YASA's words, in the order of STAGES
YASA_UNSCORED = "UNS"
SCORER = "PedSleepMAE"
# The release whose rules for `_events.tsv` are followed. It has no file of its own for sleep: the
# draft "Sleep Data and Annotations" (bids-specification, pull request 2208, without a BEP number)
# proposes a `_hypnogram.tsv`, which is not in this release.
BIDS_VERSION = "1.11.2"
STAGE_WORDS = ("wakefulness", "NREM 1", "NREM 2", "NREM 3", "REM sleep")


def write_exports(folder: Path, night: Night) -> None:
    """Write hypnogram.json, and <recording>_events.tsv with its .json, each whole or not at all.

    The recording's name is the folder's. One named as in BIDS, <entities>_eeg, gets
    <entities>_events, as it must stand beside it.
    """
    disk.write_text(folder / "hypnogram.json", json.dumps(hypnogram(night), allow_nan=False))
    stem = f"{folder.name.removesuffix('_eeg')}_events"
    disk.write_table(folder / f"{stem}.tsv", events(night), separator="\t", missing="n/a")
    disk.write_text(folder / f"{stem}.json", json.dumps(describe_events(night), indent=1))


def hypnogram(night: Night) -> dict:
    """The called stages as ``yasa.Hypnogram.from_dict`` reads them, and ``from_json`` from a file.

    YASA's epochs follow each other without a gap: there is a value for every 30 s from the
    recording's start to the last epoch, UNS where none was scored, so that its clock is the
    recording's. An epoch off that grid stands at the nearest place. The grid is that of the first
    epoch, and begins ``first_value_s`` (below 30) after the recording; YASA passes this key over.
    """
    first_s = float(night.onsets_s[0] % EPOCH_S)
    # A shift by half an epoch is rounded up, also where it is a hair less for the decimals.
    place_N = np.floor((night.onsets_s - first_s) / EPOCH_S + 0.5 + 1e-6).astype(int)
    order_N = np.arange(len(night))
    place_N = np.maximum.accumulate(place_N - order_N) + order_N  # no two at one place
    value_M = np.full(place_N[-1] + 1, YASA_UNSCORED, object)
    names = (*YASA_STAGES, YASA_UNSCORED)
    prob_MK = np.zeros((len(value_M), len(names)))
    prob_MK[:, -1] = 1
    if "sleep" in night.called:
        value_M[place_N] = np.array(YASA_STAGES)[night.called["sleep"]]
        prob_MK[place_N] = np.pad(night.prob["sleep"], ((0, 0), (0, 1)))
    return {
        "values": value_M.tolist(),
        "n_stages": len(STAGES),
        "freq": f"{EPOCH_S:g}s",
        "start": None,  # a date, of which the outputs hold none
        "scorer": SCORER,
        "proba": dict(zip(names, prob_MK.round(6).T.tolist(), strict=True)),
        "first_value_s": first_s,
        "notice": NOTICE,
    }


def events(night: Night) -> pd.DataFrame:
    """The rows of annotations.edf as BIDS has them in ``_events.tsv``, in order of time.

    ``trial_type``: the notice, by which script 1 and 4 know that this is no scorer's work, a stage
    each epoch, events (single ones, or runs of epochs with one) and runs of flagged epochs.
    ``probability``: of the trial type, mean over the row; NaN for the notice and for flags, which
    have none.
    """
    prob_of = {}
    if "sleep" in night.prob:
        prob_of = dict(zip(stage_texts(), night.prob["sleep"].T, strict=True))
    of_event = {(on, span, EVENT_TEXTS[task]): p for on, span, task, p in event_rows(night)}
    middle_N, rows = night.onsets_s + EPOCH_S / 2, []
    for row in annotation_rows(night):
        onset_s, duration_s, text = row
        probability = of_event.get(row, np.nan)
        if text in prob_of:
            in_row_N = (middle_N > onset_s) & (middle_N < onset_s + duration_s)
            probability = prob_of[text][in_row_N].mean()
        rows.append((*row, probability))
    return pd.DataFrame(rows, columns=["onset", "duration", "trial_type", "probability"])


def describe_events(night: Night) -> dict:
    """What the columns of :func:`events` mean, as BIDS has it in ``_events.json``."""
    levels = {NOTICE: "holds for all rows; no event"}
    for text, words in zip(stage_texts(), STAGE_WORDS, strict=True):
        levels[text] = f"a {EPOCH_S:g}-s epoch called {words} (AASM)"
    for task, text in EVENT_TEXTS.items():
        epochs = f"adjoining {EPOCH_S:g}-s epochs called with {TASKS[task]}; no single event"
        levels[text] = f"a single event: {TASKS[task]}" if task in night.found else epochs
    levels[FAR_TEXT] = "adjoining epochs unlike the probes' training data: do not rely on them"
    return {
        "onset": {"Description": "start, from the start of the recording", "Units": "s"},
        "duration": {"Description": "duration", "Units": "s"},
        "trial_type": {
            "LongName": "sleep stage, event or flag",
            "Description": f"predicted by {SCORER}; _events.tsv of BIDS {BIDS_VERSION}. {NOTICE}",
            "Levels": levels,
        },
        "probability": {
            "Description": "recalibrated probability of the trial type, mean over its epochs"
        },
    }


def stage_texts() -> list[str]:
    """The stages in the words of EDF+, in the order of STAGES."""
    return [f"Sleep stage {stage}" for stage in STAGES]
