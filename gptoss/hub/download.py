"""Fetching a model from the Hugging Face Hub into the cache that all tools share.

Only what the engine reads is fetched: one layout of the weights, the configuration, the tokenizer.
Unlike huggingface_hub's own downloads, which begin a file anew after every interruption, these go
on where they were broken off, in another process too, and every file is checked against the hash
that the Hub names. The cache's layout is documented:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from gptoss import files
from gptoss.errors import Error
from gptoss.hub import notes, places
from gptoss.hub.names import Reference
from gptoss.hub.refusals import TIMEOUT, TryAgain, endpoint, explained
from gptoss.hub.repository import (
    GIT_SHA1,
    SHA256,
    SMALL,
    RepoFile,
    check_kind,
    choose,
    describe,
    is_weights,
    without_strays,
)

Tell = Callable[[str], None]
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

_SPARE = 1 << 28  # bytes that stay free on the disk
_CHUNK = 1 << 20
_ATTEMPTS = 5  # without a byte between them
_PAUSE = 1.0  # seconds before the second attempt, doubled each time
_LONGEST_PAUSE = 60.0  # seconds; a server that asks for more is not waited for


def fetch(reference: Reference, tell: Tell, progress: Progress | None = None) -> places.Place:
    """A model of the Hub, downloaded unless all of it is here; what is fetched is written down.

    tell: called with a line on what goes on. progress: with (bytes done, bytes in all).
    Raises Error: no such repository, no permission, no room, no network, a damaged file.
    """
    assert reference.repo is not None
    commit, all_files, architecture = describe(reference)
    wanted = choose(reference, all_files, architecture)
    folder = places.repository_folder(reference.repo)
    try:
        return _fetch_all(reference, commit, wanted, folder, tell, progress)
    except OSError as error:
        raise Error(f"{folder}: cannot be written: {files.reason(error)}") from error


def _fetch_all(
    reference: Reference,
    commit: str,
    wanted: list[RepoFile],
    folder: Path,
    tell: Tell,
    progress: Progress | None,
) -> places.Place:
    repo = reference.repo
    assert repo is not None
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    whole = _Downloads(reference, commit, folder, tell, progress)
    # The small ones say what the model is, before much is fetched.
    for file in [file for file in wanted if not is_weights(file.name)]:
        whole.get(file)
    check_kind(repo, folder, wanted)
    wanted = without_strays(folder, wanted)
    whole.plan([file for file in wanted if is_weights(file.name)])
    for file in wanted:
        whole.get(file)
    for file in wanted:
        _link(snapshot / file.name, folder / "blobs" / file.blob)
    if not GIT_SHA1.fullmatch(reference.revision):
        with notes.locked():
            _refer(folder / "refs" / reference.revision, commit)
    ggufs = [file for file in wanted if file.name.endswith(".gguf")]
    path = snapshot / ggufs[0].name if ggufs else snapshot
    return places.Place(path, places.HUB, repo)


class _Downloads:
    """Files of one revision, each brought into the repository's folder under its hash."""

    def __init__(
        self,
        reference: Reference,
        commit: str,
        folder: Path,
        tell: Tell,
        progress: Progress | None,
    ) -> None:
        self._reference = replace(reference, revision=commit)
        self._blobs = folder / "blobs"
        self._tell = tell
        self._progress = progress
        self._done = self._total = 0
        self._counted: set[str] = set()  # in _done

    def plan(self, planned: list[RepoFile]) -> None:
        """What is still to come, said before it does. Raises Error where the disk has no room."""
        self._counted = {file.blob for file in planned if self._has(file)}
        here = sum(file.nbytes for file in planned if file.blob in self._counted)
        begun = sum(self._begun(file) for file in planned if not self._has(file))
        self._total = sum(file.nbytes for file in planned)
        self._done = here
        missing = self._total - here - begun
        if not missing:
            return
        free = shutil.disk_usage(self._blobs).free
        if missing + _SPARE > free:
            raise Error(
                f"{self._reference.repo}: expected {_gigabytes(missing + _SPARE)} of free disk "
                f"space in {self._blobs.parent}, found {_gigabytes(free)}; HF_HOME names another "
                f"place for downloads"
            )
        again = f", {_gigabytes(here + begun)} of it are here" if here + begun else ""
        self._tell(
            f"downloading {self._reference.repo} ({_gigabytes(self._total)}{again}) "
            f"into {files.short_path(self._blobs.parent)}"
        )

    def get(self, file: RepoFile) -> None:
        """Bring one file, going on with what there is of it. Raises Error."""
        if not self._has(file):
            self._bring(file)
        if is_weights(file.name) and file.blob not in self._counted:
            self._counted.add(file.blob)
            self._done += file.nbytes

    def _bring(self, file: RepoFile) -> None:
        repo = self._reference.repo
        assert repo is not None
        if not is_weights(file.name) and file.nbytes > SMALL:
            raise Error(f"{repo}: {file.name}: expected at most {SMALL} bytes, found {file.nbytes}")
        with self._partial(file) as partial:
            if partial is None:  # another process has brought it meanwhile
                return
            notes.add(repo, self._blobs.parent, self._reference.revision, file.blob)
            self._fill(file, partial)
            partial.flush()
            os.fsync(partial.fileno())
            self._path(file).with_suffix(".incomplete").rename(self._path(file))

    def _path(self, file: RepoFile) -> Path:
        return self._blobs / file.blob

    def _has(self, file: RepoFile) -> bool:
        """Whether it is here in full; one of another size stays until a right one replaces it."""
        try:
            found = self._path(file).stat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == file.nbytes

    def _begun(self, file: RepoFile) -> int:
        try:
            begun = self._path(file).with_suffix(".incomplete").stat().st_size
        except FileNotFoundError:
            return 0
        return min(begun, file.nbytes)

    @contextmanager
    def _partial(self, file: RepoFile) -> Iterator[BinaryIO | None]:
        """What there is of a file, locked; None where another process completed it first."""
        path = self._path(file).with_suffix(".incomplete")
        while True:
            with path.open("a+b") as partial:
                self._lock(partial, file)
                # While we waited, it may have been completed, which gave it another name.
                ours = _is_at(partial, path)
                if self._has(file):
                    if ours:
                        path.unlink()
                    yield None
                    return
                if ours:
                    yield partial
                    return

    def _lock(self, partial: BinaryIO, file: RepoFile) -> None:
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            self._tell(f"{file.name}: waiting for another process that downloads it")
        except OSError:  # a file system without locks
            return
        fcntl.flock(partial, fcntl.LOCK_EX)

    def _fill(self, file: RepoFile, partial: BinaryIO) -> None:
        """Append what is missing, again after interruptions, and check the whole."""
        growing = _Growing(file, partial)
        attempts, pause, most = 0, _PAUSE, 0
        while growing.nbytes < file.nbytes:
            try:
                with explained(self._reference):
                    self._append(file, growing)
            except TryAgain as error:
                if growing.nbytes > most:
                    attempts, pause, most = 0, _PAUSE, growing.nbytes
                else:
                    attempts += 1
                if attempts >= _ATTEMPTS:
                    raise Error(
                        f"{self._reference.repo}: {file.name}: broken off after "
                        f"{growing.nbytes} of {file.nbytes} bytes: {error}; the same command goes "
                        f"on from there"
                    ) from None
                time.sleep(max(error.pause, pause if attempts else 0.0))
                if attempts:
                    pause = min(2 * pause, _LONGEST_PAUSE)
        found = growing.hash()
        if found != file.blob:
            growing.clear()
            raise Error(
                f"{self._reference.repo}: {file.name}: expected the hash {file.blob[:12]}…, found "
                f"{found[:12]}…: what came is damaged, and was thrown away"
            )

    def _append(self, file: RepoFile, growing: _Growing) -> None:
        """One request for all that is missing."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        repo = self._reference.repo
        assert repo is not None
        url = hf_hub_url(repo, file.name, revision=self._reference.revision, endpoint=endpoint())
        # Compressed on the way, a file would have other offsets.
        headers = {**build_hf_headers(library_name="gptoss"), "Accept-Encoding": "identity"}
        if growing.nbytes:
            headers["Range"] = f"bytes={growing.nbytes}-"
        session = get_session()
        with session.stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT
        ) as answer:
            if answer.status_code in (408, 429) or answer.status_code >= 500:
                raise TryAgain(f"the Hub answers {answer.status_code}", _asked_pause(answer))
            if answer.status_code == 416:
                growing.clear()
                raise TryAgain("the Hub has no such part of the file")
            hf_raise_for_status(answer)
            begin = _begin_of(answer)
            if begin != growing.nbytes:
                if begin != 0:
                    raise TryAgain(f"expected bytes from {growing.nbytes} on, found {begin}")
                growing.clear()
            for chunk in answer.iter_raw():
                if growing.nbytes + len(chunk) > file.nbytes:
                    growing.clear()
                    raise Error(
                        f"{repo}: {file.name}: expected {file.nbytes} bytes, as the Hub says, "
                        f"found more"
                    )
                growing.append(chunk)
                if self._progress is not None and self._total:
                    self._progress(self._done + growing.nbytes, self._total)
        if growing.nbytes < file.nbytes:
            raise TryAgain("the connection ended")


class _Growing:
    """A file that comes in pieces, and the hash of what there is of it."""

    def __init__(self, file: RepoFile, opened: BinaryIO) -> None:
        self._file = file
        self._opened = opened
        self._digest = _new_digest(file)
        self.nbytes = 0
        opened.seek(0)
        while chunk := opened.read(_CHUNK):
            self._digest.update(chunk)
            self.nbytes += len(chunk)
        if self.nbytes > file.nbytes:
            self.clear()

    def append(self, chunk: bytes) -> None:
        self._opened.write(chunk)
        self._digest.update(chunk)
        self.nbytes += len(chunk)

    def clear(self) -> None:
        self._opened.truncate(0)
        self._digest = _new_digest(self._file)
        self.nbytes = 0

    def hash(self) -> str:
        found: str = self._digest.hexdigest()
        return found


def _is_at(opened: BinaryIO, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _new_digest(file: RepoFile) -> Any:
    """sha256 of large files; of others git's name for them, the sha1 of a header and the bytes."""
    if SHA256.fullmatch(file.blob):
        return hashlib.sha256()
    return hashlib.sha1(f"blob {file.nbytes}\0".encode(), usedforsecurity=False)


def _begin_of(answer: Any) -> int:
    """The offset of the first byte of an answer's body in its file."""
    if answer.status_code != 206:
        return 0
    match = re.fullmatch(r"bytes (\d{1,19})-\d+/.*", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _asked_pause(answer: Any) -> float:
    asked = answer.headers.get("Retry-After", "")
    seconds = float(asked) if re.fullmatch(r"\d{1,9}", asked) else 0.0
    if seconds > _LONGEST_PAUSE:
        raise Error(
            f"the Hub answers {answer.status_code} and asks to come again in {seconds:.0f} s"
        )
    return seconds


# ---- In the cache


def _link(path: Path, blob: Path) -> None:
    """The name of a blob in a snapshot, as Hugging Face's own library makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        return
    path.unlink(missing_ok=True)
    with suppress(FileExistsError):  # another process made it in this moment
        path.symlink_to(os.path.relpath(blob, path.parent))


def _refer(ref: Path, commit: str) -> None:
    """Say which commit a branch is; nothing is written where that is said already."""
    with suppress(OSError):
        if ref.read_bytes() == commit.encode():
            return
    ref.parent.mkdir(parents=True, exist_ok=True)
    files.write_in_one_piece(ref, lambda out: out.write(commit.encode()))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
