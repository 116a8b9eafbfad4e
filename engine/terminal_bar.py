"""A bar on stderr, where somebody looks at a terminal. Used by `seesaw.LLM` and by `seesaw batch run`."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def terminal_bar(total: int, unit: str, initial: int = 0) -> tqdm[Any] | None:
    """None where stderr is no terminal. Rates are those since it was made: an engine that changes its layout ends
    requests in waves."""
    if not sys.stderr.isatty():
        return None
    return tqdm(total=total, initial=initial, unit=unit, smoothing=0, dynamic_ncols=True, file=sys.stderr)


def token_rates(prompt_tokens: int, output_tokens: int, elapsed_s: float) -> str:
    """As a bar and a line have them."""
    return f"{prompt_tokens / elapsed_s:.0f} prompt and {output_tokens / elapsed_s:.0f} output tokens/s"
