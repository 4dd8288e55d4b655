"""The numbered scripts on settings, command lines and folders that were edited."""

import contextlib
import io
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np

from pedsleepmae import store

from .data_readers import build_health, build_recording
from .mutate import NUMBERS, TEXTS, pick
from .pool import ROOT, Refused, Unforeseen
from .sense import require, require_printable

SCRIPTS = {
    "prepare": "1_prepare_dataset.py",
    "pretrain": "2_pretrain_model.py",
    "probe": "3_train_classifier.py",
    "score": "4_score_recording.py",
    "explore": "5_explore_embeddings.py",
    "generate": "6_generate_signals.py",
}
KEYS = {
    "prepare": "paths.recordings_dir paths.examples_dir layout n_workers seed stand_ins prefer "
    "clip split.val_fraction split.by min_channels wake_margin_min inspect scaling",
    "pretrain": "paths.batches_dir paths.run_dir model.patch_size model.emb_dim model.num_head "
    "model.mask_ratio optim.batch_size optim.lr max_steps stop_at_step resume seed device",
    "probe": "paths.batches_dir paths.checkpoint paths.output_dir tasks pooling seed context",
    "score": "recordings paths.checkpoint use_annotations grid_offset_s min_channels clip",
    "explore": "paths.batches_dir paths.checkpoint maps split distances.n_epochs cohort.codes",
    "generate": "paths.batches_dir paths.checkpoint targets max_epochs n_outliers",
}


def build_settings(folder: Path) -> None:
    """The demo's settings, on folders that are not there."""
    for name in SCRIPTS:
        text = (ROOT / "configs" / "demo" / f"{name}.yaml").read_text(encoding="utf-8")
        text = re.sub(r"demo/|checkpoint/", "nowhere/", text)
        text = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
        (folder / f"{name}.yaml").write_text(text + "seed: 3\n", encoding="utf-8")


def read_settings(folder: Path, rng: np.random.Generator) -> None:
    """The script whose settings were edited, which finds no data anyway."""
    edited = re.findall(r"\((\w+)\.yaml\)", (folder.parent / "edits.txt").read_text("utf-8"))
    name = str(pick(rng, edited))
    run_script(name, ["--config", str(folder / f"{name}.yaml")])


def read_command_line(folder: Path, rng: np.random.Generator) -> None:
    name = str(pick(rng, list(SCRIPTS)))
    keys = KEYS[name].split()
    odd = [
        "--",
        "-",
        "--=",
        "-x",
        "--help_",
        "--config",
        "--config=",
        "--config=/",
        "--x.y",
        "[",
        "{",
    ]
    odd += ["--config=/dev/null", "--print_config=x", "--" + "a" * 3000, "--paths", "--paths.", "é"]
    values = [text for text in NUMBERS + TEXTS if "\0" not in text]
    values += ["[1, 2", "{a: b}", "[]", "{}", "null", "true", ".", "/", "nowhere", "cpu", "sleep"]
    argv = []
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.25:
            argv.append(str(pick(rng, odd)))
            continue
        key, value = f"--{pick(rng, keys)}", str(pick(rng, values))
        argv += pick(rng, [[key, value], [f"{key}={value}"], [key], [key, value, value]])
    # Never a run: the last word on where the data are is nowhere.
    where = {"prepare": "recordings_dir", "score": "probes"}.get(name, "batches_dir")
    argv += [f"--paths.{where}", "nowhere"]
    (folder / "command.txt").write_text(f"{SCRIPTS[name]} {argv!r}", encoding="utf-8")
    run_script(name, argv)


def run_script(name: str, argv: list[str]) -> None:
    """A numbered script in this process; its exit code and what it says are judged as by a user."""
    script = ROOT / SCRIPTS[name]
    said, printed = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, [str(script), *argv]
    code = 0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    finally:
        sys.argv = before
    text = said.getvalue()
    require("Traceback" not in text, "a traceback on the screen")
    require(code in (0, 1, 2, 3), f"exit code {code}")
    last = re.split(r"[\r\n]+", text.strip())[-1]
    require_printable(last, "the sentence on the screen")
    if code:
        require(bool(last), f"exit code {code} without a word")
        if "unforeseen" in text:
            raise Unforeseen(last)
        raise Refused(last)


def build_script_1(folder: Path) -> None:
    """Two recordings with their scorings, ages, and the folders of an earlier run."""
    nights_dir = folder / "Sleep_Data"
    nights_dir.mkdir()
    build_recording(nights_dir)
    for suffix in ("edf", "tsv"):
        shutil.copy(nights_dir / f"1_2.{suffix}", nights_dir / f"2_4.{suffix}")
    (folder / "Health_Data").mkdir()
    build_health(folder / "Health_Data")
    _run_script_1(folder)


def _run_script_1(folder: Path) -> None:
    argv = ["--paths.recordings_dir", f"{folder / 'Sleep_Data'}"]
    argv += ["--paths.examples_dir", f"{folder / 'examples'}"]
    argv += ["--paths.batches_dir", f"{folder / 'batches'}", "--n_workers", "1"]
    run_script("prepare", [*argv, "--split.val_fraction", "0.3", "--split.test_fraction", "0"])


def rename(path: Path, rng: np.random.Generator) -> None:
    """A name that is no UTF-8, no number, very long; a pipe, a folder or a link in its place."""
    if not path.exists() or path.is_dir():
        return
    stems = [
        b"\xff\xfe_1",
        "²_1".encode(),
        b"1_2_3",
        b"-1_2",
        b"9" * 40 + b"_1",
        b"a\nb",
        b"x" * 200,
    ]
    kind = int(rng.integers(5))
    place = os.fsencode(path.parent)
    if kind == 0:
        name = os.path.join(place, bytes(pick(rng, stems)) + path.suffix.encode())
        os.rename(os.fsencode(path), name)
    elif kind == 1:
        path.unlink()
        os.mkfifo(path)
    elif kind == 2:
        path.unlink()
        path.mkdir()
    elif kind == 3:
        path.unlink()
        path.symlink_to(str(pick(rng, [path.name, "nowhere", "/dev/zero", "/"])))
    else:
        path.chmod(0)


def read_script_1(folder: Path, _rng: np.random.Generator) -> None:
    """The second run over a folder in which something changed."""
    _run_script_1(folder)
    store.load_index(folder / "batches")
