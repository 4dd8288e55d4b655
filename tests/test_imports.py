"""The house: which folder may import what. The ground knows nothing of the rooms above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pedsleepmae"
GROUND = ""  # the modules that lie in no folder
# What each folder may import besides itself and the ground.
MAY_IMPORT = {
    GROUND: set(),
    "pages": set(),
    "prepare": {"pages"},
    "pretrain": {"pages"},
    "probe": {"pages"},
    "simulate": {"prepare"},
    "explore": {"probe", "pages"},
    "generate": {"probe", "pages"},
    "finetune": {"probe", "pages"},
    "score": {"prepare", "probe", "pages"},
}
ROOF = {"", "api"}  # what `import pedsleepmae` offers: lies flat, stands on everything
HEAVY = {"edfio", "mne", "soxr", "jsonargparse"}  # absent on a GPU machine
# What must be imported without them: pretraining, embedding, probing, and simulated batch files.
PORTABLE = ["model", "data", "api", "pretrain.run", "probe.report", "score.report"]
PORTABLE += ["finetune.curve"]
PORTABLE += ["explore.report", "generate.report", "simulate.batches", "simulate.health"]


def module_name(path: Path) -> str:
    """Dotted name below pedsleepmae; "" for the package itself, "prepare" for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, at_import_only: bool = False) -> set[str]:
    """Modules of the package, dotted, and names of other packages that a module imports.

    ``at_import_only`` leaves out what it imports inside its functions.
    """
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    if at_import_only:
        inside = {
            id(node)
            for function in nodes
            if isinstance(function, ast.FunctionDef)
            or (isinstance(function, ast.If) and ast.unparse(function.test) == "TYPE_CHECKING")
            for node in ast.walk(function)
        }
        nodes = [node for node in nodes if id(node) not in inside]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package != "pedsleepmae":
                found.add(package)
                continue
            while rest not in MODULES:  # the name of a function: its module
                rest = rest.rpartition(".")[0]
            found.add(f"pedsleepmae.{rest}")
    return found


def inner(module: str, **options) -> set[str]:
    """Modules of the package that one imports, dotted, without the package's name."""
    names = imports(module, **options)
    return {n.removeprefix("pedsleepmae.") for n in names if n.startswith("pedsleepmae.")}


def folder(module: str) -> str:
    return module.split(".")[0] if "." in module or MODULES[module].stem == "__init__" else GROUND


@pytest.mark.parametrize("module", sorted(set(MODULES) - ROOF))
def test_imports_go_down_the_house(module):
    allowed = {GROUND, folder(module), *MAY_IMPORT[folder(module)]}
    for other in inner(module):
        assert other not in ROOF, f"{module} imports the roof"
        assert folder(other) in allowed, f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    done = set()

    def visit(module, above):
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in sorted(inner(module)):
                visit(other, [*above, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_only_config_knows_jsonargparse_and_only_scripts_know_config():
    """score.__main__ is script 4, installed."""
    assert [m for m in MODULES if "jsonargparse" in imports(m)] == ["config"]
    assert [m for m in MODULES if "config" in inner(m)] == ["score.__main__"]


@pytest.mark.parametrize("module", PORTABLE)
def test_training_embedding_and_probing_run_without_edf_and_resampling_libraries(module):
    seen, todo = set(), [module]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            assert not imports(here, at_import_only=True) & HEAVY, here
            todo += inner(here, at_import_only=True)


def test_the_model_knows_no_files_and_data_no_model():
    libraries = {name for name in imports("model") if not name.startswith("pedsleepmae.")}
    assert libraries <= {"torch"} | set(sys.stdlib_module_names)
    assert inner("model") <= {"bands", "channels", "errors", "views"}
    assert not inner("bands") | inner("views")
    assert not inner("data") & {"model", "checkpoints"}


def test_nothing_happens_at_import():
    code = "import sys, pedsleepmae; sys.exit('torch' in sys.modules or 'mne' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False)
    assert run.returncode == 0
