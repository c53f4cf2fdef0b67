"""From tokens to text, one token at a time, ending before a stop string."""

from __future__ import annotations

from typing import Protocol


class Decoder(Protocol):
    """What a tokenizer's `stream()` returns: holds back incomplete UTF-8."""

    def push(self, token: int, /) -> str: ...

    def flush(self) -> str: ...


class StopMatcher:
    """Passes text on up to the first stop string that completes.

    Text that may be the beginning of a stop string is held back until it is known not to be. The
    outcome does not depend on how the text is cut into pieces: of several stop strings the one
    that ends first counts, and of those that end together the longest.
    """

    def __init__(self, stop: tuple[str, ...], includes: bool = False) -> None:
        """includes: whether the stop string itself is passed on too."""
        self._stop = stop
        self._includes = includes
        self._held = ""

    def push(self, text: str, ends: bool = True) -> tuple[str, bool]:
        """(text to pass on, whether a stop string was met). Not to be called after a True.

        ends: whether one that completes in this text counts.
        """
        held = self._held + text
        matches = [(at + len(s), at) for s in self._stop if (at := held.find(s)) >= 0]
        if matches and ends:
            self._held = ""
            end, begin = min(matches)
            return held[: end if self._includes else begin], True
        keep = self._possible_beginning(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(s.startswith(end) for s in self._stop):
                return length
        return 0


class TextStream:
    """The text of one completion: a decoder, followed by a stop matcher."""

    def __init__(self, decoder: Decoder, stop: tuple[str, ...], includes: bool = False) -> None:
        """includes: whether the stop string that ends it is part of it."""
        self._decoder = decoder
        self._matcher = StopMatcher(stop, includes)

    def push(self, token: int, ends: bool = True) -> tuple[str, bool]:
        """(new text, whether a stop string was met). ends: whether one may end it already."""
        return self._matcher.push(self._decoder.push(token), ends)

    def finish(self, ends: bool = True) -> tuple[str, bool]:
        """(the rest of the text, whether a stop string was met in it)."""
        text, stopped = self._matcher.push(self._decoder.flush(), ends)
        return (text, True) if stopped else (text + self._matcher.flush(), False)
