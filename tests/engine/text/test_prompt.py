"""What a prompt may be, and what it is to the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seesaw.engine.text.prompt import EncodedPrompt, Prompt, as_list, encode_prompts
from seesaw.engine.text.tokenizer import NoTokenizer
from tests.engine.text.tokenizers import BYTES


@pytest.mark.parametrize("one", ["ab", [1, 2], (1, 2), {"prompt": "ab"}, {"prompt_token_ids": [1, 2]}])
def test_one_prompt_and_many(one: Prompt) -> None:
    assert as_list(one) == as_list([one]) == as_list(each for each in [one]) == [one]
    assert as_list([one, "b", [3]]) == [one, "b", [3]]


def test_texts_and_token_ids_keep_their_order() -> None:
    prompts: list[Prompt] = ["a", [1], {"prompt": "b"}, {"prompt_token_ids": (2,), "prompt": "c"}, "d"]
    encoded = [("a", [97]), (None, [1]), ("b", [98]), ("c", [2]), ("d", [100])]
    assert encode_prompts(BYTES, prompts) == [EncodedPrompt(*each) for each in encoded]
    assert encode_prompts(BYTES, []) == []


def test_a_salt_stays_with_its_prompt() -> None:
    prompts: list[Prompt] = [{"prompt": "a", "cache_salt": "s"}, "a", {"prompt_token_ids": [97], "cache_salt": "t"}]
    assert [prompt.cache_salt for prompt in encode_prompts(BYTES, prompts)] == ["s", "", "t"]


@pytest.mark.parametrize(
    "wrong", [{}, {"prompt": [1]}, {"text": "a"}, {"prompt_token_ids": 1}, None, 1.5, [1.5], ["a"], [None]]
)
def test_what_is_no_prompt(wrong: Any) -> None:
    with pytest.raises(ValueError, match="prompt_token_ids"):
        encode_prompts(BYTES, as_list([wrong, "a"]))


def test_a_key_that_means_nothing_is_not_passed_over() -> None:
    """A salt that is misspelt keeps nothing apart."""
    with pytest.raises(ValueError, match="has no cache_slat: it takes cache_salt, prompt, prompt_token_ids"):
        encode_prompts(BYTES, [{"prompt": "a", "cache_slat": "s"}])  # type: ignore[typeddict-unknown-key,list-item]


@pytest.mark.parametrize("wrong", [None, 5])
def test_what_holds_no_prompts(wrong: Any) -> None:
    with pytest.raises(ValueError, match="prompt_token_ids"):
        as_list(wrong)


def test_token_ids_of_numpy_are_plain_ones() -> None:
    tokens = np.array([1, 2])
    for prompts in ([tokens], list(tokens), [{"prompt_token_ids": tokens}]):
        [(text, plain, _)] = encode_prompts(BYTES, as_list(prompts))
        assert (text, plain, [*map(type, plain)]) == (None, [1, 2], [int, int])
    array: Any = tokens
    assert as_list(array) == [[1, 2]] and as_list(np.stack([array, array])) == [[1, 2], [1, 2]]


def test_without_a_tokenizer_only_token_ids_are_prompts() -> None:
    assert encode_prompts(NoTokenizer(), [[1], {"prompt_token_ids": [2]}]) == [
        EncodedPrompt(None, [1]),
        EncodedPrompt(None, [2]),
    ]
    with pytest.raises(ValueError, match="skip_tokenizer"):
        encode_prompts(NoTokenizer(), [[1], "a"])
