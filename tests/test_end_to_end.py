"""All the scripts in order, as a user runs them: recordings to the report."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import mne
import numpy as np
import pandas as pd
import pytest
import torch

import pedsleepmae
from pedsleepmae.channels import ALL_CHANNELS, MONTAGES, N_CHANNELS
from pedsleepmae.probe.files import EventProbes
from pedsleepmae.score.night import event_rows, load_scorer, score_examples
from pedsleepmae.store import Examples, load_index, read_signals

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SMALL_MODEL = ["--model.patch_size", "16", "--model.emb_dim", "4", "--model.num_layer", "1"]
SMALL_MODEL += ["--model.num_head", "2", "--optim.lr", "0.003", "--optim.warmup_steps", "4"]


def run(script: str, *options: str, cwd: Path) -> str:
    """A script's output, run from another folder than the repository's."""
    command = [sys.executable, "-W", "error", str(ROOT / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder in which the four scripts were run, and what script 3 printed."""
    folder = tmp_path_factory.mktemp("walk")
    run(
        "0_simulate_cohort.py", "--output_dir", "recordings", "--n_patients", "7",
        "--n_repeat_studies", "1", "--hours", "0.8", "--seed", "5", cwd=folder,
    )  # fmt: skip
    run(
        "1_prepare_dataset.py", "--paths.recordings_dir", "recordings", "--paths.examples_dir",
        "examples", "--paths.batches_dir", "batches", "--split.val_fraction", "0.3",
        "--split.test_fraction", "0.3", cwd=folder,
    )  # fmt: skip
    run(
        "2_pretrain_model.py", "--paths.batches_dir", "batches", "--paths.run_dir", "run",
        "--max_steps", "20", "--val_every", "10", "--val_examples", "32", "--optim.batch_size",
        "16", *SMALL_MODEL, cwd=folder,
    )  # fmt: skip
    printed = run(
        "3_train_classifier.py", "--paths.batches_dir", "batches", "--paths.checkpoint",
        "run/checkpoint_best.pt", "--paths.output_dir", "results", "--pooling", "mean",
        "--bootstrap_draws", "200", "--events", "true", "--montage_epochs", "40", cwd=folder,
    )  # fmt: skip
    return folder, printed


def test_the_examples_are_what_the_contract_says(walked):
    folder, _ = walked
    studies = pd.read_csv(folder / "batches" / "studies.csv")
    assert (studies["status"] == "used").all()
    assert len(studies) == 8
    for study in studies.itertuples():
        key = f"{study.patient_id}_{study.study_id}"
        names = {path.name for path in (folder / "examples" / key).iterdir()}
        assert names == {f"{key}_sample_{k}.hdf5" for k in range(study.n_examples)}


def test_patients_stand_in_one_split_only(walked):
    index = load_index(walked[0] / "batches")
    assert index.simulated
    assert index.patient_disjoint
    splits = [set(index.patient_ids[index.rows(split)]) for split in ("train", "val", "test")]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_the_run_leaves_a_checkpoint_that_rebuilds_its_model(walked):
    folder, _ = walked
    model = pedsleepmae.load_model(folder / "run" / "checkpoint_best.pt")
    index = load_index(folder / "batches")
    x = torch.from_numpy(read_signals(index, index.rows("val")[:3]))
    embedding = model.embed(x, pooling="mean")
    assert embedding.shape == (3, 16 * 240)
    assert torch.isfinite(embedding).all()
    assert model.reconstruct(x).shape == (3, 16, 3840)
    raw = torch.load(folder / "run" / "checkpoint_last.pt", weights_only=True)
    assert "state_dict" in raw
    assert list((folder / "run").rglob("*.png"))
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().split("\n")
             if line]  # fmt: skip
    assert all(line["simulated"] for line in lines)


def test_metrics_hold_what_the_contract_says(walked):
    folder, printed = walked
    metrics = json.loads((folder / "results" / "metrics.json").read_text())
    assert metrics["patient_disjoint"] is True
    assert metrics["split_hash"] == load_index(folder / "batches").split_hash
    assert metrics["pooling"] == "mean"
    assert metrics["simulated"] is True
    tasks = ["sleep", "apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal"]
    assert sorted(metrics["tasks"]) == sorted(tasks)
    for name, task in metrics["tasks"].items():
        for key in ("n_train", "n_val", "n_test", "n_test_patients", "prevalence", "baselines"):
            assert key in task, (name, key)
        figures = ["accuracy", "balanced_accuracy", "kappa", "brier", "ece", "ci95"]
        figures += ["f1", "auroc", "auprc"] if name != "sleep" else []
        figures += ["macro_f1", "weighted_f1", "weighted_auroc"] if name == "sleep" else []
        for key in figures:
            assert key in task["test"], (name, key)
        assert "val" in task
        assert ("confusion_matrix" in task["test"]) >= (name == "sleep")
    assert "simulated" in printed
    for word in ("sleep", "apnea", "hypopnea", "desaturation", "arousal"):
        assert word in printed


def test_the_report_stands_alone(walked):
    page = (walked[0] / "results" / "report.html").read_text()
    assert "imulated" in page
    assert "data:image/png;base64," in page
    for loaded in ('src="http', 'href="http', "<script src", "@import"):
        assert loaded not in page


def test_single_events_of_script_3_are_those_of_script_4(walked):
    folder, printed = walked
    metrics = json.loads((folder / "results" / "metrics.json").read_text())
    events = pd.read_csv(folder / "batches" / "events.csv")
    assert set(events["study_id"]) <= set(load_index(folder / "batches").study_ids)
    assert "single events" in printed
    for kind, entry in metrics["events"]["kinds"].items():
        sources = entry["sources"]
        assert {"encoder", "untrained", "handmade", "epoch_labels", "chance"} <= set(sources), kind
        assert sources["encoder"]["iou_0.5"]["f1"] <= sources["encoder"]["iou_0.2"]["f1"]
    table = pd.read_csv(folder / "results" / "tables" / "event_nights.csv")
    night = table.iloc[0]
    name = f"{night.patient_id:.0f}_{night.study_id:.0f}"
    run(
        "4_score_recording.py", next((folder / "recordings").rglob(f"{name}.edf")),
        "--paths.checkpoint", "run/checkpoint_best.pt", "--paths.probes", "results/probes.npz",
        cwd=folder,
    )  # fmt: skip
    scored = folder / "results" / "scored" / name
    summary = json.loads((scored / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["quantities"]}
    for index in ("apnea_hypopnea_index", "desaturation_index", "arousal_index"):
        assert rows[index]["found_by"] == "seconds"
        assert rows[index]["value"] == pytest.approx(night[f"{index}_predicted"])
        assert rows[index]["scored"] == pytest.approx(night[f"{index}_scored"])
    by_stage = [rows[rate]["counted"]["scored"] for rate in ("ahi_rem", "ahi_nrem")]
    assert sum(by_stage) == rows["apnea_hypopnea_index"]["counted"]["scored"]
    found = pd.read_csv(scored / "events.csv")
    assert list(found.columns[:4]) == ["kind", "onset_s", "duration_s", "probability"]
    assert (found["found_by"] == "seconds").all()
    assert found["probability"].between(0, 1).all()
    rows = mne.read_annotations(scored / "annotations.edf")
    in_file = [row for row in rows if row["description"] == "EEG arousal"]
    assert len(in_file) == (found["kind"] == "arousal").sum()
    assert "Single events over the signals" in (scored / "report.html").read_text()


def test_single_events_of_a_montage_are_found_by_probes_of_its_own(walked):
    folder, _ = walked
    scorer = load_scorer(folder / "run/checkpoint_best.pt", folder / "results/probes.npz")
    pooling, by_montage = scorer.event_probes.pooling, scorer.event_probes.by_montage
    assert set(by_montage) == set(MONTAGES)
    rows = json.loads((folder / "results" / "metrics.json").read_text())["events"]["montages"]
    assert {row["montage"] for row in rows} == set(MONTAGES) - {ALL_CHANNELS}
    index = load_index(folder / "batches")
    here = np.flatnonzero(index.study_ids == index.study_ids[index.rows("test")[0]])
    here = here[np.argsort(index.onsets_s[here])]
    name = "effort, flow, SpO2"
    examples = Examples(
        signals=read_signals(index, here),
        labels={key: codes[here] for key, codes in index.labels.items()},
        patient_ids=index.patient_ids[here],
        study_ids=index.study_ids[here],
        onsets_s=index.onsets_s[here],
        present=index.present[here] & np.isin(np.arange(N_CHANNELS), MONTAGES[name]),
        center=np.zeros((len(here), N_CHANNELS)),
        scale=np.ones((len(here), N_CHANNELS)),
    )
    night = score_examples(scorer, examples)
    assert night.montage == name
    assert set(night.found) == set(by_montage[name])
    swapped = replace(scorer, event_probes=EventProbes(pooling, {name: by_montage[ALL_CHANNELS]}))
    other = score_examples(swapped, examples)
    assert any(not np.array_equal(night.found[kind], other.found[kind]) for kind in night.found)
    # Without such probes epochs are counted, whose probes know the montage.
    others = {key: probes for key, probes in by_montage.items() if key != name}
    by_epochs = score_examples(replace(scorer, event_probes=EventProbes(pooling, others)), examples)
    assert by_epochs.found == {}
    n_runs = sum(task == "apnea_hypopnea" for _, _, task, _ in event_rows(by_epochs))
    assert (n_runs > 0) == by_epochs.called["apnea_hypopnea"].any()


def test_no_file_left_by_the_scripts_is_half_written(walked):
    assert not list(walked[0].rglob("*.partial"))


@pytest.mark.skipif(not (SHARED / "psg").exists(), reason="no ../shared/psg: real night absent")
def test_a_real_night_becomes_examples(tmp_path):
    run(
        "1_prepare_dataset.py", "--config", ROOT / "configs" / "sleep_edf" / "prepare.yaml",
        "--paths.recordings_dir", SHARED / "psg" / "sleep_edf_SC4001", "--paths.examples_dir",
        "examples", "--paths.batches_dir", "batches", cwd=tmp_path,
    )  # fmt: skip
    index = load_index(tmp_path / "batches")
    assert len(index) == 841
    assert not index.patient_disjoint
    assert not index.simulated
    # Counted by hand from the hypnogram: W 188, S1 58, S2 250, S3+S4 220, REM 125.
    assert np.bincount(index.labels["sleep"]).tolist() == [188, 58, 250, 220, 125]
    studies = pd.read_csv(tmp_path / "batches" / "studies.csv")
    assert "EEG C3-M2 = stand-in EEG Fpz-Cz" in studies["channels"][0]
    with h5py.File(next((tmp_path / "examples" / "400_1").iterdir())) as file:
        assert file.attrs["channels_present"].sum() == 5
