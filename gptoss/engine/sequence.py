"""A sequence of tokens on its way through the model, and the part of it that a step computes."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from gptoss.engine.pages import SequencePages

UNKNOWN = 0  # stands for a token that a step in progress is to draw


class Account:
    """How many tokens were computed for somebody: a client, or one of its requests.

    Attributes:
        served: tokens.
        active: sequences of theirs that wait or run.
    """

    __slots__ = ("active", "served")

    def __init__(self) -> None:
        self.served = 0
        self.active = 0


class Sequence:
    """Tokens on their way through the model.

    Attributes:
        tokens: prompt and output so far. While a step draws the next one, UNKNOWN stands for it.
        limit: most tokens that will ever need keys and values.
        max_chunk: most rows of logits in one step, of all sequences, beside which this one may
            bring more; each token of its own from `rows_from` on brings one. None: no row but that
            of its last token.
        rows_from: place of the first token that brings a row.
        computed: how many of `tokens` have their keys and values in pages, or will have them after
            the step in progress.
        pages: held while it runs; None while it waits.
        read: how many of `tokens` have been computed at some time.
        preemptions: how often it was sent back to the queue.
        sent_back: whether it waits for pages that it had to give up, and goes first.
        cached: how many tokens the prefix cache had when it was first admitted.
        reuses: whether it may start from a prefix that was computed before, and is one for others.
        reusable: most tokens that it may start from; None: all but the last.
        priority: lower goes first.
        client: whom it is for; clients share the engine alike.
        account: of its request; the requests of one client share alike.
        salt: its prefix is another one than the same tokens with another salt.
        place: numbers arrivals; set by the queue.
    """

    __slots__ = (
        "_unknown",
        "account",
        "cached",
        "client",
        "computed",
        "limit",
        "max_chunk",
        "pages",
        "place",
        "preemptions",
        "priority",
        "read",
        "reusable",
        "reuses",
        "rows_from",
        "salt",
        "sent_back",
        "tokens",
    )

    def __init__(
        self,
        tokens: SequenceOf[int],
        limit: int,
        max_chunk: int | None = None,
        *,
        reuses: bool = True,
        reusable: int | None = None,
        rows_from: int = 0,
        priority: int = 0,
        client: str = "",
        account: Account | None = None,
        salt: str = "",
    ) -> None:
        self.tokens = list(tokens)
        self.limit = limit
        self.max_chunk = max_chunk
        self.rows_from = rows_from
        self.reuses = reuses
        self.reusable = reusable
        self.priority = priority
        self.client = client
        self.salt = salt
        self.account = Account() if account is None else account
        self.computed = 0
        self.cached: int | None = None
        self.preemptions = 0
        self.read = 0
        self.sent_back = False
        self.pages: SequencePages | None = None
        self.place = 0
        self._unknown = False

    @property
    def pending(self) -> int:
        """Tokens not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def prefix(self) -> SequenceOf[int]:
        """Its tokens as the prefix cache is to know them: at least the last is left to compute."""
        return self.tokens if self.reusable is None else self.tokens[: self.reusable + 1]

    def most(self, start: int, budget: int, rows: int) -> int:
        """How many tokens from `start` on one step may compute, which has room for `budget` more
        tokens and brings `rows` rows of logits already.
        """
        count = min(len(self.tokens) - start, budget)
        if self.max_chunk is None:
            return count
        return min(count, max(0, self.rows_from - start) + max(0, self.max_chunk - rows))

    def rows_of(self, start: int, count: int) -> int:
        """How many rows these tokens bring, if each brings one."""
        return 0 if self.max_chunk is None else max(0, start + count - max(start, self.rows_from))

    def advance(self, chunk: Chunk) -> None:
        """The step that computes `chunk` begins: what is planned next comes after it."""
        if self.pages is chunk.pages:
            self.computed = chunk.end
        if chunk.reaches_end and len(self.tokens) < self.limit:
            self.tokens.append(UNKNOWN)
            self._unknown = True

    def retreat(self, chunk: Chunk) -> None:
        """The step failed: its tokens are to be computed still."""
        self.settle(())
        if self.pages is chunk.pages:
            self.computed = chunk.start

    def settle(self, drawn: SequenceOf[int]) -> None:
        """Append the tokens that a step drew, in the place of the unknown one."""
        if self._unknown:
            self.tokens[-1:] = drawn
            self._unknown = False
        else:
            self.tokens += drawn


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start … start+count-1 of a sequence, to be computed in one step.

    Attributes:
        pages: those of the sequence when this was planned. A sequence that was sent back while the
            step ran has none, or others by now, of which nothing is computed.
        draft: the last of these tokens where they are only drafted, not the sequence's own yet.
        reaches_end: whether the step computes the sequence's last token, so that a next one can be
            drawn.
    """

    sequence: Sequence
    pages: SequencePages
    start: int
    count: int
    reaches_end: bool
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def token_ids(self) -> list[int]:
        own = self.sequence.tokens[self.start : self.end - len(self.draft)]
        return [*own, *self.draft] if self.draft else own
