"""The fields of a response that repeat the request, as far as it was carried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss.chat import Tool
from gptoss.errors import shown
from gptoss.server.errors import ApiError

_TEXTS = ("safety_identifier", "prompt_cache_key", "user")
_SUMMARIES = ("auto", "concise", "detailed")
_VERBOSITIES = ("low", "medium", "high")
_MAX_METADATA = 16


def echo(body: Mapping[str, Any], *, model: str, effort: str) -> dict[str, Any]:
    """Every field that OpenAI's server sends, except `tools`.

    Args:
        body: a request whose tools, choice of them and format of the text have been understood.
        model: its name.
        effort: of reasoning, one of the model's own.

    Raises:
        ApiError: one of the fields that nothing but this reads is none; it names the field.
    """
    reasoning = body.get("reasoning")
    summary = reasoning.get("summary") if isinstance(reasoning, Mapping) else None
    return {
        "model": model,
        "background": False,
        "conversation": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": _number(body, "max_tool_calls"),
        "metadata": _metadata(body.get("metadata")),
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {
            "effort": effort,
            "summary": _one_of(summary, "reasoning.summary", _SUMMARIES),
        },
        "service_tier": "default",
        "store": False,  # no answer can be had again
        "temperature": _or(body.get("temperature"), 1.0),
        "text": _text(body.get("text")),
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "top_logprobs": _or(body.get("top_logprobs"), 0),
        "top_p": _or(body.get("top_p"), 1.0),
        "truncation": "disabled",
        **{name: _string(body, name) for name in _TEXTS},
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _string(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(f"{name}: expected a string, found {shown(value)}", field=name)
    return value


def _number(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ApiError(f"{name}: expected a whole number, found {shown(value)}", field=name)
    return value


def _one_of(value: object, name: str, known: Sequence[str]) -> str | None:
    if value is not None and (not isinstance(value, str) or value not in known):
        raise ApiError(
            f"{name}: expected one of {', '.join(known)}, found {shown(value)}", field=name
        )
    return value


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


def _text(text: object) -> dict[str, Any]:
    given = text if isinstance(text, Mapping) else {}
    form: Mapping[str, Any] = given.get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        described: Mapping[str, Any] = form.get(
            "json_schema", form
        )  # chat completions' form is taken too
        optional = {
            name: described[name]
            for name in ("description", "strict")
            if described.get(name) is not None
        }
        name, schema = described.get("name"), described["schema"]
        form = {
            "type": "json_schema",
            "name": name if isinstance(name, str) else "response",
            "schema": schema,
            **optional,
        }
    else:
        form = {"type": form["type"]}
    verbosity = _one_of(given.get("verbosity"), "text.verbosity", _VERBOSITIES)
    return {"format": form} if verbosity is None else {"format": form, "verbosity": verbosity}


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
