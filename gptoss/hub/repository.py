"""What a repository of the Hub holds, and which of its files the engine needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptoss import files
from gptoss.checkpoint import INDEX
from gptoss.errors import Error, shown
from gptoss.hub import places
from gptoss.hub.names import Reference
from gptoss.hub.refusals import TIMEOUT, TryAgain, endpoint, explained
from gptoss.tokenizer.files import NAMES as TOKENIZER_FILES

CONFIG = "config.json"
SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
SMALL = 1 << 26  # bytes of a configuration or a tokenizer
_PLAIN = re.compile(r"(?:original/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")
_MAX_BYTES = 1 << 44  # of one file; more is a lie
# GGUF files of one repository, the best for this engine first.
_GGUF_KINDS = ("mxfp4", "bf16", "f16", "q8_0")


@dataclass(frozen=True)
class RepoFile:
    """A file of a repository. blob: its name in the cache, sha256 (of large ones) or git's sha1."""

    name: str
    nbytes: int
    blob: str


def describe(reference: Reference) -> tuple[str, dict[str, RepoFile], str | None]:
    """The commit of a revision, its files, and what the Hub takes a GGUF repository for."""
    from huggingface_hub import HfApi

    repo = reference.repo
    assert repo is not None
    api = HfApi(endpoint=endpoint(), library_name="gptoss")
    try:
        with explained(reference):
            info = api.model_info(
                repo, revision=reference.revision, files_metadata=True, timeout=TIMEOUT
            )
    except TryAgain as error:
        raise Error(f"{repo}: {endpoint()} cannot be reached: {error}") from None
    except Error:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # A page that asks for a login, as hotels have it, or a server that is no Hub.
        raise Error(
            f"{repo}: expected {endpoint()} to describe the repository, found something else "
            f"({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from None
    commit = str(info.sha)
    if not GIT_SHA1.fullmatch(commit):
        raise Error(f"{repo}: expected the Hub to name a commit, found {shown(info.sha)}")
    found = {}
    for sibling in info.siblings or ():
        name, large = sibling.rfilename, sibling.lfs
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            continue  # in a folder that is none of ours, or a name that means to reach outside
        nbytes = large.size if large is not None else sibling.size
        blob = large.sha256 if large is not None else sibling.blob_id
        pattern = SHA256 if large is not None else GIT_SHA1
        if type(nbytes) is not int or not 0 <= nbytes < _MAX_BYTES:
            continue
        if isinstance(blob, str) and pattern.fullmatch(blob):
            found[name] = RepoFile(name, nbytes, blob)
    described = getattr(info, "gguf", None)
    architecture = described.get("architecture") if isinstance(described, dict) else None
    return commit, found, architecture if isinstance(architecture, str) else None


def choose(
    reference: Reference, found: dict[str, RepoFile], architecture: str | None
) -> list[RepoFile]:
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


def _chosen_file(reference: Reference, found: dict[str, RepoFile]) -> list[RepoFile]:
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


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


def check_kind(repo: str, folder: Path, wanted: list[RepoFile]) -> None:
    """Raise Error for a model of another architecture before its weights are fetched."""
    for file in wanted:
        if file.name.endswith(CONFIG) and not file.name.endswith("_" + CONFIG):
            found = files.read_object(folder / "blobs" / file.blob).get("model_type", "gpt_oss")
            if found != "gpt_oss":
                raise _other_kind(repo, found)


def _other_kind(repo: str, found: object) -> Error:
    return Error(f"{repo}: expected a gpt-oss model, found one of type {shown(found)}")


def without_strays(folder: Path, wanted: list[RepoFile]) -> list[RepoFile]:
    """Only the shards that the index names: some repositories hold another copy in one file."""
    index = next((file for file in wanted if file.name.endswith(INDEX)), None)
    if index is None:
        return wanted
    prefix = index.name.removesuffix(INDEX)
    weight_map = files.read_object(folder / "blobs" / index.blob, SMALL).get("weight_map")
    named = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    named = {prefix + name for name in named}
    absent = sorted(named - {file.name for file in wanted})
    if absent or not named:
        raise Error(
            f"{index.name}: names {shown(absent[0]) if absent else 'no shard'}, which the "
            f"repository does not have"
        )
    return [file for file in wanted if not is_weights(file.name) or file.name in named]
