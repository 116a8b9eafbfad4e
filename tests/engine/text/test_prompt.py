"""What a prompt may be, and what it is to the engine."""

from __future__ import annotations

from typing import Any

import pytest

from engine.text.prompt import Prompt, as_list, encode_prompts
from engine.text.tokenizer import NoTokenizer
from tests.engine.text.tokenizers import BYTES


@pytest.mark.parametrize("one", ["ab", [1, 2], (1, 2), {"prompt": "ab"}, {"prompt_token_ids": [1, 2]}])
def test_one_prompt_and_many(one: Prompt) -> None:
    assert as_list(one) == as_list([one]) == as_list(each for each in [one]) == [one]
    assert as_list([one, "b", [3]]) == [one, "b", [3]]


def test_texts_and_token_ids_keep_their_order() -> None:
    prompts: list[Prompt] = ["a", [1], {"prompt": "b"}, {"prompt_token_ids": (2,), "prompt": "c"}, "d"]
    assert encode_prompts(BYTES, prompts) == [("a", [97]), (None, [1]), ("b", [98]), ("c", [2]), ("d", [100])]
    assert encode_prompts(BYTES, []) == []


@pytest.mark.parametrize("wrong", [{}, {"prompt": [1]}, {"text": "a"}])
def test_a_dict_that_is_no_prompt(wrong: Any) -> None:
    with pytest.raises(ValueError, match="prompt_token_ids"):
        encode_prompts(BYTES, [wrong])


def test_without_a_tokenizer_only_token_ids_are_prompts() -> None:
    assert encode_prompts(NoTokenizer(), [[1], {"prompt_token_ids": [2]}]) == [(None, [1]), (None, [2])]
    with pytest.raises(ValueError, match="skip_tokenizer"):
        encode_prompts(NoTokenizer(), [[1], "a"])
