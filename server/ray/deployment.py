"""The HTTP application for Ray Serve: replicas, each with an engine of its own, behind Ray's proxies.

`build` is what `serve run`, a Serve config file or KubeRay's RayService name as the import path.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from seesaw.engine.heap import tame_collector
from seesaw.engine.logs import start_log
from seesaw.engine.sizing.fit import check_early
from seesaw.engine.values.config import EngineConfig
from seesaw.server.backend import make_backend
from seesaw.server.config import ServerConfig
from seesaw.server.ray.options import engine_resources, read_arguments
from seesaw.server.service import FLUSH_S, start_app

logger = logging.getLogger(__name__)


def build(arguments: dict[str, Any]) -> Application:
    """The application. `arguments` have the keys of a config file, `config` (the path of one) and `num_replicas`.

    All else that a deployment has is set where Ray has it set, by the name `Seesaw`. Raises ConfigError.
    """
    arguments = dict(arguments)
    num_replicas = arguments.pop("num_replicas", "1")
    engine, server = read_arguments(arguments)
    return Seesaw.options(  # type: ignore[attr-defined]
        num_replicas=num_replicas if num_replicas == "auto" else int(num_replicas),
        ray_actor_options=engine_resources(engine),
        # What the engine takes it also balances and refuses, in OpenAI's shape; only then Ray's proxies do.
        max_ongoing_requests=engine.max_num_seqs + engine.max_queued_requests,
        max_queued_requests=engine.max_queued_requests,
    ).bind(engine, server)


@serve.deployment
@serve.ingress()
class Seesaw:
    """A replica. Its process ends with its engine, and Ray makes another one."""

    async def __init__(self, engine: EngineConfig, server: ServerConfig) -> None:  # type: ignore[misc]  # as Ray has it
        """Returns once the engine is ready. Raises ConfigError or EngineDeadError."""
        start_log("%(asctime)s %(levelname)s %(name)s: %(message)s", server.log_level.upper())
        check_early(engine)
        self._health_timeout_s = server.health_timeout_s
        self._bridge, self._keeper = make_backend(engine, server, logger.info)
        try:
            self._app, _, _ = await start_app(engine, server, self._bridge, self._keeper)
        except BaseException:
            await self._keeper.close()
            raise
        tame_collector()
        self._ending = asyncio.create_task(self._end_with_engine())

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def check_health(self) -> None:
        """Raises unless the engine's loop turns."""
        await self._bridge.ping(self._health_timeout_s)

    async def __del__(self) -> None:
        self._ending.cancel()
        await asyncio.gather(self._ending, return_exceptions=True)
        await self._keeper.close()

    async def _end_with_engine(self) -> None:
        logger.error("%s", await self._keeper.keep())
        await asyncio.sleep(FLUSH_S)  # requests in flight end with what it died of
        os._exit(1)
