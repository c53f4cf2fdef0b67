"""Taking away what gptoss has put on this machine, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from gptoss import files
from gptoss.errors import Error
from gptoss.hub import notes, packed
from gptoss.hub.notes import Note


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
    noted = notes.notes_of(repo)
    for folder in sorted({note.folder for note in noted}):
        try:
            _remove_downloads(folder, [note for note in noted if note.folder == folder], removed)
        except OSError as error:
            raise Error(f"{folder}: cannot be removed: {files.reason(error)}") from error
    return removed


def _remove_downloads(folder: Path, noted: list[Note], removed: Removed) -> None:
    """All revisions at once: a blob that several of ours use is in the note of the first alone."""
    ours = {blob for note in noted for blob in note.blobs}
    commits = {note.commit for note in noted}
    links = [link for link in (folder / "snapshots").glob("*/**/*") if link.is_symlink()]
    start = len((folder / "snapshots").parts)
    used_elsewhere = {link.resolve().name for link in links if link.parts[start] not in commits}
    for link in links:
        if link.parts[start] in commits and link.resolve().name in ours:
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
    for note in noted:
        note.path.unlink()
        _remove_empty(folder, note.commit)


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
