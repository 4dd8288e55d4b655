"""What script 4 leaves of one night: tables, summary, annotations.edf and files for other tools.

Nothing of the recording's header but its signals' labels gets into them: no name, no patient
field, no date. Every file says that it comes from no medical device.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import edfio
import numpy as np
import pandas as pd

from pedsleepmae import disk
from pedsleepmae.score import TABLES
from pedsleepmae.score.night import Night, annotation_rows, event_rows
from pedsleepmae.tasks import EVENT_TEXTS, NOTICE, STAGES


def safe_name(stem: str) -> str:
    """A file's stem as a folder name: letters, digits, `.`, `_` and `-`, no leading dot.

    A stem that has to be altered gets eight digits of its hash, so that two stay two; so does one
    that is called like a table beside the folders.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._")[:100]
    if name == stem and name.lower() not in TABLES:
        return name
    return f"{name or 'recording'}_{eight_digits(stem)}"


def eight_digits(text: str) -> str:
    """Eight hexadecimal digits of a text's hash; of a file's name too that is not UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def name_folders(recordings: Iterable[Path]) -> dict[Path, str]:
    """The folder of results of each recording, by its name.

    Of several with one name all but the first by place get digits of where they lie below the
    folder that they share: the same in every run on them, wherever that folder has moved.
    """
    alike = defaultdict(list)
    for path in recordings:
        alike[safe_name(path.stem).lower()].append(path)  # one folder on disks that know no case
    names = {}
    for paths in alike.values():
        shared = os.path.commonpath([path.parent.absolute() for path in paths])
        places = sorted((os.path.relpath(path.absolute(), shared), path) for path in paths)
        for i, (place, path) in enumerate(places):
            names[path] = safe_name(path.stem) + (f"_{eight_digits(place)}" if i else "")
    return names


def write_night(folder: Path, night: Night, summary: Mapping) -> None:
    """Write our own files but the page, each whole or not at all."""
    disk.write_table(folder / "epochs.csv", epoch_table(night))
    disk.write_table(folder / "events.csv", event_table(night))
    disk.write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    disk.write_table(folder / "summary.csv", summary_table(summary))
    with disk.write_whole(folder / "annotations.edf") as temporary:
        write_edf_annotations(temporary, night)


def epoch_table(night: Night) -> pd.DataFrame:
    """A row for each epoch: stage and its probabilities, events, flag, and the scorer's stage."""
    table = {"epoch": np.arange(len(night)), "onset_s": night.onsets_s}
    table["in_bed"] = night.in_bed_N.astype(int)
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


def event_table(night: Night) -> pd.DataFrame:
    """A row for each event; ``found_by``: seconds (a single event) or epochs (a run of them)."""
    table = pd.DataFrame(
        event_rows(night), columns=["onset_s", "duration_s", "kind", "probability"]
    )
    table["found_by"] = ["seconds" if kind in night.found else "epochs" for kind in table["kind"]]
    columns = ["kind", "onset_s", "duration_s", "probability", "found_by"]
    return table[columns].assign(notice=NOTICE)


def summary_table(summary: Mapping) -> pd.DataFrame:
    """The quantities of summary.json, a row each."""
    rows = []
    for quantity in summary["quantities"]:
        rests_on = quantity["rests_on"] or {}
        error = rests_on.get("error_on_test_nights") or {}
        row = {"quantity": quantity["name"]}
        row |= {key: quantity.get(key) for key in ("value", "unit", "called", "scored", "reason")}
        row |= {key: quantity.get(key) for key in ("called_reason", "scored_reason", "note")}
        counted = quantity.get("counted", {})
        row |= {f"counted_{way}": counted.get(way) for way in ("value", "called", "scored")}
        low, high = quantity.get("events_per_hour", (None, None))
        row |= {"events_per_hour_low": low, "events_per_hour_high": high}
        row["checkpoint"] = summary["checkpoint"]["file"]
        row |= {key: rests_on.get(key) for key in ("calibration_slope", "n_val_patients")}
        row |= {"n_test_nights": error.get("n"), "test_bias": error.get("bias")}
        row |= {"test_limit_low": error.get("lower"), "test_limit_high": error.get("upper")}
        row["calibrated_on_simulated"] = rests_on.get("simulated")
        row |= {key: quantity[key] for key in ("definition", "source")}
        rows.append(row)
    return pd.DataFrame(rows).assign(notice=NOTICE)


def write_edf_annotations(path: Path, night: Night) -> None:
    """An EDF+ file of annotations alone, times from the start of the recording."""
    rows = [
        edfio.EdfAnnotation(onset_s, duration_s or None, text)
        for onset_s, duration_s, text in annotation_rows(night)
    ]
    edfio.Edf([], annotations=rows).write(path)
