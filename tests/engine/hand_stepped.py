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


def computed(worker):
    """Tokens that steps were given."""
    return sum(tokens for _, tokens in worker.backend.steps)


def finish(worker, *jobs):
    for job in jobs:
        worker.submit(job)
    run(worker)
    return [tokens_of(job) for job in jobs]


CHEAP = SimpleNamespace(share=lambda sequences: 0.05)  # what a token more in a step costs
