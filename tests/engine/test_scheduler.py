"""The scheduler and the worker on a backend that notices every wrong page."""

import time
from queue import SimpleQueue
from types import SimpleNamespace

import fake_backend as fake
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.completion import Delta, join
from gptoss.errors import Error
from gptoss.jobs import Generation, Scoring
from gptoss.sampling import SamplingParams
from gptoss.scheduler import Scheduler, Sequence
from gptoss.speculation import Drafter
from gptoss.worker import Worker

WINDOW = 20
GREEDY = SamplingParams(temperature=0)


def make_worker(
    pages, step_tokens=32, max_running=8, window=WINDOW, period=0, cache=True, overlap=False
):
    """A worker without a thread: tests call serve()."""
    backend = fake.FakeBackend(window, pages, period)
    scheduler = Scheduler(pages, fake.PAGE, window, step_tokens, max_running, prefix_cache=cache)
    return Worker(
        backend,
        scheduler,
        fake.SamplingBatch,
        fake.SAMPLING_DTYPE,
        overlap_from=1 if overlap else None,
    )


def make_job(prompt, most, params=GREEDY, stop_ids=(), seed=0, cost=None, **more):
    job = Generation(
        prompt,
        params,
        seed=seed,
        most=most,
        stop_ids=frozenset(stop_ids),
        text=None,
        token_bytes=lambda token: bytes([token]),
        outbox=SimpleQueue(),
        drafter=Drafter(prompt, cost) if cost else None,
        **more,
    )
    job.demand = most + 1
    return job


def submit(worker, job):
    worker.submit(job)
    worker.serve()


def busy(worker):
    return worker._wanted() or worker._flight is not None or not worker._inbox.empty()


def run(worker):
    while busy(worker):
        worker.serve()


def items(job):
    found = []
    while not job.outbox.empty():
        found += job.outbox.get()[1]
    return found


def tokens_of(job):
    return [token for delta in items(job) for token in delta.token_ids]


def prompt_of(length, salt=0):
    return [(7 * i + 3 * salt + i * i) % fake.VOCABULARY for i in range(length)]


def assert_nothing_leaked(worker):
    scheduler = worker.scheduler
    assert scheduler.pool.free == scheduler.pool.size
    assert not scheduler.running and not scheduler.waiting and not worker._jobs


def test_one_sequence():
    worker, job = make_worker(pages=20), make_job(prompt_of(50), 30)
    submit(worker, job)
    run(worker)
    completion = join(items(job))
    assert completion.token_ids == fake.reference_greedy(prompt_of(50), 30, WINDOW)
    assert completion.finish_reason == "length"
    assert completion.timing.prompt_tokens == 50 and completion.timing.completion_tokens == 30
    assert_nothing_leaked(worker)


def test_prompts_enter_in_chunks_while_others_decode():
    worker = make_worker(pages=200, step_tokens=32)
    first, long = make_job(prompt_of(3), 20), make_job(prompt_of(100, 1), 5)
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
    jobs = [make_job(prompt_of(4, i), 10) for i in range(8)]
    for job in jobs:
        worker.submit(job)
    run(worker)
    assert worker.backend.steps == [(8, 32)] + [(8, 8)] * 9
    for i, job in enumerate(jobs):
        assert tokens_of(job) == fake.reference_greedy(prompt_of(4, i), 10, WINDOW)


def test_max_running_is_kept():
    worker = make_worker(pages=200, max_running=3)
    jobs = [make_job(prompt_of(4, i), 5) for i in range(7)]
    for job in jobs:
        worker.submit(job)
    run(worker)
    assert max(sequences for sequences, _ in worker.backend.steps) == 3
    assert all(len(tokens_of(job)) == 5 for job in jobs)


def test_first_come_first_served():
    """A short request does not overtake a long one that waits for pages."""
    worker = make_worker(pages=14, step_tokens=64)
    big = [make_job(prompt_of(60, i), 20) for i in range(2)]
    small = make_job(prompt_of(2), 2)
    for job in (*big, small):
        worker.submit(job)
    worker.serve()
    assert worker.scheduler.running == [big[0]]
    assert list(worker.scheduler.waiting) == [big[1], small]
    run(worker)
    assert_nothing_leaked(worker)


def test_preemption_takes_the_latest_and_changes_nothing():
    # Each begins with 2 pages and grows to 8: both together do not fit.
    worker = make_worker(pages=10, step_tokens=64)
    jobs = [make_job(prompt_of(10, i), 50) for i in range(2)]
    for job in jobs:
        worker.submit(job)
    run(worker)
    assert jobs[0].preemptions == 0 and jobs[1].preemptions > 0
    assert worker.scheduler.preemptions == jobs[1].preemptions
    for i, job in enumerate(jobs):
        assert tokens_of(job) == fake.reference_greedy(prompt_of(10, i), 50, WINDOW)
    assert_nothing_leaked(worker)


def test_the_preempted_returns_before_those_that_wait():
    worker = make_worker(pages=10, step_tokens=64, max_running=2)
    jobs = [make_job(prompt_of(10, i), 50) for i in range(3)]
    for job in jobs:
        worker.submit(job)
    while not worker.scheduler.preemptions:
        worker.serve()
    assert worker.scheduler.waiting[0] is jobs[1]
    run(worker)
    assert [len(tokens_of(job)) for job in jobs] == [50, 50, 50]


def test_pages_that_an_entering_prompt_will_need_are_not_given_away():
    worker = make_worker(pages=14, step_tokens=64, window=100)
    entering = Scoring(prompt_of(90), SimpleQueue(), chunk=10)  # leaves room in each step
    other = make_job(prompt_of(40), 12)
    worker.submit(entering)
    worker.submit(other)
    run(worker)
    assert worker.scheduler.preemptions == 0
    assert entering.produced == 9 and other.produced == 12


def test_sliding_pages_are_reused():
    """A long sequence needs full pages for all of it, sliding ones only for the window."""
    need = make_worker(pages=1000).scheduler.pages_for(400)
    assert need < 2 * 25
    worker, job = make_worker(pages=need), make_job(prompt_of(300), 100)
    submit(worker, job)
    run(worker)
    assert tokens_of(job) == fake.reference_greedy(prompt_of(300), 100, WINDOW)


def test_a_sequence_that_never_fits_is_refused():
    worker = make_worker(pages=10)
    capacity = worker.scheduler.capacity()
    with pytest.raises(Error, match=f"enough for {capacity} tokens.*kv_bytes"):
        worker.submit(make_job(prompt_of(capacity), 2))
    fits = make_job(prompt_of(capacity), 1)  # the token drawn needs no page of its own
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
    worker, job = make_worker(pages=30), make_job(prompt_of(20), 30, stop_ids=[stop])
    submit(worker, job)
    run(worker)
    completion = join(items(job))
    assert completion.token_ids == continuation[: continuation.index(stop) + 1]
    assert completion.finish_reason == "stop"
    assert_nothing_leaked(worker)


@pytest.mark.parametrize("step_tokens", [8, 32, 512])
def test_scoring_returns_every_row(step_tokens):
    worker = make_worker(pages=40, step_tokens=step_tokens)
    prompt = prompt_of(70)
    job = Scoring(prompt, SimpleQueue(), chunk=20)
    submit(worker, job)
    run(worker)
    position = 0
    for first, rows in items(job):
        assert first == position
        for row in rows:
            assert (row == fake.expected_logits(prompt, position, WINDOW)).all()
            position += 1
    assert position == 70
    assert_nothing_leaked(worker)


def test_scoring_survives_preemption():
    worker = make_worker(pages=14, step_tokens=16)
    older = make_job(prompt_of(2), 60)
    scoring = Scoring(prompt_of(60, 1), SimpleQueue(), chunk=4)
    worker.submit(older)
    worker.submit(scoring)
    while scoring.produced < 5:
        worker.serve()
    worker.scheduler._make_room(older, older.computed + 1)
    victim = worker.scheduler.running.pop()
    assert victim is scoring
    worker.scheduler._free(victim)
    worker.scheduler.waiting.appendleft(victim)
    run(worker)
    found = items(scoring)
    assert [first for first, _ in found] == list(range(0, 60, 4))
    assert (found[-1][1][-1] == fake.expected_logits(prompt_of(60, 1), 59, WINDOW)).all()
    assert_nothing_leaked(worker)


def test_an_error_in_a_step_fails_only_its_sequence():
    worker = make_worker(pages=100)
    jobs = [make_job(prompt_of(4, i), 10) for i in range(3)]
    poison = make_job([49, 49, 49], 10)

    def fail(token_ids):
        if token_ids.tolist().count(49) >= 3:
            raise MemoryError("no room")

    worker.backend.fail_when = fail
    for job in (jobs[0], poison, *jobs[1:]):
        worker.submit(job)
    run(worker)
    (error,) = items(poison)
    assert isinstance(error, MemoryError)
    for i, job in enumerate(jobs):
        assert tokens_of(job) == fake.reference_greedy(prompt_of(4, i), 10, WINDOW)
    assert_nothing_leaked(worker)


def test_an_error_while_taking_a_result_fails_only_its_sequence():
    worker = make_worker(pages=100)
    good, bad = make_job(prompt_of(4), 10), make_job(prompt_of(4, 1), 10)
    bad._text = object()  # has no push
    worker.submit(bad)
    worker.submit(good)
    run(worker)
    assert isinstance(items(bad)[0], AttributeError)
    assert len(tokens_of(good)) == 10
    assert_nothing_leaked(worker)


request = st.fixed_dictionaries(
    {
        "length": st.integers(1, 90),
        "most": st.integers(1, 40),
        "salt": st.integers(0, 3),
        "temperature": st.sampled_from([0.0, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.7]),
        "stop_ids": st.sets(st.integers(0, fake.VOCABULARY - 1), max_size=2),
        "score": st.booleans(),
        "guesses": st.booleans(),
        "masked": st.booleans(),
        "priority": st.integers(0, 2),
        "client": st.sampled_from(["a", "b"]),
    }
)
action = st.one_of(
    st.tuples(st.just("submit"), request),
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


def job_from(spec, seed, worker):
    prompt = prompt_of(spec["length"], spec["salt"])
    if spec["score"]:
        return Scoring(prompt, SimpleQueue(), chunk=1 + spec["most"] // 3)
    params = SamplingParams(
        temperature=spec["temperature"],
        repetition_penalty=spec["repetition_penalty"],
        frequency_penalty=spec["frequency_penalty"],
        logit_bias={5: 3.0},
        logprobs=3,
    )
    return make_job(
        prompt,
        spec["most"],
        params,
        spec["stop_ids"],
        seed,
        cost=worker.cost if spec["guesses"] else None,
        constraint=EveryOther() if spec["masked"] else None,
        priority=spec["priority"],
        client=spec["client"],
    )


def results(job):
    """What a job put out, without what depends on how it was run."""
    if isinstance(job, Scoring):
        return [row.tolist() for _, rows in items(job) for row in rows]
    return [(d.token_ids, d.finish_reason, d.logprobs) for d in items(job) if isinstance(d, Delta)]


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
    jobs, cancelled = [], set()
    for kind, what in actions:
        if kind == "submit":
            job = job_from(what, len(jobs), worker)
            try:
                worker.submit(job)
            except Error:
                assert worker.scheduler.pages_for(job.limit) > pages
            else:
                jobs.append((job, what, job.sampler.seed if job.sampler else 0))
        elif kind == "steps":
            for _ in range(what):
                if busy(worker):
                    worker.serve()
        elif what < len(jobs):
            worker.cancel(jobs[what][0])
            cancelled.add(what)
    run(worker)
    assert_nothing_leaked(worker)
    for i, (job, spec, seed) in enumerate(jobs):
        alone = make_worker(200, 512, 1, window, period, cache=False)
        reference = job_from({**spec, "guesses": False}, seed, alone)
        submit(alone, reference)
        run(alone)
        expected, found = results(reference), results(job)
        assert found == (expected[: len(found)] if i in cancelled else expected)


def computed(worker):
    """Tokens that steps were given."""
    return sum(tokens for _, tokens in worker.backend.steps)


def finish(worker, *jobs):
    for job in jobs:
        worker.submit(job)
    run(worker)
    return [tokens_of(job) for job in jobs]


# The prefix cache.


@pytest.mark.parametrize("window", [1, 16, 20, 47, 100])
def test_a_repeated_prompt_is_computed_once(window):
    worker, prompt = make_worker(pages=60, window=window), prompt_of(100)
    ((*first,),) = finish(worker, make_job(prompt, 5))
    before = computed(worker)
    job = make_job(prompt, 5)
    assert finish(worker, job) == [first]
    assert computed(worker) - before == 100 - 96 + 4  # the rest of the last block, and 4 drawn
    assert job.cached == 96
    assert_nothing_leaked(worker)


def test_a_conversation_goes_on_where_it_was():
    """Prompt, answer and next question: what the first turn computed is not computed again."""
    worker, prompt = make_worker(pages=60), prompt_of(50)
    (answer,) = finish(worker, make_job(prompt, 30))
    longer = [*prompt, *answer, *prompt_of(20, 1)]
    job = make_job(longer, 3)
    (found,) = finish(worker, job)
    assert found == fake.reference_greedy(longer, 3, WINDOW)
    assert job.cached == 64  # of 79 tokens with keys and values, whole blocks


@pytest.mark.parametrize("shared", [0, 15, 16, 40, 64, 90])
def test_what_is_shared_is_used_and_no_more(shared):
    worker = make_worker(pages=100)
    one = prompt_of(100)
    other = one[:shared] + [(token + 1) % fake.VOCABULARY for token in one[shared:]]
    finish(worker, make_job(one, 3))
    job = make_job(other, 3)
    assert finish(worker, job) == [fake.reference_greedy(other, 3, WINDOW)]
    assert job.cached == shared // 16 * 16
    assert_nothing_leaked(worker)


def test_a_window_that_lost_a_page_cuts_the_beginning():
    worker, prompt = make_worker(pages=60, window=40), prompt_of(100)
    finish(worker, make_job(prompt, 1))
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
    job = make_job(prompt, 3)
    assert finish(worker, job) == [fake.reference_greedy(prompt, 3, 40)]
    assert job.cached == 64
    again = make_job(prompt, 1)  # which mended it
    finish(worker, again)
    assert again.cached == 96


def test_kept_pages_give_way():
    """A pool full of beginnings is as good as an empty one, and the oldest go first."""
    worker = make_worker(pages=40)
    for salt in range(6):
        finish(worker, make_job(prompt_of(100, salt), 2))
    assert worker.scheduler.pool.kept > 0
    recent, old = make_job(prompt_of(100, 5), 2), make_job(prompt_of(100, 0), 2)
    finish(worker, recent)
    finish(worker, old)
    assert recent.cached == 96 and old.cached == 0
    assert_nothing_leaked(worker)
    assert worker.scheduler.preemptions == 0


def test_forgotten_beginnings_leave_no_nodes():
    worker = make_worker(pages=20)
    for salt in range(40):
        finish(worker, make_job(prompt_of(60, salt), 2))

    def count(node):
        return 1 + sum(count(child) for child in node.children.values())

    assert count(worker.scheduler._cache.root) <= 1 + 20


def test_prompts_that_come_together_are_computed_once():
    worker, prompt = make_worker(pages=200, step_tokens=32), prompt_of(100)
    jobs = [make_job(prompt, 4) for _ in range(6)]
    found = finish(worker, *jobs)
    assert found == [fake.reference_greedy(prompt, 4, WINDOW)] * 6
    assert [job.cached for job in jobs] == [0] + [96] * 5
    assert computed(worker) == 100 + 5 * 4 + 6 * 3


def test_a_preempted_sequence_takes_up_what_is_left():
    worker = make_worker(pages=10, step_tokens=64)
    jobs = [make_job(prompt_of(10, i), 50) for i in range(2)]
    finish(worker, *jobs)
    without = make_worker(pages=10, step_tokens=64, cache=False)
    finish(without, *(make_job(prompt_of(10, i), 50) for i in range(2)))
    assert worker.scheduler.preemptions and computed(worker) < computed(without)


def test_scoring_computes_every_row():
    worker, prompt = make_worker(pages=60), prompt_of(70)
    finish(worker, make_job(prompt, 2))
    job = Scoring(prompt, SimpleQueue(), chunk=20)
    submit(worker, job)
    run(worker)
    assert sum(len(rows) for _, rows in items(job)) == 70


# Guesses.

CHEAP = SimpleNamespace(share=lambda sequences: 0.05)  # what a token more in a step costs


def test_right_guesses_save_steps_and_change_nothing():
    worker = make_worker(pages=60, period=4)
    prompt = prompt_of(12)
    job = make_job(prompt, 100, cost=CHEAP)
    (found,) = finish(worker, job)
    assert found == fake.reference_greedy(prompt, 100, WINDOW, 4)
    assert len(worker.backend.steps) < 60
    assert_nothing_leaked(worker)


@pytest.mark.parametrize("temperature", [0.7, 5.0])
def test_seeded_draws_are_the_same_with_guesses(temperature):
    params = SamplingParams(temperature=temperature, top_p=0.9)
    with_guesses, without = make_worker(60, period=3), make_worker(60, period=3)
    guessing = make_job(prompt_of(20), 80, params, seed=5, cost=CHEAP)
    (found,) = finish(with_guesses, guessing)
    assert finish(without, make_job(prompt_of(20), 80, params, seed=5)) == [found]
    assert len(found) == 80


def test_guesses_take_no_pages_from_others():
    worker = make_worker(pages=10, step_tokens=64, period=3)
    jobs = [make_job(prompt_of(10, i), 40, cost=CHEAP) for i in range(2)]
    found = finish(worker, *jobs)
    assert found == [fake.reference_greedy(prompt_of(10, i), 40, WINDOW, 3) for i in range(2)]
    assert_nothing_leaked(worker)


def test_a_text_that_ends_among_guesses_ends_there():
    continuation = fake.reference_greedy(prompt_of(12), 60, WINDOW, 4)
    for stop in set(continuation):
        worker = make_worker(pages=60, period=4)
        job = make_job(prompt_of(12), 60, stop_ids=[stop], cost=CHEAP)
        (found,) = finish(worker, job)
        assert found == continuation[: continuation.index(stop) + 1]
    for most in range(1, 20):
        worker = make_worker(pages=60, period=4)
        (found,) = finish(worker, make_job(prompt_of(12), most, cost=CHEAP))
        assert found == continuation[:most]


# Steps that overlap.


def test_overlapped_steps_give_the_same():
    plain, overlapped = make_worker(pages=200), make_worker(pages=200, overlap=True)
    found = [
        finish(worker, *(make_job(prompt_of(5 + 9 * i, i), 20 + i) for i in range(8)))
        for worker in (plain, overlapped)
    ]
    assert found[0] == found[1]
    assert plain.backend.steps == overlapped.backend.steps  # nothing was computed in vain
    assert_nothing_leaked(overlapped)


def test_a_step_is_planned_while_the_one_before_runs():
    worker = make_worker(pages=60, overlap=True)
    job, events = make_job(prompt_of(5), 10), []
    step, plan = worker.backend.step, worker.scheduler.plan

    def slow_step(*args, **kwargs):
        time.sleep(0.01)
        output = step(*args, **kwargs)
        events.append("end")
        return output

    worker.backend.step = slow_step
    worker.scheduler.plan = lambda: events.append("plan") or plan()
    finish(worker, job)
    # All but the first are planned before the step in front of them ends.
    assert events == ["plan"] + ["plan", "end"] * 10


def test_an_error_in_an_overlapped_step_fails_only_its_sequence():
    worker = make_worker(pages=100, overlap=True)
    jobs = [make_job(prompt_of(4, i), 10) for i in range(3)]
    poison = make_job([1, 2, 3], 30)

    def fail(token_ids):
        if poison.produced == 12:
            raise MemoryError("no room")

    worker.backend.fail_when = fail
    for job in (jobs[0], poison, *jobs[1:]):
        worker.submit(job)
    run(worker)
    assert isinstance(items(poison)[-1], MemoryError)
    for i, job in enumerate(jobs):
        assert tokens_of(job) == fake.reference_greedy(prompt_of(4, i), 10, WINDOW)
    assert_nothing_leaked(worker)


# Who comes first.


def test_a_lower_number_goes_first():
    worker = make_worker(pages=200, max_running=1)
    jobs = [make_job(prompt_of(4, i), 3, priority=p) for i, p in enumerate((5, 1, 3))]
    for job in jobs:
        worker.submit(job)
    order = []
    while busy(worker):
        worker.serve()
        order += [j for j in worker.scheduler.running if j not in order]
    assert order == [jobs[1], jobs[2], jobs[0]]


def test_one_of_higher_priority_takes_the_place_of_a_running_one():
    worker = make_worker(pages=200, max_running=2)
    low = [make_job(prompt_of(4, i), 40, priority=1) for i in range(2)]
    for job in low:
        submit(worker, job)
    urgent = make_job(prompt_of(4, 7), 3, priority=0)
    submit(worker, urgent)
    assert worker.scheduler.running == [urgent, low[0]]
    run(worker)
    assert low[0].preemptions == 0 and low[1].preemptions == 1
    assert [len(tokens_of(job)) for job in (*low, urgent)] == [40, 40, 3]


def test_a_client_with_many_requests_does_not_keep_out_one_with_few():
    worker = make_worker(pages=400, max_running=2)
    many = [make_job(prompt_of(30, i), 10, client="many") for i in range(12)]
    for job in many:
        worker.submit(job)
    for _ in range(5):
        worker.serve()
    few = make_job(prompt_of(30, 99), 10, client="few")
    worker.submit(few)
    while not few.produced:
        worker.serve()
    assert sum(job.produced == 10 for job in many) <= 4  # it came next, not thirteenth
    run(worker)
    assert all(len(tokens_of(job)) == 10 for job in (*many, few))


def test_clients_share_alike():
    worker = make_worker(pages=400, max_running=1)
    for i in range(12):
        worker.submit(make_job(prompt_of(20, i), 5, client="ab"[i >= 6]))
    order = []
    while busy(worker):
        worker.serve()
        order += [j for j in worker.scheduler.running if j not in order]
    assert "".join(job.client for job in order) in ("abababababab", "aabababababb")
