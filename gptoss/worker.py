"""The thread that runs the model: one step after another, for whoever asks.

Everything that changes while the model runs (scheduler, pages, jobs) belongs to this thread
alone. Others send it calls through a queue and read results from another. Both are SimpleQueue,
which a signal handler or a finaliser may use at any moment, so a Ctrl-C in a caller, wherever it
strikes, cannot leave a page table half changed, and need not wait for the step in progress.

The thread runs only while some reader wants more than has been produced; a stream that nobody
reads computes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from gptoss.batch import sampling_arrays, step_arrays
from gptoss.errors import Error
from gptoss.jobs import Job
from gptoss.scheduler import Chunk, Scheduler, Sequence

if TYPE_CHECKING:
    from gptoss._core import Backend, StepOutput


class Worker:
    """Owns a backend and a scheduler, and steps them.

    Args:
        sampling_batch: `_core.SamplingBatch`.
        sampling_dtype: `_core.SAMPLING_DTYPE`, the type of its rows.
        at_end: called last, on the worker's thread: frees what the backend holds.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        sampling_batch: Callable[..., Any],
        sampling_dtype: Any,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self.backend = backend
        self.scheduler = scheduler
        self.steps = 0
        self._sampling_batch = sampling_batch
        self._sampling_dtype = sampling_dtype
        self._at_end = at_end or _nothing
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._jobs: dict[Job, None] = {}  # an ordered set
        self._closing = False  # set by close(), on any thread
        self._ended = False  # seen by the loop
        self._thread: threading.Thread | None = None

    # Called from any thread.

    def start(self) -> None:
        """Begin to serve. A worker that is not started is stepped by hand, in tests."""
        # A daemon: an engine that was never closed must not keep the interpreter alive.
        self._thread = threading.Thread(target=self._loop, name="gptoss", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its outbox will get its results, or one exception.

        Raises:
            Error: it can never fit the page pool, or the engine is closed.
        """
        self.scheduler.check(job)
        self._refuse_if_closed()
        self._inbox.put(partial(self._add, job))
        # Again: a job that went in behind the end of the loop would wait for ever.
        self._refuse_if_closed()

    def cancel(self, job: Job) -> None:
        """Drop a job as soon as the step in progress is over; its pages become free."""
        self._inbox.put(partial(self._drop, job))

    def wake(self) -> None:
        """Look at the jobs' demands again."""
        self._inbox.put(_nothing)

    def close(self) -> None:
        """End after the step in progress; jobs that are not done get an Error."""
        self._closing = True
        self._inbox.put(self._end)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _refuse_if_closed(self) -> None:
        if self._closing:
            raise Error("engine: it is closed")

    # Called on the worker's thread only.

    def _loop(self) -> None:
        while not self._ended:
            try:
                self.serve()
            except Exception as error:  # a bug of ours: no reader may wait for ever
                jobs, self._jobs = self._jobs, {}
                self.scheduler.reset()
                for job in jobs:
                    job.put(error)
                    job.deliver(done=True)
        self._at_end()

    def serve(self) -> None:
        """Wait until there is something to do, and do it: messages, then one step."""
        if not self._wanted():
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        if not self._ended and self._wanted():
            self.step()

    def step(self) -> None:
        """Plan a step, run it, hand out the results."""
        chunks = self.scheduler.plan()
        if not chunks:
            raise RuntimeError("the scheduler found nothing to do, though jobs are waiting")
        now = perf_counter()
        for chunk in chunks:
            job = _job(chunk)
            job.started = job.started or now
        try:
            output = self._compute(chunks)
        except Exception as error:
            self._compute_apart(chunks, error)
        else:
            self._hand_out(chunks, output)

    def _compute(self, chunks: SequenceOf[Chunk]) -> StepOutput:
        rows = [_job(chunk).rows(chunk) for chunk in chunks]
        arrays = step_arrays(chunks, rows, self.scheduler.page_size)
        samplers = [_job(chunk).sampler for chunk, of in zip(chunks, rows, strict=True) for _ in of]
        sampling = None
        if samplers:
            sampling = self._sampling_batch(**sampling_arrays(samplers, self._sampling_dtype))
        self.steps += 1
        return self.backend.step(
            arrays.token_ids,
            arrays.seq_start,
            arrays.context_len,
            arrays.block_table,
            arrays.logits_rows,
            sampling=sampling,
            want_logits=any(_job(chunk).wants_logits for chunk in chunks),
        )

    def _compute_apart(self, chunks: SequenceOf[Chunk], error: Exception) -> None:
        """After a failed step: run each sequence alone, so that only the guilty one fails.

        Computing a chunk twice is harmless: it writes the same keys and values again.
        """
        if len(chunks) == 1:
            self._fail(_job(chunks[0]), error)
            return
        for chunk in chunks:
            try:
                output = self._compute([chunk])
            except Exception as own_error:
                self._fail(_job(chunk), own_error)
            else:
                self._hand_out([chunk], output)

    def _hand_out(self, chunks: SequenceOf[Chunk], output: StepOutput) -> None:
        first_row = 0
        for chunk in chunks:
            job = _job(chunk)
            count = len(job.rows(chunk))
            self.scheduler.commit(chunk)
            try:
                done = job.receive(chunk, output, first_row)
                if done:
                    self._drop(job)
                job.deliver(done)
            except Exception as error:
                self._fail(job, error)
            first_row += count

    def _wanted(self) -> bool:
        return any(job.produced < job.demand for job in self._jobs)

    def _add(self, job: Job) -> None:
        self._jobs[job] = None
        self.scheduler.add(job)

    def _drop(self, job: Job) -> None:
        self._jobs.pop(job, None)
        self.scheduler.remove(job)

    def _fail(self, job: Job, error: Exception) -> None:
        self._drop(job)
        job.put(error)
        job.deliver(done=True)

    def _end(self) -> None:
        self._ended = True
        for job in list(self._jobs):
            self._fail(job, Error("engine: it was closed while the request ran"))


def _job(chunk: Chunk) -> Job:
    sequence: Sequence = chunk.sequence
    return cast(Job, sequence)


def _nothing() -> None:
    pass
