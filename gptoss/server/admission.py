"""How many texts are written at a time, and for whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss.server.errors import ApiError, too_many


def texts_of(body: Mapping[str, Any]) -> int:
    """How many texts a request asks for: its prompts, n times each. 1 where it is not understood:
    what is wrong with it is said later.
    """
    n, prompt = body.get("n"), body.get("prompt")
    if isinstance(n, float) and n.is_integer():
        n = int(n)  # as it is read later: 6.0 is six
    times = n if type(n) is int and n > 0 else 1
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list))
    return times * (len(prompt) if several and isinstance(prompt, list) else 1)


class Admission:
    """Counts texts in work. One client that takes all places does not keep the next one out: a
    quarter more are for those who have a sixteenth of them at most.

    most: texts at a time; may be changed.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = 0
        self._of: dict[str, int] = {}

    def take(self, client: str, size: int, own_most: int | None = None) -> None:
        """Counts them until `release`. own_most: of one request, where that is less than `most`.

        Raises ApiError: 400 where one request asks for more than may run at all, 429 where others,
        or its own client's, have to end first.
        """
        limit = self.most if own_most is None else min(own_most, self.most)
        if size > limit:
            raise ApiError(
                f"n: expected at most {limit} texts of one request, prompts times n, found {size} "
                "(gptoss serve --max-sequences)",
                field="n",
            )
        own = self._of.get(client, 0)
        free = self.running + size <= self.most
        spare = own + size <= max(1, self.most // 16)
        if not free and not (spare and self.running + size <= self.most + max(1, self.most // 4)):
            raise too_many(
                f"{self.running} texts are being written, {own} of them for you, and {self.most} "
                "may be"
            )
        self.running += size
        self._of[client] = own + size

    def release(self, client: str, size: int) -> None:
        self.running -= size
        left = self._of[client] - size
        if left:
            self._of[client] = left
        else:
            del self._of[client]
