"""Bodies within the limits on bytes that stand for more work than they look like."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

import msgspec
import pytest
from pydantic import BaseModel, ValidationError

from seesaw.engine.text.json_size import MAX_ENTRIES, MAX_KEYS, MAX_OBJECTS, MAX_VALUES, OBJECT_BYTES
from seesaw.engine.text.tokenizer import ByteTokenizer
from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import Add
from seesaw.server.config import ServerConfig
from seesaw.server.openai.protocol.body import SMALL_BODY_BYTES, Body
from seesaw.server.openai.protocol.generation import MAX_TOLD, _told
from seesaw.server.openai.protocol.structured import MAX_FORM_CHARS
from seesaw.server.render.tokens import LONG_CHARS
from seesaw.server.threads import NUM_LONG
from tests.patience import PATIENCE_S
from tests.server.conftest import MakeSite, Site
from tests.server.fake_engine import INFO, answer
from tests.server.openai.bodies import REQUESTS

pytestmark = pytest.mark.anyio

WRONG = [{"a": 1}] * 1000, {f"x{index}": {"a": []} for index in range(1000)}


async def refused(site: Site, path: str, content: bytes) -> str:
    response = await site.client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    message: str = response.json()["error"]["message"]
    return message


@pytest.mark.parametrize(
    ("holds", "part"),
    [
        (b"[" + b"[]," * MAX_VALUES + b"1]", f"more than {MAX_VALUES} values"),
        (b"{" + b'"a":1,' * MAX_VALUES + b'"b":1}', f"more than {MAX_VALUES} values"),
        (b"{" + b'"a":1,' * MAX_KEYS + b'"b":1}', f"more than {MAX_KEYS} keys"),
        (b"[" + b"1," * MAX_ENTRIES + b"1]", f"more than {MAX_ENTRIES} entries"),
        (b"[" + b'{"a":1, "c":1},' * MAX_OBJECTS + b"{}]", f"more than {MAX_OBJECTS} objects"),
    ],
)
@pytest.mark.parametrize("path", REQUESTS)
async def test_bodies_are_bounded_in_what_they_hold(site: Site, path: str, holds: bytes, part: str) -> None:
    for needed in (b'"prompt":"p"', b'"messages":[{"role":"user","content":"x"}],"input":"x","tokens":[1]'):
        if b"prompt" in needed or path != "/v1/completions":
            assert part in await refused(site, path, b'{%b,"x":%b}' % (needed, holds))


async def test_a_larger_body_may_hold_more_objects(site: Site) -> None:
    site.engine.script = answer("x")
    large = {"prompt": "p", "x": [{"a": "b" * OBJECT_BYTES}] * (MAX_OBJECTS + 1)}
    assert (await site.client.post("/v1/completions", json=large)).status_code == 200


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _form(num_properties: int) -> dict[str, Any]:
    properties = {f"p{index}": {"type": "string", "description": f"number {index}"} for index in range(num_properties)}
    return {"type": "object", "properties": properties, "required": [*properties]}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 2048},
        {"messages": [{"role": "user", "content": "a"}] * 5000},
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1"}]},
            ]
            * 1024
        },
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": _form(5000)}}],
            "tool_choice": "none",
        },
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [
                {"type": "function", "function": {"name": f"f{index}", "parameters": _form(100)}}
                for index in range(128)
            ],
            "tool_choice": "none",
        },
        {"prompt": [[1, 2, 3]] * 2048},
        {"prompt": "a", "logit_bias": {str(token): 1 for token in range(250)}, "stop": ["a", "b", "c", "d"]},
    ],
    ids=["parts", "messages", "calls", "form", "tools", "prompts", "bias"],
)
async def test_what_openai_takes_is_taken(make_site: MakeSite, body: dict[str, Any]) -> None:
    """The bounds are beyond what its clients may send."""
    info = msgspec.structs.replace(INFO, max_model_len=1 << 20)
    site = await make_site(ServerConfig(chat_template="{{ messages | length }}"), 2048, info=info)
    site.engine.script = answer("x")
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = await site.client.post(path, json=body | {"max_tokens": 1})
    assert response.status_code == 200, response.text[:1000]


async def test_token_ids_are_bounded_by_the_body_alone(site: Site) -> None:
    """They are many, and read in pieces."""
    ids = b"[" + b"1," * MAX_ENTRIES + b"1]"
    assert "context length is 64 tokens" in await refused(site, "/v1/completions", b'{"prompt":%b}' % ids)
    site.engine.script = answer("x")
    site.bridge.room.max_tokens = 1 << 20
    large = {"prompt": [[1, 2, 3]] * 100, "user": "x" * SMALL_BODY_BYTES}
    assert (await site.client.post("/v1/completions", json=large)).status_code == 200
    assert (await site.engine.expect(Add)).prompt == [1, 2, 3]


def _bodies(kind: Any) -> set[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind}.union(*(_bodies(field.annotation) for field in kind.model_fields.values()))
    return set().union(*map(_bodies, get_args(kind)))


MODELS = sorted(set().union(*(_bodies(model) for models, _ in REQUESTS.values() for model in models)), key=repr)


def _takes_many(kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        return any(map(_takes_many, get_args(kind)))
    return (get_origin(kind) or kind) in (list, dict)


@pytest.mark.parametrize("model", MODELS)
def test_of_a_lists_wrong_entries_only_the_first_is_told(model: type[BaseModel]) -> None:
    """Each error is as expensive as many entries, and it keeps what it is about."""
    assert issubclass(model, Body)
    for name, field in model.model_fields.items():
        for wrong in WRONG:
            try:
                model.model_validate_json(json.dumps({field.alias or name: wrong}))
            except ValidationError as error:
                assert error.error_count() < 20, name


def test_there_are_lists_and_objects_to_try() -> None:
    assert sum(_takes_many(field.annotation) for model in MODELS for field in model.model_fields.values()) > 20


async def test_the_log_is_not_filled_with_names(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.engine.script = answer("x")
    _told.clear()
    caplog.set_level(logging.INFO, "seesaw.server.openai")
    assert (await site.complete(prompt="p", **{f"x{index}": 1 for index in range(3 * MAX_TOLD)})).status_code == 200
    assert (await site.complete(prompt="p", more=1)).status_code == 200
    assert len([record for record in caplog.records if record.name.startswith("seesaw.server.openai")]) == MAX_TOLD + 1
    _told.clear()


@pytest.mark.parametrize(
    "body", [{"guided_json": "x" * (MAX_FORM_CHARS + 1)}, {"guided_choice": ["x" * MAX_FORM_CHARS, "y"]}]
)
async def test_forms_are_bounded(site: Site, body: dict[str, Any]) -> None:
    message = await refused(site, "/v1/completions", json.dumps({"prompt": "p"} | body).encode())
    assert f"more than {MAX_FORM_CHARS} characters" in message


async def test_prompts_of_a_request_are_bounded(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(max_prompts=2))
    for prompt in (["a"] * 3, [[1]] * 3):
        message = await refused(site, "/v1/completions", json.dumps({"prompt": prompt}).encode())
        assert message.startswith("prompt has 3 entries, more than 2")


async def test_what_parameters_name_takes_room_in_the_queue(site: Site) -> None:
    """A few kilobytes of allowed tokens, for each of a hundred prompts."""
    site.bridge.room.max_tokens = 1000
    body = {"prompt": [[1]] * 10, "allowed_token_ids": [1] * 100}
    assert "1010 tokens, more than the 1000" in await refused(site, "/v1/completions", json.dumps(body).encode())


async def test_an_answer_does_not_repeat_a_name_of_megabytes(site: Site) -> None:
    response = await site.complete(prompt="p", model="x" * 10_000)
    assert response.status_code == 404 and len(response.content) < 1000


class Slow(ByteTokenizer):
    """Two characters are at least a token; what is long waits until it is let go."""

    max_token_chars = 1000

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.let_go.set()
        self.longest = 0

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        longest = max(map(len, texts))
        self.longest = max(self.longest, longest)
        if longest > LONG_CHARS:
            assert self.let_go.wait(PATIENCE_S)
        return [[1] * -(-len(text) // 2) for text in texts]


async def test_a_text_that_cannot_fit_is_never_tokenized_whole(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seesaw.server.openai.prompts._PIECE_CHARS", 100)
    tokenizer = Slow()
    site = await make_site(tokenizer=tokenizer)
    assert "50000 characters" in await refused(site, "/v1/completions", json.dumps({"prompt": "x" * 50_000}).encode())
    assert tokenizer.longest == 100


async def test_of_a_text_that_is_cut_only_the_end_is_tokenized(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seesaw.server.openai.prompts._PIECE_CHARS", 100)
    tokenizer = Slow()
    site = await make_site(tokenizer=tokenizer)
    site.engine.script = answer("x")
    response = await site.complete(prompt="x" * 50_000, truncate_prompt_tokens=10, max_tokens=1)
    assert response.status_code == 200 and len((await site.engine.expect(Add)).prompt) == 10
    assert tokenizer.longest <= 500


async def test_short_texts_do_not_wait_for_long_ones(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.server.openai.test_limits.Slow.max_token_chars", 1 << 20)
    tokenizer = Slow()
    site = await make_site(tokenizer=tokenizer)
    site.engine.script = answer("x")
    tokenizer.let_go.clear()
    long = [asyncio.create_task(site.complete(prompt="x" * (LONG_CHARS + 1))) for _ in range(2 * NUM_LONG)]
    for _ in range(3):
        assert (await site.complete(prompt="short", max_tokens=1)).status_code == 200
    assert not any(task.done() for task in long)
    tokenizer.let_go.set()
    assert {(await task).status_code for task in long} == {400}


class Picky(ByteTokenizer):
    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        if "p" in texts:
            raise RequestError("The tokenizer cannot read this text: change it.")
        return super().encode(texts, add_special_tokens)


async def test_what_the_tokenizer_cannot_read_is_the_clients_to_mend(make_site: MakeSite) -> None:
    site = await make_site(tokenizer=Picky())
    assert "cannot read" in await refused(site, "/v1/completions", b'{"prompt":"p"}')
    assert "cannot read" in await refused(site, "/tokenize", b'{"prompt":"p"}')
