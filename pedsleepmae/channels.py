"""The 16 channels in their order: which signals of a recording they come from, unit, scaling.

Facts only, and the rule that finds them: labels in, sources out. The labels are those of the NCH
Sleep DataBank (151 distinct ones, two montages, 12 referential files, one ten-twenty file) and of
CHAT; what stands in for a channel beyond them is the user's to say, in the settings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

EPOCH_S = 30.0
RATE_HZ = 128.0
EPOCH_SAMPLES = 3840


@dataclass(frozen=True)
class Channel:
    """One of the 16.

    A bipolar channel is known by its electrodes (``pairs``, first choice first: plus, minus), any
    other by its ``names``. ``mean`` and ``sd`` are the original authors' statistics over NCH
    (volts; % for SPO2; the file's own unit for the rest). ``scaling``: "population" where the
    signal has a physical scale, "robust" where the gain of the recording is arbitrary.
    """

    name: str
    mean: float
    sd: float
    kind: Literal["voltage", "percent", "arbitrary"]
    pairs: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    # Of EEG, EOG and EMG: quartile distance of a usual night over that of a normal distribution of
    # this sd; the median of 34 simulated children. With scaling "robust" every night has it.
    usual_spread: float = 1.0

    @property
    def scaling(self) -> str:
        return "robust" if self.kind == "arbitrary" else "population"


def _bipolar(name: str, mean: float, sd: float, usual_spread: float, *pairs: str) -> Channel:
    of_pairs = tuple(tuple(pair.split("-")) for pair in pairs)
    return Channel(name, mean, sd, "voltage", of_pairs, usual_spread=usual_spread)


def _sensor(name: str, mean: float, sd: float, *names: str, kind="arbitrary") -> Channel:
    return Channel(name, mean, sd, kind, names=names)


_CHIN = ("CHIN1-CHIN2", "CHIN1-CHIN3", "CHIN3-CHIN2", "LCHIN-RCHIN", "LCHIN-CCHIN", "RCHIN-CCHIN")
_OXIMETER = ("SPO2", "OSAT", "SAO2", "SA02", "SPO2NONIN", "SAO2NONIN", "SA02NONIN", "SAO2NELLCOR")
_OXIMETER += ("SA02NELLCOR", "SAO2MASIMO", "SA02MASIMO")
_ABDOMEN = ("ABDOMINAL", "ABDOMEN", "ABD")
CHANNELS = (
    _bipolar("EEG C3-M2", -1.0833859626641414e-06, 0.00014558984976066646, 0.186, "C3-M2"),
    _bipolar("EEG O1-M2", -8.291726672410153e-07, 0.0001521728413081719, 0.141, "O1-M2"),
    _bipolar("EEG O2-M1", -1.811740748050755e-06, 0.00019019911218765497, 0.105, "O2-M1"),
    _bipolar("EEG CZ-O1", -1.1433502234562694e-06, 0.00019669688849956329, 0.112, "CZ-O1"),
    _bipolar("EEG C4-M1", -1.6688211040158835e-06, 0.00017619468363137838, 0.155, "C4-M1"),
    _bipolar("EEG F4-M1", -1.5857696126462527e-06, 0.00018215570717133818, 0.130, "F4-M1"),
    _bipolar("EEG F3-M2", -1.9827185653729583e-06, 0.00018802898586059032, 0.127, "F3-M2"),
    _sensor("CAPNO", -60742.332755499374, 233451.1131535057, "CAPNO", "CAP"),
    _sensor("SPO2", 96.31396782182607, 7.725897863665246, *_OXIMETER, kind="percent"),
    _sensor("RESP THORACIC", -2.0846817681959654e-06, 0.00016909336189931072, "THORACIC", "CHEST"),
    _sensor("RESP ABDOMINAL", 1.9974928520326017e-06, 0.00027196510089485973, *_ABDOMEN),
    _sensor("SNORE", 2794.962148942422, 17223.129321325203, "SNORE", "SNORE 2", "SNORE2"),
    _sensor("C-FLOW", 41.744308743949546, 1685.1343182523683, "C-FLOW"),
    _bipolar("EOG LOC-M2", -8.659640358491685e-07, 0.0001433352194222531, 0.111, "E1-M2"),
    _bipolar("EOG ROC-M1", -1.1147240872400516e-06, 0.00017242186435064409, 0.091, "E2-M1"),
    _bipolar("EMG CHIN1-CHIN2", -1.943019690822747e-06, 0.00025016084927698715, 0.023, *_CHIN),
)
CHANNEL_NAMES = tuple(channel.name for channel in CHANNELS)
N_CHANNELS = len(CHANNELS)
CHANNEL_GROUPS = {  # positions of the channels that are reported together
    "EEG": (0, 1, 2, 3, 4, 5, 6),
    "EOG": (13, 14),
    "EMG": (15,),
    "effort": (9, 10),
    "flow": (12,),
    "snore": (11,),
    "CO2": (7,),
    "SpO2": (8,),
}

ALL_CHANNELS = "all channels"
_HEAD = (0, 1, 13, 15)  # two EEG, one EOG, chin
MONTAGES = {  # of laboratories: which of the 16 there are, in their order
    ALL_CHANNELS: range(N_CHANNELS),
    "no EEG": range(7, N_CHANNELS),
    "one EEG": (0, *range(7, N_CHANNELS)),
    "no chin": range(15),
    "no flow": (*range(12), 13, 14, 15),
    "no effort": (*range(9), *range(11, N_CHANNELS)),
    "two EEG, one EOG, chin, flow": (*_HEAD, 12),  # as Sleep-EDF has it
    "effort, flow, SpO2": (8, 9, 10, 12),  # a test at home
    "SpO2 alone": (8,),
}

# Other spellings of an electrode: A1/A2 for the mastoids, LOC/ROC for the eyes, CHAT's typing.
ELECTRODE_SYNONYMS = {"A1": "M1", "A2": "M2", "LOC": "E1", "ROC": "E2", "RCHIIN": "RCHIN"}
# The word that Natus and Luna put in front says nothing about the signal: NCH has `EEG Snore`,
# `EEG LOC-M2`, `EEG Chin1-Chin2` and `EEG Abd`.
_TYPE_WORD = re.compile(r"^(EEG|EOG|EMG|RESP) (?=\S)")
# Two electrodes in the spellings of other programs: C3M2, C3 A2, EEG(C3-M2), EEG:C3-A2, EEG-C3_M2.
_PAIR = re.compile(
    r"(?:EEG|EOG|EMG)?[ .:(-]*(CZ|[CFO][34]|O[12]|E[12]|[LR]OC|CHIN ?[123])\)?[ -]*\(?"
    r"(CZ|O1|[AM][12]|CHIN ?[123])\)?"
)
_REFERENCE_WORD = re.compile(r"-(REF|FPZ)$")
VOLTS = {"nV": 1e-9, "uV": 1e-6, "mV": 1e-3, "V": 1.0}


@dataclass(frozen=True)
class SignalInfo:
    """One signal of a recording, as its header describes it.

    ``problem`` says why its samples cannot be used (undefined calibration, no samples), else "".
    """

    label: str
    unit: str
    rate_hz: float
    physical_min: float
    physical_max: float
    digital_min: float
    digital_max: float
    problem: str = ""

    @property
    def step(self) -> float:
        """Physical size of one digital step (negative where the calibration is inverted)."""
        return (self.physical_max - self.physical_min) / (self.digital_max - self.digital_min)


@dataclass(frozen=True)
class Source:
    """Where a channel comes from: factor x (signal ``plus`` - signal ``minus``).

    ``minus`` is None for a channel recorded as such. ``factor`` holds the sign and the conversion
    to volts (voltages) or leaves the file's unit (the rest). ``origin`` is what studies.csv says.
    """

    plus: int
    minus: int | None
    factor: float
    rate_hz: float
    unit: str
    origin: str


@dataclass(frozen=True)
class Absent:
    """A channel that this recording does not offer, and why."""

    reason: str


def canonical_label(label: str) -> str:
    """A signal's label without case, blanks, underscores and the type word: EEG_c3-m2 -> C3-M2.

    Two of the electrodes are a pair in any spelling: EEG(C3A2) -> C3-A2.
    """
    text = " ".join(label.replace("_", " ").upper().split())
    text = re.sub(r" ?[-:/\u2010-\u2015\u2212] ?", "-", text)
    if pair := _PAIR.fullmatch(text):
        return "-".join(electrode.replace(" ", "") for electrode in pair.groups())
    return _TYPE_WORD.sub("", text)


def check_named(
    stand_ins: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    prefer: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Raise ValueError for labels of none of the 16 channels, or a unit that is no voltage."""
    for setting, named in (("stand_ins", stand_ins), ("prefer", prefer)):
        for name in named or {}:
            if canonical_label(name) not in map(canonical_label, CHANNEL_NAMES):
                names = ", ".join(CHANNEL_NAMES)
                raise ValueError(
                    f"{setting}: {name!r} is none of the 16 channels; they are {names}"
                )
    for name, unit in (units or {}).items():
        if unit_in_volts(unit) is None:
            raise ValueError(f"units: {unit!r} of {name!r} is none of {', '.join(VOLTS)}")


def resolve_channels(
    signals: Sequence[SignalInfo],
    stand_ins: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    prefer: Mapping[str, Sequence[str]] | None = None,
) -> list[Source | Absent]:
    """Source of each of the 16 channels, in their order.

    Tried in this order: what ``prefer`` names for it, the channel as it was recorded (also with
    swapped electrodes: sign -1), the difference of two signals of one reference, whatever it is
    (C3-AVG and M2-AVG), the stand-ins that the settings name. Of several signals with one label the
    first usable one is taken. ``units``: by a signal's label, channel or group of channels (EEG,
    EOG, EMG), the unit that a file's numbers count whatever it says. Raises ValueError as
    check_named.
    """
    check_named(stand_ins, units, prefer)
    stand_ins, prefer = _by_channel(stand_ins), _by_channel(prefer)
    named: dict[str, list[int]] = {}
    for i, signal in enumerate(signals):
        named.setdefault(canonical_label(signal.label), []).append(i)
    units = {canonical_label(name): unit for name, unit in (units or {}).items()}
    return [
        _resolve_channel(
            channel,
            signals,
            named,
            prefer.get(canonical_label(channel.name), []),
            stand_ins.get(canonical_label(channel.name), []),
            units,
        )
        for channel in CHANNELS
    ]


def _by_channel(labels: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    """A setting's labels by the canonical name of their channel."""
    return {canonical_label(name): list(each) for name, each in (labels or {}).items()}


def _resolve_channel(channel, signals, named, prefer, stand_ins, units) -> Source | Absent:
    problems = []
    for plus, minus, sign, prefix in _candidates(channel, named, prefer, stand_ins):
        source = _source(channel, signals, plus, minus, sign, prefix, units)
        if isinstance(source, Source):
            return source
        problems.append(source.reason)
    if problems:
        return Absent("; ".join(dict.fromkeys(problems)))
    own = channel.names or [f"{plus}-{minus}" for plus, minus in channel.pairs]
    return Absent(f"no signal named {' or '.join(dict.fromkeys([*prefer, *own]))}")


def _candidates(
    channel: Channel,
    named: dict[str, list[int]],
    prefer: Sequence[str],
    stand_ins: Sequence[str],
):
    """(plus, minus, sign, word for `origin`) of every way to this channel, best first."""
    electrodes, referential = {}, {}
    for label, places in named.items():
        electrodes.setdefault(_electrodes(label), []).extend(places)
        if len(_electrodes(label)) == 1:  # its reference drops out of a difference if it is one
            reference = _REFERENCE_WORD.search(label)
            signals_of = referential.setdefault(_electrodes(label)[0], [])
            signals_of.extend((place, reference and reference[1]) for place in places)

    def labelled(label: str, word: str = ""):
        for place in named.get(canonical_label(label), ()):
            yield place, None, 1, word

    def recorded(plus: str, minus: str, word: str = ""):
        for place in electrodes.get((plus, minus), ()):
            yield place, None, 1, word
        for place in electrodes.get((minus, plus), ()):
            yield place, None, -1, word

    def subtracted(plus: str, minus: str, word: str = ""):
        for first, reference in referential.get(plus, ()):
            for second, other_reference in referential.get(minus, ()):
                if reference == other_reference or not (reference and other_reference):
                    yield first, second, 1, word
        for pair, places in electrodes.items():  # any other reference drops out of the difference
            if len(pair) == 2 and pair[0] == plus:
                for second in electrodes.get((minus, pair[1]), ()):
                    yield from ((first, second, 1, word) for first in places)

    for label in prefer:
        pair = _electrodes(canonical_label(label))
        is_own = canonical_label(label) in channel.names or pair in channel.pairs
        word = "" if is_own else "preferred "
        if channel.pairs and len(pair) == 2:
            yield from recorded(*pair, word)
            yield from subtracted(*pair, word)
        else:
            yield from labelled(label, word)
    for name in channel.names:
        yield from labelled(name)
    for pair in channel.pairs:
        yield from recorded(*pair)
    for pair in channel.pairs:
        yield from subtracted(*pair)
    for label in stand_ins:
        yield from labelled(label, "stand-in ")


def _electrodes(label: str) -> tuple[str, ...]:
    """Electrodes of a canonical label: C3-A2 -> (C3, M2); C3-REF -> (C3,)."""
    parts = _REFERENCE_WORD.sub("", label).split("-")
    return tuple(ELECTRODE_SYNONYMS.get(part, part) for part in parts)


def _source(channel, signals, plus, minus, sign, prefix, units) -> Source | Absent:
    parts = [signals[plus]] + ([signals[minus]] if minus is not None else [])
    stated = parts[0].unit
    parts = [replace(part, unit=_unit_of(part, channel, units)) for part in parts]
    for part in parts:
        if part.problem:
            return Absent(f"{part.label}: {part.problem}")
    if len({part.rate_hz for part in parts}) > 1:
        rates = " and ".join(f"{part.rate_hz:.8g} Hz" for part in parts)
        return Absent(f"{parts[0].label} and {parts[1].label} have different rates ({rates})")
    scales = [_to_volts(part) for part in parts]
    if channel.kind == "voltage":
        if None in scales:
            bad = parts[scales.index(None)]
            return Absent(f"{bad.label}: unit {bad.unit!r} is no voltage")
        if len({factor for factor, _ in scales}) > 1:
            return Absent(f"{parts[0].label} and {parts[1].label} have different units")
    factor, unit_note = scales[0] or (1.0, "")
    if channel.kind == "arbitrary" and not parts[0].unit:
        factor, unit_note = 1.0, ""  # only voltages are converted; a blank unit says nothing here
    if channel.kind == "percent":
        factor = 1.0  # a voltage-tagged OSAT is judged by its values: see signals.percent_factor
    origin = " - ".join(part.label for part in parts)
    origin = prefix + (f"-({origin})" if sign < 0 else origin)
    if parts[0].unit != stated:
        origin += f" (unit {stated or 'blank'} read as {parts[0].unit})"
    return Source(
        plus=plus,
        minus=minus,
        factor=sign * factor,
        rate_hz=parts[0].rate_hz,
        unit=parts[0].unit,
        origin=origin + (unit_note if channel.kind == "voltage" else ""),
    )


def _unit_of(signal: SignalInfo, channel: Channel, units: Mapping[str, str]) -> str:
    """The unit of a signal: what the settings say of it, of its channel or group, else its own."""
    place = CHANNELS.index(channel)
    group = next(name for name, places in CHANNEL_GROUPS.items() if place in places)
    named = (units.get(canonical_label(name)) for name in (signal.label, channel.name, group))
    return next((unit for unit in named if unit is not None), signal.unit)


def unit_in_volts(unit: str) -> float | None:
    """Volts of a header's unit, None when it is no voltage; the micro sign in any encoding.

    Also where it is written out: "microvolt", "uVolts", "u V".
    """
    # Micro sign and Greek mu, as themselves and as UTF-8 bytes that were read as latin-1.
    for micro in ("\u00c2\u00b5", "\u00ce\u00bc", "\u00b5", "\u03bc"):
        unit = unit.replace(micro, "u")
    unit = "".join(unit.lower().split())
    for word, letter in (("micro", "u"), ("milli", "m"), ("nano", "n")):
        unit = unit.replace(word, letter)
    # "vol" alone: the header's field ends after 8 characters.
    unit = re.sub(r"volts?$|(?<=[unm])vol$", "v", unit)
    return {name.lower(): factor for name, factor in VOLTS.items()}.get(unit)


def _to_volts(signal: SignalInfo) -> tuple[float, str] | None:
    """(factor to volts, remark) of a signal's unit; None when it is no voltage.

    A blank unit is read off the physical range: amplifiers digitise some +-100 uV to +-10 mV, so
    the number tells which of uV, mV and V it counts.
    """
    factor = unit_in_volts(signal.unit)
    if factor is not None:
        return factor, ""
    if signal.unit.strip():
        return None
    largest = max(abs(signal.physical_min), abs(signal.physical_max))
    name = "uV" if largest > 50 else "mV" if largest > 0.05 else "V"
    return VOLTS[name], f" (blank unit, {name} by its range)"
