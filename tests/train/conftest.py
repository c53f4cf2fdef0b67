"""Fixtures of the trainer's tests. Where PyTorch or tokenizers is missing, they are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss.model.config import ModelConfig

from ..optional import module_or_skip

NEEDED = ("torch", "tokenizers", "datasketch", "ftfy", "pyarrow")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return module_or_skip(NEEDED, module_path, parent)


STORIES = [
    f"Once upon a time there was a {size} {animal} who lived in a {place}.\n\n"
    f'One day the {animal} said, "I want to see the {other}!" So it went out of the {place} '
    f"and met a {other}. They played all day and were very happy. The end."
    for size in ("little", "big", "red")
    for animal in ("cat", "dog", "bear", "fox")
    for place in ("house", "wood", "box")
    for other in ("bird", "frog")
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and a shared machine loses much."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of short stories, with the separators of the real ones."""
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(f"{s}\n<|endoftext|>\n" for s in STORIES), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def prepared(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stories` as `data.prepare` leaves them: a vocabulary of 320 ids and token files."""
    from gptoss.train import data

    out = tmp_path_factory.mktemp("prepared")
    data.prepare([stories], out, vocab_size=320, validation=0.1, near_duplicates=0)
    return out


@pytest.fixture(scope="session")
def small_config() -> ModelConfig:
    """A model small enough to train within a second, with every feature of the real ones."""
    return ModelConfig(
        num_hidden_layers=2,
        num_experts=4,
        experts_per_token=2,
        vocab_size=320,
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        initial_context_length=32,
        rope_scaling_factor=4.0,
        eos_token_ids=(319,),
    )
