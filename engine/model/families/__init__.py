"""The families of models that Seesaw runs. A new one is one file here, its line below, and its test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seesaw.engine.model.families.base import Family
from seesaw.engine.model.families.llama import Llama
from seesaw.engine.model.families.mistral import Mistral
from seesaw.engine.model.families.qwen2 import Qwen2
from seesaw.engine.model.families.qwen3 import Qwen3
from seesaw.engine.values.errors import ConfigError

FAMILIES: tuple[Family, ...] = (Llama(), Mistral(), Qwen2(), Qwen3())


def family(model_type: str) -> Family:
    """The family of a shape, by `ModelShape.family`."""
    return next(each for each in FAMILIES if each.model_type == model_type)


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of a checkpoint, by its architecture, else by its model_type. Raises ConfigError.

    transformers goes by the model_type, vLLM by the architecture: where they differ, neither is chosen.
    """
    names, model_type = config.get("architectures") or [], config.get("model_type")
    names = names if isinstance(names, list) else [names]
    for each in FAMILIES:
        if any(name in names for name in each.architectures) or (not names and model_type == each.model_type):
            if model_type not in (None, each.model_type):
                raise ConfigError(
                    f"{where} has {', '.join(map(str, names))} and model_type {model_type!r}, which differ: correct one"
                )
            return each
    known = ", ".join(name for each in FAMILIES for name in each.architectures)
    found = ", ".join(map(str, names)) if names else f"model_type {model_type!r}"
    raise ConfigError(f"{where} has {found}, which is not supported: use a checkpoint of {known}")
