"""The page at `/`, its parts, and `/status`, which it shows. Added by `server.http.app`, unless `--no-page`."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from seesaw.server.openai.serving import as_json
from seesaw.server.page.status import StatusMaker

STATUS_PATH = "/status"
READ = ["GET", "HEAD"]
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    # It loads from and talks to this server alone, and nobody shows it in a frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # another version of the server has another page
}


def add_page_routes(app: FastAPI, status: StatusMaker) -> None:
    parts: dict[str, tuple[bytes, str]] = {}
    for each in files(__package__).joinpath("static").iterdir():
        if media_type := MEDIA_TYPES.get(each.name.rpartition(".")[2]):
            parts[each.name] = each.read_bytes(), media_type

    async def part(name: str) -> Response:
        if name not in parts:
            raise HTTPException(404)
        body, media_type = parts[name]
        return Response(body, media_type=media_type, headers=HEADERS)

    async def page() -> Response:
        return await part("index.html")

    async def tell(after: float = 0.0) -> Response:
        return as_json(status.make(after))

    app.add_api_route("/", page, methods=READ)
    app.add_api_route("/page/{name}", part, methods=READ)
    app.add_api_route(STATUS_PATH, tell, methods=READ)
