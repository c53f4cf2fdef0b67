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
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from gptoss import files
from gptoss.checkpoint import INDEX
from gptoss.errors import Error, shown
from gptoss.hub import notes, places
from gptoss.hub.names import Reference
from gptoss.tokenizer.files import NAMES as TOKENIZER_FILES

Tell = Callable[[str], None]
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

CONFIG = "config.json"
_PLAIN = re.compile(r"(?:original/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_MAX_BYTES = 1 << 44  # of one file; more is a lie
_SMALL = 1 << 26  # bytes of a configuration or a tokenizer
_SPARE = 1 << 28  # bytes that stay free on the disk
_CHUNK = 1 << 20
_ATTEMPTS = 5  # without a byte between them
_PAUSE = 1.0  # seconds before the second attempt, doubled each time
_LONGEST_PAUSE = 60.0  # seconds; a server that asks for more is not waited for
_TIMEOUT = 30.0  # seconds without a byte
# GGUF files of one repository, the best for this engine first.
_GGUF_KINDS = ("mxfp4", "bf16", "f16", "q8_0")


@dataclass(frozen=True)
class _File:
    """A file of a repository. blob: its name in the cache, sha256 (of large ones) or git's sha1."""

    name: str
    nbytes: int
    blob: str


def fetch(reference: Reference, tell: Tell, progress: Progress | None = None) -> places.Place:
    """A model of the Hub, downloaded unless all of it is here; what is fetched is written down.

    tell: called with a line on what goes on. progress: with (bytes done, bytes in all).
    Raises Error: no such repository, no permission, no room, no network, a damaged file.
    """
    assert reference.repo is not None
    commit, all_files, architecture = _ask(reference)
    wanted = _choose(reference, all_files, architecture)
    folder = places.repository_folder(reference.repo)
    try:
        return _fetch_all(reference, commit, wanted, folder, tell, progress)
    except OSError as error:
        raise Error(f"{folder}: cannot be written: {files.reason(error)}") from error


def _fetch_all(
    reference: Reference,
    commit: str,
    wanted: list[_File],
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
    for file in [file for file in wanted if not _is_weights(file.name)]:
        whole.get(file)
    _check_kind(repo, folder, wanted)
    wanted = _without_strays(folder, wanted)
    whole.plan([file for file in wanted if _is_weights(file.name)])
    for file in wanted:
        whole.get(file)
    for file in wanted:
        _link(snapshot / file.name, folder / "blobs" / file.blob)
    if not _GIT_SHA1.fullmatch(reference.revision):
        with notes.locked():
            _refer(folder / "refs" / reference.revision, commit)
    ggufs = [file for file in wanted if file.name.endswith(".gguf")]
    path = snapshot / ggufs[0].name if ggufs else snapshot
    return places.Place(path, places.HUB, repo)


# ---- What there is


def _ask(reference: Reference) -> tuple[str, dict[str, _File], str | None]:
    """The commit of a revision, its files, and what the Hub takes a GGUF repository for."""
    from huggingface_hub import HfApi

    repo = reference.repo
    assert repo is not None
    api = HfApi(endpoint=_endpoint(), library_name="gptoss")
    try:
        with _explained(reference):
            info = api.model_info(
                repo, revision=reference.revision, files_metadata=True, timeout=_TIMEOUT
            )
    except _TryAgain as error:
        raise Error(f"{repo}: {_endpoint()} cannot be reached: {error}") from None
    except Error:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # A page that asks for a login, as hotels have it, or a server that is no Hub.
        raise Error(
            f"{repo}: expected {_endpoint()} to describe the repository, found something else "
            f"({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from None
    commit = str(info.sha)
    if not _GIT_SHA1.fullmatch(commit):
        raise Error(f"{repo}: expected the Hub to name a commit, found {shown(info.sha)}")
    found = {}
    for sibling in info.siblings or ():
        name, large = sibling.rfilename, sibling.lfs
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            continue  # in a folder that is none of ours, or a name that means to reach outside
        nbytes = large.size if large is not None else sibling.size
        blob = large.sha256 if large is not None else sibling.blob_id
        pattern = _SHA256 if large is not None else _GIT_SHA1
        if type(nbytes) is not int or not 0 <= nbytes < _MAX_BYTES:
            continue
        if isinstance(blob, str) and pattern.fullmatch(blob):
            found[name] = _File(name, nbytes, blob)
    described = getattr(info, "gguf", None)
    architecture = described.get("architecture") if isinstance(described, dict) else None
    return commit, found, architecture if isinstance(architecture, str) else None


def _choose(reference: Reference, found: dict[str, _File], architecture: str | None) -> list[_File]:
    """What the engine needs of a repository; neither `metal/` nor a second layout."""
    repo = reference.repo
    if reference.file is not None:
        return _chosen_file(reference, found)
    top = [name for name in found if "/" not in name]
    vocabulary = [name for name in TOKENIZER_FILES if name in found]
    vocabulary += [name for name in top if name.endswith(".tiktoken")]
    shards = [name for name in top if name.endswith(".safetensors")]
    if shards and CONFIG in found:
        index = [INDEX] if INDEX in found else []
        return [found[name] for name in [CONFIG, *index, *vocabulary, *shards]]
    shards = [name for name in found if re.fullmatch(r"original/.*\.safetensors", name)]
    original = [name for name in (f"original/{CONFIG}", f"original/{INDEX}")
                if name in found]  # fmt: skip
    if shards and original:
        return [found[name] for name in [*original, *vocabulary, *shards]]
    ggufs = [name for name in top if name.endswith(".gguf")]
    if not ggufs:
        listed = ", ".join(sorted(found)[:8]) or "no file that could be read"
        raise Error(f"{repo}: expected a model in safetensors or GGUF files, found {listed}")
    if architecture not in (None, "gpt-oss", "gptoss"):
        raise _other_kind(repo or "", architecture)
    return [found[name] for name in _chosen_gguf(reference, ggufs)]


def _chosen_file(reference: Reference, found: dict[str, _File]) -> list[_File]:
    assert reference.file is not None
    names = [path.name for path in places.parts_of(Path(reference.file))]
    missing = [name for name in names if name not in found]
    if not reference.file.endswith(".gguf"):
        raise Error(
            f"model: expected a .gguf file or a whole repository (hf:{reference.repo}), found "
            f"{shown(reference.file)}",
            field="model",
        )
    if missing:
        there = ", ".join(sorted(name for name in found if name.endswith(".gguf"))) or "none"
        raise Error(f"{reference.repo}: no file is called {missing[0]}; GGUF files there: {there}")
    return [found[name] for name in names]


def _chosen_gguf(reference: Reference, ggufs: list[str]) -> list[str]:
    """One model of several in a repository: the names of its files."""
    firsts = sorted({places.parts_of(Path(name))[0].name for name in ggufs})
    for kind in _GGUF_KINDS:
        of_kind = [name for name in firsts if kind in name.lower()]
        if len(of_kind) == 1:
            firsts = of_kind
            break
    if len(firsts) != 1:
        raise Error(
            f"{reference.repo}: holds several models; expected one of them by name, such as "
            f"hf:{reference.repo}/{firsts[0]}; found {', '.join(firsts[:8])}"
        )
    names = [path.name for path in places.parts_of(Path(firsts[0]))]
    missing = [name for name in names if name not in ggufs]
    if missing:
        raise Error(
            f"{reference.repo}: {firsts[0]} is one part of several; {missing[0]} is missing"
        )
    return names


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


def _check_kind(repo: str, folder: Path, wanted: list[_File]) -> None:
    """Raise Error for a model of another architecture before its weights are fetched."""
    for file in wanted:
        if file.name.endswith(CONFIG) and not file.name.endswith("_" + CONFIG):
            found = files.read_object(folder / "blobs" / file.blob).get("model_type", "gpt_oss")
            if found != "gpt_oss":
                raise _other_kind(repo, found)


def _other_kind(repo: str, found: object) -> Error:
    return Error(f"{repo}: expected a gpt-oss model, found one of type {shown(found)}")


def _without_strays(folder: Path, wanted: list[_File]) -> list[_File]:
    """Only the shards that the index names: some repositories hold another copy in one file."""
    index = next((file for file in wanted if file.name.endswith(INDEX)), None)
    if index is None:
        return wanted
    prefix = index.name.removesuffix(INDEX)
    weight_map = files.read_object(folder / "blobs" / index.blob, _SMALL).get("weight_map")
    named = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    named = {prefix + name for name in named}
    absent = sorted(named - {file.name for file in wanted})
    if absent or not named:
        raise Error(
            f"{index.name}: names {shown(absent[0]) if absent else 'no shard'}, which the "
            f"repository does not have"
        )
    return [file for file in wanted if not _is_weights(file.name) or file.name in named]


# ---- Fetching


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

    def plan(self, planned: list[_File]) -> None:
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

    def get(self, file: _File) -> None:
        """Bring one file, going on with what there is of it. Raises Error."""
        if not self._has(file):
            self._bring(file)
        if _is_weights(file.name) and file.blob not in self._counted:
            self._counted.add(file.blob)
            self._done += file.nbytes

    def _bring(self, file: _File) -> None:
        repo = self._reference.repo
        assert repo is not None
        if not _is_weights(file.name) and file.nbytes > _SMALL:
            raise Error(
                f"{repo}: {file.name}: expected at most {_SMALL} bytes, found {file.nbytes}"
            )
        with self._partial(file) as partial:
            if partial is None:  # another process has brought it meanwhile
                return
            notes.add(repo, self._blobs.parent, self._reference.revision, file.blob)
            self._fill(file, partial)
            partial.flush()
            os.fsync(partial.fileno())
            self._path(file).with_suffix(".incomplete").rename(self._path(file))

    def _path(self, file: _File) -> Path:
        return self._blobs / file.blob

    def _has(self, file: _File) -> bool:
        """Whether it is here in full; one of another size stays until a right one replaces it."""
        try:
            found = self._path(file).stat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == file.nbytes

    def _begun(self, file: _File) -> int:
        try:
            begun = self._path(file).with_suffix(".incomplete").stat().st_size
        except FileNotFoundError:
            return 0
        return min(begun, file.nbytes)

    @contextmanager
    def _partial(self, file: _File) -> Iterator[BinaryIO | None]:
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

    def _lock(self, partial: BinaryIO, file: _File) -> None:
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            self._tell(f"{file.name}: waiting for another process that downloads it")
        except OSError:  # a file system without locks
            return
        fcntl.flock(partial, fcntl.LOCK_EX)

    def _fill(self, file: _File, partial: BinaryIO) -> None:
        """Append what is missing, again after interruptions, and check the whole."""
        growing = _Growing(file, partial)
        attempts, pause, most = 0, _PAUSE, 0
        while growing.nbytes < file.nbytes:
            try:
                with _explained(self._reference):
                    self._append(file, growing)
            except _TryAgain as error:
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

    def _append(self, file: _File, growing: _Growing) -> None:
        """One request for all that is missing."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        repo = self._reference.repo
        assert repo is not None
        url = hf_hub_url(repo, file.name, revision=self._reference.revision, endpoint=_endpoint())
        # Compressed on the way, a file would have other offsets.
        headers = {**build_hf_headers(library_name="gptoss"), "Accept-Encoding": "identity"}
        if growing.nbytes:
            headers["Range"] = f"bytes={growing.nbytes}-"
        session = get_session()
        with session.stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT
        ) as answer:
            if answer.status_code in (408, 429) or answer.status_code >= 500:
                raise _TryAgain(f"the Hub answers {answer.status_code}", _asked_pause(answer))
            if answer.status_code == 416:
                growing.clear()
                raise _TryAgain("the Hub has no such part of the file")
            hf_raise_for_status(answer)
            begin = _begin_of(answer)
            if begin != growing.nbytes:
                if begin != 0:
                    raise _TryAgain(f"expected bytes from {growing.nbytes} on, found {begin}")
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
            raise _TryAgain("the connection ended")


class _Growing:
    """A file that comes in pieces, and the hash of what there is of it."""

    def __init__(self, file: _File, opened: BinaryIO) -> None:
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


class _TryAgain(Exception):
    """What may be over in a moment. pause: seconds that the server asks for."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


def _new_digest(file: _File) -> Any:
    """sha256 of large files; of others git's name for them, the sha1 of a header and the bytes."""
    if _SHA256.fullmatch(file.blob):
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


@contextmanager
def _explained(reference: Reference) -> Iterator[None]:
    """The Hub's refusals as Error, and what may be over in a moment as _TryAgain."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = reference.repo
    # Its HTTP client is httpx in version 1, and httpx2 in version 2.
    client = sys.modules[type(get_session()).__module__.partition(".")[0]]
    try:
        yield
    except _TryAgain:
        raise
    except GatedRepoError:
        raise Error(
            f"{repo}: is given only to those who agreed to its terms: do so at "
            f"{_endpoint()}/{repo}, and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise Error(
            f"{repo}: the Hub has no such repository, or shows it only to those who may see it "
            f"(HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise Error(f"{repo}: has no revision {shown(reference.revision)}") from None
    except HfHubHTTPError as error:
        raise Error(f"{repo}: the Hub refuses: {' '.join(str(error).split())[:300]}") from None
    except (client.TransportError, ConnectionError) as error:
        raise _TryAgain(f"{type(error).__name__}: {error}") from None


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


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
