"""Seesaw: LLM inference that prefills in one parallel layout and decodes in another.

`from seesaw import LLM, SamplingParams` is the way in without HTTP. The package's folders, `seesaw.engine`,
`seesaw.server` and `seesaw.clients`, are links to those beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.structured import StructuredOutputs

if TYPE_CHECKING:
    from seesaw.engine.llm import LLM

    __version__: str

__all__ = ["LLM", "SamplingParams", "StructuredOutputs"]


def __getattr__(name: str) -> Any:
    # Lazily: the processes that import a part of the engine need neither its door nor a tokenizer.
    if name == "LLM":
        from seesaw.engine.llm import LLM

        return LLM
    if name == "__version__":
        from seesaw.server.version import seesaw_version

        return seesaw_version()
    raise AttributeError(f"module 'seesaw' has no attribute {name!r}")
