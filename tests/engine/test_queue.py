"""Who is admitted next: the same as by looking at everybody, at a cost that does not grow."""

import sys
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        order = sorted(self._waiting, key=self.rank)
        equals = [s for s in order if s.priority == order[0].priority]
        arrived = [s for s in equals if self._waiting[s][0]]
        # One that was sent back does not go before a client that has had less.
        if arrived and self._served(arrived[0]) < self._served(equals[0]):
            order.remove(arrived[0])
            order.insert(0, arrived[0])
        return order

    def _served(self, sequence):
        return self._clients[sequence.client].served


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
            victim.sent_back = True
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


@pytest.mark.parametrize(
    ("clients", "requests", "priorities"),
    [(1, 1, 1), (1, 4000, 1), (4000, 1, 1), (4000, 4000, 1), (1, 4000, 2001), (3000, 3000, 2001)],
)
def test_the_work_is_in_proportion_to_the_number(clients, requests, priorities):
    """Calls of Python and of heapq for n and 4 n sequences, added, cancelled and admitted."""
    few, many = (work(n, clients, requests, priorities) for n in (2000, 8000))
    assert many < 6 * few


def work(n, clients, requests, priorities):
    """How often a function is called; a loop over those that wait would call some for each."""
    scheduler = Scheduler(10_000, 16, 128, 512, 64, prefix_cache=False)
    accounts = [Account() for _ in range(requests)]
    sequences = [
        Sequence(
            [1, 2, 3],
            3,
            client=str(i % clients),
            account=accounts[i % requests],
            priority=i % priorities,
        )
        for i in range(n)
    ]
    calls = 0

    def count_calls(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count_calls)
    try:
        for sequence in sequences:
            scheduler.add(sequence)
        for sequence in sequences[1::2]:
            scheduler.remove(sequence)
        left = n // 2
        while left:
            chunks = scheduler.plan()
            for chunk in chunks:
                chunk.sequence.advance(chunk)
                scheduler.update(chunk)
                scheduler.remove(chunk.sequence)
            left -= len(chunks)
    finally:
        sys.setprofile(before)
    assert not scheduler.waiting and scheduler.pool.free == scheduler.pool.size
    return calls


def test_those_who_leave_are_forgotten():
    """One waits for room, and others come and go."""
    scheduler = Scheduler(1000, 16, 128, 512, 1, prefix_cache=False)
    scheduler.add(Sequence([1], 1))
    assert scheduler.plan()
    scheduler.add(Sequence([1], 1, client="patient"))
    for i in range(5000):
        leaver = Sequence([1], 1, client=str(i % 7))
        scheduler.add(leaver)
        scheduler.remove(leaver)
    shares = scheduler.waiting._arrived[0]
    assert len(shares._heap) < 100 and len(shares._lines) == 1


def test_among_equals_the_first_to_arrive_comes_first():
    clients = {name: Account() for name in "xy"}
    waiting = Waiting(lambda s: clients[s.client])
    served, fresh = Account(), Account()
    served.served = 5
    early = Sequence([1], 1, client="x", account=served)
    other = Sequence([1], 1, client="y")
    late = Sequence([1], 1, client="x", account=fresh)
    for sequence in (early, other, late):
        waiting.add(sequence)
    assert waiting.first() is other  # of x the least served comes first, who came last
    waiting.remove(late)
    assert waiting.first() is early


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
