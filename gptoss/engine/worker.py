"""The thread that runs the model: one step after another, for all that ask.

Everything that changes while the model runs (scheduler, pages, requests) belongs to this thread
alone. Others send it calls through a queue and read results from another. Both are SimpleQueue,
which a signal handler or a finaliser may use at any moment, so a Ctrl-C in a caller, wherever it
strikes, cannot leave a page table half changed, and need not wait for the step in progress.

The thread runs only while some reader wants more than has been produced; a stream that nobody
reads computes nothing.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from time import perf_counter

from gptoss.engine.drafts import StepCost, with_drafts
from gptoss.engine.request import Request
from gptoss.engine.scheduler import Scheduler
from gptoss.engine.sequence import Chunk, Sequence
from gptoss.engine.step import Backend, Step
from gptoss.errors import Error
from gptoss.native.arrays import StepOutput


class Worker:
    """Owns a backend and a scheduler, and steps them.

    Args:
        at_end: called last, on the worker's thread: frees what the backend holds.
        overlap_from: sequences in a step from which on the next one is planned while it runs, on a
            thread of its own; None: never.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        at_end: Callable[[], None] | None = None,
        *,
        overlap_from: int | None = None,
    ) -> None:
        self.backend = backend
        self.scheduler = scheduler
        self.steps = 0
        self._since: float | None = None  # when it began what it does now; None: it waits
        self.cost = StepCost()
        self._overlap_from = overlap_from
        self._device = None if overlap_from is None else ThreadPoolExecutor(1, "gptoss-device")
        self._running: Step | None = None  # launched, its result not taken
        self._at_end = at_end or _nothing
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._requests: dict[Sequence, Request] = {}
        self._closing = False  # set by close(), on any thread
        self._ended = False  # seen by the loop
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    # Called from any thread.

    def start(self) -> None:
        """Begin to serve. A worker that is not started is stepped by hand, in tests."""
        # A daemon: an engine that was never closed must not keep the interpreter alive.
        self._thread = threading.Thread(target=self._loop, name="gptoss", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; its outbox will get its results, or one exception.

        Raises:
            Error: it can never fit the page pool, the engine is closed, or another process's.
        """
        self.check_process()
        self.scheduler.check(request.sequence)
        self._refuse_if_closed()
        self._inbox.put(partial(self._add, request))
        # Again: a request that went in after the end of the loop would wait for ever.
        self._refuse_if_closed()

    def cancel(self, request: Request) -> None:
        """Drop a request as soon as the step in progress is over; its pages become free."""
        self._inbox.put(partial(self._drop, request))

    def wake(self) -> None:
        """Look at the requests' demands again."""
        self._inbox.put(_nothing)

    def close(self) -> None:
        """End after the step in progress; requests that are not done get an Error.

        In a forked child there is nothing to end: the thread, and the model, are the parent's.
        """
        if os.getpid() != self._process:
            return
        self._closing = True
        self._inbox.put(self._end)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def check_process(self) -> None:
        """Raise Error in a forked child, which lacks the thread that would answer."""
        if os.getpid() != self._process:
            raise Error(
                f"engine: it belongs to the process that made it (pid {self._process}), this is a "
                f"fork of it (pid {os.getpid()}): make a new one here, or start processes with "
                f"multiprocessing's 'spawn'"
            )

    @property
    def step_seconds(self) -> float:
        """For how long it has been at the step in progress, or at what came before it; infinite
        where its thread has ended though nobody closed it.
        """
        if self._thread is not None and not self._closing and not self._thread.is_alive():
            return math.inf
        since = self._since
        return 0.0 if since is None else perf_counter() - since

    def _refuse_if_closed(self) -> None:
        if self._closing:
            raise Error("engine: it is closed")

    # Called on the worker's thread only.

    def _loop(self) -> None:
        while not self._ended:
            try:
                self.serve()
            except Exception as error:  # a bug of ours: no reader may wait for ever
                requests = list(self._requests.values())
                self._requests.clear()
                self._abandon()
                self.scheduler.reset()
                for request in requests:
                    request.put(error)
                    request.deliver(done=True)
        if self._device is not None:
            self._device.shutdown()
        self._at_end()

    @property
    def busy(self) -> bool:
        """Whether `serve` would find something to do at once."""
        return self._wanted() or self._running is not None or not self._inbox.empty()

    def serve(self) -> None:
        """Wait until there is something to do, and do it: messages, then one step."""
        if not self._wanted() and self._running is None:
            self._since = None
            message = self._inbox.get()
            self._since = perf_counter()
            message()
        self._since = perf_counter()
        while not self._inbox.empty():
            self._inbox.get()()
        if not self._ended and (self._running is not None or self._wanted()):
            self.step()

    def step(self) -> None:
        """Run a step, and hand out the results; perhaps launch the next one before that.

        Overlapped, the time that a device computes is used to plan what it does next, and its next
        step runs while readers are served. A token that ends a text by a stop string is found out
        too late for that: the text is then computed one token too far, which nobody sees.
        """
        step = self._running
        if step is None:
            step = self._make(self._draft(self._plan()))
            self._launch(step, self._device if self._overlaps(step) else None)
            self._running = step
        following = self._following(step)
        try:
            output = step.result()
        except Exception as error:
            self._running = None
            step.undo()
            self._compute_apart(step, error)
            return
        self._running = None
        if step.decodes:
            self.cost.observe(step.tokens, step.seconds)
        owed = self._take(step, output)
        if following is not None and self._wanted(owed):
            renewed = self._renewed(following)
            if renewed is not None:
                self._launch(renewed, self._device)
                self._running = renewed
        self._report(step, output)

    def _plan(self) -> list[Chunk]:
        chunks = self.scheduler.plan()
        if not chunks:
            raise RuntimeError("the scheduler found nothing to do, though requests are waiting")
        return chunks

    def _draft(self, chunks: list[Chunk]) -> list[Chunk]:
        drafters = [self._requests[chunk.sequence].drafter for chunk in chunks]
        return with_drafts(chunks, drafters, self.scheduler) if any(drafters) else chunks

    def _make(self, chunks: SequenceOf[Chunk]) -> Step:
        requests = [self._requests[chunk.sequence] for chunk in chunks]
        return Step(chunks, requests, self.scheduler.page_size)

    def _launch(self, step: Step, device: Executor | None) -> None:
        now = perf_counter()
        for request in step.requests:
            request.started = request.started or now
        self.steps += 1
        step.launch(self.backend, device)

    def _overlaps(self, step: Step) -> bool:
        """Whether the next step is planned while this one runs."""
        return (
            self._overlap_from is not None
            and len(step.chunks) >= self._overlap_from
            and not step.drafts
        )

    def _following(self, step: Step) -> Step | None:
        """The step after one that runs, as far as it is known."""
        if not self._overlaps(step):
            return None
        chunks = self.scheduler.plan()
        return self._make(chunks) if chunks else None

    def _renewed(self, step: Step) -> Step | None:
        """A step that was planned before the results of the one before it were known."""
        going_on = [
            chunk
            for chunk, request, _ in step
            if not request.over and chunk.sequence in self._requests
        ]
        if not going_on:
            return None
        drafted = self._draft(going_on)
        if len(going_on) == len(step.chunks) and not any(chunk.draft for chunk in drafted):
            step.fill_in()
            return step
        return self._make(drafted)

    def _compute_apart(self, step: Step, error: Exception) -> None:
        """After a failed step: run each sequence alone, so that only the guilty one fails.

        Computing a chunk twice is harmless: it writes the same keys and values again.
        """
        for chunk, request, _ in step:
            if chunk.sequence not in self._requests or chunk.sequence.pages is not chunk.pages:
                continue  # given up, or sent back to the queue
            if len(step.chunks) == 1:
                self._fail(request, error)
                continue
            alone = self._make([chunk])
            alone.launch(self.backend)
            try:
                output = alone.result()
            except Exception as own_error:
                alone.undo()
                self._fail(request, own_error)
            else:
                self._take(alone, output)
                self._report(alone, output)

    def _take(self, step: Step, output: StepOutput) -> int:
        """What the next step must know of this one; how many items are to be reported."""
        owed = 0
        for chunk, request, rows in step:
            if chunk.sequence not in self._requests:
                continue
            try:
                owed = max(owed, request.take(chunk, output, rows))
            except Exception as error:
                self._fail(request, error)
            else:
                self.scheduler.update(chunk)
        return owed

    def _report(self, step: Step, output: StepOutput) -> None:
        """Serve the readers."""
        for chunk, request, rows in step:
            if chunk.sequence not in self._requests:
                continue
            try:
                done = request.report(chunk, output, rows)
                if done:
                    self._drop(request)
                request.deliver(done)
            except Exception as error:
                self._fail(request, error)

    def _wanted(self, owed: int = 0) -> bool:
        """Whether a reader wants more than there is, and than the next report brings."""
        return any(r.produced + owed < r.demand for r in self._requests.values())

    def _add(self, request: Request) -> None:
        self._requests[request.sequence] = request
        self.scheduler.add(request.sequence)

    def _drop(self, request: Request) -> None:
        if self._requests.pop(request.sequence, None) is not None:
            self.scheduler.remove(request.sequence)

    def _fail(self, request: Request, error: Exception) -> None:
        self._drop(request)
        request.put(error)
        request.deliver(done=True)

    def _abandon(self) -> None:
        step, self._running = self._running, None
        if step is not None:
            step.abandon()

    def _end(self) -> None:
        self._ended = True
        self._abandon()
        for request in list(self._requests.values()):
            self._fail(request, Error("engine: it was closed while the request ran"))


def _nothing() -> None:
    pass
