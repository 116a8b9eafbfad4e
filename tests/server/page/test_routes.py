"""The page and its numbers over HTTP: what is shown to whom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seesaw.clients import page as report_page
from seesaw.engine.text.tokenizer import ByteTokenizer
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Stats
from seesaw.server.config import ServerConfig
from seesaw.server.link.errors import ShuttingDownError
from seesaw.server.metrics import PHASES
from tests.patience import PATIENCE_S
from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import INFO

pytestmark = pytest.mark.anyio

STATIC = Path(__file__).parents[3] / "server" / "page" / "static"
PARTS = sorted(path.name for path in STATIC.iterdir())


async def test_every_part_is_served_and_loads_nothing_from_elsewhere(site: Site) -> None:
    for path in ("/", *(f"/page/{name}" for name in PARTS)):
        response = await site.client.get(path)
        assert response.status_code == 200, path
        policy = dict(each.split(" ", 1) for each in response.headers["content-security-policy"].split("; "))
        assert policy.pop("img-src") == "data:" and policy.pop("default-src") == "'none'"
        assert {policy.pop(kind) for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
        assert policy == dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert (await site.client.head(path)).status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", response.text)
    assert (await site.client.get("/")).text == (STATIC / "index.html").read_text()
    types = {(await site.client.get(f"/page/{name}")).headers["content-type"].partition(";")[0] for name in PARTS}
    assert types == {"text/html", "text/css", "text/javascript"}


async def test_all_that_parts_name_is_there() -> None:
    """By relative addresses, so that a proxy's path may come before them."""
    named = re.findall(r'(?:href|src)="(?!data:|#)([^"]+)"', (STATIC / "index.html").read_text())
    assert named == ["page/page.css", "page/main.js"]
    for path in STATIC.glob("*.js"):
        named += [f"page/{each}" for each in re.findall(r'from "\./([^"]+)"', path.read_text())]
    assert {each.removeprefix("page/") for each in named} | {"index.html"} == set(PARTS)


def test_what_comes_from_outside_gets_into_the_page_as_text_alone() -> None:
    for path in STATIC.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\(", path.read_text())


def test_every_id_that_a_script_asks_for_is_in_the_page() -> None:
    ids = re.findall(r'\bid="([^"]+)"', (STATIC / "index.html").read_text())
    assert len(ids) == len(set(ids))
    asked = {id for path in STATIC.glob("*.js") for id in re.findall(r'byId\("([^"]+)"\)', path.read_text())}
    assert asked and asked <= set(ids)


def test_its_colours_are_the_reports() -> None:
    css, plots = (STATIC / "page.css").read_text(), (Path(report_page.__file__).parent / "plots.py").read_text()
    for name in ("ink", "ground", "line", "faint"):
        colours = re.findall(rf"--{name}: (#\w+)", css)
        assert len(colours) == 2 and colours == re.findall(rf"--{name}: (#\w+)", report_page.STYLE)
    for phase in PHASES:
        assert re.findall(rf"--{phase}: (#\w+)", css) == re.findall(rf'"{phase}": "(#\w+)"', plots)[:1]
    assert re.findall(r"--transition: (#\w+)", css) == re.findall(r'TRANSITION_COLOR = "(#\w+)"', plots)


async def test_status_has_what_metrics_know(site: Site) -> None:
    site.engine.stats = Stats("prefill", "P2", transition="P2->T2", requests_waiting=3, generation_tokens=70)
    await site.bridge.ping(PATIENCE_S)
    response = await site.client.get("/status")
    assert response.headers["content-type"] == "application/json"
    status = response.json()
    assert (status["models"], status["engine"]["decode"], status["engine"]["model"]) == (["fake"], "T2", INFO.model)
    assert (status["trouble"], status["jobs"], status["num_jobs"]) == (None, None, 0)
    shown = {"phase": "prefill", "layout": "P2", "transition": "P2->T2", "requests_waiting": 3, "generation_tokens": 70}
    assert {name: status["stats"][name] for name in shown} == shown
    columns = {name: column for name, column in status["samples"].items() if name != "phases"}
    assert {*map(len, columns.values())} == {0} and status["samples"]["phases"] == {phase: [] for phase in PHASES}
    assert 0 <= status["heard_s_ago"] <= status["now_s"]


@pytest.mark.parametrize("after", ["", "x", "1e"])
async def test_a_time_that_is_none_is_refused(site: Site, after: str) -> None:
    response = await site.client.get(f"/status?after={after}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "query.after")


@pytest.mark.parametrize("error", [EngineDeadError("gone"), ShuttingDownError("The server is shutting down.")])
async def test_what_a_request_would_be_refused_for_is_said_in_the_apis_words(site: Site, error: Exception) -> None:
    site.bridge.fail(error)  # type: ignore[arg-type]
    response = await site.client.post("/v1/completions", json={"prompt": "a"})
    assert (await site.client.get("/status")).json()["trouble"] == response.json()["error"]["message"]


async def test_whether_there_is_a_chat_template(make_site: MakeSite) -> None:
    for config, has in ((chat_config(), True), (ServerConfig(), False)):
        site = await make_site(config, tokenizer=ByteTokenizer())
        assert (await site.client.get("/status")).json()["has_chat_template"] is has


async def test_batches_are_told_where_there_are_any(make_site: MakeSite, tmp_path: Path) -> None:
    site = await make_site(ServerConfig(data_dir=str(tmp_path)))
    status = (await site.client.get("/status")).json()
    assert (status["jobs"], status["num_jobs"]) == ([], 0)


async def test_with_a_key_the_page_shows_nothing_without_it(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(api_key=("secret",), served_model_name=("hush",)))
    for path in ("/", *(f"/page/{name}" for name in PARTS)):
        response = await site.client.get(path)  # it asks for the key
        assert response.status_code == 200 and "hush" not in response.text
    for headers in ({}, {"Authorization": "Bearer other"}):
        refused = await site.client.get("/status", headers=headers)
        assert refused.status_code == 401 and refused.json()["error"]["code"] == 401
    allowed = await site.client.get("/status", headers={"Authorization": "Bearer secret"})
    assert allowed.json()["models"] == ["hush"]
    assert "security" in (await site.client.get("/openapi.json")).json()["paths"]["/status"]["get"]


async def test_without_the_page_nothing_of_it_is_there(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(page=False))
    for path in ("/", "/status", "/page/main.js"):
        response = await site.client.get(path)
        assert response.status_code == 404 and "Use POST /v1/chat/completions" in response.json()["error"]["message"]


async def test_other_names_are_not_found(site: Site) -> None:
    for name in ("other.js", "..%2froutes.py", ""):
        assert (await site.client.get(f"/page/{name}")).status_code == 404


async def test_below_a_root_path(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(root_path="/llm"))
    assert (await site.client.get("/llm", follow_redirects=True)).url.path == "/llm/"
    for path in ("/llm/", "/llm/page/main.js", "/llm/status", "/", "/page/main.js"):
        assert (await site.client.get(path)).status_code == 200, path


async def test_while_an_engine_is_restarted_it_says_so(site: Site) -> None:
    site.bridge.detach(EngineDeadError("gone"), 5.0)
    status = (await site.client.get("/status")).json()
    assert status["trouble"] == "The engine is being restarted; send the request again later."
    assert status["stats"]["requests_running"] == 0
