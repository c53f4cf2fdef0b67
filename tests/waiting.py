"""Waiting for events.

No test passes or fails by how long something took. It waits for what it is about, and PATIENCE,
which is far longer than that takes on a busy machine, only ends what would otherwise hang.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE = 120.0  # seconds
WORK = 1200.0  # seconds that a program of ours is left to do its work in
_PAUSE = 0.005

Found = TypeVar("Found")


def until(done: Callable[[], Found], what: str) -> Found:
    """What `done` returns, as soon as it is something. what: the event that is waited for."""
    end = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for {what}"
        time.sleep(_PAUSE)
    return found


async def until_async(done: Callable[[], Found], what: str) -> Found:
    """The same, while other tasks of the loop go on."""
    end = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for {what}"
        await asyncio.sleep(_PAUSE)
    return found


def patient_httpx() -> None:
    """httpx gives up after five seconds where it is told nothing; here, after PATIENCE."""
    import httpx

    timeout = httpx.Timeout(PATIENCE)
    verbs = [getattr(httpx, name) for name in ("request", "get", "post", "options")]
    inner = httpx.stream.__wrapped__  # type: ignore[attr-defined]
    for function in (*verbs, inner, httpx.Client.__init__, httpx.AsyncClient.__init__):
        assert "timeout" in function.__kwdefaults__
        function.__kwdefaults__["timeout"] = timeout
