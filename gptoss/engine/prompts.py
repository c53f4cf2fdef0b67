"""What callers may write as prompts and parameters, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import Error
from gptoss.request import SamplingParams

if TYPE_CHECKING:
    pass


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
