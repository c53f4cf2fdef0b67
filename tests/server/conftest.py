"""A server on a socket of this machine, for clients that know nothing of it."""

import sys
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "chat"), str(HERE.parent / "engine")]

NEEDED = ("starlette", "uvicorn", "openai", "httpx")


def pytest_pycollect_makemodule(module_path, parent):
    from optional import module_or_skip

    return module_or_skip([name for name in NEEDED if find_spec(name) is None], module_path, parent)


@contextmanager
def serving(app):
    """The address of a server that runs while the block does."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def engine():
    from gptoss import Engine

    # Float32: the same texts whatever else is in a step.
    with Engine(activation="f32", kv_bytes=32 << 20, threads=1) as engine:
        yield engine
