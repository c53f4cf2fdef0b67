"""A model's files: sizes, digests, and what the tool that fetched them knows of these."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from gptoss.errors import Error
from gptoss.eval.outcome import Outcome, Skipped
from gptoss.eval.session import Session
from gptoss.tokenizer import tokenizer_files

SMALL = 64 << 20  # bytes; tokenizer.json has 28 MB, a shard of weights gigabytes
_CHUNK = 16 << 20  # read at a time
_READERS = 4  # files at a time
_SHOWN = 16  # characters of a digest that is shown
_NAMES = ("config.json", "model.safetensors.index.json")
_PATTERNS = ("*.safetensors", "*.json", "*.tiktoken")


@dataclass(frozen=True)
class Digest:
    """A file, its size in bytes, and the digest of its bytes.

    kind: "sha256", "git-sha1" (as git names a blob) or "xxh3" (128 bits). expected: the digest by
    the tool that fetched it; None where none is known.
    """

    name: str
    size: int
    kind: str
    value: str
    expected: str | None = None

    @property
    def wrong(self) -> bool:
        return self.expected not in (None, self.value)


def check_files(session: Session) -> Outcome:
    """Are all files there, and do the tensors in them fit config.json?"""
    source = session.open()
    paths = files_of(session)
    if not paths:
        return Outcome(f"made up, no files: {len(source.tensors())} tensors", figures={"files": 0})
    size = sum(path.stat().st_size for path in paths)
    line = (
        f"{len(paths)} files, {size / 1e9:.2f} GB, layout {source.layout}: "
        f"{len(source.tensors())} tensors, all that config.json asks for"
    )
    return Outcome(line, figures={"files": len(paths), "bytes": size, "layout": source.layout})


def check_hashes(session: Session, quick: bool = False) -> Outcome:
    """Are the files those that were published, as far as that can be known here?

    quick: leave out what takes as long as reading the model.
    """
    every = files_of(session)
    small = [path for path in every if path.stat().st_size <= SMALL]
    paths = small if quick else every
    if not paths:
        raise Skipped("there are no files" if not every else "left out with --quick")
    digests = digests_of(paths, session.progress)
    wrong = [each for each in digests if each.wrong]
    known = sum(each.expected is not None for each in digests)
    if wrong:
        first = wrong[0]
        line = (
            f"{len(wrong)} of {len(digests)} files are not what was fetched: {first.name}: "
            f"expected {first.kind} {first.expected}, found {first.value}"
        )
    else:
        line = f"{known} of {len(digests)} files compared with what the Hub says of them"
        if not known:
            line = f"{len(digests)} files read; nothing here says what they should be"
        if len(paths) < len(every):
            line += f"; {len(every) - len(paths)} large ones left out"
    details = tuple(
        f"{each.name}  {each.size:,}  {each.kind}:{each.value[:_SHOWN]}"
        + ("  WRONG" if each.wrong else "  as fetched" if each.expected else "")
        for each in digests
    )
    figures: dict[str, Any] = {"digests": [asdict(each) for each in digests]}
    return Outcome(line, bool(wrong), figures, details)


def files_of(session: Session) -> list[Path]:
    """The files that the model is made of, those of weights first.

    Where it does not open, whatever lies there that could be one.
    """
    if session.opened:
        source = session.source
        folders = {path.parent: None for path in source.files}
        paths = [*source.files]
        paths += [folder / name for folder in folders for name in _NAMES]
        if source.directory is not None:
            paths += tokenizer_files(source.directory)
    else:
        place = Path(str(session.options.model))
        folder = place if place.is_dir() else place.parent
        if not place.exists():
            return []
        paths = [path for pattern in _PATTERNS for path in sorted(folder.glob(pattern))]
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def digests_of(
    paths: Iterable[Path], progress: Callable[[int, int], None] | None = None
) -> list[Digest]:
    """The digest of each file, several read at a time. progress: of bytes. Raises OSError."""
    paths = list(paths)
    total = sum(path.stat().st_size for path in paths)
    done, lock, stop = 0, threading.Lock(), threading.Event()

    def advance(count: int) -> None:
        nonlocal done
        with lock:
            done += count
        if stop.is_set():
            raise Error("interrupted")

    with ThreadPoolExecutor(_READERS) as pool:  # hashlib and xxhash let go of the GIL
        futures = [pool.submit(_digest, path, advance) for path in paths]
        try:
            for future in futures:
                while not future.done():
                    if progress is not None:
                        progress(done, total)
                    stop.wait(0.05)
            return [future.result() for future in futures]
        finally:
            stop.set()  # after Ctrl-C: gigabytes need not be read to their end
            for future in futures:
                future.cancel()


def _digest(path: Path, advance: Callable[[int], None]) -> Digest:
    size = path.stat().st_size
    expected = expected_digest(path)
    hasher: Any
    if expected is not None and len(expected) == 40:
        kind, hasher = "git-sha1", hashlib.sha1(usedforsecurity=False)
        hasher.update(b"blob %d\0" % size)
    elif expected is not None or size <= SMALL:
        kind, hasher = "sha256", hashlib.sha256()
    else:
        kind, hasher = "xxh3", xxh3_128()
    buffer = memoryview(bytearray(min(_CHUNK, max(1, size))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            advance(count)
    return Digest(path.name, size, kind, hasher.hexdigest(), expected)


def expected_digest(path: Path) -> str | None:
    """What huggingface_hub knows of a file that it fetched: 64 digits of sha256 for large files,
    40 of git's sha1 for small ones; None where it knows nothing.

    In its cache a file is a link to blobs/DIGEST. In a folder of `hf download --local-dir` the
    digest is the second line of .cache/huggingface/download/NAME.metadata.
    """
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if target.parent.name == "blobs" and _is_digest(target.name):
            return target.name
    for root in (path.parent, path.parent.parent):
        name = path.relative_to(root)
        note = root / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        try:
            lines = note.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        if len(lines) > 1 and _is_digest(lines[1].strip()):
            return lines[1].strip()
    return None


def _is_digest(text: str) -> bool:
    return len(text) in (40, 64) and set(text) <= set("0123456789abcdef")
