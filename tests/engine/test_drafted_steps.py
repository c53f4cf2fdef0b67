"""Drafted tokens in steps: texts stay what they are, and nobody pays for them."""

import fake_backend as fake
import pytest
from hand_stepped import (
    CHEAP,
    WINDOW,
    assert_nothing_leaked,
    finish,
    make_request,
    make_worker,
    prompt_of,
)

from gptoss.request.params import SamplingParams


def test_right_drafts_save_steps_and_change_nothing():
    worker = make_worker(pages=60, period=4)
    prompt = prompt_of(12)
    request = make_request(prompt, 100, cost=CHEAP)
    (found,) = finish(worker, request)
    assert found == fake.reference_greedy(prompt, 100, WINDOW, 4)
    assert len(worker.backend.steps) < 60
    assert_nothing_leaked(worker)


@pytest.mark.parametrize("temperature", [0.7, 5.0])
def test_seeded_draws_are_the_same_with_drafts(temperature):
    params = SamplingParams(temperature=temperature, top_p=0.9)
    with_drafts, without = make_worker(60, period=3), make_worker(60, period=3)
    drafting = make_request(prompt_of(20), 80, params, seed=5, cost=CHEAP)
    (found,) = finish(with_drafts, drafting)
    assert finish(without, make_request(prompt_of(20), 80, params, seed=5)) == [found]
    assert len(found) == 80


def test_drafts_take_no_pages_from_others():
    worker = make_worker(pages=10, step_tokens=64, period=3)
    requests = [make_request(prompt_of(10, i), 40, cost=CHEAP) for i in range(2)]
    found = finish(worker, *requests)
    assert found == [fake.reference_greedy(prompt_of(10, i), 40, WINDOW, 3) for i in range(2)]
    assert_nothing_leaked(worker)


def test_a_text_that_ends_within_a_draft_ends_there():
    continuation = fake.reference_greedy(prompt_of(12), 60, WINDOW, 4)
    for stop in set(continuation):
        worker = make_worker(pages=60, period=4)
        request = make_request(prompt_of(12), 60, stop_ids=[stop], cost=CHEAP)
        (found,) = finish(worker, request)
        assert found == continuation[: continuation.index(stop) + 1]
    for most in range(1, 20):
        worker = make_worker(pages=60, period=4)
        (found,) = finish(worker, make_request(prompt_of(12), most, cost=CHEAP))
        assert found == continuation[:most]
