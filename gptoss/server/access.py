"""A line of JSON for each request: who asked for what, what came of it, how long it took."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gptoss.server.log import one_line

if TYPE_CHECKING:
    from gptoss.request import Timing

log = logging.getLogger("gptoss.access")
_LONGEST = 256  # characters of what a client called something


class Access:
    """One request. What was asked and answered is not written down, nor any key."""

    def __init__(self, method: str, path: str, client: str, request_id: str = "") -> None:
        self._begun = time.perf_counter()
        self._entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "client": _line(client),
            "method": _line(method),
            "path": _line(path),
        }
        if request_id:
            self._entry["request_id"] = request_id

    def note(self, **values: Any) -> None:
        """More to say at the end."""
        self._entry.update(values)

    def generated(
        self, timings: Iterable[Timing], cancelled: Sequence[tuple[int, int]] = ()
    ) -> None:
        """The texts that came to their end; of those that did not, tokens of the prompt that were
        read and tokens that were written.
        """
        ended = list(timings)
        if cancelled:
            self.note(cancelled=len(cancelled))
        if ended or cancelled:
            self.note(
                prompt_tokens=ended[0].prompt_tokens
                if ended
                else max(read for read, _ in cancelled),
                completion_tokens=sum(timing.completion_tokens for timing in ended)
                + sum(written for _, written in cancelled),
            )
        if ended:
            self.note(
                cached_tokens=min(timing.cached_tokens for timing in ended),
                queue_seconds=round(max(timing.queue_seconds for timing in ended), 4),
                first_token_seconds=round(min(timing.ttft for timing in ended), 4),
            )

    def end(self, status: int) -> None:
        """The last byte is sent, or the client has left."""
        if log.isEnabledFor(logging.INFO):
            seconds = round(time.perf_counter() - self._begun, 4)
            log.info(json.dumps({**self._entry, "status": status, "seconds": seconds}))


def _line(text: str) -> str:
    """Short enough for a line that is not cut, and so stays JSON, and printable."""
    line = one_line(text[:_LONGEST])
    return line if len(text) <= _LONGEST else f"{line}…"
