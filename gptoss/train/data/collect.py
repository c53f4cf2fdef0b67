"""The first step of a preparation: documents are read, cleaned, filtered and split.

What is kept goes into blocks of some megabytes, files of JSON lines; each becomes a shard later.
From time to time the position reached is saved, so that an interrupted step continues there. What
it makes does not depend on interruptions, nor on the number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptoss.errors import Error
from gptoss.files import write_in_one_piece
from gptoss.train.data.cleaning import Cleaning, clean, objection
from gptoss.train.data.dedup import NONE, Seen, Signature, digest, record, signature
from gptoss.train.data.sources import Reading, read_documents
from gptoss.train.data.workers import in_order

TRAIN, VALIDATION = SPLITS = ("train", "validation")
BATCH = 64  # documents that are cleaned at a time
SAVE_EVERY = 100  # batches
DONE_FILE, STATE_FILE, SEEN_FILE = "blocks.json", "collected.json", "seen.bin"


def is_validation(document: str, fraction: float) -> bool:
    """Decides by the document's own hash, so that no reordering moves it to the other side."""
    return share_of(document) < fraction


def share_of(document: str) -> float:
    """A number in [0, 1) that follows from the document."""
    first = hashlib.sha256(document.encode()).digest()[:8]
    return int.from_bytes(first, "big") / 2.0**64


class Plan(NamedTuple):
    """What the step is to do. `files`: of each text. `near`, `validation`: as in `prepare`."""

    files: Mapping[str, Sequence[Path]]
    reading: Reading
    cleaning: Cleaning
    near: float
    validation: float
    block_bytes: int


class Collected(NamedTuple):
    """blocks: {"block": file, "text", "split", "documents", "bytes"}; counts: reason → documents.

    counts["read"] is of all documents.
    """

    blocks: list[dict[str, Any]]
    counts: dict[str, int]


def collect(work: Path, plan: Plan, executor: Executor | None, progress: Any) -> Collected:
    """Does the step in the folder `work`, goes on with it, or returns what it has made before.

    Raises Error for sources that cannot be read and where nothing is left to train on.
    """
    done = work / DONE_FILE
    if not done.exists():
        with _Collector(work, plan) as collector:
            found = collector.run(executor, progress)
        names = ", ".join(plan.files)
        if not any(block["split"] == TRAIN for block in found.blocks):
            dropped = ", ".join(f"{why} {n}" for why, n in found.counts.items() if why != "read")
            raise Error(
                f"{names}: expected text to train on, found {found.counts['read']} documents of "
                f"which none is left ({dropped or 'none was read'})"
            )
        write_json(done, found._asdict())
    return Collected(**json.loads(done.read_text(encoding="utf-8")))


def read_block(path: Path) -> Iterator[str]:
    """The documents of a block."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, in one piece."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_in_one_piece(path, lambda file: file.write(text.encode()))


class _Candidate(NamedTuple):
    """A document that passed the cleaning, and what tells it from others."""

    text: str
    digest: bytes
    signature: Signature


def _clean_batch(documents: list[str], limits: Cleaning, near: bool) -> list[_Candidate | str]:
    """Each document cleaned, or the reason why not."""
    found: list[_Candidate | str] = []
    for document in documents:
        text = clean(document)
        reason = objection(text, limits)
        values = signature(text) if near and reason is None else NONE
        found.append(reason or _Candidate(text, digest(text), values))
    return found


class _Blocks:
    """The blocks of one text and split; a new one begins when the last is full."""

    def __init__(self, work: Path, text: str, split: str, size: int) -> None:
        self._work, self._size = work, size
        self._entry = {"text": text, "split": split}
        self._file: BinaryIO | None = None
        self.made: list[dict[str, Any]] = []

    def add(self, document: str) -> None:
        if self._file is None:
            name = f"{self._entry['text']}.{self._entry['split']}.{len(self.made):04}.jsonl"
            self.made.append({"block": name, **self._entry, "documents": 0, "bytes": 0})
            self._file = (self._work / name).open("wb")
        self._file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        self.made[-1]["documents"] += 1
        self.made[-1]["bytes"] += len(document.encode())
        if self._file.tell() >= self._size:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            _to_disk(self._file)
            self._file.close()
            self._file = None

    def state(self) -> dict[str, Any]:
        if self._file is not None:
            _to_disk(self._file)
        return {"made": self.made, "open": -1 if self._file is None else self._file.tell()}

    def restore(self, state: dict[str, Any]) -> None:
        self.made = state["made"]
        if state["open"] >= 0:
            self._file = _reopened(self._work / self.made[-1]["block"], state["open"])


class _Text:
    """The documents of one text on their way into blocks, in their order.

    Which are held out follows from their hashes; where that would be none of the whole text, or of
    its first block, it is the one with the lowest hash. Until one is found the documents wait.
    """

    def __init__(self, work: Path, name: str, plan: Plan) -> None:
        self._work = work
        self._fraction, self._block_bytes = plan.validation, plan.block_bytes
        self.blocks = {s: _Blocks(work, name, s, plan.block_bytes) for s in SPLITS}
        self._waiting: list[str] = []
        self._size = 0  # bytes that wait

    def add(self, document: str) -> None:
        train, held_out = self.blocks[TRAIN], self.blocks[VALIDATION]
        if is_validation(document, self._fraction):
            self._release()
            held_out.add(document)
        elif self._fraction == 0 or held_out.made:
            train.add(document)
        else:
            self._waiting.append(document)
            self._size += len(document.encode())
            if self._size > self._block_bytes:
                self._give_up_one()

    def _release(self) -> None:
        for document in self._waiting:
            self.blocks[TRAIN].add(document)
        self._waiting.clear()

    def _give_up_one(self) -> None:
        if len(self._waiting) > 1:  # a single one is needed to train on
            lowest = min(range(len(self._waiting)), key=lambda n: share_of(self._waiting[n]))
            self.blocks[VALIDATION].add(self._waiting.pop(lowest))
        self._release()

    def close(self) -> None:
        self._give_up_one()
        for blocks in self.blocks.values():
            blocks.close()
        if not self.blocks[TRAIN].made and self.blocks[VALIDATION].made:
            self._take_back()

    def _take_back(self) -> None:
        """All of few documents have hashes of the held-out side: only the lowest stays there."""
        held_out = self.blocks[VALIDATION]
        self._waiting = [
            d for made in held_out.made for d in read_block(self._work / made["block"])
        ]
        held_out.made = []
        self._give_up_one()
        for blocks in self.blocks.values():
            blocks.close()

    def state(self) -> dict[str, Any]:
        blocks = {split: blocks.state() for split, blocks in self.blocks.items()}
        return {"blocks": blocks, "waiting": self._waiting}

    def restore(self, state: dict[str, Any]) -> None:
        for split, blocks in self.blocks.items():
            blocks.restore(state["blocks"][split])
        self._waiting = state["waiting"]
        self._size = sum(len(document.encode()) for document in self._waiting)


class _Collector:
    """The step under way. `_at`: the text, and how many of its documents are done with."""

    def __init__(self, work: Path, plan: Plan) -> None:
        self._work, self._plan = work, plan
        self._seen = Seen(plan.near)
        self._counts: Counter[str] = Counter(read=0)
        self._done: list[dict[str, Any]] = []  # blocks of finished texts
        self._at = (0, 0)
        self._text: _Text | None = None
        state = work / STATE_FILE
        if state.exists():
            self._restore(json.loads(state.read_text(encoding="utf-8")))
        else:
            (work / SEEN_FILE).write_bytes(b"")
        self._seen_file = (work / SEEN_FILE).open("ab")

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen_file.close()
        if self._text is not None:
            for blocks in self._text.blocks.values():
                blocks.close()

    def run(self, executor: Executor | None, progress: Any) -> Collected:
        work = partial(_clean_batch, limits=self._plan.cleaning, near=self._plan.near > 0)
        for number, name in list(enumerate(self._plan.files))[self._at[0] :]:
            first = self._at[1]
            if self._text is None:
                self._text = _Text(self._work, name, self._plan)
            documents = itertools.islice(self._documents(name, progress), first, None)
            for count, batch in enumerate(in_order(executor, work, _batches(documents)), 1):
                for candidate in batch:
                    self._take(candidate, self._text)
                self._at = (number, self._at[1] + len(batch))
                if count % SAVE_EVERY == 0:
                    self._save()
            self._text.close()
            self._done += [entry for blocks in self._text.blocks.values() for entry in blocks.made]
            self._text, self._at = None, (number + 1, 0)
            self._save()
        return Collected(self._done, dict(self._counts))

    def _documents(self, name: str, progress: Any) -> Iterator[str]:
        """All documents of a text; tells `progress` how many bytes of all texts are read."""
        done = total = 0
        for text, paths in self._plan.files.items():
            size = sum(path.stat().st_size for path in paths)
            total += size
            if text == name:
                done = total - size
        for path in self._plan.files[name]:
            before, size = done, path.stat().st_size

            def report(share: float, before: int = before, size: int = size) -> None:
                progress("reading", before + round(share * size), total)

            yield from read_documents(path, self._plan.reading, report)
            done += size

    def _take(self, candidate: _Candidate | str, out: _Text) -> None:
        self._counts["read"] += 1
        if isinstance(candidate, str):
            self._counts[candidate] += 1
            return
        text, key, values = candidate
        reason = self._seen.objection(key, values)
        if reason is not None:
            self._counts[reason] += 1
            return
        self._seen_file.write(record(key, values))
        out.add(text)

    def _save(self) -> None:
        _to_disk(self._seen_file)
        state = {
            "at": self._at,
            "counts": self._counts,
            "done": self._done,
            "seen": self._seen_file.tell(),
            "text": None if self._text is None else self._text.state(),
        }
        write_json(self._work / STATE_FILE, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self._at, self._counts = tuple(state["at"]), Counter(state["counts"])
        self._done = state["done"]
        _reopened(self._work / SEEN_FILE, state["seen"]).close()
        self._seen.load((self._work / SEEN_FILE).read_bytes())
        if state["text"] is not None:
            name = list(self._plan.files)[self._at[0]]
            self._text = _Text(self._work, name, self._plan)
            self._text.restore(state["text"])


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(documents, BATCH)):
        yield batch


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _reopened(path: Path, size: int) -> BinaryIO:
    """The file without what was written after the last save, ready for more."""
    found = path.stat().st_size
    if found < size:
        raise Error(f"{path}: expected {size} bytes or more, found {found}; delete its folder")
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
