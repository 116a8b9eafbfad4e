"""The offline door: the same engine in this process, with prompts in and texts out."""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from functools import cached_property
from typing import Any

import zmq

from seesaw.engine.core import Core, describe
from seesaw.engine.executor import make_executor
from seesaw.engine.executor.base import Executor
from seesaw.engine.fair_lock import FairLock
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.pending import PendingCall, PendingRequest
from seesaw.engine.sampling.defaults import load_defaults
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.typed import typed
from seesaw.engine.sizing.fit import check_early
from seesaw.engine.text.bad_words import with_bad_words
from seesaw.engine.text.chat_template import ChatTemplate
from seesaw.engine.text.conversation import Conversation
from seesaw.engine.text.prompt import EncodedPrompt, Prompt, as_list, encode_prompts
from seesaw.engine.text.result import RequestOutput
from seesaw.engine.text.template_source import read_template
from seesaw.engine.text.tokenizer import NoTokenizer, Tokenizer, load_tokenizer, load_transformers_tokenizer
from seesaw.engine.uninterrupted import uninterrupted
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, EngineDeadError, RequestError
from seesaw.engine.values.foreign_options import check_keywords, our_value
from seesaw.engine.values.wording import parse_bytes
from seesaw.engine.wire.messages import Add, EngineInfo, Stats

logger = logging.getLogger(__name__)

COMPILE_LIMIT_S = 60.0  # of the grammars of a call; the first one has the tokenizer read, too
POLL_MS = 1000  # an upper bound only, so that a hanging step is noticed
UNBOUNDED = 1 << 31
OPTIONS = [option.name for option in fields(EngineConfig)]


class LLM:
    """An engine for offline use.

        llm = LLM("path/to/llama", prefill="P4", decode="T4")
        for result in llm.generate(["Hello"], SamplingParams(max_tokens=32)):
            print(result.outputs[0].text)

    Methods, their parameters and results have vLLM's names; other keyword arguments are the fields of `EngineConfig`.
    Use it as a context manager, or call `close`; else it ends with its last reference, or with the program. Several
    threads may call it at once: their requests run together.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        skip_tokenizer: bool = False,
        generation_config: str = "auto",
        **options: Any,
    ) -> None:
        """Starts the workers. `skip_tokenizer`: token ids in, ids out. `generation_config`: where default sampling
        comes from, as `--generation-config` says it to a server. Other options that are None are as if not given.

        Raises ConfigError or EngineDeadError.
        """
        check_keywords(options, OPTIONS)
        # Whoever calls `generate` waits anyway: a list of prompts may be as long as memory holds.
        given = {name: _as_option(name, value) for name, value in options.items() if value is not None}
        self.config = EngineConfig(model=_as_option("model", model), **{"max_queued_requests": UNBOUNDED, **given})
        check_early(self.config)
        self._tokenizer: Tokenizer = (
            NoTokenizer() if skip_tokenizer else load_tokenizer(self.config.tokenizer or self.config.model)
        )
        self._has_text = not skip_tokenizer
        self._template = ChatTemplate(self._tokenizer)
        self._defaults = load_defaults(generation_config, self.config)
        self._executor = make_executor(self.config, logger.info)
        try:
            self._core = Core(self.config, self._executor)
        except BaseException:
            self._executor.close()
            raise
        self._poller = zmq.Poller()
        self._handle = self._executor.wait_handle()
        if self._handle is not None:
            self._poller.register(self._handle, zmq.POLLIN)
        self._ids = itertools.count()
        self._requests: dict[str, PendingRequest] = {}  # of all threads' calls, those that have not finished
        self._lock = FairLock()  # whoever has it owns the core and the executor
        self._pid = os.getpid()
        self._end = weakref.finalize(self, _end, self._pid, self._core, self._executor)

    @property
    def info(self) -> EngineInfo:
        """Layouts and pool sizes, as they turned out."""
        return describe(self.config, self._executor)

    @property
    def shape(self) -> ModelShape:
        """The model's sizes."""
        return self._executor.capacity.shape

    def get_tokenizer(self) -> Any:
        """transformers' tokenizer of the checkpoint, loaded when it is first asked for; what is done to it changes
        nothing here. Raises ConfigError or ValueError where there is none."""
        if not self._has_text:
            raise ValueError("there is no tokenizer (skip_tokenizer): make the LLM without it")
        return self._transformers_tokenizer

    @cached_property
    def _transformers_tokenizer(self) -> Any:
        return load_transformers_tokenizer(self.config.tokenizer or self.config.model)

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling where none is given: what the checkpoint's generation_config.json says."""
        return self._defaults.params()

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts (one or many: texts, token ids, or dicts that hold one as `prompt` or `prompt_token_ids`,
        and perhaps a `cache_salt`), all with the same parameters or each with its own. `use_tqdm`: with a bar on
        stderr, if that is a terminal.

        Returns results in the order of the prompts. Raises RequestError or ValueError, before anything runs, if one is
        invalid.
        """
        return self._complete(encode_prompts(self._tokenizer, as_list(prompts)), sampling_params, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Say the next message of a conversation, or of each of several. Messages and tools are as OpenAI's API has
        them; `chat_template`, a file or the template itself, replaces the checkpoint's.

        The prompt is the one that `/v1/chat/completions` makes. Tool calls stay in the text. Raises as `generate` does,
        and ConfigError for a template that cannot be read.
        """
        if not isinstance(chat_template_kwargs or {}, Mapping):
            raise RequestError("chat_template_kwargs must be a dict of a template's variables.", "chat_template_kwargs")
        template = read_template(chat_template or "")
        texts = [
            self._template.render(
                conversation,
                tools=tools,
                template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=chat_template_kwargs,
            )
            for conversation in _as_conversations(messages)
        ]
        token_lists = self._tokenizer.encode(texts, add_special_tokens=False)  # the template has written them
        return self._complete(list(map(EncodedPrompt, texts, token_lists)), sampling_params, use_tqdm)

    def reset_prefix_cache(self) -> None:
        """No prompt that comes finds what was computed before."""
        self._check_owner()
        with self._lock:
            self._core.reset_prefix_cache()

    def stats(self) -> Stats:
        """The engine's counters since start."""
        self._check_owner()
        with self._lock:
            return self._core.stats()

    def close(self) -> None:
        """End the workers and give back all memory; nothing can be generated any more, and calls that other threads are
        in raise EngineDeadError. Idempotent."""
        if os.getpid() == self._pid:
            with self._lock:
                self._end()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _complete(
        self,
        prompts: Sequence[EncodedPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        self._check_open()
        one = self.get_default_sampling_params() if sampling_params is None else sampling_params
        each = list(map(typed, one)) if isinstance(one, Sequence) else [typed(one)] * len(prompts)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts came with {len(each)} sampling parameters")
        if not self._has_text and any(sampling.stop_strings for sampling in each):
            raise ValueError("stop strings need a tokenizer, and there is none (skip_tokenizer)")
        arrived_s = self._executor.now()
        adds = [
            Add(
                f"offline-{next(self._ids)}",
                prompt.token_ids,
                with_bad_words(sampling, self._tokenizer),
                cache_salt=prompt.cache_salt,
            )
            for prompt, sampling in zip(prompts, each, strict=True)
        ]
        results = []
        try:
            with self._lock:
                self._check_open()
                for add in adds:
                    self._core.add(add)
                self._core.compile_now(COMPILE_LIMIT_S)
                call = PendingCall((add.id for add in adds), use_tqdm)
                # Not before: only now are the token ids known to have a text.
                for add, prompt in zip(adds, prompts, strict=True):
                    request = PendingRequest(add, prompt.text, self._tokenizer, arrived_s, call)
                    self._requests[add.id] = request
                    results.append(request.result)
            with closing(call):
                self._run(call.unfinished)
        except BaseException as error:
            with self._lock:
                for add in adds:
                    self._core.abort(add.id)
                    self._requests.pop(add.id, None)
            if isinstance(error, Exception):
                self._check_open()  # whatever it raised when it was closed meanwhile
            raise
        return results

    def _check_open(self) -> None:
        self._check_owner()
        if not self._end.alive:
            raise EngineDeadError("this LLM is closed: make a new one")

    def _check_owner(self) -> None:
        """Called without the lock, too: when this process was forked another thread may have had it."""
        if os.getpid() != self._pid:
            raise EngineDeadError("this LLM is of the process that was forked: make one in the process that uses it")

    def _run(self, unfinished: set[str]) -> None:
        """Turn the loop until these requests have finished; whoever is the last, until nothing is left to do."""
        while True:
            with self._lock:
                self._check_open()
                if self._core.is_idle or not (unfinished or not self._requests):
                    return
                with uninterrupted():  # a turn torn in two has counted commands that no rank ever gets
                    self._turn()
                if self._handle is not None and not self._core.is_idle:
                    self._poller.poll(POLL_MS)

    def _turn(self) -> None:
        outputs = self._core.turn()
        now = self._executor.now()
        for prompt in outputs.cached:
            if prompt.id in self._requests:
                self._requests[prompt.id].result.num_cached_tokens = prompt.tokens
        for output in outputs:
            request = self._requests.get(output.id)
            if request is not None:  # else of a call that was interrupted, or on its way when a stop string came
                if request.take(output, now):
                    self._core.abort(output.id, output.index)
                if request.has_finished:
                    del self._requests[output.id]


def _as_option(name: str, value: Any) -> Any:
    """A path's text, the bytes of a size such as "4GiB", our name of a value; all else as it is. Raises ConfigError."""
    if name.endswith("_bytes") and isinstance(value, str):
        try:
            return parse_bytes(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{name} must be a size such as 4GiB, not {value!r}") from None
    return os.fspath(value) if isinstance(value, os.PathLike) else our_value(name, value)


def _end(owner: int, core: Core, executor: Executor) -> None:
    """End what an LLM has started, unless this process is a fork of the one that it belongs to."""
    if os.getpid() == owner:
        core.close()
        executor.close()


def _as_conversations(messages: Conversation | Sequence[Conversation]) -> Sequence[Conversation]:
    """One conversation or many as many. What begins with a message is one."""
    return [messages] if messages and isinstance(messages[0], Mapping) else messages  # type: ignore[list-item,return-value]
