"""Texts that a grammar allows: random walks over the tokens that its masks allow, which prefer to come to an end."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np

from seesaw.engine.grammar.matcher import Matcher
from seesaw.engine.sampling.token_masks import Mask, mask_words

CLOSING = frozenset(b'"}])')
OPENING = frozenset(b"{[(,")
PATIENCE = 40  # tokens after which a walk wants nothing but its end
MAX_TOKENS = 3000


def allowed(matcher: Matcher, vocab_size: int) -> list[int]:
    """The token ids of a matcher's mask."""
    row: Mask = np.full(mask_words(vocab_size), 0xFFFFFFFF, np.uint32)
    matcher.fill(row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def walk(matcher: Matcher, vocab_size: int, end_ids: set[int], seed: int) -> list[int]:
    """Tokens up to and without the end. Ids under 256 must be bytes."""
    rng = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        choices = allowed(matcher, vocab_size)
        assert choices, f"nothing may follow {tokens}: {matcher.failure}"
        assert max(choices) < vocab_size
        ends = end_ids.intersection(choices)
        assert bool(ends) == matcher.may_stop
        impatience = 0.95 if len(tokens) > PATIENCE else 0.3
        if ends and (matcher.is_over or rng.random() < impatience):
            matcher.accept(min(ends))
            assert set(allowed(matcher, vocab_size)) == end_ids
            return tokens
        choices = [id for id in choices if id not in ends]
        closing = [id for id in choices if id in CLOSING]
        modest = [id for id in choices if id not in OPENING]
        if closing and rng.random() < impatience:
            choices = closing
        elif modest and rng.random() < impatience:
            choices = modest
        tokens.append(rng.choice(choices))
        matcher.accept(tokens[-1])
    raise AssertionError(f"no end after {MAX_TOKENS} tokens")


def follow(matcher: Matcher, tokens: Iterable[int]) -> Matcher:
    """The matcher, once it has accepted these tokens."""
    for token in tokens:
        matcher.accept(token)
    return matcher
