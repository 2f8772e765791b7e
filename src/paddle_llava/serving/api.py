"""The HTTP API: OpenAI's chat completions, and what an operator needs."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from paddle_llava import __version__
from paddle_llava.serving.answer import Piece
from paddle_llava.serving.errors import CLOSED_REQUEST, ApiError, server_fault, shutting_down
from paddle_llava.serving.guard import Guard
from paddle_llava.serving.page import add_web_chat
from paddle_llava.serving.scheduler import Job
from paddle_llava.serving.schema import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ErrorAnswer,
    Health,
    Model,
    ModelList,
    PromptDetails,
    Usage,
    new_id,
    now,
)
from paddle_llava.serving.service import Service
from paddle_llava.serving.sse import DONE, STILL_HERE, event
from paddle_llava.transcript import Shown, boxes_of

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "Something in the request is not right; `param` names it.",
        401: "The API key is missing or wrong.",
        403: "The page that asks is of another origin.",
        404: "There is no such model.",
        408: "The body came too slowly.",
        413: "The body is too large.",
        415: "The body is not declared as JSON.",
        429: "Too many requests are waiting; see `Retry-After`.",
        500: "The model failed.",
        503: "The server is shutting down.",
        504: "The answer took too long.",
    }.items()
}


def create_app(service: Service, *, api_key: str | None = None, origins: Sequence[str] = ()) -> Guard:
    """The ASGI application. Pages of `origins`, beside its own, may use it in a browser."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPIOffline(title="paddle-llava", version=__version__, lifespan=lifespan, redoc_url=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _fault)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.include_router(_v1(service, api_key))
    app.include_router(_operation(service))
    add_web_chat(app)
    _describe_body(app)
    return Guard(app, service.metrics, origins)


def _v1(service: Service, api_key: str | None) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(_key_check(api_key))], responses=_only(401, 403))
    served = Model(id=service.name, created=now(), max_model_len=service.context)

    @router.get("/models")
    async def models() -> ModelList:
        """The one model that is here."""
        return ModelList(data=[served])

    @router.get("/models/{name:path}", responses=_only(404))
    async def model(name: str) -> Model:
        if name != service.name:
            raise service.no_such_model(name)
        return served

    @router.post("/chat/completions", response_model=ChatCompletion, responses=ERRORS, openapi_extra=_BODY)
    async def chat_completions(request: Request) -> Response:
        """An answer to a conversation, whole or, with `stream`, as server-sent events."""
        arrived = time.monotonic()
        async with service.intake.chat_request(request) as asked:
            job = await service.begin(asked, arrived)
        request.state.job = job
        if asked.stream:
            return _EventStream(_events(service, job, asked), lambda: service.scheduler.cancel(job))
        gone = asyncio.ensure_future(_disconnected(request))
        gone.add_done_callback(lambda task: None if task.cancelled() else _let_go(service, job))
        try:
            answer = await _whole(service, job, asked)
        finally:
            gone.cancel()
        return JSONResponse(answer.model_dump())

    return router


def _operation(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses=_only(503))
    async def health() -> Health:
        """Whether requests are taken."""
        if not service.scheduler.alive:
            raise shutting_down()
        return Health()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: ERRORS[status] for status in statuses}


_BEARER = HTTPBearer(auto_error=False, description="The key that the server was started with, if any.")


def _key_check(api_key: str | None) -> Callable[..., Awaitable[None]]:
    """Compares in constant time; without a key everybody may come in."""

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if api_key is not None:
            offered = given.credentials if given else ""
            if not hmac.compare_digest(offered.encode("latin-1", "replace"), api_key.encode()):  # as it was sent
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    return check


# --- answers --------------------------------------------------------------------------------------


async def _whole(service: Service, job: Job, asked: ChatRequest) -> ChatCompletion:
    text, logprobs, reason = "", [], None
    async with aclosing(service.pieces(job)) as pieces:
        async for piece in pieces:
            text += piece.text
            logprobs += piece.logprobs
            reason = piece.finish_reason
    assert reason is not None
    choice = Choice(
        message=AnswerMessage(content=text, boxes=_boxes(service, job, text)),
        logprobs=ChoiceLogprobs(content=logprobs) if asked.logprobs else None,
        finish_reason=reason,
    )
    return ChatCompletion(model=service.name, choices=[choice], usage=_usage(job))


class _EventStream(StreamingResponse):
    """Server-sent events; `leave` is called at their end, also when the client has gone in the middle of one."""

    def __init__(self, events: AsyncGenerator[bytes, None], leave: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _events(service: Service, job: Job, asked: ChatRequest) -> AsyncGenerator[bytes, None]:
    wants_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    head: dict[str, Any] = {
        "id": new_id(), "object": "chat.completion.chunk", "created": now(), "model": service.name
    }  # fmt: skip
    end = {"usage": None} if wants_usage else {}

    def chunk(delta: dict[str, Any], piece: Piece) -> bytes:
        logprobs = {"content": [x.model_dump() for x in piece.logprobs], "refusal": None} if piece.logprobs else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish_reason}
        return event(head | {"choices": [choice]} | end)

    yield chunk({"role": "assistant", "content": ""}, Piece())
    text = ""
    try:
        async with aclosing(service.pieces(job)) as pieces:
            async for piece in pieces:
                text += piece.text
                if piece.text or piece.logprobs:
                    yield chunk({"content": piece.text}, Piece(logprobs=piece.logprobs))
                elif not piece.finish_reason:
                    yield STILL_HERE
                if piece.finish_reason:
                    boxes = _boxes(service, job, text)
                    yield chunk({"boxes": boxes} if boxes else {}, Piece(finish_reason=piece.finish_reason))
        if wants_usage:
            yield event(head | {"choices": [], "usage": _usage(job).model_dump()})
    except ApiError as error:
        yield event(error.body())
    yield DONE


def _boxes(service: Service, job: Job, text: str) -> list[list[float]] | None:
    """Those that an answer names, mapped to its picture here, so that no client has to know the frame."""
    size = job.prompt.last_size
    return boxes_of(service.processor, text, Shown("", size[1], size[0])) or None if size else None


def _usage(job: Job) -> Usage:
    prompt, answer = len(job.prompt.ids), len(job.answer.token_ids)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=PromptDetails(cached_tokens=job.cached_tokens),
    )


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _let_go(service: Service, job: Job) -> None:
    service.scheduler.cancel(job)
    job.events.append(ApiError(CLOSED_REQUEST, "the client has gone"))
    job.ready.set()


# --- errors ---------------------------------------------------------------------------------------


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = error.headers() | ({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})
    if error.status in (408, 413, 429):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse(error.body(), error.status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = ApiError(error.status_code, str(error.detail)).body()
    return JSONResponse(body, error.status_code, error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLOSED_REQUEST)


async def _fault(_: Request, __: Exception) -> Response:
    return JSONResponse(server_fault().body(), 500)


# --- the OpenAPI page -----------------------------------------------------------------------------

_REF = "#/components/schemas/{model}"
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": _REF.format(model="ChatRequest")}}},
    }
}


def _describe_body(app: FastAPI) -> None:
    """FastAPI would read bodies itself, whole and unbounded, if it knew their model; so it is told afterwards."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        page = generate()
        schema = ChatRequest.model_json_schema(ref_template=_REF)
        schemas = page["components"]["schemas"]
        schemas |= schema.pop("$defs", {})
        schemas["ChatRequest"] = schema
        return page

    app.openapi = openapi  # type: ignore[method-assign]
