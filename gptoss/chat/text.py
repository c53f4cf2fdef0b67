"""Texts that come from outside: what is no Unicode text becomes one."""

from __future__ import annotations


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
