"""The house: which module may import what (the leaves know nothing of the roof)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pedsleepmae"
HEAVY = {"edfio", "mne", "soxr", "jsonargparse"}  # absent on a GPU machine
# Modules that must work without these, and without anything that imports them.
PORTABLE = ["channels", "splits", "standardise", "store", "metrics", "model", "data", "training"]
PORTABLE += ["checkpoints", "embeddings", "probes", "features", "report", "simulate", "cohort"]
PORTABLE += ["out_of_distribution", "scoring", "scoring_report", "estimator"]
PORTABLE += ["cohort_health", "explore_report"]
# Layers from the leaves to the edges; a module imports its own package's lower layers only.
LAYERS = {
    "channels": 0, "config": 1, "splits": 0, "metrics": 0, "workers": 0,
    "annotations": 1, "signals": 1, "standardise": 1, "model": 1, "simulate": 1,
    "simulate_norms": 1, "simulate_events": 1, "simulate_waves": 1, "simulate_head": 1,
    "simulate_body": 1, "simulate_signals": 1,
    "store": 2, "recordings": 2, "features": 2,
}  # fmt: skip


def imported(module: str) -> set[str]:
    """Modules that one imports at run time (what stands under TYPE_CHECKING is not)."""
    names = set()
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.module == "pedsleepmae":
                names |= {f"pedsleepmae.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def closure(module: str, seen: set[str] | None = None) -> set[str]:
    """Top-level packages that a module pulls in, itself or through others of the package."""
    seen = set() if seen is None else seen
    packages = set()
    for name in imported(module):
        if not name.startswith("pedsleepmae"):
            packages.add(name.split(".")[0])
            continue
        inner = name.removeprefix("pedsleepmae").strip(".").split(".")[0]
        if inner and inner not in seen and (PACKAGE / f"{inner}.py").exists():
            seen.add(inner)
            packages |= closure(inner, seen)
    return packages


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", sorted(set(PORTABLE) & set(MODULES)))
def test_training_and_evaluation_run_without_edf_and_resampling_libraries(module):
    assert not closure(module) & HEAVY


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    layer = LAYERS.get(module, 3)
    for name in imported(module):
        inner = name.removeprefix("pedsleepmae.")
        if name.startswith("pedsleepmae.") and inner in LAYERS:
            assert LAYERS[inner] <= layer, f"{module} imports {inner}"
        elif name.startswith("pedsleepmae.") and layer < 3:
            pytest.fail(f"{module} is a low layer and imports {inner}")


def test_the_model_needs_torch_alone():
    assert closure("model") <= {"torch"} | set(sys.stdlib_module_names)


def test_only_scripts_read_settings():
    readers = [module for module in MODULES if "pedsleepmae.config" in imported(module)]
    assert readers == []


def test_nothing_happens_at_import():
    code = "import sys, pedsleepmae; sys.exit('torch' in sys.modules or 'mne' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False)
    assert run.returncode == 0
