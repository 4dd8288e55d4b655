"""What the embedding space looks like: maps, the path of a night, a cohort, distances.

Axes: **N** examples of the index, **Q** patients, **M** pairs. Turns a table of features into an
:class:`Exploration`, which explore.json, the tables and the page are written from. Nothing here is
fitted to a label.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pedsleepmae import cohort_separation, diagnoses, metrics, night_path, signal_distances, store
from pedsleepmae.channels import CHANNEL_NAMES
from pedsleepmae.cohort_separation import Separation
from pedsleepmae.embedding_map import (
    EmbeddingMap,
    event_kinds,
    has_umap,
    map_embeddings,
    principal_parts,
)
from pedsleepmae.embeddings import FeatureTable
from pedsleepmae.probes import task_labels
from pedsleepmae.signal_distances import BETWEEN, TOGETHER, WITHIN
from pedsleepmae.splits import DAYS_PER_YEAR

if TYPE_CHECKING:
    from pedsleepmae.config import ExploreSettings

FEWEST_EPOCHS = 20  # of a night, for a path
MAX_REST_PER_PATIENT = 10  # others per patient of the cohort; more cost time and add little
MAX_COHORT_EPOCHS = 20_000  # epochs that a comparison draws from
NO_UMAP = "UMAP is left out: umap-learn is not installed (pip install umap-learn)"


class ExplorationError(ValueError):
    """What is to be explored is not there; the message names the setting and the remedy."""


@dataclass(frozen=True)
class NightPath:
    """One night in order of time: ``xy`` (n, 2), hours since its first epoch, stage, event."""

    key: str
    positions: np.ndarray
    xy: np.ndarray
    hours: np.ndarray
    stage: np.ndarray
    event: np.ndarray
    diffusion_steps: int


@dataclass(frozen=True)
class Comparison:
    """The cohort against one set of other patients; ``separation`` is None for a ``reason``.

    Ages are medians, years, None where unknown; ``age_gap`` is the mean difference between a
    patient and the controls of its set, years. ``least_p`` is the smallest p-value that so few
    patients and shuffles allow.
    """

    against: str
    n_cohort: int
    n_rest: int
    epochs_per_patient: int
    age_cohort: float | None
    age_rest: float | None
    age_gap: float | None
    least_p: float | None
    separation: Separation | None
    reason: str = ""


@dataclass(frozen=True)
class Cohort:
    """Who the cohort is: ``members`` anywhere, and how many patients each code found anywhere."""

    name: str
    members: frozenset[int]
    n_by_code: dict[str, int]
    n_listed: int


@dataclass(frozen=True)
class Distances:
    """Correlations (a row a measure, channel and kind of pair) and the pairs behind the joint ones.

    ``pairs`` has a row a pair: kind, embedding, Euclidean, time-warped (all channels together).
    """

    correlations: pd.DataFrame
    pairs: pd.DataFrame
    n_epochs: int
    n_patients: int
    resampled_over: str


@dataclass(frozen=True)
class Exploration:
    """All of it; ``notes`` says what was left out and why."""

    index: store.ExampleIndex
    positions: np.ndarray
    mapped: np.ndarray
    maps: list[EmbeddingMap]
    nights: list[NightPath]
    cohort: Cohort | None
    comparisons: list[Comparison]
    distances: Distances | None
    notes: list[str]


# ------------------------------------------------------------------ what is asked for
def find_cohort(settings: "ExploreSettings") -> Cohort | None:
    """The cohort that the settings name; None when they name none.

    Raises DiagnosisError when a file that they name cannot be used.
    """
    asked = settings.cohort
    listed = frozenset(asked.patient_ids)
    if asked.patients_file is not None:
        listed |= diagnoses.read_patient_list(asked.patients_file)
    found = diagnoses.Diagnosed(frozenset(), {})
    if settings.paths.health_dir is not None and asked.icd_codes:
        found = diagnoses.read_diagnosed(
            settings.paths.health_dir, asked.icd_codes, asked.name_holds, asked.source_types
        )
    if not listed and settings.paths.health_dir is None:
        return None
    return Cohort(asked.name, found.patients | listed, found.n_by_code, len(listed))


def choose_positions(
    settings: "ExploreSettings", index: store.ExampleIndex
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the split, and those of them that are mapped; ExplorationError if none."""
    positions = np.arange(len(index)) if settings.split == "all" else index.rows(settings.split)
    if len(positions) < FEWEST_EPOCHS:
        raise ExplorationError(
            f"split: {settings.split} holds {len(positions)} epochs of paths.batches_dir, and "
            f"{FEWEST_EPOCHS} are needed; give another split, or run script 1 with more recordings"
        )
    here = np.unique(index.patient_ids[positions])
    unknown = sorted(set(settings.patient_ids) - set(here.tolist()))
    if unknown:
        raise ExplorationError(
            f"patient_ids: patient {unknown[0]} has no epoch in split {settings.split} (it holds "
            f"{len(here)} patients, such as {here[0]}); give others, or split all"
        )
    mapped = positions
    if settings.patient_ids:
        mapped = positions[np.isin(index.patient_ids[positions], settings.patient_ids)]
    for key in settings.nights:
        if not len(_epochs_of_night(index, positions, key)):
            first = positions[0]
            example = f"{index.patient_ids[first]}/{index.study_ids[first]}"
            raise ExplorationError(
                f"nights: {key!r} is no night of split {settings.split}; give <patient>/<study> "
                f"such as {example}"
            )
    return positions, mapped


def age_of_examples(index: store.ExampleIndex, studies: pd.DataFrame | None) -> np.ndarray:
    """Age at each example, years (N,), NaN where ``studies`` (evaluation.read_studies) lacks it."""
    if studies is None:
        return np.full(len(index), np.nan)
    nights = pd.MultiIndex.from_arrays([index.patient_ids, index.study_ids])
    days = studies["age_days"].reindex(nights)
    return pd.to_numeric(days, errors="coerce").to_numpy(float) / DAYS_PER_YEAR


# ------------------------------------------------------------------ all of it
def explore(
    settings: "ExploreSettings",
    index: store.ExampleIndex,
    table: FeatureTable,
    studies: pd.DataFrame | None,
    cohort: Cohort | None,
) -> Exploration:
    """Maps, paths, the cohort and distances of the positions that the settings choose."""
    positions, mapped = choose_positions(settings, index)
    age_years_N, notes = age_of_examples(index, studies), []
    kinds = [kind for kind in settings.maps if kind != "umap" or has_umap()]
    if len(kinds) < len(settings.maps):
        notes.append(NO_UMAP)
    maps = [
        map_embeddings(
            table,
            index,
            mapped,
            kind,
            settings.seed,
            max_points=settings.max_points,
            age_years_N=age_years_N,
        )
        for kind in kinds
    ]
    nights = []
    for key in settings.nights or [_longest_night(index, mapped)]:
        epochs = _epochs_of_night(index, positions, key)
        if len(epochs) < FEWEST_EPOCHS:
            notes.append(f"No path of night {key}: it has {len(epochs)} epochs.")
        else:
            nights.append(trace_night(table, index, epochs, key, settings.seed))
    comparisons = []
    if cohort is None:
        notes.append(
            "No cohort is compared: paths.health_dir, cohort.patient_ids and cohort.patients_file "
            "are all empty."
        )
    else:
        comparisons = compare_cohort(settings, index, table, positions, cohort, age_years_N)
    distances = None
    if settings.distances.channels:
        distances = compare_distances(settings, index, table, mapped)
    return Exploration(
        index, positions, mapped, maps, nights, cohort, comparisons, distances, notes
    )


# ------------------------------------------------------------------ the path of a night
def trace_night(
    table: FeatureTable, index: store.ExampleIndex, epochs: np.ndarray, key: str, seed: int
) -> NightPath:
    """The path through the epochs of one night, in order of time."""
    parts_ND = principal_parts(table, epochs, seed)
    xy, steps = night_path.diffusion_layout(parts_ND)
    onsets_s = index.onsets_s[epochs]
    return NightPath(
        key=key,
        positions=epochs,
        xy=xy,
        hours=(onsets_s - onsets_s[0]) / 3600,
        stage=task_labels(index, "sleep")[epochs],
        event=event_kinds(index, epochs),
        diffusion_steps=steps,
    )


def _epochs_of_night(index: store.ExampleIndex, positions: np.ndarray, key: str) -> np.ndarray:
    """Positions of the epochs of night `<patient>/<study>` whose onset is known, by time."""
    patient, _, study = key.partition("/")
    here = (index.patient_ids[positions].astype(str) == patient) & (
        index.study_ids[positions].astype(str) == study
    )
    epochs = positions[here & np.isfinite(index.onsets_s[positions])]
    return epochs[np.argsort(index.onsets_s[epochs], kind="stable")]


def _longest_night(index: store.ExampleIndex, positions: np.ndarray) -> str:
    night_n = index.nights()[positions]
    _, first, count = np.unique(night_n, return_index=True, return_counts=True)
    longest = positions[first[np.argmax(count)]]
    return f"{index.patient_ids[longest]}/{index.study_ids[longest]}"


# ------------------------------------------------------------------ the cohort
def compare_cohort(
    settings: "ExploreSettings",
    index: store.ExampleIndex,
    table: FeatureTable,
    positions: np.ndarray,
    cohort: Cohort,
    age_years_N: np.ndarray,
) -> list[Comparison]:
    """The cohort against all other patients, and against those of nearest age."""
    asked = settings.cohort
    rng = np.random.default_rng(settings.seed)
    patients, patient_n, count_Q = np.unique(
        index.patient_ids[positions], return_inverse=True, return_counts=True
    )
    age_n = age_years_N[positions]
    known_Q = np.bincount(patient_n, np.isfinite(age_n))
    total_Q = np.bincount(patient_n, np.nan_to_num(age_n))
    age_Q = np.where(known_Q > 0, total_Q / np.maximum(known_Q, 1), np.nan)
    in_cohort_Q = np.isin(patients, sorted(cohort.members))
    enough_Q = count_Q >= asked.epochs_per_patient

    def compare(against: str, chosen_Q: np.ndarray, set_Q: np.ndarray | None) -> Comparison:
        chosen = np.flatnonzero(chosen_Q)
        member_Q = in_cohort_Q[chosen]
        n_cohort, n_rest = int(member_Q.sum()), int((~member_Q).sum())
        facts = {
            "against": against,
            "n_cohort": n_cohort,
            "n_rest": n_rest,
            "epochs_per_patient": asked.epochs_per_patient,
            "age_cohort": _median(age_Q[chosen][member_Q]),
            "age_rest": _median(age_Q[chosen][~member_Q]),
            "age_gap": None if set_Q is None else _age_gap(age_Q, set_Q, in_cohort_Q),
        }
        if set_Q is not None and not n_cohort:
            reason = "fewer others of known age than patients of the cohort: nobody to match"
            return Comparison(**facts, least_p=None, separation=None, reason=reason)
        if min(n_cohort, n_rest) < asked.min_patients:
            reason = (
                f"{n_cohort} of the cohort and {n_rest} others have "
                f"{asked.epochs_per_patient} epochs or more; cohort.min_patients asks for "
                f"{asked.min_patients} of each (split all has the most patients)"
            )
            return Comparison(**facts, least_p=None, separation=None, reason=reason)
        strata = None if set_Q is None else set_Q[chosen]
        pool = max(asked.epochs_per_patient, MAX_COHORT_EPOCHS // len(chosen))
        rows = [np.flatnonzero(patient_n == q) for q in chosen]
        rows = [rng.choice(mine, min(pool, len(mine)), replace=False) for mine in rows]
        x_ND = principal_parts(table, positions[np.concatenate(rows)], settings.seed)
        separation = cohort_separation.separate_cohort(
            x_ND,
            np.repeat(np.arange(len(chosen)), [len(mine) for mine in rows]),
            member_Q,
            strata,
            n_epochs=asked.epochs_per_patient,
            n_draws=asked.n_draws,
            n_shuffles=asked.n_shuffles,
            seed=settings.seed,
        )
        least_p = max(1 / _n_labellings(member_Q, strata), 1 / (1 + asked.n_shuffles))
        return Comparison(**facts, least_p=least_p, separation=separation)

    others = np.flatnonzero(enough_Q & ~in_cohort_Q)
    n_most = MAX_REST_PER_PATIENT * max(1, int((enough_Q & in_cohort_Q).sum()))
    drawn = rng.choice(others, min(n_most, len(others)), replace=False)
    chosen_Q = enough_Q & in_cohort_Q
    chosen_Q[drawn] = True
    comparisons = [compare("other patients", chosen_Q, None)]
    if np.isfinite(age_Q[enough_Q & in_cohort_Q]).any():
        set_Q, _ = cohort_separation.match_by_age(
            np.where(enough_Q, age_Q, np.nan), in_cohort_Q, asked.controls_per_patient
        )
        comparisons.append(compare("controls of nearest age", set_Q >= 0, set_Q))
    return comparisons


def _median(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _age_gap(age_Q: np.ndarray, set_Q: np.ndarray, in_cohort_Q: np.ndarray) -> float | None:
    """Mean difference in age, years, between the controls and the patient of their set."""
    cases = np.flatnonzero(in_cohort_Q & (set_Q >= 0))
    controls = np.flatnonzero(~in_cohort_Q & (set_Q >= 0))
    if not len(controls):
        return None
    age_of_set = dict(zip(set_Q[cases], age_Q[cases], strict=True))
    return float(np.mean([abs(age_Q[q] - age_of_set[set_Q[q]]) for q in controls]))


def _n_labellings(member_Q: np.ndarray, stratum_Q: np.ndarray | None) -> int:
    """How many silhouettes the labels can give within the strata.

    The silhouette does not know which group is which: where every stratum has as many of the one
    as of the other, two labellings share each.
    """
    strata = np.zeros(len(member_Q), int) if stratum_Q is None else stratum_Q
    parts = [member_Q[strata == stratum] for stratum in np.unique(strata)]
    n_labellings = math.prod(math.comb(len(part), int(part.sum())) for part in parts)
    return n_labellings // 2 if all(2 * part.sum() == len(part) for part in parts) else n_labellings


# ------------------------------------------------------------------ distances
def compare_distances(
    settings: "ExploreSettings",
    index: store.ExampleIndex,
    table: FeatureTable,
    positions: np.ndarray,
) -> Distances:
    """Rank correlation of distances between embeddings and between signals, over drawn pairs.

    Embeddings as they are, without scaling: the distance that a search for similar epochs uses.
    """
    asked = settings.distances
    rng = np.random.default_rng(settings.seed)
    chosen = signal_distances.draw_epochs(index.nights()[positions], asked.n_epochs, rng)
    epochs = positions[chosen]
    pairs = signal_distances.draw_pairs(
        index.nights()[epochs], index.patient_ids[epochs], asked.n_pairs, rng
    )
    group_N, unit = metrics.bootstrap_groups(
        index.patient_ids[epochs], index.study_ids[epochs], index.onsets_s[epochs]
    )
    x_NF = np.nan_to_num(table.read(epochs), posinf=0, neginf=0)
    embedding_M = signal_distances.euclidean(x_NF, pairs.ends)
    channels = [CHANNEL_NAMES.index(name) for name in asked.channels]
    x_NCT = store.read_signals(index, epochs)[:, channels]
    columns, rows = {"embedding": embedding_M}, []
    for measure, channel, distance_M in signal_distances.signal_distances(
        x_NCT,
        index.present[epochs][:, channels],
        asked.channels,
        pairs.ends,
        dtw_rate_hz=asked.dtw_rate_hz,
        dtw_band_s=asked.dtw_band_s,
    ):
        if channel == TOGETHER:
            columns[measure] = distance_M
        for kind in (WITHIN, BETWEEN):
            here = pairs.of_kind(kind) & np.isfinite(distance_M)
            value, ci95 = signal_distances.rank_correlation(
                embedding_M[here],
                distance_M[here],
                group_N[pairs.ends[here]],
                int(group_N.max()) + 1,
                n_draws=asked.bootstrap_draws,
                seed=settings.seed,
            )
            low, high = ci95 or (None, None)
            row = {
                "measure": measure,
                "channel": channel,
                "pairs": kind,
                "n_pairs": int(here.sum()),
            }
            rows.append(row | {"spearman": value, "ci95_low": low, "ci95_high": high})
    return Distances(
        correlations=pd.DataFrame(rows),
        pairs=pd.DataFrame({"pairs": np.where(pairs.within, WITHIN, BETWEEN), **columns}),
        n_epochs=len(epochs),
        n_patients=len(np.unique(index.patient_ids[epochs])),
        resampled_over=unit,
    )


# ------------------------------------------------------------------ explore.json
def as_content(result: Exploration, facts: Mapping[str, object]) -> dict:
    """Content of explore.json; ``facts`` (checkpoint, pooling, split, …) stand at its top."""
    index, cohort, distances = result.index, result.cohort, result.distances
    content = {
        **facts,
        "simulated": index.simulated,
        "split_hash": index.split_hash,
        "n_epochs": len(result.positions),
        "n_patients": len(np.unique(index.patient_ids[result.positions])),
        "notes": result.notes,
        "maps": [
            {
                "method": one.method,
                "n_epochs": len(one.positions),
                "n_patients": len(np.unique(index.patient_ids[one.positions])),
                "separation": one.separation,
            }
            for one in result.maps
        ],
        "nights": [
            {
                "night": night.key,
                "n_epochs": len(night.positions),
                "hours": float(night.hours[-1]),
                "diffusion_steps": night.diffusion_steps,
            }
            for night in result.nights
        ],
        "cohort": None,
        "distances": None,
    }
    if cohort is not None:
        content["cohort"] = {
            "name": cohort.name,
            "n_patients_by_code": cohort.n_by_code,
            "n_listed": cohort.n_listed,
            "comparisons": [comparison_figures(one) for one in result.comparisons],
        }
    if distances is not None:
        table = distances.correlations.astype(object)
        content["distances"] = {
            "n_epochs": distances.n_epochs,
            "n_patients": distances.n_patients,
            "resampled_over": distances.resampled_over,
            "correlations": table.where(table.notna(), None).to_dict("records"),
        }
    return content


def comparison_figures(one: Comparison) -> dict:
    """A comparison as numbers, None where there are none."""
    names = ("against", "n_cohort", "n_rest", "epochs_per_patient", "age_cohort", "age_rest")
    figures = {name: getattr(one, name) for name in (*names, "age_gap", "least_p")}
    figures |= {"reason": one.reason or None}
    for name in ("silhouette", "draws95", "ci95", "shuffled", "shuffled95", "p_value"):
        figures[name] = None if one.separation is None else getattr(one.separation, name)
    return figures
