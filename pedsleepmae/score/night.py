"""Examples of one night to stages, events and flags, by probes on a frozen encoder.

Axes: **N** epochs, **F** features, **K** classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pedsleepmae import store
from pedsleepmae.adapters import Adapter, load_adapter, merge
from pedsleepmae.channels import ALL_CHANNELS, CHANNEL_GROUPS, EPOCH_S, MONTAGES, N_CHANNELS
from pedsleepmae.checkpoints import hash_encoder, read_checkpoint
from pedsleepmae.errors import ProbeError, printable
from pedsleepmae.machine import Compute
from pedsleepmae.model import SECONDS, MaskedAutoencoder, check_poolings, split_layer
from pedsleepmae.probe import embeddings, steps
from pedsleepmae.probe.files import (
    Basis,
    EventProbes,
    load_basis,
    load_event_probes,
    load_montages,
    load_probes,
)
from pedsleepmae.probe.fitted import SavedReadOut, StepProbe, TaskProbe, predict_features
from pedsleepmae.probe.readout import night_rows, tasks_by_features
from pedsleepmae.probe.spans import STEP_S, find_spans
from pedsleepmae.score.lights import NOT_KNOWN, Lights
from pedsleepmae.shipped import find_file
from pedsleepmae.tasks import EVENT_TEXTS, NOTICE, STAGES, TASKS, task_labels

FAR_TEXT = "Far from the training data"  # of flagged epochs, among the annotations
# Groups of channels of which one at least is needed before events are counted (AASM): a probe says
# something without them, too, but an index of it is no measurement.
SENSORS = dict.fromkeys(("apnea", "hypopnea", "apnea_hypopnea"), ("flow", "effort", "SpO2"))
SENSORS |= {"desaturation": ("SpO2",)}
FACTS = {  # of script 3, by name: the type of what scoring and its summary read
    "checkpoint": str,
    "encoder_sha256": str,
    "precision": str,
    "checkpoint_simulated": bool,
    "simulated": bool,
    "patient_disjoint": bool,
    "n_patients": {"val": int, "test": int},
    "nights": {"agreement": dict, "events_per_epoch": dict},
}


def task_facts(task: str) -> dict:
    """As FACTS, of one task; a figure that is not defined is None."""
    figure = {"kappa" if task == "sleep" else "auroc": (int, float, type(None))}
    return {"calibration_slope": (int, float), "n_val": int, "val": figure, "test": figure}


# ------------------------------------------------------------------ encoder and probes
@dataclass(frozen=True)
class Scorer:
    """A frozen encoder with the probes that were fitted on it, ready to score.

    ``read_outs``: what the probe of each task reads. ``scaling``: how the encoder's training data
    were standardised. ``far_share``: an epoch is flagged when it lies farther from them than this
    share of the validation epochs did.
    """

    model: MaskedAutoencoder
    read_outs: Mapping[str, SavedReadOut]
    probes: Mapping[str, TaskProbe]
    basis: Basis
    checkpoint: Path
    scaling: str
    compute: Compute
    far_share: float = 0.01
    montages: Mapping[str, Mapping[str, TaskProbe]] = field(default_factory=dict)
    event_probes: EventProbes | None = None

    @property
    def data_scaling(self) -> str:
        """How the data behind the probes were standardised; policy where it is not told."""
        scaling = self.basis.facts.get("scaling")
        return scaling if scaling in ("policy", "robust", "original") else "policy"


def load_scorer(
    checkpoint: Path | str,
    probe_file: Path | str,
    *,
    adapter: Path | str | None = None,
    far_share: float = 0.01,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 64,
) -> Scorer:
    """The encoder of a checkpoint and its probes; ProbeError when these belong to another.

    Where there are no such files, those that ship under these names. ``precision`` "auto": that in
    which the probes' own embeddings were computed, but float32 where the machine is not faster
    in bfloat16 (emulated it is five times slower). ``adapter``: that of script 3's mode lora, which
    fitted the probes with it. CheckpointError and MachineError come through.
    """
    probe_file = find_file(probe_file)
    read_outs, probes = load_probes(probe_file)
    basis = load_basis(probe_file)
    facts = basis.facts
    _check_facts(facts, probes, probe_file)
    compute = Compute.choose(device, precision, batch_size)
    if precision == "auto" and compute.precision == "bfloat16":
        compute = Compute.choose(device, facts["precision"], batch_size)
    content = read_checkpoint(checkpoint, compute.device)
    model = content.build_model()
    if not probes:
        raise ProbeError(f"{probe_file}: holds no probe of any task; run script 3 again")
    if hash_encoder(model) != facts.get("encoder_sha256"):
        raise ProbeError(
            f"{probe_file}: its probes were fitted on another encoder ({facts.get('checkpoint')}) "
            f"than that of {checkpoint}; give that checkpoint, or run script 3 on this one"
        )
    if (taken := _adapter_of_probes(adapter, facts, probe_file)) is not None:
        model = merge(content, taken).build_model()
    montages = load_montages(probe_file)
    if odd := set(montages) - set(MONTAGES):
        raise ProbeError(
            f"{probe_file}: there is no montage {printable(odd.pop())}; update the code"
        )
    _check_features(model, read_outs, [probes, *montages.values()], basis, probe_file)
    event_probes = _event_probes_of(model, probe_file)
    own = content.path, content.scaling, compute, far_share, montages, event_probes
    return Scorer(model, read_outs, probes, basis, *own)


def _check_facts(facts: Mapping, tasks: Iterable[str], probe_file: Path) -> None:
    """ProbeError unless a file of probes says what these tasks' rest on."""
    lacking = missing_fact(facts, FACTS | {"tasks": {task: task_facts(task) for task in tasks}})
    if not lacking and facts["precision"] not in ("float32", "bfloat16"):
        lacking = "precision"
    if lacking:
        raise ProbeError(
            f"{probe_file}: does not say what its probes rest on ({lacking} is missing or of "
            "another type); run script 3 again"
        )


def _check_features(
    model: MaskedAutoencoder,
    read_outs: Mapping[str, SavedReadOut],
    sets: Iterable[Mapping[str, TaskProbe]],
    basis: Basis,
    probe_file: Path,
) -> None:
    """ProbeError unless all probes, and the density, read what the poolings of the model give."""
    for task, probe in [item for each in sets for item in each.items()]:
        if task not in read_outs:
            raise ProbeError(
                f"{probe_file}: holds no probe of {task} for all channels; run script 3"
            )
        n_marks = 0 if read_outs[task].normalise is None else N_CHANNELS
        n_read = len(probe.linear.weight_FK) - n_marks
        _check_pooling(model, read_outs[task].pooling, n_read, f"the probe of {task}", probe_file)
    n_read = len(basis.density.mean_F)
    _check_pooling(model, basis.pooling, n_read, "the density", probe_file)


def _check_pooling(
    model: MaskedAutoencoder, name: str, n_read: int, reader: str, probe_file: Path
) -> None:
    """ProbeError unless the pooling is one of the model's and gives so many numbers."""
    pooling, layer = split_layer(name)
    if pooling != SECONDS:
        check_poolings(pooling, [])
    if layer is not None and not 1 <= layer <= len(model.encoder.transformer):
        raise ProbeError(f"{probe_file}: this encoder has no block {layer}; run script 3 again")
    if n_read != (n_given := model.n_features(name)):
        raise ProbeError(
            f"{probe_file}: {reader} reads {n_read} numbers, but pooling {name} of this encoder "
            f"gives {n_given}; run script 3 again"
        )


def _adapter_of_probes(path: Path | str | None, facts: Mapping, probe_file: Path) -> Adapter | None:
    """The adapter that the probes were fitted with; ProbeError for another, too many or too few."""
    taken = None if path is None else load_adapter(path)
    if facts.get("adapter_sha256") != (taken and taken.sha256):
        remedy = "give the one that script 3 wrote beside them as --paths.adapter"
        if taken is None:
            problem = f"its probes were fitted with an adapter; {remedy}"
        elif facts.get("adapter_sha256") is None:
            problem = "its probes were fitted without an adapter; leave --paths.adapter out"
        else:
            problem = f"its probes were fitted with another adapter than {path}; {remedy}"
        raise ProbeError(f"{probe_file}: {problem}")
    return taken


def _event_probes_of(model: MaskedAutoencoder, probe_file: Path) -> EventProbes | None:
    """The probes of single events in a file, None for none; ProbeError when they do not fit."""
    event_probes = load_event_probes(probe_file)
    if event_probes is not None:
        steps.check_patches(model.n_patches)
        for by_kind in event_probes.by_montage.values():
            for kind, probe in by_kind.items():
                n_read = len(probe.weight_F) * steps.N_STEPS / len(steps.WINDOWS)
                reader = f"the probe of single events of {kind}"
                _check_pooling(model, event_probes.pooling, n_read, reader, probe_file)
    return event_probes


def missing_fact(facts: Mapping, wanted: Mapping, prefix: str = "") -> str:
    """Dotted name of the first of the ``wanted`` that is not there in its type; "": all are."""
    for name, kind in wanted.items():
        if isinstance(kind, Mapping) and isinstance(facts.get(name), dict):
            if lacking := missing_fact(facts[name], kind, f"{prefix}{name}."):
                return lacking
        elif isinstance(kind, Mapping) or not isinstance(facts.get(name), kind):
            return prefix + name
    return ""


# ------------------------------------------------------------------ one night
@dataclass(frozen=True)
class Night:
    """What the probes say of a recording's epochs, first axis N, and what a scorer said.

    ``prob`` and ``called`` are by task: recalibrated probabilities (N, K), classes (N,).
    ``distance_N``: how far the embedding lies from the training data, 1 at the threshold; ``far_N``
    above it. ``scored`` holds a scorer's classes (N,), -1 where not scored; None: nobody scored.
    ``montage``: the channels for which the probes were fitted. ``begun``: by kind of event how many
    scored ones begin in each epoch (N,); None: single events are not known. ``found``: by task the
    single events found, (n, 3): onset and end in s, mean probability; {} without such probes.
    ``not_counted``: by task why its events are not counted, where no sensor of it was recorded.
    """

    onsets_s: np.ndarray
    prob: dict[str, np.ndarray]
    called: dict[str, np.ndarray]
    distance_N: np.ndarray
    scored: dict[str, np.ndarray] | None
    montage: str = ALL_CHANNELS
    lights: Lights = NOT_KNOWN
    begun: Mapping[str, np.ndarray] | None = None
    found: Mapping[str, np.ndarray] = field(default_factory=dict)
    not_counted: Mapping[str, str] = field(default_factory=dict)

    @property
    def far_N(self) -> np.ndarray:
        return self.distance_N > 1

    @property
    def in_bed_N(self) -> np.ndarray:
        return self.lights.in_bed(self.onsets_s)

    def __len__(self) -> int:
        return len(self.onsets_s)


def nearest_montage(recorded_C: np.ndarray, names: Iterable[str]) -> str:
    """The montage whose probes fit a recording best: of ``names``, or that of all channels.

    One that the recording holds, with the fewest channels left over, if these are fewer than it
    lacks of all 16: a channel that a probe misses counts as much as one that it does not read.
    """
    recorded = set(np.flatnonzero(recorded_C).tolist())
    held = [name for name in names if recorded >= set(MONTAGES[name])]
    best = max(held, key=lambda name: len(MONTAGES[name]), default=ALL_CHANNELS)
    left_over = len(recorded) - len(MONTAGES[best])
    return best if held and left_over < len(recorded_C) - len(recorded) else ALL_CHANNELS


def score_examples(scorer: Scorer, examples: store.Examples, title: str | None = None) -> Night:
    """Stages, events and flags of examples; with a ``title`` under a progress bar.

    The steps and their rounding are those of script 3: epochs that it scored get the same scores.
    """
    recorded_C = examples.present.mean(0) >= 0.5  # else lost for most of the night
    montage = nearest_montage(recorded_C, scorer.montages)
    probes = scorer.montages.get(montage, scorer.probes)
    present_NC = examples.present & np.isin(np.arange(N_CHANNELS), MONTAGES[montage])
    features, found = embed_night(scorer, montage, examples, present_NC, title)
    density = scorer.basis.density
    distance_N = density.distance(features[scorer.basis.pooling])
    distance_N = distance_N / density.threshold(scorer.far_share)
    logits = {}
    for read_out, tasks in tasks_by_features({t: scorer.read_outs[t] for t in probes}).items():
        x_NF = features[read_out.pooling]
        if read_out.normalise is not None:
            parts = split_layer(read_out.pooling)[0].split("+")
            lengths = [scorer.model.n_features(part) for part in parts]
            x_NF = night_rows(x_NF, lengths, present_NC, read_out.normalise)
        linears = {task: probes[task].linear for task in tasks}
        if montage == ALL_CHANNELS:  # together, as script 3 reads them: the same to the last bit
            logits |= predict_features(x_NF, linears)
        else:
            logits |= {task: linear.logits(x_NF) for task, linear in linears.items()}
    prob = {task: probe.probabilities(logits[task]) for task, probe in probes.items()}
    called = {task: probe.decide(prob[task]) for task, probe in probes.items()}
    scored = {task: task_labels(examples.labels, task) for task in TASKS}
    scored = scored if (scored["sleep"] >= 0).any() else None
    without = missing_sensors(recorded_C)
    found = {task: events for task, events in found.items() if task not in without}
    told = {"found": found, "not_counted": without}
    return Night(examples.onsets_s, prob, called, distance_N, scored, montage, **told)


def embed_night(
    scorer: Scorer,
    montage: str,
    examples: store.Examples,
    present_NC: np.ndarray,
    title: str | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features of a night by pooling, (N, F) rounded as script 3 keeps them, and single events.

    Where the file of probes has single events for other montages alone there are none: probes
    of epochs know this montage and are the better witness.
    """
    events, found = scorer.event_probes, {}
    single = {} if events is None else events.by_montage.get(montage, {})
    poolings = {scorer.basis.pooling, *(each.pooling for each in scorer.read_outs.values())}
    wanted = [*sorted(poolings), *([events.pooling] if single else [])]
    features = embeddings.embed_arrays(
        scorer.model, examples.signals, present_NC, wanted, scorer.compute, title
    )
    if single:
        seconds_NF = features.pop(events.pooling)
        found = find_events(single, seconds_NF, present_NC, examples.onsets_s)
    rounded = {name: embeddings.as_float16(x_NF) for name, x_NF in features.items()}
    return {name: x_NF.astype(np.float32) for name, x_NF in rounded.items()}, found


def missing_sensors(recorded_C: np.ndarray) -> dict[str, str]:
    """By task why its events are not counted; ``recorded_C``: True for a recorded channel."""
    return {
        task: f"no {' or '.join(groups)} recorded"
        for task, groups in SENSORS.items()
        if not any(recorded_C[list(CHANNEL_GROUPS[group])].any() for group in groups)
    }


def find_events(
    step_probes: Mapping[str, StepProbe],
    seconds_NF: np.ndarray,
    present_NC: np.ndarray,
    onsets_s: np.ndarray,
) -> dict[str, np.ndarray]:
    """Single events by task, (n, 3): onset and end in s, mean probability of their steps.

    ``seconds_NF``: features of the pooling "seconds".
    """
    x_NMF = steps.token_steps(seconds_NF)
    x_SF = steps.night_steps(x_NMF, steps.present_features(present_NC, x_NMF), onsets_s)
    onset_S, found = steps.step_onsets(onsets_s), {}
    for task, probe in step_probes.items():
        prob_S = probe.probabilities(x_SF)
        spans = find_spans(prob_S, onset_S, STEP_S, probe.rule)
        means = [prob_S[(onset_S >= on_s) & (onset_S < end_s)].mean() for on_s, end_s in spans]
        found[task] = np.column_stack([spans, np.array(means)])
    return found


# ------------------------------------------------------------------ its rows
def event_rows(night: Night) -> list[tuple[float, float, str, float]]:
    """(onset_s, duration_s, task, probability) of its events, in order of time.

    Single ones where the probes find these; else runs of epochs that were called.
    """
    rows = []
    for task in EVENT_TEXTS:
        if task in night.found:
            rows += [(on, end - on, task, p) for on, end, p in night.found[task].tolist()]
        elif task in night.called and task not in night.not_counted:
            for on_s, duration_s, _ in find_runs(night.onsets_s, night.called[task] == 1, task):
                inside_N = (night.onsets_s >= on_s) & (night.onsets_s < on_s + duration_s)
                rows.append((on_s, duration_s, task, float(night.prob[task][inside_N, 1].mean())))
    return sorted(rows)


def annotation_rows(night: Night) -> list[tuple[float, float, str]]:
    """(onset_s, duration_s, text): the notice, a stage each epoch, events, runs of flags."""
    rows = [(0.0, 0.0, NOTICE)]
    if "sleep" in night.called:
        for onset_s, stage in zip(night.onsets_s, night.called["sleep"], strict=True):
            rows.append((float(onset_s), EPOCH_S, f"Sleep stage {STAGES[stage]}"))
    rows += [(on, duration, EVENT_TEXTS[task]) for on, duration, task, _ in event_rows(night)]
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
