"""Messages and tools of a conversation, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptoss.chat.harmony import ROLES
from gptoss.errors import Error, shown

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


_THINKING = ("reasoning", "reasoning_content", "thinking")


# A schema is read by a recursive function that is not ours.
_SCHEMA_DEPTH, _SCHEMA_NODES = 32, 4096

_bad_message = partial(Error, field="messages")
_bad_tool = partial(Error, field="tools")


@dataclass(frozen=True)
class ToolCall:
    """A call of a function that an assistant message made."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    """A checked message. `thinking`: an assistant's, before its content or its calls."""

    role: str
    content: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None  # of the call that a tool answers
    name: str | None = None

    @property
    def from_model(self): return self.role == "assistant"
    is_call = False

@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: its JSON schema, or None.

    strict: whether arguments must fit the schema; otherwise they are what the model writes.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


def parse_messages(raw: object) -> list[ChatMessage]:
    """Messages as the OpenAI API has them, checked.

    Content is a string or a list of parts of type "text"; images and sounds are refused. An
    assistant's thinking may stand in "reasoning", "reasoning_content" or "thinking". Raises Error
    that names the message, what was expected and what was found.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        raise _bad_message(f"messages: expected a list of at least one message, found {shown(raw)}")
    messages = [_parse_message(item, f"messages[{i}]") for i, item in enumerate(raw)]
    known = {call.id: call.name for message in messages for call in message.calls}
    for i, message in enumerate(messages):
        if message.role == "tool" and message.name is None and message.call_id not in known:
            raise _bad_message(
                f"messages[{i}].tool_call_id: expected the id of an earlier call, found "
                f"{shown(message.call_id)}"
            )
    return messages


def _parse_message(item: object, where: str) -> ChatMessage:
    if not isinstance(item, Mapping):
        raise _bad_message(f"{where}: expected an object, found {shown(item)}")
    role = item.get("role")
    if role not in ROLES:
        raise _bad_message(f"{where}.role: expected one of {', '.join(ROLES)}, found {shown(role)}")
    thinking = next((item[key] for key in _THINKING if item.get(key)), "")
    if not isinstance(thinking, str):
        raise _bad_message(f"{where}: reasoning: expected a string, found {shown(thinking)}")
    calls = _parse_calls(item.get("tool_calls"), f"{where}.tool_calls")
    if role != "assistant" and (thinking or calls):
        raise _bad_message(
            f"{where}: reasoning and tool_calls: expected in assistant messages only"
        )
    content = item.get("content")
    if content is None and not calls and not thinking:
        raise _bad_message(f"{where}.content: expected a string, found none")
    name = item.get("name")
    if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(name)):
        raise _bad_message(f"{where}.name: expected letters, digits, _ and -, found {shown(name)}")
    return ChatMessage(
        role=role,
        content=_text_of(content, f"{where}.content"),
        thinking=thinking,
        calls=calls,
        call_id=item.get("tool_call_id"),
        name=name,
    )


def _text_of(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _bad_message(f"{where}: expected a string or a list of parts, found {shown(content)}")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise _bad_message(
                f"{where}[{i}]: expected a part of type text (these models read text alone), "
                f"found {shown(kind if kind is not None else part)}"
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise _bad_message(f"{where}[{i}].text: expected a string, found {shown(text)}")
        texts.append(text)
    return "".join(texts)


def _parse_calls(raw: object, where: str) -> tuple[ToolCall, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise _bad_message(f"{where}: expected a list, found {shown(raw)}")
    calls = []
    for i, item in enumerate(raw):
        function = item.get("function") if isinstance(item, Mapping) else None
        if not isinstance(function, Mapping):
            raise _bad_message(
                f"{where}[{i}].function: expected an object, found {shown(function)}"
            )
        name, arguments = function.get("name"), function.get("arguments", "{}")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _bad_message(
                f"{where}[{i}].function.name: expected letters, digits, _ and -, found "
                f"{shown(name)}"
            )
        if not isinstance(arguments, str):
            raise _bad_message(
                f"{where}[{i}].function.arguments: expected a string of JSON, found "
                f"{shown(arguments)}"
            )
        calls.append(ToolCall(str(item.get("id")), name, arguments))
    return tuple(calls)


def parse_tools(raw: object) -> list[Tool]:
    """Tools as the OpenAI API has them: {"type": "function", "function": {…}}. Raises Error."""
    if raw is None:
        return []
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise _bad_tool(f"tools: expected a list, found {shown(raw)}")
    tools: list[Tool] = []
    for i, item in enumerate(raw):
        where = f"tools[{i}]"
        if not isinstance(item, Mapping) or item.get("type") != "function":
            kind = item.get("type") if isinstance(item, Mapping) else item
            raise _bad_tool(f"{where}.type: expected function, found {shown(kind)}")
        function = item.get("function", item)  # the responses API has no inner object
        if not isinstance(function, Mapping):
            raise _bad_tool(f"{where}.function: expected an object, found {shown(function)}")
        name, description = function.get("name"), function.get("description") or ""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _bad_tool(
                f"{where}.function.name: expected 1 to 64 letters, digits, _ and -, found "
                f"{shown(name)}"
            )
        if any(tool.name == name for tool in tools):
            raise _bad_tool(f"{where}.function.name: {shown(name)} is there twice")
        if not isinstance(description, str):
            raise _bad_tool(f"{where}.function.description: expected a string")
        parameters = function.get("parameters")
        if parameters is not None:
            if not isinstance(parameters, Mapping):
                raise _bad_tool(
                    f"{where}.function.parameters: expected a JSON schema, found "
                    f"{shown(parameters)}"
                )
            _check_schema(parameters, f"{where}.function.parameters")
        strict = function.get("strict") or False
        if not isinstance(strict, bool):
            raise _bad_tool(
                f"{where}.function.strict: expected true or false, found {shown(strict)}"
            )
        tools.append(Tool(name, description, parameters, strict))
    return tools


def _check_schema(schema: object, where: str) -> None:
    nodes, level, depth = 0, [schema], 0
    while level:
        nodes += len(level)
        depth += 1
        if depth > _SCHEMA_DEPTH or nodes > _SCHEMA_NODES:
            raise _bad_tool(
                f"{where}: expected a schema of at most {_SCHEMA_DEPTH} levels and "
                f"{_SCHEMA_NODES} values"
            )
        below: list[object] = []
        for node in level:
            if isinstance(node, Mapping):
                below += node.values()
            elif isinstance(node, (list, tuple)):
                below += node
        level = below
