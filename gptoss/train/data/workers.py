"""Work spread over processes, with results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from gptoss.errors import Error

A = TypeVar("A")
B = TypeVar("B")
AHEAD = 4  # results in the making, for each process


@contextmanager
def pool(workers: int) -> Iterator[Executor | None]:
    """`workers` new processes; None for one, which is this process itself.

    They begin anew ("spawn") and inherit nothing: forking is not safe beside the threads of
    libraries. So a script has to guard its main part with ``if __name__ == "__main__"``.
    """
    if workers == 1:
        yield None
        return
    executor = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )
    try:
        yield executor
    except BrokenProcessPool:
        raise Error(
            "workers: expected them to live, found that one has died, perhaps for want of "
            "memory; the same command goes on where it was, with fewer if you wish"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_order(
    executor: Executor | None, function: Callable[[A], B], items: Iterable[A]
) -> Iterator[B]:
    """map() that takes items only as fast as results are taken, but for a few ahead."""
    if executor is None:
        yield from map(function, items)
        return
    ahead = AHEAD * getattr(executor, "_max_workers", 1)
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin() -> None:
    """Leaves Ctrl-C to the parent, and ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
