"""Skips where the extra `serve` is missing; makes what lies beside other tests importable."""

import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("server", "tokenizer"))]

NEEDED = ("starlette", "uvicorn", "prometheus_client", "openai", "httpx", "llguidance")


def pytest_pycollect_makemodule(module_path, parent):
    from optional import module_or_skip

    return module_or_skip([name for name in NEEDED if find_spec(name) is None], module_path, parent)
