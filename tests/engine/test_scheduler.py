"""The scheduler and the worker on a backend that notices every wrong page."""

from queue import SimpleQueue

import fake_backend as fake
import numpy as np
import pytest
from hand_stepped import (
    WINDOW,
    assert_nothing_leaked,
    busy,
    items,
    make_request,
    make_worker,
    prompt_of,
    run,
    submit,
    tokens_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.engine.request import Scoring
from gptoss.engine.scheduler import Scheduler
from gptoss.engine.sequence import Sequence
from gptoss.errors import Error
from gptoss.request.params import SamplingParams
from gptoss.request.result import Delta, join


def test_one_sequence():
    worker, request = make_worker(pages=20), make_request(prompt_of(50), 30)
    submit(worker, request)
    run(worker)
    completion = join(items(request))
    assert completion.token_ids == fake.reference_greedy(prompt_of(50), 30, WINDOW)
    assert completion.finish_reason == "length"
    assert completion.timing.prompt_tokens == 50 and completion.timing.completion_tokens == 30
    assert_nothing_leaked(worker)


def test_prompts_enter_in_chunks_while_others_decode():
    worker = make_worker(pages=200, step_tokens=32)
    first, long = make_request(prompt_of(3), 20), make_request(prompt_of(100, 1), 5)
    submit(worker, first)  # prompt
    submit(worker, long)
    for _ in range(3):
        worker.serve()
    # One decoded token beside 31 of the long prompt, until the prompt is in.
    assert worker.backend.steps == [(1, 3), (2, 32), (2, 32), (2, 32), (2, 1 + 100 - 93)]
    assert first.produced == 5 and long.produced == 1
    run(worker)
    assert tokens_of(long) == fake.reference_greedy(prompt_of(100, 1), 5, WINDOW)


def test_all_running_sequences_share_a_step():
    worker = make_worker(pages=200)
    requests = [make_request(prompt_of(4, i), 10) for i in range(8)]
    for request in requests:
        worker.submit(request)
    run(worker)
    assert worker.backend.steps == [(8, 32)] + [(8, 8)] * 9
    for i, request in enumerate(requests):
        assert tokens_of(request) == fake.reference_greedy(prompt_of(4, i), 10, WINDOW)


def test_max_running_is_kept():
    worker = make_worker(pages=200, max_running=3)
    requests = [make_request(prompt_of(4, i), 5) for i in range(7)]
    for request in requests:
        worker.submit(request)
    run(worker)
    assert max(sequences for sequences, _ in worker.backend.steps) == 3
    assert all(len(tokens_of(request)) == 5 for request in requests)


def test_first_come_first_served():
    """A short request does not overtake a long one that waits for pages."""
    worker = make_worker(pages=14, step_tokens=64)
    big = [make_request(prompt_of(60, i), 20) for i in range(2)]
    small = make_request(prompt_of(2), 2)
    for request in (*big, small):
        worker.submit(request)
    worker.serve()
    assert worker.scheduler.running == [big[0].sequence]
    assert list(worker.scheduler.waiting) == [big[1].sequence, small.sequence]
    run(worker)
    assert_nothing_leaked(worker)


def test_preemption_takes_the_latest_and_changes_nothing():
    # Each begins with 2 pages and grows to 8: both together do not fit.
    worker = make_worker(pages=10, step_tokens=64)
    requests = [make_request(prompt_of(10, i), 50) for i in range(2)]
    for request in requests:
        worker.submit(request)
    run(worker)
    assert requests[0].sequence.preemptions == 0 and requests[1].sequence.preemptions > 0
    assert worker.scheduler.preemptions == requests[1].sequence.preemptions
    for i, request in enumerate(requests):
        assert tokens_of(request) == fake.reference_greedy(prompt_of(10, i), 50, WINDOW)
    assert_nothing_leaked(worker)


def test_the_preempted_returns_before_those_that_wait():
    worker = make_worker(pages=10, step_tokens=64, max_running=2)
    requests = [make_request(prompt_of(10, i), 50) for i in range(3)]
    for request in requests:
        worker.submit(request)
    while not worker.scheduler.preemptions:
        worker.serve()
    assert worker.scheduler.waiting.first() is requests[1].sequence
    run(worker)
    assert [len(tokens_of(request)) for request in requests] == [50, 50, 50]


def test_pages_that_an_entering_prompt_will_need_are_not_given_away():
    worker = make_worker(pages=14, step_tokens=64, window=100)
    entering = Scoring(prompt_of(90), SimpleQueue(), max_chunk=10)  # leaves room in each step
    other = make_request(prompt_of(40), 12)
    worker.submit(entering)
    worker.submit(other)
    run(worker)
    assert worker.scheduler.preemptions == 0
    assert entering.produced == 9 and other.produced == 12


def test_sliding_pages_are_reused():
    """A long sequence needs full pages for all of it, sliding ones only for the window."""
    need = make_worker(pages=1000).scheduler.pages_for(400)
    assert need < 2 * 25
    worker, request = make_worker(pages=need), make_request(prompt_of(300), 100)
    submit(worker, request)
    run(worker)
    assert tokens_of(request) == fake.reference_greedy(prompt_of(300), 100, WINDOW)


def test_a_sequence_that_never_fits_is_refused():
    worker = make_worker(pages=10)
    capacity = worker.scheduler.capacity()
    with pytest.raises(Error, match=f"enough for {capacity} tokens.*kv_bytes"):
        worker.submit(make_request(prompt_of(capacity), 2))
    fits = make_request(prompt_of(capacity), 1)  # the token drawn needs no page of its own
    submit(worker, fits)
    run(worker)
    assert len(tokens_of(fits)) == 1


@pytest.mark.parametrize("pages", [2, 3, 7, 10, 33, 100])
def test_capacity_is_the_longest_that_fits(pages):
    scheduler = Scheduler(pages, fake.PAGE, WINDOW, 32, 8)
    capacity = scheduler.capacity()
    scheduler.check(Sequence([1], capacity))
    with pytest.raises(Error):
        scheduler.check(Sequence([1], capacity + 1))


@pytest.mark.parametrize("max_running", [0, 33])
def test_max_batch_range(max_running):
    with pytest.raises(Error, match="max_batch"):
        Scheduler(10, fake.PAGE, WINDOW, 32, max_running)


def test_a_stop_token_frees_the_pages():
    continuation = fake.reference_greedy(prompt_of(20), 30, WINDOW)
    stop = continuation[10]
    worker, request = make_worker(pages=30), make_request(prompt_of(20), 30, stop_ids=[stop])
    submit(worker, request)
    run(worker)
    completion = join(items(request))
    assert completion.token_ids == continuation[: continuation.index(stop) + 1]
    assert completion.finish_reason == "stop"
    assert_nothing_leaked(worker)


@pytest.mark.parametrize("step_tokens", [8, 32, 512])
def test_scoring_returns_every_row(step_tokens):
    worker = make_worker(pages=40, step_tokens=step_tokens)
    prompt = prompt_of(70)
    request = Scoring(prompt, SimpleQueue(), max_chunk=20)
    submit(worker, request)
    run(worker)
    position = 0
    for first, rows in items(request):
        assert first == position
        for row in rows:
            assert (row == fake.expected_logits(prompt, position, WINDOW)).all()
            position += 1
    assert position == 70
    assert_nothing_leaked(worker)


def test_scoring_survives_preemption():
    worker = make_worker(pages=14, step_tokens=16)
    older = make_request(prompt_of(2), 60)
    scoring = Scoring(prompt_of(60, 1), SimpleQueue(), max_chunk=4)
    worker.submit(older)
    worker.submit(scoring)
    while scoring.produced < 5:
        worker.serve()
    worker.scheduler._make_room(older.sequence, older.sequence.computed + 1)
    assert worker.scheduler._preempt() is scoring.sequence
    run(worker)
    found = items(scoring)
    assert [first for first, _ in found] == list(range(0, 60, 4))
    assert (found[-1][1][-1] == fake.expected_logits(prompt_of(60, 1), 59, WINDOW)).all()
    assert_nothing_leaked(worker)


def test_an_error_in_a_step_fails_only_its_sequence():
    worker = make_worker(pages=100)
    requests = [make_request(prompt_of(4, i), 10) for i in range(3)]
    poison = make_request([49, 49, 49], 10)

    def fail(token_ids):
        if token_ids.tolist().count(49) >= 3:
            raise MemoryError("no room")

    worker.backend.fail_when = fail
    for request in (requests[0], poison, *requests[1:]):
        worker.submit(request)
    run(worker)
    (error,) = items(poison)
    assert isinstance(error, MemoryError)
    for i, request in enumerate(requests):
        assert tokens_of(request) == fake.reference_greedy(prompt_of(4, i), 10, WINDOW)
    assert_nothing_leaked(worker)


def test_an_error_while_taking_a_result_fails_only_its_sequence():
    worker = make_worker(pages=100)
    good, bad = make_request(prompt_of(4), 10), make_request(prompt_of(4, 1), 10)
    bad._text = object()  # has no push
    worker.submit(bad)
    worker.submit(good)
    run(worker)
    assert isinstance(items(bad)[0], AttributeError)
    assert len(tokens_of(good)) == 10
    assert_nothing_leaked(worker)


asked = st.fixed_dictionaries(
    {
        "length": st.integers(1, 90),
        "most": st.integers(1, 40),
        "salt": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.7]),
        "stop_ids": st.sets(st.integers(0, fake.VOCABULARY - 1), max_size=2),
        "score": st.booleans(),
        "drafts": st.booleans(),
        "masked": st.booleans(),
        "priority": st.integers(0, 2),
        "client": st.sampled_from(["a", "b"]),
    }
)
action = st.one_of(
    st.tuples(st.just("submit"), asked),
    st.tuples(st.just("steps"), st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


class EveryOther:
    """A constraint that depends on what came before."""

    ended = False

    def __init__(self):
        self._last = 0

    def mask(self):
        allowed = (np.arange(64) + self._last) % 3 != 0
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def push(self, token):
        self._last = token


def request_from(spec, seed, worker):
    prompt = prompt_of(spec["length"], spec["salt"])
    if spec["score"]:
        return Scoring(prompt, SimpleQueue(), max_chunk=1 + spec["most"] // 3)
    params = SamplingParams(
        temperature=spec["temperature"],
        repetition_penalty=spec["repetition_penalty"],
        frequency_penalty=spec["frequency_penalty"],
        logit_bias={5: 3.0},
        logprobs=3,
    )
    return make_request(
        prompt,
        spec["most"],
        params,
        spec["stop_ids"],
        seed,
        cost=worker.cost if spec["drafts"] else None,
        constraint=EveryOther() if spec["masked"] else None,
        priority=spec["priority"],
        client=spec["client"],
    )


def results(request):
    """What a request put out, without what depends on how it was run."""
    if isinstance(request, Scoring):
        return [row.tolist() for _, rows in items(request) for row in rows]
    return [
        (d.token_ids, d.finish_reason, d.logprobs) for d in items(request) if isinstance(d, Delta)
    ]


@settings(max_examples=150, deadline=None)
@given(
    actions=st.lists(action, min_size=1, max_size=25),
    pages=st.integers(14, 60),
    step_tokens=st.sampled_from([4, 16, 33, 128]),
    max_running=st.integers(1, 4),
    window=st.sampled_from([1, 16, 20, 47]),
    period=st.sampled_from([0, 3, 7]),
    cache=st.booleans(),
    overlap=st.booleans(),
)
def test_any_mixture_equals_one_by_one(
    actions, pages, step_tokens, max_running, window, period, cache, overlap
):
    worker = make_worker(pages, step_tokens, max_running, window, period, cache, overlap)
    requests, cancelled = [], set()
    for kind, what in actions:
        if kind == "submit":
            request = request_from(what, len(requests), worker)
            try:
                worker.submit(request)
            except Error:
                assert worker.scheduler.pages_for(request.sequence.limit) > pages
            else:
                requests.append((request, what, request.sampler.seed if request.sampler else 0))
        elif kind == "steps":
            for _ in range(what):
                if busy(worker):
                    worker.serve()
        elif what < len(requests):
            worker.cancel(requests[what][0])
            cancelled.add(what)
    run(worker)
    assert_nothing_leaked(worker)
    for i, (request, spec, seed) in enumerate(requests):
        alone = make_worker(200, 512, 1, window, period, cache=False)
        reference = request_from({**spec, "drafts": False}, seed, alone)
        submit(alone, reference)
        run(alone)
        expected, found = results(reference), results(request)
        assert found == (expected[: len(found)] if i in cancelled else expected)
