"""From sources to shards: read, clean, drop, split, learn a vocabulary, tokenise.

Text passes through in a stream: what is kept lies in blocks of some megabytes below
OUT/unfinished, from which each shard is made, by several processes if wished. A preparation that
was interrupted goes on with its last whole step, or shard; the same arguments give the same bytes
whatever was interrupted and however many processes worked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gptoss.errors import Error
from gptoss.train.data import hub
from gptoss.train.data.clean import Cleaning, clean, objection
from gptoss.train.data.dedup import Seen, digest, signature
from gptoss.train.data.prepared import FORMAT, INDEX_FILE, SPLITS, digest_of
from gptoss.train.data.sources import Reading, find_files, names_of, read_documents
from gptoss.train.data.tokenizers import (
    END_OF_TEXT,
    HARMONY,
    STOPS,
    UNKNOWN,
    TextTokenizer,
    load_tokenizer,
    make_tokenizer,
)
from gptoss.train.files import write_in_one_piece

UNFINISHED = "unfinished"
BATCH = 64  # documents that are cleaned in one go
BLOCK = 8 << 20  # bytes of text that become one shard
LEARNED = 256 << 20  # bytes of text a vocabulary is learned from, at most; chosen by hash

Progress = Callable[[str, int, int], None]  # what, done, of how much (bytes)


def is_validation(document: str, fraction: float) -> bool:
    """Decides by the document's own hash, so that no reordering moves it to the other side."""
    return _share(document) < fraction


def _share(document: str) -> float:
    """A number in [0, 1) that follows from the document."""
    first = hashlib.sha256(document.encode()).digest()[:8]
    return int.from_bytes(first, "big") / 2.0**64


def prepare(
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    validation: float = 0.05,
    weights: Sequence[int] | None = None,
    cleaning: Cleaning | None = None,
    near_duplicates: float = 0.8,
    field: str = "text",
    separator: str = END_OF_TEXT,
    workers: int = 1,
    cache: Path | None = None,
    block_bytes: int = BLOCK,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes shards, tokenizer files and data.json into `out`; returns the report (see `index`).

    sources: files, folders, or datasets of the Hugging Face Hub ("owner/name"), each a text of its
    own. tokenizer: "bpe" (of `vocab_size` ids, default 4096, learned from the training documents,
    each text counted `weights` times), "o200k_harmony", "characters" or "words". validation: share
    of documents held out. near_duplicates: Jaccard similarity from which documents are the same, 0
    = drop exact ones only. More than one of `workers` needs a script that guards its main part with
    ``if __name__ == "__main__"``. Raises Error for sources, options or an `out` that cannot be.
    """
    out = Path(out)
    reading, limits = Reading(field, separator), cleaning or Cleaning()
    places = [str(source) for source in sources]
    _check(places, validation, weights, workers, separator)
    files = {
        name: hub.resolve(place, cache, progress) or find_files(Path(place))
        for name, place in zip(names_of(places), places, strict=True)
    }
    plan = {
        "files": {
            name: [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
            for name, paths in files.items()
        },
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "validation": validation,
        "weights": list(weights or [1] * len(places)),
        "cleaning": {**asdict(limits), "drop_prefixes": list(limits.drop_prefixes)},
        "near_duplicates": near_duplicates,
        "reading": asdict(reading),
        "block_bytes": block_bytes,
    }
    work = out / UNFINISHED
    finished = _begin(out, work, plan)
    if finished is not None:
        return finished
    report = progress or (lambda what, done, total: None)
    with _pool(workers) as pool:
        blocks, counts = _collect(work, files, plan, reading, limits, pool, report)
        place, size = _vocabulary(work, blocks, plan, report)
        shards = _tokenise(out, work, blocks, place, size, pool, report)
    return _finish(out, work, plan, place, size, shards, counts)


def _check(
    places: Sequence[str],
    validation: float,
    weights: Sequence[int] | None,
    workers: int,
    separator: str,
) -> None:
    if not places:
        raise Error("sources: expected at least one, found none")
    if not 0 <= validation < 1:
        raise Error(f"validation: expected 0 <= validation < 1, found {validation}")
    if weights is not None and (len(weights) != len(places) or min(weights) < 1):
        raise Error(f"weights: expected {len(places)} whole numbers from 1, found {list(weights)}")
    if workers < 1:
        raise Error(f"workers: expected 1 or more, found {workers}")
    if not separator:
        raise Error("separator: expected a text, found an empty one")


def _begin(out: Path, work: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Makes or takes up the unfinished work; the report of a finished one of the same plan."""
    if (out / INDEX_FILE).exists():
        index = json.loads((out / INDEX_FILE).read_text(encoding="utf-8"))
        if isinstance(index, dict) and index.get("plan") == plan:
            report: dict[str, Any] = index["report"]
            return report
        raise Error(f"{out}: expected a new or empty folder, found other prepared data")
    plan_file = work / "plan.json"
    if plan_file.exists():
        if json.loads(plan_file.read_text(encoding="utf-8")) != plan:
            raise Error(
                f"{work}: expected the arguments and sources that this preparation was begun "
                "with, found others; repeat those, or delete the folder"
            )
        return None
    if out.exists() and any(entry.name != UNFINISHED for entry in out.iterdir()):
        raise Error(f"{out}: expected a new or empty folder, found files in it")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    _write_json(plan_file, plan)
    return None


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_in_one_piece(path, lambda file: file.write(text.encode()))


# Several processes.


def _pool(workers: int) -> Any:
    if workers == 1:
        return nullcontext(None)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def _in_order(
    pool: Executor | None, function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 16
) -> Iterator[Any]:
    """map() that keeps `ahead` results in the making, no more."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# Step 1: documents.


class Kept(NamedTuple):
    """A document that passed, and what tells it from others."""

    text: str
    digest: bytes
    signature: Any


def _clean_batch(documents: list[str], limits: Cleaning, near: bool) -> list[Kept | str]:
    """Each document cleaned, or the reason why not."""
    found: list[Kept | str] = []
    for document in documents:
        text = clean(document)
        reason = objection(text, limits)
        found.append(reason or Kept(text, digest(text), signature(text) if near else None))
    return found


class _Blocks:
    """Files of JSON lines, one document each; a new one begins when the last is full."""

    def __init__(self, work: Path, text: str, split: str, size: int) -> None:
        self._name, self._work, self._size = f"{text}.{split}", work, size
        self._file: BinaryIO | None = None
        self.made: list[dict[str, Any]] = []
        self._text, self._split = text, split

    def add(self, document: str) -> None:
        if self._file is None:
            file = f"{self._name}.{len(self.made):04}.jsonl"
            entry = {"block": file, "text": self._text, "split": self._split}
            self.made.append({**entry, "documents": 0, "bytes": 0})
            self._file = (self._work / file).open("wb")
        self._file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        self.made[-1]["documents"] += 1
        self.made[-1]["bytes"] += len(document.encode())
        if self._file.tell() >= self._size:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _collect(
    work: Path,
    files: dict[str, list[Path]],
    plan: dict[str, Any],
    reading: Reading,
    limits: Cleaning,
    pool: Executor | None,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Blocks of kept documents, and how many were read and left out, and why."""
    done = work / "blocks.json"
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        return found["blocks"], found["counts"]
    total = sum(path.stat().st_size for paths in files.values() for path in paths)
    seen = Seen(plan["near_duplicates"])
    counts: Counter[str] = Counter()
    blocks: list[dict[str, Any]] = []
    step = partial(_clean_batch, limits=limits, near=plan["near_duplicates"] > 0)
    read = 0
    for name, paths in files.items():
        writers = {split: _Blocks(work, name, split, plan["block_bytes"]) for split in SPLITS}
        for path in paths:
            for batch in _in_order(pool, step, _batches(read_documents(path, reading))):
                for kept in batch:
                    counts["read"] += 1
                    if isinstance(kept, Kept):
                        reason = seen.objection(kept.digest, kept.signature)
                        if reason is None:
                            held_out = is_validation(kept.text, plan["validation"])
                            writers[SPLITS[held_out]].add(kept.text)
                            continue
                    else:
                        reason = kept
                    counts[reason] += 1
            read += path.stat().st_size
            progress("reading", read, total)
        for writer in writers.values():
            writer.close()
            blocks += writer.made
    kept_train = sum(block["documents"] for block in blocks if block["split"] == "train")
    if not kept_train:
        dropped = ", ".join(f"{reason} {n}" for reason, n in counts.items() if reason != "read")
        raise Error(
            f"{', '.join(files)}: expected text to train on, found {counts['read']} documents of "
            f"which none is left ({dropped or 'none was read'})"
        )
    _write_json(done, {"blocks": blocks, "counts": dict(counts)})
    return blocks, dict(counts)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(documents, BATCH)):
        yield batch


def _read_block(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


# Step 2: the vocabulary.


def _vocabulary(
    work: Path, blocks: list[dict[str, Any]], plan: dict[str, Any], progress: Progress
) -> tuple[Path | str, int]:
    """Where the tokenizer is (a folder, or its name), and its size."""
    folder, done = work / "tokenizer", work / "tokenizer.json"
    place = HARMONY if plan["tokenizer"] == HARMONY else folder
    if done.exists():
        return place, json.loads(done.read_text())
    train = [block for block in blocks if block["split"] == "train"]
    progress("learning the vocabulary", 0, 1)
    weights = dict(zip(plan["files"], plan["weights"], strict=True))
    share = min(1.0, LEARNED / max(1, sum(b["bytes"] * weights[b["text"]] for b in train)))
    documents = (
        document
        for block in train
        for document in _read_block(work / block["block"])
        if share == 1 or _share(document[::-1]) < share
        for _ in range(weights[block["text"]])
    )
    made = make_tokenizer(plan["tokenizer"], documents, plan["vocab_size"])
    folder.mkdir(exist_ok=True)
    for name, content in made.content.items():
        write_in_one_piece(folder / name, partial(_write, content))
    _write_json(done, made.vocab_size)
    return place, made.vocab_size


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


# Step 3: shards.

_loaded: dict[str, TextTokenizer] = {}  # in each process: reading a vocabulary takes a while


def _encode_block(job: tuple[dict[str, Any], Path, Path, str, str]) -> dict[str, Any]:
    """Writes the shard of a block, and beside the block its entry in the index."""
    block, out, work, place, dtype = job
    file = block["block"].replace(".jsonl", ".bin")
    entry_file = work / f"{file}.json"
    if entry_file.exists() and (out / file).exists():
        known: dict[str, Any] = json.loads(entry_file.read_text(encoding="utf-8"))
        if (out / file).stat().st_size == known["tokens"] * np.dtype(dtype).itemsize:
            return known
    if place not in _loaded:
        _loaded[place] = load_tokenizer(place)
    tokenizer = _loaded[place]
    end = tokenizer.special[END_OF_TEXT]
    ids = [
        np.asarray([*tokenizer.encode(d), end], dtype) for d in _read_block(work / block["block"])
    ]
    data = np.concatenate(ids)
    content = data.tobytes()
    write_in_one_piece(out / file, partial(_write, content))
    entry = {key: block[key] for key in ("text", "split", "documents", "bytes")}
    entry |= {"file": file, "tokens": len(data), "sha256": hashlib.sha256(content).hexdigest()}
    if tokenizer.decode([0]) == UNKNOWN:
        entry["unknown"] = int((data == 0).sum())
    _write_json(entry_file, entry)
    return entry


def _tokenise(
    out: Path,
    work: Path,
    blocks: list[dict[str, Any]],
    place: Path | str,
    size: int,
    pool: Executor | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    dtype = "uint16" if size <= 1 << 16 else "uint32"
    jobs = [(block, out, work, str(place), dtype) for block in blocks]
    total, done = sum(block["bytes"] for block in blocks), 0
    shards = []
    for entry in _in_order(pool, _encode_block, jobs):
        shards.append(entry)
        done += entry["bytes"]
        progress("tokenising", done, total)
    return shards


def _finish(
    out: Path,
    work: Path,
    plan: dict[str, Any],
    place: Path | str,
    size: int,
    shards: list[dict[str, Any]],
    counts: dict[str, int],
) -> dict[str, Any]:
    """Writes tokenizer files and, last of all, the index; returns the report."""
    contents = {path.name: path.read_bytes() for path in sorted((work / "tokenizer").iterdir())}
    for name, content in contents.items():
        write_in_one_piece(out / name, partial(_write, content))
    special = load_tokenizer(place).special
    vocabulary = hashlib.sha256(b"".join(contents.values()) or HARMONY.encode()).hexdigest()
    index: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer": plan["tokenizer"],
        "vocabulary": vocabulary,
        "vocab_size": size,
        "end_of_text": special[END_OF_TEXT],
        "stop_ids": [special[name] for name in STOPS],
        "dtype": "uint16" if size <= 1 << 16 else "uint32",
        "texts": list(plan["files"]),
        "validation": plan["validation"],
        "shards": shards,
        "plan": plan,
    }
    tokens = sum(shard["tokens"] for shard in shards)
    report = {
        "documents_read": counts.pop("read"),
        "documents": sum(shard["documents"] for shard in shards),
        "dropped": dict(sorted(counts.items())),
        "tokens": tokens,
        "bytes": sum(shard["bytes"] for shard in shards),
        "bytes_per_token": sum(shard["bytes"] for shard in shards) / tokens,
        "vocab_size": size,
        "digest": digest_of(index),
        "texts": [
            {
                "text": text,
                "split": split,
                **{
                    key: sum(s[key] for s in shards if s["text"] == text and s["split"] == split)
                    for key in ("documents", "tokens", "bytes")
                },
            }
            for text in plan["files"]
            for split in SPLITS
        ],
    }
    if plan["tokenizer"] == "words":
        report["unknown"] = sum(shard.get("unknown", 0) for shard in shards) / tokens
    _write_json(out / INDEX_FILE, {**index, "report": report})
    shutil.rmtree(work)
    return report
