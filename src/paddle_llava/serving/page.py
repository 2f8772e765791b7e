"""The web chat: a page of a few files by hand, and pictures to try.

By hand, and not Gradio: no build, no further package, nothing from another host, and what a conversation about pictures
wants of a page (boxes over them, editing, pasting, phones) is all there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Response
from fastapi.staticfiles import StaticFiles

from paddle_llava.serving.samples import samples

FILES = Path(__file__).parent / "web"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_web_chat(app: FastAPI) -> None:
    """The page at `/`, which takes every path that is not another's."""
    app.include_router(_samples())
    app.mount("/", _Pages(directory=FILES, html=True))


def _samples() -> APIRouter:
    router = APIRouter(prefix="/samples", include_in_schema=False)

    @router.get("")
    def listed() -> list[dict[str, Any]]:
        return [{"name": sample.name, "questions": sample.questions} for sample in samples().values()]

    @router.get("/{name}")
    def picture(name: str) -> Response:
        if name not in samples():
            raise HTTPException(404, "no such picture")
        return Response(samples()[name].read(), media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    return router


class _Pages(StaticFiles):
    """Nothing of them comes from, or goes to, another host."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(HEADERS)
        return response
