"""Writing any source as a checkpoint of either published layout, tensor by tensor."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.checkpoint import layouts
from gptoss.checkpoint.layouts import Stored
from gptoss.checkpoint.quantized import QuantizedExperts
from gptoss.checkpoint.safetensors import encode_header
from gptoss.checkpoint.source import BYTES, Array, TensorSource, transpose
from gptoss.errors import Error, shown
from gptoss.files import read_object, reason
from gptoss.model import f32_to_bf16, to_huggingface, to_original
from gptoss.tokenizer import copy_tokenizer_files
from gptoss.tokenizer.files import CONFIG_NAME

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

# 20b is published as one original file and 120b as seven; Hugging Face shards smaller
_DEFAULT_SHARD = {"original": 16_000_000_000}
_DEFAULT_HF_SHARD = 5_000_000_000
_WRITE_BYTES = 1 << 24  # written between two calls of progress
_SPARE_BYTES = 1 << 24  # for config, index and tokenizer


def write_checkpoint(
    source: TensorSource,
    directory: str | os.PathLike[str],
    layout: str = "original",
    max_shard_bytes: int | None = None,
    progress: Progress | None = None,
    rule: str = "mx",
) -> list[Path]:
    """Write `source` into `directory`, which must not exist or be empty. The files written.

    layout: "original", "huggingface" (MXFP4 experts) or "huggingface-bf16" (experts dequantized and
    transposed). bf16 experts are quantized by `rule` ("mx" or "mse") where the layout wants MXFP4;
    MXFP4 bytes and bf16 bits are otherwise copied as they are. A file takes tensors up to
    max_shard_bytes (a larger tensor has a file of its own); several files come with an index.
    The tokenizer's files are copied from source.directory. `progress` is called with (bytes done,
    bytes in all).

    Everything is written into a hidden directory beside the target, which takes its name at the
    end: an interrupted call leaves no files, and what a killed one has left is removed by the
    next for the same target. Never more than one tensor is in memory.
    Raises Error.
    """
    if source.panels is not None:
        raise Error(
            f"{source.name}: a packed model cannot be written in another layout; use the "
            f"checkpoint that it was made from"
        )
    stored = layouts.stored_tensors(source.config, layout)
    if max_shard_bytes is None:
        max_shard_bytes = _DEFAULT_SHARD.get(layout, _DEFAULT_HF_SHARD)
    if type(max_shard_bytes) is not int or max_shard_bytes <= 0:
        raise Error(f"max_shard_bytes: expected above 0, found {shown(max_shard_bytes)}")
    if source.expert_dtype == "bf16" and layouts.expert_dtype(layout) == "mxfp4":
        source = QuantizedExperts(source, rule)
    with new_directory(directory, sum(map(_nbytes, stored))) as (target, partial):
        names = _write_files(source, stored, partial, layout, max_shard_bytes, progress)
    return [target / name for name in names]


@contextmanager
def new_directory(directory: str | os.PathLike[str], nbytes: int) -> Iterator[tuple[Path, Path]]:
    """(target, a hidden directory beside it that takes its name if the block ends well).

    Raises Error unless the target is new or empty and there is room for nbytes and a little more.
    """
    target = Path(os.path.abspath(directory))
    try:
        _sweep(target)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Error(f"{target}: expected a new or empty directory, found something there")
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target.parent, nbytes + _SPARE_BYTES)
        with _partial_directory(target) as partial:
            yield target, partial
            if target.exists():
                target.rmdir()
            partial.rename(target)
    except OSError as error:
        raise Error(f"{target}: cannot be written: {reason(error)}") from error


@contextmanager
def _partial_directory(target: Path) -> Iterator[Path]:
    """A hidden directory beside `target`, removed at the end unless it has been renamed.

    It is locked as long as this process fills it, which tells others not to sweep it.
    """
    lock: int | None = None
    partial = target
    try:
        while lock is None:  # again where a sweeper was faster between the last two calls
            new = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
            if new.exists():
                continue
            partial = new
            partial.mkdir()
            lock = _lock(partial)
        yield partial
    finally:
        if partial != target:
            shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep(target: Path) -> None:
    """Remove what killed writers of `target` have left: directories that nobody has locked."""
    name = re.compile(re.escape(f".{target.name}.partial-") + "[0-9a-f]{8}")
    with suppress(OSError):
        for path in list(target.parent.iterdir()):
            if not name.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            lock = _lock(path, swept=True)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(directory: Path, swept: bool = False) -> int | None:
    """A descriptor that keeps `directory` locked until it is closed, or the process ends.

    None where another has locked or removed it. Where the file system has no locks: a descriptor
    for a directory of one's own, None for one that is to be `swept`.
    """
    try:
        lock = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        flock(lock, LOCK_EX | LOCK_NB)
        held = directory.exists()  # it may have been removed by the one that held the lock before
    except BlockingIOError:
        held = False
    except OSError:
        held = not swept
    if held:
        return lock
    os.close(lock)
    return None


def _nbytes(stored: Stored) -> int:
    return sum(part.nbytes for part in stored.parts)


def check_space(directory: Path, needed: int) -> None:
    """Raise Error unless so many bytes are free where `directory` lies."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise Error(
            f"{directory}: expected {needed / 1e9:.2f} GB of free space, found {free / 1e9:.2f} GB"
        )


def _write_files(
    source: TensorSource,
    stored: list[Stored],
    directory: Path,
    layout: str,
    max_shard_bytes: int,
    progress: Progress | None,
) -> list[str]:
    """Fill `directory`; the names of the files written."""
    shards = _split(stored, max_shard_bytes)
    total, done = sum(map(_nbytes, stored)), 0
    weight_map: dict[str, str] = {}
    names = []
    for number, shard in enumerate(shards, start=1):
        name = layouts.shard_name(layout, number, len(shards))
        names.append(name)
        weight_map.update({tensor.name: name for tensor in shard})
        with (directory / name).open("wb") as file:
            file.write(encode_header([(t.name, t.dtype, t.shape) for t in shard], {"format": "pt"}))
            for piece in _pieces(source, shard, layout):
                file.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        names.append(write_json(directory / "model.safetensors.index.json", index))
    if layout == "original":
        config = to_original(source.config)
    else:
        config = to_huggingface(source.config, layouts.expert_dtype(layout))
    names.append(write_json(directory / "config.json", config))
    names += copy_tokenizer(source, directory)
    if layout != "original" and source.config.eos_token_ids:
        generation = directory / "generation_config.json"
        if not generation.exists():
            ids = list(source.config.eos_token_ids)
            names.append(write_json(generation, {"do_sample": True, "eos_token_id": ids}))
    return names


def copy_tokenizer(source: TensorSource, directory: Path) -> list[str]:
    """Copies the tokenizer's files, and notes source.conversation_format in them; their names.

    A vocabulary inside a GGUF file is written as such files. The format is a key of
    tokenizer_config.json, which transformers passes over.
    """
    names = []
    if source.directory is not None:
        names = copy_tokenizer_files(source.directory, directory, source.config)
    wanted, path = source.conversation_format, directory / CONFIG_NAME
    # Without a word of it, a vocabulary with harmony's tokens means harmony.
    if wanted is None or (wanted == "harmony" and not path.exists()):
        return names
    config = read_object(path) if path.exists() else {}
    if config.get("conversation_format") != wanted:
        text = json.dumps({**config, "conversation_format": wanted}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    return names if path.name in names else [*names, path.name]


def write_json(path: Path, value: dict[str, Any]) -> str:
    """Write an object; the file's name."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return path.name


def _split(stored: list[Stored], max_bytes: int) -> list[list[Stored]]:
    """Runs of tensors that together take at most max_bytes, or are one tensor."""
    shards: list[list[Stored]] = [[]]
    size = 0
    for tensor in stored:
        if shards[-1] and size + _nbytes(tensor) > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += _nbytes(tensor)
    return shards


def _pieces(source: TensorSource, shard: list[Stored], layout: str) -> Iterator[memoryview]:
    """The bytes of a file's tensors, in order, a few MB at a time."""
    held = {info.name for info in source.tensors()}
    for tensor in shard:
        written = 0
        for array in _arrays(source, tensor):
            data = array.reshape(-1).view(np.uint8).data
            written += len(data)
            for start in range(0, len(data), _WRITE_BYTES):
                yield data[start : start + _WRITE_BYTES]
        expected = _nbytes(tensor)
        if written != expected:  # a source that breaks its promise must not make a broken file
            raise Error(f"{source.name}: tensor {tensor.name}: {written} bytes, not {expected}")
        for part in tensor.parts:
            if part.name in held:
                source.release(part.name)


def _arrays(source: TensorSource, tensor: Stored) -> Iterator[Array]:
    """Contiguous little-endian arrays that make up a stored tensor, one after another."""
    for part in tensor.parts:
        if not tensor.transposed:
            array = source.tensor(part.name)
            yield np.ascontiguousarray(array, dtype=f"<u{BYTES[part.dtype]}")
            continue
        for index in range(part.shape[0]):
            matrix = source.expert(part.name, index)
            if source.expert_dtype == "mxfp4" and not np.isfinite(matrix).all():
                raise Error(
                    f"{source.name}: tensor {part.name}, expert {index}: an MXFP4 value is beyond "
                    f"the largest bf16 and cannot be unpacked"
                )
            out = np.empty(matrix.shape[::-1], dtype="<u2")
            transpose(f32_to_bf16(matrix), out)
            yield out
