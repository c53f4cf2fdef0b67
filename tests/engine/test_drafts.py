"""When tokens are drafted, and which: costs, beliefs, and the search for repetitions."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.engine.drafts import (
    LONGEST_MATCH,
    MAX_DRAFT,
    SHORTEST_MATCH,
    TRY_AGAIN,
    Drafter,
    StepCost,
)


def cost(share):
    return SimpleNamespace(share=lambda sequences: share)


def test_the_cost_of_a_token_is_learned():
    steps = StepCost()
    for _ in range(50):
        for tokens in (1, 2, 5):
            steps.observe(tokens, 0.03 + 0.01 * tokens)
    assert steps.share(1) == pytest.approx(0.01 / 0.04, rel=1e-6)
    assert steps.share(4) == pytest.approx(0.04 / 0.07, rel=1e-6)
    for _ in range(500):
        for tokens in (1, 2, 5):
            steps.observe(tokens, 0.03 + 0.002 * tokens)  # the machine changed
    assert steps.share(1) == pytest.approx(0.002 / 0.032, rel=0.01)


def test_before_both_kinds_of_steps_were_seen():
    steps = StepCost()
    first = steps.share(1)
    for _ in range(20):
        steps.observe(1, 0.05)
    assert steps.share(1) == first and 0 < first < steps.share(8) < 1


def test_steps_that_get_faster_with_more_tokens_mean_that_tokens_are_free():
    steps = StepCost()
    for tokens in (1, 2, 3, 4) * 5:
        steps.observe(tokens, 0.05 - 0.001 * tokens)
    assert steps.share(1) == 0.0


def test_the_latest_repetition_is_continued():
    text = [1, 2, 3, 10, 11, 12, 5, 1, 2, 3, 20, 21, 22, 6, 1, 2, 3]
    assert Drafter(text, cost(0.0)).draft(3, 1) == (20, 21, 22)


def test_a_longer_match_goes_before_a_later_one():
    text = [9, 8, 1, 2, 3, 10, 10, 10, 5, 1, 2, 3, 20, 20, 20, 9, 8, 1, 2, 3]
    assert Drafter(text, cost(0.0)).draft(3, 1) == (10, 10, 10)


def test_matches_that_are_too_short():
    text = [1, 2, 30, 31, 32, 4, 1, 2]
    assert len(text) > SHORTEST_MATCH and Drafter(text, cost(0.0)).draft(4, 1) == ()


def test_a_text_that_goes_round_in_circles_is_continued_so():
    assert Drafter([5, 1, 2, 1, 2, 1, 2], cost(0.0)).draft(5, 1) == (1, 2, 1, 2, 1)


def test_bytes_of_neighbouring_tokens_are_no_match():
    """256 and 1 share bytes that lie across the border of tokens."""
    text = [256, 256, 256, 256, 256, 7, 1 << 16, 1 << 16, 1 << 16]
    assert Drafter(text, cost(0.0)).draft(4, 1) == ()


def test_expensive_tokens_are_not_drafted():
    text = [1, 2, 3] * 10
    counts = [len(Drafter(text, cost(share)).draft(8, 1)) for share in (0.0, 0.2, 0.45, 0.6, 1.0)]
    assert counts[0] > counts[1] > counts[2] > counts[3] == counts[4] == 0


def test_wrong_drafts_are_not_repeated_for_a_while():
    drafter = Drafter([1, 2, 3] * 10, cost(0.3))
    assert drafter.draft(8, 1)
    for _ in range(6):
        drafter.learn([9], [1, 2, 3, 4])
    assert drafter.draft(8, 1) == ()
    for i in range(TRY_AGAIN):
        drafter.learn([(1, 2, 3)[i % 3]], [])
    assert drafter.draft(8, 1)  # the text may have come to repeat itself


def test_right_drafts_grow():
    drafter = Drafter([1, 2, 3] * 10, cost(0.3))
    few = len(drafter.draft(MAX_DRAFT, 1))
    for _ in range(10):
        drafter.learn([1, 2, 3, 1, 2], [1, 2, 3, 1])
    assert len(drafter.draft(MAX_DRAFT, 1)) == MAX_DRAFT > few


def expected(text, count):
    """The same by looking at everything."""
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        for at in range(len(text) - length - 1, -1, -1):
            if length < len(text) and text[at : at + length] == text[-length:]:
                return tuple(text[at + length : at + length + count])
    return ()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8))
def test_any_text(text, most):
    drafter = Drafter(text[:1], cost(0.0))
    for token in text[1:]:
        drafter.learn([token], [])
    found = drafter.draft(most, 1)
    wanted = expected(text, most)
    assert found == tuple(wanted[i % len(wanted)] for i in range(most if wanted else 0))
