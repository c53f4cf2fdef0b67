"""How callers read what the worker produces, and how leaving off cancels it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from types import TracebackType
from typing import Any, cast

from gptoss.completion import Delta, Timing
from gptoss.jobs import Generation, Job, Outbox
from gptoss.worker import Worker


class Stream(Iterator[Delta]):
    """The deltas of one request; made by `Engine.stream`.

    Attributes:
        timing: of the choice that finished last; None before.
    """

    def __init__(self, owner: object, worker: Worker, jobs: SequenceOf[Generation]) -> None:
        self._owner = owner  # an engine that is collected closes the worker
        self._worker = worker
        self._outbox = cast(Outbox, jobs[0].outbox)
        self._running: dict[Any, Job] = {}
        self._ready: deque[tuple[Any, Any]] = deque()
        self.timing: Timing | None = None
        for job in jobs:
            self._running[job.key] = job  # first, so that an interruption here cancels it
            self._worker.submit(job)

    def __next__(self) -> Delta:
        try:
            self._worker.check_process()
            key, item = self._take()
            if isinstance(item, BaseException):
                raise item
            # The next token is computed while the caller uses this one.
            self._running[key].demand += 1
            self._worker.wake()
            if item.finish_reason is not None:
                del self._running[key]
                self.timing = item.timing
        except BaseException:
            self.close()
            raise
        assert isinstance(item, Delta)
        return item

    def _take(self) -> tuple[Any, Any]:
        while self._running:
            if not self._ready:
                key, items = self._outbox.get()
                self._ready.extend((key, item) for item in items)
            while self._ready:
                key, item = self._ready.popleft()
                if key in self._running:  # else closed by another thread meanwhile
                    return key, item
        raise StopIteration

    def close(self) -> None:
        """Cancel what is not finished; further reading ends at once."""
        while self._running:
            _, job = self._running.popitem()
            self._worker.cancel(job)
            self._outbox.put((None, []))  # wakes a reader in another thread

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_running"):
            self.close()


class Submitted:
    """While the block runs, so do the jobs; those unfinished when it is left are cancelled."""

    def __init__(self, worker: Worker, jobs: SequenceOf[Job]) -> None:
        self._worker = worker
        self._jobs = jobs

    def __enter__(self) -> None:
        try:
            for job in self._jobs:
                self._worker.submit(job)
        except BaseException:
            self._cancel()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._cancel()

    def _cancel(self) -> None:
        for job in self._jobs:
            self._worker.cancel(job)
