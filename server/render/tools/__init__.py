"""Calls of tools in what a model writes, by the name that `--tool-call-parser` gives to their kind."""

from __future__ import annotations

from seesaw.server.render.tools.base import ToolParser
from seesaw.server.render.tools.hermes import HermesParser
from seesaw.server.render.tools.llama import LlamaParser
from seesaw.server.render.tools.mistral import MistralParser
from seesaw.server.render.tools.pythonic import PythonicParser

TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3_json": LlamaParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
}

__all__ = ["TOOL_PARSERS", "ToolParser"]
