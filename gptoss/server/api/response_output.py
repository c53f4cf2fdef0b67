"""The output of a response while it is written: items, and the events that tell of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss.server.api.answer import Part
from gptoss.server.api.encrypted_content import encode_thinking
from gptoss.server.api.items import PHASES
from gptoss.server.api.logprobs import logprob_object

Event = dict[str, Any]


@dataclass(frozen=True)
class ThinkingForms:
    """In which forms thinking comes besides the text itself.

    packed: as `encrypted_content`. summary: as a summary of its own, which is the same text:
    clients that show no more than summaries ask for one, and nobody is here to write it.
    """

    packed: bool = False
    summary: bool = False


PLAIN = ThinkingForms()


class Output:
    """Items made of the parts of an answer, each message of the model an item of its own."""

    def __init__(self, thinking: ThinkingForms) -> None:
        self._thinking = thinking
        self._items: dict[int, _Item] = {}  # by the number of the message, in the order they began

    def take(self, part: Part) -> Iterator[Event]:
        """What a part changes."""
        item = self._items.get(part.number)
        if item is None:
            item = self._item(part)
            self._items[part.number] = item
            yield from item.begin()
        yield from item.add(part)
        if part.ends:
            yield from item.end("completed" if part.whole else "incomplete")

    def _item(self, first: Part) -> _Item:
        place = len(self._items)
        if first.kind == "thinking":
            return _Thinking(first, place, self._thinking)
        return _Message(first, place) if first.kind == "text" else _Call(first, place)

    def close(self) -> None:
        """Nothing more comes, though something was expected."""
        for item in self._items.values():
            if item.status == "in_progress":
                item.status = "incomplete"

    def items(self) -> list[dict[str, Any]]:
        """All of it, as far as it has come."""
        return [item.value() for item in self._items.values()]


class _Item:
    """One item of the output."""

    prefix = ""

    def __init__(self, first: Part, place: int) -> None:
        self.id = f"{self.prefix}_{secrets.token_hex(16)}"
        self.status = "in_progress"
        self._first, self._place = first, place
        self._texts: list[str] = []
        self._begun = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def value(self) -> dict[str, Any]:
        raise NotImplementedError

    def begin(self) -> Iterator[Event]:
        yield self._event("response.output_item.added", item=self.value())

    def add(self, part: Part) -> Iterator[Event]:
        raise NotImplementedError

    def end(self, status: str) -> Iterator[Event]:
        self.status = status
        yield self._event("response.output_item.done", item=self.value())

    def _event(self, kind: str, **values: Any) -> Event:
        return {"type": kind, "output_index": self._place, **values}


class _WithContent(_Item):
    """An item that has its text in a content part."""

    part_type = ""

    def part(self) -> dict[str, Any]:
        """The content part as it is now."""
        return {"type": self.part_type, "text": self.text}

    def content(self) -> list[dict[str, Any]]:
        return [self.part()] if self._begun else []

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        self._begun = True
        yield self._event("response.content_part.added", part=self.part())

    def add(self, part: Part) -> Iterator[Event]:
        if part.text:
            self._texts.append(part.text)
            yield self._event(f"response.{self.part_type}.delta", delta=part.text)

    def end(self, status: str) -> Iterator[Event]:
        yield self._event(f"response.{self.part_type}.done", text=self.text)
        yield self._event("response.content_part.done", part=self.part())
        yield from super().end(status)

    def _event(self, kind: str, **values: Any) -> Event:
        event = super()._event(kind, **values)
        return event if "item" in event else {**event, "item_id": self.id, "content_index": 0}


class _Thinking(_WithContent):
    prefix, part_type = "rs", "reasoning_text"

    def __init__(self, first: Part, place: int, forms: ThinkingForms) -> None:
        super().__init__(first, place)
        self._forms = forms

    def value(self) -> dict[str, Any]:
        value = {
            "id": self.id,
            "type": "reasoning",
            "summary": [self._summary()] if self._forms.summary and self._begun else [],
            "content": self.content(),
            "status": self.status,
        }
        if self._forms.packed:
            value["encrypted_content"] = encode_thinking(self.text)
        return value

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield from self._of_summary("part.added", part=self._summary())

    def add(self, part: Part) -> Iterator[Event]:
        yield from super().add(part)
        if part.text:
            yield from self._of_summary("text.delta", delta=part.text)

    def end(self, status: str) -> Iterator[Event]:
        yield from self._of_summary("text.done", text=self.text)
        yield from self._of_summary("part.done", part=self._summary())
        yield from super().end(status)

    def _summary(self) -> dict[str, Any]:
        return {"type": "summary_text", "text": self.text}

    def _of_summary(self, kind: str, **values: Any) -> Iterator[Event]:
        if self._forms.summary:
            event = self._event(f"response.reasoning_summary_{kind}", **values)
            del event["content_index"]
            yield {**event, "summary_index": 0}


class _Message(_WithContent):
    prefix, part_type = "msg", "output_text"

    def __init__(self, first: Part, place: int) -> None:
        super().__init__(first, place)
        self._logprobs: list[dict[str, Any]] = []
        self._told = 0  # of them, how many a delta has held

    def part(self) -> dict[str, Any]:
        return {**super().part(), "annotations": [], "logprobs": list(self._logprobs)}

    def value(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "phase": PHASES.get(self._first.channel),
            "content": self.content(),
        }

    def add(self, part: Part) -> Iterator[Event]:
        self._logprobs += [logprob_object(token) for token in part.logprobs]
        new = self._logprobs[self._told :]
        # Tokens that are a part of a character wait for its text, or for the end.
        if part.text or (new and part.ends):
            self._told += len(new)
            self._texts.append(part.text)
            yield self._event("response.output_text.delta", delta=part.text, logprobs=new)

    def _event(self, kind: str, **values: Any) -> Event:
        event = super()._event(kind, **values)
        if kind == "response.output_text.done":
            event["logprobs"] = list(self._logprobs)
        return event


class _Call(_Item):
    prefix = "fc"

    def value(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._first.call_id,
            "name": self._first.name,
            "arguments": self.text,
        }

    def add(self, part: Part) -> Iterator[Event]:
        if part.text:
            self._texts.append(part.text)
            kind = "response.function_call_arguments.delta"
            yield self._event(kind, item_id=self.id, delta=part.text)

    def end(self, status: str) -> Iterator[Event]:
        kind, name = "response.function_call_arguments.done", self._first.name
        yield self._event(kind, item_id=self.id, name=name, arguments=self.text)
        yield from super().end(status)
