"""Tokens to text, as they come. Used by `engine.text.output_text`."""

from __future__ import annotations

from collections.abc import Sequence

from seesaw.engine.text.tokenizer import REPLACEMENT, Tokenizer

# Text may depend on the tokens before it (SentencePiece drops the first space), so decoding starts a few earlier.
CONTEXT_TOKENS = 6
# No character takes more than 4 byte tokens; what is still broken after so many will not become one.
MAX_PENDING_TOKENS = 16


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
