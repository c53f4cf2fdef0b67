"""Which sequence is admitted next, found in logarithmic time however many wait.

The order: the lowest priority number; those that were sent back for want of pages, the latest
first, unless somebody waits who has had less computed; of the client that has had the least
computed, of its request that has had the least, in order of arrival. Sharing by the tokens computed
for each is the virtual token counter of Sheng et al., "Fairness in serving large language models"
(2024).

What was computed for somebody only grows. So the heaps below need no update when it does: the entry
at the top is compared with the present value when it is looked at, and goes back with that. Entries
of those who have left stay until they come to the top, or are most of the heap.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar

from gptoss.engine.sequence import Account, Sequence


class _Line(Protocol):
    """Sequences that wait, in some order."""

    def __len__(self) -> int: ...

    def first(self) -> Sequence: ...

    def add(self, sequence: Sequence) -> None: ...

    def restore(self, sequence: Sequence) -> None: ...

    def remove(self, sequence: Sequence) -> None: ...


class _Arrivals:
    """In order of arrival: the sequences of one request."""

    def __init__(self) -> None:
        self._sequences: OrderedDict[Sequence, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sequences)

    def first(self) -> Sequence:
        return next(iter(self._sequences))

    def add(self, sequence: Sequence) -> None:
        self._sequences[sequence] = None

    def restore(self, sequence: Sequence) -> None:
        """Put it back at the head, from where it was taken."""
        self._sequences[sequence] = None
        self._sequences.move_to_end(sequence, last=False)

    def remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence]


Key = TypeVar("Key", bound=Hashable)


class _Shares(Generic[Key]):
    """Lines of several parties, of which the one that was served least comes first.

    Args:
        key: whose a sequence is. account: what was computed for them. line: makes one's line.
    """

    def __init__(
        self,
        key: Callable[[Sequence], Key],
        account: Callable[[Sequence], Account],
        line: Callable[[], _Line],
    ) -> None:
        self._key = key
        self._account = account
        self._line = line
        self._lines: dict[Key, _Line] = {}
        self._entries: dict[Key, tuple[int, int, int]] = {}  # the valid one of each in the heap
        self._heap: list[tuple[tuple[int, int, int], Key]] = []
        self._numbers = count()  # tells equal entries apart: keys are not compared
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def first(self) -> Sequence:
        while True:
            entry, key = self._heap[0]
            if self._entries.get(key) != entry:  # superseded
                heapq.heappop(self._heap)
                continue
            sequence = self._lines[key].first()
            if (self._account(sequence).served, sequence.place) == entry[:2]:
                return sequence
            heapq.heappop(self._heap)
            self._enter(key)

    def add(self, sequence: Sequence) -> None:
        key = self._key(sequence)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._line()
        line.add(sequence)
        self._size += 1
        if len(line) == 1:
            self._enter(key)

    def restore(self, sequence: Sequence) -> None:
        key = self._key(sequence)
        if key not in self._lines:
            self._lines[key] = self._line()
        self._lines[key].restore(sequence)
        self._size += 1
        self._enter(key)  # it stands before the one that the entry was made for

    def remove(self, sequence: Sequence) -> None:
        key = self._key(sequence)
        line = self._lines[key]
        line.remove(sequence)
        self._size -= 1
        if not len(line):
            del self._lines[key], self._entries[key]
        elif self._entries[key][1] == sequence.place:  # who came first of them is another now
            self._enter(key)

    def least(self) -> int:
        """Tokens computed for the client that comes first."""
        return self._account(self.first()).served

    def line(self, key: Key) -> _Line | None:
        return self._lines.get(key)

    def _enter(self, key: Key) -> None:
        first = self._lines[key].first()
        entry = (self._account(first).served, first.place, next(self._numbers))
        self._entries[key] = entry
        heapq.heappush(self._heap, (entry, key))
        if len(self._heap) > 2 * len(self._entries) + 64:  # most of it superseded
            self._heap = [(entry, key) for key, entry in self._entries.items()]
            heapq.heapify(self._heap)


class Waiting:
    """The sequences that wait for admission.

    Args:
        account: what was computed for a sequence's client.
    """

    def __init__(self, account: Callable[[Sequence], Account]) -> None:
        self._account = account
        self._places = count(1)
        self._priorities: list[int] = []  # of those that wait, ascending
        self._sent_back: dict[int, _Arrivals] = {}
        self._arrived: dict[int, _Shares[str]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, sequence: object) -> bool:
        return any(sequence is other for other in self)

    def __iter__(self) -> Iterator[Sequence]:
        """In order of admission as it stands; takes them apart and puts them back."""
        order: list[Sequence] = []
        while (sequence := self.first()) is not None:
            self.remove(sequence)
            order.append(sequence)
        for sequence in reversed(order):
            self.restore(sequence)
        return iter(order)

    def first(self) -> Sequence | None:
        """The sequence that is admitted next."""
        if not self._priorities:
            return None
        priority = self._priorities[0]
        sent_back, arrived = self._sent_back[priority], self._arrived[priority]
        if not len(sent_back):
            return arrived.first()
        first = sent_back.first()
        if len(arrived) and arrived.least() < self._account(first).served:
            return arrived.first()
        return first

    def add(self, sequence: Sequence) -> None:
        """A sequence arrives."""
        sequence.place = next(self._places)
        self._level(sequence.priority)
        self._arrived[sequence.priority].add(sequence)
        self._size += 1

    def restore(self, sequence: Sequence) -> None:
        """One returns to the head: taken out for a while, or sent back by the scheduler."""
        self._level(sequence.priority)
        self._line(sequence).restore(sequence)
        self._size += 1

    def remove(self, sequence: Sequence) -> None:
        """A waiting sequence leaves."""
        priority = sequence.priority
        self._line(sequence).remove(sequence)
        self._size -= 1
        if not len(self._arrived[priority]) and not len(self._sent_back[priority]):
            self._priorities.remove(priority)
            del self._arrived[priority], self._sent_back[priority]

    def least_client(self, sequence: Sequence) -> tuple[int, ...]:
        """The least that was computed for a client of those of the same priority, if any wait."""
        shares = self._arrived.get(sequence.priority)
        return (shares.least(),) if shares else ()

    def least_request(self, sequence: Sequence) -> tuple[int, ...]:
        """The least that was computed for a request of its client and priority, if any waits."""
        shares = self._arrived.get(sequence.priority)
        line = shares.line(sequence.client) if shares else None
        return (line.least(),) if isinstance(line, _Shares) else ()

    def _level(self, priority: int) -> None:
        if priority not in self._arrived:
            insort(self._priorities, priority)
            self._sent_back[priority] = _Arrivals()
            self._arrived[priority] = _Shares(_client, self._account, _requests)

    def _line(self, sequence: Sequence) -> _Line:
        levels: dict[int, _Arrivals] | dict[int, _Shares[str]]
        levels = self._sent_back if sequence.sent_back else self._arrived
        return levels[sequence.priority]


def _client(sequence: Sequence) -> str:
    return sequence.client


def _request(sequence: Sequence) -> Account:
    return sequence.account


def _requests() -> _Shares[Account]:
    return _Shares(_request, _request, _Arrivals)
