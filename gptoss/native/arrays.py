"""What a step takes and gives back, as NumPy arrays: the Python side of core/batch.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss.errors import Error

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]

# SamplingRow of core/batch.h, field by field; _core checks its size against C++.
SAMPLING_DTYPE = np.dtype(
    [
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("n_logprobs", "<i4"),
        ("seed", "<u8"),
        ("draw", "<u8"),
    ]
)


@dataclass
class StepOutput:
    """What a step gave back: R rows that wanted logits, in the batch's order.

    tokens: int32 [R], drawn tokens, or None without sampling.
    logprobs: float32 [R], natural log-probability of each under the unmodified distribution.
    top_ids, top_logprobs: int32 and float32 [R, N], most likely first; id -1 past a row's own
        n_logprobs. logits: float32 [R, vocab] or None. hidden: float32 [layers, T, hidden] or None.
    """

    tokens: Ints | None = None
    logprobs: Floats | None = None
    top_ids: Ints | None = None
    top_logprobs: Floats | None = None
    logits: Floats | None = None
    hidden: Floats | None = None


class SamplingBatch:
    """Sampling parameters of a step's R rows.

    rows: structured array [R] of SAMPLING_DTYPE. The ragged lists (int32, float32 for bias_values)
    hold row r's entries at [start[r], start[r + 1]): history_ids are the tokens seen so far, each
    once, with history_counts, their number in the output (0: only in the prompt); bias_ids and
    bias_values are added to the logits. masks: uint32 [M, ceil(vocab / 32)], bit i % 32 of word
    i / 32 says whether token i may be drawn; mask_rows: int32 [R], each row's mask, or -1: any.

    Raises Error where the arrays do not fit each other.
    """

    __slots__ = (
        "bias_ids",
        "bias_start",
        "bias_values",
        "history_counts",
        "history_ids",
        "history_start",
        "mask_rows",
        "masks",
        "rows",
    )

    def __init__(
        self,
        rows: NDArray[Any],
        *,
        history_start: ArrayLike | None = None,
        history_ids: ArrayLike | None = None,
        history_counts: ArrayLike | None = None,
        bias_start: ArrayLike | None = None,
        bias_ids: ArrayLike | None = None,
        bias_values: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        mask_rows: ArrayLike | None = None,
    ) -> None:
        self.rows: NDArray[Any] = np.ascontiguousarray(rows)
        if self.rows.dtype != SAMPLING_DTYPE or self.rows.ndim != 1:
            raise Error(
                f"sampling rows: expected one dimension of SAMPLING_DTYPE, found "
                f"{self.rows.ndim} of {self.rows.dtype}"
            )
        self.history_start: Ints = self._starts("history_start", history_start)
        self.history_ids: Ints = self._entries(
            "history_ids", history_ids, np.int32, self.history_start
        )
        self.history_counts: Ints = self._entries(
            "history_counts", history_counts, np.int32, self.history_start
        )
        self.bias_start: Ints = self._starts("bias_start", bias_start)
        self.bias_ids: Ints = self._entries("bias_ids", bias_ids, np.int32, self.bias_start)
        self.bias_values: Floats = self._entries(
            "bias_values", bias_values, np.float32, self.bias_start
        )
        self.masks: NDArray[np.uint32] = np.ascontiguousarray(
            [] if masks is None else masks, np.uint32
        )
        self.mask_rows: Ints | None = None
        if masks is not None:
            self.mask_rows = np.ascontiguousarray([] if mask_rows is None else mask_rows, np.int32)
            if self.masks.ndim != 2 or self.mask_rows.shape != self.rows.shape:
                raise Error(
                    f"masks: expected two dimensions, and mask_rows of {len(self.rows)}, found "
                    f"shapes {self.masks.shape} and {self.mask_rows.shape}"
                )

    def _starts(self, name: str, starts: ArrayLike | None) -> Ints:
        if starts is None:
            return np.zeros(len(self.rows) + 1, np.int32)
        offsets: Ints = np.ascontiguousarray(starts, np.int32)
        if (
            offsets.shape != (len(self.rows) + 1,)
            or offsets[0] != 0
            or np.any(np.diff(offsets) < 0)
        ):
            raise Error(f"{name}: expected {len(self.rows) + 1} offsets that rise from 0")
        return offsets

    def _entries(
        self, name: str, entries: ArrayLike | None, dtype: Any, starts: Ints
    ) -> NDArray[Any]:
        values = np.ascontiguousarray([] if entries is None else entries, dtype)
        if values.shape != (int(starts[-1]),):
            raise Error(f"{name}: expected {int(starts[-1])} entries, found shape {values.shape}")
        return values
