"""The thread that runs the model: one step after another, for whoever asks.

Everything that changes while the model runs (scheduler, pages, jobs) belongs to this thread
alone. Others send it calls through a queue and read results from another. Both are SimpleQueue,
which a signal handler or a finaliser may use at any moment, so a Ctrl-C in a caller, wherever it
strikes, cannot leave a page table half changed, and need not wait for the step in progress.

The thread runs only while some reader wants more than has been produced; a stream that nobody
reads computes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from gptoss.batch import Draw, StepArrays, fill_in, sampling_arrays, step_arrays
from gptoss.errors import Error
from gptoss.jobs import Job
from gptoss.scheduler import Chunk, Scheduler, Sequence
from gptoss.speculation import StepCost

if TYPE_CHECKING:
    from gptoss._core import Backend, StepOutput


class Worker:
    """Owns a backend and a scheduler, and steps them.

    Args:
        sampling_batch: `_core.SamplingBatch`.
        sampling_dtype: `_core.SAMPLING_DTYPE`, the type of its rows.
        at_end: called last, on the worker's thread: frees what the backend holds.
        overlap_from: sequences in a step from which on the next one is planned while it runs, on a
            thread of its own; None: never.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        sampling_batch: Callable[..., Any],
        sampling_dtype: Any,
        at_end: Callable[[], None] | None = None,
        *,
        overlap_from: int | None = None,
    ) -> None:
        self.backend = backend
        self.scheduler = scheduler
        self.steps = 0
        self.cost = StepCost()
        self._overlap_from = overlap_from
        self._device = None if overlap_from is None else ThreadPoolExecutor(1, "gptoss-device")
        self._flight: _Flight | None = None  # the step that runs
        self._sampling_batch = sampling_batch
        self._sampling_dtype = sampling_dtype
        self._at_end = at_end or _nothing
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._jobs: dict[Job, None] = {}  # an ordered set
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

    def submit(self, job: Job) -> None:
        """Queue a job; its outbox will get its results, or one exception.

        Raises:
            Error: it can never fit the page pool, the engine is closed, or another process's.
        """
        self.check_process()
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
        """End after the step in progress; jobs that are not done get an Error.

        In a forked child there is nothing to end: the thread, and the model, are the parent's.
        """
        if os.getpid() != self._process:
            return
        self._closing = True
        self._inbox.put(self._end)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def check_process(self) -> None:
        """Raise Error in a forked child, where the thread that would answer is not."""
        if os.getpid() != self._process:
            raise Error(
                f"engine: it belongs to the process that made it (pid {self._process}), this is a "
                f"fork of it (pid {os.getpid()}): make a new one here, or start processes with "
                f"multiprocessing's 'spawn'"
            )

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
                flight, self._flight = self._flight, None
                if flight is not None:
                    flight.settle()
                self.scheduler.reset()
                for job in jobs:
                    job.put(error)
                    job.deliver(done=True)
        if self._device is not None:
            self._device.shutdown()
        self._at_end()

    def serve(self) -> None:
        """Wait until there is something to do, and do it: messages, then one step."""
        if not self._wanted() and self._flight is None:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        if not self._ended and (self._flight is not None or self._wanted()):
            self.step()

    def step(self) -> None:
        """Run a step, and hand out the results; perhaps begin the next one before that.

        Overlapped, the time that a device computes is used to plan what it does next, and its next
        step runs while readers are served. A token that ends a text by a stop string is found out
        too late for that: the text is then computed one token too far, which nobody sees.
        """
        flight, self._flight = self._flight, None
        if flight is None:
            chunks = self.scheduler.add_guesses(self._plan())
            flight = self._launch(chunks, self._device if self._overlaps(chunks) else None)
        following: list[Chunk] = []
        arrays: StepArrays | None = None
        ahead = self._overlaps(flight.chunks)
        if ahead:
            for chunk in flight.chunks:
                self.scheduler.begin(chunk)
                _job(chunk).begin(chunk)
            following = self.scheduler.plan()
            arrays = self._lay_out(following) if following else None
        try:
            output = flight.result()
        except Exception as error:
            if ahead:
                for chunk in flight.chunks:
                    self.scheduler.undo(chunk)
                    _job(chunk).undo(chunk)
            self._compute_apart(flight.chunks, error)
            return
        if not ahead:
            for chunk in flight.chunks:
                self.scheduler.begin(chunk)
        owed = self._take(flight.chunks, output)
        going_on = [
            chunk for chunk in following if _job(chunk) in self._jobs and not _job(chunk).over
        ]
        if going_on and self._wanted(owed):
            going_on = self.scheduler.add_guesses(going_on)
            if arrays is not None and going_on == following:
                fill_in(arrays, going_on)
            else:
                arrays = None
            self._flight = self._launch(going_on, self._device, arrays)
        self._report(flight.chunks, output)

    def _plan(self) -> list[Chunk]:
        chunks = self.scheduler.plan()
        if not chunks:
            raise RuntimeError("the scheduler found nothing to do, though jobs are waiting")
        return chunks

    def _overlaps(self, chunks: SequenceOf[Chunk]) -> bool:
        """Whether the next step is planned while this one runs.

        How far a step gets with guesses is known only when it is over.
        """
        return (
            self._overlap_from is not None
            and len(chunks) >= self._overlap_from
            and not any(chunk.draft for chunk in chunks)
        )

    def _launch(
        self,
        chunks: list[Chunk],
        device: ThreadPoolExecutor | None,
        arrays: StepArrays | None = None,
    ) -> _Flight:
        """Begin a step; without a device's thread it runs when its result is asked for.

        arrays: of the chunks, where they are laid out already.
        """
        now = perf_counter()
        for chunk in chunks:
            job = _job(chunk)
            job.started = job.started or now
        try:
            compute = self._prepare(chunks, arrays)
        except Exception as error:
            return _Flight(chunks, partial(_raise, error))
        if device is None:
            return _Flight(chunks, compute)
        # The interpreter is this thread's for milliseconds unless it is given away: the device
        # would begin when all is planned and reported, which is what this is to avoid.
        begun = threading.Event()

        def begin() -> StepOutput:
            begun.set()
            return compute()

        result = device.submit(begin).result
        begun.wait()
        return _Flight(chunks, result)

    def _lay_out(self, chunks: SequenceOf[Chunk]) -> StepArrays:
        rows = [_job(chunk).rows(chunk) for chunk in chunks]
        return step_arrays(chunks, rows, self.scheduler.page_size)

    def _prepare(
        self, chunks: SequenceOf[Chunk], arrays: StepArrays | None = None
    ) -> Callable[[], StepOutput]:
        """The step as a call that touches nothing of this thread's."""
        jobs = [_job(chunk) for chunk in chunks]
        if arrays is None:
            arrays = self._lay_out(chunks)
        draws = [
            Draw(job.sampler, ahead, mask)
            for job, chunk in zip(jobs, chunks, strict=True)
            for ahead, mask in enumerate(job.masks(chunk))
        ]
        sampling = None
        if draws:
            sampling = self._sampling_batch(**sampling_arrays(draws, self._sampling_dtype))
        decodes = all(chunk.reaches_end and chunk.count == 1 + len(chunk.draft) for chunk in chunks)
        want_logits = any(job.wants_logits for job in jobs)

        def compute() -> StepOutput:
            begun = perf_counter()
            self.steps += 1
            output = self.backend.step(
                arrays.token_ids,
                arrays.seq_start,
                arrays.context_len,
                arrays.block_table,
                arrays.logits_rows,
                sampling=sampling,
                want_logits=want_logits,
            )
            if decodes:
                self.cost.observe(len(arrays.token_ids), perf_counter() - begun)
            return output

        return compute

    def _compute_apart(self, chunks: SequenceOf[Chunk], error: Exception) -> None:
        """After a failed step: run each sequence alone, so that only the guilty one fails.

        Computing a chunk twice is harmless: it writes the same keys and values again.
        """
        for chunk in chunks:
            if _job(chunk) not in self._jobs or chunk.sequence.pages is None:
                continue  # given up, or sent back to the queue
            try:
                if len(chunks) == 1:
                    raise error
                output = self._prepare([chunk])()
            except Exception as own_error:
                self._fail(_job(chunk), own_error)
            else:
                self.scheduler.begin(chunk)
                self._take([chunk], output)
                self._report([chunk], output)

    def _take(self, chunks: SequenceOf[Chunk], output: StepOutput) -> int:
        """What the next step must know of this one; how many items are to be reported."""
        owed = 0
        for chunk, first_row in _with_rows(chunks):
            job = _job(chunk)
            if job not in self._jobs:
                continue
            try:
                owed = max(owed, job.take(chunk, output, first_row))
            except Exception as error:
                self._fail(job, error)
            else:
                self.scheduler.commit(chunk)
        return owed

    def _report(self, chunks: SequenceOf[Chunk], output: StepOutput) -> None:
        """Serve the readers."""
        for chunk, first_row in _with_rows(chunks):
            job = _job(chunk)
            if job not in self._jobs:
                continue
            try:
                done = job.report(chunk, output, first_row)
                if done:
                    self._drop(job)
                job.deliver(done)
            except Exception as error:
                self._fail(job, error)

    def _wanted(self, owed: int = 0) -> bool:
        """Whether a reader wants more than there is, and than the next report brings."""
        return any(job.produced + owed < job.demand for job in self._jobs)

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
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.settle()
        for job in list(self._jobs):
            self._fail(job, Error("engine: it was closed while the request ran"))


def _job(chunk: Chunk) -> Job:
    sequence: Sequence = chunk.sequence
    return cast(Job, sequence)


@dataclass(frozen=True)
class _Flight:
    """A step that was begun. result: waits for what it gives, or raises."""

    chunks: list[Chunk]
    result: Callable[[], StepOutput]

    def settle(self) -> None:
        """Wait until the device is done with it, whatever comes of it."""
        try:
            self.result()
        except Exception:
            pass


def _with_rows(chunks: SequenceOf[Chunk]) -> Iterator[tuple[Chunk, int]]:
    """Chunks, with the first of their rows in the output."""
    first_row = 0
    for chunk in chunks:
        count = len(_job(chunk).rows(chunk))  # asked before its rows are taken
        yield chunk, first_row
        first_row += count


def _raise(error: Exception) -> Any:
    raise error


def _nothing() -> None:
    pass
