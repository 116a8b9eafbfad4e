"""The handlers of one engine's generation, whoever sends the bodies: HTTP clients, batches, or `seesaw batch run`."""

from __future__ import annotations

from typing import NamedTuple

from seesaw.engine.sampling.defaults import NO_DEFAULTS, SamplingDefaults
from seesaw.engine.text.chat_template import ChatTemplate
from seesaw.engine.text.template_source import read_template
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.config import ServerConfig
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.openai.chat import Chat
from seesaw.server.openai.completions import Completions
from seesaw.server.openai.models import Models, model_names
from seesaw.server.openai.serving import Serving
from seesaw.server.render.answer import AnswerFormat
from seesaw.server.render.tools import TOOL_PARSERS
from seesaw.server.threads import Lanes


class Handlers(NamedTuple):
    lanes: Lanes  # to be closed by whoever had them made
    models: Models
    serving: Serving
    completions: Completions
    chat: Chat

    @property
    def of_rows(self) -> dict[str, Completions | Chat]:
        """Those that answer rows of batches, by URL."""
        return {"/v1/completions": self.completions, "/v1/chat/completions": self.chat}


def make_handlers(
    bridge: Bridge,
    info: EngineInfo,
    tokenizer: Tokenizer,
    config: ServerConfig,
    grammars: GrammarCheck,
    defaults: SamplingDefaults = NO_DEFAULTS,
) -> Handlers:
    """Of an engine that is ready. Raises ConfigError for a chat template that cannot be read."""
    lanes = Lanes()
    models = Models(model_names(config, info), info)
    serving = Serving(bridge, info, models, lanes, tokenizer, defaults, grammars, config)
    parser = config.tool_call_parser if config.enable_auto_tool_choice else "none"
    chat = Chat(
        serving,
        ChatTemplate(tokenizer, read_template(config.chat_template)),
        AnswerFormat.of(tokenizer, parser, config.reasoning_parser),
        # A call that is forced needs no model that knows the format, only a parser.
        AnswerFormat.of(
            tokenizer,
            config.tool_call_parser if config.tool_call_parser in TOOL_PARSERS else "hermes",
            config.reasoning_parser,
            only_calls=True,
        ),
        trusts_templates=config.trust_request_chat_template,
    )
    return Handlers(lanes, models, serving, Completions(serving), chat)
