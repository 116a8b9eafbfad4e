"""The HTTP application: routes, middleware and error handlers around one bridge. Built by `server.service`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from seesaw.engine.sampling.defaults import NO_DEFAULTS, SamplingDefaults
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.values.errors import SeesawError
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.config import ServerConfig
from seesaw.server.http import errors
from seesaw.server.http.counting import RequestCounts
from seesaw.server.http.middleware import ApiKeys, BodyLimit, RequestIds, RootPath
from seesaw.server.http.openapi import JOB_PATHS, make_document
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.metrics import Metrics
from seesaw.server.openai.handlers import make_handlers
from seesaw.server.openai.models import model_names
from seesaw.server.openai.responses import Responses
from seesaw.server.openai.tokenization import Tokenization
from seesaw.server.openai.tokenizer_info import tokenizer_info
from seesaw.server.page.routes import STATUS_PATH, add_page_routes
from seesaw.server.page.status import StatusMaker
from seesaw.version import seesaw_version

if TYPE_CHECKING:
    from seesaw.server.batches.jobs import Jobs

# A scrape shows the engine as it is now, if it answers at once, and else as it was last heard of.
SCRAPE_TIMEOUT_S = 1.0
READ = ["GET", "HEAD"]  # load balancers and proxies ask with either


def create_app(
    bridge: Bridge,
    info: EngineInfo,
    tokenizer: Tokenizer,
    config: ServerConfig,
    grammars: GrammarCheck,
    defaults: SamplingDefaults = NO_DEFAULTS,
) -> FastAPI:
    """The application for an engine that is ready. It closes `grammars` when it ends."""
    handlers = make_handlers(bridge, info, tokenizer, config, grammars, defaults)
    lanes, models, serving, completions, chat = handlers

    jobs: Jobs | None = None
    if config.data_dir:
        from seesaw.server.batches.jobs import open_jobs  # here, since what it imports takes a while

        jobs = open_jobs(config, info, bridge, serving, handlers.of_rows)

    status: StatusMaker | None = None
    if config.page:
        open_jobs_of = None if jobs is None else lambda: jobs.feeder.jobs
        names, has_template = model_names(config, info), bool(chat.template)
        status = StatusMaker(bridge, info, names, has_chat_template=has_template, jobs=open_jobs_of)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if jobs is not None:
            await jobs.start()
        watching = None if status is None else asyncio.create_task(status.watch())
        yield
        if watching is not None:
            watching.cancel()
        if jobs is not None:
            await jobs.close()
        lanes.close()
        grammars.close()

    app = FastAPI(
        title="Seesaw",
        version=seesaw_version(),
        lifespan=lifespan,
        openapi_url=None if config.disable_fastapi_docs else "/openapi.json",
        docs_url="/docs",  # a page whose scripts come from a CDN (jsdelivr.net)
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.openapi = functools.cache(  # type: ignore[method-assign]
        lambda: make_document(
            app.title,
            app.version,
            has_keys=bool(config.api_key),
            without=(
                *(() if config.enable_tokenizer_info_endpoint else ("/tokenizer_info",)),
                *(() if config.data_dir else JOB_PATHS),
                *(() if config.page else (STATUS_PATH,)),
            ),
        )
    )
    _add_middleware(app, config, bridge.metrics)
    errors.install(app)

    tokenization = Tokenization(serving, chat)
    app.add_api_route("/v1/completions", completions.create, methods=["POST"])
    app.add_api_route("/v1/chat/completions", chat.create, methods=["POST"])
    app.add_api_route("/v1/responses", Responses(serving, chat).create, methods=["POST"])
    app.add_api_route("/v1/models", models.list, response_model=None, methods=READ)
    app.add_api_route("/v1/models/{model:path}", models.retrieve, response_model=None, methods=READ)
    app.add_api_route("/tokenize", tokenization.tokenize, methods=["POST"])
    app.add_api_route("/detokenize", tokenization.detokenize, methods=["POST"])

    if jobs is not None:
        from seesaw.server.batches.routes import add_job_routes

        add_job_routes(app, jobs, lanes)
    if config.enable_tokenizer_info_endpoint:
        info_of_tokenizer = tokenizer_info(tokenizer, chat.template)
        app.add_api_route("/tokenizer_info", lambda: JSONResponse(info_of_tokenizer), response_model=None, methods=READ)

    if status is not None:
        add_page_routes(app, status)

    @app.api_route("/ping", methods=[*READ, "POST"])
    @app.api_route("/health", methods=READ)
    async def health() -> Response:
        """200 if the engine's loop turns: it answered just now."""
        try:
            await bridge.ping(config.health_timeout_s)
        except TimeoutError:
            return _hung(config.health_timeout_s)
        except SeesawError as error:
            return errors.describe(error)._replace(status=503).response
        return JSONResponse({})

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> Response:
        """200 if a request that came now would be taken: as `/health`, and there is room in the queue."""
        try:
            bridge.check_room(1)
        except SeesawError as error:
            return errors.describe(error)._replace(status=503).response
        return await health()

    @app.post("/reset_prefix_cache")
    async def reset_prefix_cache() -> Response:
        try:
            await bridge.reset_prefix_cache(config.health_timeout_s)
        except TimeoutError:
            return _hung(config.health_timeout_s)
        return JSONResponse({})

    @app.api_route("/load", methods=READ)
    async def load() -> dict[str, int]:
        """How many requests there are, as vLLM tells load balancers."""
        return {"server_load": bridge.num_live}

    @app.api_route("/version", methods=READ)
    async def show_version() -> dict[str, str]:
        return {"version": app.version}

    @app.api_route("/metrics", methods=READ)
    async def metrics() -> Response:
        with contextlib.suppress(TimeoutError, SeesawError):
            await bridge.ping(SCRAPE_TIMEOUT_S)
        return Response(bridge.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return app


def _hung(timeout_s: float) -> Response:
    return errors.ErrorInfo(503, f"The engine did not answer within {timeout_s:g} s.").response


def _add_middleware(app: FastAPI, config: ServerConfig, metrics: Metrics) -> None:
    """What is added last sees a request first."""
    app.add_middleware(
        BodyLimit,
        max_body_bytes=config.max_body_bytes,
        max_total_body_bytes=config.max_total_body_bytes,
        max_file_bytes=config.max_file_bytes,
    )
    if config.api_key:
        app.add_middleware(ApiKeys, keys=config.api_key)
    if config.allowed_origins:  # before the keys, since browsers ask without one whether they may
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods or ("*",),
            allow_headers=config.allowed_headers or ("*",),
            allow_credentials=config.allow_credentials,
        )
    app.add_middleware(RequestIds)
    app.add_middleware(RequestCounts, counter=metrics.http_requests)
    if config.root_path:
        app.add_middleware(RootPath, root_path=config.root_path)
