"""What form a text must have. A plain value: crosses every process boundary as it is.

`engine.grammar.grammars` turns it into a grammar over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from typing import Any, Literal

import msgspec

Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]


class Reasoning(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model may think before the text that has a form, by tokens: all up to `end`."""

    end: tuple[int, ...]
    begin: int | None = None  # may come first, and else the text begins at once; None: the thoughts have begun

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.end if self.begin is None else (self.begin, *self.end)


class StructuredOutputs(msgspec.Struct, frozen=True, omit_defaults=True):
    """The form of one request's texts. Equal ones share one compiled grammar."""

    kind: Kind
    # A JSON schema as JSON, a regular expression that the whole text matches, or a grammar in Lark's or GBNF's syntax.
    text: str = ""
    choices: tuple[str, ...] = ()  # of `choice`: the whole text is one of them

    @property
    def num_chars(self) -> int:
        return len(self.text) + sum(map(len, self.choices))

    @classmethod
    def of(
        cls,
        *,
        json: str | dict[str, Any] | None = None,
        regex: str | None = None,
        choice: Sequence[str] | None = None,
        grammar: str | None = None,
        json_object: bool = False,
    ) -> StructuredOutputs:
        """One of the forms, by vLLM's names; `json` is a schema. Raises ValueError unless just one is given."""
        forms: list[StructuredOutputs] = []
        if json is not None:
            forms.append(cls("json_schema", json if isinstance(json, str) else dumps(json)))
        if regex is not None:
            forms.append(cls("regex", regex))
        if choice is not None:
            forms.append(cls("choice", choices=tuple(choice)))
        if grammar is not None:
            forms.append(cls("grammar", grammar))
        if json_object:
            forms.append(cls("json_object"))
        if len(forms) != 1:
            raise ValueError("give just one of json, regex, choice, grammar and json_object")
        return forms[0]
