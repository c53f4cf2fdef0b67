"""From a file of conversations, preferences or texts to examples, and to rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.errors import Error
from gptoss.train.data import END_OF_TEXT, Batch, TextTokenizer, clean, is_validation
from gptoss.train.data.sources import Reading, read_documents
from gptoss.train.tune.conversations import NOTHING, Example, Teacher
from gptoss.train.tune.forms import VARIED, Reader, Record
from gptoss.train.tune.records import read_records

METHODS = ("sft", "dpo", "text")

Item = tuple[Example, ...]  # one sequence, or for DPO the chosen and the rejected one


@dataclass(frozen=True)
class Row:
    """What one row of a file gives. where: "file:line"; form: how it was read.

    record: the row, for its hash. items: examples, whole; fitted: each of them as it is learned in
    rows of `length` tokens, or None where it is too long.
    """

    where: str
    form: str
    record: Any
    items: tuple[Item, ...]
    fitted: tuple[Item | None, ...]


@dataclass
class Examples:
    """What a file holds: to train on, and held out. `digest`: sha256 hex of the file.

    dropped: longer than a row; truncated: cut to it. forms, unused and cut: see `Reader`.
    """

    train: list[Item] = field(default_factory=list)
    held_out: list[Item] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    digest: str = ""
    forms: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def __str__(self) -> str:
        text = f"{len(self.train)} examples, {len(self.held_out)} more held out"
        if self.forms:
            text += "; read as " + ", ".join(f"{name} ({n})" for name, n in self.forms.items())
        if self.truncated:
            text += f"; {self.truncated} cut to the length of a row"
        if self.dropped:
            text += f"; {self.dropped} longer than a row left out"
        if self.cut:
            text += f"; {self.cut} answers that were cut off left out"
        return text


class Source:
    """A file of examples, read row by row.

    Iterating over it gives each row once; `reader` then tells what was found in them. Raises Error,
    naming the file and the line.
    """

    def __init__(
        self,
        path: Path,
        method: str,
        vocabulary: TextTokenizer,
        length: int,
        truncate: bool = False,
        date: str = VARIED,
        raw: bool = False,
    ) -> None:
        """See `read_examples`."""
        self.path, self.method, self.length, self.truncate = path, method, length, truncate
        self._vocabulary = vocabulary
        self._data = path.read_bytes()
        self.digest = hashlib.sha256(self._data).hexdigest()
        self.reader = Reader(method, date, raw)
        if method != "text":
            self._teacher = Teacher(vocabulary, raw)
        elif END_OF_TEXT not in vocabulary.special:
            raise Error(f"tokenizer: expected the special token {END_OF_TEXT}, found none")

    def __iter__(self) -> Iterator[Row]:
        if self.method == "text":
            for number, document in enumerate(read_documents(self.path, Reading()), start=1):
                if text := clean(document):
                    items = tuple(self._pieces(text))
                    yield Row(f"{self.path}: text {number}", "text", text, items, items)
            return
        for where, record in read_records(self.path, self._data):
            found = self.reader.read(record, where)
            items = tuple(self._items(found, where))
            yield Row(where, found.form, record, items, tuple(map(self._fit, items)))

    def _items(self, record: Record, where: str) -> Iterator[Item]:
        if self.method == "dpo":
            pair = [self._teacher.reply(c, where) for c in record.conversations]
            yield (pair[0], pair[1])
            return
        for conversation in record.conversations:
            for example in self._teacher.examples(conversation, where):
                yield (example,)

    def _pieces(self, text: str) -> Iterator[Item]:
        ids = [*self._vocabulary.encode(text), self._vocabulary.special[END_OF_TEXT]]
        whole = np.array(ids, np.int64)
        tokens, targets = whole[:-1], whole[1:]
        for at in range(0, len(tokens), self.length):
            end = at + self.length
            yield (Example(tokens[at:end], targets[at:end]),)

    def _fit(self, item: Item) -> Item | None:
        """`item`, cut if that is wanted, or None where it is too long or nothing would be left."""
        if max(map(len, item)) <= self.length:
            return item
        if not self.truncate:
            return None
        item = tuple(Example(e.tokens[: self.length], e.targets[: self.length]) for e in item)
        return item if all((e.targets >= 0).any() for e in item) else None


def read_examples(
    path: Path,
    method: str,
    vocabulary: TextTokenizer,
    length: int,
    validation: float,
    truncate: bool = False,
    date: str = VARIED,
    raw: bool = False,
) -> Examples:
    """Reads `path` for "sft", "dpo" or "text" (see docs/finetuning.md for the formats).

    length: tokens of a sequence. A longer conversation is left out; with `truncate` its end is cut
    off, and with it the end token. Texts are cut into pieces. validation: share of the records
    that is held out, chosen by their own hash. date, raw: see `Reader`. Raises Error, naming the
    file and the line.
    """
    source = Source(path, method, vocabulary, length, truncate, date, raw)
    reader = source.reader
    found = Examples(digest=source.digest, forms=reader.forms, unused=reader.unused)
    count = 0
    for row in source:
        count += 1
        held_out = is_validation(json.dumps(row.record, sort_keys=True, default=str), validation)
        for whole, item in zip(row.items, row.fitted, strict=True):
            if item is None:
                found.dropped += 1
                continue
            found.truncated += item is not whole
            (found.held_out if held_out else found.train).append(item)
    found.cut = reader.cut
    if not count:
        raise Error(f"{path}: expected at least one example, found an empty file")
    if not found.train:
        raise Error(
            f"{path}: expected examples of at most {length} tokens to train on, found none "
            f"({found}); raise --length or say --truncate"
        )
    return found


class Rows:
    """Items packed into rows of `length` tokens, in another order in every epoch.

    An item's sequences lie whole in one row. None sees another (`Batch.documents`), and positions
    start from 0 in each. The order is a pure function of (seed, epoch), so that a run continues
    exactly where it stopped.
    """

    OPEN = 16  # rows that still take items

    def __init__(self, items: Sequence[Item], length: int, seed: int, shuffle: bool = True) -> None:
        self.items, self.length, self.seed, self.shuffle = items, length, seed, shuffle
        self._epoch = -1
        self._rows: list[list[int]] = []

    def rows(self, epoch: int) -> list[list[int]]:
        """Which items each row of an epoch holds."""
        if epoch != self._epoch:
            order = np.arange(len(self.items))
            if self.shuffle:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
            self._epoch, self._rows = epoch, self._pack(order.tolist())
        return self._rows

    def _pack(self, order: Sequence[int]) -> list[list[int]]:
        """Each into the first of the last rows that has room, else into a new one."""
        rows: list[list[int]] = []
        room: list[int] = []
        for index in order:
            size = sum(map(len, self.items[index]))
            for row in range(max(0, len(rows) - self.OPEN), len(rows)):
                if size <= room[row]:
                    break
            else:
                row = len(rows)
                rows.append([])
                room.append(self.length)
            rows[row].append(index)
            room[row] -= size
        return rows

    def build(self, rows: Sequence[Sequence[int]]) -> Batch:
        """int64 [rows, length]; in each row, `documents` numbers its sequences from 0."""
        shape = (len(rows), self.length)
        tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        targets, documents = np.full(shape, NOTHING, np.int64), np.full(shape, -1, np.int64)
        for r, row in enumerate(rows):
            at = 0
            for number, sequence in enumerate(s for index in row for s in self.items[index]):
                end = at + len(sequence)
                tokens[r, at:end], targets[r, at:end] = sequence.tokens, sequence.targets
                positions[r, at:end] = np.arange(len(sequence))
                documents[r, at:end] = number
                at = end
        return Batch(tokens, targets, positions, documents)

    def take(self, epoch: int, row: int, count: int) -> tuple[list[list[int]], int, int]:
        """The next `count` rows from (`epoch`, `row`), and the (epoch, row) that follows."""
        taken: list[list[int]] = []
        while len(taken) < count:
            rows = self.rows(epoch)
            part = rows[row : row + count - len(taken)]
            taken += part
            row += len(part)
            if row >= len(rows):
                epoch, row = epoch + 1, 0
        return taken, epoch, row
