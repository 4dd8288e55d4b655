"""Settings of a script: a dataclass's defaults, then a YAML file, then typed overrides.

A script calls :func:`load_settings`; what it does not know, or what has the wrong type, stops it
with exit code 2 and one sentence that names the file, the key, the value and the remedy.
"""

import argparse
import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from pedsleepmae.errors import (
    EXIT_BAD_SETTINGS,
    SettingsError,
    check_bounds,
    tell,
    write_any_letter,
)
from pedsleepmae.shipped import find_file, shipped_path

TRUE_FALSE = ("true", "false", "yes", "no")  # what YAML reads as a switch
LARGEST_FILE = 100_000  # bytes; those in configs/ have 4,000, and YAML takes 10 s a megabyte
DEEPEST = 20  # levels of a YAML tree
LONGEST_QUOTE = 100  # characters of a value in a sentence
COMMANDS = ("-h", "--help", "--print_config")  # what stands alone and is no setting
UNNAMED = ""  # the key of a value that stands without --name

# What the parser raises for values that it cannot take; ValueError: from YAML's own types.
REFUSED = (jsonargparse.ArgumentError, TypeError, KeyError, ValueError, AttributeError)

Types = dict[str, Any]  # dotted name of a setting -> its type

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


# ------------------------------------------------------------------ reading
def load_settings(
    settings_class: type,
    default_config: str,
    doc: str,
    argv: list[str],
    positional: str | None = None,
):
    """Settings of a script from its command line; exits with 2 and one sentence when they are bad.

    ``default_config`` is a file name in ``configs/``, read when ``--config`` is not given; what
    that gives may be in the ``configs/`` that ship. ``doc`` is what ``--help`` shows.
    ``positional`` names the list whose values may stand without ``--name``; they are taken as they
    are, for a file's name is no YAML.
    """
    write_any_letter()
    types = setting_types(settings_class)
    commands = [arg for arg in argv if arg in COMMANDS]
    read = list(_read_line([arg for arg in argv if arg not in COMMANDS], types, positional))
    unnamed = [text for key, text in read if key == UNNAMED]
    given = [(key, text) for key, text in read if key != UNNAMED]
    if "config" not in dict(given):
        given.insert(0, ("config", str(shipped_path(f"configs/{default_config}"))))
    given = [
        (key, str(find_file(text)) if key == "config" and text else text) for key, text in given
    ]
    parser = _parser(settings_class, doc, positional)
    if unnamed:
        parser.set_defaults({positional: unnamed})  # for --print_config
    try:
        entries = list(_read_entries(given, types))
        blank = (_refusal(parser, types, *entry) for entry in entries if entry[-1] is None)
        if problem := next(filter(None, blank), None):  # the parser lets some of these through
            raise SettingsError(problem)
        line = [f"--{key}" if text is None else f"--{key}={text}" for key, text in given]
        try:
            values = parser.instantiate(parser.parse_args([*line, *commands]))
        except REFUSED as error:
            reasons = (_refusal(parser, types, *entry) for entry in entries)
            raise SettingsError(next(filter(None, reasons), error)) from error
        names = [item.name for item in dataclasses.fields(settings_class)]
        settings = settings_class(**{name: values[name] for name in names})
        if unnamed:
            setattr(settings, positional, unnamed)  # whatever a file says
        check_bounds(settings)
        if hasattr(settings, "check"):
            settings.check()
    except SettingsError as error:
        raise SystemExit(tell(error, EXIT_BAD_SETTINGS)) from None
    return settings


def setting_types(settings_class: type, prefix: str = "") -> Types:
    """Dotted name -> type of every setting of a class, nested classes included."""
    types = {}
    for name, hint in typing.get_type_hints(settings_class).items():
        if dataclasses.is_dataclass(hint):
            types |= setting_types(hint, f"{prefix}{name}.")
        else:
            types[prefix + name] = hint
    return types


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the script's own description as it is and types in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        return text.replace("(type: %(type)s, default", "(%(type)s; default")

    def _get_type_str(self, action: argparse.Action) -> str | None:
        hint = getattr(action, "_typehint", action.type)
        return None if hint is None else _type_in_words(hint)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Without ``--name+``, another way to give a list."""
        return re.sub(r", --[\w.]+\+ .*", "", super()._format_action_invocation(action))


def _parser(settings_class: type, doc: str, positional: str | None) -> jsonargparse.ArgumentParser:
    values = f" [{positional.upper()} ...]" if positional else ""
    parser = jsonargparse.ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,  # --n_worker is not a setting, and means nothing else by chance
        usage=f"%(prog)s{values} [--config FILE] [--setting value ...]",
        description=doc,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_class_arguments(settings_class)
    types = setting_types(settings_class)
    for action in parser._actions:
        if any(name.startswith(f"{action.dest}.") for name in types):
            action.help = argparse.SUPPRESS  # a group of settings is none itself: _refusal
        elif "--print_config" in action.option_strings:
            action.help = "Print the settings that result, as YAML that --config reads, and exit."
    return parser


def _read_line(
    argv: list[str], types: Types, positional: str | None
) -> Iterator[tuple[str, str | None]]:
    """(dotted key, text) of each setting on the command line; None: its value is missing.

    Short forms are spelt out: ``--strict`` is ``--strict true``, ``--tasks a b`` a list. A value
    that belongs to no ``--name`` is UNNAMED where there is a ``positional`` setting.
    """
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        key, equals, text = arg.removeprefix("--").partition("=")
        if not arg.startswith("--"):
            yield UNNAMED if positional else arg, arg
            continue
        if equals:
            yield key, text
            continue
        is_list, is_switch = typing.get_origin(types.get(key)) is list, types.get(key) is bool
        words = []
        while rest and not rest[0].startswith("--") and (is_list or not words):
            if is_switch and positional and rest[0].lower() not in TRUE_FALSE:
                break
            words.append(rest.pop(0))
        if is_list and words and not words[0].startswith("["):
            words = [f"[{', '.join(words)}]"]
        yield key, " ".join(words) if words else "true" if is_switch else None


def _read_entries(given: list[tuple], types: Types) -> Iterator[tuple[str, str, Any]]:
    """(where it stands, dotted key, value) of each setting, files and command line alike."""
    for key, text in given:
        where, tree = "command line", {key: None}
        if key == "config":
            where, tree = text or "", _read_file(text or "")
        elif text is not None:
            tree = {key: _read_value(key, text)}
        for name, value in _flatten(tree, types):
            words = value if isinstance(value, list) else [value]
            if any(isinstance(word, str) and "\0" in word for word in words):
                raise SettingsError(f"{where}: {name} holds the character NUL; give it without")
            yield where, name, value


def _read_file(where: str) -> dict:
    """The settings of a YAML file; SettingsError names what is none."""
    try:
        if not Path(where).is_file():  # a pipe would be read to its end
            raise ValueError("there is no such file")
        with open(where, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
        if len(raw) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
        settings = yaml.load(raw.decode("utf-8"), _PlainLoader)
        if not isinstance(settings, dict):
            raise ValueError("it holds no `key: value` lines")
    except (OSError, ValueError, yaml.YAMLError) as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        reason = error if is_text else "it is not text in the encoding UTF-8"
        problem = f"--config {where} cannot be read as YAML settings: {reason}"
        raise SettingsError(f"{problem}; give a file such as those in configs/") from error
    return settings


def _read_value(key: str, text: str) -> Any:
    """A value of the command line; what is no YAML is a text."""
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError:
        return text
    except ValueError as error:
        raise SettingsError(f"command line: {key}: {error}") from error


class _PlainLoader(yaml.SafeLoader):
    """YAML of bounded size in memory: no aliases, which can stand for gigabytes, nothing deep.

    ValueError also where a mapping says something twice.
    """

    depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it holds an alias (*name); write out what it stands for")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels; no setting is")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), "a number")
            raise ValueError(f"it says {twice} twice; keep one of them")
        return mapping


def _flatten(tree: dict, types: Types, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each setting of a nested dict."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in types:
            yield from _flatten(value, types, f"{key}.")
        else:
            yield key, value


# ------------------------------------------------------------------ what is wrong
def _refusal(parser, types: Types, where: str, key: str, value: Any) -> str | None:
    """Why one setting cannot be used, None when it can; the parser is asked for it alone."""
    if key in types:
        try:
            if value is None and type(None) not in typing.get_args(types[key]):
                raise TypeError
            parser.parse_object({key: value})
        except REFUSED:
            wanted = f"{_type_in_words(types[key])} (--help says what it means)"
            return f"{where}: {key} cannot be {_short(value)}; give {wanted}"
        return None
    if any(name.startswith(f"{key}.") for name in types):
        return f"{where}: {key} is a group of settings, got {_short(value)}; see --help"
    near = difflib.get_close_matches(key, types, n=1)
    near = near or difflib.get_close_matches(key, [name.split(".")[-1] for name in types], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    got = f"{key[:LONGEST_QUOTE]} (value {_short(value)})"
    return f"{where}: {got} is not a setting; {hint}--help lists them all"


def _short(value: Any) -> str:
    """A value as a sentence quotes it."""
    text = "blank" if value is None else repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def _type_in_words(hint: Any) -> str:
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
