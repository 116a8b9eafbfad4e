"""From the engine's outputs to the text of a sequence. Used by `server.link.text_stream` and by `seesaw.LLM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.text.detokenizer import Detokenizer
from seesaw.engine.text.stop_strings import StopStrings
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.engine.wire.messages import FinishReason, Output


class NewText(NamedTuple):
    """What an output adds to a sequence: its text, and those of the tokens that count, as far as it has not ended."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprobs]  # of these, if they were asked for


class OutputText:
    """The text of one sequence, from the engine's `Output`s: detokenized, ended by stop strings and stop tokens.

    `num_tokens` counts the tokens up to the end, the one that ended it included.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], sampling: SamplingParams) -> None:
        """`prompt` is the token ids before it, on which its first text may depend."""
        self._detokenizer = Detokenizer(tokenizer, prompt, sampling.skip_special_tokens)
        self._stops = StopStrings(sampling.stop_strings, sampling.include_stop_str_in_output)
        self._stop_token_ids = sampling.stop_token_ids
        self._include_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None  # the stop string, or the one of `stop_token_ids`, that ended it

    def push(self, output: Output) -> NewText:
        """What these tokens add. Sets `finish_reason` when the sequence has ended, perhaps by a stop string that the
        engine does not know of: the caller then aborts the sequence and pushes no more."""
        before = self.num_tokens
        text = self._push(output)
        new = self.num_tokens - before  # behind a stop string comes nothing more
        return NewText(text, output.tokens[:new], output.logprobs[:new])

    def _push(self, output: Output) -> str:
        pieces = []
        for token in output.tokens:
            self.num_tokens += 1
            if token == output.stop_token and not self._include_stop:
                break  # always the last one
            piece = self._detokenizer.push(token)
            # As in vLLM, what the first `min_tokens` say is no stop string, nor a part of one.
            pieces.append(piece if self.num_tokens <= self._min_tokens else self._stops.push(piece))
            if self._stops.matched is not None:
                return self._end_by_stop_string(pieces)
        if output.finish_reason is not None:
            pieces.append(self._stops.push(self._detokenizer.flush()))
            if self._stops.matched is not None:
                return self._end_by_stop_string(pieces)
            pieces.append(self._stops.flush())
            self.finish_reason = output.finish_reason
            if output.stop_token in self._stop_token_ids:
                self.stop_reason = output.stop_token
        return "".join(pieces)

    def _end_by_stop_string(self, pieces: list[str]) -> str:
        self.finish_reason = FinishReason.STOP
        self.stop_reason = self._stops.matched
        return "".join(pieces)
