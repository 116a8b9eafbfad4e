"""Configurations from flags, a config file and the defaults, all derived from the configuration dataclasses.

Called by `server.cli` and `server.bench`; `scripts/document_config.py` writes the schema and the page on keys from the
same fields.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.foreign_options import as_flag, as_key, hint, our_value
from seesaw.engine.values.json_file import read_object
from seesaw.engine.values.wording import at_least, parse_bytes
from seesaw.server.config import ServerConfig

API_KEY_VARIABLE = "SEESAW_API_KEY"
MODEL_FLAGS = ("model", "model_path", "model_id")  # of others; here it stands alone
LONGEST_SHOWN = 200  # characters of a value that cannot be used
FOR_READERS = ("$schema", "$comment")  # keys of a config file that are for editors and people
BESIDE_THE_FILE = ("shape", "host_profile")  # keys whose relative paths start at the config file's folder


def read_configs(given: dict[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    """The configurations from flags (values still text) over the file named by `config` over the defaults.

    Raises ConfigError, naming the flag or key, for whatever cannot be used.
    """
    return make_configs(given_values(given))


def make_configs(values: dict[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    """The configurations from values over the environment's and the defaults. Raises ConfigError."""
    if os.environ.get(API_KEY_VARIABLE):
        values = {"api_key": (os.environ[API_KEY_VARIABLE],)} | values
    if not values.get("model") and values.get("executor") != "simulated":
        raise ConfigError("no model is named: give a checkpoint folder or hub name, as in `seesaw serve MODEL`")
    engine, server = (
        config(**{f.name: values[f.name] for f in fields(config) if f.name in values})
        for config in (EngineConfig, ServerConfig)
    )
    assert isinstance(engine, EngineConfig) and isinstance(server, ServerConfig)
    return engine, server


def given_values(given: dict[str, Any]) -> dict[str, Any]:
    """What was set, from flags (values still text) over the file named by `config`. Raises ConfigError."""
    flags = dict(given)
    path = flags.pop("config", None)
    values = _read_config_file(Path(path)) if path else {}
    return values | {name: _from_flag(name, value) for name, value in flags.items()}


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would exit, and says what an unknown flag may have meant."""

    elsewhere: Mapping[str, str] = {}  # flags that others have for this very command, and what to know instead

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Here and not in `parse_args`, which knows only the main parser and not the subcommand's.
        given = list(sys.argv[1:] if args is None else args)
        namespace, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(self._explain(unknown[0], given))
        return namespace, unknown

    def _explain(self, unknown: str, given: list[str]) -> str:
        if not unknown.startswith("-"):
            return f"there is no place for {unknown!r}{self._repeat(given[: given.index(unknown)])}"
        flag, _, value = unknown.partition("=")
        following = given[given.index(unknown) + 1 : given.index(unknown) + 2]
        name = _underscored(flag)
        if name in MODEL_FLAGS:
            return f"there is no flag {flag}: name the model without a flag, as in `seesaw serve MODEL`"
        if name in self.elsewhere:
            return f"there is no flag {flag}: {self.elsewhere[name]}"
        known = [_underscored(option) for option in self._option_string_actions if option.startswith("--")]
        return f"there is no flag {flag}{hint(name, value or ''.join(following), known, as_flag)}"

    def _repeat(self, before: Sequence[str]) -> str:
        """How to give the flag that comes last another value; others take many behind one flag."""
        flag = next((word for word in reversed(before) if word.startswith("--")), "")
        takes_more = isinstance(self._option_string_actions.get(flag), argparse._AppendAction)
        return f": for another value write {flag} again" if takes_more else ""


def add_flags(
    parser: argparse.ArgumentParser, title: str, config: type[Any], *, without: str = "", only: Collection[str] = ()
) -> None:
    """A flag for each field, or for `only` some. What is not given must not appear in the namespace:
    `argument_default=SUPPRESS`."""
    group = parser.add_argument_group(title)
    for f in fields(config):
        if f.name != without and (not only or f.name in only):
            _add_flag(group, f)


def _add_flag(group: argparse._ArgumentGroup, f: Field[Any]) -> None:
    hint = HINTS[f.name]
    options: dict[str, Any] = {"dest": f.name, "help": _help(f)}
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(hint) is tuple:
        options |= {"action": "append", "metavar": "VALUE"}
    elif get_origin(hint) is Literal:
        options["metavar"] = "{" + ",".join(get_args(hint)) + "}"
    else:
        options["metavar"] = "SIZE" if f.name.endswith("_bytes") else hint.__name__.upper()
    group.add_argument(f"--{_dashed(f.name)}", **options)


def help_text(name: str) -> str:
    """The help of an engine setting."""
    return _help(next(f for f in fields(EngineConfig) if f.name == name))


def _help(f: Field[Any]) -> str:
    text, default = str(f.metadata["help"]), default_text(f)
    return (f"{text} (default: {default})" if default else text).replace("%", "%%")


def default_text(f: Field[Any]) -> str:
    """The field's default as one would write it; empty if there is none or the help says what happens then."""
    default: Any = f.default
    if default in ("", ()) or "(default:" in f.metadata["help"]:
        return ""
    if isinstance(default, bool):
        return "true" if default else "false"
    return at_least(default) if f.name.endswith("_bytes") else str(default)


def _read_config_file(path: Path) -> dict[str, Any]:
    values = read_object(path, "mend it, or name another --config", what="the config file", may_be_pipe=True)
    for key in FOR_READERS:
        values.pop(key, None)
    read = mapped_values(values, f"the config file {path}")
    return read | {key: str(path.parent / read[key]) for key in BESIDE_THE_FILE if read.get(key)}


def mapped_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of the fields' types, from keys and values as JSON has them. Raises ConfigError, naming `where`."""
    for key in values:
        if key not in HINTS:
            value = values[key] if isinstance(values[key], str) else _shown(values[key])
            raise ConfigError(f"unknown key {key!r} in {where}{hint(key, value, HINTS, as_key)}")
    return {key: _from_json(key, value, f"{key} in {where}") for key, value in values.items()}


def _from_flag(name: str, value: Any) -> Any:
    """A value of the field's type, from a flag's text, or what argparse made of a flag without one or given often."""
    hint, value = HINTS[name], our_value(name, value)
    if hint is bool or get_origin(hint) is tuple:
        return value if hint is bool else tuple(value)
    with suppress(ValueError, OverflowError):
        if get_origin(hint) is not Literal:
            return parse_bytes(value) if name.endswith("_bytes") else hint(value)
        if value in get_args(hint):
            return value
    raise ConfigError(f"--{_dashed(name)} must be {_kind(name)}, not {value!r}")


def _from_json(name: str, value: Any, where: str) -> Any:
    """A value of the field's type, from a file's JSON, which has types of its own: no text stands for a number or true.

    It takes what the schema does (`scripts/document_config.py`): a whole number may be written 8e9, and a size as text.
    """
    hint = HINTS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(items)
    elif get_origin(hint) is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
    elif name.endswith("_bytes") and isinstance(value, str):
        with suppress(ValueError, OverflowError):
            return parse_bytes(value)
    elif hint is int:
        if is_number and value % 1 == 0:
            return int(value)
    elif hint is float:
        with suppress(OverflowError):
            if is_number:
                return float(value)
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} must be {_kind(name)}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """JSON of a file as one would write it, if it is short."""
    with suppress(RecursionError):  # it was read, but writing goes deeper
        text = json.dumps(value)
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    return "what is nested so deeply"


def _kind(name: str) -> str:
    hint = HINTS[name]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return "a size such as 4GiB" if name.endswith("_bytes") else _KINDS[get_origin(hint) or hint]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _underscored(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


HINTS: dict[str, Any] = {
    f.name: get_type_hints(config)[f.name] for config in (EngineConfig, ServerConfig) for f in fields(config)
}
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "text or a list of texts",
}
