"""The playground at `/`: a page of plain files that asks nobody but the server it came from."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
# scripts and styles from here alone, none in the page; trusted types: a browser that knows them lets no string become HTML or a script
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304: a new version is seen at once
}


class File(NamedTuple):
    """What is sent for a file: its bytes, its media type and its entity tag."""

    content: bytes
    media_type: str
    tag: str


def load() -> dict[str, File]:
    """Return the files of the page by name, as they stand in the package."""
    found = {}
    for entry in files(__package__).joinpath("static").iterdir():
        ending = entry.name.rpartition(".")[2]
        if entry.is_file() and ending in TYPES:
            content = entry.read_bytes()
            found[entry.name] = File(content, TYPES[ending], f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return found


def mount(app: FastAPI) -> None:
    """Make an app answer `/` and `/static/NAME` with the page, from memory: no name that is asked for ever becomes a path.

    They hold nothing that is anybody's, so that an app which checks keys may leave them open; the page asks for the key where it needs one.
    """
    from fastapi import Response  # here, so that the package can be read without the extra `serve`

    pages = load()

    def send(request: Request, name: str) -> Response:
        file = pages.get(name)
        if file is None:
            text = '{"error":"there is no such file; the page is at /"}'
            return Response(text, 404, HEADERS, "application/json")
        headers = HEADERS | {"ETag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        return Response(file.content, 200, headers, file.media_type)

    async def page(request: Request) -> Response:
        return send(request, "index.html")

    async def static(request: Request) -> Response:
        return send(request, request.path_params["name"])

    # plain routes: FastAPI would want to make a schema of what stands in the signatures
    app.add_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_route("/static/{name}", static, methods=["GET", "HEAD"], include_in_schema=False)
