"""What every door has behind it: a bridge, the keeper of its engine, and what the server itself needs of a checkpoint.

The doors are the HTTP server (`server.service`), runs without one (`server.offline`) and Ray's replicas (`server.ray`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from seesaw.engine.sampling.defaults import SamplingDefaults, check_defaults, load_defaults
from seesaw.engine.sizing.fit import check_early
from seesaw.engine.text.template_source import read_template
from seesaw.engine.text.tokenizer import Tokenizer, load_tokenizer
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.config import ServerConfig
from seesaw.server.keeper import EngineHandle, EngineKeeper
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.threads import in_daemon_thread

StartEngine = Callable[[EngineConfig], EngineHandle]


class Ready(NamedTuple):
    """What there is once the engine serves."""

    info: EngineInfo
    tokenizer: Tokenizer
    grammars: GrammarCheck  # to be closed by whoever started the engine
    defaults: SamplingDefaults


def check_settings(engine: EngineConfig, server: ServerConfig) -> None:
    """Raise ConfigError for what can be seen to be wrong before anything slow starts."""
    check_early(engine)
    read_template(server.chat_template)
    check_defaults(server.generation_config, engine)


def make_backend(
    engine: EngineConfig,
    server: ServerConfig,
    report: Callable[[str], None],
    start_engine: StartEngine | None = None,
) -> tuple[Bridge, EngineKeeper]:
    """As configured; nothing is started yet. `report` is told how starts go on."""
    if start_engine is None:
        from seesaw.engine.process import EngineProcess

        start_engine = EngineProcess.start
    bridge = Bridge(max_queued_requests=engine.max_queued_requests, max_queued_tokens=server.max_queued_tokens)
    keeper = EngineKeeper(
        bridge,
        partial(start_engine, engine),
        restarts=server.restart_engine,
        start_timeout_s=max(engine.start_timeout_s, server.engine_timeout_s),
        engine_timeout_s=server.engine_timeout_s,
        report=report,
    )
    return bridge, keeper


async def start_backend(engine: EngineConfig, server: ServerConfig, keeper: EngineKeeper) -> Ready:
    """Start the engine, and load the tokenizer beside it.

    Raises ConfigError, or EngineDeadError if the engine dies meanwhile.
    """
    info, (tokenizer, defaults) = await asyncio.gather(keeper.start(), in_daemon_thread(lambda: _load(engine, server)))
    grammars = GrammarCheck(engine.tokenizer or engine.model, info.vocab_size, info.eos_token_ids)
    return Ready(info, tokenizer, grammars, defaults)


def _load(engine: EngineConfig, server: ServerConfig) -> tuple[Tokenizer, SamplingDefaults]:
    """What the server itself needs of the checkpoint. Raises ConfigError."""
    tokenizer = load_tokenizer(engine.tokenizer or engine.model)
    return tokenizer, load_defaults(server.generation_config, engine)
