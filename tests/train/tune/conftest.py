"""Fixtures of the fine-tuning tests: a small checkpoint whose vocabulary knows harmony."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.model.config import ModelConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "tokenizer"))  # vocabularies

SPECIAL = (
    "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> "
    "<|message|> <|call|>"
).split()
PAIRS = "th he in er an re on at en nd st es or te of ed is it al ar".split()
VOCABULARY = 256 + len(PAIRS) + len(SPECIAL)


def write_vocabulary(directory: Path, special: list[str] = SPECIAL) -> None:
    """Every byte, a few pairs, and the special tokens at the top."""
    pieces = [bytes([byte]) for byte in range(256)] + [pair.encode() for pair in PAIRS]
    ranks = (f"{base64.b64encode(piece).decode()} {n}\n" for n, piece in enumerate(pieces))
    (directory / "tokenizer.tiktoken").write_text("".join(ranks))
    settings = {
        "pattern": r" ?\w+| ?[^\w\s]+|\s+",
        "special_tokens": {name: len(pieces) + n for n, name in enumerate(special)},
        "eos_token": "<|endoftext|>",
        "bos_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def tune_config() -> ModelConfig:
    """A model small enough to train within a second, with every feature of the real ones."""
    return ModelConfig(
        num_hidden_layers=2,
        num_experts=4,
        experts_per_token=2,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=160,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        initial_context_length=64,
        rope_scaling_factor=4.0,
        eos_token_ids=(256 + len(PAIRS) + 1,),
    )


def write_model(config: ModelConfig, words: Path, out: Path) -> Path:
    """A checkpoint of random weights, experts in MXFP4, with the vocabulary in `words`."""
    import torch

    from gptoss.checkpoint.write import write_checkpoint
    from gptoss.train.model.convert import to_source
    from gptoss.train.model.model import GptOss

    model = GptOss(config)
    model.initialise(3)
    with torch.no_grad():  # as training leaves them: nothing is zero or one
        generator = torch.Generator().manual_seed(4)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks", "scale")):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    write_checkpoint(to_source(model, directory=words), out)
    return out


@pytest.fixture(scope="session")
def checkpoint(tune_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, experts in MXFP4, with a vocabulary."""
    words = tmp_path_factory.mktemp("words")
    write_vocabulary(words)
    return write_model(tune_config, words, tmp_path_factory.mktemp("models") / "checkpoint")


@pytest.fixture(scope="session")
def untaught(tune_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `gptoss train` leaves a model: it says that it was taught no conversations.

    Its context has room for harmony's system message.
    """
    words = tmp_path_factory.mktemp("words")
    write_vocabulary(words)
    path = words / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "conversation_format": "none"}))
    config = dataclasses.replace(tune_config, initial_context_length=256)
    return write_model(config, words, tmp_path_factory.mktemp("models") / "untaught")


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes records to a file of one JSON object per line."""

    def write(*records: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Conversations short enough for the small model's context."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {word}."},
                {"role": "assistant", "content": f"{word} {word}"},
            ]
        }
        for word in "the then hen near ten end seat rest and tan east nest inn oat ton art".split()
    ]


@pytest.fixture(scope="session")
def preferences() -> list[dict[str, Any]]:
    """Two replies each, the first one wanted."""
    return [
        {"prompt": f"Say {word}.", "chosen": f"{word} yes", "rejected": f"{word} no"}
        for word in "the then hen near ten end seat rest and tan east nest".split()
    ]
