"""Datasets of the Hugging Face Hub: which files they have, and fetching the ones we can read.

The Hub's HTTP interface, as its own documentation describes it: `/api/datasets/NAME/revision/REV`
names the commit, `/api/datasets/NAME/tree/COMMIT` lists the files with their sizes and digests, and
`/datasets/NAME/resolve/COMMIT/FILE` gives one. Environment: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE,
XDG_CACHE_HOME.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from gptoss.errors import Error, shown
from gptoss.train.data import download
from gptoss.train.data.download import DEFAULT, Expected, Patience, Refused, Unreachable

ENDPOINT = "https://huggingface.co"
CONVERTED = "refs/convert/parquet"  # where the Hub keeps a Parquet copy of most datasets
# What we can read, best first.
_KINDS = (
    re.compile(r"\.parquet$", re.I),
    re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.I),
    re.compile(r"\.txt(\.gz)?$", re.I),
)
_NO_DATA = re.compile(r"(^|/)(\.|licen[cs]e|readme|requirements|notice)[^/]*$", re.I)
_NAME = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<part>[\w.-]+(/[\w.-]+)*))?"
)


@dataclass(frozen=True)
class Dataset:
    """A dataset's `name` (owner/name), `revision`, and the `part` of its files that is wanted."""

    name: str
    revision: str
    part: tuple[str, ...]


@dataclass(frozen=True)
class RemoteFile:
    """One file of a dataset, at `path` below its top."""

    path: str
    expected: Expected


@dataclass(frozen=True)
class Fetched:
    """`files` of a dataset on this machine, and the `commit` they are from."""

    name: str
    commit: str
    files: list[Path]


def parse(place: str) -> Dataset | None:
    """What ``owner/name[@revision][:part/…]`` means; None where it is not written like that."""
    match = _NAME.fullmatch(place)
    if match is None or match["name"].startswith((".", "-")) or "/." in place:
        return None
    part = tuple(match["part"].split("/")) if match["part"] else ()
    return Dataset(match["name"], match["revision"] or "main", part)


def is_dataset(place: str) -> bool:
    """Whether `place` names a dataset and no file or folder here."""
    return parse(place) is not None and not Path(place).exists()


def cache_directory() -> Path:
    """Where fetched files stay: XDG_CACHE_HOME/gptoss/datasets, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptoss" / "datasets"


def resolve(
    place: str, cache: Path | None, progress: Callable[[str, int, int], None] | None
) -> list[Path] | None:
    """The files of dataset `place`, fetched; None where it is not the name of one, or is a path."""
    if not is_dataset(place):
        return None

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(f"fetching {place}", done, total)

    return fetch(place, cache, progress=report).files


def fetch(
    place: str,
    cache: Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    patience: Patience = DEFAULT,
) -> Fetched:
    """Brings the files of the dataset `place` (see `parse`) into `cache`, and says where they are.

    Parquet files are chosen where there are any, else JSON lines, else texts. Of these, the ones
    with every word of `part` in their path; without a part, the ones of the split "train" if there
    is one. A file that broke off goes on where it stopped, now or in a later call; each is checked
    by size and digest. What was fetched before is taken without a network. `progress` gets bytes
    of the whole. Raises Error for anything missing, refused, damaged or out of reach.
    """
    dataset = parse(place)
    if dataset is None:
        raise Error(f"dataset: expected owner/name[@revision][:part], found {shown(place)}")
    home = (cache or cache_directory()) / dataset.name.replace("/", "--")
    commit, listing = _listing(dataset, home, patience)
    chosen = choose(dataset, listing)
    total = sum(file.expected.size for file in chosen)
    files: list[Path] = []
    done = 0
    for file in chosen:
        before = done

        def report(now: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + now, total)

        target = home / commit / file.path
        if _offline() and not target.is_file():
            raise Error(f"{place}: {file.path} is not in {home}, and HF_HUB_OFFLINE is set")
        url = f"{_endpoint()}/datasets/{dataset.name}/resolve/{commit}/{quote(file.path)}"
        try:
            path = download.fetch(
                url, target, file.expected, token=_token(), patience=patience, progress=report
            )
        except Refused as error:
            raise _explained(dataset, error) from None
        files.append(path)
        done += file.expected.size
    return Fetched(dataset.name, commit, files)


def choose(dataset: Dataset, listing: Sequence[RemoteFile]) -> list[RemoteFile]:
    """The files to read, in order of their paths. Raises Error where it is not clear which."""
    wanted = []
    for kind in _KINDS:
        files = [f for f in listing if kind.search(f.path) and not _NO_DATA.search(f.path)]
        wanted = [f for f in files if all(_has_word(f.path, word) for word in dataset.part)]
        if wanted:
            break
    if not wanted:
        about = f" with {'/'.join(dataset.part)} in their path" if dataset.part else ""
        raise Error(
            f"{dataset.name}: expected .parquet, .jsonl or .txt files{about}, found "
            f"{_some([f.path for f in listing])}"
        )
    if not dataset.part:
        train = [file for file in wanted if _has_word(file.path, "train")]
        wanted = train or wanted
        folders = sorted({str(PurePosixPath(file.path).parent) for file in wanted})
        if len(folders) > 1:
            raise Error(
                f"{dataset.name}: expected the files of one folder, found {_some(folders)}; name "
                f"the one you want, such as {dataset.name}:{folders[0]}"
            )
    return sorted(wanted, key=lambda file: file.path)


def _has_word(path: str, word: str) -> bool:
    """Whether `word` stands in `path` between separators, as in data/train-00000-of-00004."""
    return re.search(rf"(?<![a-zA-Z0-9]){re.escape(word)}(?![a-zA-Z0-9])", path) is not None


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(shown(name) for name in names[:most]) or "none") + more


# What the Hub says.


def _listing(dataset: Dataset, home: Path, patience: Patience) -> tuple[str, list[RemoteFile]]:
    """The commit of the revision and its files; the last known ones where no answer comes now."""
    kept = home / f"{dataset.revision.replace('/', '--')}.json"
    if not _offline():
        try:
            found = _ask(dataset, patience)
        except Unreachable as error:
            if not kept.is_file():
                raise Error(
                    f"{dataset.name}: the Hugging Face Hub is out of reach, and nothing of this "
                    f"dataset was fetched before: {error}"
                ) from None
        else:
            _keep(kept, found)
    if not kept.is_file():
        raise Error(f"{dataset.name}: nothing of it is in {home}, and HF_HUB_OFFLINE is set")
    try:
        told = json.loads(kept.read_bytes())
        files = [_remote_file(entry, dataset.name) for entry in told["files"]]
        return _commit(told, dataset.name), files
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, Error):
            raise
        raise Error(f"{kept}: expected a list of files, found {error}; delete it") from None


def _ask(dataset: Dataset, patience: Patience) -> dict[str, Any]:
    """{"sha": commit, "files": the entries of the tree} as the Hub has them now."""
    try:
        found = _tree(dataset.name, dataset.revision, patience)
    except Refused as error:
        raise _explained(dataset, error) from None
    paths = [str(entry.get("path")) for entry in found["files"]]
    if dataset.revision == "main" and not any(k.search(p) for k in _KINDS for p in paths):
        try:  # data in another form, or a script that makes it: the Hub's own copy
            return _tree(dataset.name, CONVERTED, patience)
        except Refused:
            pass
    return found


def _tree(name: str, revision: str, patience: Patience) -> dict[str, Any]:
    api = f"{_endpoint()}/api/datasets/{name}"
    data, _ = download.read(f"{api}/revision/{quote(revision, safe='')}", _token(), patience)
    commit = _commit(_json(data, api), name)
    url = f"{api}/tree/{commit}?recursive=true"
    files: list[Any] = []
    while url:
        data, link = download.read(url, _token(), patience)
        page = _json(data, url)
        if not isinstance(page, list):
            raise Error(f"{url}: expected a list of files, found {shown(page)}")
        files += [e for e in page if isinstance(e, dict) and e.get("type") == "file"]
        following = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', link)
        url = following[1] if following else ""
        if url and not url.startswith(_endpoint() + "/"):  # it would get our token
            raise Error(f"{api}: expected the next page below {_endpoint()}, found {shown(url)}")
    return {"sha": commit, "files": files}


def _json(data: bytes, what: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise Error(f"{what}: expected JSON, found {shown(data[:60])}: is it the Hub?") from None


def _commit(told: Any, name: str) -> str:
    commit = told.get("sha") if isinstance(told, dict) else None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise Error(f"{name}: expected the commit of the dataset, found {shown(commit)}")
    return commit


def _remote_file(entry: dict[str, Any], name: str) -> RemoteFile:
    """An entry of the Hub's tree, checked: it decides where on this disk we write."""
    path, lfs = entry.get("path"), entry.get("lfs") or {}
    pure = PurePosixPath(path) if isinstance(path, str) and path else None
    if pure is None or pure.is_absolute() or ".." in pure.parts or "\\" in str(pure):
        raise Error(f"{name}: expected the path of a file below it, found {shown(path)}")
    size = lfs.get("size", entry.get("size"))
    digest, length = (lfs.get("oid"), 64) if lfs else (entry.get("oid"), 40)
    if type(size) is not int or size < 0:
        raise Error(f"{name}: {path}: expected a size in bytes, found {shown(size)}")
    if not isinstance(digest, str) or not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
        raise Error(f"{name}: {path}: expected a digest, found {shown(digest)}")
    return RemoteFile(str(pure), Expected(size, **{"sha256" if lfs else "blob": digest}))


def _keep(path: Path, told: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(told))
    os.replace(beside, path)


def _explained(dataset: Dataset, error: Refused) -> Error:
    if error.status in (401, 403):
        state = "the token in HF_TOKEN does not open it" if _token() else "HF_TOKEN is not set"
        return Error(
            f"{dataset.name}: expected a public dataset of this name, found one that is private, "
            f"gated or not there ({state}): {error}"
        )
    if error.status == 404:
        return Error(
            f"{dataset.name}: expected a dataset with a revision {dataset.revision!r} on the "
            f"Hugging Face Hub, found none: {error}"
        )
    return error


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def _token() -> str:
    return os.environ.get("HF_TOKEN", "").strip()


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
