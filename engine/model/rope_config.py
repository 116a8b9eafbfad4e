"""What a config.json says of rotary positions, and of the context that follows from it. No torch.

transformers is the reference for frequencies (`engine.model.rope` computes them), vLLM for the context that is served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seesaw.engine.model.config_fields import ConfigFields
from seesaw.engine.model.shapes import RopeScaling
from seesaw.engine.values.errors import ConfigError

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")
_FEWEST_TURNS = 1e-9
_LONGEST = 2**24  # tokens; tables of cosines have a row for each

_Read = tuple[RopeScaling, int]


def read_rope(config: Mapping[str, Any], where: str, default_context: int) -> tuple[float, RopeScaling, int]:
    """Theta, scaling, and the longest context in tokens. Raises ConfigError."""
    fields = ConfigFields(config, where)
    table = _table(fields)
    context = fields.count("max_position_embeddings", default_context, _LONGEST)
    kind = table.raw["rope_type"]
    if kind == "linear":
        rope, context = _linear(table, context)
    elif kind == "dynamic":
        # Its frequencies grow with the longest sequence of a batch, from this context on: what was written to the
        # KV cache before would not fit what comes after. Up to here they are the plain ones.
        table.number("factor", least=1)
        rope = RopeScaling()
    elif kind == "yarn":
        rope, context = _yarn(fields, table, context)
    elif kind == "llama3":
        rope = _llama3(fields, table, context)
    elif kind == "default":
        rope = RopeScaling()
    else:
        raise ConfigError(f"{where} asks for rope scaling {kind!r}: only {', '.join(_KINDS)} are supported")
    if context > _LONGEST:
        raise ConfigError(f"{where} scales its context to {context} tokens: lower the factor of its rope scaling")
    return table.number("rope_theta", above=1), rope, context


def _table(fields: ConfigFields) -> ConfigFields:
    """The one table of all that is said, with `rope_type` and `rope_theta`. Where two places differ, none is chosen.

    transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` beside `rope_scaling`. Given both, 5 takes the second
    with the theta beside it, or 10000, and forgets the theta in the first; 4 knows the second only.
    """
    tables = [name for name in ("rope_parameters", "rope_scaling") if fields.table(name).raw]
    read = [_whole_table(fields, name) for name in tables or ["rope_parameters"]]
    if len(read) == 2 and read[0].raw != read[1].raw:
        raise ConfigError(
            f"{fields.where} has rope_parameters and rope_scaling that differ: keep the one that is meant, with its "
            "rope_theta"
        )
    return read[0]


def _whole_table(fields: ConfigFields, name: str) -> ConfigFields:
    raw = {key: value for key, value in fields.table(name).raw.items() if value is not None}
    kind = raw.pop("type", raw.get("rope_type", "default"))
    if raw.setdefault("rope_type", kind) != kind:
        raise ConfigError(f"{fields.where} has a rope_type and a type that differ in {name}: remove the wrong one")
    if nested := [key for key, value in raw.items() if isinstance(value, dict)]:
        raise ConfigError(
            f"{fields.where} has rope scaling of its own for {nested[0]}, which is not supported: use a model whose "
            "layers are alike"
        )
    for key in ("rope_theta", "partial_rotary_factor"):
        outside = fields.raw.get(key)
        if outside is not None and raw.setdefault(key, outside) != outside:
            raise ConfigError(f"{fields.where} has one {key} in {name} and another beside it: remove the wrong one")
    raw.setdefault("rope_theta", 10000.0)
    if raw.pop("partial_rotary_factor", 1) != 1:
        raise ConfigError(f"{fields.where} rotates a part of each head (partial_rotary_factor), which is not supported")
    if "mrope_section" in raw:
        raise ConfigError(f"{fields.where} has multimodal positions (mrope_section): use a model of text alone")
    return ConfigFields(raw, fields.where, name)


def _linear(table: ConfigFields, context: int) -> _Read:
    factor = table.number("factor", least=1)
    return RopeScaling("linear", factor=factor), int(context * factor)


def _yarn(fields: ConfigFields, table: ConfigFields, context: int) -> _Read:
    original = _original(fields, table, context)
    # The ratio where no factor is given; where one is, transformers before 5 ignored it and took the ratio.
    factor = table.number("factor", context / original, least=1)
    rope = RopeScaling(
        "yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=_turns(table, "beta_fast", 32.0),
        beta_slow=_turns(table, "beta_slow", 1.0),
        truncate=table.flag("truncate", True),
        attention_factor=table.number("attention_factor", _attention_factor(table, factor), above=0),
    )
    return rope, int(original * factor) if "factor" in table.raw else context


def _turns(table: ConfigFields, key: str, default: float) -> float:
    """Of yarn, in the original context. Zero means the default, as in transformers."""
    turns = table.number(key, default, least=0) or default
    if turns < _FEWEST_TURNS:  # its logarithm is no number
        raise table.wrong(key, f"0 or at least {_FEWEST_TURNS:g}")
    return turns


def _attention_factor(table: ConfigFields, factor: float) -> float:
    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0

    over, under = table.number("mscale", 0, least=0), table.number("mscale_all_dim", 0, least=0)
    return scale(over) / scale(under) if over and under else scale(1.0)


def _llama3(fields: ConfigFields, table: ConfigFields, context: int) -> RopeScaling:
    rope = RopeScaling(
        "llama3",
        factor=table.number("factor", least=1),
        low_freq_factor=table.number("low_freq_factor", above=0),
        high_freq_factor=table.number("high_freq_factor", above=0),
        original_max_position=_original(fields, table, context),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise table.wrong("high_freq_factor", f"above low_freq_factor ({rope.low_freq_factor:g})")
    return rope


def _original(fields: ConfigFields, table: ConfigFields, context: int) -> int:
    """The context before it was scaled. Some keep it beside the table, and transformers prefers that one."""
    key = "original_max_position_embeddings"
    original = table.count(key, fields.count(key, context, _LONGEST), _LONGEST)
    if fields.count(key, original, _LONGEST) != original:
        raise ConfigError(f"{fields.where} has one {key} among its rope scaling and another beside it: remove one")
    return original
