"""Grammars over a model's tokens, compiled beside the loop that asks for them.

The engine process has one `Grammars`: its loop starts a compilation, looks in from time to time, and takes the
`Matcher` once it is done. What clients send has passed `server.link.grammar_check` before.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from seesaw.engine.grammar.matcher import Matcher, Patience
from seesaw.engine.grammar.text import grammar_text
from seesaw.engine.grammar.token_table import load_token_table
from seesaw.engine.sampling.structured import Reasoning, StructuredOutputs
from seesaw.engine.sampling.token_masks import mask_words, tokens_of
from seesaw.engine.values.errors import ConfigError, RequestError
from seesaw.engine.values.panics import panics_are_errors

# Kept, with so many characters of specifications, of which each takes 100 to 400 bytes when it is compiled.
MAX_COMPILED, MAX_COMPILED_CHARS = 128, 1 << 23
_TRIES, _TRIED_TOKENS = 3, 16

# llguidance descends a chain of references by recursion: with less, a schema of 20 kB ends the process. Memory that
# is not touched is not taken.
_STACK_BYTES = 512 << 20

_MAX_ROW_ITEMS = 2000
# llguidance's limits that honest schemas meet, in its words and in ours.
_SAID = {
    f"max is {_MAX_ROW_ITEMS}": f"there are more than {_MAX_ROW_ITEMS} ways to go on, and an optional property is four",
    "symbols.len() < u16::MAX": "it has more than 65,525 parts, and an optional property has five",
}

_LIMITS = LLParserLimits(
    max_lexer_states=50_000,  # of 1 to 2 kB, in each matcher
    max_items_in_row=_MAX_ROW_ITEMS,  # its own: of so many, a token takes milliseconds
    verbose_errors=False,  # no state of the parser in messages for clients
)


class Compilation:
    """A grammar on its way."""

    def __init__(self, grammars: Grammars, grammar: Future[LLMatcher], param: str | None) -> None:
        self._grammars = grammars
        self._grammar = grammar
        self._param = param
        self._patience = Patience()

    @property
    def is_done(self) -> bool:
        """Whether `matcher` returns at once."""
        return self._grammar.done()

    def matcher(self, stop_token_ids: Iterable[int] = (), reasoning: Reasoning | None = None) -> Matcher:
        """A matcher for one sequence, which also ends with any of these tokens, and begins with `reasoning`. May be
        called again, for others.

        Raises RequestError, with the `param` that `start` was given, if the specification cannot be enforced.
        """
        try:
            state = self._grammar.result()
        except RequestError as error:
            raise RequestError(
                f"{self._param or 'the specification'} cannot be enforced: {error}.", self._param
            ) from None
        ends = (*self._grammars.eos_token_ids, *stop_token_ids)
        return Matcher(state.deep_copy(), self._grammars.vocab_size, ends, self._patience, reasoning)


class Grammars:
    """Compiles specifications for one model, and keeps those that were used last. Safe across threads."""

    def __init__(
        self, tokenizer: str, vocab_size: int, eos_token_ids: Sequence[int] = (), *, num_threads: int = 2
    ) -> None:
        """`tokenizer`: a checkpoint folder, hub name or `bytes`. `vocab_size`: of the model, not of the tokenizer."""
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(eos_token_ids)
        self._tokenizer = tokenizer
        self._num_threads = num_threads
        self._table: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._compiled: OrderedDict[StructuredOutputs, Future[LLMatcher]] = OrderedDict()
        self._jobs: SimpleQueue[tuple[StructuredOutputs, Future[LLMatcher]]] = SimpleQueue()
        self._has_threads = False

    def start(self, spec: StructuredOutputs, param: str | None = None) -> Compilation:
        """Have a specification compiled, which `param` of the request holds. Returns at once."""
        with self._lock:
            grammar = self._compiled.get(spec)
            if grammar is None:
                while len(self._compiled) >= MAX_COMPILED or self._num_chars >= MAX_COMPILED_CHARS:
                    self._compiled.popitem(last=False)  # who waits for it still gets it
                grammar = self._compiled[spec] = Future()
                self._start_threads()
                self._jobs.put((spec, grammar))
            self._compiled.move_to_end(spec)
        return Compilation(self, grammar, param)

    def validate(self, spec: StructuredOutputs, param: str | None = None) -> None:
        """Raise RequestError if the specification cannot be enforced. Blocks while it is compiled, which may take for
        ever: `GrammarCheck` is for those of clients."""
        self.start(spec, param).matcher()

    @property
    def _num_chars(self) -> int:
        return sum(spec.num_chars for spec in self._compiled)

    def _start_threads(self) -> None:
        if self._has_threads:
            return
        self._has_threads = True
        previous = threading.stack_size(_STACK_BYTES)
        try:
            for _ in range(self._num_threads):
                # Daemons: nothing can interrupt a compilation, and the process shall not wait for one to end.
                threading.Thread(target=self._work, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(previous)

    def _work(self) -> None:
        while True:
            spec, grammar = self._jobs.get()
            try:
                grammar.set_result(self._compile(spec))
            except BaseException as error:  # of any kind: whoever waits must hear of it
                with self._lock:
                    if self._compiled.get(spec) is grammar:
                        del self._compiled[spec]
                grammar.set_exception(error)

    def _load_table(self) -> LLTokenizer:
        try:
            with panics_are_errors():
                return load_token_table(self._tokenizer, self.vocab_size, self.eos_token_ids)
        except (ConfigError, RuntimeError) as error:
            raise RequestError(_reason(str(error))) from None

    def _compile(self, spec: StructuredOutputs) -> LLMatcher:
        try:
            text = grammar_text(spec)
        except ValueError as error:  # llguidance's own
            raise RequestError(_reason(str(error))) from None
        with self._loading:
            if self._table is None:
                self._table = self._load_table()
        grammar = LLMatcher(self._table, text, log_level=0, limits=_LIMITS)
        if grammar.is_error():
            raise RequestError(_reason(grammar.get_error()))
        # The first mask is the dearest one: here it holds up nobody, and copies inherit what it found out.
        if not any(grammar.compute_bitmask()):
            raise RequestError("there is no text that it allows, but perhaps an empty one")
        _try_out(grammar, self.vocab_size)
        return grammar


def _try_out(grammar: LLMatcher, vocab_size: int) -> None:
    """Begin some texts: what is too much for the parser nearly always shows early. Raises RequestError."""
    rng = random.Random(0)
    row = np.empty(mask_words(vocab_size), np.uint32)
    for _ in range(_TRIES):
        matcher = Matcher(grammar.deep_copy(), vocab_size, ())
        for _ in range(_TRIED_TOKENS):
            matcher.fill(row)
            allowed = tokens_of(row)
            if (matcher.failure is None and matcher.is_over) or not len(allowed):
                break
            matcher.accept(int(rng.choice(allowed)))
        if matcher.failure is not None:
            raise RequestError(f"its texts cannot be followed: {_reason(matcher.failure)}")


def _reason(error: str) -> str:
    """The first lines of what llguidance says, as part of a sentence."""
    for theirs, ours in _SAID.items():
        if theirs in error:
            return ours
    lines = [line.strip() for line in error.split("\n") if line.strip()]
    regex = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    return (regex or lines[0] if lines else "unknown error").rstrip(".")[:300]
