"""From the JSON of a request to what the engine takes. Every field may be wrong."""

from __future__ import annotations

import json
import re
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptoss.errors import Error, shown
from gptoss.request import Grammar, SamplingParams
from gptoss.server.errors import ApiError

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "ignore_eos",
)


MAX_PRIORITY = 1000


@dataclass(frozen=True)
class Caller:
    """Who asks, and the event loop that the answer is read in."""

    loop: AbstractEventLoop
    client: str = ""


def parse_body(data: bytes) -> dict[str, Any]:
    """The object that a request's body is, in which all text is Unicode: halves of surrogate pairs,
    which JavaScript's strings may end with, are U+FFFD. Raises ApiError.
    """
    try:
        body = json.loads(data, parse_constant=_no_number)
        if _MAYBE_HALF.search(data):
            body = _mended(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"body: expected JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(f"body: expected an object, found {shown(body)}")
    return body


# An escape that a surrogate may be, or a byte that may begin one; in UTF-16 and 32 any byte may.
_MAYBE_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed|\x00|[\xfe\xff]")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return value


def refuse_unsupported(body: Mapping[str, Any], names: Sequence[str]) -> None:
    """Fields that would change what the answer means, and are not carried out."""
    for name in names:
        if body.get(name):
            raise ApiError(f"{name}: this server cannot do that", field=name, code="unsupported")


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A field that is true or false; `default` where it is missing or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(f"{name}: expected true or false, found {shown(value)}", field=name)
    return value


def wants_usage(body: Mapping[str, Any]) -> bool:
    """stream_options.include_usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise ApiError(
            f"stream_options: expected an object, found {shown(options)}", field="stream_options"
        )
    return flag(options, "include_usage")


@contextmanager
def field_names(names: Mapping[str, str]) -> Iterator[None]:
    """Errors of the engine about a field in `names` are raised as errors about the field of the
    request that it was made of.
    """
    try:
        yield
    except ApiError:
        raise  # it is about the request itself
    except Error as error:
        name = names.get(error.field or "")
        if name is None or name == error.field:
            raise
        raise ApiError(f"{name}: {error}", field=name, code=error.code) from None


_GUIDES: dict[str, Callable[[Any], Grammar]] = {
    "json": Grammar.json,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
    "grammar": Grammar.lark,
}
_FORMATS = ("text", "json_object", "json_schema")


def answer_grammar(
    body: Mapping[str, Any], format_name: str = "response_format"
) -> tuple[str, Grammar | None]:
    """What the answer must be: OpenAI's `response_format`, or as vLLM has it `structured_outputs`
    ({"json" | "regex" | "choice" | "grammar": …}) and `guided_json`, `guided_regex` and so on.

    format_name: what the request's API calls `response_format`. Returns (the field that asks for
    it, the grammar); the latter is None where the answer may be anything.

    Raises ApiError: it is invalid, cannot be carried out, or there are several.
    """
    found: list[tuple[str, Grammar]] = []
    wanted = body.get("response_format")
    if wanted is not None:
        grammar = _of_format(wanted, format_name)
        if grammar is not None:
            found.append((format_name, grammar))
    structured = body.get("structured_outputs")
    if structured is not None and not isinstance(structured, Mapping):
        raise ApiError(
            f"structured_outputs: expected an object, found {shown(structured)}",
            field="structured_outputs",
        )
    for kind, make in _GUIDES.items():
        for name, value in (
            (f"guided_{kind}", body.get(f"guided_{kind}")),
            (f"structured_outputs.{kind}", (structured or {}).get(kind)),
        ):
            if value is not None:
                found.append((name, _grammar(make, value, name)))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise ApiError(f"{names}: expected one of them", field=found[1][0])
    return found[0] if found else (format_name, None)


def _of_format(wanted: object, name: str) -> Grammar | None:
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if not isinstance(wanted, Mapping) or kind not in _FORMATS:
        raise ApiError(
            f"{name}: expected type {', '.join(_FORMATS)}, found "
            f"{shown(kind if isinstance(wanted, Mapping) else wanted)}",
            field=name,
        )
    if kind == "text":
        return None
    if kind == "json_object":
        return _grammar(Grammar.json, None, name)
    described = wanted.get("json_schema", wanted)  # the responses API has no inner object
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ApiError(f"{name}.schema: expected a JSON schema, found {shown(schema)}", field=name)
    return _grammar(Grammar.json, schema, name)


def _grammar(make: Callable[[Any], Grammar], value: Any, name: str) -> Grammar:
    try:
        return make(value)
    except Error as error:
        raise ApiError(f"{name}: {error}", field=name) from None


def priority_of(body: Mapping[str, Any]) -> int:
    """`priority`: a whole number, lower goes first; 0 where it is missing. Raises ApiError."""
    value = body.get("priority")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_PRIORITY:
        raise ApiError(
            f"priority: expected an integer from {-MAX_PRIORITY} to {MAX_PRIORITY}, found "
            f"{shown(value)}",
            field="priority",
        )
    return value


def stop_strings(body: Mapping[str, Any]) -> tuple[str, ...]:
    """`stop`: a string or several. Raises Error."""
    return SamplingParams(stop=body.get("stop") or ()).stop_strings


def sampling_params(
    body: Mapping[str, Any], *, max_tokens: Any, logprobs: int | None, **more: Any
) -> SamplingParams:
    """The request's parameters; null counts as missing. Raises Error."""
    options = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    bias = body.get("logit_bias")
    if bias is not None:
        if not isinstance(bias, Mapping):
            raise ApiError(
                f"logit_bias: expected an object, found {shown(bias)}", field="logit_bias"
            )
        try:
            options["logit_bias"] = {int(token): value for token, value in bias.items()}
        except ValueError:
            raise ApiError(
                f"logit_bias: expected token ids, found {shown(next(iter(bias)))}",
                field="logit_bias",
            ) from None
    return SamplingParams(**options, max_tokens=max_tokens, logprobs=logprobs, **more)
