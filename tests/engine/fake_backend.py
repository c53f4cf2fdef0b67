"""A backend without a model, for tests of everything above `Backend.step`.

It keeps in every page, instead of keys and values, the tokens that were written there, and
computes each token's logits from what it reads back through the block table. So a page that is
shared, released too early or written by the wrong sequence changes the output, and reading what
was never written fails. It checks the arrays of a step as the compiled core would.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from gptoss.native.arrays import SamplingBatch, StepOutput

VOCABULARY = 50
PAGE = 16


def expected_logits(tokens: list[int], position: int, window: int, period: int = 0) -> np.ndarray:
    """float32 [VOCABULARY]: what the "model" says after tokens[: position + 1].

    period: nine times out of ten it likes best the token that came this many places before.
    """
    full = tokens[: position + 1]
    sliding = tokens[max(0, position - window + 1) : position + 1]
    digest = hashlib.sha256(repr((full, sliding)).encode()).digest()
    seed = int.from_bytes(digest[:8], "little")
    logits = np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
    if period and position + 1 >= period and seed % 10:
        logits[tokens[position + 1 - period]] += 30
    return logits


def row_of(sampling: SamplingBatch, name: str, values: str, r: int) -> list[tuple]:
    """The pairs of a ragged list that belong to row r."""
    start = getattr(sampling, f"{name}_start")
    part = slice(start[r], start[r + 1])
    ids, second = (getattr(sampling, f"{name}_{kind}")[part] for kind in ("ids", values))
    return list(zip(ids, second, strict=True))


def allowed(sampling: SamplingBatch, r: int) -> np.ndarray:
    """bool [VOCABULARY]: the tokens that row r may draw."""
    if sampling.mask_rows is None or sampling.mask_rows[r] < 0:
        return np.ones(VOCABULARY, bool)
    bits = sampling.masks[sampling.mask_rows[r]].view(np.uint8)
    return np.unpackbits(bits, bitorder="little")[:VOCABULARY].astype(bool)


class FakeBackend:
    page_size = PAGE
    page_bytes = 1000

    def __init__(self, window: int = 20, pages: int = 0, period: int = 0) -> None:
        self.window = window
        self.period = period
        self.pages: list[dict[int, tuple[int, int]]] = [{} for _ in range(pages)]
        self.steps: list[tuple[int, int]] = []  # (sequences, tokens) of each step
        self.closed = False
        self.fail_when: Any = None  # called with token_ids; may raise

    def plan_kv(self, size: int) -> int:
        return size // self.page_bytes

    def alloc_kv(self, pages: int) -> None:
        assert not self.pages
        self.pages = [{} for _ in range(pages)]

    def info(self) -> dict[str, Any]:
        return {"backend": "fake"}

    def close(self) -> None:
        self.closed = True

    def step(
        self,
        token_ids: np.ndarray,
        seq_start: np.ndarray,
        context_len: np.ndarray,
        block_table: np.ndarray,
        logits_rows: np.ndarray,
        sampling: SamplingBatch | None = None,
        want_logits: bool = False,
        want_hidden: bool = False,
    ) -> StepOutput:
        assert not self.closed
        self._check(token_ids, seq_start, context_len, block_table, logits_rows)
        self.steps.append((len(context_len), len(token_ids)))
        if self.fail_when:
            self.fail_when(token_ids)
        sequences = list(zip(seq_start[:-1], seq_start[1:], context_len, strict=True))
        for s, (begin, end, length) in enumerate(sequences):
            for i in range(begin, end):
                position = int(length - (end - i))
                for group in (0, 1):
                    page = self._page(block_table, group, s, position // PAGE)
                    page[position % PAGE] = (position, int(token_ids[i]))
        rows = [self._logits_of(int(row), sequences, block_table) for row in logits_rows]
        logits = np.array(rows, np.float32).reshape(len(rows), VOCABULARY)
        return self._sample(logits, sampling, want_logits)

    def _check(self, token_ids, seq_start, context_len, block_table, logits_rows) -> None:
        for array in (token_ids, seq_start, context_len, block_table, logits_rows):
            assert array.dtype == np.int32 and array.flags.c_contiguous
        count = len(context_len)
        assert block_table.shape[:2] == (2, count) and block_table.shape[2] > 0
        assert len(seq_start) == count + 1
        assert seq_start[0] == 0 and seq_start[-1] == len(token_ids)
        new = np.diff(seq_start)
        assert (new > 0).all() and (new <= context_len).all()
        assert ((token_ids >= 0) & (token_ids < VOCABULARY)).all()
        assert (np.diff(logits_rows) > 0).all()
        assert not len(logits_rows) or 0 <= logits_rows[0] <= logits_rows[-1] < len(token_ids)
        held = block_table[block_table >= 0].tolist()
        assert not held or max(held) < len(self.pages)
        written = [
            int(block_table[group, s, block])
            for s in range(count)
            for group in (0, 1)
            for block in range(
                int(context_len[s] - new[s]) // PAGE, -(-int(context_len[s]) // PAGE)
            )
        ]
        assert all(held.count(page) == 1 for page in written), "a page that is written is shared"
        for s in range(count):
            last = -(-int(context_len[s]) // PAGE)
            first = max(0, int(context_len[s] - new[s]) - self.window + 1) // PAGE
            assert (block_table[0, s, :last] >= 0).all(), "full pages missing"
            assert (block_table[1, s, first:last] >= 0).all(), "sliding pages missing"
            assert (block_table[1, s, :first] < 0).all(), "sliding pages kept too long"
            assert (block_table[:, s, last:] < 0).all(), "pages beyond the end"

    def _page(self, block_table: np.ndarray, group: int, s: int, block: int) -> dict:
        page = int(block_table[group, s, block])
        assert page >= 0
        return self.pages[page]

    def _logits_of(self, row: int, sequences: list, block_table: np.ndarray) -> np.ndarray:
        s = next(i for i, (begin, end, _) in enumerate(sequences) if begin <= row < end)
        _, end, length = sequences[s]
        position = int(length - (end - row))
        tokens = [self._read(block_table, 0, s, p) for p in range(position + 1)]
        for p in range(max(0, position - self.window + 1), position + 1):
            assert self._read(block_table, 1, s, p) == tokens[p], "the groups disagree"
        return expected_logits(tokens, position, self.window, self.period)

    def _read(self, block_table: np.ndarray, group: int, s: int, position: int) -> int:
        entry = self._page(block_table, group, s, position // PAGE).get(position % PAGE)
        assert entry is not None, "read before written"
        assert entry[0] == position, "another position's token"
        return entry[1]

    def _sample(
        self, logits: np.ndarray, sampling: SamplingBatch | None, want_logits: bool
    ) -> StepOutput:
        count = len(logits)
        most = int(sampling.rows["n_logprobs"].max()) if sampling and count else 0
        out = StepOutput(
            tokens=np.zeros(count, np.int32),
            logprobs=np.zeros(count, np.float32),
            top_ids=np.full((count, most), -1, np.int32),
            top_logprobs=np.zeros((count, most), np.float32),
            logits=logits if want_logits else None,
        )
        for r in range(count):
            logprobs = logits[r] - np.logaddexp.reduce(logits[r].astype(np.float64))
            token = sample(logits[r], sampling, r)
            out.tokens[r] = token
            out.logprobs[r] = logprobs[token]
            wanted = int(sampling.rows["n_logprobs"][r]) if sampling else 0
            order = np.argsort(-logits[r], kind="stable")[:wanted]
            out.top_ids[r, :wanted] = order
            out.top_logprobs[r, :wanted] = logprobs[order]
        return out


def sample(logits: np.ndarray, sampling: SamplingBatch | None, r: int) -> int:
    """One draw, in the order of the contract: bias and penalties, temperature, filters."""
    if sampling is None:
        return int(logits.argmax())
    row = sampling.rows[r]
    x = logits.astype(np.float64)
    for token, occurrences in row_of(sampling, "history", "counts", r):
        penalty = row["repetition_penalty"]
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
        x[token] -= row["presence_penalty"] * (occurrences > 0)
        x[token] -= row["frequency_penalty"] * occurrences
    for token, value in row_of(sampling, "bias", "values", r):
        x[token] += value
    x[~allowed(sampling, r)] = -np.inf
    if row["temperature"] == 0:
        return int(x.argmax())
    x = x / row["temperature"]
    order = np.argsort(-x, kind="stable")
    if row["top_k"]:
        order = order[: row["top_k"]]
    p = np.exp(x[order] - x[order[0]])
    p /= p.sum()
    order = order[: int((np.cumsum(p) < row["top_p"]).sum()) + 1] if row["top_p"] < 1 else order
    p = p[: len(order)]
    keep = p >= row["min_p"] * p[0]
    order, p = order[keep], p[keep] / p[keep].sum()
    u = np.random.default_rng([int(row["seed"]), int(row["draw"])]).random()
    return int(order[min(int((np.cumsum(p) < u).sum()), len(order) - 1)])


def reference_greedy(prompt: list[int], count: int, window: int, period: int = 0) -> list[int]:
    """The greedy continuation, computed without pages."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(expected_logits(tokens, len(tokens) - 1, window, period).argmax()))
    return tokens[len(prompt) :]
