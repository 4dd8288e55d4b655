"""What became of one recording: a row of studies.csv, and the state of a finished one."""

from dataclasses import dataclass, field

from pedsleepmae.errors import printable


@dataclass(frozen=True)
class Outcome:
    """What became of one recording; a row of studies.csv, and the state of a finished one.

    ``channels``: for each of the 16, where it comes from ("" when absent) and why it is absent.
    ``quality``: by channel, the shares of signals.ChannelQuality. ``label_counts``: by label, the
    number of epochs of each code. ``event_counts``: by kind, the scored events that begin in sleep.
    ``events``: all scored ones as they stand: (kind of EVENT_NAMES, onset_s, duration_s).
    """

    patient_id: int | None
    study_id: int | None
    recording: str
    reason: str = ""
    fingerprint: str = ""
    onsets_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    rates_hz: list[float] = field(default_factory=list)
    channels: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    event_counts: dict[str, int] = field(default_factory=dict)
    events: list[tuple[str, float, float]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    simulated: bool = False

    def __post_init__(self):
        """What a file says or is called can be printed wherever an outcome is told."""
        for name in ("recording", "reason"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        object.__setattr__(self, "remarks", [printable(remark) for remark in self.remarks])

    @property
    def usable(self) -> bool:
        return not self.reason

    @property
    def key(self) -> str:
        return f"{self.patient_id}_{self.study_id}"

    @property
    def n_examples(self) -> int:
        return len(self.onsets_s)
