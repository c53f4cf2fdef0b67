"""What is written to standard error while a server runs: a line for each record, whoever caused it.

Much of what is logged was sent by somebody: a path, a header, a message in an exception. None of it
can begin a line of its own, move a terminal's cursor, or fill a disk.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType

_LONGEST = 8192  # characters of a line
_TOLD = 200  # characters of an exception's own words
_FRAMES = 30  # of a traceback, the innermost
_CAUSES = 5  # exceptions that one came of
_AS_MANY, _SECONDS = 5, 60.0  # records of a kind, in so many seconds
_KINDS = 1024  # that are told apart
# Exceptions whose words are Python's or ours. All others may quote what they were raised for: a
# KeyError its key, a UnicodeError a whole text, an error of HTTP a header with a key.
_SPEAKING = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, MemoryError, NameError),
    *(OSError, RuntimeError, TypeError),
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
    # Warnings of all other libraries, which Python would write as they are.
    logging.getLogger().addHandler(handler)
    if not access:
        logging.getLogger("gptoss.access").setLevel(logging.WARNING)


def one_line(text: str) -> str:
    """Text without what a terminal or a reader of lines would take for more than text: control
    characters, ends of lines, marks that turn the direction of text or cannot be seen, halves.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in text)


def _escaped(code: int) -> str:
    if code < 1 << 8:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def _words(record: logging.LogRecord) -> str:
    """What a record says."""
    text = record.getMessage()
    if record.name == "asyncio" and record.exc_info:
        # What follows are the values that a function was called with.
        return text.partition("\n")[0].partition("(")[0]
    return text


class OneLine(logging.Formatter):
    """A record as one line, with a word for its level unless that is INFO. The lines of a traceback
    follow, indented, and a line for each kind of which some were left out.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = _line(_words(record), _LONGEST)
        if record.levelno > logging.INFO:
            text = f"{record.levelname.lower()}: {text}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        for words, count in getattr(record, "left_out", ()):
            text += f"\nwarning: {count} more of this kind were left out: {words}"
        return text

    def formatException(self, ei: _ExcInfo) -> str:
        """Where it was raised; what it says only where that cannot be a request's text."""
        error, lines = ei[1], []
        for _ in range(_CAUSES):
            if error is None:
                break
            lines += _told(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            if error is not None:
                lines.append("which came of:")
        return "\n".join(f"    {one_line(line)}" for line in lines)


def _line(text: str, most: int) -> str:
    line = one_line(text[:most])
    if len(text) <= most and len(line) <= most:
        return line
    return f"{line[:most]} … ({len(text)} characters)"


def _told(error: BaseException) -> list[str]:
    lines = [
        line
        for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        for line in (f"{frame.filename}:{frame.lineno} in {frame.name}", f"  {frame.line}")
    ]
    words = f": {_line(str(error), _TOLD)}" if isinstance(error, _SPEAKING) else ""
    lines.append(type(error).__name__ + words)
    for one in getattr(error, "exceptions", ())[:_CAUSES]:  # of an ExceptionGroup
        lines += [f"  {line}" for line in _told(one)]
    return lines


class FewRepeats(logging.Filter):
    """Lets through a few warnings of a kind in a minute, and counts the others.

    A kind is a message before its values are put in; with a traceback, where that went through. The
    first record that comes through after the minute says how many did not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[tuple[object, ...], _Kind] = OrderedDict()  # by their beginning
        self._left_out: list[tuple[str, int]] = []  # nothing said so yet
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        key = _kind_of(record) if record.levelno >= logging.WARNING else None
        with self._lock:
            now = self._clock()
            self._end_minutes(now, 0 if key is None or key in self._kinds else 1)
            if key is not None:
                kind = self._kinds.setdefault(key, _Kind(now, _line(_words(record), _TOLD)))
                if kind.passed >= (1 if record.exc_info else _AS_MANY):
                    kind.left_out += 1
                    return False
                kind.passed += 1
            if self._left_out:
                record.left_out, self._left_out = self._left_out, []
            return True

    def _end_minutes(self, now: float, more: int) -> None:
        """Of kinds whose minute is over; of the oldest, where there are too many with `more`."""
        while self._kinds:
            first = next(iter(self._kinds.values()))
            if now - first.since < _SECONDS and len(self._kinds) + more <= _KINDS:
                break
            self._kinds.popitem(last=False)
            if first.left_out:
                self._left_out.append((first.words, first.left_out))


def _kind_of(record: logging.LogRecord) -> tuple[object, ...]:
    words = _words(record) if record.name == "asyncio" else record.msg
    key: tuple[object, ...] = (record.name, words)
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return key
    frames = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    return (*key, type(error), *places[-_FRAMES:])


class _Kind:
    """since: when its minute began. words: what its first record says."""

    def __init__(self, since: float, words: str) -> None:
        self.since = since
        self.words = words
        self.passed = 0
        self.left_out = 0
