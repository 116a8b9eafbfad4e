"""JSON is counted as it will be read, wherever its pieces begin and end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.text import json_size
from seesaw.engine.text.conversation import read_arguments
from seesaw.engine.text.json_size import MAX_VALUES, count_values
from seesaw.engine.values.errors import RequestError

TEXT = st.text(st.sampled_from('a"\\[{,:u\n\u4e16'), max_size=9)
ANY = st.recursive(
    st.integers() | st.booleans() | st.none() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=20,
)


def values(node: Any) -> int:
    """Texts, keys, lists, objects and words."""
    match node:
        case dict():
            return 1 + sum(1 + values(value) for value in node.values())
        case list():
            return 1 + sum(map(values, node))
        case bool() | None | str():
            return 1
    return 0


def entries(node: Any) -> int:
    """All there may be: an empty list counts as if it had one."""
    inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return sum(map(entries, inner)) + (max(1, len(inner)) if isinstance(node, dict | list) else 0)


def objects(node: Any) -> int:
    inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return isinstance(node, dict) + sum(map(objects, inner))


def keys(node: Any) -> int:
    match node:
        case dict():
            return len(node) + sum(map(keys, node.values()))
        case list():
            return sum(map(keys, node))
    return 0


@given(node=ANY, piece_bytes=st.integers(1, 30), ascii=st.booleans())
def test_what_is_counted_is_there(node: Any, piece_bytes: int, ascii: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_size, "_PIECE_BYTES", piece_bytes)
        assert count_values(json.dumps(node, ensure_ascii=ascii).encode()) == (
            values(node),
            entries(node),
            objects(node),
            keys(node),
        )


def test_arguments_of_calls_are_counted_before_they_are_read() -> None:
    assert read_arguments('{"a": ["[],[],"]}', "p") == {"a": ["[],[],"]}
    with pytest.raises(RequestError, match="at most"):
        read_arguments('{"a": [' + "1," * MAX_VALUES + "1]}", "p")
