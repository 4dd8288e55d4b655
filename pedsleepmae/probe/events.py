"""Single events found, matched and judged: the encoder, its untrained twin, hand-made features.

Nights are streamed: of the training nights a bounded number of steps is kept, of val nights their
probabilities, of test nights the events found. Axes: **G** patients, **R** bootstrap draws.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score
from tqdm import tqdm

from pedsleepmae import metrics, store
from pedsleepmae.channels import EPOCH_S
from pedsleepmae.data import sample_batches
from pedsleepmae.errors import warn
from pedsleepmae.machine import Compute
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.probe import steps
from pedsleepmae.probe.detection import (
    CHOSEN_AT,
    KINDS,
    NightSteps,
    choose_rules,
    count_matches,
    find_events,
    fit_steps,
    keep_rows,
    steps_in,
    touching,
)
from pedsleepmae.probe.embeddings import embed_batch
from pedsleepmae.probe.fitted import StepProbe
from pedsleepmae.probe.nights import INDICES, MIN_SLEEP_HOURS, NIGHT, night_agreement
from pedsleepmae.probe.spans import epochs_as_spans, match_spans, shift_spans
from pedsleepmae.probe.truth import Truth
from pedsleepmae.splits import SPLITS
from pedsleepmae.tasks import task_labels

COPIES = 3  # of the rows that are kept: as gathered, together, and the solver's
STRENGTHS = (1e-4, 1e-3, 1e-2)  # C; val chooses
IOUS = (0.2, 0.5)
SHIFT = 0.5  # of the night: where the truth is moved to, for what chance gives
SEVERITIES = (1.0, 5.0, 10.0)  # events an hour: mild, moderate, severe in children (AHI)
NO_EVENTS: Mapping[str, np.ndarray] = {kind: np.zeros((0, 2)) for kind in KINDS}

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # positions -> x_NMF, present_NF


# ------------------------------------------------------------------ sources of features
def encoder_steps(
    index: store.ExampleIndex, model: MaskedAutoencoder, layer: int | None, compute: Compute
) -> Read:
    """Reads the token features of examples at these positions of the index."""
    steps.check_patches(model.n_patches)
    model, name = model.to(compute.device).eval(), steps.pooling_of(layer)

    def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts, present = [], []
        for x_BCT, present_BC in sample_batches(index, positions, compute.batch_size):
            parts.append(embed_batch(model, x_BCT, present_BC, [name], compute)[name])
            present.append(present_BC.numpy())
        x_NMF = steps.token_steps(np.concatenate(parts))
        return x_NMF, steps.present_features(np.concatenate(present), x_NMF)

    return read


def handmade_reader(index: store.ExampleIndex) -> Read:
    """Reads the hand-made features of examples at these positions of the index."""

    def read(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts, present = [], []
        for x_BCT, present_BC in sample_batches(index, positions, 128):
            x_NMF, channel_F = steps.handmade_steps(x_BCT.numpy())
            parts.append(x_NMF)
            present.append(present_BC.numpy()[:, channel_F])
        return np.concatenate(parts), np.concatenate(present)

    return read


def stream_nights(
    index: store.ExampleIndex, positions: list[np.ndarray], truth: Truth, read: Read, title: str
) -> Iterator[NightSteps]:
    """The nights at these positions (each in time order), one at a time, under a progress bar."""
    for rows in tqdm(positions, desc=title, unit="night"):
        onsets_s = index.onsets_s[rows]
        key = int(index.patient_ids[rows[0]]), int(index.study_ids[rows[0]])
        x_SF = steps.night_steps(*read(rows), onsets_s)
        yield NightSteps(steps.step_onsets(onsets_s), x_SF, truth.get(key, NO_EVENTS))


def nights_of(index: store.ExampleIndex, split: str, most: int | None = None, seed: int = 0):
    """Positions of each night of a split in time order; of more than ``most`` so many, drawn."""
    rows = index.rows(split)
    rows = rows[np.lexsort([index.onsets_s[rows], index.study_ids[rows], index.patient_ids[rows]])]
    night_N = index.nights()[rows]
    found = np.split(rows, np.flatnonzero(np.diff(night_N)) + 1)
    if most is not None and len(found) > most:
        drawn = np.random.default_rng(seed).choice(len(found), most, replace=False)
        found = [found[i] for i in np.sort(drawn)]
    return found


# ------------------------------------------------------------------ the comparison
@dataclass(frozen=True)
class EventResults:
    """What script 3 reports of single events.

    ``probes``: of the encoder, by kind. ``figures``: what metrics.json has of them. ``nights``: a
    row a test night, indices as scored and from the events found. ``montages``: the encoder's
    probes for fewer channels, by montage and kind.
    """

    probes: dict[str, StepProbe]
    figures: dict
    nights: pd.DataFrame
    montages: dict[str, dict[str, StepProbe]] = field(default_factory=dict)


Found = list[dict[str, np.ndarray]]  # of each test night, by kind, the spans


def compare_events(
    index: store.ExampleIndex,
    sources: Mapping[str, Read],
    truth: Truth,
    stages: np.ndarray,
    *,
    most_nights: int,
    memory_gb: float,
    n_draws: int,
    seed: int,
    title: str = "events",
) -> EventResults | None:
    """Fit on train, choose on val, judge on test, for each source ("encoder" the first of them).

    ``stages`` (N,): of each example of the index the called stage, or the scored one where no
    probe calls stages. Of train and val ``most_nights`` nights are used each. None, with a warning,
    where the train nights show no event.
    """
    parts = {split: nights_of(index, split, most_nights, seed) for split in ("train", "val")}
    test, found, probes, chosen_f1 = nights_of(index, "test"), {}, {}, {}
    n_steps = sum(map(len, parts["train"])) * steps.N_STEPS
    event_share = share_in_events(index, parts["train"], truth)
    if not event_share:
        warn("events: no train night has a scored event, so single events cannot be fitted")
        return None
    for source, read in sources.items():
        nights = partial(stream_nights, index, truth=truth, read=read)
        n_features = read(test[0][:1])[0].shape[2] * len(steps.WINDOWS)
        n_rows = int(memory_gb * 1e9 / (4 * n_features * COPIES))
        titles = {split: f"{title}, {source}, {split}" for split in SPLITS}
        train_nights = nights(parts["train"], title=titles["train"])
        kept = keep_rows(train_nights, n_rows, n_steps, event_share, seed)
        fitted = fit_steps(*kept, STRENGTHS)
        chosen = choose_rules(fitted, nights(parts["val"], title=titles["val"]))
        probes[source] = {kind: probe for kind, (probe, _) in chosen.items()}
        chosen_f1[source] = {kind: f1 for kind, (_, f1) in chosen.items()}
        test_nights = nights(test, title=titles["test"])
        found[source] = [find_events(probes[source], night) for night in test_nights]
    true = [scored_events(index, rows, truth) for rows in test]
    found |= references(index, test, true)
    patient_G = np.array([index.patient_ids[rows[0]] for rows in test])
    group_G = np.unique(patient_G, return_inverse=True)[1]
    weights_RG = metrics.draw_weights(int(group_G.max()) + 1, n_draws, seed)
    kinds = {
        kind: kind_figures(kind, true, found, group_G, weights_RG, probe, chosen_f1)
        for kind, probe in probes["encoder"].items()
    }
    table = index_table(index, test, true, found["encoder"], stages)
    figures = {
        "step_s": steps.STEP_S,
        "n_test_nights": len(test),
        "n_test_patients": weights_RG.shape[1],
        "kinds": kinds,
        "indices": index_figures(table),
        "montages": [],  # with_montages fills them in
    }
    return EventResults(probes["encoder"], figures, table)


def with_montages(single: EventResults, fewer: Mapping[str, EventResults | None]) -> EventResults:
    """The results with the encoder's probes for fewer channels, and what these reach: a row for
    each montage and kind. None of a montage is left out."""
    known = {name: its for name, its in fewer.items() if its is not None}
    rows = [
        {"montage": name, "kind": kind, **entry["sources"]["encoder"][f"iou_{CHOSEN_AT:g}"]}
        for name, its in known.items()
        for kind, entry in its.figures["kinds"].items()
    ]
    probes = {name: its.probes for name, its in known.items()}
    return replace(single, figures=single.figures | {"montages": rows}, montages=probes)


def share_in_events(index: store.ExampleIndex, nights: list[np.ndarray], truth: Truth) -> float:
    """Share of the steps of these nights that lie in an event of any kind."""
    n_inside = n_steps = 0
    for rows in nights:
        onset_S = steps.step_onsets(index.onsets_s[rows])
        spans = np.concatenate(list(scored_events(index, rows, truth).values()))
        n_inside += int(steps_in(spans, onset_S).sum())
        n_steps += len(onset_S)
    return n_inside / max(1, n_steps)


def scored_events(
    index: store.ExampleIndex, rows: np.ndarray, truth: Truth
) -> dict[str, np.ndarray]:
    """The scored events of the night at these positions that touch one of its epochs, by kind."""
    key = int(index.patient_ids[rows[0]]), int(index.study_ids[rows[0]])
    onset_S = steps.step_onsets(index.onsets_s[rows])
    return {kind: touching(spans, onset_S) for kind, spans in truth.get(key, NO_EVENTS).items()}


def references(
    index: store.ExampleIndex, test: list[np.ndarray], true: list[dict[str, np.ndarray]]
) -> dict[str, Found]:
    """What no probe finds: runs of truly labelled epochs as events, and the truth moved on.

    The first is the most that 30-s labels can say of single events, the second what chance gives.
    """
    labels = {kind: task_labels(index.labels, kind) for kind in KINDS}
    epochs, chance = [], []
    for rows, its_true in zip(test, true, strict=True):
        onsets_s = index.onsets_s[rows]
        first_s, last_s = onsets_s[0], onsets_s[-1] + EPOCH_S
        shift_s = SHIFT * (last_s - first_s)
        epochs.append(
            {kind: epochs_as_spans(labels[kind][rows] == 1, onsets_s, EPOCH_S) for kind in KINDS}
        )
        chance.append(
            {kind: shift_spans(spans, shift_s, first_s, last_s) for kind, spans in its_true.items()}
        )
    return {"epoch_labels": epochs, "chance": chance}


# ------------------------------------------------------------------ figures
def kind_figures(
    kind: str,
    true: Found,
    found: Mapping[str, Found],
    group_G: np.ndarray,
    weights_RG: np.ndarray,
    probe: StepProbe,
    chosen_f1: Mapping[str, Mapping[str, float]],
) -> dict:
    """F1, sensitivity and precision of every source at each of IOUS, with intervals over patients.

    ``group_G``: number of the patient of each test night.
    """
    n_patients = weights_RG.shape[1]
    sources, draws = {}, {}
    for source, nights in found.items():
        own = {"val_f1": chosen_f1[source].get(kind)} if source in chosen_f1 else {}
        if source in chosen_f1 and kind not in chosen_f1[source]:
            continue
        for iou in IOUS:
            counts_P3 = np.zeros((n_patients, 3))
            for group, its_true, its_found in zip(group_G, true, nights, strict=True):
                counts_P3[group] += count_matches(its_true[kind], its_found[kind], iou)
            own[f"iou_{iou:g}"], draws[source, iou] = match_figures(counts_P3, weights_RG)
        own["onset_error_s"] = onset_errors(kind, true, nights)
        sources[source] = own
    gains = {}
    for source in [name for name in sources if name != "encoder"]:
        name = f"iou_{CHOSEN_AT:g}"
        value = sources["encoder"][name]["f1"], sources[source][name]["f1"]
        if None not in value:
            gap_R = draws["encoder", CHOSEN_AT] - draws[source, CHOSEN_AT]
            gap = value[0] - value[1]
            ci95 = metrics.interval(gap_R, n_patients, gap, (-1.0, 1.0))
            gains[source] = {"f1": gap, "ci95": ci95}
    return {
        "n_true": int(sum(len(night[kind]) for night in true)),
        "rule": vars(probe.rule),
        "strength": probe.strength,
        "sources": sources,
        "encoder_over": gains,
    }


def match_figures(counts_P3: np.ndarray, weights_RG: np.ndarray) -> tuple[dict, np.ndarray]:
    """Figures of (matched, scored, found) by patient with intervals, and F1 of the draws (R,)."""
    n_matched, n_true, n_found = counts_P3.sum(0)
    drawn_R3 = weights_RG @ counts_P3
    ways = {
        "f1": (2 * n_matched, n_true + n_found, 2 * drawn_R3[:, 0], drawn_R3[:, 1:].sum(1)),
        "sensitivity": (n_matched, n_true, drawn_R3[:, 0], drawn_R3[:, 1]),
        "precision": (n_matched, n_found, drawn_R3[:, 0], drawn_R3[:, 2]),
    }
    figures, draws = {"n_found": int(n_found), "ci95": {}}, {}
    for name, (part, whole, part_R, whole_R) in ways.items():
        draws[name] = np.divide(
            part_R, whole_R, out=np.full(len(part_R), np.nan), where=whole_R > 0
        )
        figures[name] = float(part / whole) if whole else None
        figures["ci95"][name] = None
        if whole:
            ci95 = metrics.interval(draws[name], len(counts_P3), figures[name])
            figures["ci95"][name] = ci95
    return figures, draws["f1"]


def onset_errors(kind: str, true: Found, found: Found) -> dict[str, float | int | None]:
    """Onset found minus scored of the matched events, s: median, and median of its size."""
    gaps = [np.zeros(0)]
    for its_true, its_found in zip(true, found, strict=True):
        pairs = match_spans(its_true[kind], its_found[kind], CHOSEN_AT)
        gaps.append(its_found[kind][pairs[:, 1], 0] - its_true[kind][pairs[:, 0], 0])
    gap = np.concatenate(gaps)
    if not len(gap):
        return {"n": 0, "median": None, "median_size": None}
    median, size = float(np.median(gap)), float(np.median(np.abs(gap)))
    return {"n": len(gap), "median": median, "median_size": size}


def count_by_stage(spans: np.ndarray, onsets_s: np.ndarray, stages: np.ndarray) -> dict[str, int]:
    """Events by the stage of the epoch that holds their onset: wake, nrem, rem, unscored.

    An event that begins before the first epoch, or in a gap, counts to the epoch that it reaches
    first. The four add up to all events.
    """
    counts = dict.fromkeys(("wake", "nrem", "rem", "unscored"), 0)
    place = np.searchsorted(onsets_s, spans[:, 0] + 1e-6, side="right") - 1
    after = (place < 0) | (spans[:, 0] >= onsets_s[np.maximum(place, 0)] + EPOCH_S)
    place = np.minimum(place + after, len(onsets_s) - 1)
    names = np.array(["unscored", "wake", "nrem", "nrem", "nrem", "rem"])
    for name in names[stages[place] + 1]:
        counts[name] += 1
    return counts


def index_table(
    index: store.ExampleIndex,
    test: list[np.ndarray],
    true: Found,
    found: Found,
    stages: np.ndarray,
) -> pd.DataFrame:
    """A row a night: events that begin in sleep, per hour of it, NaN on less than 15 minutes of it.

    ``_scored``: the scorer's events and stages; ``_predicted``: events found and ``stages``.
    """
    scored = task_labels(index.labels, "sleep")
    rows = []
    for positions, its_true, its_found in zip(test, true, found, strict=True):
        row = {name: int(getattr(index, f"{name}s")[positions[0]]) for name in NIGHT}
        onsets_s = index.onsets_s[positions]
        for way, spans_of, stage_N in (
            ("scored", its_true, scored[positions]),
            ("predicted", its_found, stages[positions]),
        ):
            hours = float((stage_N > 0).sum() * EPOCH_S / 3600)
            row[f"sleep_hours_{way}"] = hours
            for name, kind in INDICES.items():
                if kind not in spans_of:
                    continue
                row[f"{name}_{way}"] = np.nan  # the column stands though no night has such sleep
                if hours >= MIN_SLEEP_HOURS:
                    counts = count_by_stage(spans_of[kind], onsets_s, stage_N)
                    row[f"{name}_{way}"] = (counts["nrem"] + counts["rem"]) / hours
        rows.append(row)
    return pd.DataFrame(rows)


def index_figures(nights: pd.DataFrame) -> dict[str, dict]:
    """Of each index limits of agreement, ICC, and of the AHI the kappa of severity."""
    figures = night_agreement(nights[[c for c in nights.columns if "sleep_hours" not in c]])
    for name in figures:
        pair = nights[[f"{name}_predicted", f"{name}_scored"]].dropna().to_numpy()
        figures[name]["icc"] = metrics.absolute_agreement(pair)
        if name == "apnea_hypopnea_index" and len(pair):
            classes = np.digitize(pair, SEVERITIES)
            same = len(np.unique(classes)) < 2
            figures[name]["severity_kappa"] = None if same else float(cohen_kappa_score(*classes.T))
    return figures
