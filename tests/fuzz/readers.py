"""The list of everything that reads users' bytes, and which edits each file gets."""

from . import data_readers as data
from . import model_readers as models
from . import mutate, mutate_archives
from . import script_readers as scripts
from .pool import Reader

TEXT_FILE = mutate.TEXT + mutate.BYTES
XML_FILE = (*TEXT_FILE, *[mutate.declare_xml] * 4)
TSV_FILE = (*TEXT_FILE, mutate.regrid, mutate.regrid, mutate.many_long_rows)
EDF_FILE = mutate.EDF * 2 + mutate.BYTES
HDF5_FILE = mutate_archives.HDF5 * 2 + mutate.BYTES
HYPNOGRAM = (*EDF_FILE, *[mutate.edit_annotation_bytes] * 8)
SUMS_FILE = (*TEXT_FILE, *[models.edit_sums] * 8)
CHECKPOINT = (
    *mutate.BYTES,
    *mutate_archives.ZIP,
    *[models.edit_content] * 8,
    models.pickle_code,
    mutate_archives.add_bomb,
)
NPZ_FILE = (*mutate.BYTES, *mutate_archives.NPZ * 3, mutate_archives.add_bomb)
JSON_FILE = (*mutate.BYTES, mutate.of_other_encoding, *[mutate.edit_json] * 8)
YAML_FILE = TEXT_FILE + (mutate.edit_yaml,) * 12
ANY_FILE = (
    *mutate.EDF,
    *mutate.TEXT,
    *mutate.BYTES,
    scripts.rename,
    scripts.rename,
    scripts.rename,
)
STATES = ("examples/.prepared/*.json", "batches/.grouping.json", "examples/.lock")

NIGHT_FILES = ("Sleep_Data/*", "Health_Data/*")

READERS = (
    Reader("recording", data.build_recording, ("*.edf",), EDF_FILE, data.read_recording, 3.0),
    Reader("inspect", data.build_laboratory, ("*.edf",), EDF_FILE, data.inspect),
    Reader("hypnogram", data.build_hypnogram, ("*",), HYPNOGRAM, data.read_annotations, 2.0),
    Reader("tsv", data.build_tsv, ("*",), TSV_FILE, data.read_annotations, 2.0),
    Reader("xml", data.build_xml, ("*",), XML_FILE, data.read_annotations, 2.0),
    Reader("text", data.build_text, ("*.csv",), TEXT_FILE, data.read_text),
    Reader("recordings", data.build_recordings, ("*.csv",), TEXT_FILE, data.read_recordings),
    Reader("health", data.build_health, ("*.csv",), TEXT_FILE, data.read_health),
    Reader("diagnoses", data.build_diagnoses, ("*.csv",), TEXT_FILE, data.read_diagnoses),
    Reader("splits", data.build_splits, ("*.csv",), TEXT_FILE, data.read_splits),
    Reader("studies", data.build_studies, ("*.csv",), TEXT_FILE, data.read_studies),
    Reader("events", data.build_events, ("*.csv",), TEXT_FILE, data.read_events),
    Reader("examples", data.build_examples, ("*.hdf5",), HDF5_FILE, data.read_examples, 2.0),
    Reader("batches", data.build_batches, ("*/*.hdf5",), HDF5_FILE, data.read_batches, 3.0),
    Reader("original batches", data.build_original, ("*.hdf5",), HDF5_FILE, data.read_batches),
    Reader(
        "features",
        data.build_features,
        ("features/*.hdf5",),
        HDF5_FILE,
        data.read_features,
        2.0,
        mends=True,
    ),
    Reader("states", data.build_states, STATES, JSON_FILE, data.read_states, 2.0),
    Reader(
        "checkpoint", models.build_checkpoint, ("*.pt",), CHECKPOINT, models.read_checkpoint, 2.0
    ),
    Reader(
        "original checkpoint",
        models.build_original_checkpoint,
        ("*.pt",),
        CHECKPOINT,
        models.read_checkpoint,
    ),
    Reader("adapter", models.build_adapter, ("adapter.pt",), CHECKPOINT, models.read_adapter),
    Reader("sums", models.build_sums, ("SHA256SUMS",), SUMS_FILE, models.read_checkpoint),
    Reader("probes", models.build_probes, ("*.npz",), NPZ_FILE, models.read_probes, 2.0),
    Reader(
        "settings", scripts.build_settings, ("*.yaml",), YAML_FILE, scripts.read_settings, 1.5, 20.0
    ),
    Reader(
        "command line",
        data.build_splits,
        (),
        (mutate.flip_bit,),
        scripts.read_command_line,
        1.5,
        20.0,
    ),
    Reader(
        "script 1", scripts.build_script_1, NIGHT_FILES, ANY_FILE, scripts.read_script_1, 0.5, 30.0
    ),
)
