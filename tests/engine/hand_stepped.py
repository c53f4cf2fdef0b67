"""A worker without a thread, stepped by hand, on a backend that notices every wrong page."""

from queue import SimpleQueue
from types import SimpleNamespace

import fake_backend as fake

from gptoss.engine.drafts import Drafter
from gptoss.engine.generation import Generation
from gptoss.engine.scheduler import Scheduler
from gptoss.engine.worker import Worker
from gptoss.request.params import SamplingParams

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
        overlap_from=1 if overlap else None,
    )


def make_request(prompt, most, params=GREEDY, stop_ids=(), seed=0, cost=None, **more):
    request = Generation(
        prompt,
        params,
        seed=seed,
        max_tokens=most,
        stop_ids=frozenset(stop_ids),
        text=None,
        token_bytes=lambda token: bytes([token]),
        outbox=SimpleQueue(),
        drafter=Drafter(prompt, cost) if cost else None,
        **more,
    )
    request.demand = most + 1
    return request


def submit(worker, request):
    worker.submit(request)
    worker.serve()


def busy(worker):
    return worker.busy


def run(worker):
    while busy(worker):
        worker.serve()


def items(request):
    found = []
    while not request.outbox.empty():
        found += request.outbox.get()[1]
    return found


def tokens_of(request):
    return [token for delta in items(request) for token in delta.token_ids]


def prompt_of(length, salt=0):
    return [(7 * i + 3 * salt + i * i) % fake.VOCABULARY for i in range(length)]


def assert_nothing_leaked(worker):
    scheduler = worker.scheduler
    assert scheduler.pool.free == scheduler.pool.size
    assert not scheduler.running and not scheduler.waiting and not worker._requests


def computed(worker):
    """Tokens that steps were given."""
    return sum(tokens for _, tokens in worker.backend.steps)


def finish(worker, *requests):
    for request in requests:
        worker.submit(request)
    run(worker)
    return [tokens_of(request) for request in requests]


CHEAP = SimpleNamespace(share=lambda sequences: 0.05)  # what one more token in a step costs
