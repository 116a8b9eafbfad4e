"""Answers that must be calls of tools (`tool_choice` required, or a function by name): the form that leaves the model
no other way than to write them as the operator's tool parser reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from seesaw.engine.grammar.closed_schemas import closed
from seesaw.engine.grammar.descriptions import without_descriptions
from seesaw.engine.grammar.text import JSON_OPTIONS
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import RequestError
from seesaw.server.render.tools import hermes, mistral
from seesaw.server.render.tools.json_calls import MAX_NAME_CHARS
from seesaw.server.render.tools.python_grammar import PythonGrammar

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class Signature(NamedTuple):
    """A function that may be called, and the schema of its arguments; None if it takes none."""

    name: str
    parameters: dict[str, Any] | None = None

    @property
    def schema(self) -> dict[str, Any]:
        """Of an object, even where the client's leaves that open."""
        if self.parameters is None:
            return NO_PARAMETERS
        schema: dict[str, Any] = closed(without_descriptions({"type": "object"} | self.parameters))
        return schema


class _Call(NamedTuple):
    """The calls of one answer, as an expression of Lark's, and the rules that it needs."""

    calls: str
    rules: list[str]


def forced_calls(
    parser: str, functions: Sequence[Signature], special_tokens: Mapping[str, int], *, several: bool
) -> StructuredOutputs:
    """The form of one call, or of one and more, of these functions, for the tool parser of this name.

    `special_tokens`: the tokenizer's, by their text: a marker that is one of them has no other spelling.
    Raises RequestError, with the param `tools`, for what the parser's format cannot express.
    """
    if any(not 1 <= len(function.name) <= MAX_NAME_CHARS for function in functions):
        raise RequestError(f"The name of a tool must have 1 to {MAX_NAME_CHARS} characters.", "tools")

    if any((function.parameters or {}).get("type", "object") != "object" for function in functions):
        raise RequestError("The parameters of a tool must be an object.", "tools")

    def marker(text: str) -> str:
        return f"<[{special_tokens[text]}]>" if text in special_tokens else _literal(text)

    if parser == "mistral" and mistral.ARGS in special_tokens:
        parser = "mistral_named"
    try:
        calls, rules = _FORMATS[parser](functions, marker, several)
    except RecursionError:
        raise RequestError("The parameters of a tool are nested too deeply.", "tools") from None
    return StructuredOutputs("grammar", "\n".join([f"start: {calls}", *rules]))


_Marker = Callable[[str], str]


def _hermes(functions: Sequence[Signature], marker: _Marker, several: bool) -> _Call:
    line_end = _literal("\n")
    call = f"{marker(hermes.OPEN)} {line_end} call {line_end} {marker(hermes.CLOSE)}"
    return _Call(_repeated(call, "\n", several), _json_calls(functions, "arguments"))


def _llama3_json(functions: Sequence[Signature], marker: _Marker, several: bool) -> _Call:
    return _Call(_repeated("call", "; ", several), _json_calls(functions, "parameters"))


def _mistral(functions: Sequence[Signature], marker: _Marker, several: bool) -> _Call:
    calls = f"{marker(mistral.MARKER)} {_literal('[')} {_repeated('call', ', ', several)} {_literal(']')}"
    return _Call(calls, _json_calls(functions, "arguments"))


def _mistral_named(functions: Sequence[Signature], marker: _Marker, several: bool) -> _Call:
    """Of newer models, whose tokenizer has a token between the name and the arguments."""
    for function in functions:
        if not mistral.HEAD.fullmatch(function.name):
            raise RequestError(f"The mistral format cannot call a tool named {function.name!r}.", "tools")
    call = f"{marker(mistral.MARKER)} call"
    heads = [f"{_literal(function.name)} {marker(mistral.ARGS)}" for function in functions]
    return _Call(f"({call})+" if several else call, _alternatives(functions, heads, ""))


def _pythonic(functions: Sequence[Signature], marker: _Marker, several: bool) -> _Call:
    grammar = PythonGrammar()
    call = " | ".join([grammar.call(function.name, function.schema) for function in functions])
    calls = f"{_literal('[')} {_repeated('call', ', ', several)} {_literal(']')}"
    return _Call(calls, [f"call: {call}", *grammar.rules])


_FORMATS = {
    "hermes": _hermes,
    "llama3_json": _llama3_json,
    "mistral": _mistral,
    "mistral_named": _mistral_named,
    "pythonic": _pythonic,
}


def _json_calls(functions: Sequence[Signature], arguments: str) -> list[str]:
    """The rule `call` for JSON objects of a name and arguments."""
    heads = [f"{{{json.dumps('name')}: {json.dumps(each.name)}, {json.dumps(arguments)}: " for each in functions]
    return _alternatives(functions, list(map(_literal, heads)), _literal("}"))


def _alternatives(functions: Sequence[Signature], heads: list[str], end: str) -> list[str]:
    """Each function has a schema of its own: references in it start at its root."""
    rules = [f"call: {' | '.join(f'call_{index}' for index in range(len(functions)))}"]
    for index, (function, head) in enumerate(zip(functions, heads, strict=True)):
        schema = json.dumps(function.schema | {"x-guidance": JSON_OPTIONS})
        rules.append(f"call_{index}: {head} %json {schema} {end}")
    return rules


def _repeated(call: str, separator: str, several: bool) -> str:
    return f"{call} ({_literal(separator)} {call})*" if several else call


def _literal(text: str) -> str:
    return json.dumps(text)
