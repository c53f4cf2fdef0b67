"""Which files beside a checkpoint belong to its tokenizer."""

from __future__ import annotations

from pathlib import Path

from gptoss import files
from gptoss.gguf.reader import GgufFile

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


def holds_vocabulary(path: Path) -> bool:
    """Whether `path`, a directory or a GGUF file, holds a vocabulary."""
    if path.is_file():
        file = GgufFile(path)
        try:
            return file.text("tokenizer.ggml.model", "none") != "none"
        finally:
            file.close()
    return (path / "tokenizer.json").is_file() or any(path.glob(PATTERN))


def chat_template(directory: Path) -> str | None:
    """The template of conversations in `directory`, None where there is none."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    path = directory / CONFIG_NAME
    found = files.read_object(path).get("chat_template") if path.is_file() else None
    return found if isinstance(found, str) else None


def tokenizer_directory(*candidates: Path) -> Path:
    """The first of `candidates` that holds a vocabulary, else the last.

    The published checkpoints keep tokenizer.json at the top, above `original/`, which is therefore
    asked too.
    """
    tried = list(candidates)
    tried += [path.parent for path in candidates if path.resolve().name == "original"]
    for path in tried:
        if holds_vocabulary(path):
            return path
    return candidates[-1]
