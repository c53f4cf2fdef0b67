"""Who is admitted next: the same as by looking at everybody, at a cost that does not grow."""

import heapq
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.engine import queue
from gptoss.engine.queue import Waiting
from gptoss.engine.scheduler import Scheduler
from gptoss.engine.sequence import Account, Sequence


class Plain:
    """The same order, found by looking at everybody."""

    def __init__(self, clients):
        self._clients = clients
        self._waiting = {}
        self._sent_back = count(0, -1)
        self._places = count(1)

    def add(self, sequence):
        self._waiting[sequence] = (1, next(self._places))

    def send_back(self, sequence):
        self._waiting[sequence] = (0, next(self._sent_back))

    def remove(self, sequence):
        del self._waiting[sequence]

    def rank(self, sequence):
        arrived, place = self._waiting[sequence]
        served = (
            (self._clients[sequence.client].served, sequence.account.served) if arrived else (0, 0)
        )
        return sequence.priority, arrived, *served, place

    def order(self):
        return sorted(self._waiting, key=self.rank)


action = st.one_of(
    st.tuples(
        st.just("add"), st.integers(0, 2), st.sampled_from(["a", "b", "c"]), st.integers(0, 2)
    ),
    st.tuples(st.just("take"), st.integers(1, 50)),
    st.tuples(st.just("send back"), st.integers(0, 20)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("pass"), st.integers(1, 4)),
)


@given(st.lists(action, max_size=60))
def test_the_order_is_that_of_a_search(actions):
    clients = {name: Account() for name in "abc"}
    waiting, plain, running = Waiting(lambda s: clients[s.client]), Plain(clients), []
    accounts = {(name, i): Account() for name in "abc" for i in range(3)}

    def best(rank_of):
        """Of those in front, up to ties: the fair share decides, then the place of a client's
        first, which may be another than the first of all.
        """
        first = waiting.first()
        order = plain.order()
        if not order:
            assert first is None
            return None
        assert rank_of(first)[:4] == rank_of(order[0])[:4]
        return first

    for kind, *what in actions:
        first = best(plain.rank)
        if kind == "add":
            priority, client, request = what
            sequence = Sequence(
                [1], 1, priority=priority, client=client, account=accounts[client, request]
            )
            waiting.add(sequence)
            plain.add(sequence)
        elif kind == "take" and first is not None:
            waiting.remove(first)
            plain.remove(first)
            running.append(first)
            clients[first.client].served += what[0]
            first.account.served += what[0]
        elif kind == "send back" and running:
            victim = running.pop(what[0] % len(running))
            victim.preemptions += 1
            waiting.restore(victim)
            plain.send_back(victim)
        elif kind == "cancel" and len(waiting):
            victim = plain.order()[what[0] % len(waiting)]
            waiting.remove(victim)
            plain.remove(victim)
        elif kind == "pass":
            passed = []
            while len(passed) < what[0] and (sequence := waiting.first()) is not None:
                waiting.remove(sequence)
                passed.append(sequence)
            for sequence in reversed(passed):
                waiting.restore(sequence)
            assert waiting.first() is first
        assert len(waiting) == len(plain.order())
    assert {id(s) for s in waiting} == {id(s) for s in plain.order()}


@pytest.mark.parametrize("clients", [1, 2000])
@pytest.mark.parametrize("requests", [1, 2000])
def test_the_work_is_in_proportion_to_the_number(clients, requests, monkeypatch):
    """Heap operations for n sequences that are added, admitted and cancelled: a few for each."""
    operations = count()
    for name in ("heappush", "heappop"):
        real = getattr(heapq, name)
        monkeypatch.setattr(
            queue.heapq, name, lambda *args, real=real: (next(operations) and None) or real(*args)
        )
    n = 4000
    scheduler = Scheduler(10_000, 16, 128, 512, 64, prefix_cache=False)
    accounts = [Account() for _ in range(requests)]
    sequences = [
        Sequence([1, 2, 3], 3, client=str(i % clients), account=accounts[i % requests])
        for i in range(n)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    for sequence in sequences[1::2]:
        scheduler.remove(sequence)
    left = n // 2
    while left:
        chunks = scheduler.plan()
        assert chunks
        for chunk in chunks:
            chunk.sequence.advance(chunk)
            scheduler.update(chunk)
            scheduler.remove(chunk.sequence)
        left -= len(chunks)
    assert not scheduler.waiting and scheduler.pool.free == scheduler.pool.size
    assert next(operations) < 12 * n


def test_one_request_does_not_keep_out_another_of_the_same_client():
    scheduler = Scheduler(1000, 16, 128, 512, 2, prefix_cache=False)
    many = Account()
    for _ in range(500):
        scheduler.add(Sequence([1, 2, 3], 3, client="proxy", account=many))
    one = Sequence([4, 5, 6], 3, client="proxy")
    for steps in range(4):
        for chunk in scheduler.plan():
            chunk.sequence.advance(chunk)
            scheduler.update(chunk)
            scheduler.remove(chunk.sequence)
            if chunk.sequence is one:
                return
        if steps == 0:
            scheduler.add(one)
    raise AssertionError("it waits for the others")
