from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.server.ray.options import Cluster, Pool, engine_resources, for_cluster, num_fitting, read_arguments, told


def test_arguments_are_keys_of_a_config_file() -> None:
    engine, server = read_arguments({"model": "m", "prefill": "P4", "decode": "T4", "api_key": ["a", "b"]})
    assert (engine.model, str(engine.plan), server.api_key) == ("m", "P4->T4", ("a", "b"))


def test_texts_of_the_command_line_stand_for_numbers() -> None:
    engine, server = read_arguments(
        {
            "model": "m",
            "max_num_seqs": "8",
            "host_kv_bytes": "2GiB",
            "max_stall_s": "1.5",
            "enable_prefix_caching": "false",
        }
        | {"trust_request_chat_template": "true"}
    )
    assert (engine.max_num_seqs, engine.host_kv_bytes, engine.max_stall_s) == (8, 2 << 30, 1.5)
    assert (engine.enable_prefix_caching, server.trust_request_chat_template) == (False, True)


def test_a_file_may_say_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model": "m", "max_num_seqs": 8, "prefill": "T2"}))
    engine, _ = read_arguments({"config": str(file), "max_num_seqs": 16})
    assert (engine.model, engine.max_num_seqs, engine.prefill) == ("m", 16, "T2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "no model is named"),
        ({"model": "m", "prefil": "P4"}, "unknown key 'prefil' in the application's arguments"),
        ({"model": "m", "max_num_seqs": "many"}, "max_num_seqs in the application's arguments must be a whole number"),
        ({"model": "m", "port": 8001}, "port has no effect below Ray Serve: leave it out, and see Ray Serve's http_op"),
        ({"model": "m", "ssl_certfile": "c"}, "ssl_certfile has no effect"),
        ({"model": "m", "shutdown_timeout_s": 9}, "graceful_shutdown_timeout_s"),
        ({"model": "m", "data_dir": "d"}, "data_dir is of one server"),
    ],
)
def test_what_cannot_be_used_is_said(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_arguments(arguments)


@pytest.mark.parametrize(
    ("config", "resources", "said"),
    [
        (EngineConfig("m", prefill="P4", decode="D2T2"), {"num_gpus": 4}, "4 GPUs"),
        (EngineConfig("m"), {"num_gpus": 1}, "1 GPU"),
        (EngineConfig("m", device="cpu", prefill="P2"), {"num_cpus": 2}, "2 CPUs"),
        (EngineConfig("m", executor="simulated", prefill="P8"), {"num_cpus": 1}, "1 CPU"),
    ],
)
def test_an_engine_holds_all_of_its_devices(config: EngineConfig, resources: dict[str, int], said: str) -> None:
    assert (engine_resources(config), told(engine_resources(config))) == (resources, said)


def test_a_gpu_that_is_held_is_used() -> None:
    assert for_cluster(EngineConfig("m")).device == "cuda"
    assert for_cluster(EngineConfig("m", device="cpu")).device == "cpu"
    assert for_cluster(EngineConfig("m", executor="simulated")).device == "auto"


def test_engines_fit_on_hosts_one_by_one() -> None:
    nodes = [
        {"Alive": alive, "Resources": {"CPU": 64.0} | ({"GPU": gpus} if gpus else {})}
        for alive, gpus in ((True, 0), (True, 8.0), (True, 7.0), (False, 8.0))
    ]
    assert [num_fitting(nodes, {"num_gpus": needed}) for needed in (1, 2, 4, 8, 16)] == [15, 7, 3, 1, 0]
    assert num_fitting(nodes, {"num_cpus": 64}) == 3


@pytest.mark.parametrize(
    ("said", "fitting", "chunks", "pool"),
    [
        ("", 8, 100, Pool(8, 8, 100)),  # those that fit stay; where there comes room, more start
        ("", 8, 3, Pool(3, 3, 3)),  # no more than have something to do
        ("", 0, 100, Pool(1, 1, 100)),  # on a cluster that grows
        ("4", 8, 100, Pool(4, 4, 4)),
        ("4", 2, 100, Pool(4, 4, 4)),
        ("2-6", 8, 100, Pool(2, 6, 6)),
        ("2-6", 3, 100, Pool(2, 3, 6)),
        ("2-6", 0, 1, Pool(1, 1, 1)),
    ],
)
def test_how_many_engines_there_are(said: str, fitting: int, chunks: int, pool: Pool) -> None:
    assert Cluster.parse("auto", said).pool(fitting, chunks) == pool


@pytest.mark.parametrize("said", ["0", "-1", "3-2", "a", "1-2-3", "1.5"])
def test_what_is_no_number_of_engines_is_said(said: str) -> None:
    with pytest.raises(ConfigError, match="--ray-engines must be a number"):
        Cluster.parse("", said)
