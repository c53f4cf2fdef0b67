"""From text files to batches of token ids.

`prepare` reads text files whose documents end with a line ``<|endoftext|>``, trains a byte-level
BPE vocabulary on the training part, and writes one memory-mappable ``uint16`` file per text and
split. `PackedRows` cuts these into rows of equal length, in an order that is a pure function of
(seed, epoch), so that a run continues exactly where it stopped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken

from gptoss.errors import Error

END_OF_TEXT = "<|endoftext|>"

# GPT-2's splitting rule with digits in threes, in syntax that both tiktoken (fancy-regex) and
# tokenizers (oniguruma) read in the same way.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

RANKS_FILE = "tokenizer.tiktoken"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
INDEX_FILE = "data.json"


def clean(text: str) -> str:
    """Returns `text` without trailing blanks, runs of blank lines or odd quotation marks."""
    for odd, plain in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"')):
        text = text.replace(odd, plain)
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n"))
    text = re.sub(r"[ \t]{2,}", " ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def read_documents(path: Path, min_chars: int = 80) -> list[str]:
    """Returns the documents of `path`, cleaned; source notes and scraps are left out."""
    text = path.read_text(encoding="utf-8")
    documents = (clean(part) for part in text.split(END_OF_TEXT))
    return [d for d in documents if len(d) >= min_chars and not d.startswith("Source.")]


def is_validation(document: str, fraction: float) -> bool:
    """Decides by the document's own hash, so that no reordering moves it to the other side."""
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def train_bpe(documents: Sequence[str], vocab_size: int) -> dict[bytes, int]:
    """Trains a byte-level BPE; returns token bytes → rank, `vocab_size` − 1 entries.

    The last id is left free for ``<|endoftext|>``.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    to_byte = {char: byte for byte, char in _byte_characters().items()}
    return {
        bytes(to_byte[char] for char in token): rank
        for token, rank in tokenizer.get_vocab().items()
    }


def _byte_characters() -> dict[int, str]:
    """The printable stand-in of each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + n) for n, byte in enumerate(hidden)})
    return table


def save_tokenizer(ranks: dict[bytes, int], directory: Path) -> None:
    """Writes the rank file and `tokenizer_config.json` into `directory`."""
    lines = [
        f"{base64.b64encode(token).decode()} {rank}\n"
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ]
    (directory / RANKS_FILE).write_text("".join(lines), encoding="ascii")
    config = {
        "pattern": PATTERN,
        "special_tokens": {END_OF_TEXT: len(ranks)},
        "eos_token": END_OF_TEXT,
        "bos_token": None,
    }
    (directory / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")


def load_encoding(directory: Path) -> tiktoken.Encoding:
    """Returns the tiktoken encoding of a directory written by `save_tokenizer`."""
    ranks = {}
    for line in (directory / RANKS_FILE).read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    config = json.loads((directory / TOKENIZER_CONFIG_FILE).read_text())
    return tiktoken.Encoding(
        name=directory.name,
        pat_str=config["pattern"],
        mergeable_ranks=ranks,
        special_tokens=config["special_tokens"],
    )


def prepare(
    texts: Sequence[Path],
    out: Path,
    vocab_size: int = 4096,
    validation: float = 0.05,
    bpe_weights: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Writes tokenizer, ``<text>.<split>.bin`` files and an index into `out`; returns the index.

    `validation` is the share of documents held out. The vocabulary is trained on the training
    documents alone, each text counted `bpe_weights` times.
    """
    out.mkdir(parents=True, exist_ok=True)
    splits: dict[str, dict[str, list[str]]] = {}
    for path in texts:
        documents = read_documents(path)
        splits[path.stem] = {
            "train": [d for d in documents if not is_validation(d, validation)],
            "val": [d for d in documents if is_validation(d, validation)],
        }
    weights = bpe_weights or [1] * len(texts)
    corpus = [
        d for split, w in zip(splits.values(), weights, strict=True) for d in split["train"] * w
    ]
    save_tokenizer(train_bpe(corpus, vocab_size), out)
    encoding = load_encoding(out)

    index: dict[str, Any] = {"vocab_size": vocab_size, "validation": validation}
    entries = []
    for name, split in splits.items():
        for part, documents in split.items():
            ids = [
                np.array([*tokens, encoding.eot_token], dtype=np.uint16)
                for tokens in encoding.encode_ordinary_batch(documents, num_threads=2)
            ]
            tokens = np.concatenate(ids) if ids else np.zeros(0, np.uint16)
            tokens.tofile(out / f"{name}.{part}.bin")
            entries.append(
                {
                    "text": name,
                    "split": part,
                    "documents": len(documents),
                    "tokens": len(tokens),
                    "bytes": sum(len(d.encode()) for d in documents),
                }
            )
    index["files"] = entries
    (out / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")
    return index


@dataclass(frozen=True)
class Batch:
    """`tokens`, `targets`, `positions`, `documents`: int64 [rows, length].

    `documents` numbers the pieces of a row: a token attends to its own piece alone. `targets` is
    −1 where there is nothing to predict.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


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


Row = list[Piece]


class PackedRows:
    """Rows of `length` tokens cut from documents, shuffled anew in every epoch.

    A document is cut into pieces of `length` tokens behind a first piece of random length. A
    whole piece is a row; shorter ones are packed together, told apart by `Batch.documents`, with
    positions from 0 in each. One opening in four is marked with ``<|endoftext|>``; the others
    start with their first word at position 0, as a prompt does.

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
    ) -> None:
        """`files`: (``.bin`` file, times it is read per epoch)."""
        self.length, self.end_of_text, self.seed, self.shuffle = length, end_of_text, seed, shuffle
        self.streams: list[np.ndarray] = []
        self.documents: list[tuple[int, int, int]] = []  # stream, start, place of the end id
        for number, (path, repeats) in enumerate(files):
            stream = np.memmap(path, dtype=np.uint16, mode="r")
            self.streams.append(stream)
            ends = np.flatnonzero(stream == end_of_text).tolist()
            starts = [0, *(end + 1 for end in ends)]
            self.documents += [
                (number, start, end)
                for start, end in zip(starts, ends, strict=False)
                for _ in range(repeats)
            ]
        self._epoch = -1
        self._rows: list[Row] = []

    def rows(self, epoch: int) -> list[Row]:
        """The rows of one epoch, each a list of pieces."""
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._cut(np.random.default_rng([self.seed, epoch]))
        return self._rows

    def _cut(self, rng: np.random.Generator) -> list[Row]:
        rows: list[Row] = []
        short: list[Piece] = []
        for stream, at, end in self.documents:
            marked = self.shuffle and bool(rng.random() < self.MARKED)
            if self.shuffle and end - at > self.length:
                first = at + int(rng.integers(1, self.length))
                short.append(Piece(stream, at, first, marked))
                at, marked = first, False
            while end - at >= self.length and not marked:
                rows.append([Piece(stream, at, at + self.length, False)])
                at += self.length
            if end > at:
                short.append(Piece(stream, at, end, marked))
        if self.shuffle:
            short = [short[i] for i in rng.permutation(len(short))]
        rows += self._pack(short)
        return [rows[i] for i in rng.permutation(len(rows))] if self.shuffle else rows

    def _pack(self, pieces: Iterable[Piece]) -> list[Row]:
        """Fills rows with pieces one after the other; one that does not fit goes on in the next."""
        rows: list[Row] = []
        row: Row = []
        room = self.length
        for piece in pieces:
            while piece.start < piece.end:
                fits = min(piece.size, room) - piece.marked
                if fits > 0:
                    part = piece._replace(end=piece.start + fits)
                    row.append(part)
                    room -= part.size
                    piece = piece._replace(start=part.end, marked=False)
                if fits <= 0 or room == 0:
                    rows.append(row)
                    row, room = [], self.length
        return [*rows, row] if row else rows

    def build(self, rows: Sequence[Row]) -> Batch:
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
        taken: list[Row] = []
        while len(taken) < count:
            rows = self.rows(epoch)
            if not rows:
                raise Error("the training data holds no tokens")
            part = rows[row : row + count - len(taken)]
            taken += part
            row += len(part)
            if row >= len(rows):
                epoch, row = epoch + 1, 0
        return self.build(taken), epoch, row

    def sequential(self, count: int) -> Iterator[Batch]:
        """All rows of epoch 0, `count` at a time: for validation."""
        rows = self.rows(0)
        for at in range(0, len(rows), count):
            yield self.build(rows[at : at + count])
