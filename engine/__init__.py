"""Seesaw's engine: prefill in one parallel layout, decode in another. `from engine import LLM, SamplingParams`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.sampling.params import SamplingParams
from engine.sampling.structured import StructuredOutputs

if TYPE_CHECKING:
    from engine.llm import LLM

__all__ = ["LLM", "SamplingParams", "StructuredOutputs"]


def __getattr__(name: str) -> Any:
    # Lazily: the processes that import a part of the engine need neither its door nor a tokenizer.
    if name == "LLM":
        from engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'engine' has no attribute {name!r}")
