"""Messages as data sets have them, made into those of `gptoss.chat`.

What a client of the API sends is read by `gptoss.chat.parse_messages`. Here is what data sets add
to that: ShareGPT's names, arguments that are objects, calls without ids, keys that are null, the
older `function_call`, weights, and the fields of harmony written out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss.chat import (
    ANALYSIS,
    CHANNELS,
    COMMENTARY,
    FINAL,
    Message,
    Tool,
    parse_messages,
    parse_tools,
)
from gptoss.errors import Error, shown
from gptoss.train.tune.records import without_nulls

# ShareGPT's "from" → what it is.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "developer",
    "function_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
    "function": "tool",
}
_HARMONY = ("channel", "recipient", "content_type")
_THINKING = ("thinking", "reasoning", "reasoning_content")
_KNOWN = frozenset(
    (
        *("role", "content", "refusal", "name", "tool_calls", "tool_call_id", "weight"),
        *_HARMONY,
        *_THINKING,
    )
)


def read_messages(
    raw: object,
    where: str,
    unused: Counter[str],
    role: str | None = None,
    tools: Sequence[Tool] = (),
    exact: bool = False,
) -> list[Message]:
    """The messages of a list, of one message, or of a text that `role` says.

    Args:
        raw: what stands in the row.
        where: named in errors: "file.jsonl:12".
        unused: keys that mean nothing here are counted in it.
        role: whose text it may be.
        tools: those that the row declares.
        exact: the names of people and tools are written as they are, not as the API has them.

    Raises:
        Error: names the message and the key.
    """
    if isinstance(raw, str) and role is not None:
        raw = {"role": role, "content": raw}
    if isinstance(raw, Mapping):
        raw = [raw]
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        raise Error(f"{where}: messages: expected a list of messages, found {shown(raw)}")
    plain: list[dict[str, Any]] = []
    for number, item in enumerate(raw):
        place = f"{where}: messages[{number}]"
        if not isinstance(item, Mapping):
            raise Error(f"{place}: expected an object, found {shown(item)}")
        plain.append(_plain(item, place, unused))
    _bind(plain)
    weights = [_weight(item, f"{where}: messages[{n}]") for n, item in enumerate(plain)]
    names = {n: _name(item) for n, item in enumerate(plain) if exact and _name(item)}
    fields = [_harmony(item, f"{where}: messages[{n}]") for n, item in enumerate(plain)]
    items: list[dict[str, Any] | Message] = [*plain]
    thoughts = [""] * len(items)
    for number, own in enumerate(fields):
        if own and plain[number].get("role") == "assistant":
            place = f"{where}: messages[{number}]"
            thoughts[number], items[number] = _spelled_out(plain[number], own, place)
    declared = [tool.name for tool in tools]
    try:
        found = parse_messages(items, declared)
        counts = [_count(item, declared) for item in items]
    except Error as error:
        raise Error(f"{where}: {error}") from None
    result: list[Message] = []
    at = 0
    for number, count in enumerate(counts):
        said = found[at : at + count]
        at += count
        if isinstance(items[number], dict):
            said = [replace(message, **fields[number]) for message in said]
        if thoughts[number]:
            said = [Message("assistant", ANALYSIS, content=thoughts[number]), *said]
        if number in names:
            said = [replace(message, author=names[number]) for message in said]
        result += (replace(message, weight=weights[number]) for message in said)
    return result


def _count(item: dict[str, Any] | Message, declared: list[str]) -> int:
    """How many messages of a conversation one of the API becomes."""
    if isinstance(item, Message) or item["role"] != "assistant":
        return 1
    return len(parse_messages([item], declared))


def _plain(item: Mapping[str, Any], where: str, unused: Counter[str]) -> dict[str, Any]:
    """A message with the API's keys, and harmony's; none of them null or of no effect."""
    item = {key: value for key, value in item.items() if value is not None}
    if "role" not in item and "from" in item:
        item = _from_sharegpt(item, where)
    call = item.pop("function_call", None)
    if call is not None and not item.get("tool_calls"):
        item["tool_calls"] = [{"function": call}]
    item["tool_calls"] = _calls(item.get("tool_calls", ()), f"{where}.tool_calls")
    unused.update(f"messages: {key}" for key in item if key not in _KNOWN)
    item = {key: value for key, value in item.items() if key in _KNOWN}
    for key in ("tool_calls", *_THINKING):
        if not item.get(key):  # a column that others fill
            item.pop(key, None)
    return item


def _from_sharegpt(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    speaker, value = item["from"], item.get("value")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise Error(f"{where}.from: expected one of {', '.join(SPEAKERS)}, found {shown(speaker)}")
    rest = {key: each for key, each in item.items() if key not in ("from", "value")}
    if role != "function_call":
        return {**rest, "role": role, "content": value}
    calls = _json(value, f"{where}.value") if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    return {**rest, "role": "assistant", "tool_calls": [{"function": call} for call in calls]}


def _calls(raw: Any, where: str) -> list[Any]:
    """Calls as the API has them: arguments are text."""
    if isinstance(raw, str):
        raw = _json(raw, where) if raw.strip() else []
    if not isinstance(raw, Sequence):
        raise Error(f"{where}: expected a list, found {shown(raw)}")
    calls = []
    for number, item in enumerate(raw):
        inside = item.get("function", item) if isinstance(item, Mapping) else None
        if not isinstance(inside, Mapping):
            raise Error(f"{where}[{number}]: expected an object, found {shown(item)}")
        arguments = inside.get("arguments", inside.get("parameters"))
        if not isinstance(arguments, str):
            arguments = json.dumps(without_nulls(arguments or {}), ensure_ascii=False)
        call = {
            "type": "function",
            "function": {"name": inside.get("name"), "arguments": arguments},
        }
        if item.get("id") is not None:
            call["id"] = item["id"]
        calls.append(call)
    return calls


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Error(f"{where}: expected JSON, found {shown(text)}: {error}") from None


def _bind(items: list[dict[str, Any]]) -> None:
    """Gives ids to calls that have none, and to results the id of the call that they answer.

    A result without an id belongs to the first call of its name that has no result yet, or, where
    it has no name either, to the first such call of all.
    """
    open_calls: list[tuple[str, Any]] = []  # (name, id)
    count = 0
    for item in items:
        for call in item.get("tool_calls", ()):
            if "id" not in call:
                count += 1
                call["id"] = f"call {count}"
            open_calls.append((call["function"]["name"], call["id"]))
        if item.get("role") not in ("tool", "function"):
            continue
        key, name = item.get("tool_call_id"), item.get("name")
        fits = [
            index
            for index, (called, known) in enumerate(open_calls)
            if (known == key if key is not None else name in (None, called, f"functions.{called}"))
        ]
        if fits:
            item["tool_call_id"] = open_calls.pop(fits[0])[1]


def _harmony(item: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of harmony that a message spells out; takes them out of `item`."""
    fields = {key: item.pop(key) for key in _HARMONY if key in item}
    for key, value in fields.items():
        if not isinstance(value, str):
            raise Error(f"{where}.{key}: expected a string, found {shown(value)}")
    return {key: value for key, value in fields.items() if value}


def _spelled_out(
    item: Mapping[str, Any], fields: dict[str, Any], where: str
) -> tuple[str, Message]:
    """(thinking before it, an assistant's message) out of one that has fields of harmony."""
    if "tool_calls" in item:
        raise Error(f"{where}: expected tool_calls or {next(iter(fields))}, found both")
    channel = fields.get("channel") or (COMMENTARY if "recipient" in fields else FINAL)
    if channel not in CHANNELS:
        raise Error(
            f"{where}.channel: expected one of {', '.join(CHANNELS)}, found {shown(channel)}"
        )
    texts = {key: item.get(key) for key in ("content", *_THINKING)}
    try:
        read = {
            key: parse_messages([{"role": "user", "content": text}])[0].content
            for key, text in texts.items()
            if text is not None
        }
    except Error as error:
        raise Error(f"{where}{str(error).removeprefix('messages[0]')}") from None
    thinking = next((read[key] for key in _THINKING if read.get(key)), "")
    spelled = {**fields, "channel": channel}
    return thinking, Message("assistant", content=read.get("content", ""), **spelled)


def _weight(item: Mapping[str, Any], where: str) -> int:
    weight = item.get("weight", 1)
    if weight not in (0, 1):
        raise Error(f"{where}.weight: expected 0 or 1, found {shown(weight)}")
    return int(weight)


def _name(item: Mapping[str, Any]) -> str:
    """The author, as harmony writes it, of a message that has a name; "" without one."""
    name, role = item.get("name"), item.get("role")
    if not isinstance(name, str) or not name:
        return ""  # parse_messages says what is wrong
    return name if role in ("tool", "function") else f"{role}:{name}"


def read_tools(raw: object, where: str) -> tuple[Tool, ...]:
    """Tools as the API has them, as plain functions, or either as a text of JSON.

    Raises Error.
    """
    if isinstance(raw, str):
        raw = _json(raw, f"{where}: tools") if raw.strip() else None
    if isinstance(raw, Mapping):
        raw = [raw]
    if isinstance(raw, Sequence):
        # A schema has null nowhere but where it says what a value may be.
        raw = [without_nulls(item, ("default", "const")) for item in raw]
        raw = [
            {"type": "function", "function": item}
            if isinstance(item, Mapping) and "name" in item and "type" not in item
            else item
            for item in raw
        ]
    try:
        return tuple(parse_tools(raw))
    except Error as error:
        raise Error(f"{where}: {error}") from None
