"""What may end a request beside the engine's own errors. `server.http.errors` maps them to HTTP."""

from __future__ import annotations

from seesaw.engine.values.errors import EngineDeadError, SeesawError


class ShuttingDownError(SeesawError):
    """The server is going down; the request was not (or will not be) completed."""


class GenerationError(SeesawError):
    """The engine gave up on this one request."""


class RestartingError(SeesawError):
    """The engine died and another one is starting, which may take `back_in_s`."""

    def __init__(self, back_in_s: int) -> None:
        super().__init__("The engine is being restarted; send the request again later.")
        self.back_in_s = back_in_s


class EngineLostError(EngineDeadError):
    """The engine died with this call, of which something had come or which another one had died with; the next one is
    starting."""

    def __init__(self, message: str, num_lost: int = 1) -> None:
        """`num_lost`: how many engines died with it."""
        super().__init__(message)
        self.num_lost = num_lost
