"""Work that recurses once for each level of what somebody sent, in code that is not ours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

_Found = TypeVar("_Found")

# llguidance recurses once for each rule of a chain, some 300 bytes of stack for each byte of it;
# only pages that are touched count as memory. A thread's own 8 MB would end the whole process.
_STACK = 1 << 30
_one_at_a_time = threading.Lock()  # the size of stacks is the process's


def deeply(work: Callable[[], _Found]) -> _Found:
    """What `work` returns or raises, worked out on a stack that a grammar of any size fits."""
    found: list[_Found] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)

    with _one_at_a_time:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=run, name="gptoss-grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
