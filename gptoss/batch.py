"""From a plan to the plain arrays of one `Backend.step`.

Shapes: T new tokens in all, S sequences, R rows that want logits, B blocks of the longest
sequence. DESIGN.md's Batch, without what the backend derives itself.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.kv_cache import NO_PAGE, blocks_for
from gptoss.sampling import SamplingParams
from gptoss.scheduler import Chunk

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class StepArrays:
    """Arguments of `Backend.step`, in its order."""

    token_ids: Ints  # [T] chunks one after another
    seq_start: Ints  # [S + 1] where each chunk begins in token_ids
    context_len: Ints  # [S] tokens of the sequence, those of this step included
    block_table: Ints  # [2, S, B] page of each block, full and sliding; NO_PAGE: not held
    logits_rows: Ints  # [R] indices into token_ids, ascending


def step_arrays(chunks: SequenceOf[Chunk], rows: SequenceOf[range], page_size: int) -> StepArrays:
    """Lay chunks side by side; `rows[i]` are the tokens of chunk i that want logits."""
    seq_start = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum([chunk.count for chunk in chunks], out=seq_start[1:])
    widest = max(blocks_for(chunk.end, page_size) for chunk in chunks)
    block_table = np.full((2, len(chunks), widest), NO_PAGE, np.int32)
    token_ids: list[int] = []
    logits_rows: list[int] = []
    for i, (chunk, wanted) in enumerate(zip(chunks, rows, strict=True)):
        pages = chunk.sequence.pages
        assert pages is not None
        blocks = min(pages.blocks, widest)
        block_table[:, i, :blocks] = pages.table[:, :blocks]
        token_ids += chunk.sequence.tokens[chunk.start : chunk.end]
        logits_rows += [int(seq_start[i]) + row for row in wanted]
    return StepArrays(
        token_ids=np.array(token_ids, np.int32),
        seq_start=seq_start,
        context_len=np.array([chunk.end for chunk in chunks], np.int32),
        block_table=block_table,
        logits_rows=np.array(logits_rows, np.int32),
    )


class SamplerState:
    """What the sampler must know of one request, kept up to date token by token.

    Attributes:
        drawn: tokens drawn so far; numbers the next draw, which makes seeded draws repeatable.
    """

    def __init__(self, params: SamplingParams, seed: int, prompt: SequenceOf[int]) -> None:
        self.drawn = 0
        self.params = params
        self.seed = seed
        bias = params.logit_bias or {}
        self.bias_ids: Ints = np.fromiter(bias.keys(), np.int32, len(bias))
        self.bias_values = np.fromiter(bias.values(), np.float32, len(bias))
        # The repetition penalty looks at the prompt too; the others at the output alone.
        repeats = params.repetition_penalty != 1.0
        self._tracks = bool(repeats or params.presence_penalty or params.frequency_penalty)
        self._ids: Ints = np.unique(np.array(prompt if repeats else [], np.int32))
        self._counts: Ints = np.zeros_like(self._ids)
        self._used = len(self._ids)
        self._where = {int(token): i for i, token in enumerate(self._ids)}

    def push(self, token: int) -> None:
        """A token was drawn."""
        self.drawn += 1
        if not self._tracks:
            return
        at = self._where.setdefault(token, self._used)
        if at == self._used:
            if self._used == len(self._ids):
                grown = max(64, 2 * self._used)
                self._ids = np.concatenate([self._ids, np.zeros(grown, np.int32)])
                self._counts = np.concatenate([self._counts, np.zeros(grown, np.int32)])
            self._ids[at] = token
            self._used += 1
        self._counts[at] += 1

    @property
    def history(self) -> tuple[Ints, Ints]:
        """(ids [H], how often each occurs in the output [H]); 0: in the prompt alone."""
        return self._ids[: self._used], self._counts[: self._used]


def sampling_arrays(rows: SequenceOf[SamplerState | None], dtype: Any) -> dict[str, Any]:
    """Arguments of `_core.SamplingBatch`, one row per logits row; None: greedy, no extras."""
    table = np.zeros(len(rows), dtype)
    table["top_p"] = 1.0
    table["repetition_penalty"] = 1.0
    history: list[tuple[Ints, Ints]] = []
    bias: list[tuple[Ints, NDArray[np.float32]]] = []
    nothing = np.zeros(0, np.int32)
    for row, state in zip(table, rows, strict=True):
        if state is None:
            history.append((nothing, nothing))
            bias.append((nothing, nothing.astype(np.float32)))
            continue
        params = state.params
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            row[name] = getattr(params, name)
        row["n_logprobs"] = params.logprobs or 0
        row["seed"] = state.seed
        row["draw"] = state.drawn
        history.append(state.history)
        bias.append((state.bias_ids, state.bias_values))
    arrays: dict[str, Any] = {"rows": table}
    if any(len(ids) for ids, _ in history):
        arrays["history_start"] = _starts([len(ids) for ids, _ in history])
        arrays["history_ids"] = np.concatenate([ids for ids, _ in history])
        arrays["history_counts"] = np.concatenate([counts for _, counts in history])
    if any(len(ids) for ids, _ in bias):
        arrays["bias_start"] = _starts([len(ids) for ids, _ in bias])
        arrays["bias_ids"] = np.concatenate([ids for ids, _ in bias])
        arrays["bias_values"] = np.concatenate([values for _, values in bias])
    return arrays


def _starts(lengths: list[int]) -> Ints:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts
