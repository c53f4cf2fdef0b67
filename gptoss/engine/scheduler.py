"""Continuous batching: which tokens of which sequences go into the next step.

Policy only; nothing here knows models, text or sampling. The rules:

1. Every running sequence that waits for its next token gets it in every step (decode first).
2. What remains of the step's token budget goes to prompts, oldest first, in chunks.
3. A waiting sequence is admitted when pages for all its present tokens are free and not owed to a
   prompt that is still entering. `queue` says who comes first.
4. An admitted sequence starts after the prefix that the cache has of it. One that shares a long
   prefix with a prompt that is entering waits until it can take that from the cache.
5. Where all places or pages are taken, and somebody waits who has clearly fewer of them, the latest
   admitted sequence of who has most is sent back. Prompts of several clients enter in the order of
   what was computed for them, and half of the budget is kept for one who has just come.
6. When a running sequence needs a page and none is free, the latest admitted one of the lowest
   priority is sent back to the head of the queue and gives up its pages. The same happens when
   one of a higher priority finds no room. Its tokens, output included, are computed again when it
   returns (unless the cache still has them), so nothing but time is lost.

The first of the running sequences can thus always take pages from all others, and a sequence is
refused on arrival unless it fits the empty pool: some sequence advances in every step.

A step: `plan` says what it computes, each chunk's sequence is told to `advance` when it begins, and
`update` takes what became of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

from gptoss.engine.pages import PagePool, SequencePages, first_block_seen, peak_pages
from gptoss.engine.prefix_cache import Node, PrefixCache
from gptoss.engine.queue import Waiting
from gptoss.engine.sequence import Account, Chunk, Sequence
from gptoss.errors import Error

SHARED_BLOCKS = 4  # a prefix shared with a prompt that enters is waited for from this length on
MAX_PASSED = 64  # sequences that wait for a prefix are passed over, but not more in one step
MAX_SENT_BACK = 16  # sequences in one step for the sake of others' shares
MAX_CLIENTS = 4096  # whose service is remembered


class Scheduler:
    """Owns the page pool, the queue of waiting sequences and the running ones.

    Args:
        pages: size of the pool.
        page_size: tokens per page.
        window: width of the sliding attention window, in tokens, the query's own included.
        step_tokens: most tokens in one step.
        max_running: most sequences in one step.
        prefix_cache: whether prefixes that were computed before are used again.
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
        self.waiting = Waiting(self._client)
        self.running: list[Sequence] = []  # by priority, then in order of admission
        # Since the start.
        self.preemptions = 0
        self.prompt_tokens = 0  # of admitted sequences,
        self.cached_tokens = 0  # and how many of these the prefix cache had
        self._clients: dict[str, Account] = {}
        self._max_clients = MAX_CLIENTS  # before those that are not active are forgotten
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
        if not self.running and not len(self.waiting):
            self._clients.clear()  # nobody has to wait for what somebody had before
        client, account = self._client(sequence), sequence.account
        # A client that was away has saved up nothing: it begins level with the least served.
        if not client.active:
            client.served = max(client.served, self._least_client(sequence))
        if not account.active:
            account.served = max(account.served, self._least_request(sequence))
        client.active += 1
        account.active += 1
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its pages; known or not."""
        if sequence.pages is not None:
            self.running.remove(sequence)
            self._free(sequence)
        elif sequence.place:
            self.waiting.remove(sequence)
        else:
            return
        sequence.place = 0
        self._client(sequence).active -= 1
        sequence.account.active -= 1

    def reset(self) -> None:
        """Forget every sequence and everything computed, and start with a full pool."""
        self.pool = PagePool(self.pool.size)
        if self._cache is not None:
            self._cache = PrefixCache(self.pool, self.page_size, self.window)
        for sequence in (*self.running, *self.waiting):
            sequence.account.active = 0
        self.waiting = Waiting(self._client)
        self.running.clear()
        self._clients.clear()
        self._blocked = None

    def plan(self) -> list[Chunk]:
        """The next step: at most one chunk per sequence, with pages for every token in it."""
        self._make_way()
        sent_back = self._share()
        try:
            return self._plan()
        finally:
            for sequence in sent_back:
                self.waiting.restore(sequence)

    def _plan(self) -> list[Chunk]:
        running = self.running
        budget = self.step_tokens - sum(s.computed + 1 == len(s.tokens) for s in running)
        kept = budget // 2 if self._newcomer_waits() else 0
        budget -= kept
        rows = 0  # of sequences that want more than their last
        chunks: list[Chunk] = []
        preempted_before = self.preemptions
        for sequence in self._in_turn():
            pages = sequence.pages
            if pages is None:
                continue  # it was preempted in this loop
            start = sequence.computed
            pending = len(sequence.tokens) - start
            count = 1 if pending == 1 else sequence.most(start, budget, rows)
            if count == 0 or not self._make_room(sequence, start + count):
                continue
            chunks.append(Chunk(sequence, pages, start, count, count == pending))
            budget -= 0 if pending == 1 else count
            rows += sequence.rows_of(start, count)
        if self.preemptions != preempted_before:
            return [chunk for chunk in chunks if chunk.sequence.pages is chunk.pages]
        if len(self.waiting):
            self._admit(budget + kept, rows, chunks)
        return chunks

    def extend(self, chunk: Chunk, draft: tuple[int, ...]) -> Chunk:
        """The chunk with a draft after its tokens, as far as pages are free.

        No sequence gives up pages for a draft.
        """
        pages = chunk.pages
        while draft and pages.missing(chunk.end + len(draft)) > self.pool.free:
            draft = draft[:-1]
        if not draft:
            return chunk
        pages.grow(chunk.end + len(draft))
        return replace(chunk, count=chunk.count + len(draft), draft=draft)

    def update(self, chunk: Chunk) -> None:
        """The step ran, and the tokens it drew are known: keys and values are in their pages."""
        sequence = chunk.sequence
        sequence.read = max(sequence.read, chunk.end)
        self._client(sequence).served += chunk.count
        sequence.account.served += chunk.count
        pages = chunk.pages
        if sequence.pages is not pages:
            return  # removed or preempted while the step ran
        end = chunk.end
        if chunk.draft:  # of which some were wrong
            end = sequence.computed = min(end, len(sequence.tokens) - 1)
        completed = end // self.page_size > chunk.start // self.page_size
        if completed and self._cache is not None and sequence.reuses:
            self._cache.extend(pages, sequence.tokens, end, sequence.salt)
        if first_block_seen(end, self.window, self.page_size) > pages.first_sliding:
            pages.trim(end)

    def _client(self, sequence: Sequence) -> Account:
        """What was computed for a sequence's client."""
        account = self._clients.get(sequence.client)
        if account is None:
            if len(self._clients) >= self._max_clients:
                self._clients = {c: a for c, a in self._clients.items() if a.active}
                self._max_clients = max(MAX_CLIENTS, 2 * len(self._clients))
            account = self._clients[sequence.client] = Account()
        return account

    def _least_client(self, sequence: Sequence) -> int:
        """The least that was computed for a client of those that run, or wait beside this one."""
        served = [self._client(s).served for s in self.running]
        return min((*served, *self.waiting.least_client(sequence)), default=0)

    def _least_request(self, sequence: Sequence) -> int:
        """The same for the requests of its client."""
        served = [s.account.served for s in self.running if s.client == sequence.client]
        return min((*served, *self.waiting.least_request(sequence)), default=0)

    def _make_way(self) -> None:
        """Send back sequences for the sake of one of a higher priority that finds no room."""
        while self.running:
            sequence = self.waiting.first()
            if sequence is None or sequence.priority >= self.running[-1].priority:
                return
            if self._enters_already(sequence, self._known_blocks(sequence)):
                return  # it waits by itself
            if len(self.running) < self.max_running:
                pages = self._room_for(sequence, self._owed())
                if pages is not None:
                    pages.release()
                    return
            self._preempt()

    def _share(self) -> list[Sequence]:
        """Take places and pages from who has most for the sake of who has few and finds no room.
        The sequences that lose theirs: they wait again once the other one is admitted, or the first
        of them would be admitted in its stead.
        """
        sequence = self.waiting.first()
        if sequence is None or not self.running:
            return []
        left, free = list(self.running), self.pool.free
        victims: list[Sequence] = []
        while not self._fits(sequence, left, free):
            victim = self._one_too_many(sequence, left)
            if victim is None or len(victims) == MAX_SENT_BACK:
                return []  # it would not fit then either
            left.remove(victim)
            free += victim.pages.held if victim.pages is not None else 0
            victims.append(victim)
        if victims and self._enters_already(sequence, self._known_blocks(sequence)):
            return []
        for victim in victims:
            self._send_back(victim)
            victim.sent_back = False
        return victims

    def _fits(self, sequence: Sequence, running: SequenceOf[Sequence], free: int) -> bool:
        """Whether there are a place and pages beside these, of which so many would be free."""
        if len(running) >= self.max_running:
            return False
        owed = sum(self._owed_to(s, s.pages) for s in running if s.pages is not None)
        return not running or self.pages_for(len(sequence.tokens)) <= free - owed - len(running)

    def _one_too_many(self, sequence: Sequence, running: SequenceOf[Sequence]) -> Sequence | None:
        """One of these, of the client that has most, or else of its own client's request that has:
        at least two more than this one's. None: no share is that much larger.
        """
        equals = [other for other in running if other.priority >= sequence.priority]
        clients = Counter(other.client for other in equals)
        client = max(clients, key=clients.__getitem__, default=sequence.client)
        if clients[client] >= clients[sequence.client] + 2:
            return next(other for other in reversed(equals) if other.client == client)
        requests = Counter(other.account for other in equals if other.client == sequence.client)
        account = max(requests, key=requests.__getitem__, default=sequence.account)
        if requests[account] >= requests[sequence.account] + 2:
            return next(other for other in reversed(equals) if other.account is account)
        return None

    def _newcomer_waits(self) -> bool:
        """Whether a request could be admitted of which nothing runs, while prompts enter."""
        if len(self.running) >= self.max_running or all(s.pending == 1 for s in self.running):
            return False
        sequence = self.waiting.first()
        if sequence is None or any(s.account is sequence.account for s in self.running):
            return False
        if self._blocked is not None and self._blocked[0] is sequence:
            return False
        if any(s.pending > 1 and s.priority < sequence.priority for s in self.running):
            return False
        # One that begins as a prompt that enters is better off with what that computes.
        shared = SHARED_BLOCKS * self.page_size
        return not any(
            s.pending > 1
            and s.salt == sequence.salt
            and s.tokens[:shared] == sequence.tokens[:shared]
            for s in self.running
        )

    def _in_turn(self) -> SequenceOf[Sequence]:
        """The running ones: those that wait for a token, then prompts, of clients who have had less
        first.
        """
        entering = [s for s in self.running if s.pending > 1]
        if len({s.client for s in entering}) < 2:
            return tuple(self.running)
        entering.sort(key=lambda s: (s.priority, self._client(s).served))
        return [*(s for s in self.running if s.pending == 1), *entering]

    def _admit(self, budget: int, rows: int, chunks: list[Chunk]) -> None:
        passed: list[Sequence] = []
        owed = self._owed()
        while budget > 0 and len(self.running) < self.max_running and len(passed) < MAX_PASSED:
            sequence = self.waiting.first()
            if sequence is None:
                break
            pages = self._room_for(sequence, owed)
            if pages is None:
                break
            self.waiting.remove(sequence)
            start = pages.blocks * self.page_size
            count = sequence.most(start, budget, rows)
            if count == 0 or self._enters_already(sequence, pages.blocks):
                pages.release()
                passed.append(sequence)
                continue
            sequence.pages = pages
            sequence.computed = start
            self.prompt_tokens += len(sequence.tokens)
            self.cached_tokens += sequence.computed
            if sequence.cached is None:
                sequence.cached = sequence.computed
            place = len(self.running)
            while place and self.running[place - 1].priority > sequence.priority:
                place -= 1
            self.running.insert(place, sequence)
            pages.grow(start + count)
            pending = sequence.pending
            chunks.append(Chunk(sequence, pages, start, count, count == pending))
            budget -= count
            rows += sequence.rows_of(start, count)
            owed += self._owed_to(sequence, pages)
        for sequence in reversed(passed):
            self.waiting.restore(sequence)

    def _room_for(self, sequence: Sequence, owed: int) -> SequencePages | None:
        """Its pages to start with, those that the cache has; None where the rest does not fit.

        owed: pages that running sequences still need.
        """
        # One page of headroom for each running sequence: without it, those admitted last would be
        # preempted as soon as the others pass a page border.
        spare = self.pool.free - owed - len(self.running)
        if self.running and self._blocked is not None:
            blocked, spare_then = self._blocked
            if blocked is sequence and spare <= spare_then:
                return None  # as before: spares looking through the cache in every step
        pages = SequencePages(self.pool, self.page_size, self.window)
        free = self.pool.free
        if self._cache is not None and sequence.reuses:
            path: list[Node] = self._cache.find(sequence.prefix, sequence.salt)
            self._cache.adopt(pages, path)
        left = spare - (free - self.pool.free)
        if self.running and self.pages_for(len(sequence.tokens)) - pages.held > left:
            pages.release()
            self._blocked = sequence, spare
            return None
        self._blocked = None
        return pages

    def _known_blocks(self, sequence: Sequence) -> int:
        """Blocks of its prefix that the cache has."""
        if self._cache is None or not sequence.reuses:
            return 0
        return len(self._cache.find(sequence.prefix, sequence.salt))

    def _enters_already(self, sequence: Sequence, blocks: int) -> bool:
        """Whether a running prompt is about to compute a good part of what this one needs."""
        if self._cache is None or not sequence.reuses:
            return False
        end = (blocks + SHARED_BLOCKS) * self.page_size
        if len(sequence.prefix) <= end:
            return False
        return any(
            other.reuses
            and other.pages is not None
            and other.pages.cached * self.page_size < end
            and other.salt == sequence.salt
            and other.tokens[:end] == sequence.tokens[:end]
            for other in self.running
        )

    def _owed(self) -> int:
        """Pages that running sequences still need for the tokens they have."""
        return sum(self._owed_to(s, s.pages) for s in self.running if s.pages is not None)

    def _owed_to(self, sequence: Sequence, pages: SequencePages) -> int:
        length = len(sequence.tokens)
        if pages.blocks * self.page_size >= length:
            return 0
        return max(0, self.pages_for(length) - pages.held)

    def _make_room(self, sequence: Sequence, end: int) -> bool:
        """Take the pages for tokens up to `end`, preempting if need be; False if it hit itself."""
        pages = sequence.pages
        assert pages is not None
        if pages.blocks * self.page_size >= end:
            return True
        missing = pages.missing(end)
        while self.pool.free < missing:
            if self._preempt() is sequence:
                return False
        pages.grow(end)
        return True

    def _preempt(self) -> Sequence:
        """Send back the last of the running sequences."""
        victim = self.running[-1]
        self._send_back(victim)
        victim.sent_back = True
        self.waiting.restore(victim)
        return victim

    def _send_back(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._free(victim)
        victim.preemptions += 1
        self.preemptions += 1

    @staticmethod
    def _free(sequence: Sequence) -> None:
        if sequence.pages is not None:
            sequence.pages.release()
        sequence.pages = None
        sequence.computed = 0
