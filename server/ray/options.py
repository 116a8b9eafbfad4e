"""What an application's arguments say, and what an engine takes of a cluster. Knows nothing of Ray itself.

Used by `server.ray.deployment` and `server.ray.data`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.wording import count
from seesaw.server.config import ServerConfig
from seesaw.server.settings import HINTS, given_values, make_configs, mapped_values

# What Ray Serve's proxies do, for all replicas, and who configures it there.
PROXYS = {
    **dict.fromkeys(("host", "port", "keep_alive_s"), "Ray Serve's http_options"),
    **dict.fromkeys(("root_path",), "the application's route_prefix"),
    **dict.fromkeys(("shutdown_timeout_s",), "the deployment's graceful_shutdown_timeout_s"),
    **dict.fromkeys(("restart_engine",), "the deployment's health checks, which replace a replica"),
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
    return for_cluster(engine), server


def _untexted(key: str, value: Any) -> Any:
    if isinstance(value, str) and HINTS.get(key) in (int, float, bool):
        with suppress(ValueError):
            return json.loads(value)
    return value


class Pool(NamedTuple):
    """How many engines there are: at least, at the start, and at most."""

    least: int
    first: int
    most: int


@dataclass(frozen=True)
class Cluster:
    """Where rows are answered, and by how many engines. What is not said follows from the room that there is."""

    address: str = ""  # of Ray's head, or empty for what Ray finds itself
    least: int | None = None
    most: int | None = None

    @classmethod
    def parse(cls, address: str, engines: str) -> Cluster:
        """`engines`: a number, or the least and most as in 2-8, or empty. Raises ConfigError."""
        if not engines:
            return cls(address)
        least, _, most = engines.partition("-")
        with suppress(ValueError):
            numbers = int(least), int(most or least)
            if 1 <= numbers[0] <= numbers[1]:
                return cls(address, *numbers)
        raise ConfigError(f"--ray-engines must be a number, or the least and most as in 2-8, not {engines!r}")

    def pool(self, num_fitting: int, num_chunks: int) -> Pool:
        """Where so many engines have room now, and with so much to do. Engines that start for minutes are not given up
        for a moment with less to do: only those beyond what is here now come and go."""
        most = num_chunks if self.most is None else min(self.most, num_chunks)
        least = max(1, min(num_fitting if self.least is None else self.least, most))
        return Pool(least, max(least, min(num_fitting, most)), max(least, most))


def for_cluster(config: EngineConfig) -> EngineConfig:
    """An engine that is like all others there: `auto` is a GPU, whatever its host has and whatever this one."""
    is_unsaid = config.device == "auto" and config.executor == "processes"
    return replace(config, device="cuda") if is_unsaid else config


def engine_resources(config: EngineConfig) -> dict[str, int]:
    """What one engine takes of a host, as arguments of Ray's actors: all of its GPUs, or a CPU for each rank."""
    if config.executor == "simulated":
        return {"num_cpus": 1}
    return {"num_cpus" if config.device == "cpu" else "num_gpus": config.plan.world_size}


def num_fitting(nodes: Iterable[Mapping[str, Any]], resources: Mapping[str, int]) -> int:
    """How many engines have room on the nodes of a cluster, as Ray lists them, if nobody else has any of it."""
    [(name, needed)] = resources.items()
    kind = name.removeprefix("num_").removesuffix("s").upper()
    return sum(int(node["Resources"].get(kind, 0) // needed) for node in nodes if node["Alive"])


def told(resources: Mapping[str, int]) -> str:
    """As one would say it."""
    [(name, needed)] = resources.items()
    kind = name.removeprefix("num_").removesuffix("s").upper()
    return count(needed, kind)
