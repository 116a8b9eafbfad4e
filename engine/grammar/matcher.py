"""Where each sequence is in its grammar, and the tokens that may come next.

`Grammars` makes the first `Matcher` of a grammar; the engine's loop keeps one per sequence, tells it every token that
was sampled, and has the masks of a step's rows filled before the step is sampled.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher

from seesaw.engine.grammar.thought import Thought
from seesaw.engine.sampling.structured import Reasoning
from seesaw.engine.sampling.token_masks import ALL, Mask, mask_of
from seesaw.engine.values.errors import IntegrityError

# What following a grammar may take of the loop, for all sequences of a request: most need some 20 microseconds a token,
# but an ambiguous grammar's tokens may take a second each.
_SPARE_S, _SPARE_PER_TOKEN_S = 1.0, 0.0005
# Where the masks of a step took longer, the next ones are filled one by one, to find out whose they are.
_SLOW_S = 0.05
_WATCHED_STEPS = 8


class Patience:
    """How long the sequences of one request have held up the loop."""

    def __init__(self) -> None:
        self._left_s = _SPARE_S

    def took(self, seconds: float) -> None:
        """For one more token, or its mask."""
        self._left_s = min(_SPARE_S, self._left_s + _SPARE_PER_TOKEN_S - seconds)

    @property
    def is_over(self) -> bool:
        return self._left_s < 0


class Matcher:
    """One sequence's place in its grammar. Not safe across threads, except that `fill_rows` uses several."""

    def __init__(
        self,
        state: LLMatcher,
        vocab_size: int,
        end_ids: Iterable[int],
        patience: Patience | None = None,
        reasoning: Reasoning | None = None,
    ) -> None:
        """`end_ids`: the tokens that end the sequence. They may come where the text may end, and elsewhere only if
        nothing else may: then the text is cut off there. `patience` is shared with the request's other sequences. What
        comes before the text, `reasoning`, may hold any token."""
        self._state = state
        self._vocab_size = vocab_size
        self._end_ids = frozenset(id for id in end_ids if 0 <= id < vocab_size)
        words = mask_of(self._end_ids, vocab_size)
        self._end_words = np.flatnonzero(words)
        self._end_bits = words[self._end_words]
        self._has_ended = False
        self._gave_up: str | None = None
        self._patience = patience or Patience()
        self._thought = Thought(reasoning) if reasoning is not None else None

    @property
    def is_thinking(self) -> bool:
        """Whether any token may come next, for the text has not begun."""
        return self._thought is not None and self._thought.is_open

    @property
    def failure(self) -> str | None:
        """Why no token can follow although the text is not whole: its grammar became too complex to follow. Such a
        sequence can only be ended with an error."""
        if self._gave_up is not None:
            return self._gave_up
        if self._patience.is_over:
            return "its grammar takes too long to follow"
        if not self._state.is_error():
            return None
        return self._state.get_error().strip().split("\n")[0][:200] or "its grammar cannot be followed"

    @property
    def may_stop(self) -> bool:
        """Whether the text is whole as it is."""
        return self._has_ended or self._state.is_accepting()

    @property
    def is_over(self) -> bool:
        """Whether the text is whole and no token but an end may follow."""
        return self._has_ended or (self._state.is_stopped() and not self._state.is_error())

    def accept(self, token: int) -> None:
        """The sequence goes on with this token. Raises IntegrityError if the grammar forbids it, as a mask would. Where
        it cannot be told any more, there is a `failure`."""
        if self._patience.is_over:
            return
        began_s = time.thread_time()
        self._follow(token)
        self._patience.took(time.thread_time() - began_s)

    def _follow(self, token: int) -> None:
        if self._thought is not None and self._thought.takes(token):
            return
        if token in self._end_ids:
            if not (self.may_stop or self._state.try_consume_tokens([token]) or self._state.is_error()):
                raise IntegrityError(f"token {token} ended a text that its grammar does not let end there")
            self._has_ended = True
        elif self._has_ended or not (self._state.try_consume_tokens([token]) or self._state.is_error()):
            raise IntegrityError(f"token {token} was sampled, which the grammar does not allow there")

    def give_up(self, reason: str) -> None:
        """It has a `failure` from now on."""
        self._gave_up = reason

    def fill(self, row: Mask) -> None:
        """Write the mask `[mask_words(vocab_size)]` of the tokens that may come next. With none, there is a `failure`,
        or it `is_over` and has no tokens that end it."""
        if self.is_thinking:
            row[:] = ALL
            return
        self._compute(row)
        self._add_others(row)

    def fill_watched(self, row: Mask) -> None:
        """As `fill` without what the grammar does not know of, and the time it takes counts. None is computed any more
        once there is a `failure`."""
        if self._patience.is_over:
            row[:] = 0
            return
        began_s = time.thread_time()
        self._compute(row)
        self._patience.took(time.thread_time() - began_s)

    def _compute(self, row: Mask) -> None:
        self._state.unsafe_compute_mask_ptr(_address(row), row.nbytes)

    def _add_others(self, row: Mask) -> None:
        """The tokens that are none of the grammar's."""
        self._add_ends(row)
        if self._thought is not None and self._thought.may_begin and self._thought.begin is not None:
            row[self._thought.begin // 32] |= np.uint32(1 << self._thought.begin % 32)

    def _add_ends(self, row: Mask) -> None:
        if self._has_ended:
            row[:] = 0
        if not self._end_words.size:
            return
        if self.may_stop:
            row[self._end_words] |= self._end_bits
            return
        before = row[self._end_words]
        row[self._end_words] &= ~self._end_bits
        if not row.any():  # the text needs one of them
            row[self._end_words] = before


class MaskFiller:
    """Fills the masks of many sequences at once, on threads of its own."""

    def __init__(self, num_threads: int) -> None:
        self._executor = LLExecutor(num_threads)
        self._watched = 0  # steps whose masks are yet to be filled one by one

    def fill_rows(self, matchers: Sequence[Matcher | None], rows: Mask) -> None:
        """Write the mask of each matcher into its row of `[matchers, mask_words(vocab_size)]`, as `Matcher.fill` does;
        a row without a matcher is all ones. Other Python threads run meanwhile; a matcher may not be in two rows."""
        assert rows.flags.c_contiguous and len(rows) == len(matchers)
        began_s = time.perf_counter()
        matchers = [None if matcher is None or matcher.is_thinking else matcher for matcher in matchers]
        if self._watched:
            self._watched -= 1
            for matcher, row in zip(matchers, rows, strict=True):
                if matcher is not None:
                    matcher.fill_watched(row)
        elif jobs := [(matcher._state, index) for index, matcher in enumerate(matchers) if matcher is not None]:
            self._executor.unsafe_compute_mask_ptr(jobs, _address(rows), rows[0].nbytes, len(rows))
        if time.perf_counter() - began_s > _SLOW_S:
            self._watched = _WATCHED_STEPS
        for matcher, row in zip(matchers, rows, strict=True):
            if matcher is None:
                row[:] = ALL
            else:
                matcher._add_others(row)


def _address(rows: Mask) -> int:
    assert rows.dtype == np.uint32 and rows.flags.c_contiguous and rows.flags.writeable
    return rows.ctypes.data
