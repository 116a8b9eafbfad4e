"""The one exception tree of the engine; `server.http.errors` maps it to HTTP, the CLI to exit codes."""

from __future__ import annotations

MOST_CHARS = 1500  # of what a ConfigError says


class SeesawError(Exception):
    """Base of all errors that Seesaw raises on purpose. The message is one sentence for a person."""


class ConfigError(SeesawError):
    """The configuration, checkpoint or host cannot work; says what to change. The CLI exits with 2.

    It may quote the files of others, and goes to a terminal: of a long message the middle is left out, and what has no
    glyph is escaped.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MOST_CHARS:
            message = f"{message[: MOST_CHARS // 2]} ... {message[-MOST_CHARS // 2 :]}"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class RequestError(SeesawError):
    """A request is invalid (the client's fault). `param` names the offending field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QueueFullError(SeesawError):
    """Too many requests wait; try again later."""


class EngineDeadError(SeesawError):
    """The engine process or a worker ended; nothing more will be generated."""


class OutOfBlocksError(SeesawError):
    """A block pool cannot serve an allocation that its caller should have checked first."""


class IntegrityError(SeesawError):
    """Bookkeeping does not add up (free + used != total, a leaked block): a bug, raised loudly."""
