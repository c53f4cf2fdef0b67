"""Copies of models in panels, which the CPU engine maps and starts with at once.

They lie in gptoss's own cache, one folder each, and together take no more than a budget: the one
that was used least recently goes first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gptoss import files
from gptoss.checkpoint import open_checkpoint, write_panels
from gptoss.errors import Error
from gptoss.hub import places
from gptoss.hub.download import Progress

BUDGET = 40_000_000_000  # bytes; a packed gpt-oss-20b takes about 13 GB
_NOTE, _MODEL = "about.json", "model"


@dataclass(frozen=True)
class Packed:
    """A copy. name: of the model. source: what it was made from. weights: "published" or "q8"."""

    folder: Path
    name: str
    source: str
    weights: str

    @property
    def path(self) -> Path:
        """For `open_checkpoint`."""
        return self.folder / _MODEL

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    @property
    def used(self) -> float:
        """When it was last used, in seconds since the epoch."""
        return (self.folder / _NOTE).stat().st_mtime


def budget() -> int:
    """Bytes that all copies together may take: GPTOSS_CACHE_BYTES, such as 40GB; 0 for none."""
    text = os.environ.get("GPTOSS_CACHE_BYTES", "").strip()
    if not text:
        return BUDGET
    try:
        return files.parse_size(text)
    except Error as error:
        raise Error(f"GPTOSS_CACHE_BYTES: {error}") from None


def all_packed() -> Iterator[Packed]:
    """Every copy that is complete."""
    for note in sorted((places.own_cache() / "packed").glob(f"*/{_NOTE}")):
        try:
            found = files.read_object(note)
        except Error:
            continue
        values = [found.get(key) for key in ("name", "source", "weights")]
        if all(isinstance(value, str) for value in values) and (note.parent / _MODEL).exists():
            yield Packed(note.parent, *map(str, values))


def packed_copy(source: Path, weights: str) -> Packed | None:
    """The copy of the model in `source` as it is now; noted as used."""
    folder = _folder(source, weights)
    for packed in all_packed():
        if packed.folder == folder:
            with suppress(OSError):  # it may be somebody else's, and read-only
                os.utime(folder / _NOTE)
            return packed
    return None


def pack(source: Path, name: str, weights: str, progress: Progress | None = None) -> Packed:
    """Make a copy of the model in `source`, and room for it. Others that pack are waited for.

    Raises Error.
    """
    folder = _folder(source, weights)
    with open_checkpoint(source) as opened, _locked():
        if opened.panels is not None:
            raise Error(f"{source}: is packed already")
        if (made := packed_copy(source, weights)) is not None:  # by another process, meanwhile
            return made
        _remove_unfinished()
        make_room(opened.nbytes)
        folder.mkdir(parents=True)
        try:
            write_panels(opened, folder / _MODEL, weights, progress)
            about = {"name": name, "source": str(source), "weights": weights, "made": time.time()}
            files.write_in_one_piece(
                folder / _NOTE, lambda out: out.write(json.dumps(about).encode())
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return Packed(folder, name, str(source), weights)


@contextmanager
def _locked() -> Iterator[None]:
    """Nobody else packs, where there are locks."""
    place = places.own_cache() / "packed"
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_unfinished() -> None:
    """What a process left that was killed. Nobody else packs, so nobody is at work in there."""
    whole = {packed.folder for packed in all_packed()}
    for folder in (places.own_cache() / "packed").iterdir():
        if folder.is_dir() and re.fullmatch(r"[0-9a-f]{20}", folder.name) and folder not in whole:
            shutil.rmtree(folder)


def make_room(nbytes: int) -> None:
    """Remove what was used least recently until `nbytes` more fit the budget. Raises Error."""
    most = budget()
    if nbytes > most:
        raise Error(
            f"packed copies: expected at most {most} bytes together (GPTOSS_CACHE_BYTES), found a "
            f"model of {nbytes}"
        )
    kept = sorted(all_packed(), key=lambda packed: packed.used)
    total = sum(packed.nbytes for packed in kept)
    for packed in kept:
        if total + nbytes <= most:
            return
        total -= packed.nbytes
        shutil.rmtree(packed.folder)


def _folder(source: Path, weights: str) -> Path:
    """Where the copy of a source lies: another file, or a changed one, has another place."""
    digest = hashlib.sha256(weights.encode())
    inside = source.rglob("*") if source.is_dir() else places.parts_of(source)
    for path in sorted(inside):
        if path.is_file():
            real = path.resolve()
            state = real.stat()
            digest.update(f"\0{real}\0{state.st_size}\0{state.st_mtime_ns}".encode())
    return places.own_cache() / "packed" / digest.hexdigest()[:20]
