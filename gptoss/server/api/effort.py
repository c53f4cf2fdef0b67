"""How much a model is to think, in all the names that clients have for it."""

from __future__ import annotations

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
