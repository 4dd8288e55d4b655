"""Examples of one night to stages, events and a summary, by probes on a frozen encoder.

Axes: **N** epochs, **F** features, **K** classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score

from pedsleepmae import machine, store, tasks
from pedsleepmae.channels import CHANNEL_NAMES, EPOCH_S, check_stand_ins
from pedsleepmae.checkpoints import hash_encoder, load_model
from pedsleepmae.errors import ProbeError, SettingsError
from pedsleepmae.probe import embeddings, files, linear
from pedsleepmae.probe.files import Basis
from pedsleepmae.probe.linear import Chosen
from pedsleepmae.probe.nights import EPOCH_MINUTES, INDICES, MIN_SLEEP_HOURS, count_index_events
from pedsleepmae.tasks import EVENT_TEXTS, N_CLASSES, NOTICE, STAGES


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
        check_stand_ins(self.stand_ins)


FAR_TEXT = "Far from the training data"
# Usual durations of the events, s. An event of d seconds at a random place touches 1 + d/30
# epochs on average, which leads from epochs with events back to events.
EVENT_SECONDS = {
    "apnea_hypopnea": (10.0, 30.0),
    "desaturation": (10.0, 60.0),
    "arousal": (3.0, 15.0),
}
MANY_FAR = 10  # times the expected share of far epochs: then the night as a whole is unlike


# ------------------------------------------------------------------ encoder and probes
@dataclass(frozen=True)
class Scorer:
    """A frozen encoder with the probes that were fitted on it, ready to score."""

    model: torch.nn.Module
    pooling: str
    chosen: Mapping[str, Chosen]
    basis: Basis
    checkpoint: str
    device: torch.device
    dtype: torch.dtype
    batch_size: int


def load_scorer(
    checkpoint: Path,
    probe_file: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
) -> Scorer:
    """The encoder of a checkpoint and its probes; ProbeError when these belong to another.

    ``precision`` "auto": that in which the probes' own embeddings were computed. CheckpointError
    and MachineError come through.
    """
    where = machine.choose_device(device)
    model = load_model(checkpoint, where)
    pooling, chosen = files.load_probes(probe_file)
    basis = files.load_basis(probe_file)
    facts = basis.facts
    if not chosen:
        raise ProbeError(f"{probe_file}: holds no probe of any task; run script 3 again")
    if hash_encoder(model) != facts.get("encoder_sha256"):
        raise ProbeError(
            f"{probe_file}: its probes were fitted on another encoder ({facts.get('checkpoint')}) "
            f"than that of {checkpoint}; give that checkpoint, or run script 3 on this one"
        )
    n_features = _count_features(model, pooling)
    for task, one in chosen.items():
        if len(one.probe.weight_FK) != n_features or len(basis.density.mean_F) != n_features:
            raise ProbeError(
                f"{probe_file}: the probe of {task} reads {len(one.probe.weight_FK)} numbers, but "
                f"pooling {pooling} of this encoder gives {n_features}; run script 3 again"
            )
    wanted = facts["precision"] if precision == "auto" else precision
    return Scorer(
        model=model,
        pooling=pooling,
        chosen=chosen,
        basis=basis,
        checkpoint=str(checkpoint),
        device=where,
        dtype=machine.choose_dtype(wanted, where),
        batch_size=batch_size,
    )


def _count_features(model: torch.nn.Module, pooling: str) -> int:
    emb_dim = model.encoder.cls_token.shape[3]
    by_patch, by_width = 16 * model.n_patches, 16 * emb_dim
    return sum(by_patch if part in ("mean", "max") else by_width for part in pooling.split("+"))


# ------------------------------------------------------------------ one night
@dataclass(frozen=True)
class Night:
    """What the probes say of a recording's epochs, first axis N, and what a scorer said.

    ``prob`` and ``called`` are by task: recalibrated probabilities (N, K), classes (N,).
    ``distance_N``: how far the embedding lies from the training data, 1 at the threshold; ``far_N``
    above it. ``scored`` holds a scorer's classes (N,), -1 where not scored; None: nobody scored.
    """

    onsets_s: np.ndarray
    prob: dict[str, np.ndarray]
    called: dict[str, np.ndarray]
    distance_N: np.ndarray
    scored: dict[str, np.ndarray] | None

    @property
    def far_N(self) -> np.ndarray:
        return self.distance_N > 1

    def __len__(self) -> int:
        return len(self.onsets_s)


def score_examples(
    scorer: Scorer, examples: store.Examples, *, far_share: float = 0.01, title: str | None = None
) -> Night:
    """Stages, events and flags of examples; with a ``title`` under a progress bar.

    The steps and their rounding are those of script 3: epochs that it scored get the same scores.
    """
    x_NF = embeddings.embed_arrays(
        scorer.model,
        examples.signals,
        examples.present,
        scorer.pooling,
        batch_size=scorer.batch_size,
        device=scorer.device,
        dtype=scorer.dtype,
        title=title,
    )
    rounded_NF = embeddings.as_float16(x_NF).astype(np.float32)
    one_by_task = {task: one.probe for task, one in scorer.chosen.items()}
    logits = linear.predict_features(rounded_NF, one_by_task)
    prob = {task: one.probabilities(logits[task]) for task, one in scorer.chosen.items()}
    density = scorer.basis.density
    scored = {task: tasks.task_labels(examples.labels, task) for task in N_CLASSES}
    return Night(
        onsets_s=examples.onsets_s,
        prob=prob,
        called={task: one.decide(prob[task]) for task, one in scorer.chosen.items()},
        distance_N=density.distance(rounded_NF) / density.threshold(far_share),
        scored=scored if (scored["sleep"] >= 0).any() else None,
    )


def annotation_rows(night: Night) -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, text): the notice, a stage each epoch, runs of events and of flags."""
    rows = [(0.0, 0.0, NOTICE)]
    if "sleep" in night.called:
        for onset_s, stage in zip(night.onsets_s, night.called["sleep"], strict=True):
            rows.append((float(onset_s), EPOCH_S, f"Sleep stage {STAGES[stage]}"))
    for task, text in EVENT_TEXTS.items():
        if task in night.called:
            rows += find_runs(night.onsets_s, night.called[task] == 1, text)
    rows += find_runs(night.onsets_s, night.far_N, FAR_TEXT)
    return sorted(rows, key=lambda row: row[0])


def find_runs(
    onsets_s: np.ndarray, positive_N: np.ndarray, text: str
) -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, text) of each stretch of adjoining positive epochs."""
    runs: list[tuple[float, float, str]] = []
    for onset_s in onsets_s[positive_N].tolist():
        if runs and abs(runs[-1][0] + runs[-1][1] - onset_s) < 0.5:
            runs[-1] = (runs[-1][0], onset_s + EPOCH_S - runs[-1][0], text)
        else:
            runs.append((onset_s, EPOCH_S, text))
    return runs


# ------------------------------------------------------------------ the summary
def summarise(
    scorer: Scorer,
    night: Night,
    *,
    recording: str,
    duration_s: float,
    origins: Mapping[str, str],
    simulated: bool,
    far_share: float,
    event_counts: Mapping[str, int],
) -> dict:
    """Content of summary.json. ``origins``: where each present channel comes from.

    ``event_counts``: by kind, the scored events that begin in sleep, where somebody scored.
    """
    facts = scorer.basis.facts
    content = {
        "notice": NOTICE,
        "recording": recording,
        "recording_simulated": simulated,
        "hours_recorded": duration_s / 3600,
        "n_epochs": len(night),
        "epochs": "at the scored rows" if night.scored else "on a 30-s grid",
        "checkpoint": {
            "file": Path(scorer.checkpoint).name,
            "encoder_sha256": facts["encoder_sha256"],
            "simulated": facts["checkpoint_simulated"],
        },
        "probes": {
            "pooling": scorer.pooling,
            "simulated": facts["simulated"],
            "patient_disjoint": facts["patient_disjoint"],
            "n_patients": facts["n_patients"],
        },
        "quantities": night_quantities(scorer, night, event_counts),
        "far": {
            "n_epochs": int(night.far_N.sum()),
            "share": float(night.far_N.mean()),
            "expected_share": far_share,
        },
        "agreement": stage_agreement(night),
        "channels": dict(origins),
        "absent": [name for name in CHANNEL_NAMES if name not in origins],
    }
    return content | {"cautions": cautions(content)}


def night_quantities(scorer: Scorer, night: Night, event_counts: Mapping[str, int]) -> list[dict]:
    """One dict for each quantity of the night: value, how it was reached, what it rests on.

    ``value`` sums recalibrated probabilities (as script 3 does, so that its error on test nights
    is this one's); ``called`` counts the epochs as called; ``scored`` is the scorer's. ``reason``
    says why a value is None.
    """
    rows = [
        _quantity("analysed_min", "min", None, value=len(night) * EPOCH_MINUTES),
    ]
    expected_K = called_K = scored_K = None
    if "sleep" in night.prob:
        expected_K = night.prob["sleep"].sum(0) * EPOCH_MINUTES
        called_K = np.bincount(night.called["sleep"], minlength=5) * EPOCH_MINUTES
    if night.scored:
        stage_N = night.scored["sleep"]
        scored_K = np.bincount(stage_N[stage_N >= 0], minlength=5) * EPOCH_MINUTES
    by_way = {"value": expected_K, "called": called_K, "scored": scored_K}
    sleep_min = {way: None if k is None else float(k[1:].sum()) for way, k in by_way.items()}
    rests_on = _rests_on(scorer, "sleep", "sleep_min")
    rows.append(_quantity("sleep_min", "min", rests_on, **sleep_min))
    efficiency = {
        way: None if k is None else float(100 * k[1:].sum() / k.sum()) for way, k in by_way.items()
    }
    rests_on = _rests_on(scorer, "sleep", "sleep_efficiency")
    rows.append(_quantity("sleep_efficiency", "% of the analysed time", rests_on, **efficiency))
    for k, stage in enumerate(STAGES):
        minutes = {way: None if m is None else float(m[k]) for way, m in by_way.items()}
        rests_on = _rests_on(scorer, "sleep", f"{stage}_min")
        rows.append(_quantity(f"{stage}_min", "min", rests_on, **minutes))
    for name, task in INDICES.items():
        rows.append(_index(scorer, night, name, task, sleep_min, event_counts))
    return rows


def _index(
    scorer: Scorer,
    night: Night,
    name: str,
    task: str,
    sleep_min: Mapping,
    event_counts: Mapping[str, int],
) -> dict:
    """Events per hour of sleep: epochs with an event, times the events for one such epoch.

    That ratio is of the val patients behind the probes. Where it is not known the row counts
    epochs, with the range of events per hour that this would be.
    """
    per_epoch = scorer.basis.facts["nights"]["events_per_epoch"].get(name)
    counts = {"value": None, "called": None, "scored": None}
    if task in night.prob:
        counts["value"] = float(night.prob[task][:, 1].sum())
        counts["called"] = float(night.called[task].sum())
    if night.scored and any((night.scored[t] == 1).any() for t in EVENT_TEXTS):
        counts["scored"] = float((night.scored[task] == 1).sum())
    unit = "epochs with an event per hour of sleep"
    if per_epoch is not None:
        unit = "events per hour of sleep"
        counts = {way: None if n is None else n * per_epoch for way, n in counts.items()}
        if counts["scored"] is not None:
            counts["scored"] = float(count_index_events(name, event_counts))
    per_hour = {
        way: n * 60 / sleep_min[way]
        for way, n in counts.items()
        if n is not None and (sleep_min[way] or 0) >= 60 * MIN_SLEEP_HOURS
    }
    row = _quantity(name, unit, _rests_on(scorer, task, name), **per_hour)
    if row["value"] is None and task in night.prob:
        row["reason"] = (
            f"less than {60 * MIN_SLEEP_HOURS:g} minutes of sleep"
            if "sleep" in night.prob
            else "the probe file holds no probe for sleep, so no time of sleep is known"
        )
    elif per_epoch is not None:
        row["events_per_epoch"] = per_epoch
    elif row["value"] is not None:
        short_s, long_s = EVENT_SECONDS[task]
        row["events_per_hour"] = [
            row["value"] / (1 + long_s / EPOCH_S),
            row["value"] / (1 + short_s / EPOCH_S),
        ]
        row["events_per_hour_if"] = (
            f"events of {short_s:g} to {long_s:g} s that do not share epochs: one of d seconds "
            "touches 1 + d/30 epochs; where events crowd, the true index is higher"
        )
    return row


def _quantity(name: str, unit: str, rests_on: dict | None, **values: float | None) -> dict:
    row = {"name": name, "unit": unit, **dict.fromkeys(("value", "called", "scored")), **values}
    if row["value"] is None:
        row["reason"] = "the probe file holds no probe for it"
    return row | {"rests_on": rests_on}


def _rests_on(scorer: Scorer, task: str, quantity: str) -> dict | None:
    """The calibration behind a quantity; None without a probe."""
    facts = scorer.basis.facts
    if task not in facts["tasks"]:
        return None
    fitted = facts["tasks"][task]
    figure = "kappa" if task == "sleep" else "auroc"
    return {
        "task": task,
        "calibration_slope": fitted["calibration_slope"],
        "n_val_patients": facts["n_patients"]["val"],
        "n_val_epochs": fitted["n_val"],
        f"val_{figure}": fitted["val"][figure],
        f"test_{figure}": fitted["test"][figure],
        "n_test_patients": facts["n_patients"]["test"],
        "error_on_test_nights": facts["nights"]["agreement"].get(quantity),
        "simulated": facts["simulated"],
    }


def stage_agreement(night: Night) -> dict | None:
    """Cohen's kappa and accuracy of the called stages against the scorer's; None without both."""
    if night.scored is None or "sleep" not in night.called:
        return None
    scored_N, called_N = night.scored["sleep"], night.called["sleep"]
    known = scored_N >= 0
    scored_N, called_N = scored_N[known], called_N[known]
    defined = len(np.unique(np.concatenate([scored_N, called_N]))) > 1
    return {
        "n_epochs": int(known.sum()),
        "accuracy": float((scored_N == called_N).mean()),
        "kappa": float(cohen_kappa_score(scored_N, called_N)) if defined else None,
        **({} if defined else {"reason": "one stage only, in both"}),
    }


def cautions(content: Mapping) -> list[str]:
    """What must be known before a figure of this night is used, gravest first."""
    lines = []
    if content["probes"]["simulated"]:
        lines.append(
            "The probes were fitted and calibrated on simulated recordings: these figures show "
            "that the machinery works and say nothing about a person."
        )
    elif content["checkpoint"]["simulated"]:
        lines.append("The encoder was pretrained on simulated recordings.")
    if content["recording_simulated"]:
        lines.append("This recording is simulated.")
    if not content["probes"]["patient_disjoint"]:
        lines.append(
            "The probes were judged on other hours of the nights they were fitted on, so their "
            "figures are flattered; if this is such a night, so are these."
        )
    far = content["far"]
    if far["share"] > min(MANY_FAR * far["expected_share"], 0.5):
        lines.append(
            f"{far['share']:.0%} of the epochs lie far from the training data "
            f"({far['expected_share']:.1%} would be usual): the recording as a whole is unlike "
            "what the probes were fitted on, do not rely on their figures."
        )
    if content["absent"]:
        lines.append(
            f"{len(content['absent'])} of 16 channels are absent: {', '.join(content['absent'])}."
        )
    if content["epochs"] == "on a 30-s grid":
        lines.append("Lights off and on are not known: sleep efficiency counts all analysed time.")
    return lines
