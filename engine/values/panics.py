"""Panics of native code on what others wrote: pyo3 raises them as a BaseException of its own, past `except Exception`.

Used where a tokenizer or a grammar of others is given to Rust.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_are_errors() -> Iterator[None]:
    """A panic in the block leaves it as a RuntimeError. Rust has printed it on stderr by then."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # which no module exports
            raise
        raise RuntimeError(str(error)) from None
