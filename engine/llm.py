"""The offline door: the same engine in this process, with prompts in and texts out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zmq

from engine.config import EngineConfig
from engine.core import Core, describe
from engine.executor import make_executor
from engine.messages import Add, EngineInfo, FinishReason, Output, Stats
from engine.preflight import check_early
from engine.sampling import SamplingParams
from engine.text import Detokenizer, Tokenizer, load_tokenizer

Prompt = str | Sequence[int]
POLL_MS = 1000  # an upper bound only, so that a hanging step is noticed
UNBOUNDED = 1 << 31


@dataclass
class Completion:
    """One continuation. `finish_reason` is `stop` or `length`."""

    index: int
    token_ids: list[int]
    text: str
    finish_reason: str


@dataclass
class RequestOutput:
    """The continuations of one prompt, by index."""

    prompt: Prompt
    prompt_token_ids: list[int]
    outputs: list[Completion]


class LLM:
    """An engine for offline use.

        llm = LLM("path/to/llama", prefill="P4", decode="T4")
        for result in llm.generate(["Hello"], SamplingParams(max_tokens=32)):
            print(result.outputs[0].text)

    Keyword arguments are the fields of `EngineConfig`. Use it as a context manager, or call `close`. Scripts need the
    usual `if __name__ == "__main__":`, since workers are processes that import the main module. Not thread-safe.
    """

    def __init__(self, model: str, *, skip_tokenizer: bool = False, **options: Any) -> None:
        """Starts the workers. Raises ConfigError or EngineDeadError. `skip_tokenizer`: token ids in, ids out."""
        # Whoever calls `generate` waits anyway: a list of prompts may be as long as memory holds.
        self.config = EngineConfig(model=model, **{"max_queued_requests": UNBOUNDED, **options})
        check_early(self.config)
        self._tokenizer: Tokenizer | None = None
        if not skip_tokenizer:
            self._tokenizer = load_tokenizer(self.config.tokenizer or model)
        self._executor = make_executor(self.config)
        self._core = Core(self.config, self._executor)
        self._poller = zmq.Poller()
        self._handle = self._executor.wait_handle()
        if self._handle is not None:
            self._poller.register(self._handle, zmq.POLLIN)
        self._ids = itertools.count()

    @property
    def info(self) -> EngineInfo:
        """Layouts and pool sizes, as they turned out."""
        return describe(self.config, self._executor)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Complete prompts (texts or token ids; one, or many), all with the same parameters or each with its own.

        Returns results in the order of the prompts. Raises RequestError, before anything runs, if one is invalid.
        """
        many = _as_list(prompts)
        each = [params or SamplingParams()] * len(many) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(many):
            raise ValueError(f"{len(many)} prompts came with {len(each)} sampling parameters")
        token_ids = self._encode(many)
        ids: list[str] = []
        try:
            for tokens, sampling in zip(token_ids, each, strict=True):
                ids.append(f"offline-{next(self._ids)}")
                self._core.add(Add(ids[-1], tokens, sampling))
            outputs = self._run()
        except BaseException:
            for request_id in ids:
                self._core.abort(request_id)
            raise
        return self._results(many, token_ids, ids, outputs)

    def stats(self) -> Stats:
        """The engine's counters since start."""
        return self._core.stats()

    def close(self) -> None:
        """End the workers and give back all memory. Idempotent."""
        self._executor.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _encode(self, prompts: list[Prompt]) -> list[list[int]]:
        if self._tokenizer is None:
            return [list(_token_ids(prompt)) for prompt in prompts]
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self._tokenizer.encode(texts))
        return [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]

    def _run(self) -> list[Output]:
        outputs: list[Output] = []
        while not self._core.is_idle:
            outputs += self._core.turn()
            if self._handle is not None and not self._core.is_idle:
                self._poller.poll(POLL_MS)
        return outputs

    def _results(
        self, prompts: list[Prompt], token_ids: list[list[int]], ids: list[str], outputs: list[Output]
    ) -> list[RequestOutput]:
        completions: dict[str, dict[int, Completion]] = {request_id: {} for request_id in ids}
        for output in outputs:
            of_request = completions[output.id]
            completion = of_request.setdefault(output.index, Completion(output.index, [], "", ""))
            completion.token_ids += output.tokens
            if output.finish_reason is not None:
                completion.finish_reason = FinishReason(output.finish_reason).wire
        for prompt_ids, request_id in zip(token_ids, ids, strict=True):
            for completion in completions[request_id].values():
                completion.text = self._text(prompt_ids, completion.token_ids)
        return [
            RequestOutput(prompt, prompt_ids, [done[index] for index in sorted(done)])
            for prompt, prompt_ids, done in zip(prompts, token_ids, completions.values(), strict=True)
        ]

    def _text(self, prompt: list[int], tokens: list[int]) -> str:
        if self._tokenizer is None:
            return ""
        detokenizer = Detokenizer(self._tokenizer, prompt)
        return "".join([detokenizer.push(token) for token in tokens] + [detokenizer.flush()])


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _token_ids(prompt: Prompt) -> Sequence[int]:
    if isinstance(prompt, str):
        raise ValueError("this LLM was made with skip_tokenizer: prompts must be token ids")
    return prompt
