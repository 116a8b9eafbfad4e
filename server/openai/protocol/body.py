"""What all bodies of requests are, and the bounds on what they may hold beside their bytes.

A few bytes can stand for a lot of work: `[],` is a list, and an error if a string was wanted. So large bodies are
counted before they are read, and of a list's wrong entries only the first is told of.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from seesaw.engine.text.json_size import MAX_ENTRIES, MAX_KEYS, MAX_OBJECTS, MAX_VALUES, OBJECT_BYTES, count_values
from seesaw.engine.values.errors import RequestError

# Reading so much takes some milliseconds at worst, whatever it holds; more is counted before.
SMALL_BODY_BYTES = 64 << 10


def _fail_fast(node: Any) -> None:
    """Lists and objects stop at their first error."""
    if isinstance(node, dict):
        if node.get("type") in ("list", "dict"):
            node["fail_fast"] = True
        for key, value in node.items():
            if key != "metadata":
                _fail_fast(value)
    elif isinstance(node, list):
        for value in node:
            _fail_fast(value)


class Body(BaseModel):
    """Of a request, or a part of one."""

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Raises pydantic's ValidationError, and RequestError for what holds too much."""
        check_size(body)
        return cls.model_validate_json(body)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


def check_size(body: bytes, most_entries: float = MAX_ENTRIES) -> None:
    """Raise RequestError if a body holds too many values or entries of lists."""
    if len(body) <= SMALL_BODY_BYTES:
        return
    size = count_values(body)
    for number, most, what in (
        (size.values, MAX_VALUES, "values beside numbers"),
        (size.objects, max(MAX_OBJECTS, len(body) // OBJECT_BYTES), "objects"),
        (size.keys, MAX_KEYS, "keys of objects"),
        (size.entries, most_entries, "entries of lists and objects"),
    ):
        if number > most:
            raise RequestError(f"The body holds more than {most} {what}: send less at once.")
