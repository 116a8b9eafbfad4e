"""What goes down to the engine: messages in their order, requests no faster than the engine takes them.

The socket is a pipe without end, and what is in it cannot be taken back. So requests wait here, where one whose client
left is simply dropped, and only a window of them is in the socket: a ping or an abort, which is sent at once, never has
more than that before it. Used by `server.link.bridge`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

# What the engine has been sent and not taken: some milliseconds of its work. A larger request goes alone.
WINDOW_SEQUENCES = 256
WINDOW_TOKENS = 64 << 10


class _Parcel(NamedTuple):
    """A request on its way."""

    encode: Callable[[], bytes]
    num_sequences: int
    num_tokens: int


class Outbox:
    """Owned by one thread. The engine tells how many messages it has handled (`handled`); until then each is its
    sender's to answer for."""

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        """`send` puts a message in the socket, or returns False: nobody is there any more."""
        self._send = send
        self._waiting: OrderedDict[str, _Parcel] = OrderedDict()
        self._num_sent = 0
        self._num_handled = 0
        self._window: deque[tuple[int, int, int]] = deque()  # of each request sent: its number, sequences and tokens
        self._sequences = self._tokens = 0  # in the window
        self._then: deque[tuple[int, Callable[[], None]]] = deque()

    def add(self, id: str, encode: Callable[[], bytes], num_sequences: int, num_tokens: int) -> None:
        """A request, which is encoded and sent when its turn comes."""
        self._waiting[id] = _Parcel(encode, num_sequences, num_tokens)
        self._fill()

    def withdraw(self, id: str) -> bool:
        """Whether a request had not been sent; it will not be."""
        return self._waiting.pop(id, None) is not None

    def control(self, payload: bytes, then: Callable[[], None] | None = None) -> None:
        """A message that goes before all requests which wait. `then` is called when the engine has handled it."""
        self._put(payload)
        if then is not None:
            self._then.append((self._num_sent, then))

    def handled(self, count: int) -> None:
        """The engine has handled so many messages since it started."""
        self._num_handled = max(count, self._num_handled)
        while self._window and self._window[0][0] <= self._num_handled:
            _, sequences, tokens = self._window.popleft()
            self._sequences -= sequences
            self._tokens -= tokens
        while self._then and self._then[0][0] <= self._num_handled:
            self._then.popleft()[1]()
        self._fill()

    def clear(self) -> None:
        """Nobody waits for anything any more."""
        self._waiting.clear()
        self._then.clear()

    def _fill(self) -> None:
        while self._waiting:
            encode, sequences, tokens = next(iter(self._waiting.values()))
            has_room = self._sequences + sequences <= WINDOW_SEQUENCES and self._tokens + tokens <= WINDOW_TOKENS
            if self._window and not has_room:
                return
            self._waiting.popitem(last=False)
            self._put(encode())
            self._window.append((self._num_sent, sequences, tokens))
            self._sequences += sequences
            self._tokens += tokens

    def _put(self, payload: bytes) -> None:
        self._num_sent += self._send(payload)
