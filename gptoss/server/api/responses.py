"""/v1/responses: conversations as items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from gptoss.chat import Conversation, HarmonyChat, PlainChat, Tool, parse_tools
from gptoss.engine import AsyncEngine
from gptoss.errors import Error, shown
from gptoss.request import Grammar
from gptoss.server.api.answer import Answer, Event
from gptoss.server.api.effort import effort_of
from gptoss.server.api.fields import (
    Caller,
    answer_grammar,
    field_names,
    flag,
    priority_of,
    refuse_unsupported,
    sampling_params,
    stop_strings,
)
from gptoss.server.api.item_memory import ItemMemory
from gptoss.server.api.items import parse_items
from gptoss.server.api.response_echo import echo, tool_object
from gptoss.server.api.response_events import Response
from gptoss.server.api.response_output import ThinkingForms
from gptoss.server.api.tool_choice import choose
from gptoss.server.errors import ApiError

# A conversation that is kept here, work in the background, prompts that OpenAI keeps.
_UNSUPPORTED = ("previous_response_id", "conversation", "background", "prompt")
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "seed",
)  # fmt: skip

# What parts of the engine and of conversations call a field, and what it is called here.
_NAMES = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
}
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
        refuse_unsupported(body, _UNSUPPORTED)
        self.ignored: Sequence[str] = ()
        self.streams = flag(body, "stream")
        included = _included(body)
        effort = effort_of(body, "reasoning.effort")
        form = _object(body, "text").get("format")
        structured = body.get("structured_outputs")
        asks, grammar = answer_grammar(
            {"response_format": form, "structured_outputs": structured}, "text.format"
        )
        held = memory.add if flag(body, "store", True) else _forget
        with field_names({**_NAMES, "grammar": asks}):
            params = sampling_params(
                {name: body.get(name) for name in _SAMPLING},
                max_tokens=body.get("max_output_tokens"),
                logprobs=_logprobs(body, included),
                stop=stop_strings(body),
            )
            declared = parse_tools(body.get("tools"))
            messages = parse_items(
                body.get("input"),
                instructions=body.get("instructions"),
                declared=[tool.name for tool in declared],
                held=memory.get,
            )
            choose(declared, body.get("tool_choice"))
            repeated = echo(body, model=model, effort=effort)

            def submit(tools: Sequence[Tool]) -> Answer:
                chosen = choose(tools, body.get("tool_choice"))
                return Answer.chat(
                    engine,
                    chat,
                    Conversation(tuple(messages), chosen.declared, effort, date.today()),
                    params,
                    caller=caller,
                    priority=priority_of(body),
                    answer=grammar,
                    may_call=chosen.may_call,
                    must_call=chosen.must_call,
                    hold=not flag(body, "allow_undeclared_calls"),
                    one_call=not flag(body, "parallel_tool_calls", True),
                )

            for tools in _strictness(declared, body.get("tools")):
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


def _included(body: Mapping[str, Any]) -> list[str]:
    included = body.get("include")
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


def _logprobs(body: Mapping[str, Any], included: Sequence[str]) -> Any:
    """How many alternatives of each token come with it; None: not even its own log-probability."""
    top = body.get("top_logprobs")
    if top is None or (type(top) is int and top == 0):
        return 0 if _LOGPROBS in included else None
    return top


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ApiError(f"{name}: expected an object, found {shown(value)}", field=name)
    return value
