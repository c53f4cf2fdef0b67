"""Input items of /v1/responses, read into messages of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from gptoss.chat import (
    ANALYSIS,
    COMMENTARY,
    FINAL,
    JSON_TYPE,
    Message,
    call_recipient,
    id_key,
    settled,
    valid_text,
)
from gptoss.errors import Error, shown
from gptoss.server.api.encrypted_content import decode_thinking
from gptoss.server.errors import ApiError

Item = Mapping[str, Any]
Held = Callable[[str], Item | None]

PHASES = {COMMENTARY: "commentary", FINAL: "final_answer"}  # of a channel, what the API calls it
_CHANNELS = {phase: channel for channel, phase in PHASES.items()}
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


def parse_items(
    raw: object,
    *,
    instructions: object = None,
    declared: Collection[str] = (),
    held: Held = lambda reference: None,
) -> list[Message]:
    """A request's `input` and `instructions` as messages.

    Whatever an earlier answer's `output` holds is taken back. An assistant's message says by its
    `phase` in which channel it was written; without one it is a preamble where a call follows
    before anybody else speaks, and otherwise an answer. What a tool said belongs to the nearest
    earlier call of its `call_id`, which may be any JSON value.

    Args:
        raw: a string, or a list of items.
        instructions: what comes first, from the developer; a string.
        declared: names of the request's tools.
        held: an item of an earlier answer by its id, or None.

    Raises:
        ApiError: it names the item, what was expected and what was found.
    """
    messages = []
    if instructions is not None and not isinstance(instructions, str):
        raise ApiError(
            f"instructions: expected a string, found {shown(instructions)}", field="instructions"
        )
    if instructions:
        messages.append(Message("developer", content=valid_text(instructions)))
    if isinstance(raw, str):
        return [*messages, Message("user", content=valid_text(raw))]
    if not isinstance(raw, list) or not raw:
        raise _bad("input", "a string or a list of items", raw)
    reader = _Reader(declared, held)
    messages += [
        message for i, item in enumerate(raw) for message in reader.read(item, f"input[{i}]")
    ]
    return settled(messages)


class _Reader:
    """Items in their order; calls are remembered for their results."""

    def __init__(self, declared: Collection[str], held: Held) -> None:
        self._declared = declared
        self._held = held
        self._recipients: dict[str | None, str] = {}  # of the last call of an id, or of none

    def read(self, item: object, where: str) -> Iterator[Message]:
        if not isinstance(item, Mapping):
            raise _bad(where, "an item", item)
        kind = item.get("type")
        if kind is None:
            # Both of these may come without a type.
            kind = "item_reference" if "id" in item and "role" not in item else "message"
        if kind == "message":
            yield from self._message(item, where)
        elif kind == "reasoning":
            yield from self._reasoning(item, where)
        elif kind == "function_call":
            yield self._call(item, where)
        elif kind == "function_call_output":
            yield self._result(item, where)
        elif kind == "item_reference":
            yield from self._reference(item, where)
        else:
            raise _bad(where, "a message, reasoning, function_call or function_call_output", kind)

    def _message(self, item: Item, where: str) -> Iterator[Message]:
        role, phase = item.get("role"), item.get("phase")
        if not isinstance(role, str) or role not in _ROLES:
            raise _bad(f"{where}.role", f"one of {', '.join(_ROLES)}", role)
        if phase is not None and (not isinstance(phase, str) or phase not in _CHANNELS):
            raise _bad(f"{where}.phase", f"one of {', '.join(_CHANNELS)}", phase)
        text = _text(item.get("content"), f"{where}.content")
        if role != "assistant":
            yield Message(role, content=text)
        elif text or phase:  # clients put empty messages around calls
            yield Message(role, _CHANNELS[phase] if phase else None, content=text)

    def _reasoning(self, item: Item, where: str) -> Iterator[Message]:
        """Thinking in plain text where it is given, else as this server packed it, else as another
        summed it up."""
        texts = _thinking(item.get("content"), f"{where}.content")
        summary = _thinking(item.get("summary"), f"{where}.summary")
        packed = item.get("encrypted_content")
        if packed is not None:
            try:
                unpacked = decode_thinking(packed)
            except Error as error:
                raise ApiError(f"{where}.encrypted_content: {error}", field="input") from None
            texts = texts or [unpacked]
        texts = texts or summary
        if texts:
            yield Message("assistant", ANALYSIS, content=valid_text("\n".join(texts)))

    def _call(self, item: Item, where: str) -> Message:
        name, arguments = item.get("name"), item.get("arguments")
        if not isinstance(name, str):
            raise _bad(f"{where}.name", "a string", name)
        if arguments is None:
            arguments = "{}"
        if not isinstance(arguments, str):
            raise _bad(f"{where}.arguments", "a string of JSON", arguments)
        call, recipient = id_key(item.get("call_id")), call_recipient(name, self._declared)
        self._recipients[call] = recipient
        return Message(
            "assistant",
            COMMENTARY,
            valid_text(recipient),
            JSON_TYPE,
            valid_text(arguments),
            call_id=call,
        )

    def _result(self, item: Item, where: str) -> Message:
        name, output = item.get("name"), item.get("output")
        tool = name if isinstance(name, str) and name else None
        call = id_key(item.get("call_id"))
        author = None if call is None and tool else self._recipients.get(call)
        if author is None and tool is not None:  # its call may lie before the input
            author = call_recipient(tool, self._declared)
        if author is None:
            raise _bad(f"{where}.call_id", "that of an earlier function_call", item.get("call_id"))
        text = "" if output is None else _text(output, f"{where}.output")
        return Message(valid_text(author), COMMENTARY, "assistant", content=text, call_id=call)

    def _reference(self, item: Item, where: str) -> Iterator[Message]:
        name = item.get("id")
        if not isinstance(name, str):
            raise _bad(f"{where}.id", "a string", name)
        found = self._held(name)
        if found is not None:
            yield from self.read(found, where)
        elif not name.startswith("rs_"):  # the model can do without its thinking
            raise ApiError(
                f"{where}: {shown(name)} is not held here (any more): expected the item itself, "
                "as clients send it with store=false",
                field="input",
            )


def _thinking(parts: object, where: str) -> list[str]:
    if parts is None:
        return []
    if isinstance(parts, str):
        return [parts]
    if not isinstance(parts, list):
        raise _bad(where, "a list of parts", parts)
    texts = []
    for i, part in enumerate(parts):
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            raise _bad(f"{where}[{i}]", "a part with a text", part)
        texts.append(text)
    return texts


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return valid_text(content)
    if not isinstance(content, list):
        raise _bad(where, "a string or a list of parts", content)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else part
        if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _TEXTS:
            raise _bad(f"{where}[{i}]", "a part of text (these models read text alone)", kind)
        text = part.get(_TEXTS[kind])
        if not isinstance(text, str):
            raise _bad(f"{where}[{i}].{_TEXTS[kind]}", "a string", text)
        texts.append(text)
    return valid_text("\n".join(texts))


def _bad(where: str, expected: str, found: object) -> ApiError:
    return ApiError(f"{where}: expected {expected}, found {shown(found)}", field="input")
