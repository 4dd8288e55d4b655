"""The embedding space explored: figures with a known truth, and script 5 to its page."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted import planted_index, planted_table, write_cohort
from scipy.stats import kstest
from sklearn.metrics import silhouette_score

from pedsleepmae import checkpoints, data
from pedsleepmae.errors import SettingsError, check_bounds
from pedsleepmae.explore import cohort, diagnoses, distances, maps, report
from pedsleepmae.explore.run import ExploreSettings
from pedsleepmae.model import MaskedAutoencoder
from pedsleepmae.simulate import health
from pedsleepmae.simulate.cohort import SimulateSettings, plan_cohort
from pedsleepmae.simulate.norms import prader_willi_apnea_shares

ROOT = Path(__file__).resolve().parents[1]
MODEL = {"patch_size": 120, "emb_dim": 4, "num_layer": 1, "num_head": 2}


# ------------------------------------------------------------------ a cohort's silhouette
def test_the_silhouette_of_four_patients_on_a_line_is_the_hand_worked_one():
    # One epoch each: the cohort at 0 and 1, the others at 5 and 7.
    x_ND = np.array([[0.0], [1.0], [5.0], [7.0]])
    label_QP = np.array([[1], [1], [0], [0]])
    sums_NQ = cohort.distance_sums(x_ND, 4)
    # a, b by hand: 1, 6; 1, 5; 2, 4.5; 2, 6.5.
    by_hand = np.mean([5 / 6, 4 / 5, 2.5 / 4.5, 4.5 / 6.5])
    found = cohort.silhouettes(sums_NQ, label_QP, np.ones((4, 1), bool))
    assert found == pytest.approx([by_hand])


def test_a_balanced_draw_has_scikit_learns_silhouette():
    rng = np.random.default_rng(0)
    n_patients, n_epochs = 11, 5
    x_ND = rng.standard_normal((n_patients * n_epochs, 3))
    label_QP = np.stack([rng.permutation(np.arange(n_patients) < 4) for _ in range(7)], 1).astype(
        int
    )
    drawn_QP = cohort.balance(label_QP, np.zeros(n_patients, int), rng.permutation(n_patients))
    found_P = cohort.silhouettes(cohort.distance_sums(x_ND, n_patients), label_QP, drawn_QP)
    assert (drawn_QP.sum(0) == 8).all()
    for p in range(7):
        taken = np.repeat(drawn_QP[:, p], n_epochs)
        label_N = np.repeat(label_QP[:, p], n_epochs)
        assert found_P[p] == pytest.approx(silhouette_score(x_ND[taken], label_N[taken]))


def test_a_patient_left_out_of_a_labelling_counts_nowhere():
    rng = np.random.default_rng(1)
    x_ND = rng.standard_normal((5 * 3, 2))
    label_QP = np.array([[1], [1], [0], [0], [cohort.OUT]])
    drawn_QP = cohort.balance(label_QP, np.zeros(5, int), np.arange(5))
    found = cohort.silhouettes(cohort.distance_sums(x_ND, 5), label_QP, drawn_QP)
    assert found == pytest.approx([silhouette_score(x_ND[:12], [1] * 6 + [0] * 6)])


def test_each_stratum_gives_as_many_of_one_label_as_of_the_other():
    label_QP = np.array([[1, 0], [0, 1], [0, 0], [1, 1], [0, 0], [0, 1]])
    stratum_Q = np.array([0, 0, 0, 1, 1, 1])
    drawn_QP = cohort.balance(label_QP, stratum_Q, np.array([5, 4, 3, 2, 1, 0]))
    # Stratum 0 draws one pair, its last patients first; stratum 1 one pair.
    assert drawn_QP[:, 0].tolist() == [True, False, True, True, False, True]
    assert drawn_QP[:, 1].tolist() == [False, True, True, False, True, True]


def patients_with_offsets(rng, n_patients: int, n_epochs: int, shift_Q) -> np.ndarray:
    """Epochs of patients who differ far more from each other than their epochs do, (N, 3)."""
    offset_QD = 2.0 * rng.standard_normal((n_patients, 3)) + np.asarray(shift_Q)[:, None]
    return np.repeat(offset_QD, n_epochs, 0) + rng.standard_normal((n_patients * n_epochs, 3))


def test_p_values_are_uniform_where_patients_differ_but_groups_do_not():
    rng = np.random.default_rng(3)
    in_cohort_Q = np.arange(14) < 5
    patient_N = np.repeat(np.arange(14), 8)
    p_values, by_epoch = [], []
    for seed in range(150):
        x_ND = patients_with_offsets(rng, 14, 8, np.zeros(14))
        found = cohort.separate_cohort(
            x_ND, patient_N, in_cohort_Q, n_epochs=6, n_draws=2, n_shuffles=99, seed=seed
        )
        p_values.append(found.p_value)
        if seed < 40:  # what a shuffle of the epochs would have said
            label_N = in_cohort_Q[patient_N]
            true = silhouette_score(x_ND, label_N)
            shuffled = [silhouette_score(x_ND, rng.permutation(label_N)) for _ in range(19)]
            by_epoch.append(np.mean(np.array(shuffled) >= true))
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.1) < 0.17
    assert np.mean(np.array(by_epoch) < 0.05) > 0.4  # it finds groups where there are none


def test_a_planted_shift_is_found_and_its_interval_lies_above_the_shuffled():
    rng = np.random.default_rng(4)
    in_cohort_Q = np.arange(20) < 8
    x_ND = patients_with_offsets(rng, 20, 6, np.where(in_cohort_Q, 5.0, 0.0))
    found = cohort.separate_cohort(
        x_ND,
        np.repeat(np.arange(20), 6),
        in_cohort_Q,
        n_epochs=6,
        n_draws=5,
        n_shuffles=199,
        seed=0,
    )
    assert found.p_value <= 0.01
    assert found.ci95[0] > found.shuffled95[1]
    assert found.draws95[0] <= found.silhouette <= found.draws95[1]


def test_the_interval_over_patients_covers_the_expected_silhouette():
    rng = np.random.default_rng(5)
    in_cohort_Q = np.arange(16) < 8
    patient_N = np.repeat(np.arange(16), 4)
    runs = []
    for seed in range(120):
        x_ND = patients_with_offsets(rng, 16, 4, np.where(in_cohort_Q, 3.0, 0.0))
        runs.append(
            cohort.separate_cohort(
                x_ND, patient_N, in_cohort_Q, n_epochs=4, n_draws=1, n_shuffles=1, seed=seed
            )
        )
    expected = np.mean([run.silhouette for run in runs])
    covered = np.mean([run.ci95[0] <= expected <= run.ci95[1] for run in runs])
    assert 0.89 <= covered <= 1.0
    assert np.mean([np.ptp(run.ci95) for run in runs]) < 0.6  # not by being endless


def test_controls_are_those_of_nearest_age_and_half_of_the_others_remain():
    age_Q = np.array([5.0, 12.0, 5.4, 11.0, 17.0, 2.0, np.nan, 8.0])
    in_cohort_Q = np.array([True, True, *[False] * 6])
    set_Q = cohort.match_by_age(age_Q, in_cohort_Q, 4)
    # One control each, for there are five others of known age.
    assert set_Q.tolist() == [0, 1, 0, 1, -1, -1, -1, -1]


def test_matching_takes_out_what_is_only_age():
    # Embeddings follow age alone; the cohort is older.
    rng = np.random.default_rng(6)
    how = {"n_epochs": 4, "n_draws": 3, "n_shuffles": 99, "seed": 0}
    in_cohort_Q = np.arange(68) < 8
    plain, matched = [], []
    for _ in range(12):
        age_Q = np.r_[rng.uniform(10, 16, 8), rng.uniform(1, 16, 60)]
        x_QD = age_Q[:, None] + 0.5 * rng.standard_normal((68, 2))
        set_Q = cohort.match_by_age(age_Q, in_cohort_Q, 1)
        chosen = np.flatnonzero(set_Q >= 0)
        assert len(chosen) == 16
        for p_values, who, strata in (
            (plain, np.arange(68), None),
            (matched, chosen, set_Q[chosen]),
        ):
            found = cohort.separate_cohort(
                np.repeat(x_QD[who], 4, axis=0),
                np.repeat(np.arange(len(who)), 4),
                in_cohort_Q[who],
                strata,
                **how,
            )
            p_values.append(found.p_value)
    assert np.median(plain) <= 0.02
    assert np.mean(matched) > 0.3


# ------------------------------------------------------------------ who is in the cohort
def write_diagnoses(folder: Path, rows: list[tuple]) -> Path:
    """DIAGNOSIS.csv of (patient, source type, code, name, alternative code)."""
    table = pd.DataFrame(
        rows, columns=["STUDY_PAT_ID", "DX_SOURCE_TYPE", "DX_CODE", "DX_NAME", "DX_ALT_CODE"]
    )
    table.to_csv(folder / "Diagnosis.csv", index=False, encoding="latin-1")
    return folder


def test_codes_match_whole_and_in_any_spelling(tmp_path):
    folder = write_diagnoses(
        tmp_path,
        [
            (1, "Final Dx", "Q87.11", "Prader-Willi syndrome", "759.81"),
            (2, "Final Dx", "q8711 ", "Prader-Willi syndrome", ""),
            (3, "Final Dx", "Q87.1", "Russell-Silver syndrome", "759.89"),
            (4, "Final Dx", "Q87.19", "Noonan syndrome", ""),
            (5, "Final Dx", "759.81", "PRADER-WILLI SYNDROME", "Q87.11, Q87.19"),
            (6, "Admit Dx", "E66.9", "Obesité", "278.00,Q87.11"),
            (7, "Final Dx", "redacted", "redacted", "redacted"),
        ],
    )
    assert diagnoses.read_diagnosed(folder, ["Q87.11"]) == {"Q87.11": {1, 2, 5, 6}}
    assert diagnoses.read_diagnosed(folder, ["Q87.1"]) == {"Q87.1": {3}}
    assert diagnoses.read_diagnosed(folder, ["75981"]) == {"75981": {1, 5}}
    named = diagnoses.read_diagnosed(folder, ["Q87.1", "Q87.11"], name_holds="prader")
    assert named == {"Q87.1": set(), "Q87.11": {1, 2, 5}}
    final = diagnoses.read_diagnosed(folder, ["Q87.11"], source_types=["final dx"])
    assert final == {"Q87.11": {1, 2, 5}}


def test_a_table_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(diagnoses.DiagnosisError, match=r"no DIAGNOSIS\.csv"):
        diagnoses.read_diagnosed(tmp_path, ["Q87.11"])
    (tmp_path / "DIAGNOSIS.csv").write_text("STUDY_PAT_ID,DX_NAME\n1,x\n")
    with pytest.raises(diagnoses.DiagnosisError, match="no column DX_SOURCE_TYPE"):
        diagnoses.read_diagnosed(tmp_path, ["Q87.11"])
    (tmp_path / "list.csv").write_text("patient\n3\n")
    with pytest.raises(diagnoses.DiagnosisError, match="patient_id"):
        diagnoses.read_patient_list(tmp_path / "list.csv")


def test_what_stands_in_a_list_of_patients_is_not_repeated_in_an_error(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("patient_id,note\n3,für später\nJane Doe,x\n".encode("latin-1"))
    with pytest.raises(diagnoses.DiagnosisError, match="line 3") as refused:
        diagnoses.read_patient_list(path)
    assert "Jane" not in str(refused.value)
    path.write_bytes("patient_id,note\n3,für später\n4,\n".encode("latin-1"))
    assert diagnoses.read_patient_list(path) == {3, 4}
    path.write_text("patient_id\n5\n", encoding="utf-8-sig")
    assert diagnoses.read_patient_list(path) == {5}


def test_the_simulated_cohort_has_the_asked_share_and_its_diagnoses_say_who(tmp_path):
    plain = SimulateSettings(n_patients=20, n_repeat_studies=2, hours=0.25, seed=3)
    ill = SimulateSettings(
        n_patients=20, n_repeat_studies=2, hours=0.25, seed=3, prader_willi_fraction=0.25
    )
    visits, healthy = plan_cohort(ill), plan_cohort(plain)
    affected = {visit.patient_id for visit in visits if visit.child.prader_willi}
    assert len(affected) == 5
    for one, twin in zip(visits, healthy, strict=True):
        if one.patient_id in affected:
            assert one.child.severity > twin.child.severity
            assert one.child.spo2_percent < twin.child.spo2_percent
        else:  # the others' nights are the same whatever the share
            assert one == twin
    health.write_health_data(tmp_path, visits)
    found = diagnoses.read_diagnosed(tmp_path, ["Q87.11", "Q87.1", "759.81"], "Prader-Willi")
    assert set().union(*found.values()) == affected
    table = pd.read_csv(tmp_path / "DIAGNOSIS.csv", encoding="latin-1")
    assert set(table["DX_CODE"]) >= {"redacted", "R06.83", "G47.33"}


def test_central_apneas_give_way_to_obstructive_ones_with_age():
    for age in (1, 5, 15):
        assert sum(prader_willi_apnea_shares(age).values()) == pytest.approx(1)
    central = [prader_willi_apnea_shares(age)["Central Apnea"] for age in (1, 5, 15)]
    assert central == sorted(central, reverse=True)
    assert central[0] == pytest.approx(0.85)


# ------------------------------------------------------------------ the path of a night
def test_the_path_of_a_line_is_a_line_in_order():
    rng = np.random.default_rng(0)
    along = np.linspace(0, 10, 120)
    x_ND = np.stack([np.cos(along / 4), np.sin(along / 4), along], 1)
    x_ND += 0.01 * rng.standard_normal(x_ND.shape)
    order = rng.permutation(120)
    xy, steps = maps.diffusion_layout(x_ND[order])
    assert 1 <= steps <= maps.LONGEST_DIFFUSION
    apart_NN = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(120)
    assert (np.abs(order[apart_NN.argmin(1)] - order) <= 3).mean() > 0.95


def test_a_plane_is_laid_out_as_it_is():
    rng = np.random.default_rng(1)
    plane = rng.standard_normal((40, 2))
    distance_NN = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    xy = maps.metric_scaling(distance_NN)
    again_NN = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.testing.assert_allclose(again_NN, distance_NN, atol=1e-6)


def test_two_states_lie_at_two_ends():
    rng = np.random.default_rng(2)
    x_ND = rng.standard_normal((80, 4))
    x_ND[40:] += 12
    xy, _ = maps.diffusion_layout(x_ND)
    assert silhouette_score(xy, np.arange(80) >= 40) > 0.8


def test_a_far_epoch_and_equal_epochs_leave_the_path_finite():
    rng = np.random.default_rng(3)
    x_ND = rng.standard_normal((60, 4))
    x_ND[7] = 1e12
    x_ND[20:40] = 0.5  # as where all sensors are off
    xy, _ = maps.diffusion_layout(x_ND)
    assert np.isfinite(xy).all()


# ------------------------------------------------------------------ distances
def test_pairs_are_within_a_night_or_between_patients_and_never_twice():
    rng = np.random.default_rng(0)
    patient_N = np.repeat([1, 1, 2, 3], 6)
    night_N = np.repeat([0, 1, 2, 3], 6)
    ends, within = distances.draw_pairs(night_N, patient_N, 1000, rng)
    first, second = ends.T
    assert (night_N[first] == night_N[second])[within].all()
    assert (patient_N[first] != patient_N[second])[~within].all()
    assert within.sum() == 4 * 15
    assert (~within).sum() == 24 * 23 // 2 - 12 * 11 // 2 - 2 * 15
    assert len({tuple(sorted(pair)) for pair in ends.tolist()}) == len(ends)


def test_an_embedding_that_is_the_signal_correlates_at_one():
    rng = np.random.default_rng(0)
    x_NT = rng.standard_normal((40, 30)) * rng.uniform(0.5, 2, (40, 1))
    patient_N = np.repeat(np.arange(8), 5)
    ends, _ = distances.draw_pairs(patient_N, patient_N, 300, rng)
    distance_M = distances.euclidean(x_NT, ends)
    for y_M, expected in ((distance_M, 1), (np.exp(distance_M), 1), (-distance_M, -1)):
        value, ci95 = distances.rank_correlation(
            distance_M, y_M, patient_N[ends], 8, n_draws=100, seed=0
        )
        assert value == pytest.approx(expected)
        np.testing.assert_allclose(ci95, [expected, expected])


def test_the_interval_of_a_correlation_covers_the_truth_and_none_of_noise():
    # Distances of pairs share their patients: the naive interval over pairs would be too narrow.
    rng = np.random.default_rng(1)
    patient_N = np.repeat(np.arange(15), 4)
    values, intervals = [], []
    for seed in range(80):
        signal_ND = rng.standard_normal((15, 2))[patient_N] + 0.5 * rng.standard_normal((60, 2))
        embedding_ND = signal_ND + 1.0 * rng.standard_normal((15, 2))[patient_N]
        ends, within = distances.draw_pairs(patient_N, patient_N, 400, rng)
        ends = ends[~within]
        value, ci95 = distances.rank_correlation(
            distances.euclidean(embedding_ND, ends),
            distances.euclidean(signal_ND, ends),
            patient_N[ends],
            15,
            n_draws=100,
            seed=seed,
        )
        values.append(value)
        intervals.append(ci95)
    truth = np.mean(values)
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.85 <= covered <= 1.0


def test_a_constant_distance_has_no_correlation():
    group_M2 = np.array([[0, 1], [1, 2], [0, 2]])
    found = distances.rank_correlation(np.ones(3), np.arange(3.0), group_M2, 3, n_draws=100, seed=0)
    assert found == (None, None)


def test_one_patient_alone_carries_no_interval():
    distance_M = np.arange(6.0)
    value, ci95 = distances.rank_correlation(
        distance_M, distance_M, np.full((6, 2), 3), 30, n_draws=100, seed=0
    )
    assert value == pytest.approx(1)
    assert ci95 is None


def test_a_page_without_any_map_has_its_other_headlines():
    content = {"maps": [], "cohort": None, "distances": None}
    assert report.headlines(content) == []


def test_channels_count_alike_together_and_a_lacking_one_leaves_the_pair_out():
    rng = np.random.default_rng(0)
    x_NCT = rng.standard_normal((12, 2, 3840)).astype(np.float32)
    x_NCT[:, 1] *= 100
    present_NC = np.ones((12, 2), bool)
    present_NC[3, 0] = False
    ends = np.stack(np.triu_indices(12, 1), 1)
    found = distances.signal_distances(x_NCT, present_NC, ["a", "b"], ends)
    lacking = (ends == 3).any(1)
    joint = found[distances.TOGETHER]
    assert np.isnan(joint).tolist() == lacking.tolist()
    assert np.isfinite(found["b"]).all()
    parts = [found[name] / np.nanmedian(found[name]) for name in "ab"]
    np.testing.assert_allclose(joint[~lacking], np.hypot(*parts)[~lacking])


# ------------------------------------------------------------------ settings and positions
@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        ({"pooling": "best"}, ExploreSettings.check, "metrics.json"),
        ({"maps": []}, ExploreSettings.check, "maps is empty"),
        ({"max_points": 3}, check_bounds, "max_points is 3; give 20 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, check, words):
    with pytest.raises(SettingsError, match=words):
        check(ExploreSettings(**change))


def test_the_files_of_a_split_hold_its_examples_and_no_other_splits(tmp_path):
    index = planted_index(tmp_path, {"train": 3, "val": 2, "test": 2}, 30, seed=0)
    part = data.files_of_split(index, "val")
    assert (part.split == 1).all()
    assert len(part) == 60
    whole = {(index.files[f], r): p for f, r, p in zip(
        index.file_of, index.row_of, index.patient_ids, strict=True)}  # fmt: skip
    for file, row, patient in zip(part.file_of, part.row_of, part.patient_ids, strict=True):
        assert whole[part.files[file], row] == patient


# ------------------------------------------------------------------ a cohort in tables of features
def planted_cohort(folder: Path, shift: float):
    """Index, table, settings of 16 test patients, the first five of them shifted."""
    index = planted_index(folder, {"train": 1, "val": 1, "test": 16}, 25, seed=1)
    rng = np.random.default_rng(2)
    patient_N = index.patient_ids - 100
    x_NF = 1.0 * rng.standard_normal((18, 12))[patient_N] + rng.standard_normal((len(index), 12))
    x_NF[(patient_N >= 2) & (patient_N < 7)] += shift
    table = planted_table(index, folder / "features", mean=x_NF)["mean"]
    settings = ExploreSettings(seed=3)
    settings.cohort.n_draws, settings.cohort.n_shuffles = 4, 99
    settings.cohort.epochs_per_patient = 10
    return index, table, settings


def compare(folder: Path, shift: float, members, age=None, **cohort_fields):
    index, table, settings = planted_cohort(folder, shift)
    for name, value in cohort_fields.items():
        setattr(settings.cohort, name, value)
    age_N = np.full(len(index), np.nan) if age is None else age[index.patient_ids - 100]
    who = cohort.Cohort("planted", frozenset(members), {}, len(members))
    return cohort.compare_cohort(
        settings.cohort, table, index.rows("test"), who, age_N, settings.seed
    )


def test_a_planted_cohort_is_found_with_and_without_matching(tmp_path):
    found = compare(tmp_path, 4.0, range(102, 107), age=np.linspace(1, 18, 18))
    assert [one.n_cohort for one in found] == [5, 5]
    assert [one.n_rest for one in found] == [11, 5]
    assert found[0].separation.p_value <= 0.02
    # Five pairs have 32 labellings, and which group is which makes no difference.
    assert found[1].least_p == pytest.approx(1 / 16)
    assert found[1].separation.p_value <= 0.15
    assert found[1].age_gap > 0
    content = cohort.comparison_figures(found[0])
    assert json.loads(json.dumps(content, allow_nan=False))["n_cohort"] == 5


def test_two_patients_are_no_cohort(tmp_path):
    (one,) = compare(tmp_path, 4.0, [102, 103])
    assert one.separation is None
    assert "2 of the cohort and 14 others" in one.reason
    assert "cohort.min_patients asks for 3" in one.reason


def test_patients_with_too_few_epochs_are_left_out(tmp_path):
    (one,) = compare(tmp_path, 4.0, range(102, 107), epochs_per_patient=26)
    assert (one.n_cohort, one.n_rest) == (0, 0)


# ------------------------------------------------------------------ script 5
def script_5(*argv: str) -> int:
    spec = importlib.util.spec_from_file_location("script_5", ROOT / "5_explore_embeddings.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main(["--config", str(ROOT / "configs/explore.yaml"), *map(str, argv)])


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """The output folder of a run on nine made-up patients, and its arguments."""
    folder = tmp_path_factory.mktemp("explore")
    write_cohort(folder / "batches")
    torch.manual_seed(0)
    checkpoints.save_checkpoint(
        folder / "model.pt",
        {
            "state_dict": MaskedAutoencoder(**MODEL).state_dict(),
            "model": MODEL,
            "settings": {},
            "step": 12,
            "val_loss": None,
            "split_hash": "feedfacefeedface",
            "patients_seen": checkpoints.hash_patients([500, 501, 502, 503]),
            "simulated": True,
            "data": {},
        },
    )
    (folder / "list.csv").write_text("patient_id\n500\n501\n504\n507\n")
    argv = [
        *("--paths.batches_dir", folder / "batches", "--paths.checkpoint", folder / "model.pt"),
        *("--paths.output_dir", folder / "out", "--paths.embeddings_dir", folder / "embeddings"),
        *("--split", "all", "--cohort.patients_file", folder / "list.csv"),
        *("--cohort.epochs_per_patient", "10", "--cohort.n_draws", "2"),
        *("--cohort.n_shuffles", "19", "--distances.n_epochs", "40", "--distances.n_pairs", "50"),
        *("--distances.bootstrap_draws", "100", "--distances.channels", "[EEG C3-M2, SNORE]"),
        *("--maps", "pca", "--nights", "500/5000", "--cohort.name", "my patients"),
    ]
    assert script_5(*argv) == 0
    return folder, argv


def test_explore_json_says_what_was_compared(explored):
    content = json.loads((explored[0] / "out" / "explore.json").read_text())
    assert (content["n_patients"], content["n_epochs"]) == (9, 216)
    assert content["simulated"]
    assert content["seen_patients"] == 4
    (one,) = content["cohort"]["comparisons"]
    assert (one["n_cohort"], one["n_rest"], one["epochs_per_patient"]) == (4, 5, 10)
    assert 1 / 20 <= one["p_value"] <= 1
    assert content["nights"] == [
        {"night": "500/5000", "n_epochs": 24, "hours": pytest.approx(23 / 120),
         "diffusion_steps": content["nights"][0]["diffusion_steps"]}
    ]  # fmt: skip
    rows = {(r["measure"], r["channel"], r["pairs"]): r
            for r in content["distances"]["correlations"]}  # fmt: skip
    assert rows["Euclidean", "SNORE", "within a night"]["spearman"] is None  # never recorded
    assert rows["Euclidean", "EEG C3-M2", "within a night"]["spearman"] is not None


def test_the_page_stands_alone_and_says_simulated(explored):
    folder = explored[0] / "out"
    page = (folder / "explore.html").read_text(encoding="utf-8")
    assert "simulated data" in page
    assert "my patients" in page
    assert "http" not in page.replace("http-equiv", "")
    pictures = {path.stem for path in (folder / "pictures").glob("*.png")}
    assert pictures == {
        *("map_pca", "night_1", "cohort", "distance_correlations", "distances"),
    }
    assert page.count("data:image/png;base64,") == len(pictures)
    points = pd.read_csv(folder / "tables" / "map_pca.csv")
    assert len(points) == 216
    assert set(points["patient_id"]) == set(range(500, 509))


def test_a_second_run_computes_no_embedding_again_and_finds_the_same(explored, monkeypatch):
    folder, argv = explored
    before = (folder / "out" / "explore.json").read_bytes()
    monkeypatch.setattr(MaskedAutoencoder, "embed_many", None)
    assert script_5(*argv) == 0
    assert (folder / "out" / "explore.json").read_bytes() == before


def test_the_patients_asked_for_are_mapped_and_the_cohort_is_compared_over_the_split(explored):
    folder, argv = explored
    chosen = ["--patient_ids", "[500, 504]", "--paths.output_dir", str(folder / "two")]
    assert script_5(*argv, *chosen) == 0
    content = json.loads((folder / "two" / "explore.json").read_text())
    assert (content["n_patients"], content["n_epochs"]) == (9, 216)
    assert (content["maps"][0]["n_patients"], content["maps"][0]["n_epochs"]) == (2, 48)
    assert (content["cohort"]["comparisons"][0]["n_cohort"]) == 4


def test_a_bad_call_ends_with_2_and_one_sentence(explored, capsys):
    argv = explored[1]
    for extra, word in (
        (["--patient_ids", "[7]"], "patient 7 has no epoch in split all"),
        (["--split", "test", "--patient_ids", "[500]"], "patient 500 has no epoch in split test"),
        (["--split", "test"], "'500/5000' is no night of split test"),
        (["--pooling", "median"], "median"),
        (["--paths.health_dir", "nowhere"], "paths.health_dir"),
    ):
        assert script_5(*argv, *extra) == 2
        sentence = capsys.readouterr().err.strip()
        assert word in sentence
        assert len(sentence.splitlines()) == 1
