"""What a request may ask for, and that it arrives as it was sent."""

from __future__ import annotations

import msgspec
import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import Add


@pytest.mark.parametrize(("stop", "strings"), [(None, []), ("", [""]), ("ab", ["ab"]), (["a", "b"], ["a", "b"])])
def test_one_stop_string_or_many_cross_the_wire(stop: str | list[str] | None, strings: list[str]) -> None:
    add = Add("id", [1], SamplingParams(stop=stop, skip_special_tokens=False))
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(add), type=Add)
    assert arrived == add
    assert list(arrived.sampling.stop_strings) == strings


def test_what_is_not_asked_for_costs_no_byte_of_the_wire() -> None:
    assert msgspec.to_builtins(SamplingParams()) == {}


@pytest.mark.parametrize("stop", ["", ["a", ""]])
def test_an_empty_stop_string_is_refused(stop: str | list[str]) -> None:
    with pytest.raises(RequestError, match="empty") as raised:
        SamplingParams(stop=stop).validate()
    assert raised.value.param == "stop"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1.0, 1e39, float("inf"), float("nan"))),
        *(("repetition_penalty", value) for value in (0.0, 1e-40, 1e39, float("nan"))),
        *(("logit_bias", {3: value}) for value in (1e39, float("inf"), float("nan"))),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(name: str, value: object) -> None:
    """A temperature that was infinite there made forbidden tokens NaN, which are the likeliest ones."""
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value}).validate()  # type: ignore[arg-type]
