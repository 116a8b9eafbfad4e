"""The text of a sequence, and what ends it."""

from __future__ import annotations

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.text.output_text import OutputText
from seesaw.engine.wire.messages import FinishReason, Output
from tests.engine.text.tokenizers import BYTES


def output(text: str | bytes, finish: FinishReason | None = None, stop_token: int | None = None) -> Output:
    return Output("id", 0, list(text.encode() if isinstance(text, str) else text), finish, stop_token)


def test_a_stop_string_ends_a_sequence_and_counts_its_tokens() -> None:
    for batches in (["ab世", "界cd"], ["ab世界cd"], list("ab世界cd")):
        text = OutputText(BYTES, [], SamplingParams(stop=["界c"]))
        shown, counted = "", []
        for batch in batches:
            new = text.push(output(batch))
            shown += new.text
            counted += new.tokens
            if text.finish_reason is not None:
                break
        assert (shown, text.finish_reason, text.stop_reason) == ("ab世", FinishReason.STOP, "界c")
        assert bytes(counted) == "ab世界c".encode()
        assert text.num_tokens == len(counted)


def test_a_stop_token_is_counted_but_not_shown_unless_asked_for() -> None:
    for include, shown in ((False, "ab"), (True, "ab!")):
        sampling = SamplingParams(stop_token_ids=(ord("!"),), include_stop_str_in_output=include)
        text = OutputText(BYTES, [], sampling)
        assert text.push(output("ab!", FinishReason.STOP, ord("!"))).text == shown
        assert (text.num_tokens, text.stop_reason) == (3, ord("!"))
    eos = OutputText(BYTES, [], SamplingParams())
    assert eos.push(output("ab!", FinishReason.STOP, ord("!"))).text == "ab"
    assert eos.stop_reason is None  # an end of sequence is not something the client named


def test_the_end_releases_what_was_held_back() -> None:
    text = OutputText(BYTES, [], SamplingParams(stop="xyz"))
    assert text.push(output("a xy")).text == "a "
    assert text.push(output(b"\xe4", FinishReason.LENGTH)).text == "xy\ufffd"
    assert text.finish_reason is FinishReason.LENGTH
