"""The bytes of every token id, as llguidance wants them. Used by `engine.grammar.grammars`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llguidance import LLTokenizer, TokenizerWrapper

from seesaw.engine.hub import find_model
from seesaw.engine.text.tokenizer import BYTES_TOKENIZER, FastTokenizer, load_tokenizer
from seesaw.engine.values.errors import ConfigError

_NO_TOKEN = 2**32 - 1


class _Bytes:
    """Tokens by their bytes. An id without any is in no text, and llguidance knows of no end of text."""

    bos_token_id = None
    eos_token_id = _NO_TOKEN

    def __init__(self, tokens: list[bytes], special_ids: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        special = frozenset(special_ids)
        self._ids = {token: id for id, token in enumerate(tokens) if token and id not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The longest tokens that fit, one after the other. Where a grammar leaves one text only, llguidance wants to
        know which tokens the model would take for it."""
        ids, at = [], 0
        while at < len(text):
            lengths = range(min(self._longest, len(text) - at), 0, -1)
            token = next((token for n in lengths if (token := text[at : at + n]) in self._ids), None)
            if token is None:
                break
            ids.append(self._ids[token])
            at += len(token)
        return ids


def load_token_table(name: str, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The tokens of a checkpoint folder, hub name or `bytes`, for a model of so many ids.

    Ids that the tokenizer lacks (a padded vocabulary) are in no text, ids that the model lacks are cut off.
    Slow, a second or so. Raises ConfigError.
    """
    if name == BYTES_TOKENIZER:
        return _from_bytes([bytes([byte]) for byte in range(256)], [], vocab_size)
    text = _as_json(name)
    try:
        whole = LLTokenizer(text)
        ends = [id for id in eos_token_ids if id < whole.vocab_size]  # others are in no text; a matcher knows them all
        if whole.vocab_size <= vocab_size and ends:
            return LLTokenizer(text, n_vocab=vocab_size, eos_token=ends)
    except ValueError as error:
        raise ConfigError(f"the tokenizer of {name} is not of a kind that grammars can follow: {error}") from None
    ids = range(whole.vocab_size)
    return _from_bytes([whole.decode_bytes([id]) for id in ids], list(filter(whole.is_special_token, ids)), vocab_size)


def _from_bytes(tokens: list[bytes], special_ids: list[int], vocab_size: int) -> LLTokenizer:
    tokens = tokens[:vocab_size] + [b""] * (vocab_size - len(tokens))
    return LLTokenizer(TokenizerWrapper(_Bytes(tokens, [id for id in special_ids if id < vocab_size])))


def _as_json(name: str) -> str:
    """Its tokenizer.json; where it has another file, transformers makes one of it."""
    folder: Path = find_model(name, ["*.json", "tokenizer*"], "tokenizer")
    file = folder / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    tokenizer = load_tokenizer(name)
    assert isinstance(tokenizer, FastTokenizer)
    return tokenizer.as_json()
