"""Log-probabilities of tokens as OpenAI's API has them."""

from __future__ import annotations

from typing import Any

from gptoss.request import TokenLogprob

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
