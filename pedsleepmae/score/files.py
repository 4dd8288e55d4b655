"""What script 4 leaves: epochs.csv, summary.json, summary.csv and annotations.edf of one night.

Nothing of the recording's header but its signals' labels gets into them: no name, no patient
field, no date. Every file says that it comes from no medical device.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import edfio
import numpy as np
import pandas as pd

from pedsleepmae import disk
from pedsleepmae.score.night import Night, annotation_rows
from pedsleepmae.tasks import EVENT_TEXTS, NOTICE, STAGES


def safe_name(stem: str) -> str:
    """A file's stem as a folder name: letters, digits, `.`, `_` and `-`, no leading dot.

    A stem that has to be altered gets eight digits of its hash, so that two stay two.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._")[:100]
    if name == stem:
        return name
    return f"{name or 'recording'}_{hashlib.sha256(stem.encode()).hexdigest()[:8]}"


def write_night(folder: Path, night: Night, summary: Mapping) -> None:
    """Write the four files, each whole or not at all."""
    disk.write_table(folder / "epochs.csv", epoch_table(night))
    disk.write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    disk.write_table(folder / "summary.csv", summary_table(summary))
    with disk.write_whole(folder / "annotations.edf") as temporary:
        write_edf_annotations(temporary, night)


def epoch_table(night: Night) -> pd.DataFrame:
    """A row for each epoch: stage and its probabilities, events, flag, and the scorer's stage."""
    table = {"epoch": np.arange(len(night)), "onset_s": night.onsets_s}
    if "sleep" in night.prob:
        table["stage"] = np.array(STAGES)[night.called["sleep"]]
        for k, stage in enumerate(STAGES):
            table[f"p_{stage}"] = night.prob["sleep"][:, k]
    for task in EVENT_TEXTS:
        if task in night.prob:
            table[f"p_{task}"] = night.prob[task][:, 1]
            table[task] = night.called[task]
    table["distance"] = night.distance_N
    table["far"] = night.far_N.astype(int)
    if night.scored:
        names = np.array([*STAGES, ""])
        table["scored_stage"] = names[night.scored["sleep"]]  # -1, unscored, is the last
        for task in EVENT_TEXTS:
            table[f"scored_{task}"] = night.scored[task]
    return pd.DataFrame(table).assign(notice=NOTICE)


def summary_table(summary: Mapping) -> pd.DataFrame:
    """The quantities of summary.json, a row each."""
    rows = []
    for quantity in summary["quantities"]:
        rests_on = quantity["rests_on"] or {}
        error = rests_on.get("error_on_test_nights") or {}
        row = {"quantity": quantity["name"]}
        row |= {key: quantity.get(key) for key in ("value", "unit", "called", "scored", "reason")}
        low, high = quantity.get("events_per_hour", (None, None))
        row |= {"events_per_hour_low": low, "events_per_hour_high": high}
        row["checkpoint"] = summary["checkpoint"]["file"]
        row |= {key: rests_on.get(key) for key in ("calibration_slope", "n_val_patients")}
        row |= {"n_test_nights": error.get("n"), "test_bias": error.get("bias")}
        row |= {"test_limit_low": error.get("lower"), "test_limit_high": error.get("upper")}
        row["calibrated_on_simulated"] = rests_on.get("simulated")
        rows.append(row)
    return pd.DataFrame(rows).assign(notice=NOTICE)


def write_edf_annotations(path: Path, night: Night) -> None:
    """An EDF+ file of annotations alone, times from the start of the recording."""
    rows = [
        edfio.EdfAnnotation(onset_s, duration_s or None, text)
        for onset_s, duration_s, text in annotation_rows(night)
    ]
    edfio.Edf([], annotations=rows).write(path)
