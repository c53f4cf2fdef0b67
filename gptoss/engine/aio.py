"""The engine for asyncio: any number of requests in one event loop, none of which blocks it.

The engine's worker thread computes; what it produces is handed to the loop that asked. Requests
share every step, as streams of threads do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gptoss.engine.generation import Generation
from gptoss.request import Completion, Delta, SamplingParams, Score, Timing, join

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf
    from types import TracebackType

    from gptoss.engine.engine import Engine
    from gptoss.engine.prompts import Prompt
    from gptoss.engine.scores import Scores
    from gptoss.engine.sequence import Account
    from gptoss.engine.stream import Submission


_UNREAD = 4096  # items that a reader has not read, from which on they are put together:
_NEAR = 256  # so many tokens, with one that is not further back than so many items


class AsyncEngine:
    """An engine whose calls are awaited. It does not close the engine that it is made of.

    async with AsyncEngine(engine).stream("Once upon a time") as stream:
        async for delta in stream:
            print(delta.text, end="")
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        priority: int = 0,
        client: str = "",
        account: Account | None = None,
        salt: str = "",
    ) -> AsyncStream:
        """As `Engine.stream`. The request is submitted at once and runs to its end, read or not:
        a slow reader holds up nobody, and finds everything when it comes.

        priority: lower goes first. client: whom it is for; those that wait share the engine alike.
        account: shared by streams that are to count as one request of that client.
        salt: prefixes are taken from the cache only where they were put with the same.
        loop: the one that the stream is read in; needed on other threads than the loop's, where
        the splitting of a long text into tokens holds up no other request.

        Leaving the iterator (`aclose()`, the end of a `with` block, a cancelled task) cancels what
        is not finished. Raises Error when prompt or parameters do not suit the model.
        """
        outbox = _Outbox(loop or asyncio.get_running_loop())
        requests = self.engine.prepare(
            prompt,
            params or SamplingParams(),
            outbox,
            priority=priority,
            client=client,
            account=account,
            salt=salt,
        )
        for request in requests:
            request.demand = request.sequence.limit + 1  # more than it can produce
        return AsyncStream(self.engine.submit(requests), requests, outbox)

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> list[Completion]:
        """All choices of one prompt, when they are done. Being cancelled cancels the request."""
        deltas: dict[int, list[Delta]] = {}
        async with self.stream(prompt, params) as stream:
            async for delta in stream:
                deltas.setdefault(delta.index, []).append(delta)
        return [join(deltas[index]) for index in sorted(deltas)]


class AsyncStream(AsyncIterator[Delta]):
    """The deltas of one request, for one task.

    Attributes:
        timing: of the choice that finished last; None before. timings: of all that have.
        cancelled: of each choice that was, tokens of the prompt that were read, tokens written.
        choices: how many texts there will be. prompt_tokens: length of the prompt.
        prompt_ids: its tokens. prompt: how likely they were, where asked for, from the first delta
            of the first choice on.
    """

    def __init__(
        self, submission: Submission, requests: SequenceOf[Generation | Scores], outbox: _Outbox
    ) -> None:
        self._submission = submission
        self._requests = requests
        self._outbox = outbox
        self.timing: Timing | None = None
        self.timings: list[Timing] = []
        self.cancelled: list[tuple[int, int]] = []
        self.choices = len(requests)
        self.prompt_tokens = requests[0].prompt_tokens
        self.prompt_ids = requests[0].prompt_ids
        self.prompt: Score | None = None

    async def __anext__(self) -> Delta:
        while self._submission:
            try:
                self._submission.check_process()
                key, item = await self._outbox.take()
            except BaseException:
                self.cancel()
                raise
            if key not in self._submission:
                continue  # of a choice that was cancelled meanwhile
            if isinstance(item, BaseException):
                self.cancel()
                raise item
            assert isinstance(item, Delta)
            if item.prompt is not None:
                self.prompt = item.prompt
            if item.finish_reason is not None:
                self._submission.finish(key)
                self.timing = item.timing
                if item.timing is not None:
                    self.timings.append(item.timing)
            return item
        raise StopAsyncIteration

    def fail(self, error: Exception) -> None:
        """End it for its reader with an error, after what has come; called on the loop's thread.

        Nothing happens when it is over.
        """
        for key in self._submission.keys()[:1]:
            self._outbox.receive(key, [error])

    async def aclose(self) -> None:
        """The same, as asynchronous iterators have it."""
        self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_submission"):
            self.cancel()

    def end(self) -> None:
        """Cancel what is not finished, as its reader has enough of it. What was done counts."""
        for request in self._requests:
            running = request.key in self._submission and request.produced
            if running and isinstance(request, Generation):
                self.timings.append(request.timing(perf_counter()))
        self._submission.close()

    def cancel(self) -> None:
        """Cancel what is not finished; further reading ends at once."""
        self.cancelled += [
            request.done_so_far() for request in self._requests if request.key in self._submission
        ]
        self._submission.close()


class _Outbox:
    """What requests put their results into, on the worker's thread; read by one task of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[tuple[Any, Any]] = deque()
        self._arrived = asyncio.Event()

    def put(self, entry: tuple[Any, list[Any]]) -> None:
        key, items = entry
        try:
            self._loop.call_soon_threadsafe(self.receive, key, items)
        except RuntimeError:
            pass  # the loop is closed: nobody reads any more

    def receive(self, key: Any, items: list[Any]) -> None:
        """The same on the loop's own thread."""
        for item in items:
            if len(self._ready) < _UNREAD or not self._joined(key, item):
                self._ready.append((key, item))
        self._arrived.set()

    def _joined(self, key: Any, item: Any) -> bool:
        """Whether it could be put into the last item of its text that was not read yet."""
        place = next(
            (i for i in range(1, min(_NEAR, len(self._ready)) + 1) if self._ready[-i][0] == key), 0
        )
        if not place:
            return False
        before = self._ready[-place][1]
        if not (isinstance(item, Delta) and isinstance(before, Delta)):
            return False
        if item.logprobs is not None or item.prompt is not None or len(before.token_ids) >= _NEAR:
            return False
        self._ready[-place] = key, replace(
            item, text=before.text + item.text, token_ids=before.token_ids + item.token_ids,
            logprobs=before.logprobs, prompt=before.prompt,
        )  # fmt: skip
        return True

    async def take(self) -> tuple[Any, Any]:
        while not self._ready:
            self._arrived.clear()
            await self._arrived.wait()
        return self._ready.popleft()
