"""From streams of token ids to rows of equal length that never mix documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import Error

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """`tokens`, `targets`, `positions`, `documents`: int64 [rows, length].

    `documents` numbers the pieces of a row: a token attends to its own piece alone; −1 is filler.
    `targets` is −1 where there is nothing to predict.
    """

    tokens: Int64
    targets: Int64
    positions: Int64
    documents: Int64


class Piece(NamedTuple):
    """Tokens `start` … `end` − 1 of a stream, all of one document; each predicts the next one.

    `marked`: ``<|endoftext|>`` goes before it and predicts its first token.
    """

    stream: int
    start: int
    end: int
    marked: bool

    @property
    def size(self) -> int:
        """Places it takes in a row."""
        return self.end - self.start + self.marked


class Rows(NamedTuple):
    """Row r is pieces[first[r] : first[r + 1]]; a piece is (stream, start, end, marked)."""

    pieces: Int64
    first: Int64

    def __len__(self) -> int:
        return len(self.first) - 1

    def row(self, index: int) -> list[Piece]:
        found = self.pieces[self.first[index] : self.first[index + 1]].tolist()
        return [Piece(stream, start, end, bool(marked)) for stream, start, end, marked in found]


class TextRows:
    """Rows of `length` tokens cut from documents, shuffled anew in every epoch.

    A document longer than a row is cut into pieces of `length` tokens after a first piece of
    random length. A whole piece is a row; the shorter ones are packed together, told apart by
    `Batch.documents`, with positions from 0 in each; one that does not fit goes on in the next row
    as a piece of its own. One opening in four is marked with ``<|endoftext|>``; the others start
    with their first word at position 0, as a prompt does. In every epoch every token after a
    document's first is predicted once; the rows of an epoch follow from (seed, epoch) alone.

    Without `shuffle`, documents are cut from their beginning, in order, and never marked.
    """

    MARKED = 0.25

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        length: int,
        end_of_text: int,
        seed: int = 0,
        shuffle: bool = True,
        dtype: str = "uint16",
    ) -> None:
        """`files`: (file of ids, each document ended by `end_of_text`; times per epoch)."""
        self.length, self.end_of_text, self.seed, self.shuffle = length, end_of_text, seed, shuffle
        self.streams = [np.memmap(path, dtype=dtype, mode="r") for path, _ in files]
        self.documents = np.concatenate(
            [np.zeros((0, 3), np.int64)]
            + [
                np.tile(_documents(number, stream, end_of_text), (repeats, 1))
                for number, (stream, (_, repeats)) in enumerate(
                    zip(self.streams, files, strict=True)
                )
            ]
        )
        self._epoch = -1
        self._rows = Rows(np.zeros((0, 4), np.int64), np.zeros(1, np.int64))

    def rows(self, epoch: int) -> Rows:
        """The rows of one epoch."""
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._cut(np.random.default_rng([self.seed, epoch]))
        return self._rows

    def _cut(self, rng: np.random.Generator) -> Rows:
        stream, start, end = self.documents.T
        count, length = len(start), self.length
        marked = np.zeros(count, bool)
        first_end = start  # after the first piece of random length, if there is one
        if self.shuffle:
            marked = rng.random(count) < self.MARKED
            cut = end - start > length
            first_end = np.where(cut, start + rng.integers(1, max(2, length), count), start)
        # whole pieces; a marked document that is not cut has its mark in a short piece
        wholes = np.where(marked & (first_end == start), 0, (end - first_end) // length)
        owner = np.repeat(np.arange(count), wholes)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(wholes) - wholes, wholes)
        at = first_end[owner] + place * length
        whole = np.stack([stream[owner], at, at + length, np.zeros_like(at)], 1)

        rest = first_end + wholes * length
        openings = np.stack([stream, start, first_end, marked], 1)[first_end > start]
        uncut = marked & (first_end == start)
        endings = np.stack([stream, rest, end, uncut], 1)[end > rest]
        short = np.concatenate([openings, endings]).astype(np.int64)
        if self.shuffle:
            short = short[rng.permutation(len(short))]
        packed = self._pack(short)
        first = np.concatenate([np.arange(len(whole)), len(whole) + packed.first])
        rows = Rows(np.concatenate([whole, packed.pieces]), first)
        return _permuted(rows, rng.permutation(len(rows))) if self.shuffle else rows

    def _pack(self, pieces: Int64) -> Rows:
        """Lays pieces end to end and cuts the line into rows, some pieces with it."""
        size = pieces[:, 2] - pieces[:, 1] + pieces[:, 3]
        ends = np.cumsum(size)
        starts = ends - size
        parts = np.where(size > 0, (ends - 1) // self.length - starts // self.length + 1, 0)
        owner = np.repeat(np.arange(len(pieces)), parts)
        number = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
        row = starts[owner] // self.length + number
        left = np.maximum(starts[owner], row * self.length)
        right = np.minimum(ends[owner], (row + 1) * self.length)
        marked = np.where(number == 0, pieces[owner, 3], 0)
        # the place of token t on the line is t + shift; the mark stands before the first token
        shift = starts[owner] + pieces[owner, 3] - pieces[owner, 1]
        cut = np.stack([pieces[owner, 0], left + marked - shift, right - shift, marked], 1)
        rows = int(row[-1]) + 1 if len(row) else 0
        return Rows(cut, np.searchsorted(row, np.arange(rows + 1)))

    def build(self, rows: Sequence[Sequence[Piece]]) -> Batch:
        """Looks the tokens up. What is left of a row is filled with unpredicted end ids."""
        shape = (len(rows), self.length)
        tokens = np.full(shape, self.end_of_text, np.int64)
        targets = np.full(shape, -1, np.int64)
        positions = np.zeros(shape, np.int64)
        documents = np.full(shape, -1, np.int64)
        for r, row in enumerate(rows):
            at = 0
            for number, piece in enumerate(row):
                source = self.streams[piece.stream]
                first, end = at + piece.marked, at + piece.size
                tokens[r, first:end] = source[piece.start : piece.end]
                targets[r, first:end] = source[piece.start + 1 : piece.end + 1]
                if piece.marked:
                    targets[r, at] = source[piece.start]
                positions[r, at:end] = np.arange(piece.size)
                documents[r, at:end] = number
                at = end
        return Batch(tokens, targets, positions, documents)

    def batch(self, epoch: int, row: int, count: int) -> tuple[Batch, int, int]:
        """The next `count` rows from (`epoch`, `row`), and the (epoch, row) that follows."""
        taken: list[list[Piece]] = []
        while len(taken) < count:
            rows = self.rows(epoch)
            if not len(rows):
                raise Error("the training data holds no tokens")
            end = min(len(rows), row + count - len(taken))
            taken += [rows.row(index) for index in range(row, end)]
            row = end
            if row >= len(rows):
                epoch, row = epoch + 1, 0
        return self.build(taken), epoch, row

    def sequential(self, count: int) -> Iterator[Batch]:
        """All rows of epoch 0, `count` at a time: for validation."""
        rows = self.rows(0)
        for at in range(0, len(rows), count):
            end = min(len(rows), at + count)
            yield self.build([rows.row(index) for index in range(at, end)])


def _documents(number: int, stream: NDArray[np.unsignedinteger], end_of_text: int) -> Int64:
    """(stream, first token, place of the end id) of each document that is not empty."""
    ends = np.flatnonzero(stream == end_of_text).astype(np.int64)
    starts = np.concatenate([[0], ends + 1])[: len(ends)]
    found = np.stack([np.full_like(ends, number), starts, ends], 1)
    return found[ends > starts]


def _permuted(rows: Rows, order: Int64) -> Rows:
    """Rows in another order, their pieces beside each other again."""
    sizes = np.diff(rows.first)[order]
    first = np.concatenate([[0], np.cumsum(sizes)])
    index = np.arange(first[-1]) - np.repeat(first[:-1], sizes)
    return Rows(rows.pieces[np.repeat(rows.first[:-1][order], sizes) + index], first)
