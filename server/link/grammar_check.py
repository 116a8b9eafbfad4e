"""Whether a client's specification can be enforced, found out in a process of its own.

Nothing can interrupt a compilation, and some take for ever (a schema that intersects sixteen patterns) or end their
process. So the server has each specification compiled over there first: what comes back is safe for the engine.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from seesaw.engine.awake import waits
from seesaw.engine.grammar.grammars import MAX_COMPILED, Grammars
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.supervision import follow_parent, start_child
from seesaw.engine.values.errors import ConfigError, QueueFullError, RequestError

START_LIMIT_S = 60.0  # for imports and the tokenizer
COMPILE_LIMIT_S = 10.0
QUEUE_LIMIT_S = 30.0
MAX_QUEUED = 32  # threads that wait, where each check has its own

_TOO_MANY = "too many grammars are being compiled: try again later"


class GrammarCheck:
    """Checks specifications one after the other. Safe across threads; keep `check` off event loops."""

    def __init__(
        self,
        tokenizer: str,
        vocab_size: int,
        eos_token_ids: Sequence[int] = (),
        *,
        compile_limit_s: float = COMPILE_LIMIT_S,
    ) -> None:
        """As for `Grammars`. The process starts with the first check."""
        self._arguments = (tokenizer, vocab_size, tuple(eos_token_ids))
        self._compile_limit_s = compile_limit_s
        self._lock = threading.Lock()
        self._queued = 0
        self._closed = False
        self._passed: OrderedDict[StructuredOutputs, None] = OrderedDict()
        self._child: tuple[BaseProcess, Connection] | None = None

    def has_passed(self, spec: StructuredOutputs) -> bool:
        """Whether `check` returns at once: most clients send the same specification again and again."""
        return spec in self._passed

    def check(self, spec: StructuredOutputs, param: str) -> None:
        """Raise RequestError if the specification, which `param` of a request holds, cannot be enforced or takes too
        long to compile, and QueueFullError if too many others are being checked."""
        if self.has_passed(spec):
            return
        if self._queued >= MAX_QUEUED:
            raise QueueFullError(_TOO_MANY)
        self._queued += 1
        try:
            if not any(self._lock.acquire(timeout=wait_s) for wait_s in waits(QUEUE_LIMIT_S)):
                raise QueueFullError(_TOO_MANY)
            try:
                refusal = None if self.has_passed(spec) else self._compile(spec, param)
            finally:
                self._lock.release()
        finally:
            self._queued -= 1
        if refusal is not None:
            raise RequestError(refusal, param)

    def close(self) -> None:
        """End the process; checks that are going on or wait fail."""
        self._closed = True
        if self._child is not None:
            self._child[0].kill()

    def _compile(self, spec: StructuredOutputs, param: str) -> str | None:
        """Why it cannot be enforced, if so."""
        if self._child is None or not self._child[0].is_alive():
            self._start()
        assert self._child is not None
        process, connection = self._child
        try:
            self._check_open()
            connection.send((spec.kind, spec.text, spec.choices, param))
            if any(map(connection.poll, waits(self._compile_limit_s))):
                refusal: str | None = connection.recv()
                if refusal is None:
                    self._passed[spec] = None
                    if len(self._passed) > MAX_COMPILED:
                        self._passed.popitem(last=False)
                return refusal
        except (EOFError, OSError):
            refusal = f"{param} is too complex to be enforced: simplify it."
        else:
            refusal = f"{param} does not compile within {self._compile_limit_s:g} seconds: simplify it."
        self._child = None
        process.kill()
        process.join()
        connection.close()
        self._check_open()
        return refusal

    def _check_open(self) -> None:
        if self._closed:
            raise QueueFullError("the server is ending: send the request again later")

    def _start(self) -> None:
        self._check_open()
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), name="grammar-check", daemon=True)
        start_child(process.start)
        theirs.close()
        self._child = process, ours
        with suppress(EOFError):
            if any(map(ours.poll, waits(START_LIMIT_S))):
                ours.recv()
                return
        self._child = None
        process.kill()
        ours.close()
        self._check_open()
        raise ConfigError("the process that checks grammars did not start: see its output above")


def _serve(connection: Connection, tokenizer: str, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
    follow_parent()
    grammars = Grammars(tokenizer, vocab_size, eos_token_ids, num_threads=1)
    with suppress(RequestError):  # which each request gets, too
        grammars.validate(StructuredOutputs("json_object"))  # loads the tokenizer
    connection.send(None)
    while True:
        kind, text, choices, param = connection.recv()
        try:
            grammars.validate(StructuredOutputs(kind, text, choices), param)
            connection.send(None)
        except RequestError as error:
            connection.send(str(error))
