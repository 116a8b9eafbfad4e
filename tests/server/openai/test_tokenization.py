"""`/tokenize` and `/detokenize` in process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import INFO

pytestmark = pytest.mark.anyio


@pytest.fixture
async def chatty(make_site: MakeSite) -> Site:
    return await make_site(chat_config())


async def test_texts_and_chats(chatty: Site) -> None:
    answer = await chatty.client.post("/tokenize", json={"prompt": "aé", "return_token_strs": True, "model": "fake"})
    assert answer.json() == {
        "count": 3,
        "max_model_len": INFO.max_model_len,
        "tokens": [97, 195, 169],
        "token_strs": ["a", "�", "�"],
    }
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    tokens = (await chatty.client.post("/tokenize", json=chat)).json()
    assert (bytes(tokens["tokens"]), tokens["token_strs"]) == (b"u:hi;a:", None)
    bare = (await chatty.client.post("/tokenize", json=chat | {"add_generation_prompt": False})).json()
    assert bytes(bare["tokens"]) == b"u:hi;"
    assert (await chatty.client.post("/tokenize", json={"prompt": ""})).json()["tokens"] == []
    text = await chatty.client.post("/detokenize", json={"tokens": tokens["tokens"]})
    assert text.json() == {"prompt": "u:hi;a:"}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": None, "messages": None}, 400, "prompt"),
        ("/tokenize", [], 400, None),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a" * 65}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"tokens": [256]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
    ],
)
async def test_what_cannot_be_done(chatty: Site, path: str, body: Any, status: int, param: str | None) -> None:
    response = await chatty.client.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_nothing_to_tokenize_is_told_what_could_be(chatty: Site) -> None:
    message = (await chatty.client.post("/tokenize", json={})).json()["error"]["message"]
    assert message == "There is nothing to tokenize: give a prompt, or the messages of a chat."


async def test_without_a_template_there_are_no_chats(site: Site) -> None:
    response = await site.client.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})
    assert (response.status_code, "--chat-template" in response.text) == (400, True)
