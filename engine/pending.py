"""What the engine has of a call of `generate` or `chat`: results on their way. Used by `seesaw.LLM`."""

from __future__ import annotations

import time
from collections.abc import Iterable

from seesaw.engine.terminal_bar import terminal_bar, token_rates
from seesaw.engine.text.output_text import OutputText
from seesaw.engine.text.result import CompletionOutput, RequestOutput
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.wire.messages import Add, Output


class PendingCall:
    """The requests of one call that have not finished, and a bar of those that have."""

    def __init__(self, ids: Iterable[str], use_tqdm: bool) -> None:
        self.unfinished = set(ids)
        self._prompt_tokens = self._output_tokens = 0
        self._start_s = time.monotonic()
        self._bar = terminal_bar(len(self.unfinished), "prompt") if use_tqdm and self.unfinished else None

    def finish(self, result: RequestOutput) -> None:
        """One of its requests has all its tokens."""
        self.unfinished.discard(result.request_id)
        if self._bar is not None:
            self._prompt_tokens += len(result.prompt_token_ids)
            self._output_tokens += sum(len(completion.token_ids) for completion in result.outputs)
            elapsed_s = time.monotonic() - self._start_s
            rates = token_rates(self._prompt_tokens, self._output_tokens, elapsed_s)
            self._bar.set_postfix_str(rates, refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is now."""
        if self._bar is not None:
            self._bar.close()


class PendingRequest:
    """A request's result so far, and the text of each continuation on its way."""

    def __init__(self, add: Add, prompt: str | None, tokenizer: Tokenizer, arrived_s: float, call: PendingCall) -> None:
        outputs = [CompletionOutput(index) for index in range(add.sampling.n)]
        self.result = RequestOutput(add.id, prompt, add.prompt, outputs, arrived_s)
        if add.sampling.prompt_logprobs is not None:
            self.result.prompt_logprobs.append(None)
        self._texts = [OutputText(tokenizer, add.prompt, add.sampling) for _ in outputs]
        self._call = call

    @property
    def has_finished(self) -> bool:
        return all(text.finish_reason is not None for text in self._texts)

    def take(self, output: Output, now_s: float) -> bool:
        """What the engine says of one continuation. Returns whether it has to be told that this one has ended, since a
        stop string did it."""
        completion, text = self.result.outputs[output.index], self._texts[output.index]
        if text.finish_reason is not None:
            return False  # it was on its way when a stop string ended the sequence
        new = text.push(output)
        completion.text += new.text
        if not completion.token_ids:
            self.result.first_token_s = min(self.result.first_token_s, now_s)
        completion.token_ids += new.tokens
        completion.logprobs += new.logprobs
        if output.index == 0:
            self.result.prompt_logprobs += output.prompt_logprobs
        completion.token_times_s += [now_s] * len(new.tokens)
        self.result.finished_s = now_s
        if text.finish_reason is None:
            return False
        completion.finish_reason, completion.stop_reason = text.finish_reason.wire, text.stop_reason
        if self.has_finished:
            self._call.finish(self.result)
        return output.finish_reason is None
