"""The document of the API is true: it has every route, and real requests and answers are as it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from seesaw.server.config import ServerConfig
from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import answer
from tests.server.openai import streams
from tests.server.openai.test_responses import CALL, TOOL

pytestmark = pytest.mark.anyio

ABOUT_ITSELF = {"/openapi.json", "/docs"}
FOR_PEOPLE = {"/", "/page/{name}"}
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "hi"}
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "3"},
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "n": 2, "stop": ["x"], "model": None, "unheard_of": 1}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 2, "temperature": 0}),
    ("/v1/chat/completions", {"messages": [USER], "tools": [CHAT_TOOL], "max_completion_tokens": 40}),
    ("/v1/chat/completions", {"messages": [USER | {"content": [{"type": "text", "text": "a"}, "b"]}]}),
    ("/v1/responses", {"input": "hi", "tools": [TOOL], "reasoning": {"effort": "low"}}),
    ("/v1/responses", {"input": ITEMS, "tools": [TOOL], "max_output_tokens": 3}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/tokenize", {"messages": [USER]}),
    ("/detokenize", {"tokens": [97]}),
]
BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": 5}),
    ("/v1/completions", {}),
    ("/v1/completions", {"prompt": "a", "cache_salt": ""}),
    ("/v1/chat/completions", {"messages": "hi"}),
    ("/v1/chat/completions", {"messages": [USER], "tools": [{"type": "function"}]}),
    ("/v1/responses", {"input": [{"type": "unheard_of"}]}),
    ("/v1/responses", {"input": "hi", "tools": [CHAT_TOOL]}),
    ("/tokenize", {}),
    ("/detokenize", {"tokens": "a"}),
]


@pytest.fixture
async def able(make_site: MakeSite) -> Site:
    """Thinks and calls tools."""
    site = await make_site(
        chat_config(enable_auto_tool_choice=True, tool_call_parser="mistral", reasoning_parser="deepseek_r1")
    )
    site.engine.script = answer(f"a</think>b{CALL}")
    return site


class Document:
    """What `/openapi.json` says."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def operation(self, path: str, method: str = "post") -> dict[str, Any]:
        found: dict[str, Any] = self.document["paths"][path][method]
        return found

    def check(self, value: Any, schema: dict[str, Any]) -> None:
        """Raise ValidationError unless the schema takes the value."""
        whole = schema | {"components": self.document["components"]}
        Draft202012Validator.check_schema(whole)
        Draft202012Validator(whole).validate(value)

    def takes(self, value: Any, schema: dict[str, Any]) -> bool:
        return Draft202012Validator(schema | {"components": self.document["components"]}).is_valid(value)

    def check_answer(self, response: httpx.Response, path: str, method: str = "post") -> None:
        """The status is foreseen, and so are the body or the events."""
        content = self.operation(path, method)["responses"][str(response.status_code)]["content"]
        kind = response.headers["content-type"].partition(";")[0]
        if kind == "text/event-stream":
            read = streams.named_events if path == "/v1/responses" else streams.events
            for event in read(response):
                self.check(event, content[kind]["schema"])
        else:
            self.check(response.json() if kind == "application/json" else response.text, content[kind]["schema"])


async def read_document(site: Site) -> Document:
    response = await site.client.get("/openapi.json")
    assert response.status_code == 200
    return Document(response.json())


def served(site: Site) -> Iterator[tuple[str, str]]:
    """Every path and method that has a route."""
    transport = site.client._transport
    assert isinstance(transport, httpx.ASGITransport)
    for route in transport.app.routes:  # type: ignore[attr-defined]
        assert isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}:
            yield route.path.replace(":path", ""), method.lower()


WHOLE = ServerConfig(served_model_name=("fake",), enable_tokenizer_info_endpoint=True)


@pytest.mark.parametrize("with_jobs", [False, True])
@pytest.mark.parametrize("config", [ServerConfig(), WHOLE])
async def test_every_route_is_in_it(make_site: MakeSite, config: ServerConfig, with_jobs: bool, tmp_path: Path) -> None:
    site = await make_site(replace(config, data_dir=str(tmp_path) if with_jobs else ""))
    document = (await read_document(site)).document
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == {each for each in served(site) if each[0] not in ABOUT_ITSELF | FOR_PEOPLE}


async def test_lists_are_of_what_they_list(make_site: MakeSite, tmp_path: Path) -> None:
    document = await read_document(await make_site(ServerConfig(data_dir=str(tmp_path))))
    schemas = document.document["components"]["schemas"]
    for name, item in (("FileList", "File"), ("BatchList", "Batch")):
        assert schemas[name]["properties"]["data"]["items"] == {"$ref": f"#/components/schemas/{item}"}


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_real_requests_and_answers_are_as_it_says(able: Site, path: str, body: dict[str, Any]) -> None:
    document = await read_document(able)
    schema = document.operation(path)["requestBody"]["content"]["application/json"]["schema"]
    for streamed in (False, True) if path.startswith("/v1") else (False,):
        sent = body | {"stream": True} if streamed else body
        document.check(sent, schema)
        response = await able.client.post(path, json=sent)
        assert response.status_code == 200, response.text
        document.check_answer(response, path)
    refused = await able.client.post(path, json=body | {"model": "other"})
    assert refused.status_code == 404
    document.check_answer(refused, path)


@pytest.mark.parametrize(("path", "body"), BROKEN)
async def test_what_it_does_not_take_is_refused(able: Site, path: str, body: dict[str, Any]) -> None:
    document = await read_document(able)
    schema = document.operation(path)["requestBody"]["content"]["application/json"]["schema"]
    assert not document.takes(body, schema)
    response = await able.client.post(path, json=body)
    assert response.status_code == 400
    document.check_answer(response, path)


async def test_answers_without_a_body_to_ask_for_them(make_site: MakeSite) -> None:
    site = await make_site(WHOLE)
    document = await read_document(site)
    for path, methods in document.document["paths"].items():
        for method in methods.keys() - ({"post"} if path != "/ping" else set()):
            response = await site.client.request(method, path.replace("{model}", "fake"))
            assert response.status_code == 200
            document.check_answer(response, path, method)
    response = await site.client.post("/reset_prefix_cache")
    assert response.status_code == 200
    document.check_answer(response, "/reset_prefix_cache")


async def test_what_is_refused_is_told(site: Site) -> None:
    description = (await read_document(site)).operation("/v1/responses")["description"]
    assert "refused" in description and "background" in description


async def test_keys_are_asked_for_where_they_are_needed(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(api_key=("one",)))
    document = await read_document(site)  # itself without a key, as in vLLM
    assert document.operation("/v1/completions")["security"] == [{"key": []}]
    assert "security" not in document.operation("/health", "get")
    assert document.document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    refused = await site.client.post("/v1/completions", json={"prompt": "a"})
    assert refused.status_code == 401
    document.check_answer(refused, "/v1/completions")


async def test_the_page_shows_it_and_both_may_be_left_out(make_site: MakeSite) -> None:
    site = await make_site()
    page = await site.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html") and "/openapi.json" in page.text
    site = await make_site(ServerConfig(disable_fastapi_docs=True))
    for path in ABOUT_ITSELF:
        assert (await site.client.get(path)).status_code == 404


async def test_below_a_root_path_it_says_so(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(root_path="/llm"))
    assert (await read_document(site)).document["servers"] == [{"url": "/llm"}]
