"""A progress bar for long work, shown only on a terminal."""

from __future__ import annotations

import sys
from collections import deque
from time import monotonic
from types import TracebackType
from typing import TextIO

PATIENCE = 0.5  # seconds before the bar appears; shorter work shows none
INTERVAL = 0.1  # seconds between two drawings
WIDTH = 30  # characters


class Progress:
    """Call it with (done, total); draws one line and clears it when the `with` block ends."""

    def __init__(
        self, label: str, stream: TextIO | None = None, unit: str = "bytes", rate: bool = False
    ) -> None:
        """rate: say how fast it goes, and how long it will last."""
        self._label = label
        self._rate = _Rate() if rate else None
        self._stream = sys.stderr if stream is None else stream
        self._bytes = unit == "bytes"
        self._next = monotonic() + PATIENCE
        self._drawn = 0  # characters on the line

    def __call__(self, done: int, total: int) -> None:
        now = monotonic()
        if self._rate is not None:
            self._rate.note(done, now)
        if now < self._next or total <= 0 or not self._stream.isatty():
            return
        self._next = now + INTERVAL
        share = min(1.0, done / total)
        bar = ("#" * round(share * WIDTH)).ljust(WIDTH, "·")
        amounts = f"{human_bytes(done)} of {human_bytes(total)}"
        line = f"{self._label} [{bar}] {share:4.0%} {amounts if self._bytes else ''}".rstrip()
        if self._rate is not None:
            line += self._rate.words(total - done)
        self._draw(line)

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._drawn:
            self._draw("")
            self._stream.write("\r")
        self._stream.write(line + "\n")
        self._stream.flush()
        self._drawn = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Make room for other lines; the bar is drawn again with the next call."""
        if self._drawn:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()
            self._drawn = 0

    def _draw(self, line: str) -> None:
        try:
            self._stream.write("\r" + line.ljust(self._drawn))
        except UnicodeEncodeError:  # a terminal without "·"
            line = line.replace("·", ".").encode("ascii", "replace").decode()
            self._stream.write("\r" + line.ljust(self._drawn))
        self._stream.flush()
        self._drawn = len(line)


class _Rate:
    """Bytes a second over the last few seconds."""

    _SECONDS = 5.0

    def __init__(self) -> None:
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, done: int, now: float) -> None:
        if self._noted and now - self._noted[-1][0] < INTERVAL:
            return
        self._noted.append((now, done))
        while now - self._noted[0][0] > self._SECONDS:
            self._noted.popleft()

    def words(self, left: int) -> str:
        (start, first), (end, last) = self._noted[0], self._noted[-1]
        if end - start < 1 or last <= first:
            return ""
        rate = (last - first) / (end - start)
        seconds = round(left / rate)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        return f", {human_bytes(round(rate))}/s, {clock.removeprefix('0:')} left"


def human_bytes(count: int) -> str:
    """Bytes in powers of 1000, as disks and the published sizes are counted."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1000
    return f"{amount:.2f} TB"
