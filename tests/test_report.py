"""Script 3 from batch files to metrics.json and a report that stands alone."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from planted import write_cohort
from sklearn.metrics import roc_auc_score
from small_probes import paths, save_model, script_3

from pedsleepmae import checkpoints, load_model, store
from pedsleepmae.model import split_layer
from pedsleepmae.probe import files, readout
from pedsleepmae.tasks import TASKS


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """The results folder of a run on a small simulated cohort, and what the script printed."""
    folder = tmp_path_factory.mktemp("run")
    batches = write_cohort(folder / "batches")
    studies = pd.DataFrame({"patient_id": range(500, 509)})
    studies["study_id"] = studies["patient_id"] * 10
    studies["age_days"] = 365.25 * np.arange(1, 10)
    studies["sex"] = ["F", "M", ""] * 3
    studies.to_csv(batches / "studies.csv", index=False)
    checkpoint = save_model(folder / "model.pt", range(500, 504))
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *parts, **_: printed.append(" ".join(parts)))
        argv = ["--poolings", "[mean, time_abs]", *paths(folder, batches, checkpoint)]
        argv += ["--paths.publish_to", str(folder / "published" / "probes.npz")]
        assert script_3(*argv) == 0
    return folder, "\n".join(printed)


@pytest.fixture(scope="module")
def content(finished) -> dict:
    text = (finished[0] / "results" / "metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    return json.loads(text)


def test_metrics_json_is_as_the_contract_shows(content):
    assert set(content["tasks"]) == {
        *("sleep", "apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal")
    }
    for entry in content["tasks"].values():
        assert {"n_train", "n_val", "n_test", "n_test_patients", "prevalence", "threshold"} <= set(
            entry
        )
        assert {"val", "test", "baselines"} <= set(entry)
    names = [
        "accuracy",
        "balanced_accuracy",
        "f1",
        "auroc",
        "auprc",
        "kappa",
        "brier",
        "ece",
        "ci95",
    ]
    assert set(names) <= set(content["tasks"]["apnea"]["test"])
    names = [
        "weighted_f1",
        "macro_f1",
        "weighted_auroc",
        "confusion_matrix",
        "kappa",
        "accuracy",
        "ci95",
    ]
    assert set(names) <= set(content["tasks"]["sleep"]["test"])
    baselines = {"prevalence", "handmade", "untrained", "handmade+encoder"}
    assert set(content["tasks"]["apnea"]["baselines"]) == baselines
    assert content["split_hash"] == "feedfacefeedface"
    assert content["patient_disjoint"] is True
    assert content["simulated"] is True
    assert content["pooling"] in ("mean", "time_abs")
    assert content["layer"] in (None, 1)
    assert content["normalise"] in ("none", "night")
    assert content["seen_patients"] == 0


def test_figures_stand_for_the_test_examples_of_the_batch_files(finished, content):
    index = store.load_index(finished[0] / "batches")
    apnea = content["tasks"]["apnea"]
    test = index.rows("test")
    assert len(test) == 72
    staged = test[index.labels["sleep"][test] >= 0]  # where nobody scored, no event was looked for
    assert apnea["n_test"] == len(staged) < len(test)
    assert apnea["n_test_patients"] == 3
    assert apnea["prevalence"] == pytest.approx((index.labels["apnea"][staged] > 0).mean())
    sleep = content["tasks"]["sleep"]
    assert sleep["n_test"] == (index.labels["sleep"][test] >= 0).sum()
    assert np.sum(sleep["test"]["confusion_matrix"]) == sleep["n_test"]
    assert sum(sleep["prevalence"].values()) == pytest.approx(1)


def test_planted_signals_are_found_by_hand_made_features(content):
    tasks = content["tasks"]
    assert tasks["sleep"]["baselines"]["handmade"]["kappa"] > 0.9
    assert tasks["apnea"]["baselines"]["handmade"]["auroc"] > 0.9
    assert tasks["arousal"]["baselines"]["handmade"]["auroc"] > 0.9
    difference = tasks["sleep"]["baselines"]["handmade"]["difference"]["kappa"]
    gap = tasks["sleep"]["test"]["kappa"] - tasks["sleep"]["baselines"]["handmade"]["kappa"]
    assert difference["value"] == pytest.approx(gap)


def test_tasks_without_events_are_null_with_a_reason(content):
    for task in ("desaturation", "hypopnea"):
        entry = content["tasks"][task]
        assert entry["test"]["auroc"] is None
        assert "only class 0" in entry["test"]["undefined"]["auroc"]
    assert content["tasks"]["desaturation"]["prevalence"] == 0


def test_the_probes_on_disk_give_the_published_figure_again(finished, content):
    folder = finished[0]
    index = store.load_index(folder / "batches")
    model = load_model(folder / "model.pt")
    read_outs, loaded = files.load_probes(folder / "results" / "probes.npz")
    pooling, layer = split_layer(read_outs["apnea"].pooling)
    test = index.rows("test")
    staged_N = index.labels["sleep"][test] >= 0
    score_N = np.full(len(test), np.nan)
    for patient in np.unique(index.patient_ids[test]):  # a night each
        here = index.patient_ids[test] == patient
        x_BCT = torch.from_numpy(store.read_signals(index, test[here]))
        present_NC = index.present[test[here]]
        x_NF = model.embed(x_BCT, pooling, torch.from_numpy(present_NC), layer).numpy()
        lengths = [model.n_features(part) for part in pooling.split("+")]
        x_NF = readout.night_rows(x_NF, lengths, present_NC, read_outs["apnea"].normalise)
        probe = loaded["apnea"]
        score_N[here] = probe.probabilities(probe.linear.logits(x_NF))[:, 1]
    again = roc_auc_score(index.labels["apnea"][test[staged_N]] > 0, score_N[staged_N])
    # Half precision on disk (and, where the machine has it, bfloat16) against float32 here.
    assert again == pytest.approx(content["tasks"]["apnea"]["test"]["auroc"], abs=0.03)


def test_the_published_probes_are_the_same_with_their_sum(finished):
    published = finished[0] / "published" / "probes.npz"
    assert published.read_bytes() == (finished[0] / "results" / "probes.npz").read_bytes()
    listed = published.with_name("SHA256SUMS").read_text("utf-8")
    assert listed == f"{checkpoints.file_sha256(published)}  probes.npz\n"


def test_the_report_stands_alone_and_says_that_the_data_are_simulated(finished):
    page = (finished[0] / "results" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|//cdn|@import|<script|<link", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) > 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "The recordings are simulated" in page
    assert "no patient in two splits" in page
    assert "only class 0" in page


def test_tables_and_pictures_stand_beside_the_report(finished, content):
    results = finished[0] / "results"
    for picture in ("overview", "sleep_curves", "apnea_curves", "night_1", "agreement"):
        assert (results / "pictures" / f"{picture}.png").read_bytes()[:4] == b"\x89PNG"
    figures = pd.read_csv(results / "tables" / "figures.csv").set_index(
        ["task", "source", "figure"]
    )
    got = figures.loc[("apnea", "encoder", "auroc")]
    assert got["value"] == pytest.approx(content["tasks"]["apnea"]["test"]["auroc"])
    assert got["ci95_low"] == pytest.approx(content["tasks"]["apnea"]["test"]["ci95"]["auroc"][0])
    assert np.isnan(figures.loc[("desaturation", "encoder", "auroc")]["value"])
    nights = pd.read_csv(results / "tables" / "nights.csv")
    assert nights["study_id"].tolist() == [5060, 5070, 5080]
    subgroups = pd.read_csv(results / "tables" / "subgroups.csv")
    assert set(subgroups["group"]) == {"6-12", "F", "M"}


def test_the_script_prints_the_table_and_where_the_report_is(finished):
    folder, printed = finished
    assert "simulated data" in printed
    for words in TASKS.values():
        assert words in printed
    assert str(folder / "results" / "report.html") in printed


def test_patients_seen_in_pretraining_stop_the_script_with_2(finished, tmp_path, capsys):
    folder = finished[0]
    checkpoint = save_model(tmp_path / "seen.pt", range(500, 508))
    assert script_3(*paths(tmp_path, folder / "batches", checkpoint)) == 2
    assert "saw 4 of the val and test patients" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_one_night_split_in_time_is_called_so_everywhere(tmp_path, capsys):
    batches = write_cohort(
        tmp_path / "batches",
        n_epochs=40,
        patients=(("train", 1), ("val", 1), ("test", 1)),
        patient_disjoint=False,
        simulated=False,
    )
    checkpoint = save_model(tmp_path / "model.pt", [500])
    argv = ["--tasks", "sleep", "--context", "0", "--pooling", "time_abs"]
    assert script_3(*argv, *paths(tmp_path, batches, checkpoint)) == 0
    content = json.loads((tmp_path / "results" / "metrics.json").read_text(encoding="utf-8"))
    assert content["patient_disjoint"] is False
    assert content["simulated"] is False
    assert content["checkpoint_simulated"] is True
    assert content["tasks"]["sleep"]["bootstrap_over"] == "10-minute block"
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "patient_disjoint false" in page
    assert "pretrained on simulated recordings" in page
    assert "patient_disjoint: false" in capsys.readouterr().out


def test_a_run_whose_only_task_cannot_be_fitted_still_ends_with_a_report(finished, tmp_path):
    folder = finished[0]
    argv = ["--tasks", "desaturation", "--pooling", "mean", "--baselines", "prevalence"]
    assert script_3(*argv, *paths(tmp_path, folder / "batches", folder / "model.pt")) == 0
    content = json.loads((tmp_path / "results" / "metrics.json").read_text(encoding="utf-8"))
    assert content["tasks"]["desaturation"]["test"]["f1"] is None
    page = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "No probe for oxygen desaturation: the train patients show only class 0" in page


def test_what_a_killed_run_left_is_removed_by_the_next(finished, tmp_path):
    folder, _ = finished
    published = tmp_path / "published" / "probes.npz"
    argv = paths(tmp_path, folder / "batches", folder / "model.pt")
    argv += ["--tasks", "[arousal]", "--poolings", "[time_abs]", "--baselines", "[prevalence]"]
    assert script_3(*argv) == 0
    (features,) = (tmp_path / "results" / "embeddings").glob("*/train_combined_0.hdf5")
    published.parent.mkdir()
    left = [features.with_name(".train_combined_0.hdf5.0123abcd.partial")]
    left += [published.with_name(".probes.npz.0123abcd.partial")]
    for path in left:
        path.write_bytes(b"half")
    assert script_3(*argv, "--paths.publish_to", str(published)) == 0
    assert published.exists()
    assert not [path for path in left if path.exists()]


def test_two_checkpoints_are_compared_on_the_same_patients(finished, tmp_path, capsys):
    folder, _ = finished
    other = save_model(tmp_path / "other.pt", [1, 2], seed=5)
    argv = ["--poolings", "[time_abs]", "--paths.compare_with", str(other)]
    argv += paths(tmp_path, folder / "batches", folder / "model.pt")
    assert script_3(*argv) == 0
    content = json.loads((tmp_path / "results" / "metrics.json").read_text(encoding="utf-8"))
    assert content["compared_with"] == str(other)
    alone = ["--poolings", "[time_abs]", *paths(tmp_path / "alone", folder / "batches", other)]
    assert script_3(*alone) == 0
    its_own = json.loads((tmp_path / "alone/results/metrics.json").read_text(encoding="utf-8"))
    for task in ("sleep", "apnea"):
        compared = content["tasks"][task]["baselines"]["compared"]
        assert compared["kappa"] == its_own["tasks"][task]["test"]["kappa"]
        gain = content["tasks"][task]["test"]["kappa"] - compared["kappa"]
        assert compared["difference"]["kappa"]["value"] == pytest.approx(gain)
    assert "Against the checkpoint other.pt" in (tmp_path / "results/report.html").read_text()
    assert "compared AUROC" in capsys.readouterr().out


def test_an_encoder_of_unknown_patients_hides_nothing_that_the_other_saw(
    finished, tmp_path, capsys
):
    folder, _ = finished
    dirty = save_model(tmp_path / "dirty.pt", [508])
    unknown = save_model(tmp_path / "unknown.pt", [])
    content = torch.load(unknown, weights_only=True) | {"patients_seen": None}
    checkpoints.save_checkpoint(unknown, content)
    for one, other in ((dirty, unknown), (unknown, dirty)):
        argv = ["--paths.compare_with", str(other)]
        assert script_3(*argv, *paths(tmp_path, folder / "batches", one)) == 2
        assert "saw 1 of the val and test patients" in capsys.readouterr().err


def test_patients_that_the_compared_checkpoint_saw_stop_the_script_too(finished, tmp_path, capsys):
    folder, _ = finished
    other = save_model(tmp_path / "other.pt", [508])
    argv = ["--paths.compare_with", str(other)]
    assert script_3(*argv, *paths(tmp_path, folder / "batches", folder / "model.pt")) == 2
    assert "saw" in capsys.readouterr().err
