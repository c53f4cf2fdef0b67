"""JSON schemas as people write them, in words that the grammars' library reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptoss.request.text import valid_text

# Where a schema holds schemas: by a name of their own, in a list, or alone.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = (
    "items", "additionalItems", "additionalProperties", "contains", "not", "if", "then", "else",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip


def schema_text(schema: Mapping[str, Any] | bool, options: Mapping[str, Any]) -> str:
    """A schema as JSON, with options beside it. Halves of surrogate pairs in it are U+FFFD, and
    `nullable: true`, as OpenAPI has it, allows null.

    Raises ValueError, TypeError, RecursionError: it is no JSON.
    """
    whole = {**(schema if isinstance(schema, Mapping) else {})}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False)
    if '"nullable"' in text:
        whole = _with_null(whole)
    return valid_text(json.dumps({**whole, **options}, ensure_ascii=False, allow_nan=False))


def _with_null(schema: Any) -> Any:
    if isinstance(schema, list):  # `items` of old
        return [_with_null(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for name in _NAMED:
        if isinstance(found.get(name), Mapping):
            found[name] = {key: _with_null(value) for key, value in found[name].items()}
    for name in _LISTED:
        if isinstance(found.get(name), list):
            found[name] = [_with_null(each) for each in found[name]]
    for name in _SINGLE:
        if name in found:
            found[name] = _with_null(found[name])
    if found.pop("nullable", None) is not True:
        return found
    kind = found.get("type")
    if set(found) & {"$ref", "anyOf", "oneOf", "allOf", "const"} or kind is None:
        described = {name: found.pop(name) for name in ("$defs", "definitions") if name in found}
        return {**described, "anyOf": [found, {"type": "null"}]} if found else {**described}
    kinds = list(kind) if isinstance(kind, list) else [kind]
    found["type"] = kinds if "null" in kinds else [*kinds, "null"]
    if isinstance(found.get("enum"), list) and None not in found["enum"]:
        found["enum"] = [*found["enum"], None]
    return found
