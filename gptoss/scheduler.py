"""Continuous batching: which tokens of which sequences go into the next step.

Policy only; nothing here knows models, text or sampling. The rules:

1. Every running sequence that waits for its next token gets it in every step (decode first).
2. What remains of the step's token budget goes to prompts, oldest first, in chunks.
3. A waiting sequence is admitted, first come first served, when pages for all its present tokens
   are free and not owed to a prompt that is still entering.
4. When a running sequence needs a page and none is free, the latest admitted one is sent back to
   the head of the queue and gives up its pages. Its tokens, output included, are computed again
   when it returns, so nothing but time is lost.

The oldest running sequence can thus always take pages from all others, and a sequence is refused
on arrival unless it fits the empty pool: some sequence advances in every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from gptoss.errors import Error
from gptoss.kv_cache import PagePool, SequencePages, peak_pages


class Sequence:
    """Tokens on their way through the model.

    Attributes:
        tokens: prompt and output so far; the engine appends what was sampled.
        limit: most tokens that will ever need keys and values.
        chunk: most tokens of it in one step; None leaves that to the scheduler.
        computed: how many of `tokens` have their keys and values in pages.
        preemptions: how often it was sent back to the queue.
    """

    __slots__ = ("chunk", "computed", "limit", "pages", "preemptions", "tokens")

    def __init__(self, tokens: SequenceOf[int], limit: int, chunk: int | None = None) -> None:
        self.tokens = list(tokens)
        self.limit = limit
        self.chunk = chunk
        self.computed = 0
        self.preemptions = 0
        self.pages: SequencePages | None = None  # held while running

    @property
    def pending(self) -> int:
        """Tokens not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Chunk:
    """Tokens start … start+count-1 of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def reaches_end(self) -> bool:
        """Whether the step computes the sequence's last token, so that a next one can be drawn."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """Owns the page pool, the queue of waiting sequences and the running ones.

    Args:
        pages: size of the pool.
        page_size: tokens per page.
        window: width of the sliding attention window, in tokens, the query's own included.
        step_tokens: most tokens in one step.
        max_running: most sequences in one step.
    """

    def __init__(
        self, pages: int, page_size: int, window: int, step_tokens: int = 512, max_running: int = 64
    ) -> None:
        if not 1 <= max_running <= step_tokens:
            raise Error(
                f"max_batch: expected 1 to {step_tokens} (the tokens of one step), "
                f"found {max_running}"
            )
        self.pool = PagePool(pages)
        self.page_size = page_size
        self.window = window
        self.step_tokens = step_tokens
        self.max_running = max_running
        self.waiting: deque[Sequence] = deque()  # next to be admitted first
        self.running: list[Sequence] = []  # in order of admission
        self.preemptions = 0  # since the start

    def pages_for(self, length: int) -> int:
        """Most pages a sequence of `length` tokens holds at once."""
        return peak_pages(length, self.step_tokens, self.window, self.page_size)

    def capacity(self) -> int:
        """Tokens of the longest sequence that fits the pool alone."""
        low, high = 0, self.pool.size * self.page_size
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self.pages_for(middle) <= self.pool.size else (low, middle - 1)
            )
        return low

    def check(self, sequence: Sequence) -> None:
        """Refuse a sequence that would not fit even if it had the whole pool.

        Safe to call from any thread: it looks at nothing that changes.

        Raises:
            Error: with the pages needed and the pages there are.
        """
        need = self.pages_for(sequence.limit)
        if need > self.pool.size:
            raise Error(
                f"request: {sequence.limit} tokens of prompt and output need {need} pages of KV "
                f"cache, and there are {self.pool.size} (enough for {self.capacity()} tokens); "
                "raise kv_bytes, or lower max_tokens or the length of the prompt"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; raises as `check` does."""
        self.check(sequence)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its pages; known or not."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def reset(self) -> None:
        """Forget every sequence and start with a full pool."""
        self.pool = PagePool(self.pool.size)
        self.waiting.clear()
        self.running.clear()

    def plan(self) -> list[Chunk]:
        """The next step: at most one chunk per sequence, with pages for every token in it."""
        budget = self.step_tokens - sum(s.pending == 1 for s in self.running)
        chunks: list[Chunk] = []
        preempted_before = self.preemptions
        for sequence in list(self.running):
            if sequence.pages is None:
                break  # it and all after it were preempted in this loop
            decoding = sequence.pending == 1
            count = 1 if decoding else min(sequence.pending, budget, sequence.chunk or budget)
            if count == 0 or not self._make_room(sequence, sequence.computed + count):
                continue
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget -= 0 if decoding else count
        if self.preemptions == preempted_before:
            self._admit(budget, chunks)
        return chunks

    def commit(self, chunk: Chunk) -> None:
        """The step ran: the chunk's keys and values are in their pages."""
        sequence = chunk.sequence
        if sequence.pages is None:
            return  # removed while the step ran
        sequence.computed = chunk.end
        sequence.pages.trim(chunk.end)

    def _admit(self, budget: int, chunks: list[Chunk]) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            # One page of headroom for each running sequence: without it, those admitted last
            # would be preempted as soon as the others pass a page border.
            spare = self.pool.free - self._owed() - len(self.running)
            if self.running and self.pages_for(len(sequence.tokens)) > spare:
                break
            self.waiting.popleft()
            sequence.pages = SequencePages(self.pool, self.page_size, self.window)
            self.running.append(sequence)
            count = min(sequence.pending, budget, sequence.chunk or budget)
            sequence.pages.grow(sequence.computed + count)
            chunks.append(Chunk(sequence, sequence.computed, count))
            budget -= count

    def _owed(self) -> int:
        """Pages that running sequences still need for the tokens they have."""
        return sum(
            max(0, self.pages_for(len(s.tokens)) - s.pages.held)
            for s in self.running
            if s.pages is not None and s.pages.missing(len(s.tokens)) > 0
        )

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Take the pages for tokens up to `end`, preempting if need be; False if it hit itself."""
        assert sequence.pages is not None
        missing = sequence.pages.missing(end)
        while self.pool.free < missing:
            victim = self.running.pop()
            self._free(victim)
            victim.preemptions += 1
            self.preemptions += 1
            self.waiting.appendleft(victim)
            if victim is sequence:
                return False
        sequence.pages.grow(end)
        return True

    @staticmethod
    def _free(sequence: Sequence) -> None:
        if sequence.pages is not None:
            sequence.pages.release()
        sequence.pages = None
        sequence.computed = 0
