"""Models that are on this machine already, wherever a tool has put them.

The Hub's cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
Ollama: a manifest for each name, which lists blobs by their SHA-256.
LM Studio: models/publisher/repository/files. llama.cpp: files named after their repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptoss import files
from gptoss.checkpoint import INDEX, parse_shard
from gptoss.errors import Error
from gptoss.gguf.reader import part_names
from gptoss.hub.names import KNOWN, short

HUB, LM_STUDIO, LLAMA_CPP, OLLAMA = "Hugging Face's cache", "LM Studio", "llama.cpp", "Ollama"
_MANIFEST_BYTES = 1 << 20
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SIZES = {"20b", "120b"}
# What may stand in the name of an unchanged copy: its publishers, its form.
_WORDS = {
    *("", "gptoss", "safeguard", "gguf", "latest"),
    *("openai", "ggml", "org", "lmstudio", "community", "unsloth", "bartowski"),
    *("mxfp4", "moe", "bf16", "f16", "f32", "q8", "0", "00001", "of"),
    *(f"{count:05d}" for count in range(1, 100)),
    *("q4", "q5", "q6", "q3", "q2", "k", "m", "s", "l", "xl", "ud", "iq4", "nl", "xs", "1"),
}


@dataclass(frozen=True)
class Place:
    """A model on this machine. where: whose it is. name: what that tool calls it."""

    path: Path
    where: str
    name: str

    @property
    def nbytes(self) -> int:
        """Of all its files; what goes meanwhile counts nothing."""
        inside = self.path.rglob("*") if self.path.is_dir() else parts_of(self.path)
        total = 0
        for file in inside:
            with suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
        return total


# ---- Folders


def hub_cache() -> Path:
    """Hugging Face's shared cache, by the variables that its own library reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return _folder(value)
    home = os.environ.get("HF_HOME") or str(_cache_home() / "huggingface")
    return _folder(home) / "hub"


def own_cache() -> Path:
    """gptoss's own: packed models, and notes of what it downloaded."""
    if value := os.environ.get("GPTOSS_CACHE"):
        return _folder(value)
    return _cache_home() / "gptoss"


def _cache_home() -> Path:
    return _folder(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def _folder(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text)))


def _ollama_folders() -> list[Path]:
    if value := os.environ.get("OLLAMA_MODELS"):
        return [_folder(value)]
    # The second is where its Linux service runs.
    return [_folder("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models")]


def _lm_studio_folders() -> list[Path]:
    homes = [_folder("~/.lmstudio"), _folder("~/.cache/lm-studio")]
    try:
        pointed = _folder("~/.lmstudio-home-pointer").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        pointed = ""
    if pointed and "\0" not in pointed:
        homes.insert(0, Path(pointed))
    return [home / "models" for home in homes]


def _llama_cpp_folder() -> Path:
    return _folder(os.environ.get("LLAMA_CACHE") or str(_cache_home() / "llama.cpp"))


# ---- The Hub's cache


def repository_folder(repo: str) -> Path:
    """Where the Hub's cache has a repository."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def in_hub_cache(repo: str, revision: str = "main", file: str | None = None) -> Place | None:
    """A complete copy of a revision, or of one file of it. Asks no network whether it is new."""
    folder = repository_folder(repo)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        if not _COMMIT.fullmatch(commit):
            return None
    snapshot = folder / "snapshots" / commit
    if file is not None:
        return Place(snapshot / file, HUB, repo) if _is_whole(snapshot / file) else None
    if is_complete(snapshot):
        return Place(snapshot, HUB, repo)
    gguf = readable_ggufs(snapshot)
    return Place(gguf[0], HUB, repo) if len(gguf) == 1 else None


def is_complete(folder: Path) -> bool:
    """Whether a folder has a configuration and all its shards: links of a download that was broken
    off lead nowhere.
    """
    if not (folder / "config.json").is_file():
        return (folder / "original" / "config.json").is_file() and is_complete(folder / "original")
    if (folder / INDEX).exists():
        try:
            shards = files.read_object(folder / INDEX).get("weight_map")
        except Error:
            return False
        if not isinstance(shards, dict):
            return False
        return all(isinstance(name, str) and (folder / name).is_file() for name in shards.values())
    found = sorted(folder.glob("*.safetensors"))
    numbered = [parse_shard(path.name) for path in found]
    if any(shard is not None and shard[2] > 1 for shard in numbered):
        return False  # the index, which says what belongs together, has not come yet
    return bool(found) and all(path.is_file() for path in found)


def readable_ggufs(folder: Path) -> list[Path]:
    """The GGUF models in a folder whose parts are all there, each by its first file."""
    return [path for path in sorted(folder.glob("*.gguf")) if _is_whole(path)]


def parts_of(path: Path) -> list[Path]:
    """All files of a model in GGUF, by one of them."""
    try:
        return part_names(path)
    except Error:  # a number beyond their number: a file like any other
        return [path]


def _is_whole(path: Path) -> bool:
    """Whether it is the first of its parts, and all are there."""
    parts = parts_of(path)
    return path == parts[0] and all(part.is_file() for part in parts)


# ---- Other tools


def elsewhere(repo: str) -> Iterator[Place]:
    """Copies of a published model that other tools have, of whichever quantization; in the Hub's
    cache those in GGUF.
    """
    if repo not in KNOWN:
        return
    for place in everything():
        if _means(place.name) == repo and (place.where != HUB or place.path.is_file()):
            yield place


def _means(name: str) -> str | None:
    """Which published model a file or a name is of: by its words, each of which must be known, as
    a fine-tune is called after its base.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower().replace("gpt-oss", "gptoss")))
    if "latest" in words and not words & _SIZES:
        words = words - {"latest"} | {"20b"}  # what Ollama gives to those who name no size
    sizes = words & _SIZES
    if "gptoss" not in words or len(sizes) != 1 or words - _SIZES - _WORDS:
        return None
    repo = f"openai/gpt-oss-{'safeguard-' if 'safeguard' in words else ''}{sizes.pop()}"
    return repo if repo in KNOWN else None


def everything() -> Iterator[Place]:
    """Every gpt-oss model of the machine that its tool's own files speak of."""
    yield from _quietly(_hub_models())
    yield from _quietly(_lm_studio())
    yield from _quietly(_llama_cpp())
    yield from _quietly(_ollama())


def _quietly(places: Iterator[Place]) -> Iterator[Place]:
    """Up to the first folder that may not be read."""
    try:
        yield from places
    except OSError:
        return


def _hub_models() -> Iterator[Place]:
    for folder in sorted(hub_cache().glob("models--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        if "gpt-oss" not in repo.lower():
            continue
        for snapshot in sorted((folder / "snapshots").glob("*")):
            yield from _quietly(_in_folder(snapshot, HUB, repo))


def _in_folder(folder: Path, where: str, name: str) -> Iterator[Place]:
    if is_complete(folder):
        yield Place(folder, where, name)
    for path in readable_ggufs(folder):
        yield Place(path, where, f"{name}/{path.name}")


def _lm_studio() -> Iterator[Place]:
    for models in _lm_studio_folders():
        for repository in sorted(models.glob("*/*")):
            name = f"{repository.parent.name}/{repository.name}"
            if "gpt-oss" not in name.lower():
                continue
            yield from _quietly(_in_folder(repository, LM_STUDIO, name))


def _llama_cpp() -> Iterator[Place]:
    for path in readable_ggufs(_llama_cpp_folder()):
        if "gpt-oss" in path.name.lower():
            yield Place(path, LLAMA_CPP, path.name)


def _ollama() -> Iterator[Place]:
    for models in _ollama_folders():
        library = models / "manifests" / "registry.ollama.ai"
        for manifest in sorted(library.glob("*/*/*")):
            owner, name, tag = manifest.parts[-3:]
            if "gpt-oss" in name.lower() and (blob := _ollama_blob(models, manifest)) is not None:
                called = f"{name}:{tag}"
                yield Place(blob, OLLAMA, called if owner == "library" else f"{owner}/{called}")


def _ollama_blob(models: Path, manifest: Path) -> Path | None:
    """The file of a model's weights; None where it is not (yet) all there."""
    try:
        layers = files.read_object(manifest, _MANIFEST_BYTES).get("layers")
    except Error:
        return None
    for layer in layers if isinstance(layers, list) else []:
        if not isinstance(layer, dict) or layer.get("mediaType") != _OLLAMA_MODEL:
            continue
        digest = _DIGEST.fullmatch(str(layer.get("digest")))
        if digest is None:
            return None
        blob = models / "blobs" / f"sha256-{digest[1]}"
        return blob if blob.is_file() and blob.stat().st_size == layer.get("size") else None
    return None


def title(place: Place) -> str:
    """What to call a model that was found: in the Hub's cache by its repository, elsewhere by the
    published name where it is one.
    """
    if place.where == HUB:
        return listed("/".join(place.name.split("/")[:2]))
    repo = _means(place.name)
    return short(repo) if repo else place.name


def listed(repo: str) -> str:
    """The shortest name that means a repository."""
    return short(repo) if repo in KNOWN else repo


def is_of(place: Place, repo: str) -> bool:
    """Whether what was found is this repository, or a copy of it that another tool has."""
    return title(place) == listed(repo)
