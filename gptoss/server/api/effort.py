"""How much a model is to think, in all the names that clients have for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss.errors import shown
from gptoss.server.errors import ApiError

# What others call efforts, and which of the model's three they are here.
EFFORTS = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_SWITCH = {True: "medium", False: "low"}  # Ollama's `think`; these models always think
DEFAULT = "medium"
# Chat completions, responses, chat templates, Ollama. All are read on every route.
NAMES = ("reasoning_effort", "reasoning.effort", "chat_template_kwargs.reasoning_effort", "think")


def effort_of(body: Mapping[str, Any], own: str = "reasoning_effort") -> str:
    """The effort that a request asks for: "low", "medium" or "high"; null counts as missing.

    own: the route's own name of it, which counts where another one says something else.

    Raises ApiError, whose field is the name that was used: it is none of EFFORTS.
    """
    asked = [
        effort
        for name in (own, *(name for name in NAMES if name != own))
        if (effort := _asked(body, name)) is not None
    ]
    return asked[0] if asked else DEFAULT


def _asked(body: Mapping[str, Any], name: str) -> str | None:
    outer, _, inner = name.partition(".")
    value = body.get(outer)
    if value is not None and inner:
        if not isinstance(value, Mapping):
            raise ApiError(f"{outer}: expected an object, found {shown(value)}", field=outer)
        value = value.get(inner)
    if value is None:
        return None
    return effort_or_switch(value, name) if name == "think" else effort(value, name)


def effort_or_switch(value: Any, name: str) -> str:
    """As Ollama has it, true and false too."""
    return _SWITCH[value] if isinstance(value, bool) else effort(value, name)


def effort(value: Any, name: str) -> str:
    """What an effort is to the model. Raises ApiError."""
    if not isinstance(value, str) or value not in EFFORTS:
        raise ApiError(
            f"{name}: expected one of {', '.join(EFFORTS)}, found {shown(value)}",
            field=name,
            code="invalid_value",
        )
    return EFFORTS[value]
