"""What a model's answer is made of: text to show, reasoning before it, and calls of tools, each in pieces."""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    text: str


class Reasoning(NamedTuple):
    text: str


class CallPiece(NamedTuple):
    """A piece of the answer's call number `call`. Only the first piece of a call has its name, and has no more."""

    call: int
    name: str | None
    arguments: str


Event = Content | Reasoning | CallPiece
