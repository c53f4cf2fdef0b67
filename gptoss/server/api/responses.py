"""/v1/responses: conversations as items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

from gptoss.chat import Conversation, HarmonyChat, PlainChat, Tool, parse_tools
from gptoss.engine import AsyncEngine
from gptoss.errors import Error, shown
from gptoss.request import Grammar
from gptoss.server.api.answer import Answer, Event
from gptoss.server.api.fields import Caller
from gptoss.server.api.item_memory import ItemMemory
from gptoss.server.api.items import parse_items
from gptoss.server.api.options import read_options
from gptoss.server.api.response_echo import echo, tool_object
from gptoss.server.api.response_events import Response
from gptoss.server.api.response_output import ThinkingForms
from gptoss.server.api.tool_choice import choose
from gptoss.server.errors import ApiError

_PACKED, _LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
# The rest is of tools that cannot be declared here, and of images: there is nothing to include.
_INCLUDABLE = (
    _PACKED,
    _LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)


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
        memory: ItemMemory,
    ) -> None:
        """model: what clients call it. memory: items of earlier answers, and of this one. Raises
        Error, ApiError.
        """
        options = read_options(body, "responses")
        self.ignored: Sequence[str] = options.ignored
        self.form = options.form_name()
        self.streams: bool = options["stream"]
        included = _included(options["include"])
        effort = options.effort()
        grammar = options.form()[1]
        held = partial(memory.add, owner=caller.client) if options["store"] else _forget
        with options.named(prompt="input", messages="input"):
            params = options.sampling()
            declared = parse_tools(options["tools"])
            messages = parse_items(
                options["input"],
                instructions=options["instructions"],
                declared=[tool.name for tool in declared],
                held=partial(memory.get, owner=caller.client),
            )
            choose(declared, options["tool_choice"])
            repeated = echo(options, model=model, effort=effort)

            def submit(tools: Sequence[Tool]) -> Answer:
                chosen = choose(tools, options["tool_choice"])
                return Answer.chat(
                    engine,
                    chat,
                    Conversation(tuple(messages), chosen.declared, effort, date.today()),
                    params,
                    caller=caller,
                    priority=caller.priority(options["priority"]),
                    salt=caller.salt(options["cache_salt"]),
                    answer=grammar,
                    may_call=chosen.may_call,
                    must_call=chosen.must_call,
                    hold=not options["allow_undeclared_calls"],
                    one_call=not options["parallel_tool_calls"],
                )

            for tools in _strictness(declared, options["tools"]):
                try:
                    self.answer = submit(tools)
                    break
                except Error as error:
                    if error.field != "tools" or tools == declared:
                        raise
        repeated["tools"] = [tool_object(tool) for tool in tools]
        forms = ThinkingForms(_PACKED in included, repeated["reasoning"]["summary"] is not None)
        self._response = Response(self.answer, repeated, thinking=forms, done=held)

    async def whole(self) -> Event:
        """The response, when it is done. Raises Error."""
        return await self._response.whole()

    def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last event holds the whole response."""
        return self._response.events()

    def failed(self, error: dict[str, Any]) -> list[Event]:
        """What ends a stream that an error ended."""
        return self._response.failed(error)


def _strictness(tools: list[Tool], raw: object) -> Iterator[list[Tool]]:
    """The tools, those strict that do not say what they are: this API's default. Then, for where
    that cannot be done, with those strict alone whose schemas can be kept to; in the end as
    chat completions have it, none of them.
    """
    given: Sequence[Any] = raw if isinstance(raw, Sequence) else ()
    undecided = [
        tool.parameters is not None and said.get("function", said).get("strict") is None
        for tool, said in zip(tools, given, strict=True)
    ]
    if any(undecided):
        each = list(zip(tools, undecided, strict=True))
        yield [replace(tool, strict=tool.strict or may) for tool, may in each]
        yield [replace(tool, strict=tool.strict or (may and _keepable(tool))) for tool, may in each]
    yield tools


def _keepable(tool: Tool) -> bool:
    try:
        Grammar.json(tool.parameters)
    except Error:
        return False
    return True


def _forget(item: object) -> None:
    """In place of a memory."""


def _included(included: object) -> list[str]:
    if included is None:
        return []
    if not isinstance(included, list):
        raise ApiError(f"include: expected a list, found {shown(included)}", field="include")
    for i, name in enumerate(included):
        if not isinstance(name, str) or name not in _INCLUDABLE:
            raise ApiError(
                f"include[{i}]: expected one of {', '.join(_INCLUDABLE)}, found {shown(name)}",
                field="include",
            )
    return included
