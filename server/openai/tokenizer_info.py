"""`/tokenizer_info`: what a tokenizer's configuration says, for clients that tokenize by this server (lm-eval does)."""

from __future__ import annotations

from typing import Any

from seesaw.engine.text.tokenizer import Tokenizer

# Where and how this host has its files is nobody's business.
_OF_THIS_HOST = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path", "is_local", "local_files_only")


def tokenizer_info(tokenizer: Tokenizer, template: Any) -> dict[str, Any]:
    """As vLLM tells it: `tokenizer_class`, special tokens as texts, and whatever else its checkpoint says.

    `template`: what chats are rendered by, if anything.
    """
    renderer = tokenizer.chat_renderer
    configured = {} if renderer is None else {**renderer.init_kwargs, **renderer.special_tokens_map}
    info = {name: _as_json(value) for name, value in configured.items() if name not in _OF_THIS_HOST}
    info["tokenizer_class"] = type(tokenizer if renderer is None else renderer).__name__
    return info | ({"chat_template": template} if template else {})


def _as_json(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {str(key): _as_json(each) for key, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_as_json(each) for each in value]
    return str(getattr(value, "content", value))  # of an `AddedToken`, its text
