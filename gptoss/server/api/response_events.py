"""A response of /v1/responses while it is written: its events, and what it is in the end."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from gptoss.server.api.answer import Finished, Part, Piece, Usage
from gptoss.server.api.response_output import PLAIN, Event, Output, ThinkingForms
from gptoss.server.stream_failure import failure_events


class Pieces(AsyncIterable[Piece], Protocol):
    """An `Answer` of one choice, as much of it as is needed here."""

    @property
    def usage(self) -> Usage: ...


class Response:
    """One response, printed from the pieces of an answer.

    Args:
        pieces: the answer, which is read once.
        echo: the fields that only repeat the request.
        thinking: the forms in which it comes.
        done: is given each item that has come to its end.
    """

    def __init__(
        self,
        pieces: Pieces,
        echo: Mapping[str, Any],
        *,
        thinking: ThinkingForms = PLAIN,
        done: Callable[[Mapping[str, Any]], None] = lambda item: None,
    ) -> None:
        self._pieces, self._echo, self._done = pieces, echo, done
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
        }
        self._output = Output(thinking)
        self._number = 0  # of the next event

    async def whole(self) -> dict[str, Any]:
        """The response when it is done. Raises what `pieces` raise."""
        last: Event = {}
        async for event in self.events():
            last = event
        found: dict[str, Any] = last["response"]
        return found

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last event holds the whole response. Raises what `pieces`
        raise.
        """
        for name in ("created", "in_progress"):
            yield self._numbered(self._event(name, "in_progress"))
        status = "completed"
        async for piece in self._pieces:
            if isinstance(piece, Part):
                for event in self._output.take(piece):
                    if event["type"] == "response.output_item.done":
                        self._done(event["item"])
                    yield self._numbered(event)
            elif isinstance(piece, Finished) and piece.reason == "length":
                status = "incomplete"
        yield self._numbered(self._event(status, status, usage=self._pieces.usage))

    def failed(self, error: Mapping[str, Any]) -> list[Event]:
        """The events after an error ended the others. error: as of `failure_events`."""
        self._output.close()
        return failure_events(error, self._event("failed", "failed")["response"], self._number)

    def _numbered(self, event: Event) -> Event:
        event = {**event, "sequence_number": self._number}
        self._number += 1
        return event

    def _event(
        self,
        name: str,
        status: str,
        *,
        usage: Usage | None = None,
    ) -> Event:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response = {
            **self._head,
            **self._echo,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": cut,
            "output": self._output.items(),
            "usage": None if usage is None else _usage(usage),
        }
        return {"type": f"response.{name}", "response": response}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.thinking},
        "total_tokens": usage.prompt + usage.completion,
    }
