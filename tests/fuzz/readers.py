"""Everything that reads users' bytes, with good files to start from and what sense a result makes.

The readers are called as the scripts call them; two of them are the scripts themselves.
"""

import contextlib
import hashlib
import io
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import edf_files
import edfio
import h5py
import numpy as np
import small_batches
import small_probes
import torch

from pedsleepmae import checkpoints, data, store
from pedsleepmae.channels import EPOCH_S, EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.explore import diagnoses
from pedsleepmae.prepare import grouping, layouts
from pedsleepmae.prepare import studies as prepare
from pedsleepmae.prepare.annotations import Scoring, label_epochs
from pedsleepmae.prepare.examples import ExampleSettings, Outcome
from pedsleepmae.prepare.layouts import Study
from pedsleepmae.prepare.report import inspect_recording
from pedsleepmae.probe import embeddings, nights
from pedsleepmae.probe.files import load_basis, load_probes
from pedsleepmae.splits import SplitSettings
from pedsleepmae.tasks import EVENT_KINDS, LABELS

from . import mutate
from .pool import ROOT, Reader, Refused, Unforeseen, Wrong

# What a label can be, beside unscored (-1) for the stage.
LARGEST_CODE = {"sleep": 4, "apnea": 3, "hypop": 2, "desat": 1, "eeg": 1}
LARGEST_EEG = 1e4  # standard deviations; no head makes them
LONGEST_NIGHT_EPOCHS = 50_000
SECRET = "SECRETNAME"  # in the header's patient field: must never be told

torch.set_num_threads(1)


# ------------------------------------------------------------------ what makes sense
def require(condition: bool, sentence: str) -> None:
    if not condition:
        raise Wrong(sentence)


def require_printable(text: str, what: str) -> None:
    bad = [c for c in text if not c.isprintable() and c != "\n"]
    require(not bad, f"{what} holds {bad[:1]!r}")
    require(SECRET not in text, f"{what} tells the patient field")


def check_scoring(scoring: Scoring) -> None:
    """Stage rows on finite times that never overlap, codes in range, events on finite times."""
    onsets_s = np.asarray(scoring.stage_onsets_s, float)
    require(len(onsets_s) < LONGEST_NIGHT_EPOCHS, f"{len(onsets_s)} stage rows")
    require(np.isfinite(onsets_s).all(), "a stage row at no finite time")
    require((np.diff(onsets_s) >= EPOCH_S - 1e-3).all(), "stage rows overlap")
    require(np.isin(scoring.stages, range(-1, 5)).all(), "a stage out of range")
    for event in scoring.events:
        finite = np.isfinite([event.onset_s, event.duration_s]).all() and event.duration_s >= 0
        require(finite, f"an event at {event.onset_s} s lasts {event.duration_s} s")
        require(event.kind in EVENT_KINDS, f"an event of kind {event.kind}")
    for remark in scoring.remarks:
        require_printable(remark, "a remark")
    labels = label_epochs(scoring, 3600.0)
    check_labels({"sleep": labels.sleep, **labels.events})
    require((np.diff(labels.onsets_s) >= EPOCH_S - 1e-3).all(), "epochs overlap")


def check_labels(labels: dict[str, np.ndarray]) -> None:
    lengths = {len(values) for values in labels.values()}
    require(len(lengths) == 1, f"labels of {lengths} epochs")
    for name, largest in LARGEST_CODE.items():
        lowest = -1 if name == "sleep" else 0
        inside = (labels[name] >= lowest) & (labels[name] <= largest)
        require(bool(inside.all()), f"{name} labels out of range")


def check_examples(examples: store.Examples) -> None:
    n = len(examples.signals)
    require(examples.signals.shape == (n, N_CHANNELS, EPOCH_SAMPLES), "signals of another shape")
    require(examples.present.shape == (n, N_CHANNELS), "channels_present of another shape")
    require(bool(np.isfinite(examples.onsets_s).all()), "an epoch at no finite time")
    require(bool((examples.scale > 0).all()), "a scale that is not above 0")
    require(bool(np.isfinite(examples.center).all()), "a centre that is not finite")
    check_labels(examples.labels)
    check_signals(examples.signals)


def check_signals(signals_NCT: np.ndarray) -> None:
    largest = np.abs(signals_NCT[:, :7].astype(np.float32)).max(initial=0)
    require(not largest > LARGEST_EEG, f"EEG of {largest:.3g} standard deviations")


# ------------------------------------------------------------------ recordings
def build_recording(folder: Path) -> None:
    """Two epochs of 16 channels at 64 Hz."""
    file = edf_files.nch_file(seconds=80, rate_hz=64)
    file.header["patient"] = f"X {SECRET} 01-JAN-2001".encode()
    for signal in file.signals[13:15]:
        signal.per_record, signal.digital = 128, signal.digital[::2]
    file.write(folder / "1_2.edf")
    rows = [*edf_files.stage_rows(10.25, "2R"), (15.0, 12.5, "Obstructive Apnea")]
    edf_files.write_tsv(folder / "1_2.tsv", rows)


def read_recording(folder: Path, _rng: np.random.Generator) -> None:
    """As a worker of script 1 prepares it, and what it left on disk."""
    study = Study(folder / "1_2.edf", folder / "1_2.tsv", 1, 2)
    examples_dir = folder / "examples"
    outcome = prepare.prepare_study(study, ExampleSettings(min_channels=1), examples_dir)
    for trace in examples_dir.glob(".prepared/*.traceback.txt"):
        raise Unforeseen(outcome.reason, trace.read_text(encoding="utf-8"))
    told = [outcome.reason, *outcome.remarks, *outcome.channels.values(), *outcome.absent.values()]
    require_printable(" ".join(told), "what is told of the recording")
    require(np.isfinite(outcome.duration_s), f"it lasts {outcome.duration_s} s")
    if not outcome.usable:
        raise Refused(outcome.reason)
    require((np.diff(outcome.onsets_s) >= EPOCH_S - 1e-3).all(), "epochs overlap")
    made = store.example_folder(examples_dir, 1, 2)
    paths = [made / store.example_name("1_2", k) for k in range(outcome.n_examples)]
    check_examples(store.read_examples(paths))
    _write_studies([outcome], folder)


def _write_studies(outcomes: list[Outcome], folder: Path) -> None:
    grouping.write_tables(outcomes, {1: "train"}, "patient", None, folder / "batches")
    nights.read_studies(folder / "batches")


def inspect(folder: Path, _rng: np.random.Generator) -> None:
    require_printable(inspect_recording(folder / "1_2.edf", {}), "the table of --inspect")


def build_hypnogram(folder: Path) -> None:
    rows = [(0.0, 300.0, "Sleep stage W"), (300.0, 60.0, "Sleep stage 1")]
    rows += [(360.0, 900.0, "Sleep stage 2"), (1260.0, 30.0, "Movement time")]
    rows += [(1290.0, 600.0, "Sleep stage R"), (1890.0, 30.0, "Sleep stage ?")]
    annotations = [edfio.EdfAnnotation(*row) for row in rows]
    edfio.Edf([], annotations=annotations).write(folder / "SC4001EC-Hypnogram.edf")


def build_tsv(folder: Path) -> None:
    rows = edf_files.stage_rows(10.25, "WW1223?RRW" * 8)
    rows += [(100.0 + 70 * i, 12.5, "Obstructive Apnea") for i in range(10)]
    rows += [(112.0, 20, "Oxygen Desaturation"), (120.5, 0, "EEG Arousal"), (5, 1, 'note "x", y')]
    edf_files.write_tsv(folder / "1_2.tsv", rows)


def build_xml(folder: Path) -> None:
    events = [("Stages|Stages", "Wake|0", 0, 300), ("Stages|Stages", "Stage 2 sleep|2", 300, 900)]
    events += [("Stages|Stages", "REM sleep|5", 1200, 600)]
    events += [("Respiratory|Respiratory", "Obstructive apnea|Obstructive Apnea", 400.5, 14)]
    events += [("Arousals|Arousals", "Arousal|Arousal ()", 410.5, 3.5)]
    lines = "".join(
        f"<ScoredEvent>\n<EventType>{kind}</EventType>\n<EventConcept>{concept}</EventConcept>\n"
        f"<Start>{start}</Start>\n<Duration>{duration}</Duration>\n</ScoredEvent>\n"
        for kind, concept, start, duration in events
    )
    text = '<?xml version="1.0" encoding="UTF-8"?>\n<PSGAnnotation><ScoredEvents>\n'
    (folder / "chat-baseline-1-nsrr.xml").write_text(
        f"{text}{lines}</ScoredEvents></PSGAnnotation>\n", encoding="utf-8"
    )


def read_annotations(folder: Path, _rng: np.random.Generator) -> None:
    (path,) = folder.iterdir()
    check_scoring(layouts.read_annotations(path))


# ------------------------------------------------------------------ tables
def build_health(folder: Path) -> None:
    (folder / "SLEEP_STUDY.csv").write_text(
        "STUDY_PAT_ID,SLEEP_STUDY_ID,SLEEP_STUDY_START_DATETIME,AGE_AT_SLEEP_STUDY_DAYS\n"
        "1,2,2020-01-01,1200\n1,3,2021-01-01,1600\n2,4,2019-01-01,4000\n"
    )
    (folder / "DEMOGRAPHIC.csv").write_text(
        "STUDY_PAT_ID,BIRTH_DATE,PCORI_GENDER_CD\n1,2016-01-01,F\n2,2008-01-01,M\n"
    )


def read_health(folder: Path, _rng: np.random.Generator) -> None:
    try:
        health = layouts.read_health(folder)
    except (ValueError, OSError) as error:  # as script 1 does, which tells it or goes on without
        raise Refused(str(error)) from error
    split = SplitSettings()
    assigned = grouping.assign_patients({1, 2, 3}, folder / "none", split, 0, health)
    outcomes = [Outcome(1, 2, "1_2.edf"), Outcome(2, 4, "2_4.edf")]
    grouping.write_tables(outcomes, assigned, "patient", health, folder / "batches")
    studies = nights.read_studies(folder / "batches")
    ages = np.asarray(studies["age_days"], float)
    require(not (np.abs(ages) > 1e6).any(), f"an age of {np.nanmax(np.abs(ages)):g} days")


def build_diagnoses(folder: Path) -> None:
    (folder / "DIAGNOSIS.csv").write_text(
        "STUDY_PAT_ID,DX_SOURCE_TYPE,DX_CODE,DX_NAME,DX_ALT_CODE\n"
        '1,Final Dx,Q87.1,"Prader-Willi syndrome","Q87.11,Q87.1"\n'
        '2,Problem List,G47.33,"Apnea, obstructive",327.23\n'
    )
    (folder / "patients.csv").write_text("patient_id,note\n1,x\n2,y\n")


def read_diagnoses(folder: Path, rng: np.random.Generator) -> None:
    if rng.random() < 0.5:
        found = diagnoses.read_diagnosed(folder, ["Q87.1", "G47.33"], "", ["Final Dx"]).patients
    else:
        found = diagnoses.read_patient_list(folder / "patients.csv")
    require(all(isinstance(patient, int) for patient in found), "a patient is no number")


def build_splits(folder: Path) -> None:
    (folder / "splits.csv").write_text("patient_id,split\n1,train\n2,val\n3,test\n4,train\n")


def read_splits(folder: Path, _rng: np.random.Generator) -> None:
    split = SplitSettings()
    assigned = grouping.assign_patients({1, 2, 3, 4, 9}, folder, split, 0, None)
    require(set(assigned.values()) <= {"train", "val", "test"}, "an unknown split")
    grouping.write_tables([Outcome(1, 2, "x.edf")], assigned, "patient", None, folder / "new")


def build_studies(folder: Path) -> None:
    counts = dict.fromkeys(EVENT_KINDS, 3)
    outcomes = [
        Outcome(p, p + 10, f"{p}.edf", onsets_s=[0.0, 30.0], event_counts=counts) for p in (1, 2, 3)
    ]
    outcomes.append(Outcome(4, 5, "4.edf", reason="µ is no channel"))
    assigned = {1: "train", 2: "val", 3: "test"}
    grouping.write_tables(outcomes, assigned, "patient", None, folder)
    (folder / "splits.csv").unlink()


def read_studies(folder: Path, _rng: np.random.Generator) -> None:
    studies = nights.read_studies(folder)
    if studies is not None:
        np.asarray(studies.drop(columns="sex"), float)  # what all users of the table do with it
        require(studies.index.is_unique, "a night twice")


# ------------------------------------------------------------------ examples and batches
def build_examples(folder: Path) -> None:
    examples = small_batches.make_examples(2, (1,), 0)
    store.write_examples([folder / f"1_2_sample_{k}.hdf5" for k in range(2)], examples)


def read_examples(folder: Path, _rng: np.random.Generator) -> None:
    check_examples(store.read_examples(sorted(folder.glob("1_2_*.hdf5"))))


def build_batches(folder: Path) -> None:
    small_batches.write_folder(folder, train=[2, 1], val=[1], test=[1])


def build_original(folder: Path) -> None:
    """Batch files as the original authors' script writes them."""
    examples = small_batches.make_examples(3, (1, 2, 3), 0)
    with h5py.File(folder / "combined_0.hdf5", "w") as file:
        file["signals"] = examples.signals.astype(np.float64)
        for name, (_, dataset) in LABELS.items():
            file[dataset] = examples.labels[name]
        file["patient_ids"], file["study_ids"] = examples.patient_ids, examples.study_ids


def read_batches(folder: Path, _rng: np.random.Generator) -> None:
    """As scripts 2 and 3 read them: index, training batches, signals, fingerprints."""
    index = store.load_index(folder, val_fraction=0.2, test_fraction=0.2)
    check_labels(index.labels)
    n = len(index)
    shapes = [len(index.patient_ids), len(index.study_ids), len(index.onsets_s), len(index.present)]
    require(set(shapes) <= {n}, f"columns of {shapes} for {n} examples")
    require(index.present.shape == (n, N_CHANNELS), "channels_present of another shape")
    require(n < 100, f"{n} examples in a folder of 5")
    everything = np.arange(n)
    signals = store.read_signals(index, everything)
    require(signals.shape == (n, N_CHANNELS, EPOCH_SAMPLES), "signals of another shape")
    for x_BCT, _present in data.sample_batches(index, everything, 4):
        require(bool(torch.isfinite(x_BCT).all()), "a training batch that is not finite")
    for path in index.files:
        embeddings.fingerprint(path)


def build_features(folder: Path) -> None:
    build_batches(folder / "batches")
    index = store.load_index(folder / "batches")
    embeddings.compute_handmade(index, folder / "features", 1)


def read_features(folder: Path, _rng: np.random.Generator) -> None:
    """As script 3 finds, mends and reads them."""
    index = store.load_index(folder / "batches")
    embeddings.compute_handmade(index, folder / "features", 1)
    table = embeddings.open_tables(index, folder / "features", ["handmade"])["handmade"]
    features = table.read(np.arange(len(index)))
    require(features.shape == (len(index), table.n_features), "features of another shape")


# ------------------------------------------------------------------ states
def build_states(folder: Path) -> None:
    build_recording(folder)
    study, examples_dir = _study(folder)
    prepare.prepare_study(study, ExampleSettings(), examples_dir)
    prepare.measure_study(study, ExampleSettings(), examples_dir)
    (folder / "batches").mkdir()
    (folder / "batches" / ".grouping.json").write_text('{"fingerprint": "abc", "complete": true}')


def _study(folder: Path) -> tuple[Study, Path]:
    return Study(folder / "1_2.edf", folder / "1_2.tsv", 1, 2), folder / "examples"


def read_states(folder: Path, _rng: np.random.Generator) -> None:
    """As script 1 asks what an earlier run has finished, and goes on from it."""
    study, examples_dir = _study(folder)
    settings = ExampleSettings()
    outcome = prepare.finished_outcome(study, settings, examples_dir)
    if outcome is None:
        outcome = prepare.prepare_study(study, settings, examples_dir)
    prepare.has_examples(outcome, examples_dir)
    moments = prepare.measure_study(study, settings, examples_dir)
    prepare.fit_standard([moments])
    plan = grouping.Grouping([outcome], {1: "train"}, SplitSettings(), 0)
    grouping.is_grouped(plan, folder / "batches")
    _write_studies([outcome], folder)


# ------------------------------------------------------------------ checkpoints and probes
def build_checkpoint(folder: Path) -> None:
    small_probes.save_model(folder / "checkpoint.pt", [1, 2])


def build_sums(folder: Path) -> None:
    build_checkpoint(folder)
    checkpoints.list_sums(folder / "checkpoint.pt")
    with open(folder / "SHA256SUMS", "a") as file:
        file.write(f"{'0' * 64}  other.npz\n{'1' * 64} *binary.pt\n")


def build_original_checkpoint(folder: Path) -> None:
    build_checkpoint(folder)
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    weights = content["state_dict"]
    original = {"epoch": 3, "state_dict": weights, "optimizer": {"state": {}}, "loss": 0.5}
    torch.save(original, folder / "checkpoint.pt")


def edit_content(path: Path, rng: np.random.Generator) -> None:
    """A value in a checkpoint, or one of its tensors."""
    try:
        content = torch.load(path, weights_only=True)
        here = content if rng.random() < 0.4 else content[str(_pick(rng, ["model", "state_dict"]))]
        key = _pick(rng, list(here))
    except Exception:  # whatever an edit before has made of it
        return
    values = [None, 0, -1, 7, 2.5, 10**6, 10**9, 2**62, "x", "", [], {}, float("nan"), True]
    values += ["../../x.pt", torch.zeros(3), torch.full((2, 2), torch.nan), ["a"], {"a": 1}]
    kind = rng.random()
    if isinstance(here[key], torch.Tensor) and kind < 0.7:
        tensor = here[key].clone()
        if kind < 0.2:
            tensor.flatten()[0] = float("nan")
        here[key] = _pick(
            rng, [tensor, tensor[None], tensor.half(), tensor[..., :1], tensor.long(), None]
        )
    elif kind < 0.2:
        del here[key]
    else:
        key = _pick(rng, [key, key, "decoder", "format", "version", "extra"])
        here[key] = _pick(rng, values)
    torch.save(content, path)


def pickle_code(path: Path, rng: np.random.Generator) -> None:
    """A pickle that would run code, in a checkpoint's own archive and without one."""
    code = b"cos\nsystem\n(S'touch ran_code'\ntR."
    if rng.random() < 0.5:
        path.write_bytes(code)
        return
    members = mutate._members(path)
    for name in members:
        if name.endswith("data.pkl"):
            members[name] = code
    mutate._write_members(path, members)


def read_checkpoint(folder: Path, _rng: np.random.Generator) -> None:
    model = checkpoints.load_model(folder / "checkpoint.pt")
    ran = Path("ran_code").exists()
    require(not ran, "code in the file was run")
    with torch.no_grad():
        features = model.embed(torch.zeros(1, N_CHANNELS, EPOCH_SAMPLES), pooling="mean")
    require(bool(torch.isfinite(features).all()), "weights that are not finite")


def edit_sums(path: Path, rng: np.random.Generator) -> str | None:
    """A wrong sum of the checkpoint, as sha256sum may write it; or a line that is odd."""
    name, wrong = "checkpoint.pt", hashlib.sha256(rng.bytes(4)).hexdigest()
    odd = ["a b c d", f"{wrong}  name with blanks.pt", "  ", "#x", f"{wrong}", f"\\{wrong}  a\\nb"]
    odd += [f"SHA256 (x.pt) = {wrong}", f"{wrong}\t{name}x", f"{wrong.upper()}  other.pt", "²" * 64]
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    if rng.random() < 0.5:
        lines.insert(int(rng.integers(len(lines) + 1)), _pick(rng, odd))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return None
    form = _pick(rng, [f"{wrong}  {name}", f"{wrong} *{name}", f"{wrong.upper()}  {name}"])
    path.write_text("\n".join([line for line in lines if name not in line] + [form]) + "\n")
    return f"SHA256SUMS lists another sum: {form[60:]}"


def build_probes(folder: Path) -> None:
    """As save_probes writes them, on 8 features."""
    rng = np.random.default_rng(0)
    arrays = {"version": np.array(2), "pooling": np.array("mean"), "facts": np.array('{"a": 1}')}
    for task, n in (("sleep", 5), ("apnea", 2)):
        k = n if n > 2 else 1
        arrays |= {
            f"{task}/classes": np.arange(n),
            f"{task}/mean": rng.normal(size=8),
            f"{task}/scale": rng.uniform(0.5, 2, 8),
            f"{task}/weight": rng.normal(size=(8, k)).astype(np.float32),
            f"{task}/bias": rng.normal(size=k),
            f"{task}/slope": np.array(1.1),
            f"{task}/shift": rng.normal(size=n),
            f"{task}/threshold": np.array(0.3 if n == 2 else np.nan),
            f"{task}/strength": np.array(0.01),
        }
    density = {"mean_F": rng.normal(size=8), "scale_F": np.ones(8), "axes_KF": np.eye(8)[:3]}
    density |= {"variance_K": np.ones(3), "rest_variance": np.array(0.5)}
    density |= {"quantile_Q": np.linspace(0.5, 2, 11)}
    arrays |= {f"density/{name}": values for name, values in density.items()}
    np.savez(folder / "probes.npz", **arrays)


def read_probes(folder: Path, _rng: np.random.Generator) -> None:
    """Probes and what they rest on, and the probabilities that they give."""
    _pooling, chosen = load_probes(folder / "probes.npz")
    basis = load_basis(folder / "probes.npz")
    require(isinstance(basis.facts, dict), "facts that are none")
    if not chosen:
        return
    x_NF = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    for task, probe in chosen.items():
        numbers = [probe.slope, *np.ravel(probe.shift_K), *np.ravel(probe.probe.scale_F)]
        require(bool(np.isfinite(numbers).all()), f"{task}: slope, shift or scale not finite")
        require(bool((np.asarray(probe.probe.scale_F) > 0).all()), f"{task}: a scale of 0 or less")
        if len(probe.probe.weight_FK) != 8:
            return  # of another encoder, which load_scorer refuses
        prob_NK = probe.probabilities(probe.probe.logits(x_NF))
        probe.decide(prob_NK)
        require(bool(np.isfinite(prob_NK).all()), f"{task}: probabilities that are none")
    if np.shape(basis.density.mean_F) == (8,):
        basis.density.distance(x_NF)
        basis.density.threshold(0.01)


# ------------------------------------------------------------------ settings and command lines
SCRIPTS = {
    "prepare": "1_prepare_dataset.py",
    "pretrain": "2_pretrain_model.py",
    "probe": "3_train_classifier.py",
    "score": "4_score_recording.py",
    "explore": "5_explore_embeddings.py",
    "generate": "6_generate_signals.py",
}
KEYS = {
    "prepare": "paths.recordings_dir paths.examples_dir layout n_workers seed stand_ins clip "
    "split.val_fraction split.by min_channels wake_margin_min inspect scaling",
    "pretrain": "paths.batches_dir paths.run_dir model.patch_size model.emb_dim model.num_head "
    "model.mask_ratio optim.batch_size optim.lr max_steps stop_at_step resume seed device",
    "probe": "paths.batches_dir paths.checkpoint paths.output_dir tasks pooling seed context",
    "score": "recording paths.checkpoint use_annotations grid_offset_s min_channels clip",
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
    name = str(_pick(rng, edited))
    run_script(name, ["--config", str(folder / f"{name}.yaml")])


def read_command_line(folder: Path, rng: np.random.Generator) -> None:
    name = str(_pick(rng, list(SCRIPTS)))
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
    values = [text for text in mutate.NUMBERS + mutate.TEXTS if "\0" not in text]
    values += ["[1, 2", "{a: b}", "[]", "{}", "null", "true", ".", "/", "nowhere", "cpu", "sleep"]
    argv = []
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.25:
            argv.append(str(_pick(rng, odd)))
            continue
        key, value = f"--{_pick(rng, keys)}", str(_pick(rng, values))
        argv += _pick(rng, [[key, value], [f"{key}={value}"], [key], [key, value, value]])
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
        name = os.path.join(place, bytes(_pick(rng, stems)) + path.suffix.encode())
        os.rename(os.fsencode(path), name)
    elif kind == 1:
        path.unlink()
        os.mkfifo(path)
    elif kind == 2:
        path.unlink()
        path.mkdir()
    elif kind == 3:
        path.unlink()
        path.symlink_to(str(_pick(rng, [path.name, "nowhere", "/dev/zero", "/"])))
    else:
        path.chmod(0)


def read_script_1(folder: Path, _rng: np.random.Generator) -> None:
    """The second run over a folder in which something changed."""
    _run_script_1(folder)
    store.load_index(folder / "batches")


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


# ------------------------------------------------------------------ the list
TEXT_FILE = mutate.TEXT + mutate.BYTES
XML_FILE = (*TEXT_FILE, *[mutate.declare_xml] * 4)
TSV_FILE = (*TEXT_FILE, mutate.regrid, mutate.regrid, mutate.many_long_rows)
EDF_FILE = mutate.EDF * 2 + mutate.BYTES
HDF5_FILE = mutate.HDF5 * 2 + mutate.BYTES
HYPNOGRAM = (*EDF_FILE, *[mutate.edit_annotation_bytes] * 8)
SUMS_FILE = (*TEXT_FILE, *[edit_sums] * 8)
CHECKPOINT = (*mutate.BYTES, *mutate.ZIP, *[edit_content] * 8, pickle_code, mutate.add_bomb)
NPZ_FILE = (*mutate.BYTES, *mutate.NPZ * 3, mutate.add_bomb)
JSON_FILE = (*mutate.BYTES, mutate.of_other_encoding, *[mutate.edit_json] * 8)
YAML_FILE = TEXT_FILE + (mutate.edit_yaml,) * 12
ANY_FILE = (*mutate.EDF, *mutate.TEXT, *mutate.BYTES, rename, rename, rename)
STATES = ("examples/.prepared/*.json", "batches/.grouping.json", "examples/.lock")

NIGHT_FILES = ("Sleep_Data/*", "Health_Data/*")

READERS = (
    Reader("recording", build_recording, ("*.edf",), EDF_FILE, read_recording, 3.0),
    Reader("inspect", build_recording, ("*.edf",), EDF_FILE, inspect),
    Reader("hypnogram", build_hypnogram, ("*",), HYPNOGRAM, read_annotations, 2.0),
    Reader("tsv", build_tsv, ("*",), TSV_FILE, read_annotations, 2.0),
    Reader("xml", build_xml, ("*",), XML_FILE, read_annotations, 2.0),
    Reader("health", build_health, ("*.csv",), TEXT_FILE, read_health),
    Reader("diagnoses", build_diagnoses, ("*.csv",), TEXT_FILE, read_diagnoses),
    Reader("splits", build_splits, ("*.csv",), TEXT_FILE, read_splits),
    Reader("studies", build_studies, ("*.csv",), TEXT_FILE, read_studies),
    Reader("examples", build_examples, ("*.hdf5",), HDF5_FILE, read_examples, 2.0),
    Reader("batches", build_batches, ("*/*.hdf5",), HDF5_FILE, read_batches, 3.0),
    Reader("original batches", build_original, ("*.hdf5",), HDF5_FILE, read_batches),
    Reader(
        "features", build_features, ("features/*.hdf5",), HDF5_FILE, read_features, 2.0, mends=True
    ),
    Reader("states", build_states, STATES, JSON_FILE, read_states, 2.0),
    Reader("checkpoint", build_checkpoint, ("*.pt",), CHECKPOINT, read_checkpoint, 2.0),
    Reader(
        "original checkpoint", build_original_checkpoint, ("*.pt",), CHECKPOINT, read_checkpoint
    ),
    Reader("sums", build_sums, ("SHA256SUMS",), SUMS_FILE, read_checkpoint),
    Reader("probes", build_probes, ("*.npz",), NPZ_FILE, read_probes, 2.0),
    Reader("settings", build_settings, ("*.yaml",), YAML_FILE, read_settings, 1.5, 20.0),
    Reader("command line", build_splits, (), (mutate.flip_bit,), read_command_line, 1.5, 20.0),
    Reader("script 1", build_script_1, NIGHT_FILES, ANY_FILE, read_script_1, 0.5, 30.0),
)
