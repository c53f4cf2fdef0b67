"""A response of /v1/responses while it is written: its events, and what it is in the end."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from gptoss.errors import Error
from gptoss.server.api.answer import Finished, Part, Piece, Usage
from gptoss.server.api.response_output import Event, Output
from gptoss.server.errors import ApiError
from gptoss.server.http import MISTAKE, log

# Of the codes that OpenAI's API has for a response that failed, those of ours, by HTTP status.
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class Response:
    """One response, printed from the pieces of an answer of one choice.

    Args:
        echo: the fields that only repeat the request.
        packs: whether thinking comes as `encrypted_content` too.
        done: is given each item that has come to its end.
    """

    def __init__(
        self,
        echo: Mapping[str, Any],
        *,
        packs: bool = False,
        done: Callable[[Mapping[str, Any]], None] = lambda item: None,
    ) -> None:
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
        }
        self._echo = echo
        self._output = Output(packs)
        self._done = done
        self._usage: Usage | None = None

    async def whole(
        self, pieces: AsyncIterator[Piece], usage: Callable[[], Usage]
    ) -> dict[str, Any]:
        """The response when it is done. Raises what `pieces` raise."""
        last: Event = {}
        async for event in self._told(pieces, usage):
            last = event
        found: dict[str, Any] = last["response"]
        return found

    async def events(
        self, pieces: AsyncIterator[Piece], usage: Callable[[], Usage]
    ) -> AsyncIterator[Event]:
        """What happens, in order; the last event holds the response, completed, cut or failed."""
        number = 0
        try:
            async for event in self._told(pieces, usage):
                yield {**event, "sequence_number": number}
                number += 1
        except Exception as error:  # the status is long sent: the events themselves have to say it
            for event in self._failed(error):
                yield {**event, "sequence_number": number}
                number += 1

    async def _told(
        self, pieces: AsyncIterator[Piece], usage: Callable[[], Usage]
    ) -> AsyncIterator[Event]:
        yield self._event("created", "in_progress")
        yield self._event("in_progress", "in_progress")
        status = "completed"
        async for piece in pieces:
            if isinstance(piece, Part):
                for event in self._output.take(piece):
                    if event["type"] == "response.output_item.done":
                        self._done(event["item"])
                    yield event
            elif isinstance(piece, Finished) and piece.reason == "length":
                status = "incomplete"
        self._usage = usage()
        yield self._event(status, status)

    def _failed(self, error: Exception) -> Iterator[Event]:
        """An `error` event, then the failed response, as OpenAI's server has it. The former has
        its message where OpenAI's types have it, and where its server and so its clients do.
        """
        if not isinstance(error, Error):
            log.exception("a stream ended", exc_info=error)
            error = MISTAKE
        elif not isinstance(error, ApiError):
            error = ApiError(str(error), 500)
        said = error.body()["error"]
        code = _CODES.get(error.status, "server_error")
        flat = {"code": said["code"] or code, "message": said["message"], "param": said["param"]}
        yield {"type": "error", **flat, "error": {**said, "code": flat["code"]}}
        self._output.close()
        yield self._event("failed", "failed", {"code": code, "message": said["message"]})

    def _event(self, name: str, status: str, error: Mapping[str, Any] | None = None) -> Event:
        return {"type": f"response.{name}", "response": self._value(status, error)}

    def _value(self, status: str, error: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "output": self._output.items(),
            "usage": None if self._usage is None else _usage(self._usage),
            **self._echo,
        }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.thinking},
        "total_tokens": usage.prompt + usage.completion,
    }
