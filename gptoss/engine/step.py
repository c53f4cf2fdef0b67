"""One step of the model: what it computes, as plain arrays, and how far it is.

Shapes: T new tokens in all, S sequences, R rows that want logits, B blocks of the longest
sequence. None of them follows from the others (docs/adr/0004).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from gptoss.engine.pages import NO_PAGE, SLIDING, blocks_for
from gptoss.engine.request import Request
from gptoss.engine.sampling import Draw, sampling_batch
from gptoss.engine.sequence import Chunk
from gptoss.native.arrays import Ints, SamplingBatch, StepOutput


class Backend(Protocol):
    """What steps ask of `_core.Backend`."""

    def step(
        self,
        token_ids: Ints,
        seq_start: Ints,
        context_len: Ints,
        block_table: Ints,
        logits_rows: Ints,
        sampling: SamplingBatch | None = None,
        *,
        want_logits: bool = False,
    ) -> StepOutput: ...


@dataclass(frozen=True)
class StepArrays:
    """Arguments of `Backend.step`, in its order."""

    token_ids: Ints  # [T] chunks one after another
    seq_start: Ints  # [S + 1] where each chunk begins in token_ids
    context_len: Ints  # [S] tokens of the sequence, those of this step included
    block_table: Ints  # [2, S, B] page of each block, full and sliding; NO_PAGE: not held
    logits_rows: Ints  # [R] indices into token_ids, ascending


class Step:
    """Chunks of several sequences that are computed together.

    It is made while the step before it may still run, launched, and then either its `result` is
    taken or it is abandoned. From its launch on each sequence counts its chunk as computed
    (`Sequence.advance`); a step that failed is to be undone.

    Attributes:
        chunks: what it computes, S of them. requests: whose they are.
        rows: which rows of the output each request asked for.
        seconds: how long the device computed.
    """

    def __init__(
        self, chunks: SequenceOf[Chunk], requests: SequenceOf[Request], page_size: int
    ) -> None:
        self.chunks = chunks
        self.requests = requests
        wanted = [request.rows(chunk) for chunk, request in zip(chunks, requests, strict=True)]
        borders = accumulate(map(len, wanted), initial=0)
        self.rows = [range(first, end) for first, end in pairwise(borders)]
        self._arrays = step_arrays(chunks, wanted, page_size)
        self.seconds = 0.0
        self._result: Callable[[], StepOutput] = _never_launched

    def __iter__(self) -> Iterator[tuple[Chunk, Request, range]]:
        return zip(self.chunks, self.requests, self.rows, strict=True)

    @property
    def drafts(self) -> bool:
        """Whether some of its tokens are drafted, so that how far it gets is known only after."""
        return any(chunk.draft for chunk in self.chunks)

    @property
    def decodes(self) -> bool:
        """Whether it computes nothing but next tokens, and drafts after them."""
        return all(c.reaches_end and c.count == 1 + len(c.draft) for c in self.chunks)

    @property
    def tokens(self) -> int:
        """T."""
        return len(self._arrays.token_ids)

    def fill_in(self) -> None:
        """What was not known when it was made, while the step before it ran: the tokens which that
        drew, and which sliding pages were given back after it.
        """
        arrays = self._arrays
        last = arrays.seq_start[1:] - 1
        for i, chunk in enumerate(self.chunks):
            sequence = chunk.sequence
            if chunk.reaches_end:
                arrays.token_ids[last[i]] = sequence.tokens[chunk.end - 1]
            arrays.block_table[SLIDING, i, : chunk.pages.first_sliding] = NO_PAGE

    def launch(self, backend: Backend, device: Executor | None = None) -> None:
        """Begin. Without a device's thread it is computed when the result is asked for.

        What goes wrong, now or later, is raised by `result`.
        """
        try:
            compute = self._prepare(backend)
        except Exception as error:
            self._result = _Raise(error)
            compute = self._result
        for chunk in self.chunks:
            chunk.sequence.advance(chunk)
        if device is None or compute is self._result:
            self._result = compute
            return
        # The interpreter is this thread's for milliseconds unless it is given away: the device
        # would begin when all is planned and reported, which is what this is to avoid.
        begun = threading.Event()

        def begin() -> StepOutput:
            begun.set()
            return compute()

        self._result = device.submit(begin).result
        begun.wait()

    def result(self) -> StepOutput:
        """Wait for what it gives; raises what it failed with."""
        return self._result()

    def undo(self) -> None:
        """It failed: the sequences have their tokens still to compute."""
        for chunk in self.chunks:
            chunk.sequence.retreat(chunk)

    def abandon(self) -> None:
        """Wait until the device is done with it, whatever comes of it."""
        try:
            self._result()
        except Exception:
            pass

    def _prepare(self, backend: Backend) -> Callable[[], StepOutput]:
        """The step as a call that touches nothing of this thread's."""
        arrays = self._arrays
        draws: list[Draw] = []
        for chunk, request, rows in self:
            if rows:
                draws += request.draws(chunk, rows)
        sampling = sampling_batch(draws) if draws else None
        want_logits = any(request.wants_logits for request in self.requests)

        def compute() -> StepOutput:
            begun = perf_counter()
            output = backend.step(
                arrays.token_ids,
                arrays.seq_start,
                arrays.context_len,
                arrays.block_table,
                arrays.logits_rows,
                sampling=sampling,
                want_logits=want_logits,
            )
            self.seconds = perf_counter() - begun
            return output

        return compute


class _Raise:
    """A result that is an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self) -> Any:
        raise self._error


def _never_launched() -> StepOutput:
    raise RuntimeError("the result of a step was asked for before it was launched")


def step_arrays(chunks: SequenceOf[Chunk], rows: SequenceOf[range], page_size: int) -> StepArrays:
    """Lay chunks side by side; `rows[i]` are the tokens of chunk i that want logits."""
    count = len(chunks)
    seq_start = np.zeros(count + 1, np.int32)
    np.cumsum([chunk.count for chunk in chunks], out=seq_start[1:])
    widest = max(blocks_for(chunk.end, page_size) for chunk in chunks)
    block_table = np.full((2, count, widest), NO_PAGE, np.int32)
    token_ids: list[int] = []
    logits_rows: list[int] = []
    for i, chunk in enumerate(chunks):
        table = chunk.pages.table[:, :widest]  # NO_PAGE beyond those that it holds
        block_table[:, i, : table.shape[1]] = table
        wanted, first = rows[i], len(token_ids)
        logits_rows += range(first + wanted.start, first + wanted.stop)
        token_ids += chunk.token_ids
    return StepArrays(
        token_ids=np.array(token_ids, np.int32),
        seq_start=seq_start,
        context_len=np.array([chunk.end for chunk in chunks], np.int32),
        block_table=block_table,
        logits_rows=np.array(logits_rows, np.int32),
    )
