"""JSON schemas without the room for properties that nobody thought of. Used by `engine.grammar.text`, and by
the server for the arguments of forced tool calls.

By the letter of JSON Schema an object may have any properties beside those described. Whoever sends a schema for a
text to follow does not mean that, and hardly any client says so (pydantic does not); a model of little sense then
goes on inventing properties until its tokens run out. As in vLLM's default, what is not said is no. All that is
written under the closed schema is valid under the one that was sent.
"""

from __future__ import annotations

from typing import Any

# Keywords whose values hold no schemas, and those that map names to schemas.
DATA = frozenset(("const", "enum", "default", "examples"))
MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions"))

# Said beside `properties`, these mean that it is not all there is to say on which properties there are.
_SAYS_MORE = frozenset(
    ("additionalProperties", "unevaluatedProperties", "patternProperties", "minProperties", "anyOf", "oneOf", "$ref")
)


def closed(schema: Any) -> Any:
    """The schema with the objects closed that leave it open whether they are; the same if parts of it are combined, for
    there what one part leaves out another may require."""
    parts = [schema]
    objects: set[int] = set()
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        if not isinstance(part, dict):
            continue
        named = part.get("properties")
        if "allOf" in part or (isinstance(named, dict) and not part.keys().isdisjoint(("anyOf", "oneOf", "$ref"))):
            return schema
        required = part.get("required", [])
        if (
            isinstance(named, dict)
            and part.keys().isdisjoint(_SAYS_MORE)
            and isinstance(required, list)
            and all(isinstance(name, str) and name in named for name in required)
        ):
            objects.add(id(part))
        for key, inner in part.items():
            if key in MAPS and isinstance(inner, dict):
                parts += inner.values()
            elif key not in DATA:
                parts.append(inner)
    return _copy(schema, objects)


def _copy(part: Any, objects: set[int]) -> Any:
    if isinstance(part, list):
        return [_copy(item, objects) for item in part]
    if not isinstance(part, dict):
        return part
    copied = {key: _copy(value, objects) for key, value in part.items()}
    return copied | {"additionalProperties": False} if id(part) in objects else copied
