"""Skips where the extra `serve` is missing; makes what lies beside other tests importable."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [
    str(folder)
    for folder in (
        HERE,
        *(HERE.parent / name for name in ("chat", "engine", "tokenizer")),
    )
]

NEEDED = ("starlette", "uvicorn", "prometheus_client", "openai", "httpx")

if find_spec("httpx"):
    from waiting import patient_httpx

    patient_httpx()


def pytest_pycollect_makemodule(module_path, parent):
    from optional import module_or_skip

    return module_or_skip([name for name in NEEDED if find_spec(name) is None], module_path, parent)


@pytest.fixture(scope="session")
def engine():
    from gptoss import Engine

    # Float32: the same texts whatever else is in a step.
    with Engine(activation="f32", kv_bytes=32 << 20, threads=1) as engine:
        yield engine
