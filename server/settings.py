"""Configurations from flags, a config file and the defaults, all derived from the configuration dataclasses.

Called by `server.cli` and `server.bench`; `scripts/document_config.py` writes the schema and the page on keys from the
same fields.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from engine.config import EngineConfig
from engine.errors import ConfigError
from server.config import ServerConfig

API_KEY_VARIABLE = "SEESAW_API_KEY"
UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1024))
}
FOR_READERS = ("$schema", "$comment")  # keys of a config file that are for editors and people
BESIDE_THE_FILE = ("shape",)  # keys whose relative paths start at the config file's folder


def read_configs(given: dict[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    """The configurations from flags (values still text) over the file named by `config` over the defaults.

    Raises ConfigError, naming the flag or key, for whatever cannot be used.
    """
    flags = dict(given)
    path = flags.pop("config", None)
    values = _read_file(Path(path)) if path else {}
    values |= {name: _convert(name, value, f"--{_dashed(name)}") for name, value in flags.items()}
    if os.environ.get(API_KEY_VARIABLE):
        values.setdefault("api_key", (os.environ[API_KEY_VARIABLE],))
    if not values.get("model") and values.get("executor") != "simulated":
        raise ConfigError("no model is named: give a checkpoint folder or hub name, as in `seesaw serve MODEL`")
    engine, server = (
        config(**{f.name: values[f.name] for f in fields(config) if f.name in values})
        for config in (EngineConfig, ServerConfig)
    )
    assert isinstance(engine, EngineConfig) and isinstance(server, ServerConfig)
    return engine, server


def parse_bytes(text: str) -> int:
    """Bytes from `4GiB`, `512M` (as MiB), `1.5 GB` or a plain number. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        raise ValueError(f"{text!r} is not a size")
    return int(float(match[1]) * UNITS[match[2]]) if "." in match[1] else int(match[1]) * UNITS[match[2]]


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def add_flags(parser: argparse.ArgumentParser, title: str, config: type[Any], *, without: str = "") -> None:
    """A flag for each field. What is not given must not appear in the namespace: `argument_default=SUPPRESS`."""
    group = parser.add_argument_group(title)
    for f in fields(config):
        if f.name != without:
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
    text = str(f.metadata["help"]).replace("%", "%%")
    shown = f.default not in ("", 0, (), False) and "default" not in text
    return f"{text} (default: {f.default})" if shown else text


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"the config file {path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"the config file {path} must hold one JSON object")
    for key in FOR_READERS:
        values.pop(key, None)
    for key in values:
        if key not in HINTS:
            near = difflib.get_close_matches(key, HINTS, n=1, cutoff=0.0)
            raise ConfigError(f"unknown key {key!r} in the config file {path}: did you mean {near[0]!r}?")
    read = {key: _convert(key, value, f"{key} in {path}") for key, value in values.items()}
    return read | {key: str(path.parent / read[key]) for key in BESIDE_THE_FILE if read.get(key)}


def _convert(name: str, value: Any, where: str) -> Any:
    """A value of the field's type, from a flag's text or a file's JSON."""
    hint = HINTS[name]
    try:
        if get_origin(hint) is tuple:
            items = [value] if isinstance(value, str) else value
            if isinstance(items, list) and all(isinstance(item, str) for item in items):
                return tuple(items)
        elif get_origin(hint) is Literal:
            if value in get_args(hint):
                return value
            raise ConfigError(f"{where} must be one of {', '.join(get_args(hint))}, not {value!r}")
        elif isinstance(value, str):
            return parse_bytes(value) if name.endswith("_bytes") else hint(value)
        elif type(value) is hint or (hint is float and type(value) is int):
            return value
    except ValueError:
        pass
    kind = "a size such as 4GiB" if name.endswith("_bytes") else _KINDS[get_origin(hint) or hint]
    raise ConfigError(f"{where} must be {kind}, not {value!r}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


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
