"""Every setting of every script: dataclasses with defaults, read from YAML and typed overrides.

A script calls :func:`load_settings`; what it does not know, or what has the wrong type, stops it
with exit code 2 and one sentence that names the file, the key, the value and the remedy.
"""

import argparse
import dataclasses
import difflib
import sys
import typing
from pathlib import Path
from typing import Literal

import jsonargparse
import yaml

from pedsleepmae.errors import EXIT_BAD_SETTINGS, SettingsError, check_bounds, tell

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"

_TRUE_FALSE = ("true", "false", "yes", "no")  # what YAML reads as a switch

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
        check_bounds(settings)
        if hasattr(settings, "check"):
            settings.check()
    except SettingsError as error:
        exit_bad_settings(str(error))
    except jsonargparse.ArgumentError as error:
        exit_bad_settings(_explain(settings_class, doc, argv, error))
    return settings


def exit_bad_settings(sentence: str) -> typing.NoReturn:
    """End the script with exit code 2 and this sentence on stderr."""
    raise SystemExit(tell(sentence, EXIT_BAD_SETTINGS))


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
