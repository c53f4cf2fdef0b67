"""How a stream says that it failed, wherever that is found out, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Event = dict[str, Any]

# Of the codes that OpenAI's API has for a response that failed, those of ours, by type of error.
_CODES = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}
_OTHER = "server_error"


# The status that an error would have been answered with, by its type.
_STATUS = {"invalid_request_error": 400, "rate_limit_error": 429, "timeout_error": 504}
# No text of an answer has these: it has neither such quotes nor ends of lines as they are.
_ERRORS = (b'data: {"error":', b"event: error\n")
_ENDS = (b"event: response.completed\n", b"event: response.incomplete\n")
_DONE = b"data: [DONE]\n\n"


def end_status(events: bytes) -> int | None:
    """The status with which a stream of any of the APIs ends, if these whole events are its last
    ones: 200, or that of its error. None: it goes on.
    """
    if any(mark in events for mark in _ERRORS):
        each = events.split(b"\n\n")
        said = next((event for event in each if any(mark in event for mark in _ERRORS)), b"")
        try:
            return _STATUS.get(json.loads(said.partition(b"data: ")[2])["error"]["type"], 500)
        except (ValueError, LookupError, TypeError):
            return 500
    return 200 if events.endswith(_DONE) or any(mark in events for mark in _ENDS) else None


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
