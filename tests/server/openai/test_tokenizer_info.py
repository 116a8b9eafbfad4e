"""`/tokenizer_info` in process: there if it was asked for, as vLLM tells it and lm-eval reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from seesaw.engine.text.template_source import read_template
from seesaw.engine.text.tokenizer import FastTokenizer, Tokenizer
from seesaw.server.config import ServerConfig
from tests.engine.text.tokenizers import byte_level
from tests.server.conftest import MakeSite

pytestmark = pytest.mark.anyio


def of_checkpoint() -> Tokenizer:
    core = byte_level()._core
    return FastTokenizer(core, PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template="T"))


async def ask(make_site: MakeSite, tokenizer: Tokenizer | None = None, **config: Any) -> Any:
    site = await make_site(ServerConfig(enable_tokenizer_info_endpoint=True, **config), tokenizer=tokenizer)
    response = await site.client.get("/tokenizer_info")
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_checkpoints(make_site: MakeSite) -> None:
    info = await ask(make_site, of_checkpoint())
    assert info["eos_token"] == "<|end|>"
    assert info["chat_template"] == "T"
    assert info["tokenizer_class"] in ("PreTrainedTokenizerFast", "TokenizersBackend")
    assert not {"tokenizer_file", "vocab_file", "name_or_path"} & info.keys()


async def test_the_operators_template_counts(make_site: MakeSite) -> None:
    assert (await ask(make_site, of_checkpoint(), chat_template="{{ 1 }}"))["chat_template"] == "{{ 1 }}"


async def test_the_template_is_the_one_that_chats_are_rendered_by(
    make_site: MakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its file has been changed since."""

    def read_and_change(choice: str) -> str | None:
        found = read_template(choice)
        path.write_text("{{ 2 }}")
        return found

    path = tmp_path / "template.jinja"
    path.write_text("{{ 1 }}")
    monkeypatch.setattr("seesaw.server.openai.handlers.read_template", read_and_change)
    assert (await ask(make_site, of_checkpoint(), chat_template=str(path)))["chat_template"] == "{{ 1 }}"


async def test_without_a_checkpoints(make_site: MakeSite) -> None:
    assert await ask(make_site) == {"tokenizer_class": "ByteTokenizer"}


async def test_it_is_there_only_if_asked_for_and_guarded_by_keys(make_site: MakeSite) -> None:
    site = await make_site()
    assert (await site.client.get("/tokenizer_info")).status_code == 404
    site = await make_site(ServerConfig(enable_tokenizer_info_endpoint=True, api_key=("one",)))
    assert (await site.client.get("/tokenizer_info")).status_code == 401
