"""From sources to shards: read, clean, filter, split, learn a vocabulary, tokenise.

Text passes through in a stream: what is kept lies in blocks of some megabytes below OUT/unfinished,
from which each shard is made, by several processes if wished. A preparation that was interrupted
goes on where it was. The same arguments give the same bytes, whatever was interrupted and however
many processes worked.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from gptoss.errors import Error, shown
from gptoss.files import write_in_one_piece
from gptoss.train.data import hub
from gptoss.train.data.cleaning import Cleaning
from gptoss.train.data.collect import (
    SPLITS,
    TRAIN,
    Collected,
    Plan,
    collect,
    read_block,
    share_of,
    write_json,
)
from gptoss.train.data.prepared import FORMAT, INDEX_FILE, digest_of
from gptoss.train.data.shards import Job, dtype_for, write_shards
from gptoss.train.data.sources import Reading, find_files, names_of
from gptoss.train.data.tokenizers import (
    END_OF_TEXT,
    HARMONY,
    KINDS,
    STOPS,
    load_tokenizer,
    make_tokenizer,
)
from gptoss.train.data.workers import pool

UNFINISHED = "unfinished"
SIMILAR = 0.8
BLOCK = 8 << 20  # bytes of text that become one shard
LEARNED = 256 << 20  # bytes of text a vocabulary is learned from, at most; chosen by hash

Progress = Callable[[str, int, int], None]  # what, done, of how much (bytes)


def prepare(
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    validation: float = 0.05,
    weights: Sequence[int] | None = None,
    cleaning: Cleaning | None = None,
    near_duplicates: float | bool = SIMILAR,
    field: str = "text",
    separator: str = END_OF_TEXT,
    workers: int = 1,
    cache: Path | None = None,
    block_bytes: int = BLOCK,
    learn_bytes: int = LEARNED,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes shards, tokenizer files and data.json into `out`; returns the report.

    sources: files, folders, or datasets of the Hugging Face Hub ("owner/name"), each a text of its
    own. tokenizer: "bpe" (of `vocab_size` ids, default 4096, learned from at most `learn_bytes` of
    the training documents, each text counted `weights` times), "o200k_harmony", "characters" or
    "words". validation: share of documents held out. cleaning: limits of what is kept.
    near_duplicates: Jaccard similarity from which documents are the same; 0 or False = drop exact
    ones only. field: of JSON and Parquet. separator: between the documents of a text file; one
    that has none is cut at blank lines. More than one of `workers` needs a script that guards its
    main part with ``if __name__ == "__main__"``. Raises Error for sources, options or an `out` that
    cannot be.
    """
    out = Path(out)
    if isinstance(near_duplicates, bool):
        near_duplicates = SIMILAR if near_duplicates else 0.0
    places = [str(source) for source in sources]
    weights = [1] * len(places) if weights is None else list(weights)
    _check(places, tokenizer, validation, weights, near_duplicates)
    _check_sizes(workers, block_bytes, learn_bytes, separator)
    report = progress or (lambda what, done, total: None)
    files = {
        name: hub.resolve(place, cache, report) or find_files(Path(place))
        for name, place in zip(names_of(places), places, strict=True)
    }
    limits = cleaning or Cleaning()
    plan = Plan(files, Reading(field, separator), limits, near_duplicates, validation, block_bytes)
    learning = {
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "weights": dict(zip(files, weights, strict=True)),
        "learn_bytes": learn_bytes,
    }
    arguments = {**learning, **_described(plan)}
    work = out / UNFINISHED
    finished = _begin(out, work, arguments)
    if finished is not None:
        return finished
    with pool(workers) as executor:
        collected = collect(work, plan, executor, report)
        place, size, vocabulary = _vocabulary(work, collected, learning, report)
        jobs = [
            Job(block, out, work, place, vocabulary, dtype_for(size)) for block in collected.blocks
        ]
        shards = write_shards(jobs, executor, report)
    return _finish(out, work, arguments, vocabulary, place, size, shards, collected.counts)


def _check(
    places: Sequence[str],
    tokenizer: str,
    validation: float,
    weights: Sequence[int],
    near: float,
) -> None:
    if not places:
        raise Error("sources: expected at least one, found none")
    if tokenizer not in KINDS:
        raise Error(f"tokenizer: expected one of {', '.join(KINDS)}; found {shown(tokenizer)}")
    if not 0 <= validation < 1:
        raise Error(f"validation: expected 0 <= validation < 1, found {validation}")
    if len(weights) != len(places) or any(type(n) is not int or n < 0 for n in weights):
        raise Error(f"weights: expected {len(places)} whole numbers from 0, found {weights}")
    if not (math.isfinite(near) and 0 <= near <= 1):
        raise Error(f"near_duplicates: expected a similarity from 0 to 1, found {near}")


def _check_sizes(workers: int, block_bytes: int, learn_bytes: int, separator: str) -> None:
    for name, value in (
        ("workers", workers),
        ("block_bytes", block_bytes),
        ("learn_bytes", learn_bytes),
    ):
        if value < 1:
            raise Error(f"{name}: expected 1 or more, found {value}")
    if not separator:
        raise Error("separator: expected a text, found an empty one")


def _described(plan: Plan) -> dict[str, Any]:
    """`plan` in JSON's terms. Of files the name, size and time of change stand for the content."""
    files = {
        name: [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        for name, paths in plan.files.items()
    }
    cleaning = {**asdict(plan.cleaning), "drop_prefixes": list(plan.cleaning.drop_prefixes)}
    return {
        "reading": asdict(plan.reading),
        "cleaning": cleaning,
        "near_duplicates": plan.near,
        "validation": plan.validation,
        "block_bytes": plan.block_bytes,
        "files": files,
    }


def _begin(out: Path, work: Path, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Makes or resumes the unfinished work; the report of a finished one with these arguments."""
    if (out / INDEX_FILE).exists():
        try:
            index = json.loads((out / INDEX_FILE).read_text(encoding="utf-8"))
            if index["arguments"] == _digest(arguments):
                shutil.rmtree(work, ignore_errors=True)
                report: dict[str, Any] = index["report"]
                return report
        except (ValueError, KeyError, TypeError):
            pass
        raise Error(f"{out}: expected a new or empty folder, found other prepared data")
    plan_file = work / "plan.json"
    if plan_file.exists():
        if json.loads(plan_file.read_text(encoding="utf-8")) != arguments:
            raise Error(
                f"{work}: expected the arguments and sources that this preparation was begun "
                "with, found others; repeat those, or delete the folder"
            )
        return None
    if out.exists() and any(entry.name != UNFINISHED for entry in out.iterdir()):
        raise Error(f"{out}: expected a new or empty folder, found files in it")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(plan_file, arguments)
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _vocabulary(
    work: Path, collected: Collected, learning: Mapping[str, Any], progress: Progress
) -> tuple[str, int, str]:
    """Where the tokenizer is (a folder, or its name), its size, and the digest of its files."""
    folder, done = work / "tokenizer", work / "tokenizer.json"
    place = HARMONY if learning["tokenizer"] == HARMONY else str(folder)
    if done.exists():
        known = json.loads(done.read_text(encoding="utf-8"))
        return place, known["vocab_size"], known["vocabulary"]
    progress("learning the vocabulary", 0, 1)
    weights = learning["weights"]
    train = [block for block in collected.blocks if block["split"] == TRAIN]
    share = learning["learn_bytes"] / max(1, sum(b["bytes"] * weights[b["text"]] for b in train))
    documents = (
        document
        for block in train
        if weights[block["text"]]
        for document in read_block(work / block["block"])
        if share >= 1 or share_of(document[::-1]) < share  # not the hash that splits
        for _ in range(weights[block["text"]])
    )
    made = make_tokenizer(learning["tokenizer"], documents, learning["vocab_size"])
    folder.mkdir(exist_ok=True)
    for name, content in made.content.items():
        _write(folder / name, content)
    digest = hashlib.sha256(b"".join(made.content.values()) or HARMONY.encode()).hexdigest()
    write_json(done, {"vocab_size": made.vocab_size, "vocabulary": digest})
    return place, made.vocab_size, digest


def _write(path: Path, content: bytes) -> None:
    def write(file: BinaryIO) -> None:
        file.write(content)

    write_in_one_piece(path, write)


def _finish(
    out: Path,
    work: Path,
    arguments: Mapping[str, Any],
    vocabulary: str,
    place: str,
    size: int,
    shards: list[dict[str, Any]],
    counts: dict[str, int],
) -> dict[str, Any]:
    """Writes tokenizer files and, last of all, the index; returns the report."""
    for path in sorted((work / "tokenizer").iterdir()):
        _write(out / path.name, path.read_bytes())
    special = load_tokenizer(place).special
    settings = {key: value for key, value in arguments.items() if key != "files"}
    index: dict[str, Any] = {
        "format": FORMAT,
        "tokenizer": arguments["tokenizer"],
        "vocabulary": vocabulary,
        "vocab_size": size,
        "end_of_text": special[END_OF_TEXT],
        "stop_ids": [special[name] for name in STOPS],
        "dtype": dtype_for(size),
        "validation": arguments["validation"],
        "texts": list(arguments["files"]),
        "shards": shards,
        "settings": settings,
        "arguments": _digest(arguments),
    }
    index["report"] = _report(index, counts)
    write_json(out / INDEX_FILE, index)
    shutil.rmtree(work, ignore_errors=True)
    report: dict[str, Any] = index["report"]
    return report


def _report(index: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    shards = index["shards"]
    texts = [
        {"text": text, "split": split, **_sums(shards, text, split)}
        for text in index["texts"]
        for split in SPLITS
    ]
    tokens, size = (sum(shard[key] for shard in shards) for key in ("tokens", "bytes"))
    report = {
        "documents_read": counts["read"],
        "documents": sum(shard["documents"] for shard in shards),
        "dropped": {why: counts[why] for why in sorted(counts) if why != "read"},
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": size / tokens,
        "vocab_size": index["vocab_size"],
        "digest": digest_of(index),
        "texts": texts,
    }
    if "unknown" in shards[0]:
        report["unknown"] = sum(shard["unknown"] for shard in shards) / tokens
    return report


def _sums(shards: Sequence[Mapping[str, Any]], text: str, split: str) -> dict[str, int]:
    mine = [shard for shard in shards if (shard["text"], shard["split"]) == (text, split)]
    return {key: sum(shard[key] for shard in mine) for key in ("documents", "tokens", "bytes")}
