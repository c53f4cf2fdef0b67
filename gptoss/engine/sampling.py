"""What the sampler is told: parameters, counts, biases and masks, as the arrays of a step."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss.native.arrays import SAMPLING_DTYPE, Ints, SamplingBatch
from gptoss.request import SamplingParams

_COPIED = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class SamplerState:
    """What the sampler must know of one request, kept up to date token by token.

    Attributes:
        drawn: tokens drawn so far; numbers the next draw, which makes seeded draws repeatable.
        tracks: whether the next draw depends on which tokens came before.
    """

    def __init__(self, params: SamplingParams, seed: int, prompt: SequenceOf[int]) -> None:
        self.drawn = 0
        self.params = params
        self.seed = seed
        self._row: bytes | None = None
        bias = params.logit_bias or {}
        self.bias_ids: Ints = np.fromiter(bias.keys(), np.int32, len(bias))
        self.bias_values = np.fromiter(bias.values(), np.float32, len(bias))
        self.biased = bool(bias)
        # The repetition penalty looks at the prompt too; the others at the output alone.
        repeats = params.repetition_penalty != 1.0
        self.tracks = bool(repeats or params.presence_penalty or params.frequency_penalty)
        self._ids: Ints = np.unique(np.array(prompt if repeats else [], np.int32))
        self._counts: Ints = np.zeros_like(self._ids)
        self._used = len(self._ids)
        self._where = {int(token): i for i, token in enumerate(self._ids)}

    def push(self, token: int) -> None:
        """A token was drawn."""
        self.drawn += 1
        if not self.tracks:
            return
        at = self._where.setdefault(token, self._used)
        if at == self._used:
            if self._used == len(self._ids):
                grown = max(64, 2 * self._used)
                self._ids = np.concatenate([self._ids, np.zeros(grown, np.int32)])
                self._counts = np.concatenate([self._counts, np.zeros(grown, np.int32)])
            self._ids[at] = token
            self._used += 1
        self._counts[at] += 1

    def row(self) -> bytes:
        """Its row of a `SamplingBatch`, made once; the number of the draw is left at 0."""
        if self._row is None:
            row = np.zeros(1, SAMPLING_DTYPE)
            for name in _COPIED:
                row[name] = getattr(self.params, name)
            row["n_logprobs"] = self.params.logprobs or 0
            row["seed"] = self.seed
            self._row = row.tobytes()
        return self._row

    @property
    def history(self) -> tuple[Ints, Ints]:
        """(ids [H], how often each occurs in the output [H]); 0: in the prompt alone."""
        return self._ids[: self._used], self._counts[: self._used]


_GREEDY = SamplerState(SamplingParams(temperature=0), 0, ())


class Draw(NamedTuple):
    """How one row of logits becomes a token.

    ahead: how many draws of the same text come before it in this step. mask: a bit for each token
    that may be drawn; None: any may.
    """

    state: SamplerState | None  # None: greedy, no extras
    ahead: int = 0
    mask: NDArray[np.uint32] | None = None


def sampling_batch(draws: SequenceOf[Draw]) -> SamplingBatch:
    """What the sampler is told, one row per logits row."""
    states = [draw.state or _GREEDY for draw in draws]
    table = np.frombuffer(bytearray(b"".join([state.row() for state in states])), SAMPLING_DTYPE)
    table["draw"] = [state.drawn + draw.ahead for state, draw in zip(states, draws, strict=True)]
    arrays: dict[str, Any] = {}
    if any(state.tracks for state in states):
        history = [state.history for state in states]
        arrays["history_start"] = _starts([len(ids) for ids, _ in history])
        arrays["history_ids"] = np.concatenate([ids for ids, _ in history])
        arrays["history_counts"] = np.concatenate([counts for _, counts in history])
    if any(state.biased for state in states):
        arrays["bias_start"] = _starts([len(state.bias_ids) for state in states])
        arrays["bias_ids"] = np.concatenate([state.bias_ids for state in states])
        arrays["bias_values"] = np.concatenate([state.bias_values for state in states])
    masks = [draw.mask for draw in draws if draw.mask is not None]
    if masks:
        numbers = iter(range(len(masks)))
        arrays["masks"] = np.stack(masks)
        arrays["mask_rows"] = np.array(
            [-1 if draw.mask is None else next(numbers) for draw in draws], np.int32
        )
    return SamplingBatch(table, **arrays)


def _starts(lengths: list[int]) -> Ints:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    return starts
