"""The readable part of what servers say when something is wrong, in any of the shapes that they use.

Called by `clients.recorder` and `clients.streaming`.
"""

from __future__ import annotations

from typing import Any

import msgspec

MAX_CHARS = 300
MAX_BYTES = 1 << 16  # of a body that is read for its message


def message_of(error: Any) -> str:
    """The message of an error's body, decoded or not: OpenAI's, FastAPI's, or plain text. One line, bounded."""
    if isinstance(error, bytes):
        try:
            error = msgspec.json.decode(error)
        except (msgspec.DecodeError, RecursionError):
            error = error.decode(errors="replace")
    return " ".join(_found(error)[: 2 * MAX_CHARS].split())[:MAX_CHARS]


def _found(error: Any) -> str:
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            error = error[key]
    if isinstance(error, list) and error and isinstance(error[0], dict) and "msg" in error[0]:
        place = error[0].get("loc", [])  # FastAPI's; what was sent follows and is left out
        return f"{error[0]['msg']} ({'.'.join(map(str, place))})" if isinstance(place, list) else str(error[0]["msg"])
    return str(error)
