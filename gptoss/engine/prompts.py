"""What callers may write as prompts and parameters, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.request import SamplingParams

Prompt = str | SequenceOf[int] | NDArray[np.integer[Any]]


def as_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many: a text, and a sequence that begins with a number, are one."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        return [prompts] if prompts.ndim == 1 else list(prompts)
    if isinstance(prompts, bytes) or not isinstance(prompts, SequenceOf):
        raise Error(
            f"prompts: expected text, token ids, or a sequence of these, "
            f"found {type(prompts).__name__}",
            field="prompts",
        )
    if len(prompts) and isinstance(prompts[0], Integral):
        return [prompts]
    return list(prompts)


def as_params(params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, SequenceOf) or len(params) != count:
        found = len(params) if isinstance(params, SequenceOf) else type(params).__name__
        raise Error(
            f"params: expected one SamplingParams, or one per prompt ({count}), found {found}",
            field="params",
        )
    return list(params)


def checked_ids(ids: Any, vocab_size: int, field: str = "prompt") -> list[int]:
    """Token ids below `vocab_size` as a list. Raises Error."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise Error(
                f"token ids: expected a list of integers or an integer array of one "
                f"dimension, found {ids.dtype} {list(ids.shape)}",
                field=field,
            )
        ids = ids.tolist()
    if isinstance(ids, (str, bytes)) or not isinstance(ids, SequenceOf):
        raise Error(f"prompt: expected text or token ids, found {type(ids).__name__}", field=field)
    if not ids:
        raise Error("token ids: expected at least one, found none", field=field)
    top = vocab_size - 1
    for position, token in enumerate(ids):
        # bool is an int to Python, but not a token to anyone.
        if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= int(token) <= top:
            raise Error(
                f"token ids: expected integers from 0 to {top}, found {token!r} "
                f"({type(token).__name__}) at position {position}",
                field=field,
            )
    return [int(token) for token in ids]


def check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Raises Error where parameters name ids that the model does not have."""
    for option, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias or ()),
    ):
        for token in ids:
            if token >= vocab_size:
                raise Error(
                    f"{option}: expected token ids from 0 to {vocab_size - 1}, found {token}",
                    field=option,
                )
    if (params.logprobs or 0) > vocab_size:
        raise Error(
            f"logprobs: expected at most {vocab_size}, found {params.logprobs}",
            field="logprobs",
        )
