"""What goes wrong with a request, as OpenAI's API says it."""

from __future__ import annotations

from typing import Any

from gptoss.errors import Error

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    408: "timeout_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(Error):
    """An error with an HTTP status; its `field` is the API's `param`."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        field: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, field=field, code=code)
        self.status = status
        self.headers = headers or {}

    @classmethod
    def of(cls, error: Error, status: int = 400) -> ApiError:
        """Any error as one of these. status: where it has none of its own."""
        if isinstance(error, cls):
            return error
        return cls(str(error), status, field=error.field, code=error.code)

    def body(self) -> dict[str, Any]:
        """The JSON that clients expect."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.field,
                "code": self.code,
            }
        }


def too_many(message: str) -> ApiError:
    """A client is told to come again: as much is in work as may be. message: what, and how much."""
    return ApiError(
        f"{message}; come again",
        429,
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )
