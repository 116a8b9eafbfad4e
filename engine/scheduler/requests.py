"""What a request becomes: checked, and one sequence for each of its continuations."""

from __future__ import annotations

from seesaw.engine.executor.base import Capacity
from seesaw.engine.grammar.grammars import Compilation
from seesaw.engine.kv.blocks import block_keys, salt_key
from seesaw.engine.sampling.params import MAX_INT, MAX_SEED, Processing, RowSampling
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import LAST, Add


def check_priority(priority: int, has_priorities: bool) -> None:
    """Raise RequestError unless a request may have it. `has_priorities`: the engine schedules by them."""
    if priority not in (0, LAST) and not has_priorities:
        raise RequestError(
            "priority is for servers with --scheduling-policy priority, which this one is not: leave it out.",
            "priority",
        )
    if not -MAX_INT <= priority <= MAX_INT:
        raise RequestError(f"priority must be between -{MAX_INT} and {MAX_INT}.", "priority")


def check_request(request: Add, config: EngineConfig, capacity: Capacity) -> None:
    """Raise RequestError if such an engine could never carry it out."""
    check_priority(request.priority, has_priorities=config.scheduling_policy == "priority")
    request.sampling.validate()
    limit, vocab = capacity.max_model_len, capacity.shape.vocab
    request.sampling.check_vocabulary(vocab)
    if capacity.device == "simulated":
        for name in ("structured_outputs", "logprobs", "prompt_logprobs"):
            if getattr(request.sampling, name) is not None:
                raise RequestError(f"A simulated host makes its tokens up: there are no {name}.", name)
    if not request.prompt:
        raise RequestError("The prompt is empty: give at least one token.", "prompt")
    if len(request.prompt) >= limit:
        raise RequestError(
            f"The prompt has {len(request.prompt)} tokens, but the context is {limit} with the output.", "prompt"
        )
    if min(request.prompt) < 0 or max(request.prompt) >= vocab:
        raise RequestError(f"Token ids must be in 0 ... {vocab - 1}.", "prompt")


def make_sequences(
    request: Add,
    arrivals: list[int],
    now: float,
    config: EngineConfig,
    capacity: Capacity,
    grammar: Compilation | None,
) -> list[Sequence]:
    """Of a request that was checked, one for each of the places in the global order. `grammar` is done."""
    params, prompt = request.sampling, request.prompt
    # A request without a seed still needs one that no other request has: its outputs must differ from theirs.
    seed = params.seed if params.seed is not None else (config.seed + 1) * 1_000_003 + arrivals[0] * 1_009
    stops = frozenset(params.stop_token_ids)
    if not params.ignore_eos or grammar is not None:  # which says itself where the text may end
        stops |= frozenset(capacity.shape.eos_token_ids)
    # Without a cache only the continuations of one request share its prompt.
    salt = salt_key(request.cache_salt if config.enable_prefix_caching else request.id)
    keys = block_keys(prompt, config.block_size, salt)
    processing = Processing.of(params, len(prompt), stops, capacity.shape.vocab)
    sequences: list[Sequence] = []
    for index, arrival in enumerate(arrivals):
        seq = Sequence(
            request_id=request.id,
            index=index,
            arrival=arrival,
            arrived_s=now,
            prompt=prompt,
            max_tokens=params.limit_tokens(capacity.max_model_len - len(prompt)),
            params=params,
            stops=stops,
            row=RowSampling(params.temperature, params.top_p, params.top_k, params.min_p, (seed + index) % MAX_SEED),
            keys=keys,
            salt=salt,
            processing=processing,
            yields=request.priority == LAST,
            matcher=grammar.matcher(params.stop_token_ids, params.reasoning) if grammar is not None else None,
        )
        sequences.append(seq)
    return sequences
