"""Pages of the key/value cache: one pool, and the two page tables of a sequence.

A page holds the keys and values of `page_size` tokens of one group of layers: the full-attention
layers or the sliding ones. Both groups draw from one pool. Full layers keep every page of a
sequence; sliding layers give back those that no coming token can see.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL, SLIDING = 0, 1  # rows of a block table
NO_PAGE = -1


class PagePool:
    """Hands out page ids 0 … size-1 and takes them back; knows how many hold each.

    A page whose contents are worth something (`value`) is kept when its last holder gives it back.
    It counts as free all the same: when nothing else is left, the one given back first is taken,
    and the one that valued it is told.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a page pool needs at least one page, found {size}")
        self.size = size
        self._free = list(range(size - 1, -1, -1))  # a stack: page 0 goes out first
        self._holders = [0] * size
        self._forget: dict[int, Callable[[int], None]] = {}  # of pages of value
        self._kept: OrderedDict[int, None] = OrderedDict()  # of value, held by none, oldest first

    @property
    def free(self) -> int:
        """Pages that can be taken now."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """Those of the free ones that still hold something of value."""
        return len(self._kept)

    def take(self) -> int:
        """A page id no one else holds. The caller has made sure that one is free."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            self._forget.pop(page)(page)
        self._holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """Hold a page of value once more, whether anyone else does or not."""
        if page not in self._forget:
            raise RuntimeError(f"page {page} shared, but nobody said that it is of value")
        self._kept.pop(page, None)
        self._holders[page] += 1

    def value(self, page: int, forget: Callable[[int], None]) -> None:
        """Keep what a held page holds as long as possible; `forget(page)` says when it is gone."""
        self._forget[page] = forget

    def give_back(self, page: int) -> None:
        """Return a page; returning one that is not out is a bug of the caller and raises."""
        if not 0 <= page < self.size or not self._holders[page]:
            raise RuntimeError(f"page {page} given back, but it is not out")
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if page in self._forget:
            self._kept[page] = None
        else:
            self._free.append(page)


def blocks_for(tokens: int, page_size: int) -> int:
    """Pages of one group that hold `tokens` tokens."""
    return -(-tokens // page_size)


def first_block_seen(position: int, window: int, page_size: int) -> int:
    """The first block whose sliding page a token at `position` sees.

    The token at position p sees keys p - window + 1 … p.
    """
    return max(0, position - window + 1) // page_size


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
        first_sliding: sliding pages of blocks before this one are not held.
    """

    def __init__(self, pool: PagePool, page_size: int, window: int) -> None:
        self.pool = pool
        self._page_size = page_size
        self._window = window
        self.table: NDArray[np.int32] = np.full((2, 8), NO_PAGE, np.int32)
        self.blocks = 0  # blocks 0 … blocks-1 have been given pages
        self.node: Any = None  # of the prefix cache: the last block that it knows of,
        self.cached = 0  # and how many there are
        self.first_sliding = 0  # sliding pages of blocks before this one are not held

    @property
    def held(self) -> int:
        return 2 * self.blocks - self.first_sliding

    def missing(self, end: int) -> int:
        """Pages to take before tokens 0 … end-1 can be computed."""
        return 2 * max(0, blocks_for(end, self._page_size) - self.blocks)

    def grow(self, end: int) -> None:
        """Take the pages for tokens 0 … end-1. The caller has made sure that they are free."""
        blocks = blocks_for(end, self._page_size)
        self._widen(blocks)
        while self.blocks < blocks:
            self.table[FULL, self.blocks] = self.pool.take()
            self.table[SLIDING, self.blocks] = self.pool.take()
            self.blocks += 1

    def adopt(self, full: SequenceOf[int], sliding: SequenceOf[int]) -> None:
        """Begin with blocks that are computed already: `full` from the first one on, `sliding` for
        the last ones alone. The sequence holds a share of each from here on; it has none yet.
        """
        blocks = len(full)
        self._widen(blocks)
        for page in (*full, *sliding):
            self.pool.share(page)
        self.table[FULL, :blocks] = full
        self.first_sliding = blocks - len(sliding)
        self.table[SLIDING, self.first_sliding : blocks] = sliding
        self.blocks = blocks

    def replace(self, row: int, block: int, page: int) -> None:
        """Take a share of a page that holds the same, and give back one's own."""
        self.pool.share(page)
        self.pool.give_back(int(self.table[row, block]))
        self.table[row, block] = page

    def trim(self, position: int) -> None:
        """Give back the sliding pages that no token from `position` on can see."""
        first = first_block_seen(position, self._window, self._page_size)
        while self.first_sliding < min(first, self.blocks):
            self._release(SLIDING, self.first_sliding)
            self.first_sliding += 1

    def release(self) -> None:
        """Give everything back; the sequence starts from nothing.

        From the end, so that of pages that are kept the last ones are forgotten first: without its
        prefix a block is of no use.
        """
        for block in reversed(range(self.blocks)):
            if block >= self.first_sliding:
                self._release(SLIDING, block)
            self._release(FULL, block)
        self.blocks = self.first_sliding = self.cached = 0
        self.node = None

    def _widen(self, blocks: int) -> None:
        if blocks > self.table.shape[1]:
            wider = np.full((2, max(blocks, 2 * self.table.shape[1])), NO_PAGE, np.int32)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider

    def _release(self, row: int, block: int) -> None:
        self.pool.give_back(int(self.table[row, block]))
        self.table[row, block] = NO_PAGE
