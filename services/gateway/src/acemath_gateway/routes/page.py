"""The web page at `/`: one file without external parts, so that it works where nothing else can be reached."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse


def page_router() -> APIRouter:
    """`GET /`."""
    router = APIRouter(tags=["page"])
    html = files("acemath_gateway.routes").joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "content-security-policy": _policy(html),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return router


def _policy(html: str) -> str:
    """Only the script and the style in the page itself run, named by their digests; it may talk to nobody but us."""
    script, style = (_digest(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(html: str, tag: str) -> str:
    inside = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert inside is not None, f"page.html has one <{tag}> without attributes"
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()}'"
