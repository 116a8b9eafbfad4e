"""What asks for a form of the text, in all the ways that clients have for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.structured import StructuredRequest

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}}
AS_SCHEMA = StructuredOutputs("json_schema", json.dumps(SCHEMA))


def form(body: dict[str, Any]) -> tuple[StructuredOutputs, str] | None:
    return StructuredRequest.model_validate_json(json.dumps(body)).structured


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        (dict.fromkeys(StructuredRequest.model_fields), None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutputs("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            AS_SCHEMA,
        ),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, AS_SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, AS_SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, AS_SCHEMA),
        ({"structured_outputs": {"json": True, "whitespace_pattern": None}}, StructuredOutputs("json_schema", "true")),
        ({"structured_outputs": {"regex": "a|b", "json_object": False}}, StructuredOutputs("regex", "a|b")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutputs("choice", choices=("a", "b"))),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, StructuredOutputs("grammar", 'start: "a"')),
        ({"structured_outputs": {"json_object": True}}, StructuredOutputs("json_object")),
        ({"guided_json": SCHEMA}, AS_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, AS_SCHEMA),
        ({"guided_regex": "a"}, StructuredOutputs("regex", "a")),
        ({"guided_choice": ["x"]}, StructuredOutputs("choice", choices=("x",))),
        ({"guided_grammar": 'root ::= "a"'}, StructuredOutputs("grammar", 'root ::= "a"')),
    ],
)
def test_forms(body: dict[str, Any], expected: StructuredOutputs | None) -> None:
    assert form(body) == (None if expected is None else (expected, next(iter(body))))


@pytest.mark.parametrize(
    ("param", "body", "message"),
    [
        ("response_format", {"response_format": {"type": "xml"}}, "must be text"),
        ("response_format", {"response_format": {"type": "json_schema"}}, "needs a json_schema"),
        ("structured_outputs", {"structured_outputs": {}}, "needs one of"),
        ("structured_outputs", {"structured_outputs": {"json_object": False}}, "needs one of"),
        ("structured_outputs", {"structured_outputs": {"regex": "a", "structural_tag": "{}"}}, "structural_tag"),
        (
            "structured_outputs",
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.regex and structured_outputs.choice",
        ),
        (
            "response_format",
            {"response_format": {"type": "json_object"}, "guided_json": {}},
            "response_format and guided_json",
        ),
        ("guided_regex", {"guided_regex": "a", "guided_grammar": "b"}, "guided_regex and guided_grammar"),
    ],
)
def test_what_makes_no_form(param: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        form(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": "json"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        {"guided_choice": "a"},
        {"guided_regex": ["a"]},
    ],
)
def test_bodies_of_the_wrong_shape(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        form(body)


def test_a_schema_nested_too_deeply_is_no_body() -> None:
    deep = '{"items":' * 100_000 + "true" + "}" * 100_000
    with pytest.raises(ValidationError):
        StructuredRequest.model_validate_json(f'{{"guided_json": {deep}}}')
