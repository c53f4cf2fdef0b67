"""From the JSON of a request to what the engine takes. Every field may be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss.errors import Error, shown
from gptoss.sampling import SamplingParams
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
)


def parse_body(data: bytes) -> dict[str, Any]:
    """The object that a request's body is. Raises ApiError."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"body: expected JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(f"body: expected an object, found {shown(body)}")
    return body


def refuse_unsupported(body: Mapping[str, Any], names: Sequence[str]) -> None:
    """Fields that would change what the answer means, and are not carried out."""
    for name in names:
        if body.get(name):
            raise ApiError(f"{name}: this server cannot do that", param=name, code="unsupported")


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false; false where it is missing."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(f"{name}: expected true or false, found {shown(value)}", param=name)
    return bool(value)


def wants_usage(body: Mapping[str, Any]) -> bool:
    """stream_options.include_usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise ApiError(
            f"stream_options: expected an object, found {shown(options)}", param="stream_options"
        )
    return flag(options, "include_usage")


def stop_strings(body: Mapping[str, Any]) -> tuple[str, ...]:
    """`stop`: a string or several. Raises ApiError."""
    return _checked(stop=body.get("stop") or ()).stop_strings


def sampling_params(
    body: Mapping[str, Any], *, max_tokens: Any, logprobs: int | None, **more: Any
) -> SamplingParams:
    """The request's parameters; null is as good as missing. Raises ApiError."""
    options = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    bias = body.get("logit_bias")
    if bias is not None:
        if not isinstance(bias, Mapping):
            raise ApiError(
                f"logit_bias: expected an object, found {shown(bias)}", param="logit_bias"
            )
        try:
            options["logit_bias"] = {int(token): value for token, value in bias.items()}
        except ValueError:
            raise ApiError(
                f"logit_bias: expected token ids, found {shown(next(iter(bias)))}",
                param="logit_bias",
            ) from None
    return _checked(**options, max_tokens=max_tokens, logprobs=logprobs, **more)


def _checked(**options: Any) -> SamplingParams:
    try:
        return SamplingParams(**options)
    except Error as error:
        name = str(error).partition(":")[0]
        raise ApiError(str(error), param=name if name in options else None) from None
