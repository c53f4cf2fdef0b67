"""A request that generates text: draws tokens until one of its ends."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from gptoss.engine.drafts import Drafter
from gptoss.engine.sampling import SamplerState
from gptoss.engine.sequence import Chunk
from gptoss.engine.text import TextStream
from gptoss.request import Delta, FinishReason, SamplingParams, Timing, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gptoss.native.arrays import StepOutput
from gptoss.engine.job import Job, Outlet


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


class Generation(Job):
    """Draws tokens until one of the ends that its parameters name; puts a `Delta` for each.

    Args:
        most: how many tokens it may draw; the caller has fitted it to context and memory.
        stop_ids: tokens that end it.
        text: the decoder of its text; None where the model has no tokenizer.
        token_bytes: what a token id stands for, for log-probabilities.
        constraint: says which tokens may come; None: any.
        drafter: guesses tokens; None: none are guessed.
    """

    __slots__ = (
        "_constraint",
        "_drafter",
        "_first",
        "_index",
        "_most",
        "_prompt",
        "_reported",
        "_reserved",
        "_stop_ids",
        "_taken",
        "_text",
        "_token_bytes",
    )
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
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
        priority: int = 0,
        client: str = "",
    ) -> None:
        # The last token drawn is never fed back, so it needs no keys and values.
        limit = len(prompt) + most - 1
        super().__init__(prompt, limit, outbox, key, priority=priority, client=client)
        self.sampler = SamplerState(params, seed, prompt)
        self._prompt = len(prompt)
        self._most = most
        self._stop_ids = stop_ids
        self._text = text
        self._token_bytes = token_bytes
        self._index = index
        self._constraint = constraint
        # What is allowed or punished behind a guess would have to be known before it is right.
        free = constraint is None and not self.sampler.tracks
        self._drafter = drafter if free else None
        self._first = 0.0  # when its first token came
        self._reserved = False  # the last of `tokens` stands for one that is being computed
        self._taken: list[tuple[int, int]] = []  # (token, row of the output), not reported yet
        self._reported = 0

    def draft(self, most: int, sequences: int) -> tuple[int, ...]:
        return self._drafter.guess(most, sequences) if self._drafter is not None else ()

    def rows(self, chunk: Chunk) -> range:
        wanted = 1 + len(chunk.draft) if chunk.reaches_end else 0
        return range(chunk.count - wanted, chunk.count)

    def masks(self, chunk: Chunk) -> list[NDArray[np.uint32] | None]:
        if self._constraint is None or not chunk.reaches_end:
            return super().masks(chunk)
        return [self._constraint.mask()]

    def begin(self, chunk: Chunk) -> None:
        if chunk.reaches_end and self.sampler.drawn + 1 < self._most:
            self.tokens.append(0)
            self._reserved = True

    def undo(self, chunk: Chunk) -> None:
        if self._reserved:
            self.tokens.pop()
            self._reserved = False

    def take(self, chunk: Chunk, output: StepOutput, first_row: int) -> int:
        if not chunk.reaches_end:
            return 0
        assert output.tokens is not None
        self.undo(chunk)
        for i in range(1 + len(chunk.draft)):
            token = int(output.tokens[first_row + i])
            self.tokens.append(token)
            self.sampler.push(token)
            if self._drafter is not None:
                self._drafter.push(token)
            self._taken.append((token, first_row + i))
            self.over = token in self._stop_ids or self.sampler.drawn == self._most
            if self._constraint is not None and not self.over:
                self._constraint.push(token)
                self.over = self._constraint.ended
            if self.over or i == len(chunk.draft) or token != chunk.draft[i]:
                break
        if self._drafter is not None and chunk.draft:
            self._drafter.learn(right=len(self._taken) - 1, made=len(chunk.draft))
        return len(self._taken)

    def report(self, chunk: Chunk, output: StepOutput, first_row: int) -> bool:
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
                    timing=self._timing(now) if finish else None,
                )
            )
            if finish is not None:
                return True
        return False

    def _advance(self, token: int, last: bool) -> tuple[str, FinishReason | None]:
        """(text that the token adds, why it is the last one, if it is)."""
        ends = token in self._stop_ids
        text, stopped = "", False
        if self._text is not None:
            if not ends:
                text, stopped = self._text.push(token)
            if not stopped and last:
                rest, stopped = self._text.finish()
                text += rest
        if not (last or stopped):
            return text, None
        exhausted = self._reported == self._most and not ends and not stopped
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

    def _timing(self, now: float) -> Timing:
        started = self.created if self.started is None else self.started
        return Timing(
            prompt_tokens=self._prompt,
            cached_tokens=min(self.cached or 0, self._prompt),
            completion_tokens=self._reported,
            queue_seconds=started - self.created,
            prefill_seconds=self._first - started,
            decode_seconds=now - self._first,
        )
