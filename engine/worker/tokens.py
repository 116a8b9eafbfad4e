"""The last token sampled for each slot, on the ranks that embed it. Used by the runner."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from seesaw.engine.device.upload import upload
from seesaw.engine.parallel.groups import Pending


class TokenBuffer:
    """int64 `[slots]` on a first-stage rank, so that a step can read a token the host has not seen yet.

    Tokens arrive in the order of the steps that sampled them and are written in that order, whoever is
    waited for: a slot may have changed hands in between, and a late write of its former sequence must not
    overwrite a newer token.
    """

    def __init__(self, num_slots: int, limit: int, device: torch.device) -> None:
        """`limit`: so many steps' tokens may be under way; beyond it the oldest are waited for."""
        self._tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._limit = limit
        self._slots: Sequence[int] = ()
        self._index = upload(torch.zeros(0, dtype=torch.int64), device)  # of `_slots`
        self._pending: deque[tuple[Sequence[int], Pending]] = deque()

    def write(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        """The newest step's tokens, sampled on this very rank."""
        self.drain()
        self._store(slots, tokens)

    def expect(self, slots: Sequence[int], tokens: Pending) -> None:
        """The newest step's tokens, still on their way."""
        self._pending.append((slots, tokens))
        while len(self._pending) > self._limit:
            self._take_oldest()

    def read(self, slots: Sequence[int]) -> torch.Tensor:
        """The last tokens of these slots, int64 `[len(slots)]`; waits for those that are on their way."""
        wanted = set(slots)
        needed = max((n for n, (filled, _) in enumerate(self._pending, 1) if not wanted.isdisjoint(filled)), default=0)
        for _ in range(needed):
            self._take_oldest()
        return self._tokens[self._indices(slots)]

    def drain(self) -> None:
        """Wait for all that are on their way."""
        while self._pending:
            self._take_oldest()

    def _take_oldest(self) -> None:
        slots, tokens = self._pending.popleft()
        self._store(slots, tokens.wait())

    def _store(self, slots: Sequence[int], tokens: torch.Tensor) -> None:
        self._tokens[self._indices(slots)] = tokens

    def _indices(self, slots: Sequence[int]) -> torch.Tensor:
        # The same ones step after step, mostly; an upload would stand between two steps.
        if slots != self._slots:
            self._slots, self._index = slots, upload(torch.tensor(slots), self._tokens.device)
        return self._index
