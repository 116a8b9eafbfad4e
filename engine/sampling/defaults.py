"""The sampling that a request gets where it says nothing: the checkpoint's generation_config.json, as in vLLM.

`--generation-config auto` takes the model's, a path takes another, and `vllm` takes OpenAI's defaults instead. Which
tokens end a sequence is not decided here: those of the model's own file always do (`engine.model.shapes`). Used by the
server and by `seesaw.LLM`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seesaw.engine.hub import find_model
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, RequestError
from seesaw.engine.values.json_file import read_object

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
OPENAI_ONLY = "vllm"  # vLLM's word for leaving the checkpoint's values out
_MEND = "mend it, or set --generation-config vllm"
SAMPLING = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}


@dataclass(frozen=True)
class SamplingDefaults:
    """Values of `SamplingParams` for what a request leaves out. `max_tokens` bounds what any request may have."""

    values: dict[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None

    def params(self) -> SamplingParams:
        """The sampling of a request that says nothing at all."""
        return SamplingParams(**self.values | _cap(self.max_tokens))


NO_DEFAULTS = SamplingDefaults()


def check_defaults(choice: str, engine: EngineConfig) -> None:
    """Raise ConfigError for what `load_defaults` would refuse, as far as it is known without asking a hub."""
    path = _chosen_file(choice)
    if choice == "auto" and Path(engine.model).expanduser().is_dir():
        path = _own_file(engine)
    if path is not None:
        _defaults(path, read_object(path, _MEND))


def load_defaults(choice: str, engine: EngineConfig) -> SamplingDefaults:
    """What `--generation-config` asks for. Raises ConfigError. May ask the hub: keep it off event loops."""
    path = _own_file(engine) if choice == "auto" else _chosen_file(choice)
    if path is None:
        return NO_DEFAULTS
    defaults = _defaults(path, read_object(path, _MEND))
    shown = defaults.values | _cap(defaults.max_tokens)
    if shown:
        logger.info("requests that do not say otherwise sample with %s, as %s says", shown, path)
    return defaults


def _chosen_file(choice: str) -> Path | None:
    """The file that the operator names, if any."""
    if choice in ("auto", OPENAI_ONLY):
        return None
    chosen = Path(choice).expanduser()
    path = chosen / FILE if chosen.is_dir() else chosen
    if not path.is_file():
        raise ConfigError(f"there is no {path}: give --generation-config a file, its folder, auto or vllm")
    return path


def _own_file(engine: EngineConfig) -> Path | None:
    """The model's file; None if it has none, or if it is random and needs no files of its own."""
    if not engine.model or engine.load_format == "dummy" or engine.executor == "simulated":
        return None
    try:
        path = find_model(engine.model, [FILE], "generation config") / FILE
    except ConfigError as error:  # the engine says so better, and of a fake one nobody asks for files
        logger.debug("no generation config: %s", error)
        return None
    return path if path.exists() else None


def _defaults(path: Path, raw: dict[str, Any]) -> SamplingDefaults:
    try:
        values = {name: kind(raw[name]) for name, kind in SAMPLING.items() if raw.get(name) is not None}
        max_tokens = None if raw.get("max_new_tokens") is None else int(raw["max_new_tokens"])
        defaults = SamplingDefaults(values, max_tokens)
        defaults.params().validate()
    except (OverflowError, RequestError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a value that cannot be ({error}): set --generation-config vllm") from None
    return defaults


def _cap(max_tokens: int | None) -> dict[str, int]:
    return {} if max_tokens is None else {"max_tokens": max_tokens}
