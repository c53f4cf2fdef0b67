"""From a file of conversations, preferences or texts to rows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptoss import files
from gptoss.errors import Error
from gptoss.train.data import END_OF_TEXT, Batch, clean, is_validation
from gptoss.train.data.sources import Reading, read_documents
from gptoss.train.tune.conversations import NOTHING, Example, Harmony, Message, parse_messages

METHODS = ("sft", "dpo", "text")

Item = tuple[Example, ...]  # one sequence, or for DPO the chosen and the rejected one


class Vocabulary(NamedTuple):
    """Of a model: text to ids, names of special tokens being plain text; special name → id."""

    encode: Callable[[str], list[int]]
    special: Mapping[str, int]


@dataclass
class Examples:
    """What a file holds: to train on, and held out. `digest`: sha256 hex of the file.

    dropped: longer than a row; truncated: cut to it.
    """

    train: list[Item] = field(default_factory=list)
    held_out: list[Item] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    digest: str = ""

    def __str__(self) -> str:
        text = f"{len(self.train)} examples, {len(self.held_out)} more held out"
        if self.truncated:
            text += f"; {self.truncated} cut to the length of a row"
        if self.dropped:
            text += f"; {self.dropped} longer than a row left out"
        return text


def read_examples(
    path: Path,
    method: str,
    vocabulary: Vocabulary,
    length: int,
    validation: float,
    truncate: bool = False,
) -> Examples:
    """Reads `path` for "sft", "dpo" or "text" (see docs/finetuning.md for the formats).

    length: tokens of a sequence. A longer conversation is left out; with `truncate` its end is cut
    off, and with it the end token. Texts are cut into pieces. validation: share of the records
    that is held out, chosen by their own hash. Raises Error, naming the file and the line.
    """
    data = path.read_bytes()
    found = Examples(digest=hashlib.sha256(data).hexdigest())
    make: Any = {"sft": _conversation, "dpo": _preference, "text": _text}[method]
    reader = vocabulary if method == "text" else Harmony(*vocabulary)
    if method == "text" and END_OF_TEXT not in vocabulary.special:
        raise Error(f"tokenizer: expected the special token {END_OF_TEXT}, found none")
    count = 0
    for where, record in _records(path, data, method):
        count += 1
        held_out = is_validation(json.dumps(record, sort_keys=True), validation)
        for item in make(record, where, reader, length):
            longest = max(len(sequence) for sequence in item)
            if longest > length:
                if not truncate:
                    found.dropped += 1
                    continue
                item = tuple(_cut(sequence, length) for sequence in item)
                if not all((sequence.targets >= 0).any() for sequence in item):
                    found.dropped += 1  # nothing to learn is left
                    continue
                found.truncated += 1
            (found.held_out if held_out else found.train).append(item)
    if not count:
        raise Error(f"{path}: expected at least one example, found an empty file")
    if not found.train:
        raise Error(
            f"{path}: expected examples of at most {length} tokens to train on, found none "
            f"({found}); raise --length or say --truncate"
        )
    return found


def _records(path: Path, data: bytes, method: str) -> Iterator[tuple[str, Any]]:
    """(where, record): a text, or an object per line."""
    if method == "text":
        for number, document in enumerate(read_documents(path, Reading()), start=1):
            if text := clean(document):
                yield f"{path}: text {number}", text
        return
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, files.parse_object(line, where)


def _conversation(record: Any, where: str, harmony: Harmony, length: int) -> list[Item]:
    messages = parse_messages(record.get("messages"), where)
    return [(example,) for example in harmony.examples(messages, where)]


def _preference(record: Any, where: str, harmony: Harmony, length: int) -> list[Item]:
    prompt = _side(record, "prompt", "user", where)
    pair = []
    for key in ("chosen", "rejected"):
        reply = _side(record, key, "assistant", where)
        if not all(message.from_model for message in reply):
            raise Error(f"{where}: {key}: expected assistant messages, found others")
        learned = range(len(prompt), len(prompt) + len(reply))
        pair.append(harmony.example([*prompt, *reply], learned))
    if all(np.array_equal(a, b) for a, b in zip(*map(_arrays, pair), strict=True)):
        raise Error(f"{where}: expected two different replies, found the same one twice")
    return [(pair[0], pair[1])]


def _side(record: Any, key: str, role: str, where: str) -> list[Message]:
    value = record.get(key)
    if isinstance(value, str):
        value = {"role": role, "content": value}
    if isinstance(value, dict):
        value = [value]
    return parse_messages(value, f"{where}: {key}")


def _arrays(example: Example) -> tuple[np.ndarray, np.ndarray]:
    return example.tokens, example.targets


def _text(text: str, where: str, vocabulary: Vocabulary, length: int) -> list[Item]:
    ids = np.array([*vocabulary.encode(text), vocabulary.special[END_OF_TEXT]], np.int64)
    tokens, targets = ids[:-1], ids[1:]
    starts = range(0, len(tokens), length)
    return [(Example(tokens[at : at + length], targets[at : at + length]),) for at in starts]


def _cut(example: Example, length: int) -> Example:
    return Example(example.tokens[:length], example.targets[:length])


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
