"""Fuzz the checkpoint reader: valid files are mutated, and only gptoss.Error may come out.

    python tools/fuzz/fuzz_checkpoint.py --seconds 60

Every case has a number, and what it does follows from (seed, number): a failure is repeated with
`--seed S --case N`, and its files are kept in the directory given by --keep. Accepted mutants must
hand out every tensor with the promised shape. A case that takes longer than --case-seconds, or more
memory than --memory-gib, fails as well.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.checkpoint.files import open_checkpoint
from gptoss.checkpoint.gguf_write import write_gguf
from gptoss.checkpoint.panels import PanelSource, write_panels
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.errors import Error
from gptoss.model.config import ModelConfig
from gptoss.tokenizer import load_tokenizer
from gptoss.tokenizer.files import holds_vocabulary
from gptoss.tokenizer.vocabulary import dump_ranks

Files = dict[str, bytes]  # name → content of a checkpoint directory

CONFIG = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    vocab_size=16,
    hidden_size=32,
    intermediate_size=32,
    head_dim=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=8,
)
INDEX = "model.safetensors.index.json"
NUMBERS = [0, 1, -1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 127, 128, 255, 256, 65535, 1 << 31]
NUMBERS += [1 << 32, (1 << 53) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, 10**400]
VALUES: list[Any] = [*NUMBERS, None, True, False, "", "x", "BF16", "U8", "F32", "\0", "\ud800"]
VALUES += [
    0.5,
    -0.0,
    1e308,
    [],
    {},
    [[]],
    {"a": {}},
    [0, 0],
    [1] * 100,
    "../x.safetensors",
    "é" * 300,
]


# what handling an already broken header may raise here, in the mutator
BROKEN: tuple[type[Exception], ...] = (struct.error, ValueError, TypeError, LookupError)
BROKEN += (AttributeError, OverflowError, RecursionError)


class TookTooLong(Exception):
    pass


def seeds(directory: Path) -> list[Files]:
    """The valid checkpoints that mutation starts from."""
    source = SyntheticSource(CONFIG, seed=0, threads=1)
    found = []
    for layout in ("original", "huggingface", "huggingface-bf16"):
        for shard_bytes in (None, 8_000):
            target = directory / f"{layout}-{shard_bytes}"
            write_checkpoint(source, target, layout, shard_bytes)
            found.append({path.name: path.read_bytes() for path in target.iterdir()})
    for weights in ("published", "q8"):
        target = directory / f"packed-{weights}"
        write_panels(source, target, weights, threads=1)
        found.append({path.name: path.read_bytes() for path in target.iterdir()})
    for weights in ("published", "q8"):
        (path,) = write_gguf(source, directory / f"{weights}.gguf", weights)
        found.append({"model.gguf": path.read_bytes()})
    (path,) = write_gguf(speaking(directory), directory / "speaking.gguf")
    found.append({"model.gguf": path.read_bytes()})
    with open_checkpoint(directory / "huggingface-bf16-None") as unpacked:
        (path,) = write_gguf(unpacked, directory / "bf16.gguf")
    found.append({"model.gguf": path.read_bytes()})
    return found


def speaking(directory: Path) -> SyntheticSource:
    """A model with a vocabulary: the bytes and two merges."""
    source = SyntheticSource(dataclasses.replace(CONFIG, vocab_size=272), seed=0, threads=1)
    source.directory = directory / "vocabulary"
    source.directory.mkdir()
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    (source.directory / "tokenizer.tiktoken").write_bytes(dump_ranks(ranks))
    special = {"pattern": "[\\s\\S]", "special_tokens": {"<|end|>": 260}, "eos_token": "<|end|>"}
    (source.directory / "tokenizer_config.json").write_text(json.dumps(special))
    return source


# ---- mutations: each changes `files` in place ----


def mutate_bytes(files: Files, rng: random.Random) -> None:
    """Flip, overwrite, insert, remove or repeat bytes anywhere, mostly in headers."""
    name = rng.choice(sorted(files))
    data = bytearray(files[name])
    if not data:
        return
    limit = len(data) if rng.random() < 0.3 else min(len(data), rng.choice([8, 64, 4096]))
    for _ in range(rng.choice([1, 1, 1, 2, 5, 50])):
        place = rng.randrange(limit)
        length = rng.choice([1, 1, 2, 8, 100])
        kind = rng.randrange(6)
        if kind == 0:
            data[place % max(1, len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 2:
            data[place:place] = rng.randbytes(length)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place:place] = data[place : place + length] * rng.choice([1, 2, 100])
        else:
            data[place : place + 1] = rng.choice(
                [b"{", b"}", b"[", b'"', b",", b"-", b"9", b"\xff"]
            )
        if not data:
            break
    files[name] = bytes(data)


def mutate_size(files: Files, rng: random.Random) -> None:
    """Cut a file short or add to its end."""
    name = rng.choice(sorted(files))
    data = files[name]
    if rng.random() < 0.6:
        files[name] = data[: rng.choice([0, 1, 7, 8, 9, rng.randrange(len(data) + 1)])]
    else:
        files[name] = data + rng.randbytes(rng.choice([1, 2, 8, 4096]))


def mutate_data(files: Files, rng: random.Random) -> None:
    """Fill a run of a file with one byte, often 0xFF: the scale that MXFP4 does not allow."""
    name = rng.choice(sorted(files))
    place = rng.randrange(len(files[name]) + 1)
    run = bytes([rng.choice([0, 0x7F, 0xFF, 0xFF])]) * rng.choice([1, 16, 1024])
    files[name] = files[name][:place] + run + files[name][place + len(run) :]


def mutate_length(files: Files, rng: random.Random) -> None:
    """Change the header length of a safetensors file."""
    name = choose(files, ".safetensors", rng)
    if name is None or len(files[name]) < 8:
        return
    (length,) = struct.unpack("<Q", files[name][:8])
    new = rng.choice([*NUMBERS, length - 1, length + 1, length - 8, len(files[name]), 100_000_000])
    files[name] = struct.pack("<Q", new % (1 << 64)) + files[name][8:]


def mutate_header(files: Files, rng: random.Random) -> None:
    """Change the JSON header of a safetensors file, keeping its length right."""
    edit_header(files, rng, lambda header: mutate_json(header, rng))


def mutate_offsets(files: Files, rng: random.Random) -> None:
    """Move, swap or share data offsets and shapes: the header stays well formed."""

    def edit(header: Any) -> bytes:
        entries = [e for e in header.values() if isinstance(e, dict) and "data_offsets" in e]
        first, second = rng.sample(entries, 2)
        kind = rng.randrange(4)
        if kind == 0:
            for key in rng.sample(["data_offsets", "shape", "dtype"], rng.randint(1, 3)):
                first[key], second[key] = second[key], first[key]
        elif kind == 1:
            first["data_offsets"] = list(second["data_offsets"])
        elif kind == 2:
            change = rng.choice([-1, 1, -2, 2, 64, 1 << 40])
            first["data_offsets"] = [n + change for n in first["data_offsets"]]
        else:
            first["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
        return json.dumps(header).encode()

    edit_header(files, rng, edit)


def edit_header(files: Files, rng: random.Random, edit: Callable[[Any], bytes]) -> None:
    """Replace some file's header by what `edit` makes of it, unless that is broken already."""
    name = choose(files, ".safetensors", rng)
    if name is None:
        return
    try:
        (length,) = struct.unpack("<Q", files[name][:8])
        text = edit(json.loads(files[name][8 : 8 + length]))
    except BROKEN:
        return
    files[name] = struct.pack("<Q", len(text)) + text + files[name][8 + length :]


def mutate_gguf(files: Files, rng: random.Random) -> None:
    """Put numbers into the header of a GGUF file: counts, lengths, types, sizes, offsets."""
    name = choose(files, ".gguf", rng)
    if name is None or len(files[name]) < 64:
        return
    data = bytearray(files[name])
    limit = min(len(data) - 8, rng.choice([24, 200, 2000, 8000]))
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(limit)
        # where a small number lies, as lengths and types are
        while place < limit and not (data[place] and not any(data[place + 1 : place + 4])):
            place += 1
        width = rng.choice([4, 8])
        new = rng.choice([*NUMBERS, data[place] - 1, data[place] + 1, rng.randrange(64)])
        data[place : place + width] = (new % (1 << (8 * width))).to_bytes(width, "little")
    files[name] = bytes(data)


def mutate_config(files: Files, rng: random.Random) -> None:
    mutate_json_file(files, "config.json", rng)


def mutate_index(files: Files, rng: random.Random) -> None:
    mutate_json_file(files, INDEX, rng)


def mutate_names(files: Files, rng: random.Random) -> None:
    """Remove, rename, copy or exchange files."""
    names = sorted(files)
    name = rng.choice(names)
    kind = rng.randrange(5)
    if kind == 0:
        del files[name]
    elif kind == 1:
        other = rng.choice(names)
        files[name], files[other] = files[other], files[name]
    else:
        stem = rng.choice(["model", "x", "model-", "model--00001-of-00002", "model-00000-of-00001"])
        new = stem + rng.choice([".safetensors", "-00001-of-00003.safetensors", ".json", ".bin"])
        files[new] = files[name]
        if kind > 2:
            del files[name]
    if not files:
        files["config.json"] = b"{}"


MUTATIONS: list[Callable[[Files, random.Random], None]] = [
    mutate_bytes,
    mutate_bytes,
    mutate_size,
    mutate_data,
    mutate_length,
    mutate_header,
    mutate_header,
    mutate_offsets,
    mutate_offsets,
    mutate_gguf,
    mutate_gguf,
    mutate_config,
    mutate_config,
    mutate_index,
    mutate_names,
]


def choose(files: Files, suffix: str, rng: random.Random) -> str | None:
    names = [name for name in sorted(files) if name.endswith(suffix)]
    return rng.choice(names) if names else None


def mutate_json_file(files: Files, name: str, rng: random.Random) -> None:
    try:
        value = json.loads(files[name])
    except BROKEN:
        return
    files[name] = mutate_json(value, rng)


def mutate_json(root: Any, rng: random.Random) -> bytes:
    """`root` with a few places changed, as UTF-8 text that need not be JSON any more."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 20])):
        holders = list(containers(root))
        if not holders:
            break
        holder = rng.choice(holders)
        keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key = rng.choice(keys)
        kind = rng.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice([*keys, "", "x", "__metadata__", "\ud800"])] = holder.pop(key)
        elif kind == 2:
            other = rng.choice(keys)
            holder[key], holder[other] = holder[other], holder[key]
        elif kind == 3 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] + rng.choice([-1, 1, 2, 31, 1 << 32])
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))  # changed later without changing VALUES
    try:
        text = json.dumps(root).encode()
    except (ValueError, RecursionError):  # too many digits or levels for Python's writer
        return b"{}"
    kind = rng.randrange(20)
    if kind == 0:
        text = text.replace(b'": ', b'": ' + b'{"a":' * rng.choice([10, 5000]), 1)
    elif kind == 1:
        depth = rng.choice([10, 900, 990, 5000])
        text = text.replace(b'": ', b'": ' + b"[" * depth + b"]" * depth + b', "b": ', 1)
    elif kind == 2:
        text = text.replace(b"1", b"1" * rng.choice([2, 20, 5000]), 1)
    elif kind == 3:
        text = text.replace(b'"', rng.choice([b"'", b"\xff", b'\\"', b'"\\u0000']), 1)
    elif kind == 4:
        text = text[:-1] + b"," + text[1:]  # every key twice
    return text


def containers(root: Any) -> Iterator[Any]:
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, (dict, list)):
            yield value
            stack.extend(value.values() if isinstance(value, dict) else value)


# ---- one case ----


def make_case(valid: list[Files], seed: int, number: int) -> Files:
    rng = random.Random(f"{seed}-{number}")
    files = dict(rng.choice(valid))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice(MUTATIONS)(files, rng)
    return files


def read_everything(directory: Path) -> None:
    """Open the checkpoint both ways and read each tensor; Error is the only way to fail."""
    for experts in (None, "mxfp4"):
        with open_checkpoint(directory, experts=experts) as source:
            if isinstance(source, PanelSource):
                source.verify(1)
            for info in source.tensors():
                array = source.tensor(info.name)
                if array.shape != info.shape or array.nbytes != info.nbytes:
                    raise AssertionError(f"{info} came as {array.dtype} {array.shape}")
                if array.flags.writeable or not array.flags.c_contiguous:
                    raise AssertionError(f"{info} is writable or not contiguous")
                if int(array.max()) == 0xFF and info.name.endswith(".scales"):
                    raise AssertionError(f"{info} holds 0xFF")
                source.release(info.name)
            for name in source.q8_0:
                info = source.info(f"{name}.q8_0")
                if source.tensor(info.name).shape != info.shape:
                    raise AssertionError(f"{info} came in another shape")
            if source.directory is not None and source.directory.is_file():
                if holds_vocabulary(source.directory):
                    load_tokenizer(source.directory, source.config).encode("the end")
            if isinstance(source, PanelSource):
                return  # its experts are the engine's alone
            for layer in range(source.config.num_hidden_layers):
                for index in range(source.config.num_experts):
                    matrix = source.expert(f"block.{layer}.mlp.mlp2_weight", index)
                    if np.isnan(matrix).any() and source.expert_dtype == "mxfp4":
                        raise AssertionError("NaN out of MXFP4")


def check_message(error: Error) -> None:
    """A message must fit on a terminal: one line, encodable, not the whole file."""
    text = str(error)
    text.encode()
    if not text or "\n" in text or len(text) > 4000:
        raise AssertionError(f"unfit message of {len(text)} characters: {text[:500]!r}")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise TookTooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(gib: float) -> None:
    try:
        import resource
    except ImportError:  # not on this platform
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(gib * (1 << 30)), hard))


def run_case(files: Files, directory: Path, seconds: float) -> str | None:
    """The message of the Error, None where the files were accepted. Raises what must not happen."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    try:
        with time_limit(seconds):
            read_everything(directory)
    except Error as error:
        check_message(error)
        return str(error)
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--cases", type=int, default=None, help="stop after so many cases")
    parser.add_argument("--seed", type=int, default=None, help="default: taken from the clock")
    parser.add_argument("--case", type=int, default=None, help="run this case only, and show it")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="for failures")
    parser.add_argument("--case-seconds", type=float, default=20.0)
    parser.add_argument("--memory-gib", type=float, default=4.0)
    options = parser.parse_args(arguments)
    seed = time.time_ns() % (1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    warnings.simplefilter("ignore")
    limit_memory(options.memory_gib)
    shared = Path("/dev/shm")
    where = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    refused = accepted = 0
    with tempfile.TemporaryDirectory(dir=where) as scratch:
        valid = seeds(Path(scratch) / "valid")
        mutant = Path(scratch) / "mutant"
        for files in valid:
            if run_case(files, mutant, options.case_seconds) is not None:
                raise AssertionError("a checkpoint that was not changed is refused")
        end = time.monotonic() + options.seconds
        number = options.case or 0
        while time.monotonic() < end and (options.cases is None or number < options.cases):
            files = make_case(valid, seed, number)
            try:
                message = run_case(files, mutant, options.case_seconds)
            except Exception:
                traceback.print_exc()
                kept = options.keep / f"{seed}-{number}"
                shutil.copytree(mutant, kept, dirs_exist_ok=True)
                print(f"FAILED: case {number} of seed {seed}, files kept in {kept}")
                return 1
            refused += message is not None
            accepted += message is None
            if options.case is not None:
                print(f"case {number}: {message or 'accepted'}")
                return 0
            number += 1
    print(f"{number} cases: {refused} refused with gptoss.Error, {accepted} accepted and read")
    if refused == 0 or accepted == 0:
        print("FAILED: mutation should lead to both")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
