"""Figures against hand-worked answers, scikit-learn, and repetitions with a known truth."""

import time

import numpy as np
import pytest
from sklearn import metrics as sk

from pedsleepmae import metrics


def as_probabilities(score_N: np.ndarray) -> np.ndarray:
    return np.stack([1 - score_N, score_N], axis=1)


def evaluate_event(label_N, score_N, threshold=0.5, group_N=None, weights_RG=None):
    group_N = np.zeros(len(label_N), int) if group_N is None else group_N
    predicted_N = (score_N >= threshold).astype(int)
    return metrics.evaluate(label_N, as_probabilities(score_N), predicted_N, group_N, weights_RG)


# Six epochs, by hand: positives 0.8, 0.5 and 0.3; negatives 0.6, 0.3 and 0.1.
HAND_LABELS = np.array([1, 1, 1, 0, 0, 0])
HAND_SCORES = np.array([0.8, 0.5, 0.3, 0.6, 0.3, 0.1])


def test_figures_of_six_epochs_are_those_worked_by_hand():
    figures = evaluate_event(HAND_LABELS, HAND_SCORES).figures
    # Pairs won: 0.8 beats 3; 0.5 beats 2; 0.3 beats 1 and ties 1: 6.5 of 9.
    assert figures["auroc"] == pytest.approx(6.5 / 9)
    # Called at 0.5: 0.8, 0.5 (right), 0.6 (wrong).
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["precision"] == figures["sensitivity"] == figures["f1"] == pytest.approx(2 / 3)
    assert figures["specificity"] == figures["balanced_accuracy"] == pytest.approx(2 / 3)
    assert figures["kappa"] == pytest.approx((4 / 6 - 0.5) / 0.5)
    # Precision at each gain in recall: 1/1, then 2/3, then 3 of the 5 at or above 0.3.
    assert figures["auprc"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert figures["brier"] == pytest.approx((0.04 + 0.25 + 0.49 + 0.36 + 0.09 + 0.01) / 6)
    # Bins of 1/15: 0.3 holds two epochs, one positive; every other bin one epoch.
    assert figures["ece"] == pytest.approx((0.2 + 0.5 + abs(1 - 0.6) + 0.6 + 0.1) / 6)


@pytest.mark.parametrize("ties", [True, False])
def test_event_figures_agree_with_scikit_learn(ties):
    rng = np.random.default_rng(3)
    label_N = (rng.random(501) < 0.1).astype(int)
    score_N = np.clip(0.15 * label_N + rng.random(501) * 0.8, 0, 1)
    score_N = np.round(score_N, 1) if ties else score_N
    predicted_N = (score_N >= 0.5).astype(int)
    group_N, n_groups = rng.integers(0, 7, 501), 7
    sums = metrics.group_sums(label_N, as_probabilities(score_N), predicted_N, group_N, n_groups)
    got = {k: v[0] for k, v in metrics.figures_of_draws(sums, np.ones((1, 7))).items()}
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(label_N, score_N), abs=1e-12)
    assert got["auprc"] == pytest.approx(sk.average_precision_score(label_N, score_N), abs=1e-12)
    assert got["f1"] == pytest.approx(sk.f1_score(label_N, predicted_N))
    assert got["kappa"] == pytest.approx(sk.cohen_kappa_score(label_N, predicted_N))
    wanted = sk.balanced_accuracy_score(label_N, predicted_N)
    assert got["balanced_accuracy"] == pytest.approx(wanted)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(label_N, predicted_N))
    assert got["precision"] == pytest.approx(sk.precision_score(label_N, predicted_N))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(label_N, score_N))


def test_stage_figures_agree_with_scikit_learn():
    rng = np.random.default_rng(4)
    label_N = rng.choice(5, 703, p=[0.2, 0.03, 0.4, 0.2, 0.17])
    logit_NK = rng.standard_normal((703, 5)) + 1.3 * np.eye(5)[label_N]
    prob_NK = np.exp(logit_NK) / np.exp(logit_NK).sum(1, keepdims=True)
    predicted_N = prob_NK.argmax(1)
    group_N = rng.integers(0, 3, 703)
    evaluation = metrics.evaluate(label_N, prob_NK, predicted_N, group_N, None)
    got = evaluation.figures
    assert got["kappa"] == pytest.approx(sk.cohen_kappa_score(label_N, predicted_N))
    for name, average in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        assert got[name] == pytest.approx(sk.f1_score(label_N, predicted_N, average=average))
    wanted = sk.roc_auc_score(label_N, prob_NK, multi_class="ovr", average="weighted")
    assert got["weighted_auroc"] == pytest.approx(wanted)
    assert (evaluation.confusion == sk.confusion_matrix(label_N, predicted_N)).all()
    whole = metrics.figures_of_draws(
        metrics.group_sums(label_N, prob_NK, predicted_N, group_N, 3), np.ones((1, 3))
    )
    assert whole["weighted_auroc"][0] == pytest.approx(wanted, abs=1e-12)


def test_a_draw_gives_what_repeating_its_patients_gives():
    """The sums of patients are a shortcut for building each resample and scoring it."""
    rng = np.random.default_rng(5)
    group_N = rng.integers(0, 5, 233)
    label_N = (rng.random(233) < 0.3).astype(int)
    score_N = np.clip(0.2 * label_N + 0.7 * rng.random(233), 0, 1)
    weights_RG = metrics.draw_weights(5, 11, seed=0)
    predicted_N = (score_N >= 0.4).astype(int)
    sums = metrics.group_sums(label_N, as_probabilities(score_N), predicted_N, group_N, 5)
    fast = metrics.figures_of_draws(sums, weights_RG)
    for r, weights_G in enumerate(weights_RG.astype(int)):
        rows = np.repeat(np.arange(233), weights_G[group_N])
        slow = evaluate_event(label_N[rows], score_N[rows], threshold=0.4).figures
        for name, value in slow.items():
            assert fast[name][r] == pytest.approx(value, abs=1e-12), name


def test_binned_scores_change_an_area_by_less_than_a_thousandth():
    rng = np.random.default_rng(6)
    label_N = (rng.random(60_000) < 0.01).astype(int)
    score_N = 1 / (1 + np.exp(4 - 1.5 * label_N - rng.standard_normal(60_000)))
    predicted_N = (score_N >= 0.5).astype(int)
    group_N = rng.integers(0, 40, 60_000)
    sums = metrics.group_sums(label_N, as_probabilities(score_N), predicted_N, group_N, 40)
    assert sums.histograms[0].shape[1] <= metrics.SCORE_BINS
    got = metrics.figures_of_draws(sums, np.ones((1, 40)))
    assert got["auroc"][0] == pytest.approx(sk.roc_auc_score(label_N, score_N), abs=1e-3)
    assert got["auprc"][0] == pytest.approx(sk.average_precision_score(label_N, score_N), abs=1e-3)


@pytest.mark.parametrize("n_patients", [3, 8, 20])
def test_intervals_cover_the_truth_in_about_95_of_100_repetitions(n_patients):
    """Patients differ in prevalence and separation; the truth is measured on very many of them."""

    def cohort(n: int, rng) -> tuple:
        group_N = np.repeat(np.arange(n), 20)
        shift_N = rng.normal(0, 0.6, n)[group_N]  # a patient's own level of the score
        label_N = (rng.random(len(group_N)) < rng.uniform(0.1, 0.3, n)[group_N]).astype(int)
        score_N = 1 / (1 + np.exp(-(label_N + shift_N + rng.standard_normal(len(group_N)))))
        return label_N, score_N, group_N

    rng = np.random.default_rng(n_patients)
    label_N, score_N, _ = cohort(10_000, rng)
    truth = evaluate_event(label_N, score_N, threshold=0.6).figures
    weights_RG = metrics.draw_weights(n_patients, 500, seed=1)
    covered, n_repetitions = dict.fromkeys(("auroc", "f1", "accuracy", "auprc"), 0), 100
    for _ in range(n_repetitions):
        label_N, score_N, group_N = cohort(n_patients, rng)
        ci95 = evaluate_event(label_N, score_N, 0.6, group_N, weights_RG).ci95
        for name in covered:
            covered[name] += ci95[name][0] <= truth[name] <= ci95[name][1]
    shares = {name: count / n_repetitions for name, count in covered.items()}
    # 100 repetitions of 0.95 scatter by 0.022 each. Plain percentiles cover 0.87 with 8 patients.
    assert all(0.88 <= share <= 0.995 for share in shares.values()), shares
    assert 0.91 <= np.mean(list(shares.values())) <= 0.985, shares


def test_epochs_of_one_patient_are_no_independent_observations():
    """Intervals over patients must be wider than over epochs when patients differ."""
    rng = np.random.default_rng(8)
    patient_N = np.repeat(np.arange(12), 100)
    label_N = (rng.random(1200) < 0.3).astype(int)
    score_N = 1 / (1 + np.exp(-(label_N + rng.normal(0, 2, 12)[patient_N])))
    over_patients = evaluate_event(
        label_N, score_N, 0.5, patient_N, metrics.draw_weights(12, 500, 0)
    ).ci95["accuracy"]
    over_epochs = evaluate_event(
        label_N, score_N, 0.5, np.arange(1200), metrics.draw_weights(1200, 500, 0)
    ).ci95["accuracy"]
    assert np.diff(over_patients) > 3 * np.diff(over_epochs)


def test_paired_differences_are_narrower_than_the_figures_they_compare():
    rng = np.random.default_rng(9)
    patient_N = np.repeat(np.arange(15), 80)
    label_N = (rng.random(1200) < 0.3).astype(int)
    base_N = label_N * rng.uniform(0.2, 2.5, 15)[patient_N] + rng.standard_normal(1200)
    better_N = base_N + 0.4 * label_N
    weights_RG = metrics.draw_weights(15, 500, 0)
    one, other = (
        evaluate_event(label_N, 1 / (1 + np.exp(-s)), 0.5, patient_N, weights_RG)
        for s in (better_N, base_N)
    )
    gap = metrics.difference(one, other, 15)["auroc"]
    assert gap["value"] == pytest.approx(one.figures["auroc"] - other.figures["auroc"])
    assert 0 < gap["ci95"][0] <= gap["value"] <= gap["ci95"][1]
    assert np.diff(gap["ci95"]) < np.diff(one.ci95["auroc"])
    same = metrics.difference(one, one, 15)["auroc"]
    assert same == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_undefined_figures_are_none_with_a_reason_and_never_zero():
    label_N, score_N = np.zeros(30, int), np.linspace(0, 0.4, 30)
    evaluation = evaluate_event(
        label_N, score_N, 0.5, np.arange(30) % 3, metrics.draw_weights(3, 100, 0)
    )
    for name in ("auroc", "auprc", "f1", "sensitivity", "balanced_accuracy", "kappa"):
        assert evaluation.figures[name] is None
        assert evaluation.undefined[name] == "no positive epoch"
        assert evaluation.ci95[name] is None
    assert evaluation.figures["precision"] is None
    assert evaluation.figures["specificity"] == 1
    one_stage = metrics.evaluate(
        np.full(9, 2), np.tile([0.1, 0.1, 0.6, 0.1, 0.1], (9, 1)), np.full(9, 2), np.arange(9), None
    )
    varied = metrics.evaluate(
        np.full(6, 2),
        np.eye(5)[[0, 1, 2, 2, 3, 4]],
        np.array([0, 1, 2, 2, 3, 4]),
        np.arange(6),
        None,
    )
    for name in ("kappa", "balanced_accuracy", "weighted_auroc"):
        assert varied.figures[name] is None
        assert varied.undefined[name] == "one stage only among the epochs"
    assert one_stage.figures["weighted_auroc"] is None
    assert one_stage.figures["kappa"] is None
    assert one_stage.figures["accuracy"] == 1


def test_no_interval_when_one_patient_alone_holds_all_events():
    group_N = np.repeat([0, 1, 2, 3], 20)
    label_N = ((group_N == 1) & (np.arange(80) % 2 == 0)).astype(int)
    score_N = np.random.default_rng(0).random(80)
    evaluation = evaluate_event(label_N, score_N, 0.5, group_N, metrics.draw_weights(4, 200, 0))
    assert evaluation.figures["auroc"] is not None
    assert evaluation.ci95["auroc"] is None
    assert "fewer than 2 patients" in evaluation.undefined["ci95.auroc"]


def test_one_patient_is_resampled_in_blocks_of_ten_minutes():
    onsets_s = np.array([5.0, 35.0, 599.0, 600.0, 1190.0, 1201.0])
    patients, studies = np.full(6, 77), np.array([1, 1, 1, 1, 1, 2])
    group_N, name = metrics.bootstrap_groups(patients, studies, onsets_s)
    assert group_N.tolist() == [0, 0, 0, 1, 1, 2]
    assert name == "10-minute block"
    group_N, name = metrics.bootstrap_groups(np.array([5, 9, 5, 9, 9, 5]), studies, onsets_s)
    assert group_N.tolist() == [0, 1, 0, 1, 1, 0]
    assert name == "patient"


def test_a_thousand_resamples_of_many_epochs_take_seconds():
    rng = np.random.default_rng(10)
    n, n_patients = 400_000, 300
    label_N = (rng.random(n) < 0.02).astype(int)
    score_N = 1 / (1 + np.exp(4 - label_N - rng.standard_normal(n)))
    group_N = np.sort(rng.integers(0, n_patients, n))
    begin = time.process_time()
    evaluation = evaluate_event(
        label_N, score_N, 0.1, group_N, metrics.draw_weights(n_patients, 1000, 0)
    )
    assert time.process_time() - begin < 20
    low, high = evaluation.ci95["auroc"]
    assert low < evaluation.figures["auroc"] < high
    assert high - low < 0.05


# ------------------------------------------------------------------ decisions and calibration
def test_the_threshold_is_the_best_of_all_thresholds():
    rng = np.random.default_rng(11)
    label_N = (rng.random(97) < 0.2).astype(int)
    score_N = np.round(np.clip(0.2 * label_N + 0.7 * rng.random(97), 0, 1), 2)
    got = metrics.best_f1_threshold(label_N, score_N)
    every = {t: sk.f1_score(label_N, (score_N >= t).astype(int)) for t in np.unique(score_N)}
    assert every[got] == pytest.approx(max(every.values()))
    assert metrics.best_f1_threshold(np.zeros(5, int), score_N[:5]) is None


@pytest.mark.parametrize("n_classes", [2, 5])
def test_calibration_finds_the_distortion_that_was_planted(n_classes):
    """Labels are drawn from known probabilities; what distorts the logits must come back."""
    rng = np.random.default_rng(12)
    true_NK = 1.5 * rng.standard_normal((20_000, n_classes))
    prob_NK = np.exp(true_NK) / np.exp(true_NK).sum(1, keepdims=True)
    label_N = (rng.random((20_000, 1)) > prob_NK.cumsum(1)).sum(1)
    planted_K = np.append(0.0, rng.uniform(-2, 2, n_classes - 1))
    distorted_NK = (true_NK - planted_K) / 0.4
    slope, shift_K = metrics.fit_calibration(label_N, distorted_NK)
    assert slope == pytest.approx(0.4, rel=0.05)
    assert shift_K == pytest.approx(planted_K, abs=0.15)
    group_N = np.zeros(20_000, int)
    before, after = (
        metrics.evaluate(label_N, p, p.argmax(1), group_N, None).figures["ece"]
        for p in (
            metrics.calibrated(distorted_NK, 1, np.zeros(n_classes)),
            metrics.calibrated(distorted_NK, slope, shift_K),
        )
    )
    assert after < 0.015 < before / 5


def test_calibration_keeps_the_order_even_of_a_useless_score():
    rng = np.random.default_rng(13)
    score_N = rng.standard_normal(300)
    label_N = (rng.random(300) < 1 / (1 + np.exp(2 * score_N))).astype(int)  # backwards
    logit_NK = np.stack([np.zeros(300), score_N], axis=1)
    slope, shift_K = metrics.fit_calibration(label_N, logit_NK)
    prob_N = metrics.calibrated(logit_NK, slope, shift_K)[:, 1]
    assert slope > 0
    assert sk.roc_auc_score(label_N, prob_N) == pytest.approx(sk.roc_auc_score(label_N, score_N))


def test_bland_altman_of_four_nights_by_hand():
    figures = metrics.bland_altman([12.0, 7.0, 5.0, 10.0], [10.0, 6.0, 6.0, 8.0])
    assert figures["bias"] == 1  # gaps 2, 1, -1, 2: sd of sample sqrt(2)
    assert figures["upper"] - 1 == pytest.approx(1.96 * np.sqrt(2))
    assert 1 - figures["lower"] == pytest.approx(1.96 * np.sqrt(2))
    assert metrics.bland_altman([3.0], [1.0]) == {"n": 1, "bias": 2, "lower": None, "upper": None}


def test_reliability_bins_hold_equal_counts():
    prob_N = np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.4])
    label_N = np.array([1, 0, 0, 1, 1, 0])
    table = metrics.reliability(label_N, prob_N, n_bins=3)
    assert table == pytest.approx(np.array([[0.15, 0, 2], [0.35, 0.5, 2], [0.85, 1, 2]]))
