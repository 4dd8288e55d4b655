"""Age of a child from one night: a ridge regression on features pooled over the night.

Axes: **N** nights, **F** features of a night, **G** patients, **R** draws.

What a network of sleep should know without having been told: sleep changes with age (Ohayon et al.
2004, Sleep 27:1255). Ages are those of studies.csv. A regression on few nights shrinks towards
the mean age: young children are called too old and old ones too young. The slope of the error on
age says how much (0: not; -1: the mean for everybody).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import LinAlgWarning
from sklearn.linear_model import Ridge

from pedsleepmae import metrics, store
from pedsleepmae.probe.readout import channel_of_features, hide_absent
from pedsleepmae.probe.tables import FeatureTable, spread_or_one
from pedsleepmae.splits import DAYS_PER_YEAR, SPLITS

STRENGTHS = np.geomspace(1e-1, 1e6, 15)  # ridge penalties on standardised features
FEWEST = 5  # train nights of known age
MEAN = "mean"  # the baseline without features: the train patients' mean age
NO_BOUNDS = (-np.inf, np.inf)


@dataclass(frozen=True)
class AgeResults:
    """``figures`` for metrics.json; ``nights``: test nights with age and what each source says."""

    figures: dict[str, Any]
    nights: pd.DataFrame


def night_features(table: FeatureTable, positions: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each feature over a night's epochs, (2F,), NaN if unknown."""
    x_NF = table.read(positions)
    if table.is_by_channel:
        channel_F = channel_of_features(table.part_lengths)
        x_NF = hide_absent(x_NF, channel_F, table.index.present[positions])
    x_NF = np.where(np.isfinite(x_NF), x_NF, np.nan).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel that the night does not have
        return np.concatenate([np.nanmean(x_NF, axis=0), np.nanstd(x_NF, axis=0)])


def known_nights(index: store.ExampleIndex, studies: pd.DataFrame | None) -> pd.DataFrame:
    """Nights of known age: night (number of index.nights()), patient_id, study_id, split, age."""
    night_N = index.nights()
    nights, first = np.unique(night_N, return_index=True)
    split = [SPLITS[k] if k >= 0 else "" for k in index.split[first]]
    table = pd.DataFrame({"night": nights, "split": split})
    table["patient_id"], table["study_id"] = index.patient_ids[first], index.study_ids[first]
    key = pd.MultiIndex.from_frame(table[["patient_id", "study_id"]])
    days = np.nan if studies is None else studies["age_days"].reindex(key).to_numpy(float)
    return table.assign(age=days / DAYS_PER_YEAR).dropna(subset="age").reset_index(drop=True)


def judge_age(
    index: store.ExampleIndex,
    tables: Mapping[str, FeatureTable],
    studies: pd.DataFrame | None,
    n_draws: int,
    seed: int,
) -> AgeResults:
    """For each source of features: fit on train nights, penalty chosen on val, judged on test."""
    nights = known_nights(index, studies)
    parts = {split: nights[nights["split"] == split] for split in SPLITS}
    figures = {f"n_{split}": len(part) for split, part in parts.items()}
    figures["n_test_patients"] = int(parts["test"]["patient_id"].nunique())
    reason = None
    if not index.patient_disjoint:
        reason = "the nights are split in time, so the same children would be judged"
    elif len(parts["train"]) < FEWEST or parts["val"].empty or parts["test"].empty:
        reason = "studies.csv tells the age of too few nights"
    if reason:
        return AgeResults(figures | {"reason": reason, "sources": {}}, nights.iloc[:0])
    order = {name: np.flatnonzero(nights["split"] == name) for name in SPLITS}
    age_N = nights["age"].to_numpy()
    of_patient = nights.groupby("patient_id")["age"].transform("size").to_numpy()
    night_of_example = index.nights()
    places = [np.flatnonzero(night_of_example == night) for night in nights["night"]]
    train, val, test = (order[name] for name in SPLITS)
    usual = float(np.average(age_N[train], weights=1 / of_patient[train]))
    predicted, facts = {MEAN: np.full(len(test), usual)}, {MEAN: {"penalty": None}}
    for source, table in tables.items():
        x_NF = np.stack([night_features(table, place) for place in places])
        predicted[source], penalty = fit_ridge(x_NF, age_N, 1 / of_patient, train, val, test)
        facts[source] = {"penalty": penalty, "features": table.name}
    judged = parts["test"].drop(columns=["night", "split"]).reset_index(drop=True)
    _, group_N = np.unique(judged["patient_id"], return_inverse=True)
    weights_RG = metrics.draw_weights(int(group_N.max()) + 1, n_draws, seed)
    error_of = {source: said_N - age_N[test] for source, said_N in predicted.items()}
    figures["sources"] = {}
    for source, error_N in error_of.items():
        gain_N = np.abs(error_of[MEAN]) - np.abs(error_N)
        figures["sources"][source] = facts[source] | {
            "mean_absolute_error": metrics.bootstrap_mean(
                np.abs(error_N), group_N, weights_RG, (0.0, np.inf)
            ),
            "gain_over_mean": metrics.bootstrap_mean(gain_N, group_N, weights_RG, NO_BOUNDS),
            "bias": metrics.bootstrap_mean(error_N, group_N, weights_RG, NO_BOUNDS),
            "slope_of_error": slope(age_N[test], error_N, group_N, weights_RG),
        }
        judged[f"{source}_predicted"] = predicted[source]
    return AgeResults(figures, judged)


def fit_ridge(
    x_NF: np.ndarray,
    age_N: np.ndarray,
    weight_N: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
    test: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Ages of the test nights, and the penalty that erred least on val. Unknown features: mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature that no train night has
        mean_F = np.nan_to_num(np.nanmean(x_NF[train], axis=0))
        spread_F = spread_or_one(np.nan_to_num(np.nanstd(x_NF[train], axis=0)), mean_F)
    x_NF = np.nan_to_num((x_NF - mean_F) / spread_F)
    best, error = None, np.inf
    for penalty in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LinAlgWarning)
            ridge = Ridge(penalty).fit(x_NF[train], age_N[train], weight_N[train])
        on_val = np.average(np.abs(ridge.predict(x_NF[val]) - age_N[val]), weights=weight_N[val])
        if on_val < error:
            best, error = ridge, on_val
    return best.predict(x_NF[test]), float(best.alpha)


def slope(
    age_N: np.ndarray, error_N: np.ndarray, group_N: np.ndarray, weights_RG: np.ndarray
) -> dict[str, Any]:
    """Slope of the least-squares line of the errors on age, with its interval over patients."""

    def of(weight_N: np.ndarray) -> float:
        total = weight_N.sum()
        centred_N = age_N - weight_N @ age_N / total
        spread = weight_N @ centred_N**2
        return float(weight_N @ (centred_N * error_N) / spread) if spread > 0 else np.nan

    value = of(np.ones(len(age_N)))
    if not np.isfinite(value):
        return {"value": None, "ci95": None}
    draws_R = np.array([of(weight_G[group_N]) for weight_G in weights_RG])
    n_groups = weights_RG.shape[1]
    return {"value": value, "ci95": metrics.interval(draws_R, n_groups, value, NO_BOUNDS)}
