"""JSON schemas without what is written in them for readers. Used by `engine.grammar.text`, and by the server for the
arguments of forced tool calls.

No grammar needs it, and of many tools it is most of the text.
"""

from __future__ import annotations

from typing import Any

from seesaw.engine.grammar.closed_schemas import DATA, MAPS

_DESCRIPTIONS = frozenset(("title", "description", "$comment"))


def without_descriptions(schema: Any, *, is_map: bool = False) -> Any:
    """A copy. Only texts are left out, in which no reference can end. `is_map`: its keys are names, and no keywords.
    Raises RecursionError."""
    if isinstance(schema, list):
        return [without_descriptions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copied: dict[str, Any] = {}
    for key, value in schema.items():
        if not is_map and key in DATA:
            copied[key] = value
        elif is_map or key not in _DESCRIPTIONS or not isinstance(value, str):
            copied[key] = without_descriptions(value, is_map=not is_map and key in MAPS)
    return copied
