"""The text of a call's choices: made as they come, counted as they end."""

from __future__ import annotations

import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.text.output_text import OutputText
from seesaw.engine.text.tokenizer import ByteTokenizer
from seesaw.engine.wire.messages import Add
from seesaw.server.link.text_stream import Delta, TextStream
from tests.server.conftest import Line

pytestmark = pytest.mark.anyio


async def test_only_what_had_an_output_has_a_text_and_counts_as_aborted(line: Line) -> None:
    made: list[int] = []

    def make_text(choice: int) -> OutputText:
        made.append(choice)
        return OutputText(ByteTokenizer(), [], SamplingParams())

    stream = line.bridge.submit("a", [([1], SamplingParams(n=3))])
    text = TextStream(stream, make_text, line.bridge.metrics)
    await line.engine.say((await line.engine.expect(Add)).id, "hi", index=1)
    assert await anext(text.deltas()) == [Delta(1, "hi", 2, None, None, list(b"hi"))]
    text.close()
    text.close()
    assert made == [1]
    assert b'request_success_total{finished_reason="abort"} 1.0' in line.bridge.metrics.render()
