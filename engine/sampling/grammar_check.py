"""Whether a client's specification can be enforced, found out in a process of its own.

Nothing can interrupt a compilation, and some take for ever (a schema that intersects sixteen patterns) or end their
process. So the server has each specification compiled over there first: what comes back is safe for the engine.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from engine.sampling.grammar import MAX_COMPILED, Grammars
from engine.sampling.structured import StructuredOutputs
from engine.supervision import deaf_children, exit_with_parent, ignore_ctrl_c
from engine.values.errors import ConfigError, QueueFullError, RequestError

START_LIMIT_S = 60.0  # for imports and the tokenizer
COMPILE_LIMIT_S = 10.0
QUEUE_LIMIT_S = 30.0


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
        self._passed: OrderedDict[StructuredOutputs, None] = OrderedDict()
        self._child: tuple[BaseProcess, Connection] | None = None

    def check(self, spec: StructuredOutputs, param: str) -> None:
        """Raise RequestError if the specification, which `param` of a request holds, cannot be enforced or takes too
        long to compile, and QueueFullError if too many others are being checked."""
        if spec in self._passed:  # most clients send the same one again and again
            return
        if not self._lock.acquire(timeout=QUEUE_LIMIT_S):
            raise QueueFullError("too many grammars are being compiled: try again later")
        try:
            refusal = self._compile(spec, param)
        finally:
            self._lock.release()
        if refusal is not None:
            raise RequestError(refusal, param)

    def close(self) -> None:
        """End the process; a check that is going on fails."""
        if self._child is not None:
            self._child[0].kill()

    def _compile(self, spec: StructuredOutputs, param: str) -> str | None:
        """Why it cannot be enforced, if so."""
        if self._child is None or not self._child[0].is_alive():
            self._child = self._start()
        process, connection = self._child
        try:
            connection.send((spec.kind, spec.text, spec.choices, param))
            if connection.poll(self._compile_limit_s):
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
        return refusal

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), name="grammar-check", daemon=True)
        with deaf_children():
            process.start()
        theirs.close()
        try:
            if ours.poll(START_LIMIT_S):
                ours.recv()
                return process, ours
        except EOFError:
            pass
        process.kill()
        ours.close()
        raise ConfigError("the process that checks grammars did not start: see its output above")


def _serve(connection: Connection, tokenizer: str, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
    ignore_ctrl_c()
    exit_with_parent()
    grammars = Grammars(tokenizer, vocab_size, eos_token_ids, num_threads=1)
    grammars.validate(StructuredOutputs("json_object"))  # loads the tokenizer
    connection.send(None)
    while True:
        kind, text, choices, param = connection.recv()
        try:
            grammars.validate(StructuredOutputs(kind, text, choices), param)
            connection.send(None)
        except RequestError as error:
            connection.send(str(error))
