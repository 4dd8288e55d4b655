"""The benchmark that compares objectives: equal operations, and what counts as a gain."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pedsleepmae.model import MaskedAutoencoder, flops_per_example
from pedsleepmae.tasks import TASKS

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "compare_objectives.py"
TODAY = {"patch_size": 20, "emb_dim": 2, "num_layer": 1, "num_head": 2}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("compare_objectives", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # its dataclasses look there
        patch.setenv("OMP_NUM_THREADS", "1")
        spec.loader.exec_module(module)
    return module


def test_every_objective_gets_the_operations_of_todays(benchmark):
    budget = 800 * flops_per_example(MaskedAutoencoder(**TODAY))
    for variant in benchmark.VARIANTS.values():
        model = TODAY | variant.model
        steps = benchmark.equal_steps(800, TODAY, model)
        flops = flops_per_example(MaskedAutoencoder(**model))
        assert abs(steps * flops - budget) <= flops / 2
        if "mask_unit" in variant.model:
            assert steps > 800  # 5 of 15 tokens visible instead of half


def test_every_step_is_held_against_one_that_is_there(benchmark):
    for name, variant in benchmark.VARIANTS.items():
        assert variant.before in benchmark.VARIANTS
        assert variant.before != name


def measured(benchmark, by_seed: dict[int, float], spread: float):
    """Runs of a variant whose draws lie around its mean, the same patients for all variants."""
    patients_R = np.random.default_rng(0).normal(0, 0.02, 1000)
    own_R = np.random.default_rng(1).normal(0, spread, 1000)
    facts = {s: {"auroc": dict.fromkeys(TASKS, v), "n_patients": 30} for s, v in by_seed.items()}
    draws = {seed: value + patients_R + own_R for seed, value in by_seed.items()}
    return benchmark.Measured(facts, draws)


def test_a_gain_counts_above_two_sd_over_seeds_and_with_its_interval_above_0(benchmark):
    today = measured(benchmark, {0: 0.80, 1: 0.81, 2: 0.82}, 0.0)
    small = measured(benchmark, {0: 0.81, 1: 0.82, 2: 0.83}, 0.001)
    large = measured(benchmark, {0: 0.83, 1: 0.84, 2: 0.85}, 0.001)
    unsure = measured(benchmark, {0: 0.83, 1: 0.84, 2: 0.85}, 0.03)
    found = [benchmark.difference(each, today) for each in (small, large, unsure)]
    assert found[0]["seed sd"] == "0.0100"
    assert found[0]["difference"].startswith("+0.0100 [+0.0")
    assert [each["counts"] for each in found] == ["no", "yes", "no"]


def test_a_folder_of_another_budget_is_refused_in_one_sentence(benchmark, tmp_path, monkeypatch):
    def options(*more: str):
        line = ["compare", "--results_dir", str(tmp_path), *more]
        monkeypatch.setattr("sys.argv", line)
        return benchmark.read_options()

    benchmark.hold_to_one_comparison(options("--steps", "100"))
    benchmark.hold_to_one_comparison(options("--steps", "100", "--only", "today", "--seeds", "2"))
    with pytest.raises(SystemExit, match="holds runs with --steps 100; give these"):
        benchmark.hold_to_one_comparison(options("--steps", "200"))
    assert json.loads((tmp_path / "options.json").read_text("utf-8"))["steps"] == "100"
