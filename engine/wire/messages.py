"""The few messages between the frontend and the engine process. Token ids only, never tensors or an answer's text."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import msgspec

from seesaw.engine.sampling.params import MAX_INT, SamplingParams
from seesaw.engine.wire.logprobs import TokenLogprobs


class FinishReason(IntEnum):
    """Why a sequence ended; `wire` is OpenAI's word."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3

    @property
    def wire(self) -> str:
        return self.name.lower()


LAST = MAX_INT  # the priority of those that take what all others leave


class Add(msgspec.Struct, frozen=True, tag="add"):
    """A new request: `sampling.n` continuations of one prompt. `id` is unique among live requests."""

    id: str
    prompt: list[int]
    sampling: SamplingParams
    priority: int = 0  # lower goes first, if the engine schedules by priority; `LAST` goes last in any case
    cache_salt: str = ""  # requests share cached prefixes with those of the same salt alone


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Forget a request, or one of its sequences. No further Output of it follows once this is processed; its blocks
    are freed."""

    id: str
    index: int | None = None


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answered by one turn of the engine's loop with a Pong: proves that the loop turns."""

    nonce: int


class ResetPrefixCache(msgspec.Struct, frozen=True, tag="reset_prefix_cache"):
    """No prompt finds what was computed before this is processed."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The engine ends its workers and exits with 0."""


ToEngine = Add | Abort | Ping | ResetPrefixCache | Stop


class Output(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one sequence (`index` of its request). Set `finish_reason` on the last one."""

    id: str
    index: int
    tokens: list[int]
    finish_reason: FinishReason | None = None
    stop_token: int | None = None  # the token id that stopped it, if one did
    logprobs: list[TokenLogprobs] = []  # of each of the tokens, if they were asked for
    prompt_logprobs: list[TokenLogprobs] = []  # of all prompt tokens but the first; with the first output
    error: str = ""  # why it ended with FinishReason.ERROR


class LayoutSpeed(msgspec.Struct, frozen=True):
    """What a layout is expected to do by its measured times, all of its replicas together. 0: not known."""

    prefill_tokens_per_second: float
    decode_seconds: dict[int, float]  # of a token for each of so many sequences in every replica


class Speeds(msgspec.Struct, frozen=True):
    """The times that decisions stand on: measured at the start, corrected by all that happened since."""

    layouts: dict[str, LayoutSpeed]
    transition_seconds: float  # of the weights alone


class Stats(msgspec.Struct, frozen=True):
    """A snapshot for metrics. Counters are totals since start."""

    phase: str = "prefill"
    layout: str = ""
    transition: str = ""  # under way, as "P2->T2"
    requests_running: int = 0  # sequences decoding or being prefilled
    requests_waiting: int = 0  # sequences whose prefill has not started
    requests_hosted: int = 0  # sequences whose KV is in (or on its way from or to) the host pool
    device_blocks_used: int = 0  # of the fullest replica
    device_blocks_total: int = 0
    host_blocks_used: int = 0
    host_blocks_total: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    transitions: dict[str, int] = {}  # by "P2->T2"
    transition_seconds: dict[str, float] = {}  # by part: "drain" (steps in flight end), "evacuate", "weights"
    swap_bytes: dict[str, int] = {}  # by "out" and "in"
    swap_seconds: dict[str, float] = {}
    phase_seconds: dict[str, float] = {}  # by phase, the transition out of it included
    phase_prompt_tokens: dict[str, int] = {}  # by the phase in which the prompt's prefill ended
    phase_generation_tokens: dict[str, int] = {}
    idle_seconds: dict[str, float] = {}  # in which a device computed nothing while there was work, by cause
    steps: dict[str, int] = {}  # forward steps by kind: "prefill", "decode", "mixed"
    decodes: int = 0  # sequences that decoded in a step, summed over all steps
    prefix_cache_queries: int = 0  # tokens of prompts that were looked up
    prefix_cache_hits: dict[str, int] = {}  # tokens of those that were found, by tier: "device", "host"
    device_blocks_cached: int = 0  # free for whoever needs one, and found until then; of the replica that has most
    host_blocks_cached: int = 0
    speeds: Speeds | None = None


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An Add that the engine did not take; nothing else follows for its id. `queue_full`: try again later."""

    id: str
    message: str
    param: str | None = None
    queue_full: bool = False


class StepTokens(msgspec.Struct, frozen=True, array_like=True):
    """One new token each of sequences that go on. By column, since there may be a thousand in every step."""

    ids: list[str]
    indexes: list[int]
    tokens: list[int]


class CachedPrompt(msgspec.Struct, frozen=True, array_like=True):
    """Of a request's prompt so many tokens were found, and need not be computed. Told before its first token."""

    id: str
    tokens: int


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """What is new of all sequences: `cached`, the tokens of `steps`, in their order, then `outputs`, which say more."""

    outputs: list[Output] = []
    stats: Stats | None = None
    steps: list[StepTokens] = []
    cached: list[CachedPrompt] = []
    handled: int = 0  # of the frontend's messages, since the engine started; 0: as before

    def __iter__(self) -> Iterator[Output]:
        """One by one."""
        for step in self.steps:
            for id, index, token in zip(step.ids, step.indexes, step.tokens, strict=True):
                yield Output(id, index, [token])
        yield from self.outputs

    def __bool__(self) -> bool:
        return bool(self.outputs or self.steps or self.cached)


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    nonce: int
    stats: Stats


class EngineInfo(msgspec.Struct, frozen=True):
    """What the engine turned out to be; known once it is ready."""

    model: str
    prefill: str
    decode: str
    tail: str
    dtype: str  # as `ModelShape.dtypes`
    device: str
    max_model_len: int
    vocab_size: int
    block_size: int
    device_blocks: int  # of each replica
    device_block_bytes: int  # largest stride of any rank
    host_blocks: int
    host_block_bytes: int
    weights: str
    eos_token_ids: tuple[int, ...] = ()
    has_priorities: bool = False  # it schedules by them
    max_num_seqs: int = 256  # that decode at once, in all replicas


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    info: EngineInfo


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A line for the operator while the engine starts."""

    message: str


class Starting(msgspec.Struct, frozen=True, tag="starting"):
    """Comes every moment until `Ready`: whatever the engine waits for, it is not stopped."""


class Dead(msgspec.Struct, frozen=True, tag="dead"):
    """The engine's last word. `is_config`: the operator can fix it (exit code 2)."""

    message: str
    is_config: bool = False


FromEngine = Ready | Progress | Starting | Outputs | Refused | Pong | Dead
