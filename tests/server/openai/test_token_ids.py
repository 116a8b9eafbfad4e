"""Token ids of large bodies are read in pieces, to the same ids."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.server.openai.protocol import token_ids
from seesaw.server.openai.protocol.token_ids import take_ids

NUMBERS = st.lists(st.integers(-9, 10**20), max_size=12)


@given(ids=NUMBERS | st.lists(NUMBERS, max_size=5), piece_bytes=st.integers(22, 60), indent=st.sampled_from([None, 1]))
def test_the_same_ids(ids: list[int] | list[list[int]], piece_bytes: int, indent: int | None) -> None:
    body = json.dumps({"a": "[1]", "prompt": ids, "b": [2]}, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_ids, "_PIECE_BYTES", piece_bytes)
        read, rest = take_ids(body, "prompt")
    if not ids:  # the model says what is wrong with that
        assert (read, rest) == (None, body)
    else:
        assert read == ids
        assert json.loads(rest) == {"a": "[1]", "prompt": [0], "b": [2]}


@pytest.mark.parametrize(
    "prompt", ['"a"', "[1.0]", "[true]", '["a", 1]', "[[1], 2]", "[1, [2]]", "[[[1]]]", "[[1], [2]", "[1,]", "{}", "1"]
)
def test_what_are_no_ids_is_left_to_the_model(prompt: str) -> None:
    body = b'{"prompt": %b}' % prompt.encode()
    assert take_ids(body, "prompt") == (None, body)
