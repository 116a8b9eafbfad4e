"""What an application's arguments say, and what an engine takes of a cluster. Knows nothing of Ray itself.

Used by `server.ray.deployment` and `server.ray.data`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.server.config import ServerConfig
from seesaw.server.settings import HINTS, given_values, make_configs, mapped_values

# What Ray Serve's proxies do, for all replicas, and who configures it there.
PROXYS = {
    **dict.fromkeys(("host", "port", "keep_alive_s"), "Ray Serve's http_options"),
    **dict.fromkeys(("root_path",), "the application's route_prefix"),
    **dict.fromkeys(("shutdown_timeout_s",), "the deployment's graceful_shutdown_timeout_s"),
    **dict.fromkeys(("engine_timeout_s",), "the deployment's health_check_timeout_s"),
    **dict.fromkeys(("access_log",), "Ray Serve's logging_config"),
    **dict.fromkeys(
        (
            *("uds", "ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs"),
            *("max_header_bytes", "max_connections", "header_timeout_s", "body_timeout_s", "send_timeout_s"),
        ),
        "a proxy in front of Ray Serve",
    ),
}


def read_arguments(arguments: Mapping[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    """The configurations from an application's arguments: keys as of a config file, and `config`, which names one.

    `serve run` has texts only, so a text may stand for a number or true. Raises ConfigError.
    """
    values = {key: _untexted(key, value) for key, value in arguments.items() if key != "config"}
    file = {"config": arguments["config"]} if "config" in arguments else {}
    engine, server = make_configs(given_values(file) | mapped_values(values, "the application's arguments"))
    for f in fields(ServerConfig):
        if f.name in PROXYS and getattr(server, f.name) != f.default:
            raise ConfigError(f"{f.name} has no effect below Ray Serve: leave it out, and see {PROXYS[f.name]}")
    if server.data_dir:
        raise ConfigError("data_dir is of one server, and replicas are several: leave it out, and run batches with Ray")
    return engine, server


def _untexted(key: str, value: Any) -> Any:
    if isinstance(value, str) and HINTS.get(key) in (int, float, bool):
        with suppress(ValueError):
            return json.loads(value)
    return value


def engine_resources(config: EngineConfig) -> dict[str, int]:
    """What one engine takes of a host, as arguments of Ray's actors: all of its GPUs, or a CPU for each rank.

    Ray's nodes need not be here, nor be started, so `auto` is a GPU.
    """
    if config.executor == "simulated":
        return {"num_cpus": 1, "num_gpus": 0}
    ranks = config.plan.world_size
    return {"num_cpus": ranks, "num_gpus": 0} if config.device == "cpu" else {"num_cpus": 1, "num_gpus": ranks}
