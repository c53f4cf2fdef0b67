"""How likely given tokens are: rows of a prompt's own logits, read as the sampler's.

The sampler is asked to draw where only the known token may be drawn, and says its log-probability
among all of them. So nothing leaves the backend but a few numbers for each token, however large the
vocabulary is.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as SequenceOf
from time import perf_counter

import numpy as np

from gptoss.engine.request import Outlet, Request
from gptoss.engine.sampling import Draw, SamplerState
from gptoss.engine.sequence import Account, Chunk, Sequence
from gptoss.native.arrays import StepOutput
from gptoss.request import Delta, SamplingParams, Score, Timing


class Scorer:
    """Collects the scores of tokens `first` … of a prompt, as its chunks are computed.

    Args:
        tokens: the prompt. first: at least 1.
        top: how many of the most likely tokens are told at each place.
        vocab_size: of the logits.
    """

    def __init__(self, tokens: SequenceOf[int], first: int, top: int, vocab_size: int) -> None:
        self._tokens = np.array(tokens, np.int32)
        self._next = first  # of which nothing is known yet
        self._words = -(-vocab_size // 32)
        # One at least: the most likely token says whether the given one is it.
        self._state = SamplerState(SamplingParams(temperature=0, logprobs=max(1, top)), 0, ())
        count = len(tokens) - first
        width = min(top, vocab_size)
        self.score = Score(
            self._tokens[first:],
            np.zeros(count, np.float32),
            np.zeros(count, np.bool_),
            np.zeros((count, width), np.int32),
            np.zeros((count, width), np.float32),
        )

    @property
    def done(self) -> bool:
        return self._next == len(self._tokens)

    def rows(self, chunk: Chunk) -> range:
        """Tokens of the chunk, counted from its start, after which one is to be scored."""
        first = max(self._next - 1, chunk.start)
        end = min(chunk.end, len(self._tokens) - 1)
        return range(first - chunk.start, max(first, end) - chunk.start)

    def draws(self, chunk: Chunk, count: int) -> list[Draw]:
        """Of the `count` rows that were asked for."""
        given = self._given(chunk, count)
        masks = np.zeros((count, self._words), np.uint32)
        masks[np.arange(count), given // 32] = np.uint32(1) << (given % 32).astype(np.uint32)
        return [Draw(self._state, 0, mask) for mask in masks]

    def take(self, chunk: Chunk, output: StepOutput, rows: range) -> None:
        """The rows of the output that were asked for."""
        if not rows:
            return
        assert output.logprobs is not None
        assert output.top_ids is not None and output.top_logprobs is not None
        score, given = self.score, self._given(chunk, len(rows))
        end = min(chunk.end, len(self._tokens) - 1) + 1
        offset = len(self._tokens) - len(score)
        mine = slice(end - len(rows) - offset, end - offset)
        there = slice(rows.start, rows.stop)
        width = score.top_ids.shape[1]
        score.logprobs[mine] = output.logprobs[there]
        score.greedy[mine] = output.top_ids[there, 0] == given
        score.top_ids[mine] = output.top_ids[there, :width]
        score.top_logprobs[mine] = output.top_logprobs[there, :width]
        # Less, where rows were asked for twice: planned before the step that gave them was over.
        self._next = max(self._next, end)

    def _given(self, chunk: Chunk, count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """The tokens that the rows are asked about: those after the chunk's last ones."""
        end = min(chunk.end, len(self._tokens) - 1) + 1
        return self._tokens[end - count : end]


class Scores(Request):
    """Scores given tokens and draws none; puts one `Delta`.

    Args:
        tokens: all of them. first: the first that is scored.
        max_rows: most rows of logits of a step.
        vocab_size, top: as of `Scorer`.
    """

    def __init__(
        self,
        tokens: SequenceOf[int],
        first: int,
        *,
        top: int,
        vocab_size: int,
        max_rows: int,
        outbox: Outlet,
        key: Hashable = None,
        priority: int = 0,
        client: str = "",
        account: Account | None = None,
        salt: str = "",
    ) -> None:
        # The last one is not read: nothing is asked about what comes after it.
        read = tokens[: max(1, len(tokens) - 1)]
        sequence = Sequence(
            read,
            len(read),
            max_rows,
            reusable=first - 1,
            rows_from=first - 1,
            priority=priority,
            client=client,
            account=account,
            salt=salt,
        )
        super().__init__(sequence, outbox, key)
        self.prompt_ids = tuple(tokens)
        self._scorer = Scorer(tokens, first, top, vocab_size)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    def rows(self, chunk: Chunk) -> range:
        return self._scorer.rows(chunk)

    def draws(self, chunk: Chunk, rows: range) -> list[Draw]:
        return self._scorer.draws(chunk, len(rows))

    def take(self, chunk: Chunk, output: StepOutput, rows: range) -> int:
        self._scorer.take(chunk, output, rows)
        self.over = chunk.end == len(self.sequence.tokens) and self._scorer.done
        return int(self.over)

    def report(self, chunk: Chunk, output: StepOutput, rows: range) -> bool:
        if not self.over:
            return False
        now = perf_counter()
        started = self.created if self.started is None else self.started
        timing = Timing(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=0,
            queue_seconds=started - self.created,
            prefill_seconds=now - started,
            decode_seconds=0.0,
            cached_tokens=self.sequence.cached or 0,
        )
        self.put(Delta("", (), "length", timing=timing, prompt=self._scorer.score))
        return True
