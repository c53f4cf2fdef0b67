"""From a plan to the plain arrays of one `Backend.step`.

Shapes: T new tokens in all, S sequences, R rows that want logits, B blocks of the longest
sequence. None of them follows from the others (docs/adr/0004).
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from gptoss.engine.pages import NO_PAGE, SLIDING, blocks_for
from gptoss.engine.sequence import Chunk
from gptoss.native.arrays import Ints


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
        token_ids += chunk.token_ids
        logits_rows += [int(seq_start[i]) + row for row in wanted]
    return StepArrays(
        token_ids=np.array(token_ids, np.int32),
        seq_start=seq_start,
        context_len=np.array([chunk.end for chunk in chunks], np.int32),
        block_table=block_table,
        logits_rows=np.array(logits_rows, np.int32),
    )


def fill_in(arrays: StepArrays, chunks: SequenceOf[Chunk]) -> None:
    """What was not known when the arrays were made, while the step before ran: the tokens that it
    drew, and which sliding pages were given back behind it.
    """
    ends = [i for i, chunk in enumerate(chunks) if chunk.reaches_end]
    arrays.token_ids[arrays.seq_start[1:][ends] - 1] = [
        chunks[i].sequence.tokens[chunks[i].end - 1] for i in ends
    ]
    for i, chunk in enumerate(chunks):
        pages = chunk.sequence.pages
        assert pages is not None
        arrays.block_table[SLIDING, i, : pages.first_sliding] = NO_PAGE
