"""Which unused signals could stand in for absent channels: by their labels and by their looks.

A proposal is for a person to judge and is never used by itself. Its confidence starts at what the
label says (``high``: the same thing under another name; ``likely``: the same kind of signal from
near by, or a word that may mean it; ``guess``) and falls by one step where the look cannot tell, by
two where it speaks against: below ``guess`` nothing is proposed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pedsleepmae.channels import (
    CHANNELS,
    ELECTRODE_SYNONYMS,
    Absent,
    Channel,
    canonical_label,
    resolve_channels,
    unit_in_volts,
)
from pedsleepmae.prepare.looks import SHOWS_BREATH_HZ, Kind, Look, judge

LEVELS = ("guess", "likely", "high")
GUESS, LIKELY, HIGH = range(3)
_FALL = {"agrees": 0, "cannot tell": 1, "speaks against": 2}
_SAID = {"agrees": "", "cannot tell": "not sure: ", "speaks against": "against it: "}

_CHIN = "EMG CHIN1-CHIN2"
# Words of what is none of the 16, though others may stand beside them: `Resp Rate`, `C3 (Imp)`.
_OTHER = re.compile(
    r"\bIMP|^(EEG )?[AM]1?-?[AM]?[12]$|"  # of the leads; the references alone
    r"\bE[CK]G|LEG\b|\bLEG|\bTIB|\bJAMBE|\b[RL]AT\d?\b|\bPLM|\bARM\b|"
    r"RATE\b|\bH ?R\b|\bBPM\b|PULS(?!E? ?OX)|PLETH|\bPPG\b|\bPWA\b|\bPTT\b|STAT\b|QUAL|\bPR\b|"
    r"\bPOS(ITION)?\b|ANGLE|AXIS|ACTIVITY|ELEVATION|\bACC|LIGHT|TEMP|BATT|VOLTAGE|MARKER|EVENT|"
    r"CPAP|MASK|LEAK|TIDAL|LIMITATION|PHASE|\bRIP\b|\bX ?FLOW|\bSUM\b|\bTC ?P?CO2|\bPT?CCO2"
)
_OTHER_UNITS = {"ohm", "kohm", "bpm", "g", "g/s", "lx", "degc", "\u00b0c", "s", "\u00b0"}

# (channel, what such a name is worth, what it says, words): the first that a label holds counts.
_WORDS = tuple(
    (channel, level, meaning, re.compile(pattern))
    for channel, level, meaning, pattern in (
        ("SPO2", HIGH, "an oximeter", r"S[PA][O0]2|\bOSAT|\bSATUR|S\u00c4TTIG|OXIM|PULSE? ?OX"),
        ("CAPNO", LIKELY, "end-tidal CO2, often a number only", r"ET ?CO2|\bEND ?TIDAL"),
        ("CAPNO", HIGH, "CO2", r"CAPNO|\bCAP\b|CO2"),
        ("SNORE", HIGH, "snoring", r"SNOR|PHONO|SCHNARCH|RONFL|RONQ"),
        ("SNORE", LIKELY, "sound", r"\bMICRO|\bMIC\b|AUDIO|SOUND"),
        ("RESP ABDOMINAL", HIGH, "the abdomen", r"ABDO|\bABD|\bVAB\b|\bADDOM|BELLY|BAUCH"),
        ("RESP THORACIC", HIGH, "the thorax", r"THOR|TORAC|\bVTH\b|CHEST"),
        ("RESP THORACIC", LIKELY, "effort, not where", r"\bBELT|\bEFFORT"),
        (
            "C-FLOW",
            HIGH,
            "airflow",
            r"FLOW|NASAL|\bNAS\b|\bPTAF|\bNAF\d?\b|THERM|TERMIST|CANNU?L|NEW AIR",
        ),
        (_CHIN, HIGH, "chin EMG", r"CHIN|SUBMENT|MENTALIS|^EMG ?1?(-(EMG ?2|REF|[AM][12]))?$"),
        (_CHIN, LIKELY, "EMG, not where", r"\bEMG"),
        (_CHIN, LIKELY, "a chin lead of Nox", r"^(1-2|1-F|2-F)$"),
    )
)
_KINDS: dict[str, Kind] = {
    "SPO2": "SPO2",
    "CAPNO": "CO2",
    "SNORE": "SNORE",
    "RESP ABDOMINAL": "effort",
    "RESP THORACIC": "effort",
    "C-FLOW": "flow",
    _CHIN: "EMG",
}

_EYE = re.compile(r"EOG|\bEYE|\b(E[12]|LOC|ROC)\b")
_LEFT = re.compile(r"\bE1\b|\bLOC\b|\bEOG[ -]?(1|L)\b|\bLEOG\b|LEFT")
_RIGHT = re.compile(r"\bE2\b|\bROC\b|\bEOG[ -]?(2|R)\b|\bREOG\b|RIGHT")
_ELECTRODE = re.compile(r"(FP|AF|FC|FT|F|CP|C|TP|T|PO|P|O)(Z|\d{1,2})")  # 10-20 and 10-10
_REGION_OF = dict.fromkeys(("FP", "AF", "FC", "FT", "F"), "frontal")
_REGION_OF |= {"CP": "central", "C": "central", "TP": "temporal", "T": "temporal"}
_REGION_OF |= {"P": "parietal", "PO": "occipital", "O": "occipital"}
_MASTOIDS = ("M1", "M2")


@dataclass(frozen=True)
class Proposal:
    """A signal's label that may stand in for a channel; ``level``: GUESS, LIKELY or HIGH."""

    channel: str
    label: str
    level: int
    why: str

    @property
    def confidence(self) -> str:
        return LEVELS[self.level]


@dataclass(frozen=True)
class _Claim:
    """What a label says: a channel, how surely, in words; ``rank``: the nearer, the smaller."""

    channel: Channel
    level: int
    why: str
    rank: int = 0
    shared: bool = True  # several signals may be proposed for the channel, first choice first


# ------------------------------------------------------------------ one recording
def propose(looks: Sequence[Look], absent: Sequence[str]) -> list[Proposal]:
    """Stand-ins for the ``absent`` channels among signals that nothing uses.

    Each signal stands for one channel at most, the nearest; the surest first. ``looks``: of signals
    with distinct names, in the order of the file.
    """
    channels = [channel for channel in CHANNELS if channel.name in absent]
    found = []
    for place, look in enumerate(looks):
        for claim in _claims(look, channels):
            verdict, seen = judge(look, _kind(claim.channel))
            level = claim.level - _FALL[verdict]
            if verdict == "cannot tell":  # which leaves a guess what it is
                level = max(level, GUESS)
            if level >= GUESS:
                order = (-level, claim.rank, CHANNELS.index(claim.channel), place)
                why = f"{claim.why}; {_SAID[verdict]}{seen}"
                proposal = Proposal(claim.channel.name, look.signal.label, level, why)
                found.append((order, claim.shared, proposal))
    return _one_channel_each([entry[1:] for entry in sorted(found, key=lambda entry: entry[0])])


def _one_channel_each(found: Sequence[tuple[bool, Proposal]]) -> list[Proposal]:
    """Of proposals, the surest first, those to be made: one a signal.

    A guess only for a channel that has nothing better; several for a channel if it may be shared.
    """
    proposals: list[Proposal] = []
    for shared, proposal in found:
        for_it = [p for p in proposals if p.channel == proposal.channel]
        is_late_guess = proposal.level == GUESS and any(p.level > GUESS for p in for_it)
        is_taken = any(p.label == proposal.label for p in proposals)
        if not (is_taken or is_late_guess or (for_it and not shared)):
            proposals.append(proposal)
    return proposals


def _kind(channel: Channel) -> Kind:
    return _KINDS.get(channel.name) or ("EOG" if channel.name.startswith("EOG") else "EEG")


# ------------------------------------------------------------------ what a label says
def _claims(look: Look, channels: Sequence[Channel]) -> Iterator[_Claim]:
    """What a signal could be of the absent ``channels``, by its label; by its look if that is
    unlike all else."""
    signal = look.signal
    words = _plain(signal.label)
    unit = signal.unit.strip().lower().removeprefix("\u00e2")  # a degree sign of UTF-8, as latin-1
    if look.flat or not words or _OTHER.search(words) or unit in _OTHER_UNITS:
        return
    is_voltage = unit_in_volts(signal.unit) is not None or not unit
    # What a channel's own names find was tried before it came to be absent.
    tried = resolve_channels([signal])
    channels = [
        channel
        for channel in channels
        if (is_voltage or channel.kind != "voltage")
        and isinstance(tried[CHANNELS.index(channel)], Absent)
    ]
    for name, level, meaning, pattern in _WORDS:
        if pattern.search(words):
            for channel in channels:
                if channel.name == name:
                    yield _Claim(channel, level, f"its name says {meaning}")
            return
    electrodes = _electrodes(signal.label)
    if _EYE.search(words):
        yield from _eye_claims(words, electrodes, channels)
    elif words.startswith("EEG") or _ELECTRODE.fullmatch(electrodes[0]):
        yield from _brain_claims(electrodes, channels)
    else:
        yield from _look_claims(look, channels)


def _plain(label: str) -> str:
    """A label in capitals, its signs but + and - as blanks: EOG(L) -> EOG L."""
    words = re.sub(r"[^\w+\-]+", " ", label.upper().replace("_", " "))
    return re.sub(r" ?- ?", "-", " ".join(words.split()))


def _electrodes(label: str) -> tuple[str, ...]:
    """EEG Fp1-A1 -> (FP1, M1)."""
    parts = canonical_label(label).split("-")
    return tuple(ELECTRODE_SYNONYMS.get(part, part) for part in parts)


def _eye_claims(words, electrodes, channels) -> Iterator[_Claim]:
    left, right = bool(_LEFT.search(words)), bool(_RIGHT.search(words))
    for name, is_side, other_side, usual_reference in (
        ("EOG LOC-M2", left, right, "M2"),
        ("EOG ROC-M1", right, left, "M1"),
    ):
        channel = next((channel for channel in channels if channel.name == name), None)
        if channel is None:
            continue
        side = "left" if name == "EOG LOC-M2" else "right"
        if is_side and not other_side:
            yield _Claim(channel, HIGH, f"the {side} eye")
        elif left and right:
            yield _Claim(channel, LIKELY, "both eyes in one", 2, shared=False)
        elif other_side:
            continue
        elif usual_reference in electrodes[1:]:
            yield _Claim(channel, LIKELY, f"an EOG against {usual_reference}", 1)
        elif "VERT" in words:
            yield _Claim(channel, GUESS, "a vertical EOG", 4, shared=False)
        else:
            yield _Claim(channel, LIKELY, "an EOG, its side not named", 3, shared=False)


def _brain_claims(electrodes, channels) -> Iterator[_Claim]:
    """Same electrode first, then near by on the same side, then the same region, then any."""
    known = [e for e in electrodes if _ELECTRODE.fullmatch(e)]
    plus, minus = electrodes[0], electrodes[1] if len(electrodes) > 1 else None
    for channel in channels:
        if not channel.name.startswith("EEG"):
            continue
        wanted, reference = channel.pairs[0]
        if reference not in _MASTOIDS:  # CZ-O1: another pair of the same two regions
            if [*map(_region, known)] == [_region(wanted), _region(reference)]:
                yield _Claim(channel, LIKELY, "a bipolar EEG of the same regions", 2, shared=False)
        elif not known:
            yield _Claim(channel, GUESS, "an EEG, its place not named", 6, shared=False)
        elif plus == wanted and minus in _MASTOIDS:
            yield _Claim(channel, HIGH, f"{wanted} against the other mastoid")
        elif plus == wanted:
            yield _Claim(channel, LIKELY, f"{wanted} against another reference", 1)
        elif (_region(plus), _side(plus)) == (_region(wanted), _side(wanted)) and len(known) == 1:
            yield _Claim(channel, LIKELY, f"{plus} is near {wanted}", 2, shared=False)
        elif _region(wanted) in map(_region, known):
            what = "a bipolar EEG" if len(known) > 1 else "an EEG"
            is_near = {_side(wanted), "Z"} & set(map(_side, known))
            where = f"{what} of the same region" if is_near else f"{what} of the other side"
            yield _Claim(channel, LIKELY if is_near else GUESS, where, 3, shared=False)
        else:
            yield _Claim(channel, GUESS, "an EEG of another region", 5, shared=False)


def _region(electrode: str) -> str:
    match = _ELECTRODE.fullmatch(electrode)
    return _REGION_OF[match[1]] if match else ""


def _side(electrode: str) -> str:
    """L, R, or Z on the midline."""
    if not _ELECTRODE.fullmatch(electrode):
        return ""
    return "Z" if electrode.endswith("Z") else "RL"[int(electrode[-1]) % 2]


def _look_claims(look: Look, channels: Sequence[Channel]) -> Iterator[_Claim]:
    """Two looks are like nothing else in a night: an oximeter's, and breath."""
    unit = look.signal.unit.strip()
    if look.percent and look.in_steps and look.low >= 85 and unit in ("%", ""):
        names, what = ("SPO2",), "looks like an oximeter"
    elif look.breath >= 0.8 and look.signal.rate_hz >= SHOWS_BREATH_HZ:
        names, what = ("C-FLOW", "RESP THORACIC", "RESP ABDOMINAL"), "looks like breath"
    else:
        return
    for channel in channels:
        if channel.name in names:
            why = f"no word says so, but it {what}"
            yield _Claim(channel, GUESS, why, 7 + names.index(channel.name), shared=False)


# ------------------------------------------------------------------ several montages
def merge(of_montages: Sequence[Sequence[Proposal]]) -> list[Proposal]:
    """Proposals of several montages in one list, which one settings file can hold.

    Each label once for a channel, as it is surest; where montages differ on the channel, it is a
    guess for all but one.
    """
    everything = [p for proposals in of_montages for p in proposals]
    merged, channel_of = {}, {}
    for p in sorted(everything, key=lambda p: -p.level):
        name = canonical_label(p.label)
        first = channel_of.setdefault(name, p.channel)
        if first != p.channel:
            p = Proposal(p.channel, p.label, GUESS, f"also proposed for {first}; {p.why}")
        merged.setdefault((p.channel, name), p)
    return sorted(merged.values(), key=lambda p: -p.level)
