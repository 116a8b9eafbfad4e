"""Words that an output may not hold, as tokens."""

from __future__ import annotations

import msgspec

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.text.tokenizer import Tokenizer


def with_bad_words(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """The parameters with the token ids of their bad words; as in vLLM, at an output's begin and behind a space."""
    if not params.bad_words:
        return params
    words = [word.lstrip() for word in params.bad_words]
    plain = tokenizer.encode(words, add_special_tokens=False)
    spaced = tokenizer.encode([f" {word}" for word in words], add_special_tokens=False)
    ids = list(map(tuple, plain))
    # A word of another length behind a space is cut otherwise there, and no tokens of its own would be banned.
    ids += [
        tuple(behind)
        for begin, behind in zip(plain, spaced, strict=True)
        if len(behind) == len(begin) and behind[:1] != begin[:1]
    ]
    return msgspec.structs.replace(params, bad_words_token_ids=params.bad_words_token_ids + tuple(ids))
