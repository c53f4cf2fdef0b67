"""What tests of GGUF share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.source import TensorSource
from gptoss.native import _core

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tokenizer")]

PAGES = 32


@pytest.fixture(scope="session")
def tiny(tiny_a: Path) -> Iterator[TensorSource]:
    """The model that the files are made of."""
    with open_checkpoint(tiny_a) as source:
        yield source


@pytest.fixture
def logits() -> Callable[..., np.ndarray]:
    """Runs a model on one prompt: float32 [tokens, vocabulary]."""

    def run(source: TensorSource, tokens: np.ndarray, **options: Any) -> np.ndarray:
        backend = _core.Backend(
            source.config, source, threads=2, **{"activation": "f32", **options}
        )
        backend.alloc_kv(PAGES)
        count = len(tokens)
        pages = np.arange(-(-count // 16), dtype=np.int32)
        table = np.stack([pages, pages + len(pages)])[:, None, :]
        rows = np.arange(count, dtype=np.int32)
        found = backend.step(tokens, [0, count], [count], table, rows, want_logits=True).logits
        backend.close()
        return found

    return run
