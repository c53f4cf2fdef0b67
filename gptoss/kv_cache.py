"""Pages of the key/value cache: one pool, and the two page tables of a sequence.

A page holds the keys and values of `page_size` tokens of one group of layers: the full-attention
layers or the sliding ones. Both groups draw from one pool. Full layers keep every page of a
sequence; sliding layers give back those that no coming token can see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FULL, SLIDING = 0, 1  # rows of a block table
NO_PAGE = -1


class PagePool:
    """Hands out page ids 0 … size-1 and takes them back; knows which are out."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a page pool needs at least one page, found {size}")
        self.size = size
        self._free = list(range(size - 1, -1, -1))  # a stack: page 0 goes out first
        self._taken = bytearray(size)

    @property
    def free(self) -> int:
        """Pages that can be taken now."""
        return len(self._free)

    def take(self) -> int:
        """A page id no one else holds. The caller has made sure that one is free."""
        page = self._free.pop()
        self._taken[page] = 1
        return page

    def give_back(self, page: int) -> None:
        """Return a page; returning one that is not out is a bug of the caller and raises."""
        if not 0 <= page < self.size or not self._taken[page]:
            raise RuntimeError(f"page {page} given back, but it is not out")
        self._taken[page] = 0
        self._free.append(page)


def blocks_for(tokens: int, page_size: int) -> int:
    """Pages of one group that hold `tokens` tokens."""
    return -(-tokens // page_size)


def peak_pages(length: int, chunk: int, window: int, page_size: int) -> int:
    """Most pages a sequence of `length` tokens holds at once, fed at most `chunk` at a time.

    While a chunk of c tokens is computed, a sliding layer reads window + c - 1 consecutive
    positions; n positions, wherever they begin, touch at most ceil((n - 1) / page_size) + 1 pages.
    """
    full = blocks_for(length, page_size)
    span = window + min(chunk, length) - 1
    return full + min(full, blocks_for(span - 1, page_size) + 1)


class SequencePages:
    """The pages of one sequence: block b of a table holds its tokens b·page_size onwards.

    Attributes:
        table: int32 [2, capacity], rows FULL and SLIDING, NO_PAGE where none is held.
        held: pages out of the pool, both groups together.
    """

    def __init__(self, pool: PagePool, page_size: int, window: int) -> None:
        self._pool = pool
        self._page_size = page_size
        self._window = window
        self.table: NDArray[np.int32] = np.full((2, 8), NO_PAGE, np.int32)
        self.blocks = 0  # blocks 0 … blocks-1 have been given pages
        self._first_sliding = 0  # sliding pages of blocks before this one have been given back

    @property
    def held(self) -> int:
        return 2 * self.blocks - self._first_sliding

    def missing(self, end: int) -> int:
        """Pages to take before tokens 0 … end-1 can be computed."""
        return 2 * max(0, blocks_for(end, self._page_size) - self.blocks)

    def grow(self, end: int) -> None:
        """Take the pages for tokens 0 … end-1. The caller has made sure that they are free."""
        blocks = blocks_for(end, self._page_size)
        if blocks > self.table.shape[1]:
            wider = np.full((2, max(blocks, 2 * self.table.shape[1])), NO_PAGE, np.int32)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider
        while self.blocks < blocks:
            self.table[FULL, self.blocks] = self._pool.take()
            self.table[SLIDING, self.blocks] = self._pool.take()
            self.blocks += 1

    def trim(self, position: int) -> None:
        """Give back the sliding pages that no token from `position` on can see.

        The token at position p sees keys p - window + 1 … p.
        """
        first = max(0, position - self._window + 1) // self._page_size
        while self._first_sliding < min(first, self.blocks):
            self._release(SLIDING, self._first_sliding)
            self._first_sliding += 1

    def release(self) -> None:
        """Give everything back; the sequence starts from nothing."""
        for block in range(self.blocks):
            self._release(FULL, block)
        for block in range(self._first_sliding, self.blocks):
            self._release(SLIDING, block)
        self.blocks = self._first_sliding = 0

    def _release(self, row: int, block: int) -> None:
        self._pool.give_back(int(self.table[row, block]))
        self.table[row, block] = NO_PAGE
