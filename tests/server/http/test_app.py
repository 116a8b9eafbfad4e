"""Everything beside completions: models, health, metrics, keys, and routes that do not exist."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Add, LayoutSpeed, Ping, ResetPrefixCache, Speeds, Stats
from seesaw.server.config import ServerConfig
from seesaw.server.http import app
from seesaw.server.http.errors import ModelNotFoundError
from seesaw.server.openai.models import Models, model_names
from tests.patience import PATIENCE_S
from tests.server.conftest import MakeSite, Site
from tests.server.fake_engine import INFO, answer

pytestmark = pytest.mark.anyio


async def test_models(site: Site) -> None:
    (card,) = (await site.client.get("/v1/models")).json()["data"]
    assert (card["id"], card["max_model_len"], card["root"]) == ("fake", INFO.max_model_len, INFO.model)
    assert (await site.client.get("/v1/models/fake")).json() == card
    assert (await site.client.get("/v1/models/other/one")).status_code == 404


async def test_a_model_without_a_name_is_served_by_its_path(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig())
    assert (await site.client.get("/v1/models")).json()["data"][0]["id"] == "fake/model"
    assert (await site.client.get("/v1/models/fake/model")).status_code == 200


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("abc123", "abc123"),
        ("link", "link"),
        ("link/", "link"),
        ("./abc123/../link", "link"),
        ("hub/models--org--some-model/snapshots/0f3a", "org/some-model"),
        ("org/model", "org/model"),  # of the hub
    ],
)
async def test_a_folder_is_served_by_the_name_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    (tmp_path / "abc123").mkdir()
    (tmp_path / "link").symlink_to("abc123")
    (tmp_path / "hub/models--org--some-model/snapshots/0f3a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    info = msgspec.structs.replace(INFO, model=given)
    names = model_names(ServerConfig(), info)
    assert names == (name,)
    models = Models(names, info)
    for accepted in (name, given, given.rstrip("/"), given + "/"):
        models.check(accepted)
        assert (await models.retrieve(accepted))["id"] == name  # type: ignore[typeddict-item]
    with pytest.raises(ModelNotFoundError):
        models.check("other")


async def test_health_proves_that_the_loop_turns(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(health_timeout_s=PATIENCE_S))
    for path in ("/health", "/ping"):
        response = await site.client.get(path)
        assert (response.status_code, response.json()) == (200, {})
    site.bridge.fail(EngineDeadError("gone"))
    assert (await site.client.get("/health")).status_code == 503


async def test_ready_is_whoever_would_take_a_request_now(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(health_timeout_s=PATIENCE_S))
    assert (await site.client.get("/ready")).status_code == 200
    waiting = site.bridge.submit("a", [([1], SamplingParams(n=site.bridge.room.max_sequences))])
    full = await site.client.get("/ready")
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    waiting.close()
    assert (await site.client.get("/health")).status_code == 200  # and the engine has let go of what was before
    assert (await site.client.get("/ready")).status_code == 200
    site.bridge.fail(EngineDeadError("gone"))
    assert (await site.client.get("/ready")).status_code == 503


async def test_health_and_load_answer_every_method_that_balancers_use(site: Site) -> None:
    own = ("/health", "/ready", "/ping", "/load", "/version", "/metrics")
    reads = (*own, "/v1/models", "/v1/models/", "/v1/models/fake")
    for method, path in (*(("HEAD", path) for path in reads), ("POST", "/ping")):
        assert (await site.client.request(method, path)).status_code == 200, (method, path)
    assert (await site.client.get("/load")).json() == {"server_load": 0}
    waiting = site.bridge.submit("a", [([1], SamplingParams(n=2)), ([2], SamplingParams())])
    assert (await site.client.get("/load")).json() == {"server_load": 2}
    waiting.close()


async def test_a_model_of_several_names(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(served_model_name=("one", "two")))
    site.engine.script = answer("x")
    for path in ("/v1/models", "/v1/models/"):
        assert [card["id"] for card in (await site.client.get(path)).json()["data"]] == ["one", "two"]
    assert (await site.client.get("/v1/models/two")).json()["id"] == "two"
    for name in ("one", "two", INFO.model):
        response = await site.complete(prompt="p", model=name)
        assert (response.status_code, response.json()["model"]) == (200, "one")
    refused = await site.complete(prompt="p", model="three")
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == "The model 'three' does not exist; 'one' and 'two' do."


async def test_a_request_keeps_its_id(site: Site) -> None:
    site.engine.script = answer("x")
    ids = []
    for given in ("mine-1", "mine-1", "", "two words", "x" * 129):
        response = await site.client.post("/v1/completions", json={"prompt": "p"}, headers={"X-Request-Id": given})
        ids.append(response.headers["x-request-id"])
        assert response.json()["id"] == f"cmpl-{ids[-1]}"
    assert ids[:2] == ["mine-1"] * 2
    assert len(set(ids[2:])) == 3 and all(len(id) == 32 for id in ids[2:])
    assert (await site.client.get("/nothing", headers={"X-Request-Id": "a"})).headers["x-request-id"] == "a"
    internal = [message.id for message in site.engine.received if isinstance(message, Add)]
    assert len(set(internal)) == 5


PREFLIGHT = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}


async def test_pages_of_other_origins_may_call_only_if_they_are_allowed(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(api_key=("k",)))
    assert (await site.client.options("/v1/completions", headers=PREFLIGHT)).status_code == 401
    assert "access-control-allow-origin" not in (await site.client.get("/version", headers=PREFLIGHT)).headers
    site = await make_site(ServerConfig(api_key=("k",), allowed_origins=("http://page",)))
    allowed = await site.client.options("/v1/completions", headers=PREFLIGHT)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "http://page")
    assert "POST" in allowed.headers["access-control-allow-methods"]
    other = await site.client.options("/v1/completions", headers=PREFLIGHT | {"Origin": "http://other"})
    assert other.status_code == 400
    assert (await site.client.get("/v1/models", headers=PREFLIGHT)).status_code == 401


async def test_below_a_root_path_all_is_as_without(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(api_key=("k",), root_path="/llm"))
    for path in ("/v1/models", "/llm/v1/models"):  # a proxy may strip the root path or not
        assert (await site.client.get(path)).status_code == 401
        assert (await site.client.get(path, headers={"Authorization": "Bearer k"})).status_code == 200


async def test_a_loop_that_stands_still_is_not_healthy(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(health_timeout_s=0.01))
    site.engine.silent = True
    hung = await site.client.get("/health")
    assert (hung.status_code, hung.json()["error"]["code"]) == (503, 503)


async def test_version_and_errors_of_routes_have_one_shape(site: Site) -> None:
    assert isinstance((await site.client.get("/version")).json()["version"], str)
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/completions", 405)):
        response = await site.client.request(method, path)
        assert response.status_code == response.json()["error"]["code"] == status
    assert response.json()["error"]["message"] == "/v1/completions does not take GET: use POST."
    assert response.headers["allow"] == "POST"
    missing = (await site.client.get("/tokenizer_info")).json()["error"]["message"]
    assert missing == "There is no /tokenizer_info here. Start the server with --enable-tokenizer-info-endpoint."


async def test_a_reset_is_done_when_it_is_answered(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(health_timeout_s=0.01))
    site.engine.silent = True
    hung = await site.client.post("/reset_prefix_cache")
    assert (hung.status_code, hung.json()["error"]["code"]) == (503, 503)
    site = await make_site(ServerConfig(health_timeout_s=PATIENCE_S))
    assert (await site.client.get("/reset_prefix_cache")).status_code == 405
    assert (await site.client.post("/reset_prefix_cache")).status_code == 200
    assert [type(message) for message in site.engine.received] == [ResetPrefixCache, Ping]
    site.bridge.fail(EngineDeadError("gone"))
    assert (await site.client.post("/reset_prefix_cache")).status_code == 500


async def test_keys_guard_what_costs_work(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(api_key=("one", "two")))
    for header in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}, {"Authorization": "Bearer "}):
        response = await site.client.get("/v1/models", headers=header)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "UnauthorizedError")
    for key in ("one", "two"):
        assert (await site.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).status_code == 200
    for path in ("/tokenize", "/detokenize", "/reset_prefix_cache"):
        assert (await site.client.post(path, json={})).status_code == 401
    assert (await site.client.get("/health")).status_code == 200


async def test_every_answer_is_counted_by_its_status(make_site: MakeSite) -> None:
    site = await make_site(ServerConfig(api_key=("k",), max_body_bytes=100, served_model_name=("fake",)))
    site.engine.script = answer("x")
    key = {"Authorization": "Bearer k"}
    for body in ({"prompt": "p"}, {"prompt": 3}, {"prompt": "p", "model": "other"}, {"prompt": "p" * 200}):
        await site.client.post("/v1/completions", json=body, headers=key)
    await site.client.post("/v1/completions", json={"prompt": "p"})
    for path in ("/a", "/b", "/v1/models/c", "/v1/models/d"):
        await site.client.get(path, headers=key)
    for method in ("BREW", "WHEN", "PATCH"):
        await site.client.request(method, "/v1/completions", headers=key)
    site.bridge.fail(EngineDeadError("gone"))
    await site.client.get("/health")
    found = await samples(site)
    counted = {name.split(",", 1)[1]: value for name, value in found.items() if name.startswith("http_requests_total,")}
    expected = {f"/v1/completions,POST,{status}": 1 for status in (200, 400, 404, 413, 401)}
    expected |= {"none,GET,404": 2, "/v1/models/{model:path},GET,404": 2, "/health,GET,503": 1}
    expected |= {"/v1/completions,other,405": 3}
    assert {name: value for name, value in counted.items() if value} == expected
    assert counted["/v1/chat/completions,POST,503"] == 0  # shown before it happens


async def test_what_fails_unforeseen_is_counted(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = await make_site(ServerConfig(health_timeout_s=PATIENCE_S))

    async def broken(timeout_s: float) -> None:
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as patch:
        patch.setattr(site.bridge, "ping", broken)
        with pytest.raises(RuntimeError):
            await site.client.get("/health")
    assert (await samples(site))["http_requests_total,/health,GET,500"] == 1


async def samples(site: Site) -> dict[str, float]:
    """All samples of /metrics, by name and label values."""
    response = await site.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        ",".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_metrics_show_the_engine_as_it_is_now(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SCRAPE_TIMEOUT_S", PATIENCE_S)
    site.engine.stats = Stats(
        phase="decode",
        requests_running=3,
        requests_waiting=2,
        requests_hosted=1,
        device_blocks_used=25,
        device_blocks_total=100,
        host_blocks_used=7,
        host_blocks_total=50,
        device_blocks_cached=60,
        host_blocks_cached=40,
        prefix_cache_queries=100,
        prefix_cache_hits={"device": 70, "host": 20},
        prompt_tokens=11,
        generation_tokens=12,
        preemptions=1,
        transitions={"P2->T2": 4},
        transition_seconds={"drain": 0.5, "weights": 1.5},
        swap_bytes={"out": 1000, "in": 900},
        swap_seconds={"out": 0.25},
        phase_seconds={"prefill": 9.0},
        steps={"mixed": 6},
        idle_seconds={"swap_in": 0.75},
        speeds=Speeds({"T2": LayoutSpeed(17_000.0, {1: 0.01, 256: 0.03})}, 0.625),
    )
    got = await samples(site)
    expected = {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "num_requests_hosted": 1,
        "kv_cache_usage_perc": 0.25,
        "device_kv_blocks_used": 25,
        "device_kv_blocks": 100,
        "host_kv_blocks_used": 7,
        "host_kv_blocks": 50,
        "device_kv_blocks_cached": 60,
        "host_kv_blocks_cached": 40,
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 70,
        "external_prefix_cache_queries_total": 30,
        "external_prefix_cache_hits_total": 20,
        "prompt_tokens_total": 11,
        "generation_tokens_total": 12,
        "num_preemptions_total": 1,
        "phase,decode": 1,
        "phase,prefill": 0,
        "transitions_total,P2->T2": 4,
        "transition_seconds_total,weights": 1.5,
        "swap_bytes_total,out": 1000,
        "swap_seconds_total,out": 0.25,
        "phase_seconds_total,prefill": 9,
        "steps_total,mixed": 6,
        "idle_seconds_total,swap_in": 0.75,
        "idle_seconds_total,host": 0,
        "layout_prefill_tokens_per_second,T2": 17_000,
        "layout_decode_seconds,T2,256": 0.03,
        "expected_transition_seconds": 0.625,
    }
    assert {name: got[f"seesaw:{name}"] for name in expected} == expected


async def test_without_a_host_pool_nothing_is_looked_up_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SCRAPE_TIMEOUT_S", PATIENCE_S)
    site.engine.stats = Stats(prefix_cache_queries=100, prefix_cache_hits={"device": 70})
    got = await samples(site)
    assert got["seesaw:external_prefix_cache_queries_total"] == got["seesaw:external_prefix_cache_hits_total"] == 0


async def test_known_series_show_0_from_the_start_and_none_its_creation(site: Site) -> None:
    got = await samples(site)
    for name in (
        *("transitions_total,P2->T2", "transitions_total,T2->P2", "transition_seconds_total,drain"),
        *("swap_bytes_total,out", "swap_seconds_total,in", "phase_seconds_total,tail", "steps_total,mixed"),
        *("request_success_total,stop", "request_success_total,abort"),
    ):
        assert got[f"seesaw:{name}"] == 0, name
    assert not [name for name in got if "_created" in name]


async def test_metrics_count_what_went_through(site: Site) -> None:
    site.engine.script = answer("abcd")
    await site.complete(prompt="p", n=2, max_tokens=4)
    await site.complete(prompt="p", max_tokens=2)
    site.bridge.fail(EngineDeadError("gone"))  # metrics outlive the engine
    got = await samples(site)
    assert got["seesaw:request_success_total,stop"] == 2
    assert got["seesaw:request_success_total,length"] == 1
    assert got["seesaw:time_to_first_token_seconds_count"] == 3
    assert got["seesaw:inter_token_latency_seconds_count"] == 3 + 3 + 1
    assert got["seesaw:e2e_request_latency_seconds_count"] == 3
