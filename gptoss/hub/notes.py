"""Which files of the Hub's cache gptoss has brought: `gptoss rm` takes away those, and no others.

There is a note for each revision of a repository in each cache. A file is noted before it comes,
so that an interrupted download can be removed too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gptoss import files
from gptoss.errors import Error
from gptoss.hub import places

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Note:
    """folder: of the repository, in the cache. blobs: the names of those that gptoss brought."""

    path: Path
    folder: Path
    commit: str
    blobs: frozenset[str]


def folder() -> Path:
    """Where the notes lie."""
    return places.own_cache() / "downloads"


def add(repo: str, repository: Path, commit: str, blob: str) -> None:
    """Note a blob of a revision of the repository that has this folder. Raises Error."""
    place = hashlib.sha256(str(repository.absolute()).encode()).hexdigest()[:8]
    path = folder() / f"{_stem(repo)}@{commit}@{place}.json"
    try:
        with locked():
            path.parent.mkdir(parents=True, exist_ok=True)
            known = _read(path).blobs if path.is_file() else frozenset()
            if blob in known:
                return
            data = {
                "repo": repo,
                "folder": str(repository.absolute()),
                "commit": commit,
                "blobs": sorted({*known, blob}),
            }
            files.write_in_one_piece(path, lambda out: out.write(json.dumps(data).encode()))
    except OSError as error:
        raise Error(f"{path}: cannot be written: {files.reason(error)}") from error


def notes_of(repo: str) -> list[Note]:
    """All notes of a repository. Raises Error for a damaged one."""
    return [_read(path) for path in sorted(folder().glob(f"{_stem(repo)}@*.json"))]


@contextmanager
def locked() -> Iterator[None]:
    """One process of gptoss at a time, where there are locks."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        lock = os.open(folder(), os.O_RDONLY)
    except OSError:  # what may not be written needs no lock
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _stem(repo: str) -> str:
    return repo.replace("/", "--")


def _read(path: Path) -> Note:
    found = files.read_object(path)
    listed, commit, repository = (found.get(key) for key in ("blobs", "commit", "folder"))
    blobs = frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()
    if not all(_BLOB.fullmatch(blob) for blob in blobs):
        raise Error(f"{path}: blobs: expected hashes, found other names")
    if not _COMMIT.fullmatch(str(commit)) or not isinstance(repository, str):
        raise Error(f"{path}: expected a commit and a folder, found {sorted(found)}")
    return Note(path, Path(repository), str(commit), blobs)
