"""Log-probabilities of tokens as OpenAI's API has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptoss.engine import Engine
from gptoss.errors import Error
from gptoss.request import SamplingParams, TokenLogprob

# Log-probabilities that one request is told, at some 200 bytes each until they are sent.
MAX_LOGPROBS = 1 << 17
# JSON has no infinity; OpenAI says this of what a model rules out.
LEAST = -9999.0


def logprob_object(token: TokenLogprob) -> dict[str, Any]:
    """A token with those that were likely in its place, if any were asked for. The token itself is
    always among them, as the last where it is none of the likeliest.
    """
    top = token.top
    if top and all(other.token_id != token.token_id for other in top):
        top = (*top, token)
    return {**_one(token), "top_logprobs": [_one(other) for other in top]}


def _one(token: TokenLogprob) -> dict[str, Any]:
    logprob = max(token.logprob, LEAST)
    return {"token": token.text, "logprob": logprob, "bytes": list(token.bytes)}


def bounded(params: SamplingParams, prompts: int, engine: Engine) -> tuple[SamplingParams, int]:
    """(the parameters, how many log-probabilities that makes at most).

    Where a request does not say how many tokens it wants, it gets as many as it can be told of.
    Raises Error where it wants more.
    """
    top = params.logprobs
    if top is None:
        return params, 0
    each = params.n * prompts * (top + 1)
    most = MAX_LOGPROBS // each
    tokens, room = params.max_tokens, min(engine.config.context_length, engine.info()["kv_tokens"])
    if tokens is None and most < room:
        tokens, params = most, replace(params, max_tokens=most)
    if most < 1 or (tokens is not None and min(tokens, room) > most):
        raise Error(
            f"logprobs: expected at most {MAX_LOGPROBS} log-probabilities of all texts, found "
            f"{prompts * params.n} of {tokens} tokens with {top + 1} each; ask for "
            "fewer, or fewer tokens",
            field="logprobs",
        )
    return params, each * (room if tokens is None else min(tokens, room))
