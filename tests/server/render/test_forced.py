"""Forced calls: whatever their grammar allows, the parser reads as calls whose arguments hold to the tools' schemas."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest

from seesaw.engine.grammar.grammars import Grammars
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import IntegrityError, RequestError
from seesaw.server.render.tools import TOOL_PARSERS
from seesaw.server.render.tools.forced import Signature, forced_calls
from tests.engine.grammar.walks import follow, walk
from tests.server.render.test_tools import read

VOCAB, EOS = 300, 256
POINT = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["x", "y"]}
PARAMETERS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "its name"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "exact": {"type": ["boolean", "null"]},
        },
        "required": ["city", "exact"],
    },
    "no_parameters": None,
    "open": {"properties": {"anything": {}, "map": {"type": "object", "additionalProperties": {"type": "integer"}}}},
    "draw": {
        "$defs": {"point": POINT, "tree": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}
        | {"node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "v": {"const": -1.5}}}},
        "type": "object",
        "properties": {
            "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 3},
            "tree": {"$ref": "#/$defs/tree"},
            "label": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "kind": {"enum": [True, None, 'it\'s "so"', {"a": [1, False]}]},
        },
        "required": ["points", "label"],
        "additionalProperties": False,
    },
}
SIGNATURES = [Signature(name, parameters) for name, parameters in PARAMETERS.items()]


@cache
def grammars() -> Grammars:
    return Grammars("bytes", VOCAB, [EOS])


def texts(spec: StructuredOutputs, count: int) -> list[str]:
    compilation = grammars().start(spec)
    return [bytes(walk(compilation.matcher(), VOCAB, {EOS}, seed)).decode() for seed in range(count)]


def accepts(spec: StructuredOutputs, text: str) -> bool:
    try:
        return follow(grammars().start(spec).matcher(), text.encode()).may_stop
    except IntegrityError:
        return False


@pytest.mark.parametrize("parser", TOOL_PARSERS)
def test_the_parser_reads_what_is_allowed_as_valid_calls(parser: str) -> None:
    called: set[str] = set()
    for text in texts(forced_calls(parser, SIGNATURES, {}, several=True), 60):
        content, calls = read(parser, text)
        assert (content, bool(calls)) == ("", True), text
        for name, arguments in calls:
            schema = PARAMETERS[name] or {"maxProperties": 0}
            jsonschema.validate(json.loads(arguments), schema | {"type": "object"})
        called.update(name for name, _ in calls)
    assert called == set(PARAMETERS)


@pytest.mark.parametrize("parser", TOOL_PARSERS)
def test_one_call_if_no_more_are_wanted(parser: str) -> None:
    spec = forced_calls(parser, SIGNATURES[:1], {}, several=False)
    for text in texts(spec, 20):
        _, calls = read(parser, text)
        assert [name for name, _ in calls] == ["get_weather"]


CALL = '{"name": "get_weather", "%s": {"city": "Paris", "exact": null}}'


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        ("hermes", f"<tool_call>\n{CALL % 'arguments'}\n</tool_call>"),
        ("hermes", f"<tool_call>\n{CALL % 'arguments'}\n</tool_call>\n<tool_call>\n{CALL % 'arguments'}\n</tool_call>"),
        ("llama3_json", CALL % "parameters"),
        ("llama3_json", f"{CALL % 'parameters'}; {CALL % 'parameters'}"),
        ("mistral", f"[TOOL_CALLS][{CALL % 'arguments'}]"),
        ("mistral", f"[TOOL_CALLS][{CALL % 'arguments'}, {CALL % 'arguments'}]"),
        ("pythonic", '[get_weather(city="Paris", exact=None)]'),
        ("pythonic", '[get_weather(city="Paris", days=3, exact=True), no_parameters()]'),
    ],
)
def test_calls_as_models_were_trained_to_write_them(parser: str, text: str) -> None:
    assert accepts(forced_calls(parser, SIGNATURES, {}, several=True), text)
    assert not accepts(forced_calls(parser, SIGNATURES, {}, several=True), f" {text}")
    assert not accepts(forced_calls(parser, SIGNATURES[1:], {}, several=True), text)


def test_markers_that_are_special_tokens_are_those_tokens() -> None:
    spec = forced_calls("mistral", SIGNATURES[1:2], {"[TOOL_CALLS]": 290}, several=False)
    tokens = walk(grammars().start(spec).matcher(), VOCAB, {EOS}, 0)
    assert tokens == [290, *b'[{"name": "no_parameters", "arguments": {}}]']
    spec = forced_calls("mistral", SIGNATURES[1:2], {"[TOOL_CALLS]": 290, "[ARGS]": 291}, several=False)
    assert walk(grammars().start(spec).matcher(), VOCAB, {EOS}, 0) == [290, *b"no_parameters", 291, *b"{}"]
    spec = forced_calls("hermes", SIGNATURES[1:2], {"<tool_call>": 290, "</tool_call>": 291}, several=False)
    assert walk(grammars().start(spec).matcher(), VOCAB, {EOS}, 0)[::45][:1] == [290]


def properties(**schemas: Any) -> dict[str, Any]:
    return {"type": "object", "properties": schemas}


@pytest.mark.parametrize(
    ("parser", "name", "parameters", "reason"),
    [
        ("hermes", "", None, "name of a tool"),
        ("hermes", "x" * 257, None, "name of a tool"),
        ("hermes", "f", {"type": "string"}, "object"),
        ("pythonic", "get-weather", None, "get-weather"),
        ("pythonic", "f", properties(**{"class": {}}), "class"),
        ("pythonic", "f", properties(**{"a b": {}}), "a b"),
        ("pythonic", "f", properties(a={"oneOf": [{}]}), "oneOf"),
        ("pythonic", "f", properties(a={"type": "array", "uniqueItems": True}), "uniqueItems"),
        ("pythonic", "f", properties(a={"$ref": "#/$defs/b"}), "not there"),
        ("pythonic", "f", properties(a={"maxLength": 4}), "needs a type"),
        ("pythonic", "f", properties(a=False), "false"),
        ("pythonic", "f", properties(a={"enum": []}), "no alternative"),
        ("pythonic", "f", properties() | {"required": ["a"]}, "requires"),
    ],
)
def test_what_a_format_cannot_express(parser: str, name: str, parameters: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        forced_calls(parser, [Signature(name, parameters)], {}, several=True)
    assert caught.value.param == "tools"


def test_deep_parameters_are_refused() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        forced_calls("pythonic", [Signature("f", properties(a=schema))], {}, several=True)


@pytest.mark.parametrize("parser", ["hermes", "pythonic"])
def test_as_many_tools_as_openai_takes(parser: str) -> None:
    types = [{"type": name, "description": "what it is, " * 20} for name in ("string", "integer", "boolean", "number")]
    named = [{f"property_{tool}_{i}": types[i % 4] for i in range(100)} for tool in range(128)]
    tools = [
        Signature(f"tool_{number}", properties(**each) | {"required": [*each][:5]}) for number, each in enumerate(named)
    ]
    spec = forced_calls(parser, tools, {}, several=True)
    assert "what it is" not in spec.text
    grammars().validate(spec, "tools")


def test_schemas_that_cannot_be_enforced_are_refused_when_they_are_compiled() -> None:
    spec = forced_calls("hermes", [Signature("f", properties(a={"not": {}}))], {}, several=True)
    with pytest.raises(RequestError, match="tools cannot be enforced"):
        grammars().validate(spec, "tools")
