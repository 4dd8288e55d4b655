"""A quick linear probe of sleep stage while a model trains: does its representation improve?"""

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PROBE_POOLING = "time_abs"  # short, and the best of the short ones on a real night (REFERENCE)
PROBE_REGULARISATION = 0.01  # inverse strength C
PROBE_ITERATIONS = 300


def probe_sleep_stage(
    features: np.ndarray, stages: np.ndarray, patient_ids: np.ndarray
) -> dict[str, Any]:
    """Fit sleep stage on half of the patients' embeddings and score it on the other half.

    ``features`` (N, F); ``stages`` (N,), -1 unscored; ``patient_ids`` (N,). Returns kappa and
    balanced accuracy, or None for both with the reason.
    """
    scored = stages >= 0
    patients = np.unique(patient_ids[scored])
    fit = scored & np.isin(patient_ids, patients[::2])
    test = scored & ~fit
    counts = {"n_fit": int(fit.sum()), "n_scored": int(test.sum())}
    if min(len(np.unique(stages[fit])), len(np.unique(stages[test]))) < 2:
        reason = "needs two patients, and two sleep stages in each half of the sample"
        return {"kappa": None, "balanced_accuracy": None, "reason": reason, **counts}
    probe = make_pipeline(
        StandardScaler(),
        LogisticRegression(
            C=PROBE_REGULARISATION, class_weight="balanced", max_iter=PROBE_ITERATIONS
        ),
    )
    with warnings.catch_warnings():  # quick on purpose: it may stop before it has converged
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features[fit], stages[fit])
    hit = probe.predict(features[test]) == stages[test]
    recalls = [hit[stages[test] == stage].mean() for stage in np.unique(stages[test])]
    kappa = cohen_kappa_score(stages[test], probe.predict(features[test]))
    return {"kappa": float(kappa), "balanced_accuracy": float(np.mean(recalls)), **counts}
