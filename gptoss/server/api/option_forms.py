"""What an answer must be, from the options that say it: each function makes the grammar of a value.
None: it may be anything. All raise Error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptoss.errors import shown
from gptoss.request import Grammar
from gptoss.server.errors import ApiError

_FORMATS = ("text", "json_object", "json_schema")


def response_format(value: Any, name: str) -> Grammar | None:
    """OpenAI's object; where it has a schema that is not strict, what of it cannot be kept to is
    left to the model.
    """
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or kind not in _FORMATS:
        raise ApiError(
            f"{name}: expected type {', '.join(_FORMATS)}, found "
            f"{shown(kind if isinstance(value, Mapping) else value)}",
            field=name,
        )
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")  # llama.cpp's
        return Grammar.json(schema) if schema else Grammar.json()
    inner = value.get("json_schema", value)  # the responses API has no inner object
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ApiError(f"{name}.schema: expected a JSON schema, found {shown(schema)}", field=name)
    strict = inner.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise ApiError(f"{name}.strict: expected true or false, found {shown(strict)}", field=name)
    return Grammar.json(schema, strict=bool(strict))


def json_schema(value: Any, name: str) -> Grammar:
    """A schema, as an object or as text."""
    return Grammar.json(value)


def json_object(value: Any, name: str) -> Grammar | None:
    """true: any JSON object."""
    if not isinstance(value, bool):
        raise ApiError(f"{name}: expected true or false, found {shown(value)}", field=name)
    return Grammar.json() if value else None


def regex(value: Any, name: str) -> Grammar:
    """A regular expression."""
    return Grammar.regex(value)


def choice(value: Any, name: str) -> Grammar:
    """A list of texts."""
    return Grammar.choice(value)


def any_grammar(value: Any, name: str) -> Grammar | None:
    """A grammar as llguidance or llama.cpp has it; an empty text is none."""
    if value == "":
        return None
    if isinstance(value, str) and re.search(r"^\s*[\w-]+\s*::=", value, re.MULTILINE):
        return Grammar.gbnf(value)
    return Grammar.lark(value)
