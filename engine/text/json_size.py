"""How much is in JSON that others wrote, counted before it is read: readers hold up all other threads until they are
done, and a megabyte may hold a text or half a million lists."""

from __future__ import annotations

import re
from typing import NamedTuple

# Texts, objects, lists and words: read in some 25 ms. Of 128 tools with 100 properties each, a property may have ten.
MAX_VALUES = 1 << 17
# Of objects. Parameters of no known name are read the slowest, these in some 40 ms. Such a property may have four.
MAX_KEYS = 1 << 16
# Objects become the largest values. More of them need more bytes of a body: one for each so many. OpenAI takes 2,048
# messages, of which each may have a call and parts, and forms of 5,000 properties.
MAX_OBJECTS, OBJECT_BYTES = 1 << 14, 100
MAX_ENTRIES = 1 << 18  # of all lists and objects: numbers are read faster
_PIECE_BYTES = 64 << 10
_BEHIND_BACKSLASHES = re.compile(rb"[^\\]")


class JsonSize(NamedTuple):
    """What a JSON text holds at most."""

    values: int  # texts (keys, too), objects, lists, and words such as true
    entries: int  # of all lists and objects: numbers, too
    objects: int
    keys: int


def count_values(data: bytes) -> JsonSize:
    """Piece by piece, so that other threads run meanwhile. Of what is no JSON it counts something."""
    values = entries = objects = keys = quotes = at = 0
    in_text = False
    while at < len(data):
        end = min(at + _PIECE_BYTES, len(data))
        if data[end - 1 : end] == b"\\":  # what it escapes belongs to this piece
            behind = _BEHIND_BACKSLASHES.search(data, end)
            end = behind.end() if behind else len(data)
        parts = data[at:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[in_text::2])
        # `true` and `null` have a u, `false` and `NaN` an a.
        braces = outside.count(b"{")
        objects += braces
        keys += outside.count(b":")
        lists = outside.count(b"[") + braces
        values += lists + outside.count(b"u") + outside.count(b"a")
        entries += outside.count(b",") + lists
        quotes += len(parts) - 1
        in_text = quotes % 2 == 1
        at = end
    return JsonSize(values + quotes // 2, entries, objects, keys)
