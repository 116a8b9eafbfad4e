"""The tokenizer of a load test: texts for it, and counts where the server tells none. Called by `clients.load_test`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from seesaw.clients.errors import ClientError
from seesaw.clients.record import Record


def load_tokenizer(name: str) -> Any:
    """The transformers tokenizer of a folder or hub name. Raises ClientError."""
    from transformers import AutoTokenizer  # late: takes seconds

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClientError(f"cannot load a tokenizer from {name!r} ({reason}): name another with --tokenizer") from None


def count_tokens(records: Sequence[Record], tokenizer: Any) -> list[Record]:
    """Count the tokens of the texts whose server did not, instead of their events."""
    return [
        replace(record, output_tokens=_num_tokens(record.text, tokenizer), counted_by="tokenizer")
        if record.counted_by == "events"
        else record
        for record in records
    ]


def _num_tokens(text: str, tokenizer: Any) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))
