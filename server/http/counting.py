"""Counts every answer for `/metrics`, refusals too: middleware of plain ASGI. Used by `server.http.app`."""

from __future__ import annotations

from prometheus_client import Counter
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Clients choose methods and paths: what is not known is one value, so that their number is bounded.
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
OTHER_METHOD = "other"
NO_HANDLER = "none"  # as the field's instrumentation calls it


class RequestCounts:
    """Counts by the route, the method and the status; a stream when it begins."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        """`counter` has the labels handler, method and status."""
        self._app = app
        self._counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        is_counted = False

        def count(status: int) -> None:
            nonlocal is_counted
            if not is_counted:
                self._counter.labels(_handler(scope), method, str(status)).inc()
                is_counted = True

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except Exception:
            count(500)  # which is how it is answered, outside of all middleware
            raise


def _handler(scope: Scope) -> str:
    """The path of the route, as it was declared. A request that was refused before it was routed has one, too."""
    route = scope.get("route")
    if route is None:
        matching = (each for each in scope["app"].routes if each.matches(scope)[0] is not Match.NONE)
        route = next(matching, None)
    return getattr(route, "path", NO_HANDLER)
