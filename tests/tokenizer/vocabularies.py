"""Vocabularies for the tokenizer's tests: the published one where it is at hand, and a tiny one."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import strategies as st

from gptoss.tokenizer import load as tokenizer_module
from gptoss.tokenizer.vocabulary import O200K_FILE, is_o200k

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPECIAL = {"<|endoftext|>": 300, "<|start|>": 301, "<|start|>er": 302}
MERGED = ["th", "he", "the", " the", "in", "er", "\u00e9", "ing", "  ", "   ", "an", "and", " and"]


@dataclass(frozen=True)
class Size:
    """All of a configuration that a tokenizer asks for."""

    vocab_size: int


# As it is when the tests begin: some of them change it.
_BASE = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
_FROM_ENVIRONMENT = [Path(_BASE, O200K_FILE)] if _BASE else []


def o200k_path() -> Path:
    """The published rank file, which only some machines hold. Skips the test on the others."""
    for path in (*_FROM_ENVIRONMENT, *tokenizer_module._cached_files()):
        if path.is_file() and is_o200k(path.read_bytes()):
            return path
    pytest.skip(f"{O200K_FILE} is neither in TIKTOKEN_ENCODINGS_BASE nor in tiktoken's cache")


def tiktoken_harmony(path: Path) -> tiktoken.Encoding:
    """o200k_harmony as tiktoken itself builds it, from a rank file and without a network."""
    from tiktoken_ext import openai_public

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # no cache is read or written
        ranks = tiktoken.load.load_tiktoken_bpe(str(path))
        patch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **options: ranks)
        return tiktoken.Encoding(**openai_public.o200k_harmony())


def tiny_ranks() -> dict[bytes, int]:
    """The 256 bytes, a few merges."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token in MERGED:
        ranks.setdefault(token.encode(), len(ranks))
    return ranks


def rank_lines(ranks: dict[bytes, int]) -> list[bytes]:
    return [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]


def tiny_config() -> dict[str, Any]:
    return {
        "pattern": PATTERN,
        "special_tokens": {name: token - 300 + 269 for name, token in SPECIAL.items()},
        "eos_token": "<|endoftext|>",
        "bos_token": None,
    }


def write_tiny(
    directory: Path, lines: list[bytes] | None = None, config: dict[str, Any] | None = None
) -> Path:
    """A vocabulary of one's own in `directory`, or what the arguments make of it."""
    lines = rank_lines(tiny_ranks()) if lines is None else lines
    (directory / "tokenizer.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    config = tiny_config() if config is None else config
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


# Text as it comes: any code point but surrogates, with the stretches tokenizers care about.
texts = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.text(alphabet=" \t\r\n\u00a0\u3000", max_size=8),
        st.text(alphabet="aAbB'sSÉé\u0301\u01c5中ก9٣½", max_size=8),
        st.sampled_from(
            [
                "'ll",
                "<|end|>",
                "<|return|>",
                "http://x.y/z",
                "the ",
                "😀👩\u200d👧",
                "\r\n\r\n",
                "1234567",
            ]
        ),
    ),
    max_size=8,
).map("".join)
