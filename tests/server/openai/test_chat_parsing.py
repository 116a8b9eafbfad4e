"""`/v1/chat/completions` with parsers: tool calls and reasoning in what clients get, whole and streamed."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.engine.sampling.structured import Reasoning
from seesaw.engine.text.tokenizer import ByteTokenizer
from seesaw.engine.wire.messages import Add, FinishReason, Output
from seesaw.server.config import ReasoningParser
from seesaw.server.render.answer import AnswerFormat
from tests.server.conftest import TEMPLATE, MakeSite, Site, chat_config
from tests.server.fake_engine import Script
from tests.server.openai.streams import events

pytestmark = pytest.mark.anyio

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def say(text: str, finish: FinishReason = FinishReason.STOP) -> Script:
    """A byte at a time, however long."""
    data = text.encode()
    return lambda add: [
        Output(add.id, 0, [byte], finish if at == len(data) - 1 else None) for at, byte in enumerate(data)
    ]


async def both(site: Site, text: str, finish: FinishReason = FinishReason.STOP, **body: Any) -> dict[str, Any]:
    """The choice that says `text`, which must be the same whole and streamed. Ids are left out."""
    site.engine.script = say(text, finish)
    whole = (await site.chat(**body)).json()["choices"][0]
    got = events(await site.chat(**body, stream=True))
    message: dict[str, Any] = {"content": None, "refusal": None}
    for event in got:
        delta = dict(event["choices"][0]["delta"])
        message["role"] = delta.pop("role", message.get("role"))
        for piece in delta.pop("tool_calls", []):
            calls = message.setdefault("tool_calls", [])
            if "id" in piece:
                assert (piece["index"], piece["type"], piece["function"]["arguments"]) == (len(calls), "function", "")
                calls.append({"id": piece["id"], "type": "function", "function": piece["function"]})
            else:
                assert piece.keys() == {"index", "function"} and piece["function"].keys() == {"arguments"}
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
        for name, piece in delta.items():
            message[name] = (message.get(name) or "") + piece
    message["content"] = message["content"] or None
    last = got[-1]["choices"][0]
    for each in (whole["message"], message):
        ids = [call.pop("id") for call in each.get("tool_calls", [])]
        assert len(set(ids)) == len(ids)
    assert message == whole["message"]
    assert last["finish_reason"] == whole["finish_reason"]
    return dict(whole)


@pytest.fixture
async def calling(make_site: MakeSite) -> Site:
    return await make_site(chat_config(enable_auto_tool_choice=True, tool_call_parser="hermes"))


def called(*arguments: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "arguments": each}} for each in arguments]


async def test_calls(calling: Site) -> None:
    choice = await both(calling, CALL, tools=TOOLS)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": called('{"a": 1}'),
    }
    choice = await both(calling, f"Well.\n{CALL}\n{CALL}", tools=TOOLS, tool_choice="auto")
    assert choice["message"]["content"] == "Well."
    assert choice["message"]["tool_calls"] == called('{"a": 1}', '{"a": 1}')
    choice = await both(calling, f"{CALL}\n{CALL}", tools=TOOLS, parallel_tool_calls=False)
    assert choice["message"]["tool_calls"] == called('{"a": 1}')


async def test_no_calls(calling: Site) -> None:
    for body in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = await both(calling, CALL, **body)
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", CALL)
        assert "tool_calls" not in choice["message"]
    choice = await both(calling, "No <tool", tools=TOOLS)
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "No <tool")


async def test_a_call_that_was_cut_off_is_not_said_to_be_one(calling: Site) -> None:
    choice = await both(calling, CALL.partition(": 1")[0], FinishReason.LENGTH, tools=TOOLS)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"] == called('{"a"')


async def test_each_choice_has_calls_of_its_own(calling: Site) -> None:
    def script(add: Add) -> list[Output]:
        texts = [CALL.replace("1", str(index)) for index in range(add.sampling.n)]
        return [Output(add.id, index, list(text.encode()), FinishReason.STOP) for index, text in enumerate(texts)]

    calling.engine.script = script
    choices = (await calling.chat(tools=TOOLS, n=3)).json()["choices"]
    arguments = [choice["message"]["tool_calls"][0]["function"]["arguments"] for choice in choices]
    assert arguments == ['{"a": 0}', '{"a": 1}', '{"a": 2}']


@pytest.mark.parametrize(
    ("parser", "template", "text", "reasoning", "content"),
    [
        ("deepseek_r1", TEMPLATE, "hmm</think>yes", "hmm", "yes"),
        ("deepseek_r1", TEMPLATE, "<think>hmm</think>yes", "hmm", "yes"),
        ("deepseek_r1", TEMPLATE, "still thinking </thi", "still thinking </thi", None),
        ("deepseek_r1", TEMPLATE + "</think>", "yes", None, "yes"),
        ("qwen3", TEMPLATE, "\n<think>\nhmm\n</think>\n\nyes", "\nhmm\n", "\n\nyes"),
        ("qwen3", TEMPLATE, "yes </think>", None, "yes </think>"),
        ("qwen3", TEMPLATE + "<think>\n", "hmm</think>yes", "hmm", "yes"),
        ("none", TEMPLATE, "<think>hmm</think>yes", None, "<think>hmm</think>yes"),
    ],
)
async def test_reasoning(
    make_site: MakeSite, parser: ReasoningParser, template: str, text: str, reasoning: str | None, content: str | None
) -> None:
    site = await make_site(chat_config(reasoning_parser=parser, chat_template=template))
    message = (await both(site, text))["message"]
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)
    assert message.get("reasoning") == reasoning
    message = (await both(site, text, include_reasoning=False))["message"]
    assert (message.get("reasoning_content"), message["content"]) == (None, content)


async def test_calls_are_looked_for_after_the_reasoning(make_site: MakeSite) -> None:
    config = chat_config(enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="qwen3")
    message = (await both(await make_site(config), f"<think>{CALL}?</think>\n\n{CALL}", tools=TOOLS))["message"]
    assert (message["reasoning_content"], message["content"]) == (f"{CALL}?", None)
    assert message["tool_calls"] == called('{"a": 1}')


class MarkedTokenizer(ByteTokenizer):
    """As Mistral's: the marker of calls is a special token, and so is another."""

    vocab_size = 258
    special_ids = frozenset((256, 257))
    texts = {256: b"[TOOL_CALLS]", 257: b"</s>"}

    def decode(self, tokens: Any) -> str:
        return b"".join(self.texts.get(token, bytes([token % 256])) for token in tokens).decode(errors="replace")


async def test_markers_that_are_special_tokens_are_read_only_where_calls_are_looked_for(make_site: MakeSite) -> None:
    config = chat_config(enable_auto_tool_choice=True, tool_call_parser="mistral")
    site = await make_site(config, tokenizer=MarkedTokenizer())
    site.engine.script = lambda add: [Output(add.id, 0, [256, *b'f{"a": 1}'], FinishReason.STOP)]
    message = (await site.chat(tools=TOOLS)).json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert (call["function"], len(call["id"])) == ({"name": "f", "arguments": '{"a": 1}'}, 9)
    assert (await site.chat()).json()["choices"][0]["message"]["content"] == 'f{"a": 1}'
    site.engine.script = lambda add: [Output(add.id, 0, [*b"a", 257], FinishReason.STOP)]
    hermes = await make_site(
        chat_config(enable_auto_tool_choice=True, tool_call_parser="hermes"), tokenizer=MarkedTokenizer()
    )
    hermes.engine.script = site.engine.script
    assert (await hermes.chat(tools=TOOLS)).json()["choices"][0]["message"]["content"] == "a"


FORM = {"response_format": {"type": "json_object"}}
FORCED = {"tools": TOOLS, "tool_choice": "required"}


@pytest.mark.parametrize(
    ("parser", "template", "asked", "reasoning"),
    [
        ("deepseek_r1", TEMPLATE, FORM, Reasoning(tuple(b"</think>"))),
        ("deepseek_r1", TEMPLATE + "<think></think>\n", FORM, None),
        ("deepseek_r1", TEMPLATE, FORCED, Reasoning(tuple(b"</think>"))),
        ("qwen3", TEMPLATE + "<think>\n", FORM, Reasoning(tuple(b"</think>"))),
        ("qwen3", TEMPLATE, FORM, None),  # in bytes no single token begins it
        ("none", TEMPLATE, FORM, None),
        ("deepseek_r1", TEMPLATE, {}, None),
    ],
)
async def test_a_form_begins_behind_the_reasoning(
    make_site: MakeSite, parser: ReasoningParser, template: str, asked: dict[str, Any], reasoning: Reasoning | None
) -> None:
    site = await make_site(chat_config(reasoning_parser=parser, chat_template=template))
    text = CALL if asked is FORCED else "{}"
    message = (await both(site, f"hmm</think>{text}" if reasoning else text, **asked))["message"]
    assert (await site.engine.expect(Add)).sampling.reasoning == reasoning
    assert message.get("reasoning_content") == (
        "hmm" if reasoning else text if parser != "none" and not asked else None
    )
    if asked is FORCED:
        assert message["tool_calls"] == called('{"a": 1}')
    elif asked:
        assert message["content"] == "{}"


@pytest.mark.parametrize(("cut", "arguments"), [(CALL[: CALL.index("1")], '{"a": '), (f"{CALL}\n<tool", '{"a": 1}')])
async def test_a_forced_call_that_is_cut_is_no_content(make_site: MakeSite, cut: str, arguments: str) -> None:
    """Of a call that has begun there is what came of it; its markup is never the answer's text."""
    site = await make_site(chat_config())
    message = (await both(site, cut, FinishReason.LENGTH, **FORCED))["message"]
    assert (message["content"], message["tool_calls"]) == (None, called(arguments))
    site.engine.script = say("<to", FinishReason.LENGTH)
    assert not (await site.chat(**FORCED)).json()["choices"][0]["message"]["content"]
    assert not any(
        event["choices"][0]["delta"].get("content") for event in events(await site.chat(**FORCED, stream=True))
    )


def test_a_model_with_tokens_for_it_may_begin_to_think_or_not() -> None:
    class Markers(ByteTokenizer):
        def encode(self, texts: Any, add_special_tokens: bool = True) -> list[list[int]]:
            return [[{"<think>": 300, "</think>": 301}[text]] for text in texts]

    answers = AnswerFormat.of(Markers(), "none", "qwen3")
    assert answers.reasoning("p") == Reasoning((301,), 300)
    assert answers.reasoning("p<think>\n") == Reasoning((301,))
    assert answers.reasoning("p<think>\n\n</think>\n\n") is None  # it was told not to
    assert AnswerFormat.of(Markers(), "none", "none").reasoning("p") is None
