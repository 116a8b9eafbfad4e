"""How much of a prompt is in the pools already, or will be. Used by the block manager."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

K = TypeVar("K")  # of keys

_MARK_BLOCKS = 8  # of a long prompt only every so-manieth key is remembered


class Prefix(NamedTuple):
    """The blocks that hold a prompt's start, in each tier: both begin with its first block."""

    device: list[int]
    host: list[int]

    @property
    def beyond_device(self) -> int:
        """Blocks that the host alone has."""
        return max(0, len(self.host) - len(self.device))


def longest(find: Callable[[K], int | None], keys: Iterable[K]) -> list[int]:
    """The blocks of the longest prefix, of those with these keys, that are found."""
    blocks: list[int] = []
    for key in keys:
        block = find(key)
        if block is None:
            break
        blocks.append(block)
    return blocks


class LivePrefixes:
    """The beginnings of all live requests' prompts: what one of them computes another will find.

    Of long ones some keys stand for all, for there may be a hundred thousand that wait.
    """

    def __init__(self) -> None:
        self._requests: Counter[bytes] = Counter()  # by key
        self._marks: dict[str, list[bytes]] = {}  # of each request

    def add(self, request_id: str, keys: list[bytes]) -> None:
        self._marks[request_id] = marks = [key for _, key in _marks(keys)]
        self._requests.update(marks)

    def remove(self, request_id: str) -> None:
        """Idempotent."""
        for key in self._marks.pop(request_id, ()):
            self._requests[key] -= 1
            if not self._requests[key]:
                del self._requests[key]

    def expected_blocks(self, keys: list[bytes], is_there: Callable[[bytes], bool]) -> int:
        """Blocks of a prompt's start that are there, or that others will have computed: at least so many."""
        blocks = 0
        for index, key in _marks(keys):
            if key not in self._requests and not is_there(key):
                break
            blocks = index + 1
        return blocks


def _marks(keys: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Keys of a prompt's blocks that stand for it, with their places: of short ones all that doubles it."""
    for index in (0, 1, 3, *range(_MARK_BLOCKS - 1, len(keys), _MARK_BLOCKS)):
        if index < len(keys):
            yield index, keys[index]
