"""Which of its tools a model may call, and whether it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptoss.chat import Tool
from gptoss.errors import shown
from gptoss.server.errors import ApiError


@dataclass(frozen=True)
class ToolChoice:
    """declared: tools that the model is shown. may_call: those of them that it may call.
    must_call: whether it must call one of these.
    """

    declared: tuple[Tool, ...] = ()
    may_call: tuple[Tool, ...] = ()
    must_call: bool = False


def choose(tools: Sequence[Tool], choice: object) -> ToolChoice:
    """What `tool_choice` makes of a request's tools, in the form of either API.

    Raises ApiError: it is none, or names what is not declared.
    """
    every = tuple(tools)
    if choice is None or choice == "auto":
        return ToolChoice(every, every)
    if choice == "none":
        return ToolChoice()
    if choice == "required":
        may_call = every
    else:
        may_call, must_call = _named(every, choice)
        if not must_call:
            return ToolChoice(may_call, may_call)
    if not may_call:
        raise ApiError("tool_choice: expected tools to choose from, found none", field="tools")
    return ToolChoice(every, may_call, True)


def _named(tools: tuple[Tool, ...], choice: object) -> tuple[tuple[Tool, ...], bool]:
    """(the tools that a choice names, whether one must be called)."""
    if not isinstance(choice, Mapping) or choice.get("type") not in ("function", "allowed_tools"):
        raise ApiError(
            f"tool_choice: expected auto, none, required or a function, found {shown(choice)}",
            field="tool_choice",
        )
    listed: object = [choice]
    must_call = True
    if choice["type"] == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)  # the responses API has no inner object
        listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
        mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
        if mode not in (None, "auto", "required"):
            raise ApiError(
                f"tool_choice.mode: expected auto or required, found {shown(mode)}",
                field="tool_choice",
            )
        must_call = mode == "required"
    if not isinstance(listed, list):
        raise ApiError("tool_choice.tools: expected a list", field="tool_choice")
    known = {tool.name: tool for tool in tools}
    found = []
    for each in listed:
        function = each.get("function", each) if isinstance(each, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or name not in known:
            raise ApiError(
                f"tool_choice: expected one of {', '.join(known) or 'no tools'}, found "
                f"{shown(name)}",
                field="tool_choice",
            )
        found.append(known[name])
    return tuple(found), must_call
