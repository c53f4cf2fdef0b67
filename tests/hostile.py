"""JSON as an attacker may write it: any value at any place of a document."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# What JSON can hold and json.dumps cannot write.
_BEYOND_FLOATS = "@a number beyond every float@"
_NESTED = "@lists in lists, deeper than Python recurses@"
_WRITTEN = {_BEYOND_FLOATS: "1e999", _NESTED: "[" * 100_000 + "]" * 100_000}

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([1 << 24, 1 << 31, (1 << 61) - 1, 1 << 63, 1 << 64, -(1 << 70), 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e-46, 5e-324, -0.0, 1e308, _BEYOND_FLOATS, _NESTED]),
    st.sampled_from(["", "\0", "\ud800", "é" * 300, "../x", "mxfp4", "BF16", "yarn", "BPE", "x y"]),
    st.text(max_size=4),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, good: Any) -> bytes:
    """The JSON document `good`, one or two of its values replaced by any, moved or left out."""
    document = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or draw(st.booleans()):
                change = draw(st.sampled_from(["replace"] * 6 + ["remove", "rename", "exchange"]))
                other = draw(st.sampled_from(keys))
                if change == "replace":
                    place[key] = draw(_values)
                elif change == "exchange":
                    place[key], place[other] = place[other], place[key]
                else:
                    del place[key]
                    if change == "rename" and isinstance(place, dict):
                        place[draw(st.text(max_size=4))] = inner
                break
            place = inner
    text = json.dumps(document)
    for mark, written in _WRITTEN.items():
        text = text.replace(json.dumps(mark), written)
    return text.encode()
