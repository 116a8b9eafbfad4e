"""Write `configs/schema.json` and `docs/configuration.md` from the configuration dataclasses and the configs.

Run it after a change of a setting or of a config; a test checks that both files are up to date.
"""

from __future__ import annotations

import json
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # Seesaw need not be installed for this

from seesaw.engine.values.config import EngineConfig  # noqa: E402
from seesaw.server.config import ServerConfig  # noqa: E402
from seesaw.server.settings import FOR_READERS, HINTS, default_text, read_configs  # noqa: E402

CONFIGS = REPOSITORY / "configs"
SCHEMA_PATH, PAGE_PATH = CONFIGS / "schema.json", REPOSITORY / "docs" / "configuration.md"

JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
SIZE_PATTERN = r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]?[bB]?|[kKmMgGtT][iI][bB])\s*$"

INTRODUCTION = """\
# Configuration

<!-- Written by scripts/document_config.py: change the settings or the configs, then run it. -->

A config file is a JSON object of these keys, for `seesaw serve --config FILE` and `seesaw bench offline FILE`. Each key
is also a flag, `max_num_seqs` as `--max-num-seqs`; flags win over the file. An unknown key is an error. Sizes in bytes
may be written as `"4GiB"`. A relative `shape` starts at the file's folder. `"$schema": "./schema.json"` lets editors
complete and check the keys, and `"$comment"` is for people.
"""
SHIPPED = """\
## The configs that ship

One for each experiment of the paper (MLSys 2025, arXiv 2503.06433), and some for hosts of today. Each names its model
on the hub, and in `configs/models/` its shape, so that all of them run without a checkpoint: with `--dummy-weights` on
a host with the devices, with `--executor simulated` on any. What the paper did not print is said to be ours.
The lengths of its two data sets are in `configs/lengths/`: `--dataset csv --dataset-path configs/lengths/arxiv.csv`.
"""


def config_files() -> list[Path]:
    return [path for path in sorted(CONFIGS.glob("*.json")) if path != SCHEMA_PATH]


def schema() -> str:
    """The JSON schema of a config file."""
    properties: dict[str, Any] = {key: {"type": "string"} for key in FOR_READERS}
    for f in (*fields(EngineConfig), *fields(ServerConfig)):
        properties[f.name] = {**_json_type(f.name), "description": f.metadata["help"], "default": f.default}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Seesaw configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return json.dumps(document, indent=2) + "\n"


def _json_type(name: str) -> dict[str, Any]:
    hint = HINTS[name]
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) is tuple:
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    if name.endswith("_bytes"):
        return {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": SIZE_PATTERN}]}
    return {"type": JSON_TYPES[hint]}


def page() -> str:
    """The document on all keys, and on the configs that ship."""
    parts = [INTRODUCTION]
    for title, config in (("Engine", EngineConfig), ("Server", ServerConfig)):
        rows = ["| key | type | default | what |", "| --- | --- | --- | --- |", *map(_key_row, fields(config))]
        parts.append("\n".join([f"## {title}\n", *rows, ""]))
    rows = ["| file | plan | what |", "| --- | --- | --- |", *map(_config_row, config_files())]
    parts.append("\n".join([SHIPPED, *rows, ""]))
    return "\n".join(parts)


def _key_row(f: Field[Any]) -> str:
    hint = HINTS[f.name]
    if get_origin(hint) is Literal:
        kind = ", ".join(get_args(hint))
    elif get_origin(hint) is tuple:
        kind = "text or list of texts"
    else:
        kind = "size" if f.name.endswith("_bytes") else JSON_TYPES[hint]
    return f"| `{f.name}` | {kind} | {_default(f)} | {f.metadata['help']} |"


def _default(f: Field[Any]) -> str:
    text = default_text(f)
    return f"`{json.dumps(text) if isinstance(f.default, str) else text}`" if text else ""


def _config_row(path: Path) -> str:
    plan = read_configs({"config": str(path)})[0].plan
    return f"| `{path.name}` | {plan} | {json.loads(path.read_text())['$comment']} |"


def main() -> None:
    SCHEMA_PATH.write_text(schema())
    PAGE_PATH.write_text(page())


if __name__ == "__main__":
    main()
