"""The page at `/`: static files of `page/built`, or a short description where it has none."""

from __future__ import annotations

import html
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from codellama_jax.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page" / "built"
# Nothing from another server: a page that is opened offline, or beside secrets, sends nothing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}
PLAIN = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{name}</title><style>body {{ font-family: sans-serif; margin: 2rem; max-width: 40rem }}
</style><h1>{name}</h1>
<p>This server completes text and code. Its endpoints are described in
<a href="openapi.json">openapi.json</a>: <code>/v1/completions</code>,
<code>/v1/chat/completions</code>, <code>/infill</code> and others.</p></html>
"""


def index(name: str) -> Response:
    """Returns the page of a model with this name."""
    path = FOLDER / "index.html"
    if path.is_file():
        return FileResponse(path, headers=HEADERS)
    return HTMLResponse(PLAIN.format(name=html.escape(name)), headers=HEADERS)


async def static(request: Request) -> Response:
    """Returns a file of the page's folder."""
    path = (FOLDER / request.path_params["path"]).resolve()
    if not path.is_relative_to(FOLDER.resolve()) or not path.is_file():
        raise ApiError(404, "there is no such file")
    return FileResponse(path, headers=HEADERS)
