"""Objects take the properties that are described, unless the schema says otherwise or is put together from parts."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.engine.grammar.closed_schemas import closed
from tests.engine.grammar.test_grammars import accepts, schema_of

PERSON: dict[str, Any] = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


def test_objects_are_closed_wherever_they_are() -> None:
    inner = PERSON | {"additionalProperties": False}
    people = {"$defs": {"p": PERSON}, "type": "array", "items": {"anyOf": [{"$ref": "#/$defs/p"}, PERSON]}}
    assert closed(PERSON) == inner
    assert closed(people) == {
        "$defs": {"p": inner},
        "type": "array",
        "items": {"anyOf": [people["items"]["anyOf"][0], inner]},
    }
    assert "additionalProperties" not in PERSON
    nested = {"properties": {"properties": PERSON}}
    assert closed(nested) == {"properties": {"properties": inner}, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        PERSON | {"additionalProperties": True},
        PERSON | {"patternProperties": {"^x": {}}},
        PERSON | {"minProperties": 2},
        PERSON | {"required": ["age", "name"]},
        PERSON | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"allOf": [PERSON, {"properties": {"name": {"type": "string"}}, "required": ["name"]}]},
        {"enum": [{"properties": {}}], "default": {"properties": {}}},
    ],
)
def test_what_says_more_stays_as_it_is(schema: Any) -> None:
    assert closed(schema) == schema


def test_the_grammar_has_no_room_for_more() -> None:
    more = '{"age": 3, "name": "x"}'
    assert accepts(schema_of(PERSON), '{"age": 3}')
    assert not accepts(schema_of(PERSON), more)
    assert accepts(schema_of(PERSON | {"additionalProperties": True}), more)
