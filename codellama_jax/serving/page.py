"""The page at `/`: the built files of the folder `page`, which `make page` writes."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from codellama_jax.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page" / "built"
# Nothing from another server: a page that is opened offline, or beside secrets, sends nothing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}


async def index(_: Request) -> Response:
    """Returns the page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


async def static(request: Request) -> Response:
    """Returns another file of the page."""
    # Looked up, since a name from a request may be no path at all: with NUL, or too long.
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.relative_to(FOLDER).as_posix() == request.path_params["path"]:
            return FileResponse(path, headers=HEADERS)
    raise ApiError(404, "there is no such file")
