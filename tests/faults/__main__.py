"""Scripts 1 and 2 with every single operation on the disk failing once; exits with 1 on a loss.

    python -m tests.faults                     every k, with ENOSPC, EIO and SIGKILL
    python -m tests.faults --sample 8 --seed 1 eight of these runs

After each of them the same command runs again, undisturbed, and must end with the same batch
files, byte for byte, and the same weights as a run that nothing disturbed. In between, nothing
that is there under its own name may be less than whole.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # a process with threads cannot be forked
os.environ["TQDM_DISABLE"] = "1"

# What scripts need is imported once, before forking.
import jsonargparse  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import scipy.signal  # noqa: E402, F401
import torch  # noqa: E402
import torch._dynamo  # noqa: E402

import pedsleepmae  # noqa: E402
from pedsleepmae.prepare import run as _prepare  # noqa: E402, F401
from pedsleepmae.pretrain import run as _pretrain  # noqa: E402, F401

from . import shim  # noqa: E402

ROOT = Path(pedsleepmae.__file__).resolve().parents[1]
LONGEST_S = 300.0  # a run takes a second or two
PARTIAL = re.compile(r"\.partial$|\.tmp$")
# What is compared: a file that is made anew with every run (a time in it) is not.
NOT_COMPARED = re.compile(r"/tensorboard/|\.lock$|metrics\.jsonl$|\.html$|\.png$|\.traceback\.txt$")


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (negative: a signal), the screen, the operations it did."""

    code: int
    said: str
    told: list[list[str]]


@dataclass
class Stage:
    """A script with its command, the folders it writes below ``out``, and what it starts from."""

    name: str
    script: str
    argv: list[str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reference: dict[str, object] = field(default_factory=dict)
    told: list[list[str]] = field(default_factory=list)


def stages(recordings: Path) -> list[Stage]:
    model = ["--model.patch_size", "240", "--model.emb_dim", "4", "--model.num_layer", "1"]
    model += ["--model.token_layout", "moment"]
    model += ["--model.num_head", "2", "--optim.batch_size", "4", "--optim.warmup_steps", "1"]
    model += ["--max_steps", "4", "--save_every", "2", "--val_every", "4", "--probe_every", "0"]
    prepare = ["--paths.recordings_dir", str(recordings), "--paths.examples_dir", "examples"]
    prepare += ["--paths.batches_dir", "batches", "--n_workers", "1"]
    prepare += ["--split.val_fraction", "0.3", "--split.test_fraction", "0.3"]
    pretrain = ["--paths.batches_dir", "batches", "--paths.run_dir", "run", "--device", "cpu"]
    pretrain += [*model, "--val_examples", "8"]
    return [
        Stage("script 1", "1_prepare_dataset.py", prepare, (), ("examples", "batches")),
        Stage("script 2", "2_pretrain_model.py", pretrain, ("batches",), ("run",)),
    ]


def run(stage: Stage, place: Path, k: int, kind: str) -> Ended:
    """The script in a forked process with ``place`` as its folder; the k-th operation fails."""
    said, told = place.with_suffix(".said"), place.with_suffix(".told")
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            screen = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(screen, 1)
            os.dup2(screen, 2)
            os.chdir(place)
            torch.set_num_threads(1)
            faults = shim.Faults(place, k, kind)
            shim.install(faults)
            code = shim.run_script(ROOT / stage.script, stage.argv)
            told.write_text(json.dumps(faults.told))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + LONGEST_S
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return Ended(-1, f"over {LONGEST_S:g} s", [])
        time.sleep(0.01)
    operations = json.loads(told.read_text()) if told.exists() else []
    text = said.read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(done[1]), text, operations)


# ------------------------------------------------------------------ what must be so
def content(place: Path, outputs: tuple[str, ...]) -> dict[str, object]:
    """Files that count below the outputs: bytes, or for checkpoints what is in them."""
    found = {}
    for path in sorted(p for output in outputs for p in (place / output).rglob("*")):
        name = str(path.relative_to(place))
        if path.is_file() and not NOT_COMPARED.search(f"/{name}") and not is_hidden(name):
            found[name] = load(path) if path.suffix == ".pt" else path.read_bytes()
    return found


def is_hidden(name: str) -> bool:
    """Files of our own book-keeping, and unfinished ones: no reader takes them for results."""
    return any(part.startswith(".") for part in Path(name).parts)


def load(path: Path) -> object:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    kept = ("state_dict", "optimizer", "progress", "step", "model", "patients_seen", "val_loss")
    return {name: checkpoint[name] for name in kept if name in checkpoint}


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def check_disturbed(stage: Stage, place: Path, ended: Ended, kind: str) -> list[str]:
    """What is wrong with a run whose k-th operation failed, before it is run again."""
    problems = []
    if kind != "KILL" and "Traceback" in ended.said:
        problems.append(f"a traceback: {ended.said.strip().splitlines()[-1][:150]}")
    if kind == "KILL" and ended.code != -9:
        problems.append(f"exit code {ended.code} of a killed process")
    if ended.code not in (-9, 0, 1, 2):
        problems.append(f"exit code {ended.code}")
    try:
        found = content(place, stage.outputs)
    except Exception as error:  # a checkpoint under its own name that does not load
        return [*problems, f"less than whole under its own name: {error!r}"[:200]]
    if ended.code == 0:
        problems += differences(stage.reference, found, "done, but")
    for name, value in found.items():
        # Data files are whole or not there; tables may tell of a recording that failed this time.
        if name.endswith(".hdf5") and not equal(stage.reference.get(name), value):
            problems.append(f"{name} is there and not whole")
    return problems


def differences(wanted: dict, found: dict, when: str) -> list[str]:
    names = [n for n in {*wanted, *found} if not equal(wanted.get(n), found.get(n))]
    return [
        f"{when} {name} differs{_where(wanted.get(name), found.get(name))}"
        for name in sorted(names)[:3]
    ]


def _where(wanted, found) -> str:
    """The first entry of a checkpoint that differs, and by how much."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in [*wanted, *found]:
            if not equal(wanted.get(key), found.get(key)):
                return f" in {key}{_where(wanted.get(key), found.get(key))}"
    if isinstance(wanted, torch.Tensor) and isinstance(found, torch.Tensor):
        return f" by up to {(wanted - found).abs().max():.3g}"
    return ""


def check_again(stage: Stage, place: Path, ended: Ended) -> list[str]:
    """What is wrong after the same command has run again."""
    if ended.code != 0:
        return [f"the next run ended with {ended.code}: {ended.said.strip()[-200:]}"]
    problems = differences(stage.reference, content(place, stage.outputs), "after the next run")
    left = [p.name for output in stage.outputs for p in (place / output).rglob("*")]
    left = [name for name in left if PARTIAL.search(name)]
    return problems + ([f"{left[0]} is left lying about"] if left else [])


# ------------------------------------------------------------------ all of it
def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--sample", type=int, help="only so many of the runs, as many of each script"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the sample")
    parser.add_argument("--scripts", nargs="+", type=int, default=[1, 2], help="only these")
    parser.add_argument("--kinds", nargs="+", choices=shim.KINDS, default=list(shim.KINDS))
    parser.add_argument("--json", type=Path, help="file for the problems")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="faults.") as folder:
        problems, counts = try_all(Path(folder), asked)
    n = sum(counts.values())
    for problem, cases in sorted(problems.items(), key=lambda item: -len(item[1])):
        print(f"{len(cases):4} x {problem}\n       {cases[0]}")
    told = ", ".join(f"{number} of {name}" for name, number in counts.items())
    print(f"{n} disturbed runs ({told}); {sum(map(len, problems.values()))} problems")
    if asked.json:
        asked.json.write_text(json.dumps({"runs": n, "problems": problems}, indent=1))
    return 1 if problems else 0


def try_all(folder: Path, asked) -> tuple[dict[str, list[str]], Counter]:
    """Problems with the cases that have them, and the number of runs by stage."""
    recordings = folder / "recordings"
    simulate(recordings)
    done, problems, counts = folder / "undisturbed", {}, Counter()
    done.mkdir()
    todo = []
    for stage in stages(recordings):
        ended = run(stage, done, 0, "")
        if ended.code != 0:
            raise SystemExit(f"{stage.name}, undisturbed, ended with {ended.code}: {ended.said}")
        stage.reference, stage.told = content(done, stage.outputs), ended.told
        cases = [(stage, k + 1, kind) for k in range(len(ended.told)) for kind in asked.kinds]
        if asked.sample:
            n = asked.sample // len(asked.scripts)
            cases = random.Random(asked.seed).sample(cases, min(n, len(cases)))
        todo += cases if int(stage.name[-1]) in asked.scripts else []
    for stage, k, kind in todo:
        operation, path = stage.told[k - 1]
        case = f"{stage.name}, operation {k} ({operation} {path}) with {kind}"
        counts[stage.name] += 1
        for problem in try_one(stage, folder, done, k, kind):
            problem = re.sub(r"\.[0-9a-f]{8}\.", ".#.", problem)
            problems.setdefault(f"{stage.name}: {problem}", []).append(case)
    return problems, counts


def simulate(recordings: Path) -> None:
    """A small cohort through script 0."""
    argv = ["--output_dir", str(recordings), "--n_patients", "3", "--n_repeat_studies", "0"]
    argv += ["--hours", "0.25", "--n_workers", "1", "--absent_channel_fraction", "0"]
    stage = Stage("script 0", "0_simulate_cohort.py", argv, (), ())
    place = recordings.with_name("simulation")
    place.mkdir()
    ended = run(stage, place, 0, "")
    if ended.code != 0:
        raise SystemExit(f"script 0 ended with {ended.code}: {ended.said}")


def try_one(stage: Stage, folder: Path, done: Path, k: int, kind: str) -> list[str]:
    place = folder / "disturbed"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in stage.inputs:
        shutil.copytree(done / name, place / name)
    problems = check_disturbed(stage, place, run(stage, place, k, kind), kind)
    return problems + check_again(stage, place, run(stage, place, 0, ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
