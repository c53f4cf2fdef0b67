"""What a sequence is computed for: a text to generate, or logits to return.

A job is a sequence of the scheduler that knows which logits it wants and what to make of them.
Jobs live on the worker's thread; what they produce goes to their outbox, a queue that any thread
may read.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from gptoss.engine.sampling import SamplerState
from gptoss.engine.sequence import Chunk, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gptoss.native.arrays import StepOutput

# (key of the job, what it produced in order; an exception is the last thing it produces)
Entry = tuple[Any, list[Any]]
Outbox = SimpleQueue[Entry]


class Outlet(Protocol):
    """Where a job puts its entries, on the worker's thread: an Outbox, or an event loop's."""

    def put(self, item: Entry, /) -> None: ...


class Job(Sequence):
    """A sequence with a purpose.

    A step's results are taken in two parts: `take` does what the next step must know of, `report`
    what readers see, which may be done while the next step runs.

    Attributes:
        key: tells the jobs of a shared outbox apart.
        demand: how many items its reader wants by now; the worker runs while some job owes any.
        produced: how many it has produced.
        eager: whether each item goes to the outbox at once; else all go when the job is done,
            which spares a reader that waits for the end from being woken by every token.
        sampler: parameters for its rows; None: the most likely token, no extras.
        wants_logits: whether the step must return whole rows of logits.
        over: whether it is known that no further step is needed.
    """

    __slots__ = (
        "_ready",
        "created",
        "demand",
        "eager",
        "key",
        "outbox",
        "over",
        "produced",
        "sampler",
        "started",
    )
    wants_logits = False

    def __init__(
        self,
        tokens: SequenceOf[int],
        limit: int,
        outbox: Outlet,
        key: Any = None,
        chunk: int | None = None,
        *,
        priority: int = 0,
        client: str = "",
    ) -> None:
        super().__init__(tokens, limit, chunk, priority=priority, client=client)
        self.outbox = outbox
        self.key = key
        self.demand = 1
        self.produced = 0
        self.eager = True
        self.over = False
        self._ready: list[Any] = []  # produced, not in the outbox yet
        self.sampler: SamplerState | None = None
        self.created = perf_counter()
        self.started: float | None = None  # when its first step began

    def rows(self, chunk: Chunk) -> range:
        """Which tokens of the chunk, counted from its start, want logits."""
        raise NotImplementedError

    def begin(self, chunk: Chunk) -> None:
        """The step is on its way, and the next one is planned before it is over."""

    def undo(self, chunk: Chunk) -> None:
        """The step that was begun failed."""

    def take(self, chunk: Chunk, output: StepOutput, first_row: int) -> int:
        """Take the rows asked for, output's first_row onwards; how many items they will make."""
        return 0

    def report(self, chunk: Chunk, output: StepOutput, first_row: int) -> bool:
        """Put what was taken; True when the job is done."""
        raise NotImplementedError

    def masks(self, chunk: Chunk) -> list[NDArray[np.uint32] | None]:
        """Which tokens each row may draw, a bit each; None: any."""
        return [None] * len(self.rows(chunk))

    def put(self, item: Any) -> None:
        """Produce an item; `deliver` sends it off."""
        self.produced += 1
        self._ready.append(item)

    def deliver(self, done: bool) -> None:
        """Send what is ready to the reader, unless the reader waits for the end."""
        if self._ready and (done or self.eager):
            self.outbox.put((self.key, self._ready))
            self._ready = []


class Scoring(Job):
    """Wants the logits of every token; puts (first position, float32 [count, vocabulary])."""

    __slots__ = ("_delivered",)
    wants_logits = True
    reuses = False  # every row is wanted

    def __init__(self, tokens: SequenceOf[int], outbox: Outlet, chunk: int) -> None:
        super().__init__(tokens, len(tokens), outbox, chunk=chunk)
        self.demand = len(self.tokens)
        self._delivered = 0  # after a preemption, rows before this one are there already

    def rows(self, chunk: Chunk) -> range:
        return range(max(0, self._delivered - chunk.start), chunk.count)

    def report(self, chunk: Chunk, output: StepOutput, first_row: int) -> bool:
        count = len(self.rows(chunk))
        if count:
            assert output.logits is not None
            self.put((self._delivered, output.logits[first_row : first_row + count].copy()))
            self._delivered += count
        return self._delivered == len(self.tokens)
