"""Seesaw: LLM inference that prefills in one parallel layout and decodes in another.

`from seesaw import LLM, SamplingParams` is the way in without HTTP. The package's folders, `seesaw.engine`,
`seesaw.server` and `seesaw.clients`, are links to those beside it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seesaw.engine.llm import LLM
    from seesaw.engine.sampling.params import SamplingParams
    from seesaw.engine.sampling.structured import StructuredOutputs

    __version__: str

__all__ = ["LLM", "SamplingParams", "StructuredOutputs"]


_HOMES = {
    "LLM": "seesaw.engine.llm",
    "SamplingParams": "seesaw.engine.sampling.params",
    "StructuredOutputs": "seesaw.engine.sampling.structured",
}


def __getattr__(name: str) -> Any:
    # Lazily: who imports a part needs neither the door nor a tokenizer, and `clients` nothing of the engine.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from seesaw.version import seesaw_version

        return seesaw_version()
    raise AttributeError(f"module 'seesaw' has no attribute {name!r}")
