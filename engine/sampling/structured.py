"""What form a text must have. A plain value: crosses every process boundary as it is.

`engine.sampling.grammar` turns it into a grammar over tokens.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]


class StructuredOutputs(msgspec.Struct, frozen=True, omit_defaults=True):
    """The form of one request's texts. Equal ones share one compiled grammar."""

    kind: Kind
    # A JSON schema as JSON, a regular expression that the whole text matches, or a grammar in Lark's or GBNF's syntax.
    text: str = ""
    choices: tuple[str, ...] = ()  # of `choice`: the whole text is one of them
