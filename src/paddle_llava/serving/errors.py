"""What goes wrong with a request, in the shape that OpenAI's clients know."""

from __future__ import annotations

from typing import Any

CLOSED_REQUEST = 499  # nginx's number for a client that has gone


class ApiError(Exception):
    """An answer that is an error: HTTP `status`, and OpenAI's `type`, `param` and `code`.

    `param` names the field that is at fault. `retry_after` is in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def too_busy(message: str, retry_after: int) -> ApiError:
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=retry_after)


def out_of_time(seconds: float) -> ApiError:
    return ApiError(504, f"the answer took longer than {seconds:g} seconds", kind="timeout_error", code="timeout")


def server_fault() -> ApiError:
    return ApiError(500, "the model failed on this request", kind="server_error", code="internal_error")


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", kind="server_error", code="shutting_down", retry_after=5)
