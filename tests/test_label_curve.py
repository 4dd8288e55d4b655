"""The curve of labels and script 3's other modes, end to end on a small planted cohort."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from planted import write_cohort
from small_probes import ROOT, paths, save_model, script_3

from pedsleepmae import adapters
from pedsleepmae.checkpoints import hash_encoder, read_checkpoint
from pedsleepmae.errors import ProbeError
from pedsleepmae.finetune import curve
from pedsleepmae.finetune.curve import Draw, draw_patients, summarise
from pedsleepmae.probe.files import load_basis, load_probes
from pedsleepmae.score.night import load_scorer

TUNING = [
    *("--finetune.rank", "2", "--finetune.alpha", "4", "--finetune.tuning_trials", "2"),
    *("--finetune.batch_size", "8", "--finetune.max_steps", "6", "--finetune.val_every", "3"),
    *("--finetune.val_examples", "32", "--context", "0", "--layer", "last"),
    *("--poolings", "[time_mean+time_std]", "--tasks", "[sleep, apnea]"),
]


# ------------------------------------------------------------------ draws and their figures
def test_a_larger_draw_holds_the_smaller_one_and_0_means_all():
    patients = np.repeat(np.arange(10), 3)
    draws = {(d.number, d.n_patients): d.patients for d in draw_patients(patients, [2, 5, 0], 3, 7)}
    assert {size for _, size in draws} == {2, 5, 10}
    for number in range(3):
        assert set(draws[number, 2]) < set(draws[number, 5]) < set(draws[number, 10])
    assert len({tuple(draws[number, 5]) for number in range(3)}) > 1


def test_sizes_beyond_the_cohort_are_the_cohort():
    draws = draw_patients(np.arange(4), [3, 40, 0], 1, 0)
    assert [draw.n_patients for draw in draws] == [3, 4]


def figures(ways: dict[str, float], spread: float = 0.0, seed: int = 0) -> dict:
    """Of one draw: the same test patients' resamples behind every way."""
    noise_R = spread * np.random.default_rng(seed).standard_normal(200)
    return {
        "ways": {
            way: {"sleep": {"value": v, "draws": (v + noise_R).tolist(), "is_fitted": True}}
            for way, v in ways.items()
        },
        "n_train_epochs": 10,
    }


def test_the_curve_is_the_mean_over_draws_and_gains_are_paired():
    draws = [Draw(1, i, np.arange(1)) for i in range(2)]
    found = [figures({"probe": 0.6, "lora": 0.7}, 0.02), figures({"probe": 0.8, "lora": 0.9}, 0.02)]
    rows = {(r["way"], r["task"]): r for r in summarise(draws, found, 30, seed=0)}
    assert rows["probe", "sleep"]["value"] == pytest.approx(0.7)
    assert rows["lora", "mean"]["value"] == pytest.approx(0.8)
    low, high = rows["probe", "sleep"]["value_ci95"]
    assert low < 0.61
    assert high > 0.79  # either of the two draws may be the one that is made
    # Both ways gain and lose by the same patients and the same labels, so the gain is sure.
    assert rows["lora", "sleep"]["gain_ci95"] == pytest.approx([0.1, 0.1])


def test_test_patients_widen_the_interval():
    draws = [Draw(1, 0, np.arange(1))]
    widths = []
    for spread in (0.01, 0.03):
        (row, _) = summarise(draws, [figures({"probe": 0.7}, spread)], 30, seed=0)
        widths.append(np.ptp(row["value_ci95"]))
    assert widths[1] == pytest.approx(3 * widths[0], rel=1e-6)


# ------------------------------------------------------------------ the script
@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """One run of script 3 with LoRA, a curve and ages on planted children."""
    folder = tmp_path_factory.mktemp("walk")
    patients = (("train", 6), ("val", 2), ("test", 3))
    batches = write_cohort(folder / "batches", n_epochs=15, patients=patients)
    rows = [
        {"patient_id": p, "study_id": p * 10, "age_days": 365 * (1 + p - 500), "sex": "F"}
        for p in range(500, 511)
    ]
    events = dict.fromkeys(["n_apneas", "n_hypopneas", "n_desaturations", "n_arousals"], "")
    pd.DataFrame(rows).assign(**events).to_csv(batches / "studies.csv", index=False)
    checkpoint = save_model(folder / "model.pt", range(500, 506))
    argv = [*TUNING, "--mode", "lora", "--label_curve", "[1, 0]", "--label_draws", "2"]
    argv += ["--age", "true", *paths(folder, batches, checkpoint)]
    assert script_3(*argv) == 0
    return folder, argv


def test_metrics_name_the_mode_and_set_the_frozen_encoder_beside(walk):
    folder, _ = walk
    content = json.loads((folder / "results/metrics.json").read_text())
    assert content["mode"] == "lora"
    assert len(content["finetuning"]["trials"]) == 2
    assert {"frozen", "handmade", "untrained"} <= content["tasks"]["sleep"]["baselines"].keys()
    assert "auroc" in content["tasks"]["apnea"]["baselines"]["frozen"]["difference"]


def test_the_adapter_of_the_script_belongs_to_its_checkpoint_and_probes(walk):
    folder, _ = walk
    adapter = adapters.load_adapter(folder / "results/adapter.pt")
    base = read_checkpoint(folder / "model.pt")
    assert adapter.encoder_sha256 == hash_encoder(base.build_model())
    facts = load_basis(folder / "results/probes.npz").facts
    assert facts["adapter_sha256"] == adapter.sha256
    assert facts["encoder_sha256"] == adapter.encoder_sha256


def test_script_4_takes_the_adapter_and_its_probes_alone(walk):
    folder, _ = walk
    base, probes = folder / "model.pt", folder / "results/probes.npz"
    scorer = load_scorer(base, probes, adapter=folder / "results/adapter.pt", device="cpu")
    merged = adapters.merge(
        read_checkpoint(base), adapters.load_adapter(folder / "results/adapter.pt")
    )
    assert hash_encoder(scorer.model) == hash_encoder(merged.build_model())
    with pytest.raises(ProbeError, match=r"fitted with an adapter.*--paths.adapter"):
        load_scorer(base, probes, device="cpu")
    other = adapters.load_adapter(folder / "results/adapter.pt")
    other.state_dict["encoder.transformer.0.mlp.fc1.up"] += 1
    adapters.save_adapter(folder / "other.pt", other)
    with pytest.raises(ProbeError, match="another adapter"):
        load_scorer(base, probes, adapter=folder / "other.pt", device="cpu")


def test_curve_and_draws_stand_in_tables_and_report(walk):
    folder, _ = walk
    table = pd.read_csv(folder / "results/tables/curve.csv")
    assert set(table["n_patients"]) == {1, 6}
    assert set(table["way"]) == {"handmade", "probe", "lora", "scratch"}
    assert set(table["task"]) == {"sleep", "apnea", "mean"}
    draws = pd.read_csv(folder / "results/tables/label_draws.csv")
    assert draws.groupby(["n_patients", "draw"]).size().to_dict() == {
        **{(1, 0): 1, (1, 1): 1},
        **{(6, 0): 6, (6, 1): 6},
    }
    page = (folder / "results/report.html").read_text("utf-8")
    for words in (
        "What a few labelled children are worth",
        "Age from a night",
        "encoder with LoRA",
    ):
        assert words in page
    assert "says nothing about children" in page


def test_ages_stand_beside_the_mean_age(walk):
    folder, _ = walk
    age = json.loads((folder / "results/metrics.json").read_text())["age"]
    assert {"mean", "encoder", "handmade", "frozen"} <= age["sources"].keys()
    assert age["sources"]["mean"]["slope_of_error"]["value"] == pytest.approx(-1)
    assert age["sources"]["mean"]["gain_over_mean"]["value"] == 0


def test_a_second_run_measures_nothing_again(walk, monkeypatch):
    folder, argv = walk
    before = json.loads((folder / "results/metrics.json").read_text())
    monkeypatch.setattr(curve, "measure_draw", None)
    assert script_3(*argv) == 0
    after = json.loads((folder / "results/metrics.json").read_text())
    assert after["label_curve"] == before["label_curve"]
    assert after["tasks"] == before["tasks"]


def test_two_processes_find_the_adapter_that_one_finds(walk):
    folder, _ = walk
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", port, str(ROOT / "3_train_classifier.py")]
    command += ["--config", str(ROOT / "configs/demo/probe.yaml"), "--paths.compare_with", "null"]
    command += [*TUNING, "--mode", "lora", "--baselines", "[]", "--device", "cpu"]
    command += paths(folder, folder / "batches", folder / "model.pt")
    command += ["--paths.output_dir", str(folder / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    two = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("report: ") == 1
    one, both = (adapters.load_adapter(folder / run / "adapter.pt") for run in ("results", "two"))
    for name, weight in one.state_dict.items():
        torch.testing.assert_close(both.state_dict[name], weight, rtol=0, atol=1e-4)


def test_full_fine_tuning_leaves_a_checkpoint_that_script_4_takes(walk):
    folder, _ = walk
    argv = [*TUNING, "--mode", "full", "--baselines", "[]"]
    argv += paths(folder, folder / "batches", folder / "model.pt")
    assert script_3(*argv, "--paths.output_dir", str(folder / "full")) == 0
    checkpoint = read_checkpoint(folder / "full/finetuned.pt")
    assert checkpoint.patients_seen == read_checkpoint(folder / "model.pt").patients_seen
    scorer = load_scorer(folder / "full/finetuned.pt", folder / "full/probes.npz", device="cpu")
    assert scorer.probes.keys() == load_probes(folder / "full/probes.npz")[1].keys()
    base = read_checkpoint(folder / "model.pt").build_model()
    assert not torch.equal(scorer.model.encoder.cls_token, base.encoder.cls_token)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--label_curve", "[5]", "--label_ways", "[lora]"], "label_ways needs probe"),
        (["--label_curve", "[-1]"], "label_curve holds a number below 0"),
        (["--label_curve", "[5]", "--baselines", "[]"], "label_ways has handmade"),
    ],
)
def test_a_curve_that_cannot_be_measured_is_refused_at_once(argv, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        script_3(*argv)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
