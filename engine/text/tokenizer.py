"""Tokenizers: a checkpoint's own, bytes where it has none, or none at all. Used by the server and by `seesaw.LLM`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from seesaw.engine.hub import find_model
from seesaw.engine.values.errors import ConfigError, RequestError
from seesaw.engine.values.panics import panics_are_errors

logger = logging.getLogger(__name__)

BYTES_TOKENIZER = "bytes"
REPLACEMENT = "\ufffd"
_SAMPLES = ("a", "A", "0", " ", "Hello")  # no tokenizer knows none of them
_MANY_TOKENS = 1000
_CONVERTIBLE = ("tokenizer.json", "tokenizer.model", "vocab.json")  # files that transformers makes a tokenizer of


class Tokenizer(Protocol):
    """What Seesaw asks of a tokenizer. Methods are safe to call from several threads at once."""

    vocab_size: int
    special_ids: frozenset[int]
    max_token_chars: int  # so many characters of a text become one token at most
    chat_renderer: Any  # transformers' tokenizer, for its chat template and no more; None if there is none

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text, with the special tokens (such as BOS) that the model expects before and after it,
        or without. Half a surrogate pair, which no UTF-8 can hold, counts as `?`. Raises RequestError for texts that
        the tokenizer's own rules cannot cope with."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special ones included. Broken UTF-8, and tokens that the tokenizer's own rules cannot
        cope with, become U+FFFD, unknown ids nothing."""


class FastTokenizer:
    """A Hugging Face tokenizer, by its Rust core: transformers' wrapper is not safe across threads."""

    def __init__(self, core: Any, chat_renderer: Any = None) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.chat_renderer = chat_renderer
        self.vocab_size: int = core.get_vocab_size()
        self.special_ids = frozenset(id for id, token in core.get_added_tokens_decoder().items() if token.special)
        # A vocabulary's entry has a character for each byte or each character that it stands for.
        self.max_token_chars = max(map(len, core.get_vocab()), default=1)

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        whole = [text.encode(errors="replace").decode() for text in texts]
        try:
            with panics_are_errors():
                # Also of one text: only this call lets other threads run meanwhile, and it is the faster one.
                encodings = self._core.encode_batch_fast(whole, add_special_tokens=add_special_tokens)
        except Exception as error:
            raise RequestError(f"The tokenizer cannot read this text ({_first_line(error)}): change it.") from error
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        try:
            with panics_are_errors():
                if len(tokens) > _MANY_TOKENS:  # as above
                    [text] = self._core.decode_batch([tokens], skip_special_tokens=False)
                else:
                    text = self._core.decode(tokens, skip_special_tokens=False)
        except Exception:
            logger.debug("a tokenizer cannot decode %s", tokens, exc_info=True)
            return REPLACEMENT
        return text

    def as_json(self) -> str:
        """What its tokenizer.json would hold."""
        return self._core.to_str()


class ByteTokenizer:
    """A token is a byte of UTF-8: for models that bring no tokenizer (random weights, the simulated host)."""

    vocab_size = 256
    special_ids: frozenset[int] = frozenset()
    max_token_chars = 1
    chat_renderer: Any = None

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [list(text.encode(errors="replace")) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class NoTokenizer:
    """Token ids in, token ids out: no token has a text, and no text has tokens."""

    vocab_size = 0
    special_ids: frozenset[int] = frozenset()
    max_token_chars = 1
    chat_renderer: Any = None

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Raises ValueError if there are any."""
        if texts:
            raise ValueError("there is no tokenizer (skip_tokenizer): prompts must be token ids")
        return []

    def decode(self, tokens: Sequence[int]) -> str:
        return ""


class SingleTexts:
    """A tokenizer as `clients.datasets` wants it: one text at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode([text])[0]


def load_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder or hub name; `bytes`, or no name, is the ByteTokenizer.

    Raises ConfigError if there is none. Slow (imports transformers, may download): keep it off event loops.
    """
    if name in ("", BYTES_TOKENIZER):
        return ByteTokenizer()
    loaded = load_transformers_tokenizer(name)
    core = getattr(loaded, "backend_tokenizer", None)
    if core is None:
        raise ConfigError(f"{name!r} has no fast tokenizer: convert it to a tokenizer.json or name another --tokenizer")
    tokenizer = FastTokenizer(core, loaded)
    _try_out(tokenizer, name)
    return tokenizer


def load_transformers_tokenizer(name: str) -> Any:
    """transformers' own of a checkpoint folder or hub name. Raises ConfigError and is slow, as `load_tokenizer`."""
    if name in ("", BYTES_TOKENIZER):
        raise ConfigError("the tokenizer `bytes` is none of transformers': name a checkpoint's")
    folder = find_model(name, ["*.json", "tokenizer*"], "tokenizer", "name a local folder or `bytes` with --tokenizer")
    if (folder / "tekken.json").is_file() and not any((folder / file).is_file() for file in _CONVERTIBLE):
        raise ConfigError(
            f"{name} has its tokenizer as tekken.json alone, which is not read: name a folder or hub model that has it "
            "as tokenizer.json with --tokenizer"
        )
    from transformers import AutoTokenizer

    try:
        with panics_are_errors():
            loaded = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises nearly anything: OSError, ValueError, KeyError, ImportError
        logger.debug("transformers cannot load a tokenizer from %s", folder, exc_info=True)
        raise ConfigError(
            f"there is no tokenizer in {name} that transformers can load: "
            "name a folder or hub model that has one with --tokenizer"
        ) from error
    return loaded


def _try_out(tokenizer: FastTokenizer, name: str) -> None:
    """Raise ConfigError for a tokenizer that fails on any text: what its rules name may not be there."""
    for text in _SAMPLES:
        try:
            tokenizer.encode([text])
            return
        except RequestError as error:
            reason = _first_line(error.__cause__)
    raise ConfigError(
        f"the tokenizer of {name} cannot read any text ({reason}): download it again, or name another --tokenizer"
    )


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().split("\n")[0][:100]
