"""Which replica answers a request: the one that read its prefix before, unless it is busy.

A replica keeps what it computed of a text; a conversation that grows turn by turn is cheapest where
its first turns were read. The text of a request is cut into pieces, and every prefix of these
has a key; the router remembers which replica a key went to last. Nothing here waits, has threads
or is random: the same calls give the same choices.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from gptoss.errors import Error
from gptoss.server.admission import texts_of
from gptoss.server.parse import parse_body

UP, HUNG, DOWN, STARTING = "up", "hung", "down", "starting"
STATES = (UP, HUNG, DOWN, STARTING)
PIECE = 512  # characters: about the tokens of eight pages of the cache
MAX_KEYS = 256  # of one request; what comes after does not choose among replicas
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
GENERATING = (CHAT, COMPLETIONS, RESPONSES)


def survey(path: str, data: bytes, owner: str = "") -> tuple[list[bytes], int]:
    """(the keys of a request's prefixes, how many texts it asks for). owner: for whom alone the
    replicas keep what they read; "": for all.
    """
    try:
        body = parse_body(data)
        texts = texts_of(body)
        start = _text([owner, body.get("cache_salt")]).encode()
        return _chain(_pieces(_PARTS[path](body) if path in _PARTS else ()), start), texts
    except (Error, ValueError, RecursionError, TypeError):
        return [], 1


class Router:
    """Counts what runs on each replica and remembers what it read.

    replicas: how many there are, all up. max_running: texts that one replica may write at a
    time. entries: keys that are remembered; the least recently used are forgotten.
    """

    def __init__(self, replicas: int, max_running: int, entries: int = 1 << 16) -> None:
        self.running = [0] * replicas  # texts that each writes
        self.requests = [0] * replicas  # and of how many requests
        self.state = [UP] * replicas
        self.since = [time.time()] * replicas  # Unix time at which each came into its state
        self.code: list[int | None] = [None] * replicas  # with which each ended last
        self.ended = [0] * replicas  # how often each was no longer up
        self.max_running = max_running
        self._entries = entries
        self._home: OrderedDict[bytes, int] = OrderedDict()
        self._turn = [0] * replicas  # when each was chosen last
        self._turns = 0

    def take(
        self, keys: Sequence[bytes] = (), excluded: Collection[int] = (), size: int = 1
    ) -> int | None:
        """The replica that gets a request with these keys, counted as running there until
        `release`. None: all that are up, and are not in `excluded`, are full. size: texts of it.
        """
        # Whose turn it is says `Admission`, which keeps a quarter for clients who have little.
        most = self.max_running + self.max_running // 4 - size
        free = [i for i in self._usable(excluded) if self.running[i] <= most]
        if not free:
            return None
        chosen = self._known(keys, free)
        if chosen is None:
            chosen = self._least_loaded(free)
        for key in keys:
            self._home[key] = chosen
            self._home.move_to_end(key)
        while len(self._home) > self._entries:
            self._home.popitem(last=False)
        self.running[chosen] += size
        self.requests[chosen] += 1
        self._chosen(chosen)
        return chosen

    def release(self, replica: int, size: int = 1) -> None:
        """A request there has come to its end."""
        assert self.running[replica] >= size
        self.running[replica] -= size
        self.requests[replica] -= 1

    def pick(self, excluded: Collection[int] = ()) -> int | None:
        """Any replica that is up, for a small question; nothing is counted or remembered."""
        free = self._usable(excluded)
        if not free:
            return None
        chosen = self._least_loaded(free)
        self._chosen(chosen)
        return chosen

    @property
    def up(self) -> list[bool]:
        """Which of them may be sent requests."""
        return [state == UP for state in self.state]

    def set_up(self, replica: int, up: bool) -> None:
        """A replica began to answer, or ended; what it had read is lost with it."""
        self.set_state(replica, UP if up else DOWN)

    def set_state(self, replica: int, state: str, code: int | None = None) -> None:
        """What became of it: UP, HUNG (it does not answer, and may again), DOWN or STARTING.
        code: with which it ended; None: as before.
        """
        if state != self.state[replica]:
            self.since[replica] = time.time()
        if code is not None:
            self.code[replica] = code
        self.ended[replica] += state == DOWN and self.state[replica] in (UP, HUNG)
        self.state[replica] = state
        if state == DOWN:
            for key in [key for key, home in self._home.items() if home == replica]:
                del self._home[key]

    def _usable(self, excluded: Collection[int]) -> list[int]:
        return [i for i, up in enumerate(self.up) if up and i not in excluded]

    def _least_loaded(self, free: Iterable[int]) -> int:
        # Of equals, the one that was chosen longest ago.
        return min(free, key=lambda i: (self.running[i], self._turn[i], i))

    def _known(self, keys: Sequence[bytes], free: Collection[int]) -> int | None:
        """Where the longest prefix is known that can take one more: none may have clearly more to
        do than the mean, or one prefix that all requests share would keep a single replica busy.
        """
        mean = (sum(self.running[i] for i in free) + 1) / len(free)
        for key in reversed(keys):
            home = self._home.get(key)
            if home is None or home not in free:
                continue
            if self.running[home] + 1 <= 1.25 * mean + 1:
                return home
        return None

    def _chosen(self, replica: int) -> None:
        self._turns += 1
        self._turn[replica] = self._turns


# What a model reads first comes first; an empty string marks a place where a later request may go
# on differently.


def _of_chat(body: Mapping[str, Any]) -> Iterator[str]:
    # Effort and tools stand before the messages in harmony. Without tools that is too little to be
    # a prefix of its own: every request would share it.
    yield _text([body.get("reasoning_effort"), body.get("tools")])
    if body.get("tools"):
        yield ""
    yield from _each(body.get("messages"))


def _of_responses(body: Mapping[str, Any]) -> Iterator[str]:
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, Mapping) else None
    yield _text([effort, body.get("tools"), body.get("instructions")])
    if body.get("tools") or body.get("instructions"):
        yield ""
    asked = body.get("input")
    # A text is the same as one message of the user.
    yield from _each([{"role": "user", "content": asked}] if isinstance(asked, str) else asked)


def _of_completions(body: Mapping[str, Any]) -> Iterator[str]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]  # of several, the first one chooses
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, list):
        yield " ".join(str(token) for token in prompt)
    yield ""


def _each(messages: object) -> Iterator[str]:
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and message.get("type") == "message":
            message = {name: value for name, value in message.items() if name != "type"}
        yield _text(message)
        yield ""


_PARTS = {CHAT: _of_chat, RESPONSES: _of_responses, COMPLETIONS: _of_completions}


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _pieces(parts: Iterable[str]) -> Iterator[str]:
    """The parts joined, cut after PIECE characters and where an empty part marks an end."""
    held = ""
    for part in parts:
        if part:
            held += part
            start = 0
            while len(held) - start >= PIECE:
                yield held[start : start + PIECE]
                start += PIECE
            held = held[start:]
        elif held:
            yield held
            held = ""


def _chain(pieces: Iterable[str], key: bytes) -> list[bytes]:
    """A key for each growing prefix: the hash of the last key, at first this one, and the next
    piece.
    """
    keys: list[bytes] = []
    for piece, _ in zip(pieces, range(MAX_KEYS), strict=False):
        key = blake2b(key + piece.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        keys.append(key)
    return keys
