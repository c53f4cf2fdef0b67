"""What a sequence is computed for: a text to generate, or logits to return.

A request has a sequence, knows which logits it wants of a step, and what to make of them. Requests
live on the worker's thread; what they produce goes to their outbox, a queue that any thread may
read.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as SequenceOf
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from gptoss.engine.sampling import Draw, SamplerState
from gptoss.engine.sequence import Chunk, Sequence
from gptoss.native.arrays import StepOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gptoss.engine.drafts import Drafter

# (key of the request, what it produced in order; an exception is the last thing it produces)
Entry = tuple[Any, list[Any]]
Outbox = SimpleQueue[Entry]


class Outlet(Protocol):
    """Where a request puts its entries, on the worker's thread: an Outbox, or an event loop's."""

    def put(self, item: Entry, /) -> None: ...


class Request:
    """A sequence with a purpose.

    A step's results are taken in two parts: `take` does what the next step must know of, `report`
    what readers see, which may be done while the next step runs.

    Attributes:
        sequence: its tokens.
        key: tells the requests of a shared outbox apart.
        demand: how many items its reader wants by now; the worker runs while some request owes any.
        produced: how many it has produced.
        eager: whether each item goes to the outbox at once; else all go when the request is done,
            which spares a reader that waits for the end from being woken by every token.
        sampler: parameters for its rows; None: the most likely token, no extras.
        drafter: drafts tokens ahead; None: none are drafted.
        wants_logits: whether the step must return whole rows of logits.
        over: whether it is known that no further step is needed.
    """

    wants_logits = False

    def __init__(self, sequence: Sequence, outbox: Outlet, key: Hashable = None) -> None:
        self.sequence = sequence
        self.outbox = outbox
        self.key = key
        self.demand = 1
        self.produced = 0
        self.eager = True
        self.over = False
        self.sampler: SamplerState | None = None
        self.drafter: Drafter | None = None
        self.created = perf_counter()
        self.started: float | None = None  # when its first step began
        self._ready: list[Any] = []  # produced, not in the outbox yet

    def rows(self, chunk: Chunk) -> range:
        """Which tokens of the chunk, counted from its start, want logits."""
        raise NotImplementedError

    def mask(self) -> NDArray[np.uint32] | None:
        """A bit for each token, those that may be drawn next set; None: any may."""
        return None

    def draws(self, chunk: Chunk, rows: range) -> list[Draw]:
        """How each of the rows asked for becomes a token; called when the step begins."""
        # Several with a draft, where no mask is.
        return [Draw(self.sampler, ahead, None if ahead else self.mask())
                for ahead in range(len(rows))]  # fmt: skip

    def take(self, chunk: Chunk, output: StepOutput, rows: range) -> int:
        """Take the rows asked for, `rows` of the output; how many items they will make."""
        return 0

    def report(self, chunk: Chunk, output: StepOutput, rows: range) -> bool:
        """Put what was taken; True when the request is done."""
        raise NotImplementedError

    def done_so_far(self) -> tuple[int, int]:
        """(tokens of the prompt that were read, tokens that were written); from any thread."""
        return self.sequence.read, 0

    def put(self, item: Any) -> None:
        """Produce an item; `deliver` sends it off."""
        self.produced += 1
        self._ready.append(item)

    def deliver(self, done: bool) -> None:
        """Send what is ready to the reader, unless the reader waits for the end."""
        if self._ready and (done or self.eager):
            self.outbox.put((self.key, self._ready))
            self._ready = []


class Scoring(Request):
    """Wants the logits of every token; puts (first position, float32 [count, vocabulary]).

    Args:
        max_chunk: most tokens of a step, each of which brings a whole row of logits.
    """

    wants_logits = True

    def __init__(self, tokens: SequenceOf[int], outbox: Outlet, max_chunk: int) -> None:
        # Every row is wanted: no prefix is taken from the cache.
        super().__init__(Sequence(tokens, len(tokens), max_chunk, reuses=False), outbox)
        self.demand = len(tokens)
        self._length = len(tokens)
        self._delivered = 0  # after a preemption, rows before this one are there already

    def rows(self, chunk: Chunk) -> range:
        return range(max(0, self._delivered - chunk.start), chunk.count)

    def report(self, chunk: Chunk, output: StepOutput, rows: range) -> bool:
        # Some may have been delivered since the rows were asked for.
        known = self._delivered - (chunk.end - len(rows))
        rows = rows[known:]
        if rows:
            assert output.logits is not None
            self.put((self._delivered, output.logits[rows.start : rows.stop].copy()))
            self._delivered += len(rows)
        return self._delivered == self._length
