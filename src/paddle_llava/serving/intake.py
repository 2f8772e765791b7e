"""Bodies and pictures of requests, read within bounds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.processing.fetching import fetch
from paddle_llava.processing.loading import decode_image, read_data_uri
from paddle_llava.serving.errors import ApiError, too_busy
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.prompt import Picture, image_urls
from paddle_llava.serving.schema import ChatRequest

FETCHES = 16
DECODERS = 2
# A larger body is parsed on a thread of its own, as it would hold up everybody's answers.
SMALL_BODY = 2**16
VALUES_PER_MESSAGE = 64


class Intake:
    """What arrives, of all requests together: bounded, and decoded on threads of its own."""

    def __init__(self, limits: ServingLimits) -> None:
        self._limits = limits
        self._held_bytes = 0
        self._fetchers = ThreadPoolExecutor(FETCHES, "fetch")
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")

    def close(self) -> None:
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def chat_request(self, request: Request) -> AsyncIterator[ChatRequest]:
        """The body of `request`, checked; its bytes count as held until the block is left.

        Raises `ApiError`, and `ClientDisconnect`.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Else a page of any web site could send requests here: browsers let them post forms and plain text.
            raise ApiError(415, "the content-type must be application/json")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limits.max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            try:
                await asyncio.wait_for(self._read(request, body), self._limits.body_time)
            except asyncio.TimeoutError:
                raise ApiError(408, f"the body took longer than {self._limits.body_time:g} seconds") from None
            if len(body) <= SMALL_BODY:
                yield parse(bytes(body), self._limits)
            else:
                yield await asyncio.to_thread(parse, bytes(body), self._limits)
        finally:
            self._held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            if self._held_bytes + len(chunk) > self._limits.bodies_bytes:
                raise too_busy("too much is being sent at once; try again later", 1)
            body += chunk
            self._held_bytes += len(chunk)
            if len(body) > self._limits.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limits.max_body_bytes / 2**20:g} MiB")

    async def pictures(self, request: ChatRequest, prepare: Callable[[Image.Image], Picture]) -> list[Picture]:
        """The pictures of `request`, in order. Raises `ApiError` naming the first that cannot be had.

        `prepare` is called with each on a thread, and nothing else is kept: a few MB can be decoded to a gigabyte.
        """
        wanted = image_urls(request.messages)
        if len(wanted) > self._limits.max_images:
            message = f"{len(wanted)} pictures are more than the {self._limits.max_images} allowed"
            raise ApiError(400, message, param="messages")
        return await _all([self._picture(place, url, prepare) for place, url in wanted])

    async def _picture(self, place: str, url: str, prepare: Callable[[Image.Image], Picture]) -> Picture:
        loop = asyncio.get_running_loop()
        try:
            if url[:5].lower() == "data:":
                return await loop.run_in_executor(self._decoders, self._from_data_uri, url, prepare)
            if not url[:8].lower().startswith(("http://", "https://")):
                raise LlavaError("only http(s) URLs and data URIs of the form data:image/…;base64,… are taken")
            fetched = await loop.run_in_executor(self._fetchers, self._fetch, url)
            return await loop.run_in_executor(self._decoders, self._decode, *fetched, prepare)
        except LlavaError as error:
            raise ApiError(400, f"{place}: {error}", param=place, code="invalid_image") from None

    def _fetch(self, url: str) -> tuple[bytes, str]:
        return fetch(url, self._limits.images, allow_private=self._limits.allow_private)

    def _from_data_uri(self, uri: str, prepare: Callable[[Image.Image], Picture]) -> Picture:
        return self._decode(read_data_uri(uri, "the picture"), "", prepare)

    def _decode(self, data: bytes, content_type: str, prepare: Callable[[Image.Image], Picture]) -> Picture:
        return prepare(decode_image(data, "the picture", self._limits.images, content_type=content_type))


async def _all(loads: Sequence[Coroutine[Any, Any, Picture]]) -> list[Picture]:
    """All of them; when one fails the others are let go."""
    tasks = [asyncio.ensure_future(load) for load in loads]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def parse(body: bytes, limits: ServingLimits) -> ChatRequest:
    """Raises `ApiError` that names the first field at fault, without quoting what was sent."""
    most = VALUES_PER_MESSAGE * limits.max_messages
    if _has_more_values(body, most):
        raise ApiError(400, f"the body has more than {most} values: send fewer or shorter messages")
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _first_fault(error) from None
    if len(request.messages) > limits.max_messages:
        many = len(request.messages)
        raise ApiError(400, f"{many} messages are more than the {limits.max_messages} allowed", param="messages")
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs is only for requests with logprobs: true", param="top_logprobs")
    return request


_BEGINNINGS = (b",", b"[", b"{")
_STRING = re.compile(rb'"[^"]*"')


def _has_more_values(body: bytes, most: int) -> bool:
    """Whether JSON has: two bytes of it can become a kilobyte of error, so it is found out without parsing."""
    if sum(map(body.count, _BEGINNINGS)) <= most:
        return False
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A value has at most two strings, itself and its name.
    return unescaped.count(b'"') > 4 * most or sum(map(_STRING.sub(b"", unescaped).count, _BEGINNINGS)) > most


def _first_fault(error: ValidationError) -> ApiError:
    # Where a text or a list may stand, both have been tried: the deepest fault is that of the one that was meant.
    fault = max(error.errors(include_url=False, include_input=False), key=lambda fault: len(fault["loc"]))
    place = _place(fault["loc"])
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {str(fault['ctx']['error'])[:200]}")
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])[:60]
        known = ChatRequest.model_fields if len(fault["loc"]) == 1 else ()
        message = f"unrecognized request argument {name!a}{did_you_mean(name, known)}"
        return ApiError(400, message, param=place, code="unknown_parameter")
    if fault["type"] == "union_tag_invalid":  # pydantic's own words would quote what was sent
        name, expected = fault["ctx"]["discriminator"], fault["ctx"]["expected_tags"]
        return ApiError(400, f"{place}: {name} must be one of {expected}", param=place)
    return ApiError(400, f"{place or 'the body'}: {fault['msg'][:200]}", param=place or None)


def _place(location: tuple[int | str, ...]) -> str:
    """Without the names of what was tried: the member of a union after an index, or a type."""
    steps, after_index = list[str](), False
    for step in location:
        is_tried = isinstance(step, str) and (after_index or step == "str" or not step.isidentifier())
        after_index = isinstance(step, int)
        if not is_tried:
            steps.append(str(step))
    return ".".join(steps)[:120]
