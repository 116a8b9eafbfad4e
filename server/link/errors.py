"""What may end a request beside the engine's own errors. `server.http.errors` maps them to HTTP."""

from __future__ import annotations

from seesaw.engine.values.errors import SeesawError


class ShuttingDownError(SeesawError):
    """The server is going down; the request was not (or will not be) completed."""


class GenerationError(SeesawError):
    """The engine gave up on this one request."""
