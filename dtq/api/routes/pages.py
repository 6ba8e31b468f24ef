"""The HTML pages, and the OpenAPI document that one of them shows."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse, Response

from dtq.api.requests import JSON
from dtq.api.routing import Request

PAGES = Path(__file__).parents[1] / "pages"


@cache
def page(name: str) -> tuple[bytes, str]:
    """Return an HTML page and its Content-Security-Policy: it may run its own script and call its own server only."""
    text = (PAGES / name).read_text()
    script, style = (" ".join(_hashes(tag, text)) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    return text.encode(), policy


def _hashes(tag: str, text: str) -> list[str]:
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in contents]


def _show(name: str) -> Response:
    content, policy = page(name)
    return HTMLResponse(content, headers={"Content-Security-Policy": policy})


async def dashboard(request: Request) -> Response:
    return _show("dashboard.html")


async def docs(request: Request) -> Response:
    return _show("docs.html")


async def openapi_document(request: Request) -> Response:
    return Response(request.app.state.document, media_type=JSON)
