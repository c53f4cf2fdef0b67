"""Items that this server wrote lately, for clients that refer to them by their ids."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

_OVERHEAD = 1024  # letters that an item counts for besides its text: the objects around it


class ItemMemory:
    """The latest items, as many as fit in a size; older ones are forgotten.

    Clients that believe a server to store answers, as OpenAI's does, send ids in place of items.
    Ids are 128 random bits: who knows one has had the answer. Safe for many threads.

    max_chars: letters of all items together.
    """

    def __init__(self, max_chars: int = 16 << 20) -> None:
        self._max = max_chars
        self._chars = 0
        self._items: OrderedDict[tuple[str, str], tuple[int, Mapping[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, item: Mapping[str, Any], owner: str = "") -> None:
        """An item of an output, done. Nobody reads its log-probabilities back. owner: who may."""
        if item.get("type") == "message":
            parts = [
                {name: value for name, value in part.items() if name != "logprobs"}
                for part in item["content"]
            ]
            item = {**item, "content": parts}
        size = _OVERHEAD + _letters(item)
        with self._lock:
            self._items[owner, item["id"]] = (size, item)
            self._chars += size
            while self._chars > self._max:
                _, (dropped, _) = self._items.popitem(last=False)
                self._chars -= dropped

    def get(self, name: str, owner: str = "") -> Mapping[str, Any] | None:
        """The owner's item of an id, if it is still held."""
        with self._lock:
            found = self._items.get((owner, name))
        return None if found is None else found[1]


def _letters(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_letters, value.values()))
    if isinstance(value, list):
        return sum(map(_letters, value))
    return 0
