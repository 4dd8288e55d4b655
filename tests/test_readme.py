"""README and docs/ as readers use them: every command and block of Python does what is printed.

What takes seconds is run on a short simulated recording. Of every other command the settings are
parsed as printed, and NOT_RUN says why no more is done; a command in neither list fails.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import edfio
import numpy as np
import pytest
from small_probes import run_script

from pedsleepmae import config
from pedsleepmae.adapters import Adapter, adapter_weights, add_adapters, save_adapter
from pedsleepmae.checkpoints import hash_encoder, read_checkpoint
from pedsleepmae.explore.run import ExploreSettings
from pedsleepmae.finetune.run import ClassifierSettings
from pedsleepmae.generate.run import GenerateSettings
from pedsleepmae.prepare.run import PrepareSettings
from pedsleepmae.pretrain.run import PretrainSettings
from pedsleepmae.score.run import ScoreSettings
from pedsleepmae.simulate.cohort import SimulateSettings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = [SimulateSettings, PrepareSettings, PretrainSettings, ClassifierSettings, ScoreSettings]
SETTINGS += [ExploreSettings, GenerateSettings]
SCRIPT = re.compile(r"(?:^|\s)(\d_\w+\.py)(?:\s|$)")

RUN = ("python 4_score_recording.py", "python 1_prepare_dataset.py --inspect")
WALKED = "on data that are not here; test_end_to_end.py runs the script on a small cohort"
NOT_RUN = {  # how a command begins -> why it is not run here
    "pip install .": "test_package.py builds the wheel and installs it",
    "pedsleepmae-score": "test_package.py runs it from an installed package",
    "python -m pedsleepmae.score": "as the line above",
    "make": "the suite is a part of it; what it would run is parsed here",
    "python -m venv": "what make does before anything else",
    "srun": "there is no SLURM in CI",
    "python 0_simulate_cohort.py": "hundreds of children; test_end_to_end.py simulates seven",
    "python 1_prepare_dataset.py": WALKED,
    "python 2_pretrain_model.py": WALKED,
    "python 3_train_classifier.py": WALKED,
    "python 5_explore_embeddings.py": "on embeddings that are not here; see test_exploration.py",
    "python 6_generate_signals.py": "on embeddings that are not here; see test_generation.py",
    "python benchmarks/": "minutes to hours, on data that are not here",
}


# ------------------------------------------------------------------ reading the pages
def code_blocks(text: str) -> tuple[list[str], str]:
    """(blocks of Python, the text without any fenced block)."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    other = {language for language, _ in fenced.findall(text)} - {"python"}
    assert not other, f"blocks in {other}, which nothing here runs"
    return [code for _, code in fenced.findall(text)], fenced.sub("", text)


def commands_of(text: str) -> list[str]:
    """Commands in indented blocks, a line each, and those in `backticks`; each once, in order."""
    text = re.sub(r"\\\n\s*", "", text)
    found = []
    for block in re.findall(r"(?<=\n\n)(?: {4}.*\n)+", text):
        if not block.lstrip().startswith("0_simulate_cohort.py "):  # the tree of files
            found += block.splitlines()
    found += re.findall(r"`((?:python|make)\s[^`]+)`", text)
    found = [" ".join(line.split()).removesuffix(" &") for line in found]
    return list(dict.fromkeys(line for line in found if not line.startswith("#")))


LINKING = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "DECISIONS.md", "SECURITY.md"))]
LINKING += [ROOT / "checkpoint/README.md", ROOT / "benchmarks/RESULTS.md"]
BLOCKS, TEXT = code_blocks("\n".join(page.read_text("utf-8") for page in PAGES))
COMMANDS = commands_of(TEXT)


def test_the_commands_and_blocks_of_the_pages_are_found():
    assert {"make demo", "make tour", "make test", "python 4_score_recording.py RECORDING.edf"} <= {
        *COMMANDS
    }
    assert any(
        line.startswith("srun") and line.endswith("2_pretrain_model.py") for line in COMMANDS
    )
    assert any("pedsleepmae.annotate(" in block for block in BLOCKS)


def test_commands_are_read_as_they_are_printed():
    text = "Words\n\n    python 3_a.py --x 1 \\\n        --y 2\n    # a note\n    make me\n\n"
    text += (
        "and `python\nbenchmarks/b.py`\n\n    0_simulate_cohort.py   a cohort\n    tests/  words\n"
    )
    assert commands_of(text) == ["python 3_a.py --x 1 --y 2", "make me", "python benchmarks/b.py"]


# ------------------------------------------------------------------ every link
def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_named_file_is_there(page):
    text = page.read_text("utf-8")
    for path, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)):
        target = page.parent / path if path else page
        assert target.is_file(), path
        assert not anchor or anchor in anchors_of(target), anchor
    named = re.findall(r"`((?:benchmarks|checkpoint|configs|docs|pedsleepmae)/[^`\s]*\.\w+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


# ------------------------------------------------------------------ every command, parsed
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_parsed_as_printed(command, exit_codes, folder, capsys):
    assert command.startswith((*RUN, *NOT_RUN)), "in no list of tests/test_readme.py: add it to one"
    lines = [command]
    if command.startswith("make"):
        if shutil.which("make") is None:
            pytest.skip("make is not installed")
        dry = subprocess.run(
            [*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert dry.returncode == 0, dry.stderr
        lines = dry.stdout.splitlines()
    for line in lines:
        if script := SCRIPT.search(line):
            with contextlib.chdir(folder), pytest.raises(SystemExit) as stopped:
                run_script(script[1], *shlex.split(line[script.end() :]), "--print_config")
            assert stopped.value.code in (None, 0), capsys.readouterr().err
        elif path := re.search(r"benchmarks/\w+\.py", line):
            compile((ROOT / path[0]).read_text("utf-8"), path[0], "exec")


def test_every_option_that_the_text_names_is_one():
    known = {f"--{name}" for kind in SETTINGS for name in config.setting_types(kind)}
    known |= {"--help", "--config", "--print_config", "--section.key"}
    named = {
        word for code in re.findall(r"`([^`]+)`", TEXT) for word in re.findall(r"--[\w.]+", code)
    }
    assert named - known == set()


# ------------------------------------------------------------------ what takes seconds, run
@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A place as README has it: the repository, and three minutes of a night under its names."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("pedsleepmae", "configs", "checkpoint"):
        os.symlink(ROOT / name, folder / name)
    argv = ["--output_dir", folder / "cohort", "--n_patients", "1", "--hours", "0.25"]
    assert run_script("0_simulate_cohort.py", *argv) == 0
    whole = edfio.read_edf(next((folder / "cohort").rglob("*.edf")))
    whole.slice_between_seconds(0, 180)
    names = ("RECORDING.edf", "FILE.edf", "MORE.edf", "FOLDER/SC4001E0-PSG.edf", "study1/x_1.edf")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        whole.write(folder / name)
    for name, shipped in (
        ("runs/m15p8/checkpoint_best.pt", "m15p8_checkpoint.pt"),
        ("results/m15p8/probes.npz", "probes.npz"),
    ):
        (folder / name).parent.mkdir(parents=True)
        os.symlink(ROOT / "checkpoint" / shipped, folder / name)
    adapt(folder / "results/m15p8_lora")
    return folder


def adapt(folder: Path) -> None:
    """An adapter on the shipped encoder that changes nothing, and the shipped probes with it."""
    model = read_checkpoint(ROOT / "checkpoint/m15p8_checkpoint.pt").build_model()
    sha256 = hash_encoder(model)
    weights = adapter_weights(add_adapters(model, rank=1, alpha=1.0))
    adapter = Adapter(sha256, 1, 1.0, weights)
    save_adapter(folder / "adapter.pt", adapter)
    arrays = dict(np.load(ROOT / "checkpoint/probes.npz"))
    facts = json.loads(str(arrays["facts"])) | {"adapter_sha256": adapter.sha256}
    np.savez(folder / "probes.npz", **arrays | {"facts": np.array(json.dumps(facts))})


@pytest.fixture(scope="module")
def exit_codes(folder) -> dict[str, int]:
    """What became of the commands of RUN, in the order of the pages."""
    codes = {}
    for command in COMMANDS:
        if command.startswith(RUN):
            _, script, *argv = shlex.split(command)
            with contextlib.chdir(folder):
                codes[command] = run_script(script, *argv)
    return codes


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith(RUN)])
def test_commands_of_seconds_run_as_printed(exit_codes, folder, command):
    assert exit_codes[command] == 0
    assert (folder / "results" / "scored" / "RECORDING" / "report.html").is_file()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_of_python_runs_as_printed(exit_codes, folder, number):
    block = BLOCKS[number]
    if "import yasa" in block and importlib.util.find_spec("yasa") is None:
        pytest.skip("yasa is not installed; requirements.txt names it")
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
