"""What is written for readers is left out of schemas, and nothing that only looks like it."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.engine.grammar.descriptions import without_descriptions

TOLD = {"title": "A", "description": "what it is", "$comment": "why"}


def test_descriptions_are_left_out_wherever_they_are() -> None:
    plain = {"$defs": {"d": {"type": "integer"}}, "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/d"}]}}
    told = {
        "$defs": {"d": {"type": "integer"} | TOLD},
        "items": {"anyOf": [{"type": "string"} | TOLD, {"$ref": "#/$defs/d"}]} | TOLD,
    }
    assert without_descriptions(told | TOLD) == plain
    assert "title" in told["$defs"]["d"]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"title": {"type": "string"}, "description": True, "const": {"type": "string"}}},
        {"properties": {"title": "no schema"}},
        {"properties": {"properties": {"properties": {"description": {"enum": ["title"]}}}}},
        {"const": TOLD},
        {"enum": [TOLD, {"a": [TOLD]}], "default": TOLD, "examples": [TOLD]},
        {"required": ["title", "description"], "description": {"type": "string"}},
    ],
)
def test_what_only_looks_like_them_stays(schema: Any) -> None:
    assert without_descriptions(schema) == schema
