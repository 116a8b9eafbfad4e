"""Bodies for the routes that take one: any of their parameters, mostly with values that clients might send.

`SEESAW_TEST_BODIES` says how many a test sends (default: 120).
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st

from seesaw.server.openai.protocol.chat import ChatRequest
from seesaw.server.openai.protocol.completions import CompletionRequest
from seesaw.server.openai.protocol.responses import ResponsesRequest
from seesaw.server.openai.protocol.tokenization import Detokenize, TokenizeChat, TokenizeText

NUM_BODIES = int(os.environ.get("SEESAW_TEST_BODIES", "120"))

WORDS = ["auto", "none", "required", "user", "assistant", "tool", "text", "function", "{}", "[TOOL_CALLS]", "<think>"]
NAMES = ["role", "content", "type", "text", "tool_calls", "function", "name", "arguments", "json", "schema", "regex"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
"""Whatever JSON can hold."""

SHORT = st.text(max_size=8)
FLAG = st.booleans()
TOKEN = st.integers(0, 255) | st.sampled_from([-1, 256])
COUNT = st.integers(-1, 25)
SCHEMA = st.sampled_from(
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"enum": ["x", 1, None]},
        {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "number"}}},
        {"type": "string", "pattern": "^a+$"},
        {"type": "what"},
        {},
        True,
    ]
)
REGEX = st.sampled_from(["[ab]{2,5}", "a|b", "(", "\\d+", ""])
GRAMMAR = st.sampled_from(['start: "a"', 'root ::= "a" | "b"', "start: %json {}", "start: x", ""])
CHOICE = st.lists(SHORT, max_size=3)
FUNCTION = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", ""])}, optional={"parameters": SCHEMA | VALUES, "description": SHORT}
)
TOOLS = st.lists(st.builds(lambda function: {"type": "function", "function": function}, FUNCTION), max_size=2)
CONTENT = SHORT | st.lists(st.builds(lambda text: {"type": "text", "text": text}, SHORT), max_size=2) | VALUES
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", "system", "x"]), "content": CONTENT},
        optional={"tool_calls": VALUES, "name": VALUES, "tool_call_id": VALUES, "reasoning": VALUES},
    ),
    min_size=1,
    max_size=3,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "x"]),
            "role": st.sampled_from(["user", "assistant"]),
            **dict.fromkeys(("content", "summary", "output"), CONTENT),
            **dict.fromkeys(("arguments", "call_id", "name", "status"), SHORT | st.just("{}") | VALUES),
        },
    ),
    min_size=1,
    max_size=3,
)
TOKENS = st.lists(TOKEN, max_size=8)
PROMPT = SHORT | TOKENS | st.lists(SHORT, max_size=3) | st.lists(TOKENS, max_size=3)
RESPONSE_FORMAT = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "x"])},
    optional={"json_schema": st.fixed_dictionaries({"name": SHORT, "schema": SCHEMA})},
)

PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), st.floats(0, 1) | st.just(2.0)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), st.floats(-2, 2) | st.just(3.0)),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), st.integers(0, 30) | st.just(70)),
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs", "min_tokens", "top_k", "priority"), COUNT),
    **dict.fromkeys(("truncate_prompt_tokens", "max_tool_calls"), COUNT),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids", "tokens"), TOKENS),
    **dict.fromkeys(("guided_json",), SCHEMA),
    **dict.fromkeys(("bad_words", "include"), st.lists(SHORT, max_size=3)),
    **dict.fromkeys(("chat_template_kwargs", "metadata"), st.dictionaries(SHORT, VALUES, max_size=2)),
    **dict.fromkeys(("cache_salt", "chat_template", "instructions", "previous_response_id", "conversation"), SHORT),
    **dict.fromkeys(("return_token_ids", "return_tokens_as_token_ids", "return_token_strs", "stream", "echo"), FLAG),
    **dict.fromkeys(("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "include_reasoning"), FLAG),
    **dict.fromkeys(("add_special_tokens", "add_generation_prompt", "continue_final_message"), FLAG),
    "parallel_tool_calls": FLAG,
    "model": st.sampled_from([None, "", "fake", "other"]),
    "n": st.integers(0, 4),
    "seed": st.integers(-(2**64), 2**64),
    "stop": SHORT | st.lists(SHORT, max_size=3),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": FLAG, "continuous_usage_stats": FLAG}),
    "logit_bias": st.dictionaries(TOKEN.map(str), st.floats(-200, 200), max_size=3),
    "guided_regex": REGEX,
    "guided_choice": CHOICE,
    "guided_grammar": GRAMMAR,
    "response_format": RESPONSE_FORMAT,
    "structured_outputs": st.one_of(
        *(
            st.fixed_dictionaries({name: form})
            for name, form in (("json", SCHEMA), ("regex", REGEX), ("choice", CHOICE), ("grammar", GRAMMAR))
        ),
        st.just({"json_object": True}),
    ),
    "messages": MESSAGES,
    "prompt": PROMPT,
    "input": SHORT | ITEMS,
    "documents": st.lists(st.dictionaries(SHORT, VALUES, max_size=2), max_size=2),
    "tools": TOOLS | st.lists(FUNCTION.map(lambda function: {"type": "function", **function}), max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
    "reasoning_effort": st.sampled_from(["low", "high", "x"]),
    "reasoning": st.fixed_dictionaries({}, optional={"effort": SHORT, "summary": SHORT}),
    "text": st.fixed_dictionaries(
        {}, optional={"verbosity": SHORT, "format": RESPONSE_FORMAT | st.just({"type": "json_schema", "schema": {}})}
    ),
}

REQUESTS: dict[str, tuple[list[type[Any]], tuple[str, ...]]] = {
    "/v1/chat/completions": ([ChatRequest], ("messages",)),
    "/v1/completions": ([CompletionRequest], ("prompt",)),
    "/v1/responses": ([ResponsesRequest], ("input",)),
    "/tokenize": ([TokenizeText, TokenizeChat], ()),
    "/detokenize": ([Detokenize], ("tokens",)),
}
"""What routes take, and what they need."""


def parameters(path: str) -> list[str]:
    """All that a route reads or refuses."""
    models, _ = REQUESTS[path]
    return sorted({name for model in models for name in (*model.model_fields, *getattr(model, "unsupported", ()))})


def _value(name: str) -> st.SearchStrategy[Any]:
    if name not in PLAUSIBLE:  # what is refused, unless it asks for nothing
        return st.none() | VALUES
    return st.integers(0, 15).flatmap(lambda roll: VALUES if roll == 15 else PLAUSIBLE[name])


def _call(path: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """With what the route needs, and some of what it may have."""
    _, needed = REQUESTS[path]
    chosen = st.lists(st.sampled_from(parameters(path)), max_size=5, unique=True)
    bodies = chosen.flatmap(lambda names: st.fixed_dictionaries({name: _value(name) for name in (*needed, *names)}))
    return st.tuples(st.just(path), bodies)


CALLS = st.sampled_from(list(REQUESTS)).flatmap(_call)
"""Paths and bodies."""
