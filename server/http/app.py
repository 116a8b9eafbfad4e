"""The HTTP application: routes, middleware and error handlers around one bridge. Built by `server.service`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from engine.errors import SeesawError
from engine.messages import EngineInfo
from engine.text import Tokenizer
from server.config import ServerConfig
from server.http import errors
from server.http.middleware import ApiKeys, BodyLimit
from server.link.bridge import Bridge
from server.openai.chat import Chat
from server.openai.completions import Completions
from server.openai.defaults import NO_DEFAULTS, SamplingDefaults
from server.openai.models import Models
from server.openai.serving import Serving
from server.render.answer import AnswerFormat
from server.render.templates import ChatTemplate, read_template
from server.render.tokens import TokenizerPool
from server.version import seesaw_version

# A scrape shows the engine as it is now, if it answers at once, and else as it was last heard of.
SCRAPE_TIMEOUT_S = 1.0


def create_app(
    bridge: Bridge,
    info: EngineInfo,
    tokenizer: Tokenizer,
    config: ServerConfig,
    defaults: SamplingDefaults = NO_DEFAULTS,
) -> FastAPI:
    """The application for an engine that is ready."""
    tokens = TokenizerPool(tokenizer)
    models = Models(model_name(config, info), info)
    serving = Serving(bridge, info, models, tokens, defaults)
    completions = Completions(serving)
    parser = config.tool_call_parser if config.enable_auto_tool_choice else "none"
    chat = Chat(
        serving,
        ChatTemplate(tokenizer, read_template(config.chat_template)),
        AnswerFormat.of(tokenizer, parser, config.reasoning_parser),
        trusts_templates=config.trust_request_chat_template,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        tokens.close()

    # No /docs: its page needs a CDN, and clients know this API from OpenAI's own documentation.
    app = FastAPI(title="Seesaw", version=seesaw_version(), lifespan=lifespan, openapi_url=None)
    app.add_middleware(BodyLimit, max_body_bytes=config.max_body_bytes)
    if config.api_key:
        app.add_middleware(ApiKeys, keys=config.api_key)
    errors.install(app)

    app.add_api_route("/v1/completions", completions.create, methods=["POST"])
    app.add_api_route("/v1/chat/completions", chat.create, methods=["POST"])
    app.add_api_route("/v1/models", models.list)
    app.add_api_route("/v1/models/{model:path}", models.retrieve)

    @app.api_route("/ping", methods=["GET", "POST"], include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """200 if the engine's loop turns: it answered just now."""
        try:
            await bridge.ping(config.health_timeout_s)
        except TimeoutError:
            return errors.ErrorInfo(503, f"The engine did not answer within {config.health_timeout_s:g} s.").response
        except SeesawError as error:
            return errors.describe(error)._replace(status=503).response
        return JSONResponse({})

    @app.get("/version")
    async def show_version() -> dict[str, str]:
        return {"version": app.version}

    @app.get("/metrics")
    async def metrics() -> Response:
        with contextlib.suppress(TimeoutError, SeesawError):
            await bridge.ping(SCRAPE_TIMEOUT_S)
        return Response(bridge.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return app


def model_name(config: ServerConfig, info: EngineInfo) -> str:
    """The name that clients use and read."""
    if config.served_model_name or not info.model:
        return config.served_model_name or "simulated"
    folder = Path(info.model).expanduser()
    return folder.resolve().name if folder.is_dir() else info.model
