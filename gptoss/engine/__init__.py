"""The engine: requests that share the steps of one model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss.engine.aio import AsyncEngine, AsyncStream
    from gptoss.engine.engine import Engine
    from gptoss.engine.load import choose_device
    from gptoss.engine.memory import available_memory
    from gptoss.engine.options import EngineOptions
    from gptoss.engine.prompts import Prompt
    from gptoss.engine.sequence import Account
    from gptoss.engine.stream import Stream
    from gptoss.engine.text import StopMatcher

# Imported when first used (PEP 562): the command line reads `gptoss.engine.options` for its help,
# which needs neither NumPy nor the compiled core.
_HOME = {
    "Account": "gptoss.engine.sequence",
    "AsyncEngine": "gptoss.engine.aio",
    "AsyncStream": "gptoss.engine.aio",
    "Engine": "gptoss.engine.engine",
    "EngineOptions": "gptoss.engine.options",
    "Prompt": "gptoss.engine.prompts",
    "StopMatcher": "gptoss.engine.text",
    "Stream": "gptoss.engine.stream",
    "available_memory": "gptoss.engine.memory",
    "choose_device": "gptoss.engine.load",
}

__all__ = [
    "Account",
    "AsyncEngine",
    "AsyncStream",
    "Engine",
    "EngineOptions",
    "Prompt",
    "StopMatcher",
    "Stream",
    "available_memory",
    "choose_device",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gptoss.engine' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
