"""Texts that come from outside: what is no Unicode text becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def valid_text(text: str) -> str:
    """`text` with surrogate pairs as the characters they mean, and lone surrogates as U+FFFD.

    Programs that count UTF-16 units cut characters in two; JSON carries the halves.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid_json(value: Any) -> Any:
    """A value of JSON with `valid_text`s, also as keys. Recursive: not for values of any depth."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, Mapping):
        return {valid_json(key): valid_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [valid_json(each) for each in value]
    return value
