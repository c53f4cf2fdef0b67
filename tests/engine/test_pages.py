"""The page pool and the two tables of a sequence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.engine.pages import (
    FULL,
    NO_PAGE,
    SLIDING,
    PagePool,
    SequencePages,
    blocks_for,
    peak_pages,
)

PAGE = 16


def test_pages_are_handed_out_once():
    pool = PagePool(5)
    assert sorted(pool.take() for _ in range(5)) == [0, 1, 2, 3, 4]
    assert pool.free == 0


def test_double_free_raises():
    pool = PagePool(2)
    page = pool.take()
    pool.give_back(page)
    with pytest.raises(RuntimeError, match=f"page {page}"):
        pool.give_back(page)
    assert pool.free == 2


@pytest.mark.parametrize("page", [-1, 2, 7])
def test_foreign_page_raises(page):
    with pytest.raises(RuntimeError, match="not out"):
        PagePool(2).give_back(page)


def test_empty_pool_is_refused():
    with pytest.raises(ValueError, match="at least one page"):
        PagePool(0)


def test_window_boundary():
    """With a window of 128, the token at 143 sees 16 onwards: block 0 goes when 143 is next."""
    pages = SequencePages(PagePool(100), PAGE, window=128)
    pages.grow(160)
    pages.trim(142)
    assert pages.table[SLIDING, 0] != NO_PAGE
    pages.trim(143)
    assert pages.table[SLIDING, 0] == NO_PAGE
    assert pages.table[SLIDING, 1] != NO_PAGE
    assert (pages.table[FULL, :10] != NO_PAGE).all()


def test_release_returns_everything_and_allows_a_new_start():
    pool = PagePool(60)
    pages = SequencePages(pool, PAGE, window=20)
    for end in (1, 40, 100, 300):
        pages.grow(end)
        pages.trim(end)
    pages.release()
    assert pool.free == 60
    assert (pages.table == NO_PAGE).all()
    pages.grow(17)
    assert pages.held == 4 == 60 - pool.free


@given(
    window=st.integers(1, 100),
    counts=st.lists(st.integers(1, 70), min_size=1, max_size=20),
)
def test_tables_hold_what_a_step_reads(window, counts):
    pool = PagePool(1000)
    pages = SequencePages(pool, PAGE, window)
    start = 0
    for count in counts:
        end = start + count
        missing, free = pages.missing(end), pool.free
        pages.grow(end)
        assert free - pool.free == missing
        blocks = blocks_for(end, PAGE)
        first = max(0, start - window + 1) // PAGE
        held = pages.table != NO_PAGE
        assert held[FULL, :blocks].all() and not held[FULL, blocks:].any()
        assert held[SLIDING, first:blocks].all()
        assert not held[SLIDING, :first].any() and not held[SLIDING, blocks:].any()
        assert held.sum() == pages.held == pool.size - pool.free
        assert len(np.unique(pages.table[held])) == pages.held
        assert pages.held <= peak_pages(end, max(counts), window, PAGE)
        start = end
        pages.trim(start)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 128, 129, 4096, 131072])
def test_sliding_need_is_bounded(length):
    full = blocks_for(length, PAGE)
    assert full < peak_pages(length, 512, 128, PAGE) <= full + (128 + 512) // PAGE + 2
