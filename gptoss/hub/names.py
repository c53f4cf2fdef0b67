"""What a user may call a model, and which one that is. Nothing is looked up here."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gptoss.checkpoint import BUNDLED_MODEL
from gptoss.checkpoint import PREFIX as SYNTHETIC
from gptoss.errors import Error, shown

BUNDLED = "nano"
# Each published model, by its repository on the Hub, and what else people call it. A name with a
# colon is Ollama's.
KNOWN = {
    "openai/gpt-oss-20b": ("gpt-oss-20b", "gpt-oss:20b", "gpt-oss", "gpt-oss:latest"),
    "openai/gpt-oss-120b": ("gpt-oss-120b", "gpt-oss:120b"),
    "openai/gpt-oss-safeguard-20b": (
        *("gpt-oss-safeguard-20b", "gpt-oss-safeguard:20b"),
        *("gpt-oss-safeguard", "gpt-oss-safeguard:latest"),
    ),
    "openai/gpt-oss-safeguard-120b": ("gpt-oss-safeguard-120b", "gpt-oss-safeguard:120b"),
}
_BY_NAME = {name: repo for repo, names in KNOWN.items() for name in (repo, *names)}
EXPECTED = (
    f'a folder, a file, "{BUNDLED}", "gpt-oss-20b", "gpt-oss-120b", "owner/name" of the Hugging '
    f'Face Hub, or "{SYNTHETIC}gpt-oss-20b?layers=4"'
)
# https://github.com/huggingface/huggingface_hub: validate_repo_id
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"({_PART}/{_PART})")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_FILE = re.compile(r"(?!.*(?:^|/)\.)[A-Za-z0-9._/ -]{1,255}")
_WEIGHTS = (".safetensors", ".gguf")
_CLOSE = 0.7  # of difflib: "gpt-os-20b" is close to "gpt-oss-20b", "llama-3" is not
_CLOSE_OWNER = 0.75  # "opnai" is, "unsloth" is not


@dataclass(frozen=True)
class Reference:
    """A model that is named, not yet found.

    path: where it lies, of a local one; None of one on the Hub. synthetic: the description, of a
    model that is made up. repo, revision, file: on the Hub; file is None for all that the engine
    needs of it. name: what to call it in a server or a greeting.
    """

    name: str
    path: Path | None = None
    synthetic: str | None = None
    repo: str | None = None
    revision: str = "main"
    file: str | None = None


def parse(model: str | os.PathLike[str] | None) -> Reference:
    """Which model `model` means; None is the bundled one. What exists here goes before all names.

    Raises Error for what is no name, path or address, with the nearest name.
    """
    if model is None:
        return Reference(BUNDLED, path=BUNDLED_MODEL)
    text = os.fspath(model)
    if not isinstance(text, str):  # a path in bytes
        text = os.fsdecode(text)
    if text.startswith(SYNTHETIC):
        return Reference(text, synthetic=text)
    if not isinstance(model, str) or (text and exists(Path(text))):
        return _local(text)
    if text == BUNDLED:
        return Reference(BUNDLED, path=BUNDLED_MODEL)
    if text.startswith("~"):
        return _local(os.path.expanduser(text))
    if (repo := _BY_NAME.get(text.lower())) is not None:
        return Reference(short(repo), repo=repo)
    if text.startswith("hf:"):
        return _on_hub(text[3:], text)
    if text.startswith(("https://", "http://")):
        return _address(text)
    if text.startswith(("hf.co/", "huggingface.co/")):
        return _address(f"https://{text}")
    if _is_path(text):
        return _local(text)
    return _repository(text)


def short(repo: str) -> str:
    """The name of a repository without its owner."""
    return repo.rpartition("/")[2]


def nearest(text: str) -> str | None:
    """The known name that `text` is probably meant to be."""
    names = [BUNDLED, *_BY_NAME]
    found = difflib.get_close_matches(text.lower(), names, n=1, cutoff=_CLOSE)
    return found[0] if found else None


def exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a NUL in it
        return False


def _local(text: str) -> Reference:
    path = Path(text)
    # A folder's own name, even where it is given as "."; not the target of a link.
    return Reference(Path(os.path.abspath(text)).name or text, path=path)


def _is_path(text: str) -> bool:
    """Whether it reads as a path, though nothing is there."""
    if text.startswith(("/", "./", "../", "\\")) or text in (".", "..") or "\0" in text:
        return True
    if text.endswith(_WEIGHTS) or text.endswith("/"):
        return True
    first, slash, _ = text.partition("/")
    return bool(slash) and (text.count("/") > 1 or exists(Path(first)))


def _on_hub(rest: str, text: str) -> Reference:
    """ "owner/name", "owner/name@revision", "owner/name/FILE" and both."""
    rest, at, revision = rest.partition("@")
    owner, _, more = rest.partition("/")
    name, _, file = more.partition("/")
    return _checked(f"{owner}/{name}", revision if at else "main", file, text)


def _address(text: str) -> Reference:
    """A page of the Hub: of a repository, a revision of it, or a file."""
    address = urlsplit(text)
    ours = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").netloc
    if address.netloc not in ("huggingface.co", "www.huggingface.co", "hf.co", ours):
        raise Error(
            f"model: expected an address of huggingface.co, found {shown(text)}; files from "
            f"elsewhere are downloaded first, and named by their path",
            field="model",
        )
    parts = [unquote(part) for part in address.path.split("/") if part]
    revision, file = "main", ""
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
        revision, file = parts[3], "/".join(parts[4:]) if parts[2] != "tree" else ""
    elif len(parts) > 2:
        parts = []
    return _checked("/".join(parts[:2]), revision, file, text)


def _checked(repo: str, revision: str, file: str, text: str) -> Reference:
    good = _REPOSITORY.fullmatch(repo) and "--" not in repo and ".." not in repo
    if not good or not _REVISION.fullmatch(revision) or (file and not _FILE.fullmatch(file)):
        raise Error(
            f'model: expected "hf:owner/name", "hf:owner/name@revision" or '
            f'"hf:owner/name/file.gguf", found {shown(text)}',
            field="model",
        )
    return Reference(short(repo), repo=repo, revision=revision, file=file or None)


def _repository(text: str) -> Reference:
    """A bare "owner/name", unless it looks like a known one that is misspelt."""
    repo, at, revision = text.partition("@")
    if repo.lower() in _BY_NAME and at:
        return _checked(_BY_NAME[repo.lower()], revision, "", text)
    if _REPOSITORY.fullmatch(repo) is None:
        raise _unknown(text)
    owner, _, name = repo.partition("/")
    known = {"openai"}
    if owner.lower() in known or difflib.get_close_matches(
        owner.lower(), known, cutoff=_CLOSE_OWNER
    ):
        meant = nearest(repo) or nearest(name)
        if owner.lower() not in known or meant is not None:
            # A misspelt name may be a stranger's repository.
            raise _unknown(text, f" To fetch that very repository: hf:{text}")
    return _checked(repo, revision if at else "main", "", text)


def _unknown(text: str, more: str = "") -> Error:
    near = next(_near_files(text), None)
    meant = nearest(text) or nearest(text.rpartition("/")[2]) or near
    if meant is not None:
        message = f"model: nothing is called {shown(text)}: did you mean {meant}?{more}"
    else:
        message = f"model: expected {EXPECTED}, found {shown(text)}{more}"
    return Error(message, field="model")


def _near_files(text: str) -> Iterator[str]:
    """What lies where `text` would, under nearly the same name."""
    place = Path(text)
    try:
        there = [path.name for path in place.parent.iterdir()]
    except (OSError, ValueError):
        return
    for name in difflib.get_close_matches(place.name, there, n=1, cutoff=_CLOSE):
        yield str(place.parent / name)


def missing(path: Path) -> Error:
    """The error for a path with nothing there."""
    guess = next(_near_files(str(path)), None) or nearest(path.name)
    hint = f"; did you mean {guess}?" if guess else ""
    return Error(
        f"model: expected a folder or a file, found nothing at {path}{hint}", field="model"
    )
