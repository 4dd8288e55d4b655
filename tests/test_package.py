"""The installed package: it holds what ships, and scores a night as the repository does."""

import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml
from small_probes import run_script
from test_imports import MODULES, imports

import pedsleepmae
from pedsleepmae import shipped
from pedsleepmae.score import __main__ as script_4

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = {".git", ".venv", "build", "pedsleepmae.egg-info"}
NOT_COPIED |= {"data", "runs", "results", "demo"}  # gigabytes, perhaps
OPTIONAL = {"umap"}  # script 5 draws PCA without it, and says so
CHECKPOINT = "checkpoint/m15p8_checkpoint.pt"
FLOAT32 = ["--precision", "float32"]


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, without the environment's PYTHONPATH; a failed one fails the test."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the source distribution, and that from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=lambda at, names: NOT_COPIED if at == str(ROOT) else ())
    for name in ("data", "demo"):
        (source / name).mkdir()
        (source / name / "night.csv").write_text("a recording of somebody\n")
    program = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", program, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run(*build, "--no-index", sdist, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_dir(wheel, tmp_path_factory) -> Path:
    """The commands of a new virtual environment: the wheel, over the libraries of this one."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A simulated quarter of an hour, and what script 4 of the repository makes of it."""
    folder = tmp_path_factory.mktemp("night")
    one_child = ["--n_patients", "1", "--n_repeat_studies", "0", "--hours", "0.25"]
    code = run_script(
        "0_simulate_cohort.py", *one_child, "--n_workers", "1", "--output_dir", folder / "cohort"
    )
    assert code == 0
    (recording,) = folder.rglob("*.edf")
    recording = recording.replace(folder / "night.edf")
    argv = ["--paths.checkpoint", ROOT / CHECKPOINT]
    argv += ["--paths.probes", ROOT / "checkpoint" / "probes.npz"]
    argv += ["--paths.output_dir", folder / "repository", *FLOAT32]
    assert run_script("4_score_recording.py", recording, *argv) == 0
    return folder


def test_the_wheel_holds_the_package_and_what_ships_and_nothing_else(wheel):
    wanted = {
        str(Path("pedsleepmae" if folder in shipped.FOLDERS else "") / path.relative_to(ROOT))
        for folder in ("pedsleepmae", *shipped.FOLDERS)
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"pedsleepmae/checkpoint/probes.npz", "pedsleepmae/configs/score.yaml"} < wanted
    assert "pedsleepmae/pages/templates/night_report.html.j2" in wanted
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if ".dist-info/" not in name} == wanted


def test_the_wheel_asks_for_the_libraries_that_it_imports_and_not_for_those_of_the_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(archive.read(name))
    assert facts["Version"] == pedsleepmae.__version__
    asked = {re.match(r"[\w-]+", line)[0].lower() for line in facts.get_all("Requires-Dist")}
    assert not asked & {"pytest", "pytest-xdist", "ruff", "setuptools"}
    libraries = {name.split(".")[0] for module in MODULES for name in imports(module)}
    libraries -= {*sys.stdlib_module_names, "pedsleepmae", *OPTIONAL}
    distributions = importlib.metadata.packages_distributions()
    for library in libraries:
        assert {name.lower() for name in distributions[library]} & asked, library


@pytest.mark.parametrize("command", ["pedsleepmae-score", "python -W error -m pedsleepmae.score"])
def test_installed_it_scores_a_night_to_the_same_table_from_any_folder(
    command, bin_dir, scored, tmp_path
):
    program, *options = command.split()
    run(bin_dir / program, *options, scored / "night.edf", *FLOAT32, cwd=tmp_path)
    (folder,) = (tmp_path / "results" / "scored").iterdir()
    for name in ("epochs.csv", "summary.csv"):
        table, wanted = (pd.read_csv(at / name) for at in (folder, scored / "repository/night"))
        # On one machine another process gave other digits.
        pd.testing.assert_frame_equal(table, wanted, rtol=1e-3, atol=1e-3)
    assert (folder / "report.html").is_file()


def test_installed_it_loads_the_checkpoint_by_its_name_and_knows_nothing_of_the_repository(
    bin_dir, tmp_path
):
    program = "import sys, pedsleepmae; print(*sys.path, pedsleepmae.__file__, sep='\\n')\n"
    program += f"print(pedsleepmae.load_model('{CHECKPOINT}').n_patches)"
    *places, n_patches = run(bin_dir / "python", "-c", program, cwd=tmp_path).splitlines()
    assert places[-1].startswith(str(bin_dir.parent))
    assert str(ROOT) not in places
    assert n_patches == "240"


def test_a_file_of_ones_own_goes_before_the_one_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find_file(CHECKPOINT) == ROOT / CHECKPOINT
    own = tmp_path / CHECKPOINT
    own.parent.mkdir()
    own.write_bytes(b"mine")
    assert shipped.find_file(CHECKPOINT).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["README.md", "checkpoint/none.pt", "", "../configs/score.yaml"])
def test_what_does_not_ship_stays_as_it_was_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert shipped.find_file(name) == Path(name)


def test_settings_that_ship_are_read_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        script_4.main(["--config", "configs/sleep_edf/score.yaml", "--print_config"])
    assert stopped.value.code == 0
    assert "EEG Fpz-Cz" in capsys.readouterr().out


def test_without_the_checkpoint_that_ships_a_sentence_says_where_to_get_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    (tmp_path / "night.edf").touch()
    config = str(ROOT / "configs" / "score.yaml")
    assert script_4.main(["night.edf", "--config", config]) == 2
    sentence = capsys.readouterr().err
    for words in ("paths.checkpoint", CHECKPOINT, "repository's folder checkpoint/"):
        assert words in sentence


def test_the_citation_is_one_of_format_1_2_and_names_the_paper_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split("## Citation")[1].split())
    names = [f"{a['family-names']} {a['given-names'][0]}" for a in paper["authors"]]
    assert f"{', '.join(names)}. {paper['title']}." in readme
    assert f"{paper['collection-title']}; {paper['identifiers'][0]['value']}" in readme
