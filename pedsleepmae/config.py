"""Every setting of every script: dataclasses with defaults, read from YAML and typed overrides.

A script calls :func:`load_settings`; what it does not know, or what has the wrong type, stops it
with exit code 2 and one sentence that names the file, the key, the value and the remedy.
"""

import argparse
import dataclasses
import difflib
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jsonargparse

from pedsleepmae.channels import CHANNEL_NAMES, canonical_label

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
EXIT_DONE, EXIT_FAILED, EXIT_BAD_SETTINGS, EXIT_SKIPPED = 0, 1, 2, 3

_TRUE_FALSE = ("true", "false", "yes", "no")  # what YAML reads as a switch

TASKS = ("sleep", "apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal")

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class SettingsError(ValueError):
    """A setting cannot be used; the message is one sentence for the person who wrote it."""


# ------------------------------------------------------------------ 0_simulate_cohort.py
@dataclass
class EventRates:
    """Events an hour of sleep, mean over the cohort; children differ (0.4 to 2.2 times).

    The defaults are enriched so that a dozen short nights hold enough of each for six tasks: 5 %
    of the epochs with apnea, 6 % hypopnea, 11 % desaturation, 9 % arousal (NCH: 0.83, 1.97, 8.78,
    4.71 %). NCH's prevalence comes of 0.85, 1.8, 6, 4.3 and min_events 0.
    """

    apneas_per_hour: float = 5.0
    """Obstructive, central and mixed apneas."""
    hypopneas_per_hour: float = 6.0
    """Hypopneas, obstructive or not."""
    spontaneous_desaturations_per_hour: float = 2.5
    """Desaturations besides those that apneas and hypopneas cause."""
    spontaneous_arousals_per_hour: float = 6.0
    """Arousals besides those that end apneas and hypopneas."""
    min_events: int = 4
    """Each recording has at least this many apneas, hypopneas, desaturations and arousals."""


@dataclass
class SimulateSettings:
    """Simulated cohort in the layout of the NCH Sleep DataBank."""

    output_dir: Path = Path("data/simulated")
    """Folder to create: Sleep_Data/ (EDF and .tsv) and Health_Data/ (CSV)."""
    batches_dir: Path | None = None
    """Write batch files for scripts 2 and 3 straight to this folder, and no EDF; none: EDF.
    Health_Data/ stands in output_dir all the same."""
    n_patients: int = 12
    """Number of children."""
    n_repeat_studies: int = 1
    """How many of them come a second time."""
    hours: float = 1.5
    """Length of a recording, hours (each is within a tenth of it); sleep cycles are compressed to
    fit short nights. With event_dir: the longest excerpt of a night."""
    events: EventRates = field(default_factory=EventRates)
    montage_b_fraction: float = 0.3
    """Share of recordings with NCH's montage B (OSAT, Resp Chest, 256 or 512 Hz); it shapes the EDF
    file, not the 16 channels, and so changes nothing with batches_dir."""
    absent_channel_fraction: float = 0.2
    """Share of recordings that lack one or more of the 16 channels."""
    absent_group_fraction: float = 0.0
    """Share of recordings that lack whole groups: no EEG, nothing on the head, no respiration."""
    rates_hz: list[int] = field(default_factory=lambda: [256, 256, 256, 400])
    """Sampling rates drawn for montage A, Hz, multiples of 4; repeat one to draw it more often.
    With batches_dir everything is simulated at 128 Hz."""
    prader_willi_fraction: float = 0.0
    """Share of the children with Prader-Willi syndrome (DIAGNOSIS.csv says who): more and longer
    apneas, rather central ones in the young, deeper desaturations, low muscle tone."""
    event_dir: Path | None = None
    """Folder with NCH .tsv files whose stages and events drive the nights; none: drawn by age."""
    first_id: int = 900_001
    """Number of the first patient and of the first study, above NCH's (patients to 20,830, studies
    to 26,278). Cohorts that meet in one evaluation need ranges of their own."""
    val_fraction: float = 0.15
    """With batches_dir: share of the patients in val."""
    test_fraction: float = 0.15
    """With batches_dir: share of the patients in test."""
    n_workers: int = 2
    """Processes; the files do not depend on it."""
    seed: int = 0
    """Everything is drawn from it."""

    def check(self) -> None:
        for key, least in (
            ("n_patients", 1),
            ("n_workers", 1),
            ("n_repeat_studies", 0),
            ("first_id", 1),
        ):
            if getattr(self, key) < least:
                raise SettingsError(f"{key} is {getattr(self, key)}; give {least} or more")
        if self.n_repeat_studies > self.n_patients:
            raise SettingsError(
                f"n_repeat_studies is {self.n_repeat_studies} with n_patients "
                f"{self.n_patients}; a second visit needs a first: give at most n_patients"
            )
        if not 0.25 <= self.hours <= 14:
            raise SettingsError(f"hours is {self.hours:g}; give 0.25 (15 minutes) to 14")
        shares = ("montage_b_fraction", "absent_channel_fraction", "absent_group_fraction")
        for key in (*shares, "prader_willi_fraction"):
            if not 0 <= getattr(self, key) <= 1:
                raise SettingsError(f"{key} is {getattr(self, key):g}; give a share from 0 to 1")
        if not self.rates_hz or any(rate % 4 or not 100 <= rate <= 2048 for rate in self.rates_hz):
            raise SettingsError(
                f"rates_hz is {self.rates_hz}; give multiples of 4 from 100 to 2048, such as 256"
            )
        if min(vars(self.events).values()) < 0:
            raise SettingsError("events: a rate below 0 has no meaning; give 0 or more")
        if not 0 <= self.val_fraction + self.test_fraction < 1:
            raise SettingsError(
                f"val_fraction + test_fraction is {self.val_fraction + self.test_fraction:g}; "
                "keep it below 1 so that patients remain for training"
            )


# ------------------------------------------------------------------ 1_prepare_dataset.py
@dataclass
class PreparePaths:
    """Folders."""

    recordings_dir: Path = Path("data/nch")
    """Folder with the recordings (searched with its sub-folders) and their annotation files."""
    examples_dir: Path = Path("data/examples")
    """Written: one HDF5 file for each 30-s example, in a folder for each study."""
    batches_dir: Path = Path("data/batches")
    """Written: train/, val/, test/ with files of 128 examples, splits.csv, studies.csv, report."""
    health_dir: Path | None = None
    """NCH's Health_Data folder (age, sex); none: found beside the recordings if it is there."""


@dataclass
class SplitSettings:
    """How examples are divided into train, val and test."""

    by: Literal["patient", "time"] = "patient"
    """patient: each patient in one split only. time: contiguous blocks of each night, for a cohort
    of one person; everything downstream then says patient_disjoint: false."""
    val_fraction: float = 0.1
    """Share of the patients (or blocks) for choices: epoch, threshold, regularisation."""
    test_fraction: float = 0.1
    """Share of the patients (or blocks) touched once, at the end."""
    block_minutes: float = 10.0
    """Length of a block when split.by is time, minutes."""


@dataclass
class ClusterSettings:
    """Dask cluster, for more than one machine."""

    address: str | None = None
    """Address of a running Dask scheduler, such as tcp://node1:8786; none: this machine alone."""


@dataclass
class PrepareSettings:
    """Recordings and annotations to examples and batch files."""

    paths: PreparePaths = field(default_factory=PreparePaths)
    split: SplitSettings = field(default_factory=SplitSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    layout: Literal["nch", "nsrr", "sleep_edf"] = "nch"
    """nch: <patient>_<study>.edf with .tsv; nsrr: EDF with -nsrr.xml (CHAT); sleep_edf: PSG and
    Hypnogram EDF+ pairs."""
    stand_ins: dict[str, list[str]] = field(default_factory=dict)
    """For each of the 16 channels, labels of other signals that may take its place when it is
    absent, first choice first, such as {"EEG C3-M2": ["EEG Fpz-Cz"]}; noted in studies.csv."""
    min_channels: int = 4
    """A recording with fewer of the 16 channels is left out and listed."""
    min_overlap_s: float = 0.0
    """An event marks an epoch when they share more than this, seconds."""
    keep_unscored: bool = False
    """Keep epochs staged `?`, with sleep_label -1."""
    wake_margin_min: float | None = None
    """Keep at most this much wake before the first and after the last sleep epoch, minutes;
    none: keep all that is scored."""
    scaling: Literal["policy", "original", "fitted"] = "policy"
    """policy: population statistics for channels with a physical scale, robust statistics of the
    recording for those of arbitrary gain. original: the authors' table for all (their checkpoints
    need it). fitted: mean and sd of the training patients."""
    clip: float = 20.0
    """Standardised values are clipped to +- this (0: never); arbitrary-gain channels only."""
    keep_examples: bool = True
    """Leave the per-example files in place after grouping."""
    n_workers: int = 2
    """Recordings prepared at the same time."""
    seed: int = 0
    """Draws the split and the order of the examples in the batch files."""
    strict: bool = False
    """Exit with 3 when any recording was left out."""
    inspect: Path | None = None
    """Only print which of the 16 channels this EDF file holds, from what, at which rate and
    scale."""

    def check(self) -> None:
        for key, value, low, high in (
            ("split.val_fraction", self.split.val_fraction, 0, 1),
            ("split.test_fraction", self.split.test_fraction, 0, 1),
            ("split.block_minutes", self.split.block_minutes, 0.5, 1440),
            ("min_channels", self.min_channels, 1, 16),
            ("wake_margin_min", self.wake_margin_min or 0, 0, 1440),
            ("clip", self.clip, 0, 60_000),
            ("seed", self.seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise SettingsError(f"{key} is {value:g}; give a number from {low:g} to {high:g}")
        _check_stand_ins(self.stand_ins)
        if not 0 <= self.split.val_fraction + self.split.test_fraction < 1:
            raise SettingsError(
                f"split.val_fraction + split.test_fraction is "
                f"{self.split.val_fraction + self.split.test_fraction:g}; keep it below 1 so that "
                "patients remain for training"
            )
        if not 0 <= self.min_overlap_s < 30:
            raise SettingsError(
                f"min_overlap_s is {self.min_overlap_s:g}; an epoch lasts 30 s, give 0 to 30"
            )
        if self.n_workers < 1:
            raise SettingsError(f"n_workers is {self.n_workers}; give 1 or more")


def _check_stand_ins(stand_ins: dict[str, list[str]]) -> None:
    """Raise SettingsError for a stand-in for what is none of the 16 channels."""
    for name in stand_ins:
        if canonical_label(name) not in map(canonical_label, CHANNEL_NAMES):
            raise SettingsError(
                f"stand_ins: {name!r} is none of the 16 channels; they are "
                f"{', '.join(CHANNEL_NAMES)}"
            )


# ------------------------------------------------------------------ 2_pretrain_model.py
@dataclass
class PretrainPaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    run_dir: Path = Path("runs/m15p8")
    """Written: checkpoints, metrics.jsonl, settings, pictures."""
    publish_to: Path | None = None
    """Written at the end of the schedule: the best checkpoint as it ships, weights in bfloat16,
    the decoder in a file beside it where one would be too large, and SHA256SUMS; none: nothing."""


@dataclass
class ModelSettings:
    """The masked autoencoder; the defaults are m15p8's, 76,547,272 parameters."""

    patch_size: int = 8
    """Samples in a patch; must divide 3,840."""
    emb_dim: int = 64
    """Width of one channel's patch embedding; a token is 16 times as wide."""
    num_layer: int = 3
    """Transformer blocks in the encoder."""
    num_head: int = 4
    """Attention heads; must divide 16 x emb_dim."""
    decoder_emb_dim: int | None = None
    """Width of the decoder's patch embedding; none: as the encoder."""
    decoder_num_layer: int | None = None
    """Transformer blocks in the decoder; none: as the encoder."""
    mask_ratio: float = 0.5
    """Share of each channel's patches hidden from the encoder, 0 to 1."""
    mask_span: int = 1
    """Patches hidden together, in runs of this length (16 patches of 8 samples are a second)."""
    mask_channels: float = 0.0
    """Share of training examples, 0 to 1, in which a random group of channels, or one channel of
    it, is hidden whole as if absent, and asked for in the loss; script 6 imputes only what a model
    has been asked for so. Validation hides no whole channels."""
    token_layout: Literal["reference", "moment", "channel"] = "channel"
    """What a token is made of. reference: the original's view of memory; moment: the k-th kept
    patch of all 16 channels; channel: 16 kept patches of one channel."""
    loss_on: Literal["masked", "all"] = "masked"
    """Patches that count in the loss, of present channels: the masked ones, or all."""


@dataclass
class OptimSettings:
    """Optimiser and schedule."""

    batch_size: int = 32
    """Examples in one optimiser step, over all processes and accumulation steps."""
    accumulate: int = 1
    """Gradient accumulation: the batch is computed in this many pieces."""
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 5e-4
    """AdamW weight decay; not on biases, norms, positions and learned tokens."""
    beta2: float = 0.95
    """AdamW's memory of squared gradients, 0 to 1; 0.95 as MAE, 0.999 as the original."""
    warmup_steps: int = 200
    """Steps of linear warm-up, then a cosine down to lr x final_lr_ratio."""
    final_lr_ratio: float = 0.05
    """Learning rate at the end over the peak; 1 without warm-up: constant, as the original."""
    balance_channels: bool = True
    """true: divide each channel's error by its variance in the training data, so that all channels
    count alike (a loss of 1: no better than the mean); false: plain squared error."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are validated and saved as state_dict; 0: none."""


@dataclass
class PretrainSettings:
    """Masked pretraining."""

    paths: PretrainPaths = field(default_factory=PretrainPaths)
    model: ModelSettings = field(default_factory=ModelSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    init_from: Path | None = None
    """Checkpoint whose weights to start from, such as checkpoint/m15p8_checkpoint.pt. The shape of
    the model (patch_size to decoder_num_layer, token_layout) is the checkpoint's; masks, loss and
    optimiser are those of these settings, and the optimiser starts anew."""
    max_steps: int = 100_000
    """Length of the schedule, optimiser steps."""
    stop_at_step: int | None = None
    """End at this step with a checkpoint, as when time is up; none: at max_steps."""
    resume: bool = True
    """Go on from checkpoint_last.pt in run_dir when it is there."""
    seed: int = 0
    """Draws weights, masks and the order of the examples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast where the machine computes it in hardware, else float32."""
    compile: bool = False
    """torch.compile the model: minutes at the start, faster steps on a GPU."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    val_every: int = 1000
    """Steps between validations, each with a picture of reconstructions."""
    val_examples: int = 2048
    """Validation examples used each time, the same ones with the same masks."""
    save_every: int = 500
    """Steps between checkpoints."""
    probe_every: int = 0
    """Steps between quick linear probes on the validation sample; 0: never."""

    def check(self) -> None:
        model, optim = self.model, self.optim
        _check_model(model)
        at_least = {
            "max_steps": (self.max_steps, 1),
            "log_every": (self.log_every, 1),
            "val_every": (self.val_every, 1),
            "save_every": (self.save_every, 1),
            "val_examples": (self.val_examples, 1),
            "probe_every": (self.probe_every, 0),
            "seed": (self.seed, 0),
            "optim.batch_size": (optim.batch_size, 1),
            "optim.accumulate": (optim.accumulate, 1),
            "optim.lr": (optim.lr, 0),
            "optim.weight_decay": (optim.weight_decay, 0),
            "optim.warmup_steps": (optim.warmup_steps, 0),
            "optim.final_lr_ratio": (optim.final_lr_ratio, 0),
            "optim.grad_clip": (optim.grad_clip, 0),
        }
        for key, (value, least) in at_least.items():
            if not value >= least:
                raise SettingsError(f"{key} is {value}; give {least} or more")
        if self.stop_at_step is not None and self.stop_at_step < 1:
            raise SettingsError(f"stop_at_step is {self.stop_at_step}; give 1 or more, or null")
        for key, value in {"ema_decay": optim.ema_decay, "beta2": optim.beta2}.items():
            if not 0 <= value < 1:
                raise SettingsError(f"optim.{key} is {value}; give 0 or more and less than 1")
        if optim.accumulate > optim.batch_size:
            raise SettingsError(
                f"optim.accumulate is {optim.accumulate}, but a batch of {optim.batch_size} has "
                "no more pieces than examples; lower it"
            )


def _check_model(model: ModelSettings) -> None:
    """Raise SettingsError when the model's settings do not fit each other."""
    sizes = ["patch_size", "emb_dim", "num_layer", "num_head", "mask_span"]
    sizes += [f"decoder_{name}" for name in ("emb_dim", "num_layer")]
    for name in sizes:
        value = getattr(model, name)
        if value is not None and value < 1:
            raise SettingsError(f"model.{name} is {value}; give 1 or more")
    if 3840 % model.patch_size:
        raise SettingsError(
            f"model.patch_size is {model.patch_size}, which does not divide the 3,840 samples of "
            "an example; give a divisor such as 4, 8, 16 or 20"
        )
    n_patches = 3840 // model.patch_size
    for name, emb_dim in {"": model.emb_dim, "decoder_": model.decoder_emb_dim}.items():
        if emb_dim is not None and 16 * emb_dim % model.num_head:
            raise SettingsError(
                f"model.num_head is {model.num_head}, which does not divide the token width "
                f"16 x {name}emb_dim = {16 * emb_dim}; give a divisor of it"
            )
    if not 0 < model.mask_ratio < 1:
        raise SettingsError(
            f"model.mask_ratio is {model.mask_ratio}; it is the fraction of patches hidden, give "
            "a number between 0 and 1 such as 0.5"
        )
    if not 0 <= model.mask_channels <= 1:
        raise SettingsError(
            f"model.mask_channels is {model.mask_channels}; it is the share of examples that lose "
            "whole channels, give a number from 0 to 1 such as 0.3"
        )
    if model.mask_span > n_patches:
        raise SettingsError(
            f"model.mask_span is {model.mask_span}, but a channel has {n_patches} patches; "
            "give fewer"
        )
    if model.token_layout == "channel" and (n_patches % 16 or n_patches < 32):
        raise SettingsError(
            f"model.patch_size {model.patch_size} makes {n_patches} patches a channel, and "
            "model.token_layout channel takes them 16 at a time; give 4, 8, 10, 15, 16 or 20, or "
            "another layout"
        )


# ------------------------------------------------------------------ 3_train_classifier.py
@dataclass
class ProbePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint whose frozen encoder is probed."""
    compare_with: Path | None = None
    """Another checkpoint, probed in the same way on the same patients; none: nothing."""
    output_dir: Path = Path("results/m15p8")
    """Written: metrics.json, report.html, tables (CSV), pictures (PNG), embeddings/."""
    publish_to: Path | None = None
    """Written at the end: the probes once more, as they ship beside a published checkpoint, with
    their line in the SHA256SUMS there; none: nothing."""


@dataclass
class ProbeSettings:
    """Linear probes on frozen embeddings."""

    paths: ProbePaths = field(default_factory=ProbePaths)
    tasks: list[
        Literal["sleep", "apnea", "hypopnea", "apnea_hypopnea", "desaturation", "arousal"]
    ] = field(default_factory=lambda: list(TASKS))
    """Tasks to probe."""
    pooling: str = "best"
    """How an embedding becomes features: mean, max (over the 64-wide axis, 7,680 numbers, as in
    the paper), time_mean, time_abs (over time, 1,024), class (class token, 1,024), several joined
    by +, or best: the one of `poolings` with the best mean validation score over the tasks."""
    poolings: list[str] = field(
        default_factory=lambda: [
            "mean",
            "max",
            "time_mean",
            "time_abs",
            "class",
            "time_mean+time_abs+class",
        ]
    )
    """Poolings compared on validation when pooling is best."""
    context: int = 1
    """Also probe with this many neighbouring epochs on each side, beside the single-epoch figures;
    0: not."""
    regularisation: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    """Inverse strengths C of the logistic regression; the best on validation is kept."""
    bootstrap_draws: int = 1000
    """Resamples of patients behind each 95 % interval."""
    baselines: list[Literal["prevalence", "handmade", "untrained"]] = field(
        default_factory=lambda: ["prevalence", "handmade", "untrained"]
    )
    """What stands beside each score: the prevalence, hand-made features, the untrained encoder."""
    batch_size: int = 64
    """Examples embedded at a time."""
    seed: int = 0
    """Draws the bootstrap, the untrained encoder and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto: bfloat16 where the machine computes it in hardware."""
    n_workers: int = 2
    """Threads for hand-made features and probes."""
    memory_gb: float = 4.0
    """Features held in memory at a time, GB; above it probes are fitted by passes over the disk."""
    embedding_map: Literal["auto", "umap", "pca"] = "auto"
    """Map of the embedding space in the report; auto: UMAP where umap-learn is installed."""
    allow_seen_patients: bool = False
    """Score test patients that the checkpoint saw in pretraining; the report then says so."""

    def check(self) -> None:
        if not self.tasks or not self.regularisation or not self.poolings:
            raise SettingsError("tasks, regularisation and poolings need at least one entry each")
        if min(self.regularisation) <= 0:
            raise SettingsError(
                f"regularisation holds {min(self.regularisation):g}; inverse strengths are above 0"
            )
        if self.bootstrap_draws < 100:
            raise SettingsError(
                f"bootstrap_draws is {self.bootstrap_draws}; give 100 or more for an interval"
            )
        for key, least in (("context", 0), ("batch_size", 1), ("n_workers", 1), ("seed", 0)):
            if getattr(self, key) < least:
                raise SettingsError(f"{key} is {getattr(self, key)}; give {least} or more")
        if self.memory_gb <= 0:
            raise SettingsError(f"memory_gb is {self.memory_gb:g}; give more than 0")
        if self.paths.publish_to is not None and self.paths.publish_to.suffix != ".npz":
            raise SettingsError(
                f"paths.publish_to is {self.paths.publish_to}; give a file name that ends in .npz"
            )


# ------------------------------------------------------------------ 4_score_recording.py
@dataclass
class ScorePaths:
    """Files and folders."""

    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint of the encoder."""
    probes: Path = Path("checkpoint/probes.npz")
    """Probes that script 3 fitted on this very encoder."""
    output_dir: Path = Path("results/scored")
    """Written: a folder named after the recording with epochs.csv, summary.json, summary.csv,
    annotations.edf and report.html."""
    annotations: Path | None = None
    """The recording's scoring (.tsv, -nsrr.xml or EDF+); none: looked for beside the recording and
    in it."""


@dataclass
class ScoreSettings:
    """One recording to stages, events and a night's summary; no medical device."""

    recording: Path | None = None
    """EDF file to score; may stand without its name, as in `4_score_recording.py FILE.edf`."""
    paths: ScorePaths = field(default_factory=ScorePaths)
    use_annotations: bool = True
    """Score the epochs that a scorer scored, as script 1 cuts them, and show the agreement; false:
    pass annotations over and cut a 30-s grid."""
    grid_offset_s: float = 0.0
    """Without annotations: start of the first 30-s epoch, seconds from recording start."""
    stand_ins: dict[str, list[str]] = field(default_factory=dict)
    """For each of the 16 channels, labels of other signals that may take its place when it is
    absent, first choice first, such as {"EEG C3-M2": ["EEG Fpz-Cz"]}."""
    min_channels: int = 4
    """A recording with fewer of the 16 channels is refused."""
    wake_margin_min: float | None = None
    """With annotations: keep at most this much wake before the first and after the last sleep
    epoch, minutes; none: keep all that is scored."""
    scaling: Literal["policy", "original"] = "policy"
    """Standardisation, as the encoder's training data had it (see script 1)."""
    clip: float = 20.0
    """Standardised values are clipped to +- this (0: never); arbitrary-gain channels only."""
    far_share: float = 0.01
    """An epoch is flagged when its embedding lies farther from the training data than this share of
    the validation epochs did."""
    batch_size: int = 64
    """Epochs embedded at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto: the one in which the probes' embeddings were computed."""

    def check(self) -> None:
        for key, low, high in (
            ("grid_offset_s", 0, 1e6),
            ("min_channels", 1, 16),
            ("clip", 0, 60_000),
            ("far_share", 0.001, 0.5),
            ("batch_size", 1, 1e6),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise SettingsError(f"{key} is {value:g}; give a number from {low:g} to {high:g}")
        if not 0 <= (self.wake_margin_min or 0) <= 1440:
            raise SettingsError(f"wake_margin_min is {self.wake_margin_min:g}; give 0 to 1440")
        _check_stand_ins(self.stand_ins)


# ------------------------------------------------------------------ 5_explore_embeddings.py
@dataclass
class ExplorePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint whose embeddings are explored."""
    output_dir: Path = Path("results/m15p8/explore")
    """Written: explore.json, explore.html, tables (CSV), pictures (PNG)."""
    embeddings_dir: Path | None = None
    """The embeddings/ folder in script 3's output_dir: what it holds is not computed again, what
    it lacks is added; none: embeddings/ in output_dir."""
    health_dir: Path | None = None
    """NCH's Health_Data folder: its DIAGNOSIS.csv says who is in the cohort; none: lists alone."""


@dataclass
class CohortSettings:
    """Patients that are compared with all others: by ICD code, by a list, or both."""

    name: str = "Prader-Willi syndrome"
    """What the cohort is called in the report."""
    icd_codes: list[str] = field(default_factory=lambda: ["Q87.11", "Q87.1", "759.81"])
    """ICD-10 and ICD-9 codes, equal but for dots, blanks and case (Q87.1 does not find Q87.19); in
    quotes, for YAML takes 759.81 for a number."""
    name_holds: str = ""
    """Count only diagnoses whose DX_NAME holds this text, in any case (Q87.1 covers other
    syndromes too); empty: all."""
    source_types: list[str] = field(default_factory=list)
    """Count only diagnoses of these DX_SOURCE_TYPE (authors' rule: [Final Dx]); empty: all."""
    patient_ids: list[int] = field(default_factory=list)
    """Patients of the cohort besides those found by code."""
    patients_file: Path | None = None
    """CSV file with a column patient_id: more patients of the cohort."""
    min_patients: int = 3
    """Fewer patients in one of the groups are not compared."""
    epochs_per_patient: int = 30
    """30-s epochs of each patient in a draw; patients with fewer are left out and counted."""
    n_draws: int = 50
    """Balanced draws of patients and epochs."""
    n_shuffles: int = 999
    """Shuffles of the labels over the patients, behind the p-value."""
    controls_per_patient: int = 4
    """Controls of nearest age for each patient of the cohort, where ages are known; fewer where
    they would take up more than half of the others."""


@dataclass
class DistanceSettings:
    """Distances in the embedding space against distances between the signals."""

    channels: list[str] = field(
        default_factory=lambda: [
            "EEG C3-M2",
            "EOG LOC-M2",
            "EMG CHIN1-CHIN2",
            "SPO2",
            "RESP THORACIC",
        ]
    )
    """Which of the 16 channels; empty: none are compared."""
    n_epochs: int = 600
    """Epochs between which pairs are drawn, of at most 30 nights."""
    n_pairs: int = 2000
    """Pairs within a night, and as many between patients."""
    dtw_rate_hz: float = 16.0
    """Sampling rate for dynamic time warping, Hz; 128 divided by a whole number."""
    dtw_band_s: float = 1.0
    """Largest shift that dynamic time warping may forgive, seconds."""
    bootstrap_draws: int = 500
    """Resamples of patients behind each 95 % interval."""


@dataclass
class ExploreSettings:
    """Maps, the path of a night, a cohort against the rest, and distances."""

    paths: ExplorePaths = field(default_factory=ExplorePaths)
    cohort: CohortSettings = field(default_factory=CohortSettings)
    distances: DistanceSettings = field(default_factory=DistanceSettings)
    pooling: str = "time_abs"
    """How an embedding becomes features: mean, max, time_mean, time_abs, class, or several joined
    by +; script 3's metrics.json names the best."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which patients; all: every split (a rare disease needs it; pretraining saw the signals of
    train, never a diagnosis)."""
    patient_ids: list[int] = field(default_factory=list)
    """Map these patients only; empty: all of the split. The cohort is compared over the split."""
    nights: list[str] = field(default_factory=list)
    """Nights whose path is drawn, each as <patient>/<study>; empty: the longest one mapped."""
    maps: list[Literal["pca", "umap"]] = field(default_factory=lambda: ["pca", "umap"])
    """Kinds of map; UMAP needs umap-learn and is left out, with a word, where it is absent."""
    max_points: int = 3000
    """Epochs drawn on a map at most."""
    batch_size: int = 64
    """Examples embedded at a time."""
    seed: int = 0
    """Draws epochs, patients, shuffles, resamples and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; give script 3's to find its embeddings."""

    def check(self) -> None:
        cohort, distances = self.cohort, self.distances
        at_least = {
            "max_points": (self.max_points, 20),
            "batch_size": (self.batch_size, 1),
            "seed": (self.seed, 0),
            "cohort.min_patients": (cohort.min_patients, 2),
            "cohort.epochs_per_patient": (cohort.epochs_per_patient, 2),
            "cohort.n_draws": (cohort.n_draws, 2),
            "cohort.n_shuffles": (cohort.n_shuffles, 19),
            "cohort.controls_per_patient": (cohort.controls_per_patient, 1),
            "distances.n_epochs": (distances.n_epochs, 10),
            "distances.n_pairs": (distances.n_pairs, 10),
            "distances.dtw_band_s": (distances.dtw_band_s, 0),
            "distances.bootstrap_draws": (distances.bootstrap_draws, 100),
        }
        for key, (value, least) in at_least.items():
            if value < least:
                raise SettingsError(f"{key} is {value:g}; give {least} or more")
        if self.pooling == "best":
            raise SettingsError(
                "pooling is best, which only script 3 can choose; give the pooling that its "
                "metrics.json names"
            )
        if not self.maps:
            raise SettingsError("maps is empty; give pca, umap or both")
        for name in distances.channels:
            if name not in CHANNEL_NAMES:
                raise SettingsError(
                    f"distances.channels: {name!r} is none of the 16 channels; they are "
                    f"{', '.join(CHANNEL_NAMES)}"
                )
        if not 1 <= distances.dtw_rate_hz <= 128 or 128 % distances.dtw_rate_hz:
            raise SettingsError(
                f"distances.dtw_rate_hz is {distances.dtw_rate_hz:g}; give 128 Hz divided by a "
                "whole number, such as 8, 16 or 32"
            )


# ------------------------------------------------------------------ 6_generate_signals.py
@dataclass
class GeneratePaths:
    """Folders and files."""

    batches_dir: Path = Path("data/batches")
    """Folder of batch files from script 1 (or the original authors' combined_*.hdf5)."""
    checkpoint: Path = Path("checkpoint/m15p8_checkpoint.pt")
    """Checkpoint with its decoder; pretrained with model.mask_channels for imputation."""
    output_dir: Path = Path("results/generate")
    """Written: generate.json, generate.html, tables (CSV), pictures (PNG)."""
    embeddings_dir: Path | None = None
    """Folder of stored embeddings, such as the embeddings/ of script 3; none: embeddings/ in
    output_dir."""


@dataclass
class GenerateSettings:
    """Imputed channels, decoded means, nearest neighbours and outliers."""

    paths: GeneratePaths = field(default_factory=GeneratePaths)
    targets: list[str] = field(default_factory=lambda: ["each", "EEG", "EOG", "effort"])
    """What is hidden and imputed from the rest, one after the other: channels such as SPO2, groups
    (EEG, EOG, EMG, effort, flow, snore, CO2, SpO2), or each for every channel by itself."""
    show_all: bool = False
    """Impute from the other channels whole; false: from masked ones as in pretraining, in several
    passes. Which is better differs from model to model; compare with split val."""
    split: Literal["train", "val", "test"] = "test"
    """Whose examples are imputed, averaged and searched for."""
    max_epochs: int = 300
    """Examples of each class (all, five stages, four events) used at most, drawn by the seed."""
    mean_of_patient: int | None = None
    """Patient whose mean embeddings are decoded; none: of each class the one with most epochs."""
    pooling: str = "time_mean+class"
    """Embedding in which examples are near or far, as pooling of script 3 (without best)."""
    neighbours_of: list[str] = field(default_factory=list)
    """Examples whose neighbours are shown, each patient/study/onset in seconds; none: of each
    class the one nearest to its mean."""
    n_neighbours: int = 5
    """Neighbours of each example."""
    exclude_own_night: bool = True
    """No neighbours from the example's own night, which are alike for being the same night."""
    outlier_reference: int = 20_000
    """Train examples that outlier scores are distances to, at most; held in memory."""
    n_outliers: int = 12
    """Outliers drawn, one a night; outliers.csv ranks all examples."""
    bootstrap_draws: int = 1000
    """Resamples of patients behind each 95 % interval."""
    batch_size: int = 64
    """Examples that pass the model at a time."""
    seed: int = 0
    """Draws the examples, the bootstrap and, for the original's folders, the split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU when there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto: bfloat16 where the machine computes it in hardware."""

    def check(self) -> None:
        if not self.targets:
            raise SettingsError("targets is empty; give channels, groups, or each")
        if self.bootstrap_draws < 100:
            raise SettingsError(
                f"bootstrap_draws is {self.bootstrap_draws}; give 100 or more for an interval"
            )
        least = {"max_epochs": 2, "n_neighbours": 1, "outlier_reference": 100, "n_outliers": 1}
        least |= {"batch_size": 1, "seed": 0}
        for key, value in least.items():
            if getattr(self, key) < value:
                raise SettingsError(f"{key} is {getattr(self, key)}; give {value} or more")


# ------------------------------------------------------------------ reading
def load_settings(
    settings_class: type,
    default_config: str,
    doc: str,
    argv: list[str],
    positional: str | None = None,
):
    """Settings of a script from its command line; exits with 2 and one sentence when they are bad.

    ``default_config`` is a file name in ``configs/``, read when ``--config`` is not given; ``doc``
    is what ``--help`` shows. Values: the class's defaults, then the file, then the overrides.
    ``positional`` names the setting whose value may stand without ``--name``.
    """
    argv = _complete_argv(argv, settings_class, positional)
    if not any(arg == "--config" or arg.startswith("--config=") for arg in argv):
        argv = ["--config", str(CONFIG_DIR / default_config), *argv]
    parser = _parser(settings_class, doc)
    try:
        settings = _build(parser, settings_class, argv)
        if hasattr(settings, "check"):
            settings.check()
    except SettingsError as error:
        exit_bad_settings(str(error))
    except jsonargparse.ArgumentError as error:
        exit_bad_settings(_explain(settings_class, doc, argv, error))
    return settings


def warn(sentence: str) -> None:
    """Say on stderr what may be wrong; nothing where there is nothing to say."""
    if sentence:
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)


def exit_bad_settings(sentence: str) -> typing.NoReturn:
    """End the script with exit code 2 and this sentence on stderr."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(EXIT_BAD_SETTINGS)


def require_folder(path: Path, key: str, remedy: str) -> None:
    """Raise SettingsError unless ``path`` (the value of setting ``key``) is a folder."""
    if not path.is_dir():
        raise SettingsError(f"{key}: there is no folder {path}; {remedy}")


def require_file(path: Path, key: str, remedy: str) -> None:
    """Raise SettingsError unless ``path`` (the value of setting ``key``) is a file."""
    if not path.is_file():
        raise SettingsError(f"{key}: there is no file {path}; {remedy}")


def as_plain_dict(settings) -> dict:
    """Settings as nested dicts of strings, numbers, booleans and lists (for YAML, checkpoints)."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(settings))


def setting_types(settings_class: type, prefix: str = "") -> dict[str, typing.Any]:
    """Dotted name -> type of every setting of a class, nested classes included."""
    hints = typing.get_type_hints(settings_class)
    types = {}
    for item in dataclasses.fields(settings_class):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            types |= setting_types(hint, f"{prefix}{item.name}.")
        else:
            types[prefix + item.name] = hint
    return types


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the lines of the script's own description kept."""


def _parser(settings_class: type, doc: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,  # --n_worker is not a setting, and means nothing else by chance
        description=doc,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(settings_class)
    return parser


def _build(parser: jsonargparse.ArgumentParser, settings_class: type, argv: list[str]):
    namespace = parser.instantiate(parser.parse_args(argv))
    values = {item.name: namespace[item.name] for item in dataclasses.fields(settings_class)}
    return settings_class(**values)


def _complete_argv(
    argv: list[str], settings_class: type, positional: str | None = None
) -> list[str]:
    """Spell out short forms: ``--strict`` is ``--strict true``; ``--tasks a b`` is a list.

    A value that belongs to no ``--name`` is that of the setting ``positional``.
    """
    types = setting_types(settings_class)
    complete, rest = [], list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("-"):
            complete += [arg] if positional is None else [f"--{positional}", arg]
            continue
        name = arg.removeprefix("--")
        hint = types.get(name)
        is_list = typing.get_origin(hint) is list
        if hint is not bool and not is_list:
            complete.append(arg)
            if (hint is not None or name == "config") and rest:
                complete.append(rest.pop(0))
            continue
        values = []
        while rest and not rest[0].startswith("--") and (is_list or not values):
            if hint is bool and positional is not None and rest[0].lower() not in _TRUE_FALSE:
                break
            values.append(rest.pop(0))
        if is_list and values and not values[0].startswith("["):
            values = [f"[{', '.join(values)}]"]
        complete += [arg, *(values or ([] if is_list else ["true"]))]
    return complete


def _explain(settings_class: type, doc: str, argv: list[str], error: Exception) -> str:
    """One sentence for a parser's error: tries the settings one by one to find the culprit."""
    types = setting_types(settings_class)
    for where, key, value in _given_settings(argv):
        if key not in types:
            if any(name.startswith(f"{key}.") for name in types):
                return f"{where}: {key} is a group of settings, got {value!r}; see --help"
            near = difflib.get_close_matches(key, types, n=1) or difflib.get_close_matches(
                key, [name.rsplit(".", 1)[-1] for name in types], n=1
            )
            hint = f"did you mean {near[0]}? " if near else ""
            return f"{where}: {key} (value {value!r}) is not a setting; {hint}--help lists them all"
        try:
            parser = jsonargparse.ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(settings_class)
            parser.parse_object({key: value})
        except (jsonargparse.ArgumentError, TypeError, KeyError):
            return (
                f"{where}: {key} cannot be {value!r}; give {_type_in_words(types[key])}"
                " (--help says what it means)"
            )
    return str(error)


def _given_settings(argv: list[str]) -> list[tuple[str, str, typing.Any]]:
    """(where it stands, dotted key, value) of each setting in the YAML files and on the line."""
    import yaml  # jsonargparse's own YAML reader; needed only to explain an error

    def flatten(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict) and f"{prefix}{key}" != "stand_ins":
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    given, rest = [], list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            given.append(("command line", arg, ""))
            continue
        key, equals, text = arg.removeprefix("--").partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            text = rest.pop(0)
        if key != "config":
            given.append(("command line", key, _yaml_or_text(yaml, text)))
            continue
        try:
            tree = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SystemExit(_bad_file(text, error)) from None
        if not isinstance(tree, dict):
            raise SystemExit(_bad_file(text, "it holds no `key: value` lines"))
        given += [(text, key, value) for key, value in flatten(tree)]
    return given


def _bad_file(path: str, error) -> int:
    print(
        f"{Path(sys.argv[0]).name}: --config {path} cannot be read as YAML settings: "
        f"{' '.join(str(error).split())}; give a file such as those in configs/",
        file=sys.stderr,
    )
    return EXIT_BAD_SETTINGS


def _yaml_or_text(yaml, text: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _type_in_words(hint) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin is list:
        return f"a list, each {_type_in_words(args[0])}"
    if origin is dict:
        return f"a mapping from {_type_in_words(args[0])} to {_type_in_words(args[1])}"
    if args:  # X | None
        return " or ".join("null" if arg is type(None) else _type_in_words(arg) for arg in args)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(hint, "a path")
