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
        max_chunk: most tokens of it in one step; None leaves that to the scheduler.
        computed: how many of `tokens` have their keys and values in pages, or will have them after
            the step in progress.
        pages: held while it runs; None while it waits.
        preemptions: how often it was sent back to the queue.
        cached: how many tokens the prefix cache had when it was first admitted.
        reuses: whether it may start from a prefix that was computed before.
        priority: lower goes first.
        client: whom it is for; clients share the engine alike.
        account: of its request; the requests of one client share alike.
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
        "reuses",
        "tokens",
    )

    def __init__(
        self,
        tokens: SequenceOf[int],
        limit: int,
        max_chunk: int | None = None,
        *,
        reuses: bool = True,
        priority: int = 0,
        client: str = "",
        account: Account | None = None,
    ) -> None:
        self.tokens = list(tokens)
        self.limit = limit
        self.max_chunk = max_chunk
        self.reuses = reuses
        self.priority = priority
        self.client = client
        self.account = Account() if account is None else account
        self.computed = 0
        self.cached: int | None = None
        self.preemptions = 0
        self.pages: SequencePages | None = None
        self.place = 0
        self._unknown = False

    @property
    def pending(self) -> int:
        """Tokens not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed

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
