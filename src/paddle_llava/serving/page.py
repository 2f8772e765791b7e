"""The web chat: its page, the pictures to try, and where the boxes of an answer are.

A page of a few files by hand, and not Gradio: it needs no build and no further package, nothing of it comes from
another host, and what a conversation about pictures needs (boxes drawn, editing, pasting, phones) is its whole content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Response
from pydantic import BaseModel, Field
from starlette.staticfiles import StaticFiles

from paddle_llava.processing.boxes import Box, answer_boxes
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
LONGEST_ANSWER = 100_000
LARGEST_SIDE = 1_000_000

router = APIRouter(include_in_schema=False)


class Answered(BaseModel):
    """An answer, and the size in pixels of the picture that it is about."""

    text: str = Field(max_length=LONGEST_ANSWER)
    width: int = Field(ge=1, le=LARGEST_SIDE)
    height: int = Field(ge=1, le=LARGEST_SIDE)


@router.get("/web/samples")
def list_samples() -> list[dict[str, Any]]:
    return [
        {"name": sample.name, "image": f"web/samples/{sample.name}", "questions": sample.questions}
        for sample in samples().values()
    ]


@router.get("/web/samples/{name}")
def sample_picture(name: str) -> Response:
    if name not in samples():
        raise HTTPException(404, "no such picture")
    return Response(
        samples()[name].read(), media_type="image/jpeg", headers=HEADERS | {"Cache-Control": "max-age=3600"}
    )


@router.post("/web/boxes")
def boxes(answered: Answered) -> dict[str, list[Box]]:
    """The boxes that an answer names, in pixels of its picture."""
    return {"boxes": answer_boxes(answered.text, answered.width, answered.height)}


class _Files(StaticFiles):
    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(HEADERS)
        return response


def add_web_chat(app: FastAPI) -> None:
    """The page at `/`, and what it needs under `/web`."""
    files = _Files(directory=FILES)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return await files.get_response("index.html", {"type": "http", "method": "GET", "headers": []})

    app.include_router(router)
    app.mount("/web", files)
