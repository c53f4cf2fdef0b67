"""Steps that are planned while the one before them runs."""

import fake_backend as fake
from hand_stepped import (
    WINDOW,
    assert_nothing_leaked,
    finish,
    items,
    make_request,
    make_worker,
    prompt_of,
    run,
    tokens_of,
)
from waiting import until


def test_overlapped_steps_give_the_same():
    plain, overlapped = make_worker(pages=200), make_worker(pages=200, overlap=True)
    found = [
        finish(worker, *(make_request(prompt_of(5 + 9 * i, i), 20 + i) for i in range(8)))
        for worker in (plain, overlapped)
    ]
    assert found[0] == found[1]
    assert plain.backend.steps == overlapped.backend.steps  # nothing was computed in vain
    assert_nothing_leaked(overlapped)


def test_a_step_is_planned_while_the_one_before_runs():
    worker = make_worker(pages=60, overlap=True)
    request, events = make_request(prompt_of(5), 10), []
    step, plan = worker.backend.step, worker.scheduler.plan

    def patient_step(*args, **kwargs):
        until(lambda: events.count("plan") >= events.count("end") + 2, "the plan of the next step")
        output = step(*args, **kwargs)
        events.append("end")
        return output

    worker.backend.step = patient_step
    worker.scheduler.plan = lambda: events.append("plan") or plan()
    finish(worker, request)
    # All but the first are planned before the step in front of them ends.
    assert events == ["plan"] + ["plan", "end"] * 10


def test_an_error_in_an_overlapped_step_fails_only_its_sequence():
    worker = make_worker(pages=100, overlap=True)
    requests = [make_request(prompt_of(4, i), 10) for i in range(3)]
    poison = make_request([1, 2, 3], 30)

    def fail(token_ids):
        if poison.produced == 12:
            raise MemoryError("no room")

    worker.backend.fail_when = fail
    for request in (requests[0], poison, *requests[1:]):
        worker.submit(request)
    run(worker)
    assert isinstance(items(poison)[-1], MemoryError)
    for i, request in enumerate(requests):
        assert tokens_of(request) == fake.reference_greedy(prompt_of(4, i), 10, WINDOW)
    assert_nothing_leaked(worker)
