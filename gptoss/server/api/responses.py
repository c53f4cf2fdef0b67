"""/v1/responses: conversations as items. Nothing is kept between requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from gptoss.chat import HarmonyChat, PlainChat, parse_messages
from gptoss.engine import AsyncEngine
from gptoss.errors import shown
from gptoss.server.api.answer import counts
from gptoss.server.api.chat_completions import ChatRequest
from gptoss.server.api.fields import Caller, field_names, flag, refuse_unsupported
from gptoss.server.errors import ApiError

# A conversation that is kept here, work in the background, tools of OpenAI's own.
_UNSUPPORTED = ("previous_response_id", "conversation", "background", "prompt")
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "seed", "stop", "tool_choice", "top_logprobs", "priority",
    "structured_outputs",
)  # fmt: skip

# Fields of the engine, of conversations and of chat completions, as this API calls them.
_NAMES = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}

Event = dict[str, Any]


class ResponsesRequest:
    """A request that has been checked and submitted; a `Surface`."""

    named = True

    def __init__(
        self,
        engine: AsyncEngine,
        chat: HarmonyChat | PlainChat,
        body: Mapping[str, Any],
        caller: Caller,
        model: str,
    ) -> None:
        refuse_unsupported(body, _UNSUPPORTED)
        self.streams = flag(body, "stream")
        with field_names(_NAMES):
            self._chat = ChatRequest(engine, chat, _as_chat(body), caller, model)
        self.answer, self.ignored = self._chat.answer, self._chat.ignored
        self._body = body
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
        }
        self._items: list[dict[str, Any]] = []

    async def whole(self) -> dict[str, Any]:
        """The whole answer."""
        last: Event = {}
        async for event in self.events():
            last = event
        found: dict[str, Any] = last["response"]
        return found

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last event holds the whole answer."""
        number = 0
        async for event in self._unnumbered():
            yield {**event, "sequence_number": number}
            number += 1

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """What ends a stream that an error ended."""
        return [{**error, "type": "error"}]

    async def _unnumbered(self) -> AsyncIterator[Event]:
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "response": self._response("in_progress")}
        open_item: _Item | None = None
        finish = None
        async for chunk in self._chat.events():
            (choice,) = chunk["choices"]
            finish = choice["finish_reason"] or finish
            for kind, key, text, call in _parts(choice["delta"]):
                if open_item is None or open_item.key != key:
                    if open_item is not None:
                        for event in open_item.end():
                            yield event
                    open_item = _Item(kind, key, len(self._items), call)
                    self._items.append(open_item.value)
                    for event in open_item.begin():
                        yield event
                for event in open_item.add(text):
                    yield event
        if open_item is not None:
            for event in open_item.end():
                yield event
        cut = finish == "length"
        kind = "incomplete" if cut else "completed"
        yield {"type": f"response.{kind}", "response": self._response(kind)}

    def _response(self, status: str) -> dict[str, Any]:
        body, usage = self._body, counts(self.answer.usage)
        reasoning = body.get("reasoning")
        effort = reasoning.get("effort") if isinstance(reasoning, Mapping) else None
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "output": list(self._items),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": effort or "medium", "summary": None},
            "temperature": body.get("temperature", 1.0),
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p", 1.0),
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"],
                "total_tokens": usage["total_tokens"],
            }
            if status != "in_progress"
            else None,
        }


class _Item:
    """One item of the output while it is written: a message, thinking, or a call."""

    def __init__(self, kind: str, key: object, place: int, call: Mapping[str, Any] | None) -> None:
        self.kind, self.key, self._place = kind, key, place
        mark = secrets.token_hex(16)
        self._part: dict[str, Any] = {}
        self.value: dict[str, Any]
        if kind == "function_call":
            assert call is not None
            self.value = {
                "type": kind,
                "id": f"fc_{mark}",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": "",
                "status": "in_progress",
            }
        elif kind == "reasoning":
            self._part = {"type": "reasoning_text", "text": ""}
            self.value = {"type": kind, "id": f"rs_{mark}", "summary": [], "content": []}
        else:
            self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self.value = {
                "type": kind,
                "id": f"msg_{mark}",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }

    def begin(self) -> list[Event]:
        events = [self._event("response.output_item.added", item=dict(self.value))]
        if self._part:
            events.append(self._event("response.content_part.added", part=dict(self._part)))
            self.value["content"] = [self._part]
        return events

    def add(self, text: str) -> list[Event]:
        if not text:
            return []
        if self.kind == "function_call":
            self.value["arguments"] += text
            return [self._event("response.function_call_arguments.delta", delta=text)]
        self._part["text"] += text
        more: dict[str, Any] = {} if self.kind == "reasoning" else {"logprobs": []}
        return [self._event(f"response.{self._part['type']}.delta", delta=text, **more)]

    def end(self) -> list[Event]:
        events = []
        if self.kind != "reasoning":
            self.value["status"] = "completed"
        if self.kind == "function_call":
            arguments, name = self.value["arguments"], self.value["name"]
            kind = "response.function_call_arguments.done"
            events.append(self._event(kind, arguments=arguments, name=name))
        else:
            more: dict[str, Any] = {} if self.kind == "reasoning" else {"logprobs": []}
            text = self._part["text"]
            events.append(self._event(f"response.{self._part['type']}.done", text=text, **more))
            events.append(self._event("response.content_part.done", part=dict(self._part)))
        return [*events, self._event("response.output_item.done", item=dict(self.value))]

    def _event(self, kind: str, **values: Any) -> Event:
        where: Event = {"type": kind, "output_index": self._place}
        if "item" not in values:
            where["item_id"] = self.value["id"]
            if self.kind != "function_call":
                where["content_index"] = 0
        return {**where, **values}


def _parts(
    delta: Mapping[str, Any],
) -> list[tuple[str, object, str, Mapping[str, Any] | None]]:
    """(kind of item, what tells items apart, new text, the call) of a chat's delta."""
    found: list[tuple[str, object, str, Mapping[str, Any] | None]] = []
    if delta.get("reasoning_content"):
        found.append(("reasoning", "reasoning", delta["reasoning_content"], None))
    if delta.get("content"):
        found.append(("message", "message", delta["content"], None))
    for call in delta.get("tool_calls", ()):
        found.append(
            ("function_call", ("call", call["index"]), call["function"]["arguments"], call)
        )
    return found


def _as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request, as chat completions have it. Raises ApiError."""
    chat = {name: body[name] for name in _SAME if body.get(name) is not None}
    reasoning = body.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, Mapping):
        raise ApiError(
            f"reasoning: expected an object, found {shown(reasoning)}", field="reasoning"
        )
    text = body.get("text")
    if text is not None and not isinstance(text, Mapping):
        raise ApiError(f"text: expected an object, found {shown(text)}", field="text")
    messages = _messages(body.get("input"))
    if body.get("instructions") is not None:
        message = {"role": "developer", "content": body["instructions"]}
        with field_names({"messages": "instructions"}):
            parse_messages([message])
        messages.insert(0, message)
    return {
        **chat,
        "messages": messages,
        "tools": body.get("tools"),
        "max_tokens": body.get("max_output_tokens"),
        "reasoning_effort": (reasoning or {}).get("effort"),
        "response_format": (text or {}).get("format"),
    }


def _messages(raw: object) -> list[dict[str, Any]]:
    if isinstance(raw, str):
        return [{"role": "user", "content": raw}]
    if not isinstance(raw, list) or not raw:
        raise ApiError(
            f"input: expected a string or a list of items, found {shown(raw)}", field="input"
        )
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(raw):
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message":
            messages.append({"role": item.get("role"), "content": item.get("content")})
        elif kind == "reasoning":
            parts = item.get("content") or ()
            texts: list[Any] = [part.get("text") for part in parts if isinstance(part, Mapping)]
            if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
                raise ApiError(f"input[{i}].content: expected parts with a text", field="input")
            messages.append({"role": "assistant", "reasoning": "".join(texts)})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
            calls = [{"id": item.get("call_id"), "function": function}]
            messages.append({"role": "assistant", "tool_calls": calls})
        elif kind == "function_call_output":
            output, call = item.get("output"), item.get("call_id")
            messages.append({"role": "tool", "tool_call_id": call, "content": output})
        else:
            raise ApiError(
                f"input[{i}]: expected a message, reasoning, function_call or "
                f"function_call_output, found {shown(kind if kind is not None else item)}",
                field="input",
            )
    # Thinking without a text of its own belongs to what follows; empty thinking to nothing.
    return [m for m in messages if m.get("content") or m.get("tool_calls") or m.get("reasoning")
            or m["role"] != "assistant"]  # fmt: skip
