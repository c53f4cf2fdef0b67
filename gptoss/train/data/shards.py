"""The last step of a preparation: blocks of documents become files of token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptoss.files import write_in_one_piece
from gptoss.train.data.collect import read_block, write_json
from gptoss.train.data.tokenizers import END_OF_TEXT, TextTokenizer, Words, load_tokenizer
from gptoss.train.data.workers import in_order


class Job(NamedTuple):
    """The block to encode, the folders of shards and of blocks, and what to encode it with.

    `tokenizer`: a directory, or a name. `vocabulary`: the digest of its files.
    """

    block: dict[str, Any]
    out: Path
    work: Path
    tokenizer: str
    vocabulary: str
    dtype: str


def dtype_for(vocab_size: int) -> str:
    """The smallest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_shards(
    jobs: Sequence[Job], executor: Executor | None, progress: Any
) -> list[dict[str, Any]]:
    """Encodes all blocks; returns the index's entries, in the order of the blocks.

    Shards that were made before are kept if their checksum says so.
    """
    total, done = sum(job.block["bytes"] for job in jobs), 0
    entries = []
    for entry in in_order(executor, encode_block, jobs):
        entries.append(entry)
        done += entry["bytes"]
        progress("tokenising", done, total)
    return entries


def encode_block(job: Job) -> dict[str, Any]:
    """Writes the shard of a block, and its entry beside the block."""
    name = job.block["block"].replace(".jsonl", ".bin")
    shard, entry_file = job.out / name, job.work / f"{name}.json"
    if entry_file.exists() and shard.is_file():
        known: dict[str, Any] = json.loads(entry_file.read_text(encoding="utf-8"))
        if hashlib.sha256(shard.read_bytes()).hexdigest() == known["sha256"]:
            return known
    tokenizer = _tokenizer(job.tokenizer, job.vocabulary)
    end = tokenizer.special[END_OF_TEXT]
    documents = read_block(job.work / job.block["block"])
    ids = np.concatenate([np.asarray([*tokenizer.encode(d), end], job.dtype) for d in documents])
    content = ids.tobytes()
    write_in_one_piece(shard, lambda file: file.write(content))
    entry = {"file": name, "text": job.block["text"], "split": job.block["split"]}
    entry |= {"documents": job.block["documents"], "tokens": len(ids), "bytes": job.block["bytes"]}
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    if isinstance(tokenizer, Words):
        entry["unknown"] = int((ids == 0).sum())
    write_json(entry_file, entry)
    return entry


_loaded: dict[str, TextTokenizer] = {}  # of each process: reading a vocabulary takes a while


def _tokenizer(place: str, vocabulary: str) -> TextTokenizer:
    if vocabulary not in _loaded:
        _loaded.clear()
        _loaded[vocabulary] = load_tokenizer(place)
    return _loaded[vocabulary]
