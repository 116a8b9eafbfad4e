"""Stop strings do not depend on the pieces in which a text comes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.text.stop_strings import StopStrings


def cut(text: str, sizes: Sequence[int]) -> list[str]:
    result, at = [], 0
    for size in sizes:
        result.append(text[at : at + size])
        at += size
    return [*result, text[at:]]


@given(
    st.text("abc", max_size=25),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 4), max_size=10),
    st.booleans(),
)
def test_stop_strings_cut_at_the_first_that_ends_wherever_pieces_end(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    matcher = StopStrings(stops, include)
    shown = ""
    for piece in cut(text, sizes):
        shown += matcher.push(piece)
        assert text.startswith(shown)
        if matcher.matched is not None:
            break
    else:
        shown += matcher.flush()
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith(tuple(stops))]
    if not ends:
        assert (shown, matcher.matched) == (text, None)
    else:
        stop = max((s for s in stops if text[: ends[0]].endswith(s)), key=len)
        assert matcher.matched == stop
        assert shown == text[: ends[0] if include else ends[0] - len(stop)]


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopStrings(["\n\n", "END"])
    assert [matcher.push(piece) for piece in ("one\n", "two", "E", "N", "E")] == ["one", "\ntwo", "", "", "EN"]
    assert matcher.flush() == "E"
