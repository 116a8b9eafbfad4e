"""Tokenizers of the kinds that checkpoints bring."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from seesaw.engine.text.tokenizer import ByteTokenizer, FastTokenizer


def byte_level() -> FastTokenizer:
    """GPT-2's and Llama 3's kind: a token is any run of bytes. Some tokens hold parts of two characters."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    shown = dict(zip(sorted(range(256), key=lambda b: (not _printable(b), b)), _ordered(alphabet), strict=True))
    world = "世界".encode()
    words = [world[:2], world[2:4], world[4:], b"ab", " née".encode()[:3]]
    vocab = {shown[b]: b for b in range(256)} | {
        "".join(shown[b] for b in word): 256 + i for i, word in enumerate(words)
    }
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<|end|>", special=True)])
    return FastTokenizer(core)


def _printable(b: int) -> bool:
    return 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255


def _ordered(alphabet: list[str]) -> list[str]:
    """GPT-2's table: printable bytes are themselves, the others follow from U+0100."""
    return sorted(alphabet, key=ord)


def sentencepiece() -> FastTokenizer:
    """Llama 2's kind: words with a mark for the space, and bytes for what is not in the vocabulary."""
    vocab = {"<unk>": 0, "▁": 1, "▁the": 2, "cat": 3, "▁cat": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return FastTokenizer(core)


BYTE_LEVEL, SENTENCEPIECE, BYTES = byte_level(), sentencepiece(), ByteTokenizer()
