"""A request that generates text: draws tokens until one of its ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from collections.abc import Sequence as SequenceOf
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gptoss.engine.drafts import Drafter
from gptoss.engine.sampling import Draw, SamplerState
from gptoss.engine.scores import Scorer
from gptoss.engine.sequence import Account, Chunk, Sequence
from gptoss.engine.text import TextStream
from gptoss.native.arrays import StepOutput
from gptoss.request import Delta, FinishReason, SamplingParams, Score, Timing, TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

from gptoss.engine.request import Outlet, Request


class Constraint(Protocol):
    """Says which tokens a text may go on with."""

    @property
    def ended(self) -> bool:
        """Whether the text is whole, and nothing may follow, not even an end token."""
        ...

    def mask(self) -> NDArray[np.uint32] | None:
        """A bit for each token of the vocabulary, those that may come next set; None: any may."""
        ...

    def push(self, token: int, /) -> None:
        """The token came."""
        ...


class Generation(Request):
    """Draws tokens until one of the ends that its parameters name; puts a `Delta` for each.

    Args:
        max_tokens: most tokens it may draw; the caller has fitted it to context and memory.
        stop_ids: tokens that end it.
        text: the decoder of its text; None where the model has no tokenizer.
        token_bytes: what a token id stands for, for log-probabilities.
        constraint: says which tokens may come; None: any.
        drafter: drafts tokens; None: none are drafted.
        scorer: scores the prompt on the way; None: nobody asked. max_rows: most rows of logits of
            a step, for that.
        vocab_size: of the logits; needed where there is no end before some number of tokens.
    """

    sampler: SamplerState

    def __init__(
        self,
        prompt: SequenceOf[int],
        params: SamplingParams,
        *,
        seed: int,
        max_tokens: int,
        stop_ids: frozenset[int],
        text: TextStream | None,
        token_bytes: Callable[[int], bytes],
        outbox: Outlet,
        key: Hashable = None,
        index: int = 0,
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
        scorer: Scorer | None = None,
        max_rows: int | None = None,
        vocab_size: int = 0,
        priority: int = 0,
        client: str = "",
        account: Account | None = None,
        salt: str = "",
    ) -> None:
        # The last token drawn is never fed back, so it needs no keys and values.
        limit = len(prompt) + max_tokens - 1
        sequence = Sequence(
            prompt,
            limit,
            None if scorer is None else max_rows,
            reusable=None if scorer is None else 0,
            priority=priority,
            client=client,
            account=account,
            salt=salt,
        )
        super().__init__(sequence, outbox, key)
        self.sampler = SamplerState(params, seed, prompt)
        self.prompt_tokens = len(prompt)
        self._max_tokens = max_tokens
        self._stop_ids = stop_ids
        self._text = text
        self._token_bytes = token_bytes
        self._index = index
        self._constraint = constraint
        self._scorer = scorer
        self._vocab_size = vocab_size
        self._no_end: NDArray[np.uint32] | None = None  # a mask without what ends it
        # What is allowed or punished after a draft would have to be known before it is right.
        free = constraint is None and not self.sampler.tracks
        self._learning = drafter if free else None
        self.drafter = self._learning if self._may_end else None
        self._first = 0.0  # when its first token came
        self._taken: list[tuple[int, int]] = []  # (token, row of the output), not reported yet
        self._reported = 0

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The tokens of the prompt."""
        return tuple(self.sequence.tokens[: self.prompt_tokens])

    @property
    def _may_end(self) -> bool:
        """Whether the token that is drawn next may be one that ends the text."""
        return self.sampler.drawn >= self.sampler.params.min_tokens

    def rows(self, chunk: Chunk) -> range:
        wanted = _drawn(chunk)
        first = chunk.count - wanted
        if self._scorer is not None:
            scored = self._scorer.rows(chunk)
            first = scored.start if scored else first
            if not wanted:
                return scored
        return range(first, chunk.count)

    def draws(self, chunk: Chunk, rows: range) -> list[Draw]:
        wanted = _drawn(chunk)
        drawn = super().draws(chunk, range(wanted))
        scored = len(rows) - wanted
        if self._scorer is None or scored == 0:
            return drawn
        return self._scorer.draws(chunk, scored) + drawn

    def mask(self) -> NDArray[np.uint32] | None:
        # For one row: nothing is drafted where there is a mask.
        allowed = None if self._constraint is None else self._constraint.mask()
        if self._may_end or not self._stop_ids:
            return allowed
        if self._no_end is None:
            self._no_end = _all_but(self._stop_ids, self._vocab_size)
        if allowed is None:
            return self._no_end
        # Where a grammar allows nothing but the end, it is the end.
        left = allowed & self._no_end
        return left if left.any() else allowed

    def take(self, chunk: Chunk, output: StepOutput, rows: range) -> int:
        if self._scorer is not None:
            scored = len(rows) - _drawn(chunk)
            self._scorer.take(chunk, output, rows[:scored])
            rows = rows[scored:]
            if self._scorer.done:
                self.sequence.max_chunk = None  # should it be computed again
        if not chunk.reaches_end:
            return 0
        assert output.tokens is not None
        drawn = []
        for row, drafted in zip(rows, (*chunk.draft, None), strict=True):
            token = int(output.tokens[row])
            drawn.append(token)
            self._taken.append((token, row))
            self.sampler.push(token)
            self.over = token in self._stop_ids or self.sampler.drawn == self._max_tokens
            if self._constraint is not None and not self.over:
                self._constraint.push(token)
                self.over = self._constraint.ended
            if self.over or token != drafted:
                break
        self.sequence.settle(drawn)
        if self._learning is not None:
            self._learning.learn(drawn, chunk.draft)
            self.drafter = self._learning if self._may_end else None
        return len(drawn)

    def report(self, chunk: Chunk, output: StepOutput, rows: range) -> bool:
        if not chunk.reaches_end:
            return False
        taken, self._taken = self._taken, []
        now = perf_counter()
        if self._reported == 0:
            self._first = now
        for token, row in taken:
            self._reported += 1
            last = self.over and row == taken[-1][1]
            text, finish = self._advance(token, last)
            self.put(
                Delta(
                    text=text,
                    token_ids=(token,),
                    finish_reason=finish,
                    logprobs=self._logprobs(token, output, row),
                    index=self._index,
                    timing=self.timing(now) if finish else None,
                    prompt=self._take_score(),
                )
            )
            if finish is not None:
                return True
        return False

    def _take_score(self) -> Score | None:
        """Of the prompt, for the first delta."""
        scorer, self._scorer = self._scorer, None
        return None if scorer is None else scorer.score

    def _advance(self, token: int, last: bool) -> tuple[str, FinishReason | None]:
        """(text that the token adds, why it is the last one, if it is)."""
        ends = token in self._stop_ids
        may_stop = self._reported >= self.sampler.params.min_tokens
        text, stopped = "", False
        if self._text is not None:
            if not ends:
                text, stopped = self._text.push(token, may_stop)
            if not stopped and last:
                rest, stopped = self._text.finish(may_stop)
                text += rest
        if not (last or stopped):
            return text, None
        exhausted = self._reported == self._max_tokens and not ends and not stopped
        return text, "length" if exhausted and not self._is_whole() else "stop"

    def _is_whole(self) -> bool:
        """Whether a constraint says that nothing may follow."""
        return self._constraint is not None and self._constraint.ended

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

    def done_so_far(self) -> tuple[int, int]:
        return min(self.sequence.read, self.prompt_tokens), self._reported

    def timing(self, now: float) -> Timing:
        """Where its time went until `now`."""
        started = self.created if self.started is None else self.started
        return Timing(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=min(self.sequence.cached or 0, self.prompt_tokens),
            completion_tokens=self._reported,
            queue_seconds=started - self.created,
            prefill_seconds=self._first - started,
            decode_seconds=now - self._first,
        )


def _drawn(chunk: Chunk) -> int:
    """How many tokens a step draws after a chunk."""
    return 1 + len(chunk.draft) if chunk.reaches_end else 0


def _all_but(tokens: Collection[int], vocab_size: int) -> NDArray[np.uint32]:
    """A mask: all tokens of a vocabulary but these."""
    allowed = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
    allowed[:vocab_size] = True
    allowed[[token for token in tokens if token < vocab_size]] = False
    return np.packbits(allowed, bitorder="little").view("<u4").astype(np.uint32)
