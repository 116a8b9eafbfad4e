"""From a conversation to the text of a prompt, by the checkpoint's own chat template or the operator's.

Rendering is transformers', in its sandbox. What a template raises is the client's to mend: nearly always it is its own
word on the order of messages. Used by `server.openai.chat`, in a thread, and by `seesaw.LLM`.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from seesaw.engine.text.conversation import Conversation, template_messages
from seesaw.engine.text.template_source import reads
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.values.errors import RequestError

logger = logging.getLogger(__name__)


@lru_cache(maxsize=16)  # once for each
def _warn_of_unread_tools(template: str) -> None:
    if not reads(template, "tools"):
        logger.warning("requests hold tools, but the chat template does not read any: the model does not hear of them")


class ChatTemplate:
    """Renders conversations. Safe to call from several threads at once."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        """`template` is used instead of the checkpoint's."""
        self._renderer: Any = tokenizer.chat_renderer
        self._template = template
        self._loading = threading.Lock()  # two threads that import transformers at once may find half of it

    @property
    def text(self) -> Any:
        """What renders a conversation that brings no template of its own; of a checkpoint with several, all by their
        names. Empty or None: nothing does."""
        return self._template or getattr(self._renderer, "chat_template", None)

    def render(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        param: str = "messages",
    ) -> str:
        """The prompt's text. Messages may be as OpenAI's clients write them. `variables` are for the template, `param`
        is where the client wrote the messages. Raises RequestError."""
        reserved = (variables or {}).keys() & self._parameters()
        if reserved:
            raise RequestError(
                f"chat_template_kwargs must not hold {min(reserved)!r}: it is no variable of a template.",
                "chat_template_kwargs",
            )
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt cannot both be true: choose one.",
                "continue_final_message",
            )
        messages = template_messages(conversation)
        options = {
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "chat_template": template or self._template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        source = self._source(options["chat_template"], options["tools"], param)
        if tools:
            _warn_of_unread_tools(source)
        try:
            return self._apply(messages, options | dict(variables or {}))
        except Exception as error:
            logger.debug("a chat template raised", exc_info=True)
            if template and type(error) is not TemplateError:  # which `raise_exception` raises, about the messages
                raise RequestError(f"chat_template fails on these messages: {error}", "chat_template") from None
            raise RequestError(f"The chat template cannot render these messages: {error}", param) from None

    def _source(self, template: Any, tools: Any, param: str) -> str:
        """The template that will be used. Raises RequestError if there is none."""
        try:
            source: str = self._loaded().get_chat_template(template, tools)
        except ValueError:
            raise RequestError(
                "This model has no chat template: give one (--chat-template, or LLM.chat's chat_template), or send a "
                "prompt (/v1/completions, or LLM.generate).",
                param,
            ) from None
        return source

    def _apply(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        text = self._loaded().apply_chat_template(messages, tokenize=False, **options)
        assert isinstance(text, str)
        return text

    def _parameters(self) -> set[str]:
        """What means something to transformers in the place of a template's variables."""
        return {*inspect.signature(self._loaded().apply_chat_template).parameters, "messages"}

    def _loaded(self) -> Any:
        with self._loading:
            if self._renderer is None:  # a tokenizer that is not of transformers: its templates render all the same
                from tokenizers import Tokenizer as Core
                from tokenizers.models import WordLevel
                from transformers import PreTrainedTokenizerFast

                self._renderer = PreTrainedTokenizerFast(tokenizer_object=Core(WordLevel({}, "")))
            return self._renderer
