"""Which words name a scored event: NCH's, NSRR's, and how other programs spell the same.

Names are matched whole, after lower-casing and stripping: technicians' notes such as "not a desat"
or "possible obstructive apnea" contain the words and are no scored events.
"""

import re
import unicodedata
from collections.abc import Mapping

# Scored event -> (label, code), the codes of the original authors. Central and mixed hypopneas,
# which they left out, are hypopneas that are not called obstructive: code 2.
_RESPIRATORY = {
    "central apnea": ("apnea", 1),
    "obstructive apnea": ("apnea", 2),
    "mixed apnea": ("apnea", 3),
    "obstructive hypopnea": ("hypop", 1),
    "hypopnea": ("hypop", 2),
    "central hypopnea": ("hypop", 2),
}
EVENTS = _RESPIRATORY | {
    "mixed hypopnea": ("hypop", 2),
    "oxygen desaturation": ("desat", 1),
    "eeg arousal": ("eeg", 1),
}
# The part of NSRR's EventConcept before "|". Compumedics' kinds of arousal are all EEG arousals.
NSRR_EVENTS = _RESPIRATORY | {
    "spo2 desaturation": ("desat", 1),
    "arousal": ("eeg", 1),
    "asda arousal": ("eeg", 1),
    "spontaneous arousal": ("eeg", 1),
    "arousal resulting from respiratory effort": ("eeg", 1),
    "arousal resulting from chin emg": ("eeg", 1),
    "external arousal": ("eeg", 1),
}
# CHAT scored mixed apneas as `Unsure`; these cohorts of adults, as their files' names begin, mean
# hypopneas of more than 50 %.
UNSURE_IS_HYPOPNEA = ("shhs", "mros", "mesa")
CHAT_EVENTS = NSRR_EVENTS | {"unsure": ("apnea", 3)}

# One spelling of what is written in several, accents taken off: British, German, French, and what
# laboratories say.
_SPELLINGS = {
    **dict.fromkeys(("apnoea", "apnoe", "apnee"), "apnea"),
    **dict.fromkeys(("hypopnoea", "hypopnoe", "hypopnee"), "hypopnea"),
    **dict.fromkeys(("obstruktiv", "obstruktive"), "obstructive"),
    **dict.fromkeys(("zentral", "zentrale", "centrale"), "central"),
    **dict.fromkeys(("gemischt", "gemischte", "mixte"), "mixed"),
    **dict.fromkeys(("desat", "entsattigung"), "desaturation"),
    **dict.fromkeys(("o2", "spo2", "sao2"), "oxygen"),
    **dict.fromkeys(("weckreaktion", "microarousal"), "arousal"),
}
_ANYWHERE = {frozenset(name.split()): event for name, event in EVENTS.items()}
_ANYWHERE |= {
    frozenset(["desaturation"]): ("desat", 1),
    frozenset(["sauerstoffentsattigung"]): ("desat", 1),
    frozenset(["micro", "eveil"]): ("eeg", 1),
}
# What may stand beside "arousal": its cause. A RERA (respiratory effort related) is a respiratory
# event of its own.
_CAUSES = {"eeg", "aro", "spont", "spontaneous", "resp", "res", "respiratory", "asda", "micro"}
_CAUSES |= {"limb", "leg", "movement", "lm", "lml", "lmr", "plm", "plms", "periodic", "snore"}
_CAUSES |= {"external", "standard"}
# Noxturnal: "A. Obstructive", "H. Centrale".
_INITIAL = {re.compile(r"^a\. ?(?=\w)"): "apnea ", re.compile(r"^h\. ?(?=\w)"): "hypopnea "}
# What stands behind an event: the channel of EDF+, and its depth or length ("88%", "- min 88 %").
_CHANNEL = re.compile(r"@@.*")
_SIZE = re.compile(r"[\s,;:(\[-]+(min\.?|nadir|duration:?)? ?\d+([.,]\d+)? ?(%|s|sec)?[)\]]?$")


def spelled_event(text: str) -> tuple[str, int] | None:
    """(label, code) of an event in another spelling than NCH's, the words in any order.

    "Hypopnea - Obstructive", "Central Apnoea", "Arousal (ARO SPONT)", "SpO2 desat 88%"; None for
    any word too many, and for an apnea that is not said to be of any type.
    """
    name = unicodedata.normalize("NFKD", text.lower())
    name = "".join(c for c in name if not unicodedata.combining(c))
    name = _SIZE.sub("", _CHANNEL.sub("", name).strip())
    for initial, word in _INITIAL.items():
        name = initial.sub(word, name)
    words = {_SPELLINGS.get(word, word) for word in re.findall(r"[^\W_]+", name)}
    if "arousal" in words and words - {"arousal"} <= _CAUSES:
        return "eeg", 1
    return _ANYWHERE.get(frozenset(words))


def events_by_text(
    rows: list[tuple[float, float, str]], events: Mapping[str, tuple[str, int]]
) -> dict[str, tuple[str, int]]:
    """(label, code) of the descriptions that name a scored event; ``events``: the known words.

    Other spellings count beside them, for desaturations and arousals, of which notes speak most,
    only where the known words name none; and only with a duration, which notes do not have.
    """
    texts = {text for _, _, text in rows}
    found = {text: events.get(" ".join(text.lower().split())) for text in texts}
    found = {text: event for text, event in found.items() if event is not None}
    known = {label for label, _ in found.values()} - {"apnea", "hypop"}
    lasting = {text for _, duration_s, text in rows if duration_s > 0} - found.keys()
    spelled = {text: spelled_event(text) for text in lasting}
    return found | {t: event for t, event in spelled.items() if event and event[0] not in known}
