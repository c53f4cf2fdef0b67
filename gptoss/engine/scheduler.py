"""Continuous batching: which tokens of which sequences go into the next step.

Policy only; nothing here knows models, text or sampling. The rules:

1. Every running sequence that waits for its next token gets it in every step (decode first).
2. What remains of the step's token budget goes to prompts, oldest first, in chunks.
3. A waiting sequence is admitted when pages for all its present tokens are free and not owed to a
   prompt that is still entering. Of those that wait the next one is: of the highest priority; sent
   back before; of the client that has had the least computed; first come, first served.
4. An admitted sequence begins behind what the prefix cache has of it. One that shares a long
   beginning with a prompt that is entering waits until it can take that from the cache.
5. When a running sequence needs a page and none is free, the latest admitted one of the lowest
   priority is sent back to the head of the queue and gives up its pages. So it is when one of a
   higher priority finds no room. Its tokens, output included, are computed again when it returns
   (unless the cache still has them), so nothing but time is lost.

The first of the running sequences can thus always take pages from all others, and a sequence is
refused on arrival unless it fits the empty pool: some sequence advances in every step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from gptoss.engine.pages import PagePool, SequencePages, peak_pages
from gptoss.engine.prefix_cache import Node, PrefixCache
from gptoss.engine.sequence import Chunk, Sequence
from gptoss.errors import Error

SHARED_BLOCKS = 4  # a beginning shared with a prompt that enters is waited for from this length on
MOST_CLIENTS = 4096  # whose service is remembered


class Scheduler:
    """Owns the page pool, the queue of waiting sequences and the running ones.

    Args:
        pages: size of the pool.
        page_size: tokens per page.
        window: width of the sliding attention window, in tokens, the query's own included.
        step_tokens: most tokens in one step.
        max_running: most sequences in one step.
        prefix_cache: whether beginnings that were computed before are used again.
    """

    def __init__(
        self,
        pages: int,
        page_size: int,
        window: int,
        step_tokens: int = 512,
        max_running: int = 64,
        *,
        prefix_cache: bool = True,
    ) -> None:
        if not 1 <= max_running <= step_tokens:
            raise Error(
                f"max_batch: expected 1 to {step_tokens} (the tokens of one step), "
                f"found {max_running}",
                field="max_batch",
            )
        self.pool = PagePool(pages)
        self._cache = PrefixCache(self.pool, page_size, window) if prefix_cache else None
        self.page_size = page_size
        self.window = window
        self.step_tokens = step_tokens
        self.max_running = max_running
        self.waiting: deque[Sequence] = deque()  # in order of arrival, those sent back first
        self.running: list[Sequence] = []  # by priority, then in order of admission
        # Since the start.
        self.preemptions = 0
        self.prompt_tokens = 0  # of admitted sequences,
        self.cached_tokens = 0  # and how many of these the prefix cache had
        # Tokens computed for each client: the counter of Sheng et al., "Fairness in serving large
        # language models" (2024).
        self._service: dict[str, int] = {}
        # What did not fit, and the pages to spare then.
        self._blocked: tuple[Sequence, int] | None = None

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
                "raise kv_bytes, or lower max_tokens or the length of the prompt",
                field="prompt",
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; raises as `check` does."""
        self.check(sequence)
        active = {s.client for s in (*self.running, *self.waiting)}
        if sequence.client not in active:
            # Who was away has saved up nothing.
            least = min((self._service.get(client, 0) for client in active), default=0)
            self._service[sequence.client] = max(least, self._service.get(sequence.client, 0))
            if len(self._service) > MOST_CLIENTS:
                active.add(sequence.client)
                self._service = {c: n for c, n in self._service.items() if c in active}
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its pages; known or not."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def reset(self) -> None:
        """Forget every sequence and everything computed, and start with a full pool."""
        self.pool = PagePool(self.pool.size)
        if self._cache is not None:
            self._cache = PrefixCache(self.pool, self.page_size, self.window)
        self.waiting.clear()
        self.running.clear()
        self._blocked = None

    def plan(self) -> list[Chunk]:
        """The next step: at most one chunk per sequence, with pages for every token in it."""
        self._make_way()
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
            chunks.append(self._chunk(sequence, count))
            budget -= 0 if decoding else count
        if self.preemptions == preempted_before:
            self._admit(budget, chunks)
        return chunks

    def begin(self, chunk: Chunk) -> None:
        """The step is on its way: what is planned next comes behind it."""
        if chunk.sequence.pages is not None:
            chunk.sequence.computed = chunk.end

    def undo(self, chunk: Chunk) -> None:
        """The step failed: its tokens are to be computed still."""
        if chunk.sequence.pages is not None:
            chunk.sequence.computed = chunk.start

    def commit(self, chunk: Chunk) -> None:
        """The step ran, and the tokens it drew are known: keys and values are in their pages."""
        sequence = chunk.sequence
        self._service[sequence.client] = self._service.get(sequence.client, 0) + chunk.count
        if sequence.pages is None:
            return  # removed or preempted while the step ran
        end = chunk.end
        if chunk.draft:  # of which some were wrong
            end = sequence.computed = min(end, len(sequence.tokens) - 1)
        if self._cache is not None and sequence.reuses:
            self._cache.extend(sequence.pages, sequence.tokens, end)
        sequence.pages.trim(end)

    def add_guesses(self, chunks: list[Chunk]) -> list[Chunk]:
        """The same step, with guesses behind the tokens of those that decode.

        The step's tokens are all known by now. Where prompts enter or wait, there is enough to
        compute without guesses.
        """
        if self.waiting or any(chunk.count > 1 or not chunk.reaches_end for chunk in chunks):
            return chunks
        budget = self.step_tokens - len(chunks)
        found = []
        for chunk in chunks:
            draft = self._draft(chunk, budget, len(chunks))
            budget -= len(draft)
            found.append(replace(chunk, count=1 + len(draft), draft=draft) if draft else chunk)
        return found

    @staticmethod
    def _chunk(sequence: Sequence, count: int) -> Chunk:
        return Chunk(sequence, sequence.computed, count, reaches_end=count == sequence.pending)

    def _draft(self, chunk: Chunk, budget: int, sequences: int) -> tuple[int, ...]:
        """Guesses that fit; no sequence gives up pages for them."""
        sequence, pages = chunk.sequence, chunk.sequence.pages
        most = min(budget, sequence.limit - chunk.end)
        if most <= 0 or pages is None:
            return ()
        draft = sequence.draft(most, sequences)
        while draft and pages.missing(chunk.end + len(draft)) > self.pool.free:
            draft = draft[:-1]
        pages.grow(chunk.end + len(draft))
        return draft

    def _next(self, passed: set[int]) -> Sequence | None:
        """Of those that wait, who comes first; without those passed over."""
        best, rank = None, None
        for place, sequence in enumerate(self.waiting):
            if id(sequence) in passed:
                continue
            served = 0 if sequence.preemptions else self._service.get(sequence.client, 0)
            its = (sequence.priority, not sequence.preemptions, served, place)
            if rank is None or its < rank:
                best, rank = sequence, its
        return best

    def _make_way(self) -> None:
        """Send back sequences for the sake of one of a higher priority that finds no room."""
        while self.waiting and self.running:
            sequence = self._next(set())
            if sequence is None or sequence.priority >= self.running[-1].priority:
                return
            if self._enters_already(sequence, self._known_blocks(sequence)):
                return  # it waits by itself
            if len(self.running) < self.max_running:
                pages = self._room_for(sequence)
                if pages is not None:
                    pages.release()
                    return
            self._preempt()

    def _admit(self, budget: int, chunks: list[Chunk]) -> None:
        passed: set[int] = set()
        while budget > 0 and len(self.running) < self.max_running:
            sequence = self._next(passed)
            if sequence is None:
                break
            pages = self._room_for(sequence)
            if pages is None:
                break
            if self._enters_already(sequence, pages.blocks):
                pages.release()
                passed.add(id(sequence))
                continue
            self.waiting.remove(sequence)
            sequence.pages = pages
            sequence.computed = pages.blocks * self.page_size
            self.prompt_tokens += len(sequence.tokens)
            self.cached_tokens += sequence.computed
            if sequence.cached is None:
                sequence.cached = sequence.computed
            place = len(self.running)
            while place and self.running[place - 1].priority > sequence.priority:
                place -= 1
            self.running.insert(place, sequence)
            count = min(sequence.pending, budget, sequence.chunk or budget)
            pages.grow(sequence.computed + count)
            chunks.append(self._chunk(sequence, count))
            budget -= count

    def _room_for(self, sequence: Sequence) -> SequencePages | None:
        """Its pages to begin with, those that the cache has; None where the rest does not fit."""
        # One page of headroom for each running sequence: without it, those admitted last would be
        # preempted as soon as the others pass a page border.
        spare = self.pool.free - self._owed() - len(self.running)
        if self.running and self._blocked is not None:
            blocked, spare_then = self._blocked
            if blocked is sequence and spare <= spare_then:
                return None  # as before: spares looking through the cache in every step
        pages = SequencePages(self.pool, self.page_size, self.window)
        free = self.pool.free
        if self._cache is not None and sequence.reuses:
            path: list[Node] = self._cache.find(sequence.tokens)
            self._cache.adopt(pages, path)
        left = spare - (free - self.pool.free)
        if self.running and self.pages_for(len(sequence.tokens)) - pages.held > left:
            pages.release()
            self._blocked = sequence, spare
            return None
        self._blocked = None
        return pages

    def _known_blocks(self, sequence: Sequence) -> int:
        """Blocks of its beginning that the cache has."""
        if self._cache is None or not sequence.reuses:
            return 0
        return len(self._cache.find(sequence.tokens))

    def _enters_already(self, sequence: Sequence, blocks: int) -> bool:
        """Whether a running prompt is about to compute a good part of what this one needs."""
        if self._cache is None or not sequence.reuses:
            return False
        end = (blocks + SHARED_BLOCKS) * self.page_size
        if len(sequence.tokens) <= end:
            return False
        return any(
            other.reuses
            and other.pages is not None
            and other.pages.cached * self.page_size < end
            and other.tokens[:end] == sequence.tokens[:end]
            for other in self.running
        )

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
            if self._preempt() is sequence:
                return False
        sequence.pages.grow(end)
        return True

    def _preempt(self) -> Sequence:
        """Send back the last of the running sequences."""
        victim = self.running.pop()
        self._free(victim)
        victim.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(victim)
        return victim

    @staticmethod
    def _free(sequence: Sequence) -> None:
        if sequence.pages is not None:
            sequence.pages.release()
        sequence.pages = None
        sequence.computed = 0
