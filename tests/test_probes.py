"""Probes on planted features: the truth comes out, choices stay on val, guards refuse."""

import numpy as np
import pandas as pd
import pytest
import torch
from planted import planted_index, planted_table, write_cohort
from scipy.stats import norm
from small_probes import paths, save_model, script_3

from pedsleepmae import checkpoints, errors, model
from pedsleepmae.checkpoints import CheckpointError, hash_patients, list_sums
from pedsleepmae.probe import evaluation, files, linear, report, solvers
from pedsleepmae.probe.density import fit_density
from pedsleepmae.probe.fitted import SavedReadOut
from pedsleepmae.probe.linear import FitSettings
from pedsleepmae.probe.nights import read_studies
from pedsleepmae.probe.tables import neighbours
from pedsleepmae.tasks import task_labels

PATIENTS = {"train": 14, "val": 7, "test": 9}
FITTING = FitSettings(strengths=[1e-3, 1e-1])
EVENTS = ("apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal")


@pytest.fixture(autouse=True)
def one_thread():
    """Problems this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings_for(*tasks: str, **changes) -> evaluation.ProbeSettings:
    changes = {"context": 0, "baselines": [], "bootstrap_draws": 300} | changes
    return evaluation.ProbeSettings(tasks=list(tasks), **changes)


def run(settings, index, features: dict[str, dict], folder, studies=None, fitting=FITTING):
    tables = {
        source: planted_table(index, folder / source, **by_name)
        for source, by_name in features.items()
    }
    return evaluation.compare(settings, index, tables, studies, fitting)


# ------------------------------------------------------------------ known truth
def test_a_planted_separation_gives_the_auroc_worked_by_hand(tmp_path):
    """Scores normal, 1.5 apart: AUROC = Phi(1.5 / sqrt 2) = 0.8556; noise around it is no help."""
    index = planted_index(tmp_path, PATIENTS, n_epochs=150, seed=0)
    rng = np.random.default_rng(0)
    x_NF = rng.standard_normal((len(index), 5))
    x_NF[:, 2] += 1.5 * (index.labels["desat"] > 0)
    settings = settings_for("desaturation", "arousal", baselines=["prevalence"])
    results = run(settings, index, {"encoder": {"x": x_NF}}, tmp_path)
    test = results.tasks["desaturation"].by_source["encoder"].test
    low, high = test.ci95["auroc"]
    assert low < norm.cdf(1.5 / np.sqrt(2)) < high
    assert test.figures["auroc"] == pytest.approx(0.8556, abs=0.03)
    # The best threshold on a score of equal spread lies where F1 peaks; calibration undoes the
    # class weights, so the mean probability is the prevalence.
    prob_N = results.tasks["desaturation"].by_source["encoder"].prob_NK[:, 1]
    assert prob_N.mean() == pytest.approx(0.3, abs=0.03)
    assert test.figures["ece"] < 0.05
    assert results.tasks["desaturation"].by_source["encoder"].before["ece"] > 0.1
    assert results.tasks["arousal"].by_source["encoder"].test.figures["auroc"] < 0.56
    chance = results.tasks["desaturation"].by_source["prevalence"].test.figures
    assert chance["auroc"] == 0.5
    assert chance["auprc"] == pytest.approx(index.labels["desat"][results.test].mean())


def test_labels_shuffled_within_patients_leave_every_auroc_at_one_half(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=120, seed=1)
    rng = np.random.default_rng(1)
    patient_NP = np.eye(30)[index.patient_ids - 100]  # patients can be told apart
    signal_NF = np.stack([index.labels[name] for name in index.labels], axis=1)
    x_NF = np.concatenate([patient_NP, signal_NF + 0.5 * rng.standard_normal((len(index), 5))], 1)

    def intervals(folder) -> dict[str, list[float]]:
        settings = settings_for("sleep", *EVENTS)
        results = run(settings, index, {"encoder": {"x": x_NF}}, folder)
        names = {t: "weighted_auroc" if t == "sleep" else "auroc" for t in results.tasks}
        return {t: results.tasks[t].by_source["encoder"].test.ci95[names[t]] for t in names}

    assert all(low > 0.7 for low, _ in intervals(tmp_path / "true").values())
    for name in index.labels:
        for patient in np.unique(index.patient_ids):
            here = np.flatnonzero(index.patient_ids == patient)
            index.labels[name][here] = rng.permutation(index.labels[name][here])
    for task, (low, high) in intervals(tmp_path / "shuffled").items():
        assert low < 0.5 < high, task


def test_stages_come_out_as_planted(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=60, seed=2)
    index.labels["sleep"][::9] = -1
    stage_N = index.labels["sleep"]
    x_NF = 4.0 * np.eye(6)[stage_N] + np.random.default_rng(2).standard_normal((len(index), 6))
    results = run(settings_for("sleep"), index, {"encoder": {"x": x_NF}}, tmp_path)
    result = results.tasks["sleep"]
    assert result.by_source["encoder"].test.figures["kappa"] > 0.95
    assert result.counts["n_test"] == (stage_N[index.rows("test")] >= 0).sum()
    assert result.by_source["encoder"].test.confusion.sum() == result.counts["n_test"]


def test_a_better_baseline_is_called_better_and_an_equal_one_not(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=120, seed=3)
    rng = np.random.default_rng(3)
    event_N = index.labels["eeg"]
    weak, strong = (rng.standard_normal((len(index), 3)) for _ in range(2))
    weak[:, 0] += 0.7 * event_N
    strong[:, 0] += 2.0 * event_N
    features = {"encoder": {"x": weak}, "handmade": {"handmade": strong}, "untrained": {"x": weak}}
    results = run(settings_for("arousal"), index, features, tmp_path)
    content = report.as_metrics(results, {})
    baselines = content["tasks"]["arousal"]["baselines"]
    assert baselines["handmade"]["difference"]["auroc"]["ci95"][1] < -0.1
    assert baselines["untrained"]["difference"]["auroc"] == {"value": 0, "ci95": [0, 0]}


def test_neighbours_help_where_the_signal_lies_in_the_epoch_before(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=80, seed=4)
    before_N = neighbours(index, 1)[:, 2]  # the epoch after carries our mark
    x_NF = np.random.default_rng(4).standard_normal((len(index), 3))
    known = before_N >= 0
    x_NF[before_N[known], 1] += 3.0 * index.labels["desat"][known]
    results = run(
        settings_for("desaturation", context=1), index, {"encoder": {"x": x_NF}}, tmp_path
    )
    judged = results.tasks["desaturation"].by_source
    assert judged["encoder"].test.figures["auroc"] < 0.6
    assert judged["context"].test.figures["auroc"] > 0.9
    content = report.as_metrics(results, {})["tasks"]["desaturation"]
    assert content["context"]["difference"]["auroc"]["value"] > 0.3
    assert content["test"]["auroc"] == judged["encoder"].test.figures["auroc"]


# ------------------------------------------------------------------ solvers
def unruly_problem(tmp_path, n_features=40):
    """Correlated features of very different size, some unknown, one constant, one never known."""
    index = planted_index(tmp_path, {"train": 9, "val": 1, "test": 1}, n_epochs=60, seed=5)
    rng = np.random.default_rng(5)
    x_NF = rng.standard_normal((len(index), n_features)) @ rng.standard_normal((n_features,) * 2)
    x_NF[:, 0] += 2 * (index.labels["apnea"] > 0)
    x_NF[:, 1] += index.labels["sleep"]
    x_NF = x_NF * 10.0 ** rng.uniform(-2, 1, n_features) + rng.uniform(-3, 3, n_features)
    x_NF[:, 3] = 0.25
    x_NF[rng.random(len(index)) < 0.1, 4] = np.nan
    x_NF[:, 5] = np.nan
    index.labels["sleep"][::11] = -1
    index.labels["sleep"][index.labels["sleep"] == 1] = 2  # a stage that never occurs
    table = planted_table(index, tmp_path / "features", x=x_NF)["x"]
    rows = index.rows("train")
    targets = {t: task_labels(index.labels, t)[rows] for t in ("sleep", "apnea", "arousal")}
    return table, rows, targets


@pytest.mark.parametrize("n_features", [13, 900])
def test_passes_over_the_disk_agree_with_scikit_learn_in_memory(tmp_path, n_features):
    """13 features: fewer than rows; 900: more, where memory works in the space of the rows."""
    table, rows, targets = unruly_problem(tmp_path, n_features)
    strengths = [1e-3, 1e-1]
    whole, n_bad_whole = linear.fit_probes(table, rows, targets, FitSettings(strengths))
    seen_rows = []
    original = table.read
    table.read = lambda positions: seen_rows.append(len(positions)) or original(positions)
    tiny = FitSettings(strengths, memory_gb=n_features * 4 * linear.COPIES_IN_MEMORY * 50 / 1e9)
    pieces, n_bad = linear.fit_probes(table, rows, targets, tiny)
    table.read = original
    assert max(seen_rows) <= 50 < len(rows)
    assert n_bad == n_bad_whole == len(rows)
    outputs = {
        name: linear.predict(
            table, rows, {(t, c): p for t, by_c in fitted.items() for c, p in by_c.items()}, tiny
        )
        for name, fitted in (("whole", whole), ("pieces", pieces))
    }
    for key, logit_NK in outputs["whole"].items():
        assert outputs["pieces"][key] == pytest.approx(logit_NK, abs=0.02), key
        spread = logit_NK.std()
        assert np.abs(outputs["pieces"][key] - logit_NK).mean() < 0.005 * spread + 1e-4, key
    assert whole["sleep"][0.1].classes.tolist() == pieces["sleep"][0.1].classes.tolist()


def test_rotating_rows_into_their_own_space_keeps_products():
    x_NF = np.random.default_rng(6).standard_normal((7, 31)).astype(np.float32)
    x_NF[5] = x_NF[2]  # dependent rows
    z_ND, basis_FD = linear.rotate(x_NF)
    assert z_ND.shape[1] == 6
    assert z_ND @ basis_FD.T == pytest.approx(x_NF, abs=1e-4)
    assert basis_FD.T @ basis_FD == pytest.approx(np.eye(6), abs=1e-5)


def test_the_gradient_of_a_pass_is_that_of_finite_differences():
    rng = np.random.default_rng(7)
    x_NF = rng.standard_normal((11, 3)).astype(np.float32)
    target_N = np.array([0, 1, 2, -1, 1, 0, 2, 2, 1, 0, -1])
    problem = solvers.Problem(target_N, 3, strength=0.3)
    assert problem.class_weights() == pytest.approx([9 / (3 * n) for n in (3, 3, 3)])

    scaling = (torch.tensor([0.5, 0.0, -1.0]), torch.tensor([2.0, 1.0, 0.5]))

    def loss(w_FK):
        chunks = lambda: [(slice(0, 6), x_NF[:6]), (slice(6, 11), x_NF[6:])]  # noqa: E731
        return solvers._one_pass(chunks, scaling, [problem], {0: w_FK})[0]

    w_FK = rng.standard_normal((4, 3))
    _, gradient = loss(w_FK)
    for i, j in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[i, j] = 1e-3
        slope = (loss(w_FK + step)[0] - loss(w_FK - step)[0]) / 2e-3
        assert gradient[i, j] == pytest.approx(slope, abs=2e-4)


def test_an_error_while_reading_ends_the_fit_with_that_error():
    def chunks():
        yield slice(0, 2), np.ones((2, 3), np.float32)
        raise OSError("disk gone")

    problems = [solvers.Problem(np.array([0, 1, 0, 1]), 2, c) for c in (0.1, 1.0)]
    with pytest.raises(OSError, match="disk gone"):
        solvers.fit_by_passes(chunks, problems, np.zeros(3), np.ones(3), torch.device("cpu"))


def test_the_path_of_a_gpu_gives_the_probes_of_scikit_learn(tmp_path):
    """Passes over features that are kept in memory, walked on the CPU."""
    table, rows, targets = unruly_problem(tmp_path, 17)
    numpy, _ = linear.fit_probes(table, rows, targets, FitSettings([0.01, 0.1]))
    torch_, _ = linear._fit_by_passes(table, rows, targets, FitSettings([0.01, 0.1]))
    for task in targets:
        for c in (0.01, 0.1):
            a, b = numpy[task][c].weight_FK, torch_[task][c].weight_FK
            assert np.abs(a - b).max() < 0.01 * np.abs(a).max() + 1e-4, (task, c)


# ------------------------------------------------------------------ choices and what is left out
def test_the_test_patients_are_read_for_what_was_chosen_only(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=30, seed=8)
    rng = np.random.default_rng(8)
    weak, strong = (rng.standard_normal((len(index), 4)) for _ in range(2))
    strong[:, 0] += 2 * index.labels["eeg"]
    tables = planted_table(index, tmp_path / "f", weak=weak, strong=strong)
    test, touched = set(index.rows("test").tolist()), []
    for table in tables.values():

        def read(positions, name=table.name, original=table.read):
            touched.extend([name] if test & set(positions.tolist()) else [])
            return original(positions)

        table.read = read
    results = evaluation.compare(settings_for("arousal"), index, {"encoder": tables}, None, FITTING)
    (read_out,) = results.best_table.read_outs
    assert set(touched) == {"strong"}  # once for the probes; for the night's moments, if it counts
    assert len(touched) == 1 + (read_out.normalise == "night")
    assert read_out.table.name == "strong"
    assert results.pooling_scores.set_index("features")["mean"].idxmax() == str(read_out)


def test_labels_are_collapsed_as_in_the_paper(tmp_path):
    index = planted_index(tmp_path, {"train": 1, "val": 1, "test": 1}, n_epochs=5, seed=9)
    index.labels["apnea"][:5], index.labels["hypop"][:5] = [0, 1, 2, 3, 0], [0, 0, 2, 0, 1]
    index.labels["sleep"][:5] = [-1, 0, 4, 2, 1]
    assert task_labels(index.labels, "apnea")[:5].tolist() == [-1, 1, 1, 1, 0]
    assert task_labels(index.labels, "hypopnea")[:5].tolist() == [-1, 0, 1, 0, 1]
    assert task_labels(index.labels, "apnea_hypopnea")[:5].tolist() == [-1, 1, 1, 1, 1]
    assert task_labels(index.labels, "sleep")[:5].tolist() == [-1, 0, 4, 2, 1]


def test_a_task_with_one_class_in_train_is_null_with_its_reason_and_the_run_goes_on(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=20, seed=10)
    index.labels["desat"][:] = 0
    index.labels["eeg"][index.split > 0] = 0  # events in train only
    x_NF = np.random.default_rng(10).standard_normal((len(index), 3))
    settings = settings_for("desaturation", "arousal", "apnea", baselines=["prevalence"])
    results = run(settings, index, {"encoder": {"x": x_NF}}, tmp_path)
    tasks = report.as_metrics(results, {})["tasks"]
    assert tasks["desaturation"]["test"]["auroc"] is None
    assert "only class 0" in tasks["desaturation"]["test"]["undefined"]["auroc"]
    assert tasks["arousal"]["threshold"] is None
    assert tasks["arousal"]["test"]["auroc"] is None
    assert tasks["arousal"]["test"]["undefined"]["auroc"] == "no positive epoch"
    assert tasks["arousal"]["test"]["specificity"] is not None
    assert tasks["apnea"]["test"]["auroc"] is not None


def test_subgroups_are_scored_apart(tmp_path):
    """The feature works in girls alone; ages fall into bands by completed years."""
    index = planted_index(tmp_path, PATIENTS, n_epochs=60, seed=11)
    girl_N = index.patient_ids % 2 == 0
    x_NF = np.random.default_rng(11).standard_normal((len(index), 2))
    x_NF[:, 0] += 2.5 * index.labels["eeg"] * girl_N
    patients = np.unique(index.patient_ids)
    people = pd.DataFrame({"patient_id": patients, "study_id": patients * 10})
    people["sex"] = np.where(patients % 2 == 0, "F", "M")
    people["age_days"] = np.where(patients == patients[-1], np.nan, 365.25 * (patients % 5) + 1)
    people.to_csv(tmp_path / "studies.csv", index=False)
    studies = read_studies(tmp_path)
    results = run(settings_for("arousal"), index, {"encoder": {"x": x_NF}}, tmp_path, studies)
    groups = results.tasks["arousal"].subgroups
    assert groups["sex"]["F"]["auroc"] > 0.85 > 0.6 > groups["sex"]["M"]["auroc"]
    assert list(groups["age"]) == ["<1", "1-2", "3-5"]
    assert sum(g["n_patients"] for g in groups["age"].values()) == PATIENTS["test"] - 1


def test_a_night_with_perfect_probabilities_has_its_scored_sleep_and_indices(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=60, seed=12)
    x_NF = np.concatenate([np.eye(5)[index.labels["sleep"]], index.labels["eeg"][:, None]], 1)
    fitting = FitSettings([100.0])
    results = run(
        settings_for("sleep", "arousal"), index, {"encoder": {"x": x_NF}}, tmp_path, fitting=fitting
    )
    nights = results.nights.set_index("study_id")
    study = nights.index[0]
    here = index.study_ids == study
    sleep_min = (index.labels["sleep"][here] > 0).sum() / 2
    assert nights.loc[study, "sleep_min_scored"] == sleep_min
    arousals = index.labels["eeg"][here][index.labels["sleep"][here] > 0].sum()  # none of wake
    assert nights.loc[study, "arousal_index_scored"] == pytest.approx(60 * arousals / sleep_min)
    assert abs(results.agreement["sleep_min"]["bias"]) < 0.5
    assert abs(results.agreement["arousal_index"]["bias"]) < 1
    assert results.agreement["sleep_min"]["n"] == PATIENTS["test"]
    assert results.events_per_epoch == {}


def test_indices_count_events_where_their_number_is_known(tmp_path):
    """An epoch of sleep with an arousal holds three; of some nights their number is unknown."""
    index = planted_index(tmp_path, PATIENTS, n_epochs=60, seed=12)
    x_NF = np.concatenate([np.eye(5)[index.labels["sleep"]], index.labels["eeg"][:, None]], 1)
    in_sleep_N = index.labels["eeg"] * (index.labels["sleep"] > 0)
    epochs = pd.DataFrame({"study_id": index.study_ids, "n": in_sleep_N})
    table = epochs.groupby("study_id", as_index=False).sum()
    table["patient_id"], table["n_arousals"] = table["study_id"] // 10, 3.0 * table["n"]
    val = np.unique(index.study_ids[index.rows("val")])
    table.loc[table["study_id"] == val[0], "n_arousals"] = np.nan
    table.to_csv(tmp_path / "studies.csv", index=False)
    results = run(
        settings_for("sleep", "arousal"),
        index,
        {"encoder": {"x": x_NF}},
        tmp_path,
        read_studies(tmp_path),
        FitSettings([100.0]),
    )
    assert results.events_per_epoch == {"arousal_index": pytest.approx(3)}
    night = results.nights.iloc[0]
    arousals = table.set_index("study_id").loc[night["study_id"], "n_arousals"]
    hours = night["sleep_min_scored"] / 60
    assert night["arousal_index_scored"] == pytest.approx(arousals / hours)
    assert abs(results.agreement["arousal_index"]["bias"]) < 0.03 * arousals / hours


# ------------------------------------------------------------------ guards
def test_an_empty_split_is_refused(tmp_path, capsys):
    batches = write_cohort(tmp_path / "batches", n_epochs=5, patients=(("train", 3), ("test", 2)))
    checkpoint = save_model(tmp_path / "model.pt", [500])
    assert script_3(*paths(tmp_path, batches, checkpoint)) == 2
    assert "no val examples" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_patients_seen_in_pretraining_are_refused_unless_asked_for(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=5, seed=15)
    train = np.unique(index.patient_ids[index.rows("train")])
    test = np.unique(index.patient_ids[index.rows("test")])
    val = np.unique(index.patient_ids[index.rows("val")])
    clean, dirty = hash_patients(train), hash_patients([*train, *test[:2], val[0]])
    assert checkpoints.check_seen_patients(index, clean, allowed=False) == 0
    assert checkpoints.check_seen_patients(index, None, allowed=False) is None
    with pytest.raises(errors.ProbeError, match="saw 3 of the val and test patients"):
        checkpoints.check_seen_patients(index, dirty, allowed=False)
    assert checkpoints.check_seen_patients(index, dirty, allowed=True) == 3


def test_poolings_that_do_not_exist_are_refused():
    assert model.check_poolings("best", ["mean", "max", "mean"]) == ["mean", "max"]
    assert model.check_poolings("time_abs+class", ["mean"]) == ["time_abs+class"]
    with pytest.raises(errors.ProbeError, match="no 'median'"):
        model.check_poolings("mean+median", ["mean"])


def test_probes_come_back_from_disk_as_they_were(tmp_path):
    index = planted_index(tmp_path, PATIENTS, n_epochs=30, seed=16)
    x_NF = np.random.default_rng(16).standard_normal((len(index), 6))
    x_NF[:, 0] += 2 * index.labels["eeg"]
    results = run(settings_for("sleep", "arousal"), index, {"encoder": {"x": x_NF}}, tmp_path)
    density = fit_density(results.best_table, results.index.rows("train"), results.test)
    basis = files.Basis({"encoder_sha256": "0123"}, density, "x")
    probes = {task: result.probe for task, result in results.fitted.items()}
    read_outs = {"sleep": SavedReadOut("x@2", "night"), "arousal": SavedReadOut("x", "none")}
    files.save_probes(tmp_path / "probes.npz", read_outs, probes, basis)
    read_back, loaded = files.load_probes(tmp_path / "probes.npz")
    assert read_back == read_outs
    rows = results.test
    for task, probe in loaded.items():
        features_NF = results.tables[task].read(rows)
        prob_NK = probe.probabilities(probe.linear.logits(features_NF))
        before = results.fitted[task]
        assert prob_NK == pytest.approx(before.prob_NK, abs=1e-5)
        assert (probe.decide(before.prob_NK) == before.decided_N).all()
    again = files.load_basis(tmp_path / "probes.npz")
    assert (again.facts, again.pooling) == (basis.facts, "x")
    x_NF = results.best_table.read(rows[:5])
    assert (again.density.distance(x_NF) == density.distance(x_NF)).all()
    with pytest.raises(errors.ProbeError, match="run script 3"):
        files.load_probes(tmp_path / "train" / "combined_0.hdf5")


def test_published_probes_that_were_changed_are_refused(tmp_path):
    (tmp_path / "probes.npz").write_bytes(b"as published")
    list_sums(tmp_path / "probes.npz")
    (tmp_path / "probes.npz").write_bytes(b"changed")
    for load in (files.load_probes, files.load_basis):
        with pytest.raises(CheckpointError, match=r"probes\.npz: its SHA-256 is not the one"):
            load(tmp_path / "probes.npz")
