"""Which files beside a checkpoint belong to its tokenizer."""

from __future__ import annotations

from pathlib import Path

CONFIG_NAME = "tokenizer_config.json"
NAMES = (
    "tokenizer.json",
    CONFIG_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
PATTERN = "*.tiktoken"


def tokenizer_files(directory: Path) -> list[Path]:
    """The tokenizer's files in `directory`, those that exist."""
    found = [directory / name for name in NAMES if (directory / name).is_file()]
    return found + sorted(path for path in directory.glob(PATTERN) if path.is_file())


def tokenizer_directory(*candidates: Path) -> Path:
    """The first of `candidates` that holds a vocabulary, else the last.

    The published checkpoints keep tokenizer.json at the top, above `original/`, which is therefore
    asked too.
    """
    tried = list(candidates)
    tried += [path.parent for path in candidates if path.resolve().name == "original"]
    for path in tried:
        if (path / "tokenizer.json").is_file() or any(path.glob(PATTERN)):
            return path
    return candidates[-1]
