"""Script 1 with --inspect: what files hold of the 16 channels, and stand-ins for what they lack.

A file, or all of a folder in groups of one montage, of which one file each is looked at. What is
proposed is printed as YAML to paste, and written with --write_settings; nothing is used by itself.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from pedsleepmae.channels import CHANNELS, Absent, Channel, Source, canonical_label
from pedsleepmae.disk import write_text
from pedsleepmae.errors import SettingsError, UserError, as_plain_dict, printable
from pedsleepmae.prepare import examples, proposals
from pedsleepmae.prepare.channel_reader import read_channel, refuse_flat
from pedsleepmae.prepare.layouts import find_edf_files
from pedsleepmae.prepare.looks import LOOK_S, N_LOOKS, Look, look_at
from pedsleepmae.prepare.proposals import Proposal
from pedsleepmae.prepare.recordings import Recording, RecordingError, open_edf

REMARKABLE = {  # share of a channel above which it is remarked on, and the remark
    "flat": (0.2, "flat for {:.0%} of the time"),
    "clipped": (0.02, "{:.1%} of the samples at the end of the range"),
    "missing": (0.0, "{:.1%} of the samples missing"),
    "out_of_range": (0.1, "{:.0%} beyond what is plausible"),
    "mains": (0.3, "{:.0%} of the power above 20 Hz is mains"),
}
N_NAMED = 3  # files of a group
NOTHING_SURE = "  # what is right of these goes in the place of {}, without the #:"

StandIns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Inspection:
    """What is told of one recording, and the stand-ins proposed for its absent channels."""

    text: str
    proposals: list[Proposal]


# ------------------------------------------------------------------ what script 1 calls
def find_files(inspect: Path | None, write_settings: Path | None) -> list[Path]:
    """The EDF files to be inspected; SettingsError where there are none, or nowhere to write."""
    if inspect is None:
        raise SettingsError("write_settings writes what --inspect proposes; give inspect too")
    if write_settings is not None and os.path.lexists(write_settings):
        raise SettingsError(
            f"write_settings: {write_settings} is there already and is not replaced; give another "
            "name, or move it away"
        )
    if inspect.is_file():
        return [inspect]
    if not inspect.is_dir():
        raise SettingsError(
            f"inspect: there is no file or folder {inspect}; give an EDF file, or a folder of them"
        )
    files = find_edf_files(inspect)
    if not files:
        raise SettingsError(f"inspect: no EDF file in {inspect}; give another folder")
    return files


def inspect_files(
    files: Sequence[Path],
    settings: examples.ReadSettings,
    inspect: Path,
    write_settings: Path | None = None,
) -> None:
    """Print what the files hold, and write the settings file if one is named.

    ``inspect``: what the user named. Raises UserError when none of the files can be read.
    """
    if inspect.is_dir():
        found = _inspect_folder(files, settings)
    else:
        inspection = inspect_recording(inspect, settings)
        found = inspection.proposals
        print(inspection.text)
        _print_proposals(settings.stand_ins, found)
    if write_settings is not None:
        write_text(write_settings, settings_file(settings, found, inspect.name))
        print(f"\nWritten: {write_settings}; look at each line before you use it")


# ------------------------------------------------------------------ one file
def inspect_recording(path: Path, settings: examples.ReadSettings) -> Inspection:
    """The 16 channels of an EDF file, its other signals, and proposals among these.

    Raises RecordingError when the file cannot be read.
    """
    recording = open_edf(path)
    rows, used, absent = _channel_rows(recording, settings)
    head = (
        f"{recording.name}: {recording.duration_s / 3600:.2f} h, {len(recording.signals)} signals"
    )
    head += "".join(f"; {remark}" for remark in recording.remarks)
    lines = [
        head,
        *_aligned(rows),
        f"{len(CHANNELS) - len(absent)} of {len(CHANNELS)} channels found",
    ]
    unused = [i for i in range(len(recording.signals)) if i not in used]
    if not unused:
        return Inspection("\n".join(lines), [])
    looks = {i: look_at(recording, i) for i in unused}
    candidates = _nameable(recording, used, looks)
    # What was given for an absent channel was tried, and refused for the reason above.
    given = {
        (canonical_label(name), canonical_label(label))
        for name, labels in settings.stand_ins.items()
        for label in labels
    }
    found = [
        p
        for p in proposals.propose(list(candidates.values()), absent)
        if (canonical_label(p.channel), canonical_label(p.label)) not in given
    ]
    what = f"{N_LOOKS} looks of {LOOK_S:.0f} s at each signal that no channel uses:"
    lines += ["", what, *_aligned(_unused_rows(recording, looks, candidates, found))]
    return Inspection("\n".join(lines), found)


def _channel_rows(
    recording: Recording, settings: examples.ReadSettings
) -> tuple[list[tuple[str, ...]], set[int], list[str]]:
    """Table of the 16 channels: from what, rate, unit, scale, or why absent.

    With the signals that they use, and the names of the absent ones.
    """
    rows = [("channel", "from", "rate", "unit", "1st to 99th percentile", "remark")]
    used, absent = set(), []
    found_in_turn = examples.first_usable(recording, settings, _read_whole)
    for channel, found in zip(CHANNELS, found_in_turn, strict=True):
        if isinstance(found, Absent):
            rows.append((channel.name, "-", "", "", "", f"absent: {found.reason}"))
            absent.append(channel.name)
            continue
        source, x, quality = found
        used |= {source.plus, source.minus} - {None}
        row = (channel.name, source.origin, f"{source.rate_hz:.8g} Hz", source.unit or "blank")
        rows.append((*row, _scale_in_words(channel.kind, x), quality_in_words(quality)))
    return rows, used, absent


def _read_whole(recording: Recording, channel: Channel, source: Source, breathing: float = 0.0):
    """A channel's samples of the whole recording and their quality; UnusableRecording for none."""
    x, missing, quality = read_channel(recording, channel, source, breathing=breathing)
    refuse_flat(recording, channel, source, x)
    return np.where(missing, np.float32(np.nan), x), quality


def _scale_in_words(kind: str, x: np.ndarray) -> str:
    low, high = np.nanpercentile(x, (1, 99))
    if kind == "voltage":
        return f"{low * 1e6:.4g} to {high * 1e6:.4g} uV"
    return f"{low:.4g} to {high:.4g}" + (" %" if kind == "percent" else "")


def quality_in_words(quality: Mapping[str, float]) -> str:
    return "; ".join(
        text.format(quality[name])
        for name, (bound, text) in REMARKABLE.items()
        if quality[name] > bound
    )


def _nameable(
    recording: Recording, used: set[int], looks: Mapping[int, Look | None]
) -> dict[int, Look]:
    """Of the unused signals, those that a stand-in can name: by a label, the first that stands for.

    A label may stand twice: the first signal of that name that holds something is what it means.
    """
    names = [canonical_label(signal.label) for signal in recording.signals]
    taken = {names[i] for i in used}
    nameable = {}
    for i, look in looks.items():
        if look is not None and not look.flat and names[i] and names[i] not in taken:
            nameable[i] = look
            taken.add(names[i])
    return nameable


def _unused_rows(
    recording: Recording,
    looks: Mapping[int, Look | None],
    nameable: Mapping[int, Look],
    found: Sequence[Proposal],
) -> list[tuple[str, ...]]:
    """Table of the signals that no channel uses."""
    percentiles = "1st to 99th percentile"
    rows = [("signal not used", "rate", "unit", percentiles, "looks like", "proposed for")]
    proposed = {p.label: f"{p.channel} ({p.confidence})" for p in found}
    for i, look in looks.items():
        signal = recording.signals[i]
        row = (signal.label, f"{signal.rate_hz:.8g} Hz", signal.unit or "blank")
        if look is None:
            rows.append((*row, "", signal.problem or "too few samples to tell", ""))
            continue
        scale = f"{look.low:.4g} to {look.high:.4g}"
        wanted = proposed.get(signal.label, "") if i in nameable else ""
        rows.append((*row, scale, look.in_words(), wanted))
    return rows


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


# ------------------------------------------------------------------ a folder
def _inspect_folder(files: Sequence[Path], settings: examples.ReadSettings) -> list[Proposal]:
    """Print what each montage of a folder holds; the proposals of all in one list.

    Raises UserError when none of the files can be read.
    """
    montages, unreadable = group_by_montage(files)
    inspections = []
    for group in tqdm(montages, desc="Looking", unit="montage"):
        inspection, problems = _largest_readable(group, settings)
        inspections.append(inspection)
        unreadable |= problems
    print(f"{len(files)} EDF files, {len(montages)} montages, {len(unreadable)} unreadable files")
    for k, (group, inspection) in enumerate(zip(montages, inspections, strict=True), 1):
        names = [printable(path.name) for path in group[:N_NAMED]]
        names += ["..."] if len(group) > N_NAMED else []
        print(f"\nMontage {k} of {len(montages)}: {len(group)} files ({', '.join(names)})")
        if inspection is None:
            print("none of them can be read")
            continue
        print(f"looked at: {inspection.text}")
        _print_proposals(settings.stand_ins, inspection.proposals)
    if unreadable:
        print("\nCannot be read:")
    for path, reason in sorted(unreadable.items()):
        print(f"  {printable(path.name)}: {printable(reason)}")
    found = [inspection.proposals for inspection in inspections if inspection is not None]
    if not found:
        raise UserError(f"none of the {len(files)} EDF files can be read; the reasons stand above")
    merged = proposals.merge(found)
    if len(montages) > 1 and merged:
        print("\nAll montages in one:")
        _print_proposals(settings.stand_ins, merged)
    return merged


def group_by_montage(files: Sequence[Path]) -> tuple[list[list[Path]], dict[Path, str]]:
    """Files of the same labels and rates, the largest group first; why others cannot be read."""
    groups, unreadable = {}, {}
    for path in tqdm(files, desc="Reading headers", unit="file"):
        try:
            signals = open_edf(path).signals
        except (RecordingError, *examples.UNFORESEEN) as error:
            unreadable[path] = _reason(error, path)
            continue
        montage = tuple(sorted((signal.label, f"{signal.rate_hz:.6g}") for signal in signals))
        groups.setdefault(montage, []).append(path)
    return sorted(groups.values(), key=len, reverse=True), unreadable


def _largest_readable(
    group: Sequence[Path], settings: examples.ReadSettings
) -> tuple[Inspection | None, dict[Path, str]]:
    """The inspection of the largest file of a group that can be read, and why others cannot.

    The largest, for a test of the sensors or a rest of a night shows little.
    """
    unreadable = {}
    for path in sorted(group, key=lambda path: -path.stat().st_size):
        try:
            return inspect_recording(path, settings), unreadable
        except (RecordingError, *examples.UNFORESEEN) as error:
            unreadable[path] = _reason(error, path)
    return None, unreadable


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, RecordingError):
        return str(error).removeprefix(f"{printable(path.name)}: ")
    if isinstance(error, OSError):
        return error.strerror or "the disk does not give it"
    return f"unforeseen {type(error).__name__}; inspect it alone to see where, and report it"


# ------------------------------------------------------------------ YAML
def _print_proposals(given: StandIns, found: Sequence[Proposal]) -> None:
    if found:
        print("\nProposed, for you to judge; paste what is right into your settings:")
        print("\n".join(stand_ins_block(given, found)))


def stand_ins_block(given: StandIns, found: Sequence[Proposal]) -> list[str]:
    """Lines of YAML: the stand-ins given, then those proposed; guesses commented out."""
    given = {canonical_label(name): labels for name, labels in given.items()}
    lines, any_active = [], False
    for channel in CHANNELS:
        named = given.get(canonical_label(channel.name), ())
        proposed = [p for p in found if p.channel == channel.name]
        if not named and not proposed:
            continue
        active = bool(named) or any(p.level > proposals.GUESS for p in proposed)
        any_active |= active
        lines.append(f"{'  ' if active else '  # '}{_quoted(channel.name)}:")
        lines += [f"  - {_quoted(label)}  # given" for label in named]
        for p in proposed:
            mark = "  " if p.level > proposals.GUESS else "  # "
            lines.append(f"{mark}- {_quoted(p.label)}  # {p.confidence}: {printable(p.why)}")
    if any_active:
        return ["stand_ins:", *lines]
    return ["stand_ins: {}" + (NOTHING_SURE if lines else ""), *lines]


def _quoted(text: str) -> str:
    """A text in YAML, always in quotes: a label may be `no`, `1e3` or `C3: A2`."""
    line = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**6)
    return line.strip()


def settings_file(settings: examples.ReadSettings, found: Sequence[Proposal], name: str) -> str:
    """A settings file: what differs from the defaults, and the stand-ins given and proposed."""
    given = _not_default(settings, type(settings)())
    for key in ("inspect", "write_settings", "stand_ins"):
        given.pop(key, None)
    shared = {item.name for item in dataclasses.fields(examples.ReadSettings)}
    only_here = [key for key in given if key not in shared or given[key] == "fitted"]
    readers = "scripts 1 and 4" if not only_here else "script 1"
    lines = [f"# Proposed by 1_prepare_dataset.py --inspect {printable(name)}; read by {readers}."]
    if only_here:
        lines.append(f"# Script 4 reads it without {', '.join(only_here)}.")
    lines.append("# Judge each line: high, likely and guess say how sure a proposal is. To use a")
    lines.append("# guess, take the # away before it and before its channel.")
    if given:
        lines += yaml.safe_dump(given, sort_keys=False, allow_unicode=True).splitlines()
    return "\n".join([*lines, *stand_ins_block(settings.stand_ins, found)]) + "\n"


def _not_default(settings: Any, default: Any) -> dict[str, Any]:
    """Settings that differ from ``default``, as nested plain values."""

    def differing(tree: Mapping, other: Mapping) -> dict[str, Any]:
        found = {}
        for key, value in tree.items():
            if isinstance(value, dict) and isinstance(other[key], dict) and other[key]:
                value = differing(value, other[key])
                if value:
                    found[key] = value
            elif value != other[key]:
                found[key] = value
        return found

    return differing(as_plain_dict(settings), as_plain_dict(default))
