"""Fixtures that every folder of tests shares."""

from __future__ import annotations

import base64
import json
import logging
import signal
import string
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # what tests of every folder use: `waiting`, …

# A shell's background job ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, so that a change is not failed by what it did not touch. `make slow`
# draws others.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Checkpoints and the outputs of OpenAI's code on them (tests/golden/README.md)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tiny_a(golden_dir: Path) -> Path:
    """A small random checkpoint in the original layout, one file."""
    return golden_dir / "tiny-a"


@pytest.fixture(scope="session")
def tiny_a_hf(golden_dir: Path) -> Path:
    """The same weights in the Hugging Face layout, two shards and an index."""
    return golden_dir / "tiny-a-hf"


@pytest.fixture(scope="session")
def tiny_a_words(tiny_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-a with a vocabulary beside it: every byte, 255 pairs of letters, <|endoftext|>."""
    directory = tmp_path_factory.mktemp("models") / "tiny-a-words"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).symlink_to(tiny_a / name)
    pieces = [bytes([byte]) for byte in range(256)]
    pairs = product(" " + string.ascii_lowercase, string.ascii_lowercase)
    pieces += ["".join(pair).encode() for pair, _ in zip(pairs, range(255), strict=False)]
    ranks = (f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(pieces))
    (directory / "tokenizer.tiktoken").write_text("\n".join(ranks) + "\n")
    settings = {
        "pattern": r" ?\w+| ?[^\w\s]+|\s+",
        "special_tokens": {"<|endoftext|>": len(pieces)},
        "eos_token": "<|endoftext|>",
        "bos_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture
def before_step(monkeypatch):
    """A function (engine, hook): from now on the hook gets the arrays of each step before the
    backend does, and may raise, or wait.
    """

    def install(engine, hook):
        backend = engine._worker.backend

        class Hooked:
            def step(self, *arrays, **options):
                hook(*arrays)
                return backend.step(*arrays, **options)

        monkeypatch.setattr(engine._worker, "backend", Hooked())

    return install


@pytest.fixture(autouse=True)
def log_handlers_end():
    """What a test adds to the logs ends with it: it may write to a stream that is then closed."""
    loggers = [logging.getLogger(name) for name in (None, "gptoss", "uvicorn", "asyncio")]
    before = [(logger, logger.handlers[:]) for logger in loggers]
    yield
    for logger, handlers in before:
        logger.handlers[:] = [handler for handler in logger.handlers if handler in handlers]
