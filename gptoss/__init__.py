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
    from gptoss.async_engine import AsyncEngine, AsyncStream
    from gptoss.completion import Completion, Delta, Timing, TokenLogprob
    from gptoss.config import ModelConfig
    from gptoss.engine import Engine, Stream
    from gptoss.errors import Error
    from gptoss.grammar import Grammar
    from gptoss.sampling import SamplingParams

    __version__: str

__all__ = [
    "AsyncEngine",
    "AsyncStream",
    "Completion",
    "Delta",
    "Engine",
    "Error",
    "Grammar",
    "ModelConfig",
    "SamplingParams",
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
    "AsyncEngine": "gptoss.async_engine",
    "AsyncStream": "gptoss.async_engine",
    "Completion": "gptoss.completion",
    "Delta": "gptoss.completion",
    "Engine": "gptoss.engine",
    "Error": "gptoss.errors",
    "Grammar": "gptoss.grammar",
    "ModelConfig": "gptoss.config",
    "SamplingParams": "gptoss.sampling",
    "Stream": "gptoss.engine",
    "Timing": "gptoss.completion",
    "TokenLogprob": "gptoss.completion",
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
