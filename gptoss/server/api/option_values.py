"""How values of options are read: each function checks a value that is not null, and returns what
is meant by it. None: that there is to be none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gptoss.errors import shown
from gptoss.server.errors import ApiError

Read = Callable[[Any, str], Any]
_SEEDS = 1 << 64


def refuse(name: str, expected: str, found: object, code: str | None = None) -> ApiError:
    """An error to raise, about an option by its name."""
    return ApiError(f"{name}: expected {expected}, found {shown(found)}", field=name, code=code)


def anything(value: Any, name: str) -> Any:
    """What is checked where it is used."""
    return value


def asks_nothing(value: Any) -> bool:
    """Whether a value says that something is not wanted, or has nothing in it."""
    return value is None or value is False or value in ("", 0) or value == [] or value == {}


def also(*more: Any) -> Callable[[Any], bool]:
    """`asks_nothing`, or one of these values: what an option's author has it be by itself."""

    def harmless(value: Any) -> bool:
        return asks_nothing(value) or any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in more
        )

    return harmless


def boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise refuse(name, "true or false", value)
    return value


def integer(value: Any, name: str) -> int:
    """A whole number, also where it is written as 6.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refuse(name, "an integer", value)
    return value


def unless(nothing: int, meaning: int | None = None) -> Read:
    """A whole number, one of which says that there is none."""

    def reading(value: Any, name: str) -> int | None:
        found = integer(value, name)
        return meaning if found == nothing else found

    return reading


def number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(name, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise refuse(name, "a number", value) from None


def seed(value: Any, name: str) -> int | None:
    """64 bits, with a sign or without; -1: any."""
    found = integer(value, name)
    if found == -1:
        return None
    if not -_SEEDS // 2 <= found < _SEEDS:
        raise refuse(name, "an integer of 64 bits", value)
    return found % _SEEDS


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise refuse(name, "a string", value)
    return value


def one_of(meanings: Mapping[str, Any]) -> Read:
    """One of several words, each of which means something."""

    def reading(value: Any, name: str) -> Any:
        if not isinstance(value, str) or value not in meanings:
            raise refuse(name, f"one of {', '.join(meanings)}", value, "invalid_value")
        return meanings[value]

    return reading


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise refuse(name, "an object", value)
    return value


def stop(value: Any, name: str) -> tuple[str, ...]:
    """A string or several; empty ones stop nothing."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise refuse(name, "a string or a list of strings", value)
    return tuple(each for each in listed if each)


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise refuse(name, "a list of token ids", value)
    return tuple(integer(each, name) for each in value)


def logit_bias(value: Any, name: str) -> dict[int, float]:
    """{"id": bias}, or llama.cpp's [[id, bias]], where false is never."""
    pairs: list[Any]
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 for p in value):
        pairs = value
    else:
        raise refuse(name, "an object of token ids and biases", value)
    return {_token(token, name): -100.0 if bias is False else number(bias, name)
            for token, bias in pairs}  # fmt: skip


def _token(value: Any, name: str) -> int:
    """An id, also as the key of an object."""
    if isinstance(value, str):
        # int() takes blanks, underscores and other digits; a number too long for it is no id.
        if not (value.isascii() and value.isdigit() and len(value) <= 12):
            raise refuse(name, "token ids", value)
        return int(value)
    return integer(value, name)


def priority(value: Any, name: str) -> int:
    found = integer(value, name)
    if abs(found) > MAX_PRIORITY:
        raise refuse(name, f"an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}", value)
    return found


MAX_PRIORITY = 1000
MAX_SALT = 256  # characters


def salt(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SALT:
        raise refuse(name, f"a string of 1 to {MAX_SALT} characters", value)
    return value


def count_or_flag(value: Any, name: str) -> int | None:
    """A number; as chat completions have it, true is 0 and false none."""
    if isinstance(value, bool):
        return 0 if value else None
    return integer(value, name)
