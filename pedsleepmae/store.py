"""The HDF5 files of the project: written whole or not at all, read by column.

Example file: one 30-s epoch, `signal` (16, 3840). Batch file: `combined_<i>.hdf5`, up to 128
examples of many studies, `signals` (n, 16, 3840) contiguous and uncompressed so that a training
process can map it. A folder of batch files has train/, val/ and test/, splits.csv and studies.csv;
the original authors' folders (float64, no split folders) are read as well.
"""

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pedsleepmae import hdf5
from pedsleepmae.channels import EPOCH_SAMPLES, N_CHANNELS
from pedsleepmae.disk import read_state, write_state, write_whole
from pedsleepmae.errors import UserError
from pedsleepmae.splits import SPLITS, count_patients_in_two_splits, split_hash, split_patients
from pedsleepmae.tasks import LABELS, LARGEST_CODE, UNSCORED

FORMAT_VERSION = 1
BATCH_EXAMPLES = 128
GROUPING_STATE = ".grouping.json"  # in a folder of batch files

# Every dataset of an example file, and (marked @) every attribute: shape and type.
EXAMPLE_FIELDS = {
    "signal": ((N_CHANNELS, EPOCH_SAMPLES), np.float16),
    **{dataset: ((), np.int64) for dataset, _ in LABELS.values()},
    "patID": ((), np.int64),
    "studID": ((), np.int64),
    "@onset_s": ((), np.float64),
    "@channels_present": ((N_CHANNELS,), bool),
    "@center": ((N_CHANNELS,), np.float64),
    "@scale": ((N_CHANNELS,), np.float64),
}


class StoreError(UserError):
    """A file of ours cannot be used."""


class DamagedExampleError(StoreError):
    """An example file is not whole; its recording can be prepared anew."""

    def __init__(self, path: Path, problem: str):
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; delete its folder and run script 1 again"


@dataclass(frozen=True)
class Examples:
    """Examples in memory, first axis N.

    ``signals`` (N, 16, 3840) standardised; ``labels`` by the keys of LABELS, each (N,);
    ``present`` (N, 16), True where the channel was recorded; ``center`` and ``scale`` (N, 16):
    value in the channel's physical unit = signal x scale + center.
    """

    signals: np.ndarray
    labels: dict[str, np.ndarray]
    patient_ids: np.ndarray
    study_ids: np.ndarray
    onsets_s: np.ndarray
    present: np.ndarray
    center: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.signals)


@dataclass(frozen=True)
class ExampleIndex:
    """All examples of a folder of batch files, without their signals; first axis N.

    ``file_of`` (N,) indexes ``files``, ``row_of`` (N,) the row in that file; ``split`` (N,) holds
    0, 1, 2 for SPLITS = train, val, test. ``split_hash`` identifies who is in which split;
    ``scaling`` is the setting by which script 1 standardised, "" where that is not known.
    ``content_hash`` tells these examples from others of the same patients: another label, channel
    or scaling changes it.
    """

    files: list[Path]
    file_of: np.ndarray
    row_of: np.ndarray
    split: np.ndarray
    labels: dict[str, np.ndarray]
    patient_ids: np.ndarray
    study_ids: np.ndarray
    onsets_s: np.ndarray
    present: np.ndarray
    split_hash: str
    patient_disjoint: bool
    simulated: bool
    scaling: str = ""
    content_hash: str = ""

    def __len__(self) -> int:
        return len(self.file_of)

    def nights(self) -> np.ndarray:
        """A number for each example's night, (N,): one for each pair of patient and study.

        NCH's study ids are unique by themselves; CHAT's and Sleep-EDF's are visits of a patient.
        """
        pairs = np.stack([self.patient_ids, self.study_ids])
        return np.unique(pairs, axis=1, return_inverse=True)[1].ravel()

    def rows(self, split: str) -> np.ndarray:
        """Positions (sorted) of the examples in split "train", "val" or "test"."""
        return np.flatnonzero(self.split == SPLITS.index(split))


# ------------------------------------------------------------------ example files
def example_folder(examples_dir: Path, patient_id: int, study_id: int) -> Path:
    """Folder of one study's example files."""
    return Path(examples_dir) / f"{patient_id}_{study_id}"


def example_name(study_key: str, k: int) -> str:
    """File name of the k-th example (time order of the kept epochs) of a study."""
    return f"{study_key}_sample_{k}.hdf5"


@functools.cache
def _example_template() -> tuple[bytes, dict[str, int]]:
    """Bytes of an example file, and where in them the raw values of each field stand."""
    rng = np.random.default_rng(0)
    marks = {
        name: np.frombuffer(
            rng.bytes(np.dtype(dtype).itemsize * int(np.prod(shape))), dtype
        ).reshape(shape)
        for name, (shape, dtype) in EXAMPLE_FIELDS.items()
    }
    present = np.arange(N_CHANNELS) % 3 == 1  # any bytes but 0 and 1 are no booleans
    marks["@channels_present"] = present
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v108")) as file:
        for name, mark in marks.items():
            if name.startswith("@"):
                file.attrs[name[1:]] = mark
            else:
                file.create_dataset(name, data=mark)
        file.attrs["format_version"] = FORMAT_VERSION
    image = buffer.getvalue()
    places = {}
    for name, mark in marks.items():
        places[name] = image.find(mark.tobytes())
        assert places[name] >= 0, f"{name} not found in the template"
        assert image.find(mark.tobytes(), places[name] + 1) < 0, f"{name} found twice"
    return image, places


def write_examples(paths: Sequence[Path], examples: Examples) -> None:
    """Write example i to ``paths[i]``; the caller renames their folder when all are there.

    Creating a small file through the HDF5 library costs milliseconds, nearly all of it for
    structure that never changes; here the library writes one template, and each example puts its
    numbers into a copy of those bytes (file format 1.8, whose objects carry no checksums).
    """
    template, places = _example_template()
    image = np.frombuffer(bytearray(template), np.uint8)
    values = {
        "signal": examples.signals,
        **{dataset: examples.labels[name] for name, (dataset, _) in LABELS.items()},
        "patID": examples.patient_ids,
        "studID": examples.study_ids,
        "@onset_s": examples.onsets_s,
        "@channels_present": examples.present,
        "@center": examples.center,
        "@scale": examples.scale,
    }
    patches = []  # (where in the image, the bytes of every example)
    for name, (shape, dtype) in EXAMPLE_FIELDS.items():
        column = np.ascontiguousarray(values[name], dtype).reshape(len(examples), *shape)
        raw = column.reshape(len(examples), -1).view(np.uint8)
        patches.append((image[places[name] : places[name] + raw.shape[1]], raw))
    for i, path in enumerate(paths):
        for place, raw in patches:
            place[:] = raw[i]
        with open(path, "wb") as file:
            file.write(image)


def example_bytes() -> int:
    """Size of every example file."""
    return len(_example_template()[0])


def read_examples(paths: Sequence[Path]) -> Examples:
    """Examples of these example files, in this order; DamagedExampleError names one that is not."""
    parts = {name: [] for name in EXAMPLE_FIELDS}
    for path in paths:
        try:
            with hdf5.open_file(path) as file:
                for name, (shape, dtype) in EXAMPLE_FIELDS.items():
                    parts[name].append(_example_field(file, name, shape, dtype))
                for name, (dataset, _) in LABELS.items():
                    _check_codes(name, dataset, parts[dataset][-1])
        except hdf5.Hdf5Error as error:
            raise DamagedExampleError(path, str(error)) from error
    stacked = {name: np.stack(values) for name, values in parts.items()}
    return Examples(
        signals=stacked["signal"],
        labels={name: stacked[dataset] for name, (dataset, _) in LABELS.items()},
        patient_ids=stacked["patID"],
        study_ids=stacked["studID"],
        onsets_s=stacked["@onset_s"],
        present=stacked["@channels_present"],
        center=stacked["@center"],
        scale=stacked["@scale"],
    )


def _example_field(file: h5py.File, name: str, shape: tuple, dtype: type) -> np.ndarray:
    if not name.startswith("@"):
        return hdf5.array(file, name, shape, dtype)
    value = np.asarray(hdf5.attribute(file, name[1:], None), dtype)
    if value.shape != shape or not np.isfinite(value).all():
        raise hdf5.Hdf5Error(f"its {name[1:]} should be finite and of the shape {shape}: {value}")
    return value


# ------------------------------------------------------------------ batch files
def batch_path(batches_dir: Path, split: str, i: int) -> Path:
    """Path of the i-th batch file of a split."""
    return Path(batches_dir) / split / f"combined_{i}.hdf5"


def write_batch(
    path: Path,
    examples: Examples,
    *,
    split_hash: str,
    patient_disjoint: bool,
    simulated: bool,
    scaling: str = "",
) -> None:
    """Write a batch file, whole or not at all."""
    with write_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file["signals"] = examples.signals
        for name, (_, dataset) in LABELS.items():
            file[dataset] = examples.labels[name].astype(np.int64)
        file["patient_ids"] = examples.patient_ids.astype(np.int64)
        file["study_ids"] = examples.study_ids.astype(np.int64)
        file["onsets_s"] = examples.onsets_s.astype(np.float64)
        file["channels_present"] = examples.present.astype(bool)
        file["center"] = examples.center.astype(np.float64)
        file["scale"] = examples.scale.astype(np.float64)
        file.attrs["format_version"] = FORMAT_VERSION
        # As bytes, that is of fixed length: HDF5 can hang over damaged texts of variable length.
        file.attrs["split_hash"] = np.bytes_(split_hash)
        file.attrs["patient_disjoint"] = patient_disjoint
        file.attrs["simulated"] = simulated
        file.attrs["scaling"] = np.bytes_(scaling)
        # Tells script 3 that what it computed from this file is out of date.
        file.attrs["signals_hash"] = np.bytes_(hash_signals(examples.signals))


def hash_signals(signals_NCT: np.ndarray) -> str:
    """32 hexadecimal digits that identify these signals."""
    return hashlib.blake2b(np.ascontiguousarray(signals_NCT), digest_size=16).hexdigest()


def write_grouping_state(batches_dir: Path, fingerprint: str, *, complete: bool) -> None:
    """Note which plan the batch files follow; until all are there, readers refuse the folder."""
    state = {"fingerprint": fingerprint, "complete": complete}
    if complete:
        state["n_files"] = {name: len(numbered_files(Path(batches_dir) / name)) for name in SPLITS}
    write_state(Path(batches_dir) / GROUPING_STATE, state)


def read_grouping_state(batches_dir: Path) -> dict:
    """ "fingerprint" of the plan, "complete", and then "n_files" by split (older ones lack it).

    {} for folders that script 1 did not make.
    """
    return read_state(Path(batches_dir) / GROUPING_STATE)


def map_signals(path: Path) -> np.ndarray:
    """Signals of a batch file, (n, 16, 3840), mapped from the disk and not read yet.

    Files whose signals are not one contiguous block (compressed, chunked) are read whole.
    """
    with open_batch(path) as file:
        signals = _signals(file)
        offset = signals.id.get_offset()
        if offset is None:
            return signals[()]
        return np.memmap(path, signals.dtype, "r", offset, signals.shape)


@contextlib.contextmanager
def open_batch(path: Path) -> Iterator[h5py.File]:
    """A batch file open for reading; StoreError for whatever is wrong with it."""
    try:
        with hdf5.open_file(path) as file:
            yield file
    except hdf5.Hdf5Error as error:
        raise StoreError(f"{path}: {error}; delete it and run script 1 again") from error


def _signals(file: h5py.File) -> h5py.Dataset:
    signals = hdf5.dataset(file, "signals")
    if signals.shape[1:] != (N_CHANNELS, EPOCH_SAMPLES) or signals.dtype.kind != "f":
        raise hdf5.Hdf5Error(
            f"its signals have the shape {signals.shape}, type {signals.dtype}; (n, {N_CHANNELS}, "
            f"{EPOCH_SAMPLES}) of floating point is needed"
        )
    return signals


def list_batch_files(batches_dir: Path) -> dict[str, list[Path]]:
    """Batch files by split, in numerical order; under "" those of a folder without splits."""
    batches_dir = Path(batches_dir)
    found = {name: [*numbered_files(batches_dir / name).values()] for name in SPLITS}
    if not any(found.values()):
        found = {"": [*numbered_files(batches_dir).values()]}
    if not any(found.values()):
        raise StoreError(
            f"{batches_dir}: no combined_<i>.hdf5 in it nor in its train/, val/ and test/; "
            "give the folder that script 1 wrote as paths.batches_dir"
        )
    return found


def load_index(
    batches_dir: Path, *, val_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> ExampleIndex:
    """Index of all examples of a folder of batch files.

    The fractions and the seed split the patients of a folder without split folders, row by row;
    folders with them keep their split. Raises StoreError when patients stand in two splits of a
    folder that claims otherwise, or when its files do not belong together.
    """
    by_split = list_batch_files(batches_dir)
    _check_complete(batches_dir, by_split)
    files, data, facts, content_hash = _read_all_columns(by_split)
    _read_variable_texts(files, facts)
    runs = {tuple(facts_of_file.values()) for facts_of_file in facts}
    if len(runs) > 1:
        raise StoreError(
            f"{batches_dir}: its batch files come from {len(runs)} different runs of script "
            "1; run script 1 again, or delete the folder's train/, val/ and test/ first"
        )
    ((stored_hash, disjoint, simulated, scaling),) = runs
    split = data["split"]
    if "" in by_split:
        assignment = split_patients(
            np.unique(data["patient"]),
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=seed,
        )
        split = np.array([SPLITS.index(assignment[p]) for p in data["patient"]], np.int8)
        stored_hash = split_hash(assignment)
    shared = count_patients_in_two_splits(data["patient"], split)
    if shared and disjoint:
        raise StoreError(
            f"{batches_dir}: {shared} patients stand in more than one of train, val and test, so "
            "scores would be flattered; delete these folders and run script 1 again"
        )
    return ExampleIndex(
        files=files,
        file_of=data["file"],
        row_of=data["row"],
        split=split,
        labels={name: data[name] for name in LABELS},
        patient_ids=data["patient"],
        study_ids=data["study"],
        onsets_s=data["onset"],
        present=data["present"],
        split_hash=stored_hash,
        patient_disjoint=not shared,
        simulated=simulated,
        scaling=scaling,
        content_hash=content_hash,
    )


def _check_complete(batches_dir: Path, by_split: dict[str, list[Path]]) -> None:
    """StoreError unless all files that script 1 wrote are there, and no other."""
    state = read_grouping_state(batches_dir)
    if not state.get("complete", True):
        raise StoreError(
            f"{batches_dir}: script 1 was stopped before all batch files were written; run it "
            "again with the same settings, it goes on where it stopped"
        )
    for split, n_files in state.get("n_files", {}).items():
        wanted = [batch_path(batches_dir, split, i) for i in range(n_files)]
        found = by_split.get(split, [])
        if odd := sorted(set(wanted) ^ set(found)):
            what = "is missing" if odd[0] in wanted else "was put there by somebody else"
            raise StoreError(
                f"{odd[0]}: {what} since script 1 wrote {n_files} files to {split}/; run it again "
                "with the same settings"
            )


def _read_all_columns(
    by_split: dict[str, list[Path]],
) -> tuple[list[Path], dict[str, np.ndarray], list[dict[str, Any]], str]:
    """Files in order; their columns one after the other, (N, …), with file, row and split; the
    facts of each file; 16 hexadecimal digits of what all of them hold.

    StoreError for two files with the same examples.
    """
    parts, files, facts, twins = [], [], [], {}
    for split, paths in by_split.items():
        for path in paths:
            columns, facts_of_file, mark = _read_columns(path)
            if (twin := twins.setdefault(mark, path)) != path:
                raise StoreError(f"{path}: holds the same examples as {twin}; delete one of them")
            n = len(columns["patient"])
            columns["file"] = np.full(n, len(files), np.int32)
            columns["row"] = np.arange(n, dtype=np.int32)
            columns["split"] = np.full(n, SPLITS.index(split) if split else -1, np.int8)
            parts.append(columns)
            files.append(path)
            facts.append(facts_of_file)
    data = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return files, data, facts, hashlib.sha256(b"".join(twins)).hexdigest()[:16]


def _read_columns(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], bytes]:
    """All but the signals of a batch file; what is the same in all files of one run; a mark that
    two files share when they hold the same examples.

    Texts of variable length, which older files have, are None.
    """
    with open_batch(path) as file:
        signals = _signals(file)
        n = len(signals)
        columns = {name: hdf5.array(file, data, (n,), int) for name, (_, data) in LABELS.items()}
        columns["patient"] = hdf5.array(file, "patient_ids", (n,), np.int64)
        columns["study"] = hdf5.array(file, "study_ids", (n,), np.int64)
        # The original authors' files have none of these, and their scaling is known.
        is_original = "format_version" not in file.attrs
        columns["onset"], columns["present"] = np.full(n, np.nan), np.ones((n, N_CHANNELS), bool)
        if "onsets_s" in file:
            columns["onset"] = hdf5.array(file, "onsets_s", (n,), np.float64)
        if "channels_present" in file:
            columns["present"] = hdf5.array(file, "channels_present", (n, N_CHANNELS), bool)
        for name, (_, dataset) in LABELS.items():
            _check_codes(name, dataset, columns[name])
        facts = {
            "split_hash": hdf5.attribute(file, "split_hash", ""),
            "patient_disjoint": bool(hdf5.attribute(file, "patient_disjoint", True)),
            "simulated": bool(hdf5.attribute(file, "simulated", False)),
            "scaling": hdf5.attribute(file, "scaling", "original" if is_original else ""),
        }
        ends = [signals[i, :, :16].tobytes() for i in (0, -1) if n]
    mark = hashlib.sha256(b"".join([*(column.tobytes() for column in columns.values()), *ends]))
    return columns, facts, mark.digest()


def _check_codes(name: str, dataset: str, codes: np.ndarray) -> None:
    """Hdf5Error when a label is none of those that its kind has."""
    wrong = (codes < (UNSCORED if name == "sleep" else 0)) | (codes > LARGEST_CODE[name])
    if wrong.any():
        raise hdf5.Hdf5Error(f"its {dataset} hold {codes[wrong][0]}, which is no code")


def _read_variable_texts(files: Sequence[Path], facts: Sequence[dict[str, Any]]) -> None:
    """Put into ``facts`` the texts that are None in it; StoreError names a file that has none."""
    lacking = [i for i, facts_of_file in enumerate(facts) if None in facts_of_file.values()]
    names = sorted({name for i in lacking for name, value in facts[i].items() if value is None})
    try:
        texts = hdf5.variable_texts([files[i] for i in lacking], names)
    except hdf5.Hdf5Error as error:
        raise StoreError(f"{error}; delete it and run script 1 again") from error
    for i, texts_of_file in zip(lacking, texts, strict=True):
        facts[i].update(texts_of_file)


def read_signals(index: ExampleIndex, positions: np.ndarray) -> np.ndarray:
    """Signals of these positions of the index, (n, 16, 3840) float32, in their order."""
    positions = np.asarray(positions)
    out = np.empty((len(positions), N_CHANNELS, EPOCH_SAMPLES), np.float32)
    for file_id in np.unique(index.file_of[positions]):
        here = np.flatnonzero(index.file_of[positions] == file_id)
        out[here] = map_signals(index.files[file_id])[index.row_of[positions[here]]]
    return out


def numbered_files(folder: Path) -> dict[int, Path]:
    """combined_<i>.hdf5 in a folder by i, in order; whose name holds no number is not ours."""
    named = [(path.stem.removeprefix("combined_"), path) for path in folder.glob("combined_*.hdf5")]
    return dict(sorted((int(number), path) for number, path in named if number.isdecimal()))
