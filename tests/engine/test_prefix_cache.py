"""Prefixes that were computed before: found, used, cut where a window has a hole, forgotten."""

from queue import SimpleQueue

import fake_backend as fake
import pytest
from hand_stepped import (
    WINDOW,
    assert_nothing_leaked,
    computed,
    finish,
    items,
    make_request,
    make_worker,
    prompt_of,
    run,
    submit,
)

from gptoss.engine.request import Scoring


@pytest.mark.parametrize("window", [1, 16, 20, 47, 100])
def test_a_repeated_prompt_is_computed_once(window):
    worker, prompt = make_worker(pages=60, window=window), prompt_of(100)
    ((*first,),) = finish(worker, make_request(prompt, 5))
    before = computed(worker)
    request = make_request(prompt, 5)
    assert finish(worker, request) == [first]
    assert computed(worker) - before == 100 - 96 + 4  # the rest of the last block, and 4 drawn
    assert request.sequence.cached == 96
    assert_nothing_leaked(worker)


def test_a_conversation_goes_on_where_it_was():
    """Prompt, answer and next question: what the first turn computed is not computed again."""
    worker, prompt = make_worker(pages=60), prompt_of(50)
    (answer,) = finish(worker, make_request(prompt, 30))
    longer = [*prompt, *answer, *prompt_of(20, 1)]
    request = make_request(longer, 3)
    (found,) = finish(worker, request)
    assert found == fake.reference_greedy(longer, 3, WINDOW)
    assert request.sequence.cached == 64  # of 79 tokens with keys and values, whole blocks


@pytest.mark.parametrize("shared", [0, 15, 16, 40, 64, 90])
def test_what_is_shared_is_used_and_no_more(shared):
    worker = make_worker(pages=100)
    one = prompt_of(100)
    other = one[:shared] + [(token + 1) % fake.VOCABULARY for token in one[shared:]]
    finish(worker, make_request(one, 3))
    request = make_request(other, 3)
    assert finish(worker, request) == [fake.reference_greedy(other, 3, WINDOW)]
    assert request.sequence.cached == shared // 16 * 16
    assert_nothing_leaked(worker)


def test_a_window_that_lost_a_page_cuts_the_prefix():
    worker, prompt = make_worker(pages=60, window=40), prompt_of(100)
    finish(worker, make_request(prompt, 1))
    node = worker.scheduler._cache.root
    for _ in range(5):
        node = next(iter(node.children.values()))
    page = node.pages[1]  # the sliding page of positions 64 to 79
    worker.scheduler.pool._kept.move_to_end(page, last=False)
    others = worker.scheduler.pool.free - worker.scheduler.pool.kept + 1
    taken = [worker.scheduler.pool.take() for _ in range(others)]
    assert taken[-1] == page and node.pages[1] == -1
    for each in taken:
        worker.scheduler.pool.give_back(each)
    request = make_request(prompt, 3)
    assert finish(worker, request) == [fake.reference_greedy(prompt, 3, 40)]
    assert request.sequence.cached == 64
    again = make_request(prompt, 1)  # which mended it
    finish(worker, again)
    assert again.sequence.cached == 96


def test_kept_pages_give_way():
    """A pool full of prefixes is as good as an empty one, and the oldest go first."""
    worker = make_worker(pages=40)
    for salt in range(6):
        finish(worker, make_request(prompt_of(100, salt), 2))
    assert worker.scheduler.pool.kept > 0
    recent, old = make_request(prompt_of(100, 5), 2), make_request(prompt_of(100, 0), 2)
    finish(worker, recent)
    finish(worker, old)
    assert recent.sequence.cached == 96 and old.sequence.cached == 0
    assert_nothing_leaked(worker)
    assert worker.scheduler.preemptions == 0


def test_forgotten_prefixes_leave_no_nodes():
    worker = make_worker(pages=20)
    for salt in range(40):
        finish(worker, make_request(prompt_of(60, salt), 2))

    def count(node):
        return 1 + sum(count(child) for child in node.children.values())

    assert count(worker.scheduler._cache.root) <= 1 + 20


def test_prompts_that_come_together_are_computed_once():
    worker, prompt = make_worker(pages=200, step_tokens=32), prompt_of(100)
    requests = [make_request(prompt, 4) for _ in range(6)]
    found = finish(worker, *requests)
    assert found == [fake.reference_greedy(prompt, 4, WINDOW)] * 6
    assert [request.sequence.cached for request in requests] == [0] + [96] * 5
    assert computed(worker) == 100 + 5 * 4 + 6 * 3


def test_a_preempted_sequence_takes_up_what_is_left():
    worker = make_worker(pages=10, step_tokens=64)
    requests = [make_request(prompt_of(10, i), 50) for i in range(2)]
    finish(worker, *requests)
    without = make_worker(pages=10, step_tokens=64, cache=False)
    finish(without, *(make_request(prompt_of(10, i), 50) for i in range(2)))
    assert worker.scheduler.preemptions and computed(worker) < computed(without)


def test_scoring_computes_every_row():
    worker, prompt = make_worker(pages=60), prompt_of(70)
    finish(worker, make_request(prompt, 2))
    request = Scoring(prompt, SimpleQueue(), max_chunk=20)
    submit(worker, request)
    run(worker)
    assert sum(len(rows) for _, rows in items(request)) == 70
