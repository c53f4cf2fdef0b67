"""Tokens as people read them."""

from __future__ import annotations

from collections.abc import Iterable

from gptoss.train.data.tokenizers import BytePairs, TextTokenizer


def token_name(tokenizer: TextTokenizer, token: int) -> str:
    r"""The text of one id; bytes of an incomplete character as \xe2; "" if it maps to nothing."""
    text = tokenizer.decode([token])
    if "\ufffd" in text and isinstance(tokenizer, BytePairs):
        return tokenizer.inner.token_bytes(token).decode("utf-8", "backslashreplace")
    return text


def token_names(tokenizer: TextTokenizer, tokens: Iterable[int]) -> list[str]:
    """`token_name` of each."""
    return [token_name(tokenizer, token) for token in tokens]
