"""A sequence of tokens on its way through the model, and the part of it that a step computes."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from gptoss.engine.pages import SequencePages


class Sequence:
    """Tokens on their way through the model.

    Attributes:
        tokens: prompt and output so far; the engine appends what was sampled.
        limit: most tokens that will ever need keys and values.
        chunk: most tokens of it in one step; None leaves that to the scheduler.
        computed: how many of `tokens` have their keys and values in pages.
        preemptions: how often it was sent back to the queue.
        cached: how many tokens the prefix cache had when it was first admitted.
        reuses: whether it may begin behind what was computed before.
        priority: lower goes first. client: whom it is for; clients share alike.
    """

    __slots__ = (
        "cached",
        "chunk",
        "client",
        "computed",
        "limit",
        "pages",
        "preemptions",
        "priority",
        "tokens",
    )
    reuses = True

    def __init__(
        self,
        tokens: SequenceOf[int],
        limit: int,
        chunk: int | None = None,
        *,
        priority: int = 0,
        client: str = "",
    ) -> None:
        self.tokens = list(tokens)
        self.limit = limit
        self.chunk = chunk
        self.priority = priority
        self.client = client
        self.computed = 0
        self.cached: int | None = None
        self.preemptions = 0
        self.pages: SequencePages | None = None  # held while running

    @property
    def pending(self) -> int:
        """Tokens not computed yet; 1 while decoding."""
        return len(self.tokens) - self.computed

    def draft(self, most: int, sequences: int) -> tuple[int, ...]:
        """At most so many tokens that may come behind the present ones, to be computed with them.

        sequences: how many share the step.
        """
        return ()


@dataclass(frozen=True)
class Chunk:
    """Tokens start … start+count-1 of a sequence, to be computed in one step.

    Attributes:
        draft: the last ones of these tokens where they are guesses, not the sequence's own yet.
        reaches_end: whether the step computes the sequence's last token, so that a next one can be
            drawn.
    """

    sequence: Sequence
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
        return [*own, *self.draft]
