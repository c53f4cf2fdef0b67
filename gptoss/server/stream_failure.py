"""How a stream of /v1/responses says that it failed, wherever that is found out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Event = dict[str, Any]

# Of the codes that OpenAI's API has for a response that failed, those of ours, by type of error.
_CODES = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}
_OTHER = "server_error"


def failure_events(
    error: Mapping[str, Any], response: Mapping[str, Any] | None, number: int
) -> list[Event]:
    """The events after an error ended the others: an `error`, then the failed response, as OpenAI's
    server sends them. The former says it twice: where OpenAI's types have it, and where its server
    and so many clients do.

    Args:
        error: {"message", "type", "param", "code"}.
        response: as far as it came; None: nothing was said of one.
        number: of the next event.
    """
    code = _CODES.get(error["type"], _OTHER)
    error = {**error, "code": error["code"] or code}
    flat = {name: error[name] for name in ("code", "message", "param")}
    events: list[Event] = [{"type": "error", **flat, "error": error, "sequence_number": number}]
    if response is not None:
        failed = {
            **response,
            "status": "failed",
            "error": {"code": code, "message": error["message"]},
        }
        events.append(
            {"type": "response.failed", "response": failed, "sequence_number": number + 1}
        )
    return events
