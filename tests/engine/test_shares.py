"""Places and prompts are shared: who has little running does not wait for those who have much."""

from queue import SimpleQueue

import fake_backend as fake
import pytest
from hand_stepped import (
    WINDOW,
    assert_nothing_leaked,
    make_request,
    make_worker,
    prompt_of,
    run,
    tokens_of,
)

from gptoss.engine.sequence import Account


def flood(worker, client, count, most=200, account=None):
    """Requests of a client, all texts of one if `account`, and the steps in which they begin."""
    requests = [
        make_request(prompt_of(4, i), most, client=client, account=account) for i in range(count)
    ]
    for request in requests:
        worker.submit(request)
    for _ in range(count + 4):
        worker.serve()
    return requests


def steps_to_first_token(worker, request, most=60):
    worker.submit(request)
    for step in range(most):
        if request.produced:
            return step
        worker.serve()
    raise AssertionError(f"no token in {most} steps")


def running(worker, requests):
    return sum(request.sequence.pages is not None for request in requests)


@pytest.mark.parametrize("same_client", [False, True])
def test_a_newcomer_gets_a_place_that_others_have_many_of(same_client):
    worker = make_worker(pages=400, step_tokens=32, max_running=8)
    many = flood(worker, "many", 20, account=Account())
    assert running(worker, many) == 8
    newcomer = make_request(prompt_of(3, 77), 5, client="many" if same_client else "few")
    assert steps_to_first_token(worker, newcomer) <= 3
    assert running(worker, many) == 7  # one place, and no more
    run(worker)
    for i, request in enumerate(many):
        assert tokens_of(request) == fake.reference_greedy(prompt_of(4, i), 200, WINDOW)
    assert_nothing_leaked(worker)


def test_two_that_have_many_get_half_each_and_nobody_is_sent_back_again_and_again():
    worker = make_worker(pages=400, step_tokens=32, max_running=8)
    first, second = flood(worker, "a", 12, 60), flood(worker, "b", 12, 60)
    assert running(worker, first) == running(worker, second) == 4
    before = worker.scheduler.preemptions
    assert before == 4
    for _ in range(20):
        worker.serve()
    assert worker.scheduler.preemptions == before
    run(worker)
    assert_nothing_leaked(worker)


def test_a_client_alone_is_left_alone():
    """Its requests are of one text each: none has more than another."""
    worker = make_worker(pages=400, step_tokens=32, max_running=8)
    flood(worker, "a", 20, 30)
    run(worker)
    assert worker.scheduler.preemptions == 0


def test_pages_are_shared_as_places_are():
    """There are places, but the pages are taken."""
    worker = make_worker(pages=14, step_tokens=32, max_running=8)
    many = flood(worker, "many", 6, most=40)
    assert running(worker, many) < 6
    newcomer = make_request(prompt_of(3, 77), 5, client="few")
    assert steps_to_first_token(worker, newcomer) <= 4
    run(worker)
    assert_nothing_leaked(worker)


def test_one_of_a_lower_priority_takes_nobodys_place():
    worker = make_worker(pages=400, step_tokens=32, max_running=4)
    many = flood(worker, "many", 8, most=30)
    later = make_request(prompt_of(3, 77), 5, client="few", priority=1)
    worker.submit(later)
    for _ in range(10):
        worker.serve()
    assert worker.scheduler.preemptions == 0 and not later.produced
    run(worker)
    assert running(worker, many) == 0 and later.produced == 5


@pytest.mark.parametrize("same_client", [False, True])
def test_a_short_prompt_enters_beside_long_ones(same_client):
    """A step has 32 tokens, and the prompts of others 1200."""
    worker = make_worker(pages=2000, step_tokens=32, max_running=8)
    for i in range(4):
        worker.submit(make_request(prompt_of(300, i), 4, client="many"))
    worker.serve()
    newcomer = make_request(prompt_of(9, 77), 4, client="many" if same_client else "few")
    assert steps_to_first_token(worker, newcomer) <= 6  # of the one client, after those that came
    run(worker)
    assert_nothing_leaked(worker)


def test_prompts_of_two_clients_enter_side_by_side():
    """Who has had less goes first, so neither is far ahead at any time."""
    worker = make_worker(pages=2000, step_tokens=32, max_running=8)
    long = [make_request(prompt_of(400, i), 4, client=client) for i, client in enumerate("ab")]
    worker.submit(long[0])
    worker.serve()
    worker.submit(long[1])
    for _ in range(10):
        worker.serve()
        done = [request.sequence.computed for request in long]
        assert abs(done[0] - done[1]) <= 3 * 32
    run(worker)


def test_sent_back_for_want_of_pages_one_does_not_keep_out_who_has_had_less():
    """What was sent back goes first among its own, not before a client for whom nothing ran yet."""
    worker = make_worker(pages=10, step_tokens=64, max_running=2)
    many = [make_request(prompt_of(10, i), 50, client="many") for i in range(2)]
    for request in many:
        worker.submit(request)
    while not worker.scheduler.preemptions:
        worker.serve()
    assert worker.scheduler.waiting.first() is many[1].sequence
    newcomer = make_request(prompt_of(3, 77), 5, client="few")
    worker.submit(newcomer)
    worker.serve()
    run(worker)
    assert newcomer.produced == 5
    assert [len(tokens_of(request)) for request in many] == [50, 50]
    assert_nothing_leaked(worker)


def test_what_was_cancelled_says_what_was_done():
    worker = make_worker(pages=400, step_tokens=8)
    request = make_request(prompt_of(20), 50)
    request.outbox = SimpleQueue()
    worker.submit(request)
    worker.serve()
    assert request.done_so_far() == (8, 0)
    while request.produced < 3:
        worker.serve()
    assert request.done_so_far() == (20, 3)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("history", [0, 2000])
def test_what_somebody_had_before_does_not_send_others_back_again_and_again(history, overlap):
    """The newcomer may have been served more than who has to make way: it gets the place all the
    same, and at once.
    """
    worker = make_worker(pages=2000, step_tokens=32, max_running=4, overlap=overlap)
    many = [make_request(prompt_of(4, i), 300, client="a") for i in range(3)]
    for request in many:
        worker.submit(request)
    if history:
        long = make_request(prompt_of(history, 50), 2, client="b")
        worker.submit(long)
        while not long.produced == 2:
            worker.serve()
    many.append(make_request(prompt_of(4, 9), 300, client="a"))
    worker.submit(many[-1])
    for _ in range(6):
        worker.serve()
    before = worker.scheduler.preemptions
    newcomer = make_request(prompt_of(5, 77), 50, client="b")
    assert steps_to_first_token(worker, newcomer) <= 4
    for _ in range(20):
        worker.serve()
    assert worker.scheduler.preemptions <= before + 1
    run(worker)
    for i, request in zip([0, 1, 2, 9], many, strict=True):
        assert tokens_of(request) == fake.reference_greedy(prompt_of(4, i), 300, WINDOW)
    assert_nothing_leaked(worker)


def test_after_a_rest_nobody_pays_for_what_was_before():
    worker = make_worker(pages=2000, step_tokens=64, max_running=4)
    first = make_request(prompt_of(1500, 1), 2, client="b")
    worker.submit(first)
    run(worker)
    flood(worker, "a", 6, most=300)
    newcomer = make_request(prompt_of(5, 77), 5, client="b")
    assert steps_to_first_token(worker, newcomer) <= 4
    run(worker)


def test_nobody_is_sent_back_for_one_that_does_not_fit_even_then():
    worker = make_worker(pages=100, step_tokens=64, max_running=8, cache=False)
    large = make_request(prompt_of(340, 1), 60, client="a")
    worker.submit(large)
    for _ in range(8):
        worker.serve()
    flood(worker, "a", 3, most=40)
    worker.submit(make_request(prompt_of(500, 5), 5, client="b"))
    for _ in range(20):
        worker.serve()
    assert worker.scheduler.preemptions == 0
    run(worker)
    assert_nothing_leaked(worker)


def test_prompts_of_a_higher_priority_enter_first():
    worker = make_worker(pages=2000, step_tokens=32, max_running=8)
    low = make_request(prompt_of(500, 1), 2, client="low", priority=9)
    worker.submit(low)
    worker.serve()
    high = make_request(prompt_of(300, 2), 2, client="high")
    assert steps_to_first_token(worker, high) <= 12
    run(worker)


def test_what_was_read_counts_after_it_was_sent_back():
    worker = make_worker(pages=400, step_tokens=64)
    request = make_request(prompt_of(160), 5)
    worker.submit(request)
    worker.serve()
    worker.serve()
    assert request.done_so_far() == (128, 0)
    worker.scheduler._preempt()
    assert request.done_so_far() == (128, 0)
    run(worker)
