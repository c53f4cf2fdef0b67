"""The fields of a response that repeat the request, as far as it was carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss.chat import Tool
from gptoss.errors import shown
from gptoss.server.errors import ApiError

_TEXTS = ("safety_identifier", "prompt_cache_key", "user")
_SUMMARIES = ("auto", "concise", "detailed")
_MAX_METADATA = 16


def echo(options: Mapping[str, Any], *, model: str, effort: str) -> dict[str, Any]:
    """Every field that OpenAI's server sends, except `tools`.

    Args:
        options: of the request, checked; tools, choice of them and format of the text have been
            understood.
        model: its name.
        effort: of reasoning, one of the model's own.

    Raises:
        ApiError: one of the fields that nothing but this reads is none; it names the field.
    """
    return {
        "model": model,
        "background": False,
        "conversation": None,
        "instructions": options["instructions"],
        "max_output_tokens": options["max_output_tokens"],
        "max_tool_calls": options["max_tool_calls"],
        "metadata": _metadata(options["metadata"]),
        "parallel_tool_calls": options["parallel_tool_calls"],
        "previous_response_id": None,
        "reasoning": {"effort": effort, "summary": _summary(options)},
        "service_tier": "default",
        "store": False,  # no answer can be had again
        "temperature": options["temperature"],
        "text": _text(options["text.format"], options["text.verbosity"]),
        "tool_choice": _tool_choice(options["tool_choice"]),
        "top_logprobs": options["top_logprobs"] or 0,
        "top_p": options["top_p"],
        "truncation": "disabled",
        **{name: _string(options, name) for name in _TEXTS},
    }


def _string(options: Mapping[str, Any], name: str) -> str | None:
    value: object = options[name]
    if value is not None and not isinstance(value, str):
        raise ApiError(f"{name}: expected a string, found {shown(value)}", field=name)
    return value


def _summary(options: Mapping[str, Any]) -> str | None:
    for name in ("reasoning.summary", "reasoning.generate_summary"):
        value = options[name]
        if value is not None and (not isinstance(value, str) or value not in _SUMMARIES):
            raise ApiError(
                f"{name}: expected one of {', '.join(_SUMMARIES)}, found {shown(value)}", field=name
            )
        if value is not None:
            return str(value)
    return None


def _metadata(value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if (
        not isinstance(value, Mapping)
        or len(value) > _MAX_METADATA
        or not all(isinstance(text, str) for text in value.values())
    ):
        raise ApiError(
            f"metadata: expected an object of at most {_MAX_METADATA} strings, found "
            f"{shown(value)}",
            field="metadata",
        )
    return value


def _text(form: Any, verbosity: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"type": form["type"] if form else "text"}
    if said["type"] == "json_schema":
        described = form.get("json_schema", form)  # chat completions' form is taken too
        name = described.get("name")
        said["name"] = name if isinstance(name, str) else "response"
        said["schema"] = described["schema"]
        if isinstance(described.get("description"), str):
            said["description"] = described["description"]
        if described.get("strict") is not None:
            said["strict"] = described["strict"]
    return {"format": said} if verbosity is None else {"format": said, "verbosity": verbosity}


def tool_object(tool: Tool) -> dict[str, Any]:
    """A tool as this API has it; `strict` as it was carried out."""
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description or None,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def _tool_choice(choice: Any) -> Any:
    """One that has been understood, in the form of this API."""
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return choice
    if choice["type"] == "function":
        return _named(choice)
    allowed = choice.get("allowed_tools", choice)
    mode = "required" if allowed.get("mode") == "required" else "auto"
    return {"type": "allowed_tools", "mode": mode, "tools": [_named(t) for t in allowed["tools"]]}


def _named(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "name": tool.get("function", tool)["name"]}
