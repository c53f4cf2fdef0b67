"""Harmony conversations as token ids, and which of them the model has to write itself.

A message is ``<|start|>author[ to=recipient][<|channel|>channel][ content type]<|message|>content``
and an end token. What the model is trained to write is what it will have to write when it is used:
there the prompt ends with ``<|start|>assistant``, so everything after that counts, up to the end
token; and when an assistant message follows an assistant message (thinking, then the answer), its
``<|start|>assistant`` counts too. Nothing of anybody else's messages does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gptoss.chat import (
    CALL,
    CHANNEL,
    CHANNELS,
    CONSTRAIN,
    END,
    MESSAGE,
    REQUIRED,
    RETURN,
    ROLES,
    START,
)
from gptoss.errors import Error, shown

_THINKING = ("thinking", "reasoning")
_KEYS = ("role", "content", "channel", "recipient", "name", "content_type", "weight", *_THINKING)
NOTHING = -1  # no target


@dataclass(frozen=True)
class Message:
    """`name` of a tool or a person; `weight` 0: an assistant message that is not to be learned."""

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    name: str | None = None
    content_type: str | None = None
    weight: int = 1

    @property
    def from_model(self) -> bool:
        return self.role == "assistant"


@dataclass(frozen=True)
class Example:
    """A sequence to learn from: int64 [n] each.

    targets[i] is the id to be written after tokens[0 … i], or −1 where nothing is learned.
    """

    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def parse_messages(raw: object, where: str) -> list[Message]:
    """Messages from their JSON form. `where` is named in errors: "file.jsonl:12".

    An assistant message without a channel is in "final", or in "commentary" if it has a recipient.
    Its "thinking" (or "reasoning") becomes a message in "analysis" before it. A tool's message goes
    to the assistant, in "commentary". Raises Error for anything that is not a conversation.
    """
    if not isinstance(raw, list) or not raw:
        raise Error(f"{where}: messages: expected a list of messages, found {shown(raw)}")
    found: list[Message] = []
    for number, item in enumerate(raw):
        found += _parse(item, f"{where}: messages[{number}]")
    return found


def _parse(item: object, where: str) -> list[Message]:
    if not isinstance(item, dict):
        raise Error(f"{where}: expected an object, found {shown(item)}")
    unknown = sorted(set(item) - set(_KEYS))
    if unknown:
        raise Error(f"{where}: expected keys among {', '.join(_KEYS)}, found {shown(unknown[0])}")
    role = item.get("role")
    if role not in ROLES:
        raise Error(f"{where}: role: expected one of {', '.join(ROLES)}, found {shown(role)}")
    values = {key: _text(item, key, where) for key in _KEYS[2:6]}
    thinking = next((text for key in _THINKING if (text := _text(item, key, where))), None)
    content = item.get("content")
    if not isinstance(content, str):
        raise Error(f"{where}: content: expected a string, found {shown(content)}")
    weight = item.get("weight", 1)
    if weight not in (0, 1):
        raise Error(f"{where}: weight: expected 0 or 1, found {shown(weight)}")
    message = Message(role=role, content=content, weight=int(weight), **values)
    if role == "tool":
        return [_tool(message, where)]
    if role != "assistant":
        if thinking:
            raise Error(f"{where}: thinking: expected in assistant messages only")
        return [message]
    channel = message.channel or ("commentary" if message.recipient else "final")
    if channel not in CHANNELS:
        raise Error(
            f"{where}: channel: expected one of {', '.join(CHANNELS)}, found {shown(channel)}"
        )
    message = replace(message, channel=channel)
    if not thinking:
        return [message]
    return [Message(role, thinking, "analysis", weight=message.weight), message]


def _tool(message: Message, where: str) -> Message:
    if not message.name:
        raise Error(f"{where}: name: expected the tool's, such as functions.weather, found none")
    return replace(
        message,
        channel=message.channel or "commentary",
        recipient=message.recipient or "assistant",
    )


def _text(item: Mapping[str, Any], key: str, where: str) -> str | None:
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise Error(f"{where}: {key}: expected a string, found {shown(value)}")
    return value or None


class Harmony:
    """Renders messages with the vocabulary of one model."""

    def __init__(self, encode: Callable[[str], list[int]], special: Mapping[str, int]) -> None:
        """`encode` must take names of special tokens for plain text; `special`: name → id.

        Raises Error when the vocabulary lacks tokens that conversations need.
        """
        missing = [name for name in REQUIRED if name not in special]
        if missing:
            raise Error(
                "tokenizer: conversations need the special tokens of harmony; this model's "
                f"vocabulary lacks {' '.join(missing)} (--method text does without them)"
            )
        self.encode = encode
        self.special = {name: special[name] for name in REQUIRED}

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """`messages` and the beginning of the answer to them, as the model meets them in use."""
        ids = [token for i in _kept(messages) for token in self._render(messages[i])[0]]
        return [*ids, self.special[START], *self.encode("assistant")]

    def examples(self, messages: Sequence[Message], where: str) -> list[Example]:
        """What there is to learn from one conversation: every assistant message counts once.

        In use, the thinking of an earlier turn is no longer shown once that turn has its answer. So
        a turn with thinking that others follow becomes an example of its own, cut off after it;
        later examples hold its answer as context only. Raises Error without anything to learn.
        """
        found = []
        turns = _turns(messages)
        begin = 0
        for number, turn in enumerate(turns):
            last = number == len(turns) - 1
            if last or _forgets(messages, turn):
                trained = range(begin, turn.stop)
                if any(messages[i].from_model and messages[i].weight for i in trained):
                    found.append(self.example(messages[: turn.stop], trained))
                begin = turn.stop
        if not found:
            raise Error(f"{where}: expected an assistant message to learn from, found none")
        return found

    def example(self, messages: Sequence[Message], trained: Iterable[int]) -> Example:
        """The conversation as `render` has it, up to the last target."""
        ids, wanted = self.render(messages, trained)
        end = max((i for i, target in enumerate(wanted) if target != NOTHING), default=1)
        return Example(np.array(ids[:end], np.int64), np.array(wanted[1 : end + 1], np.int64))

    def render(
        self, messages: Sequence[Message], trained: Iterable[int] = ()
    ) -> tuple[list[int], list[int]]:
        """The ids of a whole conversation, and what the model has to write at each place or −1.

        `trained`: indices of the assistant messages to be learned. The whole ends with
        ``<|return|>`` if the last message is an answer. Answers before that are followed by
        ``<|end|>``, as histories are written; yet what the model has to write at that place is
        ``<|return|>``, and that is the target there.
        """
        learned = set(trained)
        ids: list[int] = []
        wanted: list[int] = []
        indices = _kept(messages)
        kept = [messages[i] for i in indices]
        for place, message in enumerate(kept):
            before = kept[place - 1] if place else None
            part, author = self._render(message)
            targets = [NOTHING] * len(part)
            if message.from_model and message.weight and indices[place] in learned:
                continues = before and _speaks(before) and not _stops(before)
                first = 0 if continues else author
                targets[first:] = part[first:]
                if _stops(message):
                    targets[-1] = self.special[RETURN]
            if _stops(message) and message is kept[-1]:
                part[-1] = self.special[RETURN]
            ids += part
            wanted += targets
        return ids, wanted

    def _render(self, message: Message) -> tuple[list[int], int]:
        """The ids of a message, and how many of them are ``<|start|>`` and the author."""
        special = self.special
        tool = message.role == "tool" and message.name
        ids = [special[START], *self.encode(tool or message.role)]
        count = len(ids)
        if message.name and not tool:
            ids += self.encode(f":{message.name}")
        if message.recipient:
            ids += self.encode(f" to={message.recipient}")
        if message.channel:
            ids += [special[CHANNEL], *self.encode(message.channel)]
        if message.content_type:
            ids += self._content_type(message.content_type)
        ids += [special[MESSAGE], *self.encode(message.content)]
        calls = message.from_model and message.recipient
        return [*ids, special[CALL if calls else END]], count

    def _content_type(self, text: str) -> list[int]:
        """Such as "json", or "<|constrain|>json", the only place where a name means the token."""
        if not text.startswith(CONSTRAIN):
            return self.encode(f" {text}")
        rest = text.removeprefix(CONSTRAIN)
        return [*self.encode(" "), self.special[CONSTRAIN], *(self.encode(rest) if rest else [])]


def _speaks(message: Message) -> bool:
    """Whether the model speaks here, and not to a tool."""
    return message.from_model and not message.recipient


def _stops(message: Message) -> bool:
    """Whether the model stops after `message`, so that others speak next."""
    return _speaks(message) and message.channel == "final"


def _turns(messages: Sequence[Message]) -> list[range]:
    """Stretches that end before a user's (or system's, or developer's) message after an answer."""
    found, start = [], 0
    for index in range(1, len(messages)):
        asks = messages[index].role in ("system", "developer", "user")
        if asks and messages[index - 1].role in ("assistant", "tool"):
            found.append(range(start, index))
            start = index
    return [*found, range(start, len(messages))]


def _forgets(messages: Sequence[Message], turn: range) -> bool:
    """Whether the thinking of `turn` is left out once another turn follows: it has an answer."""
    mine = [messages[i] for i in turn if messages[i].from_model]
    answered = any(message.channel == "final" for message in mine)
    return answered and any(message.channel == "analysis" for message in mine)


def _kept(messages: Sequence[Message]) -> list[int]:
    """Which of `messages` are shown when the next one is about to be written."""
    turns = _turns(messages)
    kept: list[int] = []
    for turn in turns:
        forgets = turn is not turns[-1] and _forgets(messages, turn)
        kept += [i for i in turn if not (forgets and messages[i].channel == "analysis")]
    return kept
