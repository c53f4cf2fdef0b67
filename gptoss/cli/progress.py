"""A progress bar for long work, shown only on a terminal."""

from __future__ import annotations

import sys
from time import monotonic
from types import TracebackType
from typing import TextIO

PATIENCE = 0.5  # seconds before the bar appears; shorter work shows none
INTERVAL = 0.1  # seconds between two drawings
WIDTH = 30  # characters


class Progress:
    """Call it with (done, total); draws one line and clears it when the `with` block ends."""

    def __init__(self, label: str, stream: TextIO | None = None, unit: str = "bytes") -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._bytes = unit == "bytes"
        self._next = monotonic() + PATIENCE
        self._drawn = 0  # characters on the line

    def __call__(self, done: int, total: int) -> None:
        now = monotonic()
        if now < self._next or total <= 0 or not self._stream.isatty():
            return
        self._next = now + INTERVAL
        share = min(1.0, done / total)
        bar = ("#" * round(share * WIDTH)).ljust(WIDTH, "·")
        amounts = f"{human_bytes(done)} of {human_bytes(total)}"
        line = f"{self._label} [{bar}] {share:4.0%} {amounts if self._bytes else ''}".rstrip()
        self._draw(line)

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


def human_bytes(count: int) -> str:
    """Bytes in powers of 1000, as disks and the published sizes are counted."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.2f} {unit}"
        amount /= 1000
    return f"{amount:.2f} TB"
