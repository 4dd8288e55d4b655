"""Settings: what is known is typed and explained, what is not is refused in one sentence."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pedsleepmae import config, errors
from pedsleepmae.explore.run import ExploreSettings
from pedsleepmae.finetune.run import ClassifierSettings
from pedsleepmae.generate.run import GenerateSettings
from pedsleepmae.prepare.run import PrepareSettings
from pedsleepmae.pretrain import trainer
from pedsleepmae.score.run import ScoreSettings
from pedsleepmae.simulate import cohort

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "simulate": cohort.SimulateSettings,
    "prepare": PrepareSettings,
    "pretrain": trainer.PretrainSettings,
    "probe": ClassifierSettings,
    "score": ScoreSettings,
    "explore": ExploreSettings,
    "generate": GenerateSettings,
}
SCRIPTS = {
    "0_simulate_cohort.py": "simulate",
    "1_prepare_dataset.py": "prepare",
    "2_pretrain_model.py": "pretrain",
    "3_train_classifier.py": "probe",
    "4_score_recording.py": "score",
    "5_explore_embeddings.py": "explore",
    "6_generate_signals.py": "generate",
}


def load(kind, *argv):
    return config.load_settings(CLASSES[kind], f"{kind}.yaml", "doc", list(argv))


def refused(capsys, kind, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        load(kind, *argv)
    assert stopped.value.code == 2
    sentence = capsys.readouterr().err.strip()
    assert len(sentence.splitlines()) == 1
    return sentence


def kind_of(path: Path) -> str:
    """Which script a configuration file belongs to, by the command in its header."""
    text = path.read_text().replace("\\\n#", "")
    own = [line for line in text.splitlines() if f"--config {path.relative_to(ROOT)}" in line]
    text = own[0] if own else text
    return next(
        kind for script, kind in SCRIPTS.items() if script in text or f"cript {script[0]}" in text
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_file_is_one_of_its_script(path):
    kind = kind_of(path)
    assert isinstance(load(kind, "--config", str(path)), CLASSES[kind])


def test_overrides_are_typed_and_win_over_the_file(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("seed: 3\nn_workers: 5\npaths:\n  batches_dir: here\n")
    settings = load("prepare", "--config", str(file), "--seed", "7", "--paths.examples_dir", "x")
    assert (settings.seed, settings.n_workers) == (7, 5)
    assert (settings.paths.batches_dir, settings.paths.examples_dir) == (Path("here"), Path("x"))


@pytest.mark.parametrize(
    ("argv", "strict"), [([], False), (["--strict"], True), (["--strict", "true"], True),
                         (["--strict", "false"], False), (["--strict=true"], True)],
)  # fmt: skip
def test_a_switch_means_what_it_says(argv, strict):
    assert load("prepare", *argv).strict is strict


@pytest.mark.parametrize(
    "argv",
    [["--tasks", "apnea", "sleep"], ["--tasks", "[apnea, sleep]"], ["--tasks=[apnea,sleep]"]],
)
def test_a_list_can_be_given_in_each_usual_form(argv):
    assert load("probe", *argv).tasks == ["apnea", "sleep"]


@pytest.mark.parametrize(
    "argv",
    [["NIGHT.edf", "--far_share", "0.05"], ["--far_share", "0.05", "NIGHT.edf"],
     ["--use_annotations", "NIGHT.edf", "--far_share=0.05"],
     ["--recordings", "NIGHT.edf", "--far_share", "0.05"]],
)  # fmt: skip
def test_the_recording_may_stand_without_its_name_anywhere(argv):
    settings = config.load_settings(CLASSES["score"], "score.yaml", "doc", argv, "recordings")
    assert (settings.recordings, settings.far_share) == (["NIGHT.edf"], 0.05)
    assert settings.use_annotations is True


def test_names_of_files_are_taken_as_they_are_and_before_those_of_a_file(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("recordings: [other.edf]\n")
    names = ["*.edf", "a: [b].edf", "null", "-1.edf", "\udcff.edf"]
    given = [*names[:2], "--config", str(tmp_path / "my.yaml"), "--strict", *names[2:]]
    settings = config.load_settings(CLASSES["score"], "score.yaml", "doc", given, "recordings")
    assert (settings.recordings, settings.strict) == (names, True)
    (tmp_path / "my.yaml").write_text('recordings: ["a\\0.edf"]\n')
    assert "NUL" in refused(capsys, "score", "--config", str(tmp_path / "my.yaml"))


def test_an_unknown_key_in_a_file_names_file_key_value_and_remedy(capsys, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("paths:\n  recording_dir: /data\n")
    sentence = refused(capsys, "prepare", "--config", str(file))
    for word in (str(file), "paths.recording_dir", "'/data'", "did you mean paths.recordings_dir"):
        assert word in sentence


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--foo", "3"], ["command line", "foo", "3", "--help"]),
        (["--seed", "x"], ["seed", "'x'", "a whole number"]),
        (["--layout", "chat"], ["layout", "'chat'", "nch, nsrr, sleep_edf"]),
        (["--paths", "3"], ["paths", "group of settings"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "configs/"]),
        (["--split.val_fraction", "0.7", "--split.test_fraction", "0.4"], ["1.1", "below 1"]),
        (["--n_worker", "3"], ["n_worker", "did you mean n_workers"]),
        (["stray"], ["stray"]),
        (["--clip", "-5"], ["clip", "-5"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--min_channels", "17"], ["min_channels", "1 to 16"]),
        (["--split.block_minutes", "0"], ["split.block_minutes"]),
        (["--split.val_fraction", "-0.1"], ["split.val_fraction"]),
        (["--stand_ins", '{"EEG C3-MX": ["a"]}'], ["stand_ins", "EEG C3-MX"]),
        (["--prefer", '{"C-FLO": ["a"]}'], ["prefer", "C-FLO", "C-FLOW"]),
    ],
)
def test_a_bad_call_is_one_sentence_with_exit_code_2(capsys, argv, words):
    sentence = refused(capsys, "prepare", *argv)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--paths.publish_to", "probes.txt"], ["paths.publish_to", "probes.txt", ".npz"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--regularisation", "[0.1, 0]"], ["regularisation", "above 0"]),
        (["--bootstrap_draws", "10"], ["bootstrap_draws", "100"]),
        (["--memory_gb", "0"], ["memory_gb", "more than 0"]),
    ],
)
def test_a_bad_call_of_the_probes_is_refused_before_any_work(capsys, argv, words):
    sentence = refused(capsys, "probe", *argv)
    for word in words:
        assert word in sentence


def test_a_wrong_type_in_a_file_is_traced_to_the_file(capsys, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("min_channels: many\n")
    sentence = refused(capsys, "prepare", "--config", str(file))
    for word in (str(file), "min_channels", "'many'", "a whole number"):
        assert word in sentence


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_every_setting_with_its_meaning(script, tmp_path):
    """On a terminal that lacks letters, too."""
    run = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert run.returncode == 0
    text = " ".join(run.stdout.split())
    for name in config.setting_types(CLASSES[SCRIPTS[script]]):
        assert f"--{name} " in text, name
    assert "default:" in text
    assert script in text  # the command to paste


@pytest.mark.parametrize("script", SCRIPTS)
def test_print_config_prints_settings_that_can_be_read_back(script, tmp_path):
    command = [sys.executable, str(ROOT / script), "--print_config"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0
    (tmp_path / "printed.yaml").write_text(run.stdout)
    kind = SCRIPTS[script]
    again = load(kind, "--config", str(tmp_path / "printed.yaml"))
    assert errors.as_plain_dict(again) == errors.as_plain_dict(load(kind))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_setting_is_read_somewhere(kind):
    """A name that occurs nowhere but in its own definition is a setting that does nothing."""
    used = set()
    for path in [*ROOT.glob("[0-9]_*.py"), *(ROOT / "pedsleepmae").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, (ast.arg, ast.keyword)):
                used.add(node.arg)
    unread = {
        name for name in config.setting_types(CLASSES[kind]) if name.split(".")[-1] not in used
    }
    assert not unread


def alias_bomb() -> bytes:
    """Nine lines that stand for 9^8 words."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{j}: &a{j} [{', '.join([f'*a{j - 1}'] * 9)}]" for j in range(1, 9)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed:\n", ["seed cannot be blank", "a whole number"]),
        (b"paths:\n", ["paths is a group of settings"]),
        ("paths: {run_dir: café}\n".encode("latin-1"), ["UTF-8"]),
        ("seed: 3\n".encode("utf-16"), ["UTF-8"]),
        (bytes(range(256)), ["UTF-8"]),
        (b"", ["key: value"]),
        (b"seed: 3\nseed: 4\n", ["seed twice"]),
        (alias_bomb(), ["alias"]),
        (b"seed: " + b"[" * 5000, ["nested deeper than 20"]),
        (b"seed: 3\n" + b"#" * 100_000, ["larger than 100,000 bytes"]),
        (b"seed: 0x" + b"f" * 5000, ["seed is too large"]),
        (b"seed: " + b"9" * 5000, ["digits"]),
        (b"optim: {lr: .nan}", ["optim.lr is nan; give a finite number below 9.2e+18"]),
        (b"seed: !!float x\n", ["'x'"]),
        (b"paths: !!set {a}\n", ["paths is a group"]),
        (b"seed: !!python/name:os.system\n", ["tag"]),
        (b'paths: {run_dir: "a\\0b"}\n', ["paths.run_dir", "NUL"]),
        (b'"\\e[2Jx": 3\n', [r"\x1b[2Jx", "is not a setting"]),
    ],
)
def test_a_damaged_file_of_settings_is_one_sentence_that_names_it(capsys, tmp_path, content, words):
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    sentence = refused(capsys, "pretrain", "--config", str(file))
    assert sentence.isprintable()
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("argv", [["--config", "/"], ["--config", "/dev/zero"], ["--config=a\0b"]])
def test_what_is_no_regular_file_is_not_read_as_settings(capsys, argv):
    assert "there is no such file" in refused(capsys, "pretrain", *argv)


@pytest.mark.parametrize(
    "text", ["!!float x", "[" * 5000, "{a: &a [x], b: *a}", "0x" + "f" * 5000, "a\udcffb", "a\0b"]
)
def test_an_odd_value_on_the_command_line_is_one_short_sentence(capsys, text):
    sentence = refused(capsys, "pretrain", "--seed", text)
    assert "seed" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 300


@pytest.mark.parametrize("refused", [PermissionError(13, "no", "x"), OSError(30, "ro", "x")])
def test_a_place_that_may_not_be_written_is_a_bad_setting(monkeypatch, capsys, refused):
    monkeypatch.setattr(errors.signal, "signal", lambda *_: None)

    def work(_inputs):
        raise refused

    assert errors.run_script(lambda: None, work) == errors.EXIT_BAD_SETTINGS
    assert "(x); give a place that you may write to" in capsys.readouterr().err


def test_a_print_in_work_does_not_fail_for_want_of_a_letter(tmp_path):
    program = "from pedsleepmae.errors import run_script, warn\n"
    program += "run_script(lambda: warn('5 \\u2013 6'), lambda _: print('3 \\u00b5V \\udcff'))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert (run.returncode, run.stdout) == (0, b"3 ?V ?\n")
    assert rb"5 \u2013 6" in run.stderr
