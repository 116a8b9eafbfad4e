"""Between text and tokens: loading a tokenizer, turning a growing list of tokens into text, stop strings.

Used by the server and by `engine.LLM`; the engine process itself knows token ids only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from engine.hub import find_model
from engine.values.errors import ConfigError
from engine.wire.messages import FinishReason, Output

logger = logging.getLogger(__name__)

BYTES_TOKENIZER = "bytes"

# Text may depend on the tokens before it (SentencePiece drops the first space), so decoding starts a few earlier.
CONTEXT_TOKENS = 6
# No character takes more than 4 byte tokens; what is still broken after so many will not become one.
MAX_PENDING_TOKENS = 16

REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """What Seesaw asks of a tokenizer. Methods are safe to call from several threads at once."""

    vocab_size: int
    special_ids: frozenset[int]
    max_token_chars: int  # so many characters of a text become one token at most
    chat_renderer: Any  # transformers' tokenizer, for its chat template and no more; None if there is none

    def encode(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text, with the special tokens (such as BOS) that the model expects before and after it,
        or without. Half a surrogate pair, which no UTF-8 can hold, counts as `?`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, special ones included. Broken UTF-8 becomes U+FFFD, unknown ids nothing."""


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
        if len(whole) == 1:
            return [self._core.encode(whole[0], add_special_tokens=add_special_tokens).ids]
        encodings = self._core.encode_batch_fast(whole, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Sequence[int]) -> str:
        return self._core.decode(tokens, skip_special_tokens=False)

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


def load_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder or hub name; `bytes` is the ByteTokenizer.

    Raises ConfigError if there is none. Slow (imports transformers, may download): keep it off event loops.
    """
    if name == BYTES_TOKENIZER:
        return ByteTokenizer()
    folder = find_model(name, ["*.json", "tokenizer*"], "tokenizer", "name a local folder or `bytes` with --tokenizer")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises nearly anything: OSError, ValueError, KeyError, ImportError
        logger.debug("transformers cannot load a tokenizer from %s", folder, exc_info=True)
        raise ConfigError(
            f"there is no tokenizer in {name} that transformers can load: "
            "name a folder or hub model that has one with --tokenizer"
        ) from error
    core = getattr(loaded, "backend_tokenizer", None)
    if core is None:
        raise ConfigError(f"{name!r} has no fast tokenizer: convert it to a tokenizer.json or name another --tokenizer")
    return FastTokenizer(core, loaded)


class Detokenizer:
    """Turns one sequence's tokens into text as they come; never emits half a character.

    Only a window of tokens is decoded: a few whose text is out already (context) and the pending ones, whose
    text may still end in half a character. So a token costs the same however long the sequence is.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._window = [token for token in prompt[-CONTEXT_TOKENS:] if not self._is_mute(token)]
        self._num_context = len(self._window)
        self._num_emitted = len(self._decode().rstrip(REPLACEMENT))  # characters of the window's text

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if self._is_mute(token):
            return ""
        self._window.append(token)
        text = self._decode()
        # A trailing U+FFFD may be the beginning of a character.
        whole = len(text.rstrip(REPLACEMENT))
        if whole < len(text) and len(self._window) - self._num_context < MAX_PENDING_TOKENS:
            piece = text[self._num_emitted : whole]
            self._num_emitted = max(self._num_emitted, whole)
            return piece
        piece = text[self._num_emitted :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._num_emitted = len(self._decode())
        return piece

    def flush(self) -> str:
        """What was held back, once no token follows: U+FFFD for half a character."""
        text = self._decode()
        piece = text[self._num_emitted :]
        self._num_emitted = len(text)
        return piece

    def _is_mute(self, token: int) -> bool:
        return token in self._skipped or token >= self._tokenizer.vocab_size

    def _decode(self) -> str:
        return self._tokenizer.decode(self._window) if self._window else ""


class StopStrings:
    """Cuts a text that comes in pieces at the first of some strings, wherever the pieces' borders are.

    Of several occurrences the one that ends first counts, then the one that begins first, so that the result
    does not depend on how the text was cut. Holds back what may be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """The text that may be shown now. Once `matched` is set, nothing more comes."""
        if not self._stops or not piece:
            return piece
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            self._held = ""
            return text[: end if self._include else start]
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, once no text follows."""
        held, self._held = self._held, ""
        return held

    def _first_possible_start(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)


class OutputText:
    """The text of one sequence, from the engine's `Output`s: detokenized, ended by stop strings and stop tokens.

    `num_tokens` counts the tokens up to the end, the one that ended it included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens)
        self._stops = StopStrings(stop, include_stop)
        self._stop_token_ids = stop_token_ids
        self._include_stop = include_stop
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None  # the stop string, or the one of `stop_token_ids`, that ended it

    def push(self, output: Output) -> str:
        """The text that these tokens add. Sets `finish_reason` when the sequence has ended, perhaps by a stop
        string that the engine does not know of: the caller then aborts the sequence and pushes no more."""
        pieces = []
        for token in output.tokens:
            self.num_tokens += 1
            if token == output.stop_token and not self._include_stop:
                break  # always the last one
            pieces.append(self._stops.push(self._detokenizer.push(token)))
            if self._stops.matched is not None:
                return self._end_by_stop_string(pieces)
        if output.finish_reason is not None:
            pieces.append(self._stops.push(self._detokenizer.flush()))
            if self._stops.matched is not None:
                return self._end_by_stop_string(pieces)
            pieces.append(self._stops.flush())
            self.finish_reason = output.finish_reason
            if output.stop_token in self._stop_token_ids:
                self.stop_reason = output.stop_token
        return "".join(pieces)

    def _end_by_stop_string(self, pieces: list[str]) -> str:
        self.finish_reason = FinishReason.STOP
        self.stop_reason = self._stops.matched
        return "".join(pieces)
