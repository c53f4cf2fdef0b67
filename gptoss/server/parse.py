"""From the bytes of a request to an object."""

from __future__ import annotations

import json
import re
from typing import Any

from gptoss.errors import shown
from gptoss.request import valid_json
from gptoss.server.errors import ApiError


def parse_body(data: bytes) -> dict[str, Any]:
    """The object that a request's body is, in which all text is Unicode: halves of surrogate pairs,
    which JavaScript's strings may end with, are U+FFFD; all numbers are finite. Raises ApiError.
    """
    values = sum(map(data.count, (b",", b":", b"[", b"{")))
    if values > MAX_VALUES:
        raise ApiError(f"body: expected at most {MAX_VALUES} values, found {values}", 413)
    try:
        body = json.loads(data, parse_constant=_no_number, parse_float=_finite)
        if _may_have_halves(data):
            body = valid_json(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"body: expected JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(f"body: expected an object, found {shown(body)}")
    return body


# Marks between values. Python reads them in one go, while nothing else runs: 0.2 s for so many.
MAX_VALUES = 1 << 20
_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def _may_have_halves(data: bytes) -> bool:
    """Whether an escape may be a surrogate, or a byte begins one; in UTF-16 and 32 any byte may.

    One after the other: each is looked for at the speed of memory.
    """
    return any(byte in data for byte in (b"\xed", b"\x00", b"\xfe", b"\xff")) or (
        b"\\u" in data and _ESCAPE.search(data) is not None
    )


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(written: str) -> float:
    number = float(written)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{written[:40]} is beyond every number of 64 bits")
    return number
