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

from gptoss.chat import CHANNELS, Message, Tool, parse_messages, parse_tools, text_of
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
    ("role", "content", "name", "tool_calls", "tool_call_id", "weight", *_HARMONY, *_THINKING)
)
_PLACE = "-"  # stands for a message that is not the API's, until the others are read


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
    items: list[dict[str, Any]] = []
    for number, item in enumerate(raw):
        place = f"{where}: messages[{number}]"
        if not isinstance(item, Mapping):
            raise Error(f"{place}: expected an object, found {shown(item)}")
        items.append(_plain(item, place, unused))
    _bind(items)
    harmony = {
        number: _in_harmony(item, f"{where}: messages[{number}]")
        for number, item in enumerate(items)
        if any(key in item for key in _HARMONY)
    }
    names = {n: _name(item) for n, item in enumerate(items) if exact and _name(item)}
    try:
        found = parse_messages(items, tools)
        counts = [len(parse_messages([i])) if i["role"] == "assistant" else 1 for i in items]
    except Error as error:
        raise Error(f"{where}: {error}") from None
    at = 0
    for number, count in enumerate(counts):
        end = at + count
        if number in harmony:  # the last: thinking may come before it
            found[end - 1] = _with_fields(found[end - 1], harmony[number])
        if number in names:
            found[at:end] = (replace(m, author=names[number]) for m in found[at:end])
        at = end
    return found


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
    if isinstance(item.get("weight"), bool):
        item["weight"] = int(item["weight"])
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
        if item.get("role") != "tool":
            continue
        key, name = item.get("tool_call_id"), item.get("name")
        fits = [
            index
            for index, (called, known) in enumerate(open_calls)
            if (known == key if key is not None else name in (None, called, f"functions.{called}"))
        ]
        if fits:
            item["tool_call_id"] = open_calls.pop(fits[0])[1]


def _in_harmony(item: dict[str, Any], where: str) -> Message:
    """The fields of harmony that a message spells out; takes them out of `item`.

    Of an assistant's message nothing is left in it that would be read another way.
    """
    fields: dict[str, Any] = {key: item.pop(key) or None for key in _HARMONY if key in item}
    for key, value in fields.items():
        if not isinstance(value, str | None):
            raise Error(f"{where}.{key}: expected a string, found {shown(value)}")
    if item.get("role") != "assistant":
        return Message("", **fields)
    if "tool_calls" in item:
        raise Error(f"{where}: expected tool_calls or {next(iter(fields))}, found both")
    fields["channel"] = fields.get("channel") or (
        "commentary" if fields.get("recipient") else "final"
    )
    if fields["channel"] not in CHANNELS:
        raise Error(
            f"{where}.channel: expected one of {', '.join(CHANNELS)}, found "
            f"{shown(fields['channel'])}"
        )
    content = text_of(item.get("content"), f"{where}.content")
    item["content"] = _PLACE
    return Message("assistant", content=content, **fields)


def _with_fields(message: Message, own: Message) -> Message:
    """What the API's reading made of a message, with the fields that were spelled out."""
    if own.from_model:
        return replace(own, weight=message.weight)
    fields = {key: getattr(own, key) for key in _HARMONY}
    return replace(message, **{key: value for key, value in fields.items() if value is not None})


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
