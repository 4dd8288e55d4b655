"""Age from a night: what is fitted on whom, what stands beside it, and its bias."""

import numpy as np
import pandas as pd
import pytest
from planted import planted_index, planted_table

from pedsleepmae.probe import age
from pedsleepmae.splits import DAYS_PER_YEAR

PATIENTS = {"train": 30, "val": 10, "test": 20}


def studies_of(index, age_of: dict[int, float]) -> pd.DataFrame:
    rows = [(p, p * 10, years * DAYS_PER_YEAR) for p, years in age_of.items()]
    table = pd.DataFrame(rows, columns=["patient_id", "study_id", "age_days"])
    return table.set_index(["patient_id", "study_id"])


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Sixty children of 2 to 16 years; one feature follows the age, two do not."""
    folder = tmp_path_factory.mktemp("ages")
    index = planted_index(folder, PATIENTS, n_epochs=12, seed=1)
    rng = np.random.default_rng(1)
    age_of = {int(p): float(rng.uniform(2, 16)) for p in np.unique(index.patient_ids)}
    years_N = np.array([age_of[p] for p in index.patient_ids])
    noise_NF = rng.standard_normal((len(index), 3))
    told_NF = noise_NF + np.stack([years_N, 0 * years_N, 0 * years_N], axis=1)
    tables = planted_table(index, folder / "features", told=told_NF, noise=noise_NF)
    return index, tables, studies_of(index, age_of), age_of


def judge(planted, **changes):
    index, tables, studies, _ = planted
    values = {"index": index, "tables": tables, "studies": studies, "n_draws": 200, "seed": 0}
    return age.judge_age(**values | changes)


def test_features_that_follow_the_age_tell_it(planted):
    sources = judge(planted).figures["sources"]
    assert sources["told"]["mean_absolute_error"]["value"] < 0.5
    low, _ = sources["told"]["gain_over_mean"]["ci95"]
    assert low > 2


def test_features_that_know_nothing_are_no_better_than_the_mean_age(planted):
    low, high = judge(planted).figures["sources"]["noise"]["gain_over_mean"]["ci95"]
    assert low < 0.3
    assert high < 1.0


def test_the_mean_age_errs_as_worked_by_hand(planted):
    index, _, _, age_of = planted
    of = {
        s: np.array([age_of[p] for p in np.unique(index.patient_ids[index.rows(s)])])
        for s in PATIENTS
    }
    mean = judge(planted).figures["sources"]["mean"]
    wanted = np.abs(of["test"] - of["train"].mean()).mean()
    assert mean["mean_absolute_error"]["value"] == pytest.approx(wanted)
    assert mean["bias"]["value"] == pytest.approx(of["train"].mean() - of["test"].mean())
    assert mean["slope_of_error"]["value"] == pytest.approx(-1)


def test_the_slope_is_that_of_least_squares():
    rng = np.random.default_rng(2)
    age_N, error_N = rng.uniform(1, 18, 9), rng.standard_normal(9)
    weights_RG = np.ones((100, 9))
    wanted = np.polyfit(age_N, error_N, 1)[0]
    assert age.slope(age_N, error_N, np.arange(9), weights_RG)["value"] == pytest.approx(wanted)


def test_no_test_child_has_a_say_in_what_is_said_of_others(planted):
    index, _tables, _studies, age_of = planted
    tests = np.unique(index.patient_ids[index.rows("test")]).tolist()
    changed = studies_of(index, age_of | {tests[0]: 40.0})
    before, after = judge(planted).nights, judge(planted, studies=changed).nights
    others = before["patient_id"] != tests[0]
    pd.testing.assert_series_equal(
        before["told_predicted"][others], after["told_predicted"][others]
    )


def test_nights_without_an_age_are_left_out_and_too_few_are_said(planted):
    index, _tables, _, age_of = planted
    trains = np.unique(index.patient_ids[index.rows("train")]).tolist()
    fewer = {p: years for p, years in age_of.items() if p not in trains[4:]}
    figures = judge(planted, studies=studies_of(index, fewer)).figures
    assert figures["n_train"] == 4
    assert figures["sources"] == {}
    assert "too few nights" in figures["reason"]
    assert "too few nights" in judge(planted, studies=None).figures["reason"]
