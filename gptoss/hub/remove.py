"""Taking away what gptoss has put on this machine, and nothing else."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from gptoss import files
from gptoss.errors import Error
from gptoss.hub import packed, places
from gptoss.hub.download import notes

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass
class Removed:
    """paths: what is gone. nbytes: how much that was. kept: why some of it stays."""

    paths: list[Path] = field(default_factory=list)
    nbytes: int = 0
    kept: list[str] = field(default_factory=list)


def remove(repo: str) -> Removed:
    """Remove the packed copies of a model and the blobs of it that gptoss downloaded.

    A blob that a revision of somebody else's download uses stays. Raises Error for a damaged note.
    """
    removed = Removed()
    for copy in list(packed.all_packed()):
        if copy.name == repo:
            removed.nbytes += copy.nbytes
            removed.paths.append(copy.folder)
            shutil.rmtree(copy.folder)
    for note in sorted(notes().glob(f"{repo.replace('/', '--')}@*.json")):
        try:
            _remove_download(repo, note, removed)
        except OSError as error:
            raise Error(f"{note}: cannot be removed: {files.reason(error)}") from error
    return removed


def _remove_download(repo: str, note: Path, removed: Removed) -> None:
    folder = places.repository_folder(repo)
    listed = files.read_object(note).get("blobs")
    ours = {str(blob) for blob in listed} if isinstance(listed, list) else set()
    if not all(_BLOB.fullmatch(blob) for blob in ours):
        raise Error(f"{note}: blobs: expected hashes, found other names")
    commit = note.stem.rpartition("@")[2]
    used_elsewhere = {
        link.resolve().name
        for snapshot in (folder / "snapshots").glob("*")
        if snapshot.name != commit
        for link in snapshot.rglob("*")
        if link.is_symlink()
    }
    for link in list((folder / "snapshots" / commit).rglob("*")):
        if link.is_symlink() and link.resolve().name in ours:
            link.unlink()
    for blob in sorted(ours):
        path = folder / "blobs" / blob
        if blob in used_elsewhere:
            removed.kept.append(f"{path}: another revision uses it")
            continue
        for place in (path, path.with_suffix(".incomplete")):
            if place.is_file():
                removed.nbytes += place.stat().st_size
                removed.paths.append(place)
                place.unlink()
    note.unlink()
    _remove_empty(folder, commit)


def _remove_empty(folder: Path, commit: str) -> None:
    """What is left of a revision with no file of anybody in it."""
    snapshot = folder / "snapshots" / commit
    for place in sorted(snapshot.rglob("*"), reverse=True):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    if snapshot.is_dir() and not any(snapshot.iterdir()):
        snapshot.rmdir()
        for ref in (folder / "refs").rglob("*"):
            if ref.is_file() and ref.read_text(encoding="ascii", errors="replace") == commit:
                ref.unlink()
    if not any(place.is_file() or place.is_symlink() for place in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)
