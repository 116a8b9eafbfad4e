"""The command `seesaw`. Flags, config-file keys, defaults and help all come from the configuration dataclasses.

Imports little: the engine's processes import the main module again when they start.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from engine.config import EngineConfig
from engine.errors import ConfigError, SeesawError
from server.config import ServerConfig

# The tools of `seesaw bench`: modules whose `main(argv, prog)` reads its own flags and returns the exit code.
BENCH_TOOLS = {
    "serve": ("clients.load_test", "load a running server over HTTP"),
    "report": ("clients.report", "make an HTML page of results and traces"),
}
API_KEY_VARIABLE = "SEESAW_API_KEY"
UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1024))
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 2 for what its user can fix, 1 for a death."""
    try:
        arguments = vars(_parser().parse_args(argv))
        if arguments.pop("command") == "bench":
            return _bench(**arguments)
        engine, server = read_configs(arguments)
        from server.service import serve

        return serve(engine, server)
    except ConfigError as error:
        print(f"seesaw: error: {error}", file=sys.stderr)
        return 2
    except SeesawError as error:
        print(f"seesaw: error: {error}", file=sys.stderr)
        return 1


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="seesaw", description="LLM server that re-shards between prefill and decode.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve a model over an OpenAI-compatible HTTP API",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # so that what was not given does not override the config file
    )
    bench = commands.add_parser("bench", help="measure: " + "; ".join(f"{t}: {h}" for t, (_, h) in BENCH_TOOLS.items()))
    bench.add_argument("tool", choices=BENCH_TOOLS)
    bench.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see `seesaw bench TOOL --help`")
    serve.add_argument("model", nargs="?", metavar="MODEL", help=_help(_field("model")))
    serve.add_argument("--config", metavar="FILE", help='JSON file with the same settings, e.g. {"max_num_seqs": 64}')
    for title, config in (("engine", EngineConfig), ("server", ServerConfig)):
        group = serve.add_argument_group(title)
        for f in fields(config):
            if f.name != "model":
                _add_flag(group, f)
    return parser


def _bench(tool: str, arguments: list[str]) -> int:
    module = importlib.import_module(BENCH_TOOLS[tool][0])
    code = module.main(arguments, prog=f"seesaw bench {tool}")
    assert isinstance(code, int)
    return code


def _add_flag(group: argparse._ArgumentGroup, f: Field[Any]) -> None:
    hint = _HINTS[f.name]
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
    for key in values:
        if key not in _HINTS:
            near = difflib.get_close_matches(key, _HINTS, n=1, cutoff=0.0)
            raise ConfigError(f"unknown key {key!r} in the config file {path}: did you mean {near[0]!r}?")
    return {key: _convert(key, value, f"{key} in {path}") for key, value in values.items()}


def _convert(name: str, value: Any, where: str) -> Any:
    """A value of the field's type, from a flag's text or a file's JSON."""
    hint = _HINTS[name]
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


def _field(name: str) -> Field[Any]:
    return next(f for f in fields(EngineConfig) if f.name == name)


_HINTS: dict[str, Any] = {
    f.name: get_type_hints(config)[f.name] for config in (EngineConfig, ServerConfig) for f in fields(config)
}
_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "text or a list of texts",
}


if __name__ == "__main__":
    sys.exit(main())
