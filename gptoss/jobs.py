"""What a sequence is computed for: a text to generate, or logits to return.

A job is a sequence of the scheduler that knows which logits it wants and what to make of them.
Jobs live on the worker's thread; what they produce goes to their outbox, a queue that any thread
may read.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from gptoss.batch import SamplerState
from gptoss.completion import Delta, FinishReason, Timing, TokenLogprob
from gptoss.sampling import SamplingParams
from gptoss.scheduler import Chunk, Sequence
from gptoss.textstream import TextStream

if TYPE_CHECKING:
    from gptoss._core import StepOutput

# (key of the job, what it produced in order; an exception is the last thing it produces)
Entry = tuple[Any, list[Any]]
Outbox = SimpleQueue[Entry]


class Outlet(Protocol):
    """Where a job puts its entries, on the worker's thread: an Outbox, or an event loop's."""

    def put(self, item: Entry, /) -> None: ...


class Job(Sequence):
    """A sequence with a purpose.

    Attributes:
        key: tells the jobs of a shared outbox apart.
        demand: how many items its reader wants by now; the worker runs while some job owes any.
        produced: how many it has produced.
        eager: whether each item goes to the outbox at once; else all go when the job is done,
            which spares a reader that waits for the end from being woken by every token.
        sampler: parameters for its rows; None: the most likely token, no extras.
        wants_logits: whether the step must return whole rows of logits.
    """

    __slots__ = (
        "_ready",
        "created",
        "demand",
        "eager",
        "key",
        "outbox",
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
    ) -> None:
        super().__init__(tokens, limit, chunk)
        self.outbox = outbox
        self.key = key
        self.demand = 1
        self.produced = 0
        self.eager = True
        self._ready: list[Any] = []  # produced, not in the outbox yet
        self.sampler: SamplerState | None = None
        self.created = perf_counter()
        self.started: float | None = None  # when its first step began

    def rows(self, chunk: Chunk) -> range:
        """Which tokens of the chunk, counted from its start, want logits."""
        raise NotImplementedError

    def receive(self, chunk: Chunk, output: StepOutput, first_row: int) -> bool:
        """Take the rows asked for, output's first_row onwards; True when the job is done."""
        raise NotImplementedError

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

    def __init__(self, tokens: SequenceOf[int], outbox: Outlet, chunk: int) -> None:
        super().__init__(tokens, len(tokens), outbox, chunk=chunk)
        self.demand = len(self.tokens)
        self._delivered = 0  # after a preemption, rows before this one are there already

    def rows(self, chunk: Chunk) -> range:
        return range(max(0, self._delivered - chunk.start), chunk.count)

    def receive(self, chunk: Chunk, output: StepOutput, first_row: int) -> bool:
        count = len(self.rows(chunk))
        if count:
            assert output.logits is not None
            self.put((self._delivered, output.logits[first_row : first_row + count].copy()))
            self._delivered += count
        return self._delivered == len(self.tokens)


class Generation(Job):
    """Draws tokens until one of the ends that its parameters name; puts a `Delta` for each.

    Args:
        most: how many tokens it may draw; the caller has fitted it to context and memory.
        stop_ids: tokens that end it.
        text: the decoder of its text; None where the model has no tokenizer.
        token_bytes: what a token id stands for, for log-probabilities.
    """

    __slots__ = ("_first", "_index", "_most", "_prompt", "_stop_ids", "_text", "_token_bytes")
    sampler: SamplerState

    def __init__(
        self,
        prompt: SequenceOf[int],
        params: SamplingParams,
        *,
        seed: int,
        most: int,
        stop_ids: frozenset[int],
        text: TextStream | None,
        token_bytes: Callable[[int], bytes],
        outbox: Outlet,
        key: Any = None,
        index: int = 0,
    ) -> None:
        # The last token drawn is never fed back, so it needs no keys and values.
        super().__init__(prompt, len(prompt) + most - 1, outbox, key)
        self.sampler = SamplerState(params, seed, prompt)
        self._prompt = len(prompt)
        self._most = most
        self._stop_ids = stop_ids
        self._text = text
        self._token_bytes = token_bytes
        self._index = index
        self._first = 0.0  # when its first token came

    def rows(self, chunk: Chunk) -> range:
        return range(chunk.count - 1 if chunk.reaches_end else chunk.count, chunk.count)

    def receive(self, chunk: Chunk, output: StepOutput, first_row: int) -> bool:
        if not chunk.reaches_end:
            return False
        assert output.tokens is not None
        now = perf_counter()
        if self.sampler.drawn == 0:
            self._first = now
        token = int(output.tokens[first_row])
        self.tokens.append(token)
        self.sampler.push(token)
        text, finish = self._advance(token)
        self.put(
            Delta(
                text=text,
                token_ids=(token,),
                finish_reason=finish,
                logprobs=self._logprobs(token, output, first_row),
                index=self._index,
                timing=self._timing(now) if finish else None,
            )
        )
        return finish is not None

    def _advance(self, token: int) -> tuple[str, FinishReason | None]:
        """(text that the token adds, why it is the last one, if it is)."""
        ends = token in self._stop_ids
        exhausted = self.sampler.drawn == self._most
        text, stopped = "", False
        if self._text is not None:
            if not ends:
                text, stopped = self._text.push(token)
            if not stopped and (ends or exhausted):
                rest, stopped = self._text.finish()
                text += rest
        if ends or stopped:
            return text, "stop"
        return text, "length" if exhausted else None

    def _logprobs(
        self, token: int, output: StepOutput, row: int
    ) -> tuple[TokenLogprob, ...] | None:
        wanted = self.sampler.params.logprobs
        if wanted is None:
            return None
        assert output.top_ids is not None and output.top_logprobs is not None
        assert output.logprobs is not None
        top = tuple(
            TokenLogprob(int(i), self._token_bytes(int(i)), float(logprob))
            for i, logprob in zip(
                output.top_ids[row, :wanted], output.top_logprobs[row, :wanted], strict=True
            )
            if i >= 0
        )
        chosen = float(output.logprobs[row])
        return (TokenLogprob(token, self._token_bytes(token), chosen, top),)

    def _timing(self, now: float) -> Timing:
        started = self.created if self.started is None else self.started
        return Timing(
            prompt_tokens=self._prompt,
            completion_tokens=self.sampler.drawn,
            queue_seconds=started - self.created,
            prefill_seconds=self._first - started,
            decode_seconds=now - self._first,
        )
