"""What is written to standard error while a server runs: a line for each record, whoever caused it.

Much of what is logged was sent by somebody: a path, a header, a message in an exception. None of it
can begin a line of its own, move a terminal's cursor, or fill a disk.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType

_LONGEST = 8192  # characters of a line
_TOLD = 200  # characters of an exception's own words, which may be a request's
_AS_MANY, _SECONDS = 5, 60.0  # records of a kind, in so many seconds
_KINDS = 1024  # that are told apart

# C0, DEL and C1; separators of lines; marks that turn the direction of text; halves of characters.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def log_to_stderr(access: bool) -> None:
    """Our own log and that of the libraries that serve; access: a line of JSON for each request."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine())
    handler.addFilter(FewRepeats())
    for name in ("gptoss", "uvicorn", "asyncio"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO if name != "asyncio" else logging.WARNING)
    if not access:
        logging.getLogger("gptoss.access").setLevel(logging.WARNING)


def one_line(text: str) -> str:
    """Text without what a terminal or a reader of lines would take for more than text."""
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class OneLine(logging.Formatter):
    """A record as one line, with a word for its level unless that is INFO. The lines of a traceback
    follow, indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(record.getMessage())
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]} … ({len(text)} characters)"
        if record.levelno > logging.INFO:
            text = f"{record.levelname.lower()}: {text}"
        left_out = getattr(record, "left_out", 0)
        if left_out:
            text += f" ({left_out} more of this kind were left out)"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text

    def formatException(self, ei: _ExcInfo) -> str:
        """Where it was raised, and the first words of what it says."""
        error = ei[1]
        if error is None:
            return ""
        lines = [
            line
            for frame in traceback.extract_tb(ei[2])[-30:]
            for line in (f"{frame.filename}:{frame.lineno} in {frame.name}", f"  {frame.line}")
        ]
        words = one_line(str(error))[:_TOLD]
        return "\n".join(
            f"    {one_line(line)}" for line in (*lines, f"{type(error).__name__}: {words}")
        )


class FewRepeats(logging.Filter):
    """Lets through a few warnings of a kind in a minute, and counts the others.

    A kind is a message before its values are put in; with a traceback, where that ends. The next
    record that comes through says how many did not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[tuple[object, ...], _Kind] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        key: tuple[object, ...] = (record.name, record.msg)
        most = _AS_MANY
        if record.exc_info and record.exc_info[1] is not None:
            frames = traceback.extract_tb(record.exc_info[2], limit=-1)
            key += (record.exc_info[0], *((f.filename, f.lineno) for f in frames))
            most = 1
        with self._lock:
            kind = self._kinds.setdefault(key, _Kind(self._clock()))
            self._kinds.move_to_end(key)
            if len(self._kinds) > _KINDS:
                self._kinds.popitem(last=False)
            if self._clock() - kind.since >= _SECONDS:
                record.left_out = kind.left_out
                kind.since, kind.passed, kind.left_out = self._clock(), 0, 0
            if kind.passed < most:
                kind.passed += 1
                return True
            kind.left_out += 1
            return False


class _Kind:
    """since: when its minute began."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.passed = 0
        self.left_out = 0
