"""Scored events from events.csv: what single events are fitted on and judged by."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pedsleepmae.errors import ProbeError
from pedsleepmae.foreign import TableError, as_id, as_number, read_pieces
from pedsleepmae.tasks import EVENT_COLUMNS, EVENT_TEXTS, EVENTS_FILE, SCORED_KINDS

KINDS = tuple(EVENT_TEXTS)  # the tasks whose single events are looked for

LARGEST_EVENTS = 2_000_000_000  # bytes; NCH's 3,984 nights have some 100 MB
LONGEST_S = 7 * 86400.0  # of a recording; an onset beyond is a writing error

Truth = Mapping[tuple[int, int], Mapping[str, np.ndarray]]  # (patient, study) -> kind -> (n, 2)


def read_events(batches_dir: Path) -> Truth:
    """Scored events of each night by task, (n, 2) spans (onset_s, end_s) sorted by onset.

    A night that has none is not in it. ProbeError where there is no events.csv, or none of ours.
    """
    path = Path(batches_dir) / EVENTS_FILE
    if not path.exists():
        raise ProbeError(
            f"events: there is no {path}, so single events cannot be fitted; run script 1 (or 0) "
            "again, or leave --events out"
        )
    tasks_of = {
        name: [t for t in KINDS if name in SCORED_KINDS[t]]
        for t in KINDS
        for name in SCORED_KINDS[t]
    }
    found: dict[tuple[int, int], dict[str, list]] = {}
    try:
        for table in read_pieces(path, EVENT_COLUMNS, largest=LARGEST_EVENTS):
            for patient, study, name, onset, duration in table.itertuples(index=False):
                key = as_id(patient), as_id(study)
                onset_s, duration_s = (
                    as_number(onset, -LONGEST_S, LONGEST_S),
                    as_number(duration, 0, LONGEST_S),
                )
                if None in key or name not in tasks_of or not np.isfinite(onset_s + duration_s):
                    raise ProbeError(
                        f"{path}: a row is no event (it holds {name[:40]!r} at {onset[:20]!r}); "
                        "run script 1 again"
                    )
                night = found.setdefault(key, {kind: [] for kind in KINDS})
                for task in tasks_of[name]:
                    night[task].append((onset_s, onset_s + duration_s))
    except TableError as error:
        raise ProbeError(f"{error}; run script 1 again") from error
    return {
        key: {task: np.array(sorted(spans)).reshape(-1, 2) for task, spans in night.items()}
        for key, night in found.items()
    }
