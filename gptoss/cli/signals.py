"""SIGTERM and SIGHUP as an exception: what is half written is removed before the process ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP")  # the latter comes when a terminal is closed; Windows has none


class Terminated(BaseException):
    """A signal asks the process to end. number: which one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raising_terminated() -> Iterator[None]:
    """Within the block the first SIGTERM or SIGHUP raises Terminated in the main thread.

    Those after it do nothing, so that cleaning up is not interrupted: a session that ends sends
    both. A signal that is ignored, as under nohup, or has a handler already, keeps that.
    """
    before: dict[int, Any] = {}
    raised = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise Terminated(number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                if signal.getsignal(number) == signal.SIG_DFL:
                    before[number] = signal.SIG_DFL
                    signal.signal(number, handle)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
