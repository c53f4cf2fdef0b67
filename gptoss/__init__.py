"""gptoss: gpt-oss models on your own machine.

from gptoss import Engine, SamplingParams

engine = Engine()  # the bundled model; or Engine("path/to/checkpoint")
for delta in engine.stream("Once upon a time", SamplingParams(temperature=0.8)):
    print(delta.text, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss.engine.aio import AsyncEngine, AsyncStream
    from gptoss.engine.engine import Engine
    from gptoss.engine.options import EngineOptions
    from gptoss.engine.stream import Stream
    from gptoss.errors import Error
    from gptoss.model.config import ModelConfig
    from gptoss.request.grammar import Grammar
    from gptoss.request.params import SamplingParams
    from gptoss.request.result import Completion, Delta, Score, Timing, TokenLogprob

    __version__: str

__all__ = [
    "AsyncEngine",
    "AsyncStream",
    "Completion",
    "Delta",
    "Engine",
    "EngineOptions",
    "Error",
    "Grammar",
    "ModelConfig",
    "SamplingParams",
    "Score",
    "Stream",
    "Timing",
    "TokenLogprob",
    "__version__",
]

# Run from a checkout, this folder hides the installed package, which holds the compiled modules.
__path__ = extend_path(__path__, __name__)

# Imported when first used (PEP 562): `import gptoss` stays quick, and the modules that read
# checkpoints work without the compiled core.
_HOME = {
    "AsyncEngine": "gptoss.engine.aio",
    "AsyncStream": "gptoss.engine.aio",
    "Completion": "gptoss.request.result",
    "Delta": "gptoss.request.result",
    "Engine": "gptoss.engine.engine",
    "EngineOptions": "gptoss.engine.options",
    "Error": "gptoss.errors",
    "Grammar": "gptoss.request.grammar",
    "ModelConfig": "gptoss.model.config",
    "SamplingParams": "gptoss.request.params",
    "Score": "gptoss.request.result",
    "Stream": "gptoss.engine.stream",
    "Timing": "gptoss.request.result",
    "TokenLogprob": "gptoss.request.result",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'gptoss' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gptoss")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
