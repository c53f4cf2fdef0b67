"""How callers read what the worker produces, and how leaving off cancels it."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from collections.abc import Sequence as SequenceOf
from types import TracebackType
from typing import Any

from gptoss.engine.request import Outbox, Request
from gptoss.engine.worker import Worker
from gptoss.request import Delta, Timing


class Submission:
    """Requests that an engine works on, until each is finished or all are cancelled.

    Args:
        owner: the engine, which would close when it is collected.
    """

    def __init__(self, owner: object, worker: Worker, requests: SequenceOf[Request]) -> None:
        self._owner = owner
        self._worker = worker
        self._running: dict[Hashable, Request] = {}
        try:
            for request in requests:
                self._running[request.key] = request  # first: an interruption here cancels it
                worker.submit(request)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many are not finished."""
        return len(self._running)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._running

    def keys(self) -> list[Hashable]:
        """Of those that are not finished."""
        return list(self._running)

    def check_process(self) -> None:
        """Raise Error in a forked child, where nothing will come."""
        self._worker.check_process()

    def want_more(self, key: Hashable) -> None:
        """One more item of this request is to be computed."""
        self._running[key].demand += 1
        self._worker.wake()

    def finish(self, key: Hashable) -> None:
        """A request has produced its last item."""
        del self._running[key]

    def close(self) -> bool:
        """Cancel what is not finished; whether there was anything. From any thread."""
        cancelled = False
        while self._running:
            _, request = self._running.popitem()
            self._worker.cancel(request)
            cancelled = True
        return cancelled

    def __del__(self) -> None:
        if hasattr(self, "_running"):
            self.close()


class Stream(Iterator[Delta]):
    """The deltas of one request; made by `Engine.stream`.

    Attributes:
        timing: of the choice that finished last; None before.
    """

    def __init__(self, submission: Submission, outbox: Outbox) -> None:
        self.timing: Timing | None = None
        self._outbox = outbox
        self._ready: deque[tuple[Any, Any]] = deque()
        self._submission = submission  # last: from here on closing finds all that it needs

    def __next__(self) -> Delta:
        try:
            self._submission.check_process()
            key, item = self._take()
            if isinstance(item, BaseException):
                raise item
            # The next token is computed while the caller uses this one.
            self._submission.want_more(key)
            if item.finish_reason is not None:
                self._submission.finish(key)
                self.timing = item.timing
        except BaseException:
            self.close()
            raise
        assert isinstance(item, Delta)
        return item

    def _take(self) -> tuple[Any, Any]:
        while self._submission:
            if not self._ready:
                key, items = self._outbox.get()
                self._ready.extend((key, item) for item in items)
            while self._ready:
                key, item = self._ready.popleft()
                if key in self._submission:  # else closed by another thread meanwhile
                    return key, item
        raise StopIteration

    def close(self) -> None:
        """Cancel what is not finished; further reading ends at once."""
        if self._submission.close():
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
        if hasattr(self, "_submission"):
            self.close()
