"""Sampling that a Python program brings, checked for the types of its fields. Called by `engine.llm`.

Of HTTP's bodies pydantic sees to that. Otherwise the wire to the ranks would be the first to find another type, in the
middle of a step.
"""

from __future__ import annotations

import re
from numbers import Integral, Real
from typing import Any

import msgspec

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import RequestError


def typed(params: SamplingParams) -> SamplingParams:
    """The same with plain numbers instead of numpy's. Raises RequestError, naming the field, for any other type."""
    if not isinstance(params, SamplingParams):
        raise RequestError(f"sampling_params must be SamplingParams, not {type(params).__name__}.")
    if not isinstance(params.structured_outputs, StructuredOutputs | None):
        raise RequestError("structured_outputs must be made by StructuredOutputs.of.", "structured_outputs")
    fields = {name: _plain(value) for name, value in msgspec.structs.asdict(params).items()}
    try:
        return msgspec.convert(fields, SamplingParams)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at ")  # Expected `int`, got `str` - at `$.seed`
        name = re.findall(r"\$\.(\w+)", where)[0]
        raise RequestError(f"{name} is not of its type: {reason[0].lower()}{reason[1:]}.", name) from None


def _plain(value: Any) -> Any:
    match value:
        case bool():
            return value
        case Integral():
            return int(value)
        case Real():
            return float(value)
        case list() | tuple() | set() | frozenset():
            return [_plain(each) for each in value]
        case dict():
            return {_plain(key): _plain(each) for key, each in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value  # an array, or numpy's own truth
