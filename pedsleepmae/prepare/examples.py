"""One recording to its examples: channels read, resampled, cut at the scored epochs, labelled."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from pedsleepmae.channels import (
    CHANNELS,
    EPOCH_S,
    EPOCH_SAMPLES,
    N_CHANNELS,
    RATE_HZ,
    Absent,
    Channel,
    Source,
    canonical_label,
    check_named,
    resolve_channels,
)
from pedsleepmae.errors import SettingsError, bounded
from pedsleepmae.prepare import annotations, readings
from pedsleepmae.prepare.annotations import (
    EpochLabels,
    Scoring,
    grid_labels,
    label_epochs,
    trim_wake,
    within_lights,
)
from pedsleepmae.prepare.channel_reader import MOVED_BY_BREATHS, UnusableRecording, cut_channel
from pedsleepmae.prepare.layouts import Study, find_scoring, read_lights
from pedsleepmae.prepare.outcome import Outcome
from pedsleepmae.prepare.recordings import Recording, RecordingError, open_edf
from pedsleepmae.prepare.signals import (
    choose_standard,
    robust_standard,
    standardise,
)
from pedsleepmae.prepare.text_annotations import AnnotationTable
from pedsleepmae.store import Examples
from pedsleepmae.tasks import LABELS

SLEEP_WITH_EVENTS_S = 3600.0  # healthy children have some 5 to 10 arousals an hour
Standards = Mapping[str, tuple[float, float]]  # channel -> (mean, sd), for scaling "fitted"


@dataclass
class ReadSettings:
    """How a recording's channels and epochs are chosen and scaled, in script 1 and script 4."""

    stand_ins: dict[str, list[str]] = field(default_factory=dict)
    """For each of the 16 channels, labels of other signals that may take its place when it is
    absent, first choice first, such as {"EEG C3-M2": ["EEG Fpz-Cz"]}; noted in what is written."""
    prefer: dict[str, list[str]] = field(default_factory=dict)
    """For each of the 16 channels, labels of which the first that carries signal in a recording is
    taken, before the channel itself, such as {"C-FLOW": ["Resp PTAF", "Resp Airflow"]}: for flow
    and effort one that shows breaths. Such a channel of arbitrary gain is scaled by the recording
    whatever scaling says, for its sensors have no scale in common."""
    units: dict[str, str] = field(default_factory=dict)
    """The unit (V, mV, uV, nV) that the numbers of a voltage count, where the files say another: by
    a signal's label, one of the 16 channels, or EEG, EOG, EMG, such as {"EEG": "uV"}."""
    min_channels: int = bounded(4, 1, N_CHANNELS)
    """A recording with fewer of the 16 channels is refused, with the reason."""
    wake_margin_min: float | None = bounded(None, 0, 1440)
    """Of scored epochs, keep at most this much wake before the first and after the last sleep
    epoch, minutes; none: keep all that is scored."""
    scaling: Literal["policy", "robust", "original"] = "policy"
    """Standardisation, as the encoder's training data had it (see script 1)."""
    clip: float = bounded(20.0, 0, 60_000)
    """Standardised values are clipped to +- this (0: never); arbitrary-gain channels only."""
    annotation_table: AnnotationTable = field(default_factory=AnnotationTable)

    def check(self) -> None:
        try:
            check_named(self.stand_ins, self.units, self.prefer)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        self.annotation_table.check()

    def text_table(self) -> AnnotationTable | None:
        """How annotations in text read; None: nothing of it is set, and a .tsv is NCH's."""
        return None if self.annotation_table == AnnotationTable() else self.annotation_table

    def prefers(self, channel: Channel) -> bool:
        """True when ``prefer`` names the channel, in any spelling."""
        return canonical_label(channel.name) in map(canonical_label, self.prefer)


@dataclass
class ExampleSettings(ReadSettings):
    """Those settings of script 1 on which the examples of a recording depend."""

    layout: Literal["nch", "nsrr", "sleep_edf", "table"] = "nch"
    """nch: <patient>_<study>.edf with .tsv; nsrr: EDF with -nsrr.xml (CHAT); sleep_edf: PSG and
    Hypnogram EDF+ pairs; table: the recordings that paths.table lists, under any names."""
    min_overlap_s: float = bounded(0.0, 0, below=EPOCH_S)
    """An event marks an epoch when they share more than this, seconds."""
    keep_unscored: bool = False
    """Keep epochs staged `?`, with sleep_label -1."""
    scaling: Literal["policy", "robust", "original", "fitted"] = "policy"
    """policy: population statistics for channels with a physical scale, robust statistics of the
    recording for those of arbitrary gain. robust: the recording's own for EEG, EOG and EMG too, so
    that an amplifier's gain drops out. original: the authors' table for all (their checkpoints
    need it). fitted: mean and sd of the training patients."""

    def text_table(self) -> AnnotationTable | None:
        return self.annotation_table if self.layout == "table" else super().text_table()


# One recording's own failures beside the named ones; a defect of ours may hide behind them.
UNFORESEEN = (OSError, MemoryError, ValueError, ArithmeticError, LookupError, TypeError)


# ------------------------------------------------------------------ one recording
def read_study(study: Study, settings: ExampleSettings) -> tuple[Recording, EpochLabels]:
    """A study's recording and the labels of its epochs.

    Raises RecordingError, AnnotationError or UnusableRecording with the reason.
    """
    recording = open_edf(study.edf)
    scoring = find_scoring(study.edf, study.annotations, settings.text_table())
    if scoring is None:
        raise UnusableRecording("no annotations named, none beside it, and no stages in it")
    if any(study.lights):
        scoring = within_lights(scoring, *read_lights(study))
        if not (scoring.stages >= 0).any():
            raise UnusableRecording("no scored epoch between lights off and lights on")
    labels = choose_epochs(
        recording,
        scoring,
        wake_margin_min=settings.wake_margin_min,
        min_overlap_s=settings.min_overlap_s,
        keep_unscored=settings.keep_unscored,
    )
    return recording, labels


def choose_epochs(
    recording: Recording, scoring: Scoring, *, wake_margin_min: float | None, **rule
) -> EpochLabels:
    """Labels of the scored epochs that are kept; remarks on the scoring go to the recording's.

    ``rule``: that of :func:`label_epochs`. Raises UnusableRecording when there are none.
    """
    recording.remarks.extend(scoring.remarks)
    _tell_outside(recording, scoring)
    n_asleep = int((scoring.stages > 0).sum())
    if not scoring.events and n_asleep * EPOCH_S >= SLEEP_WITH_EVENTS_S:
        recording.remarks.append(
            f"no event is scored in {n_asleep * EPOCH_S / 3600:.1f} h of sleep: its epochs count "
            "as without events, though perhaps nobody looked for any"
        )
    labels = label_epochs(scoring, recording.duration_s, **rule)
    if wake_margin_min is not None:
        labels = trim_wake(labels, wake_margin_min)
    if not len(labels.onsets_s):
        n_scored = int((scoring.stages >= 0).sum())
        raise UnusableRecording(
            f"no scored 30-s epoch inside the recording ({n_scored} scored stage rows, "
            f"{'; '.join([f'{recording.duration_s:.0f} s recorded', *scoring.remarks])})"
        )
    return labels


def _tell_outside(recording: Recording, scoring: Scoring) -> None:
    """Tell scored epochs and events that lie outside the recording.

    Where most do, the annotations may be another recording's, or their times no seconds; but a
    recording may also be a piece of the night that was scored, so the others are kept.
    """
    onsets_s = scoring.stage_onsets_s[scoring.stages >= 0]
    n_outside = int((~annotations.is_inside(onsets_s, recording.duration_s)).sum())
    if n_outside:
        told = f"{n_outside} scored epochs left out that do not lie inside the recording"
        if 2 * n_outside > len(onsets_s):
            told += (
                f", and only {len(onsets_s) - n_outside} do: are the annotations another "
                "recording's, or their times no seconds?"
            )
        recording.remarks.append(told)
    starts_s = [event.onset_s for event in scoring.events]
    ends_s = [event.onset_s + event.duration_s for event in scoring.events]
    if n := sum(e < 0 or s > recording.duration_s for s, e in zip(starts_s, ends_s, strict=True)):
        recording.remarks.append(f"{n} scored events lie outside the recording and mark nothing")


def cut_channels(
    recording: Recording, onsets_s: np.ndarray, settings: ReadSettings
) -> Iterator[tuple[Source, np.ndarray, dict[str, float]] | Absent]:
    """The 16 channels one after the other, each as :func:`first_usable` finds its epochs."""
    return first_usable(recording, settings, partial(cut_channel, onsets_s=onsets_s))


def first_usable(
    recording: Recording,
    settings: ReadSettings,
    read: Callable[[Recording, Channel, Source, float], tuple[np.ndarray, dict[str, float]]],
) -> Iterator[tuple[Source, np.ndarray, dict[str, float]] | Absent]:
    """For each of the 16 channels the first source that ``read`` can use, samples and quality.

    Which source that is shows only when its samples are read: of two signals with one label the
    first may be flat, an oximeter may count nonsense. Of the sensors that the settings prefer for
    flow or effort the first that breathes for most of the time is taken; failing that the first
    that breathes at all. What was passed over goes to the recording's remarks, and that another
    signal of the same label holds something else.
    """
    named = (settings.stand_ins, settings.units, settings.prefer)
    for c, source in enumerate(resolve_channels(recording.signals, *named)):
        channel = CHANNELS[c]
        must_breathe = settings.prefers(channel) and channel in MOVED_BY_BREATHS
        passed_over = []
        for breathing in readings.BREATHING if must_breathe else (0.0,):
            found, reasons = _first_source(recording, c, source, named, read, breathing)
            passed_over = passed_over or reasons
            if not isinstance(found, Absent):
                break
        if settings.prefers(channel) and passed_over and not isinstance(found, Absent):
            recording.remarks.append(
                f"{channel.name} is from {found[0].origin}: {'; '.join(passed_over)}"
            )
        if not isinstance(found, Absent):
            recording.remarks.extend(
                f"{channel.name} is from the first of several different signals labelled "
                f"{recording.signals[i].label} that holds something"
                for i in (found[0].plus, found[0].minus)
                if i is not None and recording.has_rival(i)
            )
        yield found


def _first_source(
    recording: Recording, c: int, source: Source | Absent, named: tuple, read: Callable, breathing
) -> tuple[tuple[Source, np.ndarray, dict[str, float]] | Absent, list[str]]:
    """Channel ``c`` from ``source`` or the next that ``read`` can use; why not from others."""
    signals, reasons = list(recording.signals), []
    while isinstance(source, Source):
        try:
            return (source, *read(recording, CHANNELS[c], source, breathing)), reasons
        except UnusableRecording as error:
            reasons.append(str(error))
            signals[source.plus] = replace(signals[source.plus], problem="holds no signal")
            source = resolve_channels(signals, *named)[c]
    return Absent("; ".join(reasons) or source.reason), reasons


def build_examples(
    study: Study, settings: ExampleSettings, fitted: Standards | None = None
) -> tuple[Examples, Outcome]:
    """A study's standardised examples and what is to be told of it.

    Raises RecordingError, AnnotationError or UnusableRecording with the reason.
    """
    recording, labels = read_study(study, settings)
    return make_examples(recording, labels, settings, fitted, study.patient_id, study.study_id)


def make_examples(
    recording: Recording,
    labels: EpochLabels,
    settings: ReadSettings,
    fitted: Standards | None = None,
    patient_id: int = 0,
    study_id: int = 0,
) -> tuple[Examples, Outcome]:
    """Standardised examples of a recording at the onsets of ``labels``, in memory.

    ``fitted``: what scaling "fitted" takes. Raises UnusableRecording with the reason.
    """
    n = len(labels.onsets_s)
    signals_NCT = np.zeros((n, N_CHANNELS, EPOCH_SAMPLES), np.float16)
    center, scale = np.zeros(N_CHANNELS), np.ones(N_CHANNELS)
    present_NC = np.zeros((n, N_CHANNELS), bool)
    origins, absent, quality = {}, {}, {}
    found_in_turn = cut_channels(recording, labels.onsets_s, settings)
    for c, (channel, found) in enumerate(zip(CHANNELS, found_in_turn, strict=True)):
        if isinstance(found, Absent):
            absent[channel.name] = found.reason
            continue
        source, x_NT, quality[channel.name] = found
        center[c], scale[c] = _standard_of(channel, x_NT, settings, fitted)
        standardise(channel, x_NT, center[c], scale[c], settings.clip, out_NT=signals_NCT[:, c])
        origins[channel.name] = source.origin
        present_NC[:, c] = True  # but in epochs that miss most of it
        if quality[channel.name]["missing"]:
            present_NC[:, c] = np.isnan(x_NT).mean(axis=1) <= readings.MOST_MISSING
            signals_NCT[~present_NC[:, c], c] = 0
    if len(origins) < settings.min_channels:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(absent.items())[:3])
        raise UnusableRecording(
            f"only {len(origins)} channels, min_channels is {settings.min_channels} ({reasons})"
        )
    codes = {"sleep": labels.sleep} | labels.events  # written, and counted for studies.csv
    examples = Examples(
        signals=signals_NCT,
        labels=codes,
        patient_ids=np.full(n, patient_id),
        study_ids=np.full(n, study_id),
        onsets_s=labels.onsets_s,
        present=present_NC,
        center=np.tile(center, (n, 1)),
        scale=np.tile(scale, (n, 1)),
    )
    outcome = Outcome(
        patient_id,
        study_id,
        recording.name,
        onsets_s=labels.onsets_s.tolist(),
        duration_s=recording.duration_s,
        rates_hz=native_rates(recording),
        channels=origins,
        absent=absent,
        quality=quality,
        label_counts={k: dict(Counter(map(str, sorted(codes[k].tolist())))) for k in LABELS},
        event_counts=labels.n_events,
        events=annotations.named_events(labels.scored),
        remarks=recording.remarks,
        simulated=recording.simulated,
    )
    return examples, outcome


def _standard_of(
    channel: Channel, x_NT: np.ndarray, settings: ReadSettings, fitted: Standards | None
) -> tuple[float, float]:
    """(center, scale) of a channel: of one whose sensor the settings prefer, the recording's own.

    A table of C-FLOW in l/min says nothing of a cannula in volts, and a mean over the two nothing
    of either. The epochs with breaths give it, for one that fell off leaves noise for hours.
    """
    if not (settings.prefers(channel) and channel.scaling == "robust"):
        return choose_standard(channel, x_NT, settings.scaling, fitted)
    breathing_N = np.isfinite(x_NT).all(axis=1)
    if channel in MOVED_BY_BREATHS:
        breathing_N &= readings.shows_breaths(np.nan_to_num(x_NT), RATE_HZ)
    return robust_standard(x_NT[breathing_N] if breathing_N.any() else x_NT)


def examples_to_score(
    recording: Recording,
    scoring: Scoring | None,
    settings: ReadSettings,
    grid_offset_s: float = 0.0,
) -> tuple[Examples, Outcome]:
    """Examples of a recording with a scoring, or without: then on a 30-s grid from an offset.

    Raises RecordingError when the recording gives none.
    """
    if scoring is None:
        labels = grid_labels(recording.duration_s, grid_offset_s)
        if not len(labels.onsets_s):
            raise RecordingError(
                f"{recording.name}: no whole 30-s epoch from second {grid_offset_s:g} on "
                f"({recording.duration_s:g} s recorded)"
            )
    else:
        try:
            labels = choose_epochs(recording, scoring, wake_margin_min=settings.wake_margin_min)
        except UnusableRecording as error:
            remedy = "set use_annotations to false to pass the annotations over"
            raise RecordingError(f"{recording.name}: {error}; {remedy}") from error
    try:
        return make_examples(recording, labels, settings)
    except UnusableRecording as error:
        raise RecordingError(f"{recording.name}: {error}") from error


def native_rates(recording: Recording) -> list[float]:
    """Sampling rates of a recording's signals, Hz, each once."""
    return sorted({round(signal.rate_hz, 5) for signal in recording.signals})
