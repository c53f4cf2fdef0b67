"""Messages and tools as OpenAI's chat API has them, made into those of a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from gptoss.chat.conversation import (
    ANALYSIS,
    COMMENTARY,
    FUNCTIONS,
    ROLES,
    Message,
    Tool,
    settled,
)
from gptoss.errors import Error, shown
from gptoss.request import valid_json, valid_text

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a tool that is declared
_THINKING = ("reasoning", "reasoning_content", "thinking")
JSON_TYPE = "<|constrain|>json"
# Namespaces of tools that the models were taught, and call whether they are declared or not.
_TAUGHT = ("browser", "container", "python")

# A schema is read by recursive functions, some of which are not ours.
_SCHEMA_DEPTH, _SCHEMA_NODES = 32, 4096
MAX_TOOLS = 1024  # of a request; OpenAI's API has 128

_bad_message = partial(Error, field="messages")
_bad_tool = partial(Error, field="tools")


def parse_messages(raw: object, declared: Collection[str] = ()) -> list[Message]:
    """Messages as OpenAI's chat API has them, as those of a conversation.

    An assistant's message becomes several: its thinking ("reasoning", "reasoning_content" or
    "thinking"), its content (a preamble where a call follows before anybody else speaks, else the
    answer), and its calls. What a tool said belongs to the nearest earlier call with its id, which
    may be any JSON value, or to the function that it names. Content is a string or a list of parts
    of type "text", which become lines; images and sounds are refused. Texts that are not Unicode
    are mended (see `valid_text`). `Message`s among them are taken as they are.

    Args:
        raw: a list of objects.
        declared: names of the tools that are declared, for calls of that name.

    Raises:
        Error: it names the message, what was expected and what was found.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        raise _bad_message(f"messages: expected a list of at least one message, found {shown(raw)}")
    reader = _Reader(declared)
    return settled(
        [message for i, item in enumerate(raw) for message in reader.read(item, f"messages[{i}]")]
    )


def call_recipient(name: str, declared: Collection[str] = ()) -> str:
    """Whom a call of this name is for, as a model writes it.

    That is a function, unless it is one of the tools that models were taught, such as
    "browser.search", and no declared function.
    """
    if name in declared or name.partition(".")[0] not in _TAUGHT:
        return name if name.startswith(FUNCTIONS) else FUNCTIONS + name
    return name


def call_name(recipient: str | None) -> str:
    """What the API calls a call for this recipient: the reverse of `call_recipient`."""
    return (recipient or "").removeprefix(FUNCTIONS)


def id_key(value: object) -> str | None:
    """What stands for the id of a call, which may be any JSON value; None for none."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return repr(value)[:256]


def dump_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The reverse of `parse_messages`: messages as OpenAI's chat API has them.

    An assistant's thinking stands in "reasoning". Calls without an id get one that no other has.
    """
    found: list[dict[str, Any]] = []
    ids: dict[str, str] = {}  # recipient of the last call → its id
    given = {message.call_id for message in messages}
    new = (each for each in map("call_{}".format, count()) if each not in given)
    for message in messages:
        if message.role == "tool":
            name = call_name(message.author)
            call_id = message.call_id or ids.get(message.author) or next(new)
            found.append(
                {"role": "tool", "tool_call_id": call_id, "name": name, "content": message.content}
            )
            continue
        if not message.from_model:
            found.append({"role": message.role, "content": message.content})
            continue
        last = found[-1] if found and found[-1]["role"] == "assistant" else None
        if message.channel == ANALYSIS and not message.is_call:
            found.append({"role": "assistant", "content": "", "reasoning": message.content})
        elif message.is_call:
            if last is None:
                found.append(last := {"role": "assistant", "content": ""})
            call_id = ids[str(message.recipient)] = message.call_id or next(new)
            function = {"name": call_name(message.recipient), "arguments": message.content}
            last.setdefault("tool_calls", []).append(
                {"id": call_id, "type": "function", "function": function}
            )
        elif last is not None and not last["content"] and "tool_calls" not in last:
            last["content"] = message.content
        else:
            found.append({"role": "assistant", "content": message.content})
    return found


class _Reader:
    """Reads messages in their order; calls are remembered for their results."""

    def __init__(self, declared: Collection[str]) -> None:
        self._declared = declared
        self._recipients: dict[str | None, str] = {}  # of the last call of an id, or of none

    def read(self, item: object, where: str) -> Iterator[Message]:
        if isinstance(item, Message):
            if item.is_call:
                self._recipients[item.call_id] = str(item.recipient)
            yield item
            return
        if not isinstance(item, Mapping):
            raise _bad_message(f"{where}: expected an object, found {shown(item)}")
        role = item.get("role")
        role = "tool" if role == "function" else role
        if not isinstance(role, str) or role not in ROLES:
            raise _bad_message(
                f"{where}.role: expected one of {', '.join(ROLES)}, found {shown(role)}"
            )
        thinking = next((item[key] for key in _THINKING if item.get(key)), "")
        if not isinstance(thinking, str):
            raise _bad_message(f"{where}: reasoning: expected a string, found {shown(thinking)}")
        calls = list(self._calls(item.get("tool_calls"), f"{where}.tool_calls"))
        if role != "assistant" and (thinking or calls):
            raise _bad_message(
                f"{where}: reasoning and tool_calls: expected in assistant messages only"
            )
        content = item.get("content")
        if content is None and isinstance(item.get("refusal"), str):
            content = item["refusal"]
        if content is None and not calls and not thinking:
            raise _bad_message(f"{where}.content: expected a string, found none")
        text = _text_of(content, f"{where}.content")
        if role == "tool":
            yield self._result(item, text, where)
        elif role != "assistant":
            yield Message(role, content=text)
        else:
            if thinking:
                yield Message(role, ANALYSIS, content=valid_text(thinking))
            if text:  # `settled` says in which channel
                yield Message(role, COMMENTARY if calls else None, content=text)
            yield from calls

    def _calls(self, raw: object, where: str) -> Iterator[Message]:
        if raw is None:
            return
        if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
            raise _bad_message(f"{where}: expected a list, found {shown(raw)}")
        for i, item in enumerate(raw):
            function = item.get("function") if isinstance(item, Mapping) else None
            if not isinstance(function, Mapping):
                raise _bad_message(
                    f"{where}[{i}].function: expected an object, found {shown(function)}"
                )
            name, arguments = function.get("name"), function.get("arguments")
            if not isinstance(name, str):
                raise _bad_message(
                    f"{where}[{i}].function.name: expected a string, found {shown(name)}"
                )
            if isinstance(arguments, Mapping):  # as other servers have it
                arguments = _dumped(arguments, f"{where}[{i}].function.arguments")
            if not isinstance(arguments, (str, type(None))):
                raise _bad_message(
                    f"{where}[{i}].function.arguments: expected a string of JSON, found "
                    f"{shown(arguments)}"
                )
            assert isinstance(item, Mapping)
            key, recipient = id_key(item.get("id")), call_recipient(name, self._declared)
            self._recipients[key] = recipient
            yield Message(
                "assistant",
                COMMENTARY,
                valid_text(recipient),
                JSON_TYPE,
                valid_text(arguments or "{}"),
                call_id=key,
            )

    def _result(self, item: Mapping[str, Any], text: str, where: str) -> Message:
        key = id_key(item.get("tool_call_id"))
        name = item.get("name") or item.get("tool_name")
        author = self._recipients.get(key) if key is not None or not name else None
        if author is None:
            if not isinstance(name, str) or not name:
                raise _bad_message(
                    f"{where}.tool_call_id: expected the id of an earlier call, found "
                    f"{shown(item.get('tool_call_id'))}"
                )
            author = call_recipient(name, self._declared)
        if Message(author).role != "tool":  # models may call "system"; what that says is no order
            author = FUNCTIONS + author
        return Message(valid_text(author), COMMENTARY, "assistant", content=text, call_id=key)


def _text_of(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return valid_text(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise _bad_message(f"{where}: expected a string or a list of parts, found {shown(content)}")
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(valid_text(part))
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise _bad_message(
                f"{where}[{i}]: expected a part of type text (these models read text alone), "
                f"found {shown(kind if kind is not None else part)}"
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise _bad_message(f"{where}[{i}].text: expected a string, found {shown(text)}")
        texts.append(valid_text(text))
    return "\n".join(texts)


def _dumped(value: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad_message(f"{where}: expected JSON: {error}") from None


def parse_tools(raw: object) -> list[Tool]:
    """Tools as the OpenAI API has them: {"type": "function", "function": {…}}, or `Tool`s.

    Raises:
        Error: it names the tool, what was expected and what was found.
    """
    if raw is None:
        return []
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)):
        raise _bad_tool(f"tools: expected a list, found {shown(raw)}")
    if len(raw) > MAX_TOOLS:
        raise _bad_tool(f"tools: expected at most {MAX_TOOLS}, found {len(raw)}")
    tools: list[Tool] = []
    names: set[str] = set()
    for i, item in enumerate(raw):
        where = f"tools[{i}]"
        if isinstance(item, Tool):
            tools.append(item)
            names.add(item.name)
            continue
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
        if name in names:
            raise _bad_tool(f"{where}.function.name: {shown(name)} is there twice")
        names.add(name)
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
            parameters = valid_json(parameters)
        strict = function.get("strict") or False
        if not isinstance(strict, bool):
            raise _bad_tool(
                f"{where}.function.strict: expected true or false, found {shown(strict)}"
            )
        tools.append(Tool(name, valid_text(description), parameters, strict))
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
