"""From what a user calls a model to files: here, in another tool's folder, or from the Hub."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from gptoss import files
from gptoss.checkpoint import open_checkpoint
from gptoss.errors import Error
from gptoss.hub import download, names, packed, places
from gptoss.hub.download import Progress, Tell

_log = logging.getLogger(__name__)
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Found:
    """What `open_checkpoint` takes, and what to call it. repo: on the Hub, of one that is there.
    fetched: it was downloaded just now.
    """

    model: str | Path
    name: str
    repo: str | None = None
    fetched: bool = False


def find(
    model: str | os.PathLike[str] | None,
    *,
    offline: bool | None = None,
    weights: str | None = None,
    packed_too: bool = False,
    tell: Tell | None = None,
    progress: Progress | None = None,
) -> Found:
    """The files of a model: what lies here goes before what other tools have, and the network last.

    model: see `names.EXPECTED`; None is the bundled one.
    offline: never ask the network; None: as HF_HUB_OFFLINE says.
    weights: "published", "q8" or None, as the engine's option; packed_too: a packed copy with these
    will do as well.
    tell: called with a line for what is found or done; logged otherwise.
    progress: called with (bytes done, bytes in all) while it is downloaded.

    Raises:
        Error: no such model, no permission, no room, no network.
    """
    tell = tell or _log.info
    reference = names.parse(model)
    if reference.synthetic is not None:
        return Found(reference.synthetic, reference.name)
    if reference.path is not None:
        if not names.exists(reference.path):
            raise names.missing(reference.path)
        return Found(reference.path, reference.name)
    place, fetched = here(reference, tell), False
    if place is None and packed_too and (copy := _packed_by_name(reference, weights)) is not None:
        tell(f"{reference.name}: found packed in {files.short_path(copy.folder)}")
        return Found(copy.path, reference.name)
    if place is None:
        if is_offline() if offline is None else offline:
            raise _offline(reference)
        place, fetched = download.fetch(reference, tell, progress), True
    repo = reference.repo
    if packed_too and (copy := packed.packed_copy(place.path, weights or "published")) is not None:
        tell(f"{reference.name}: starts from its packed copy in {files.short_path(copy.folder)}")
        return Found(copy.path, reference.name, repo, fetched)
    return Found(place.path, reference.name, repo, fetched)


def here(reference: names.Reference, tell: Tell) -> places.Place | None:
    """A copy on this machine that the engine can run; says which, and why others will not do."""
    repo = reference.repo
    assert repo is not None
    place = places.in_hub_cache(repo, reference.revision, reference.file)
    if place is not None:
        tell(f"{reference.name}: found in {place.where}: {files.short_path(place.path)}")
        return place
    if reference.revision != "main" or reference.file is not None:
        return None
    for place in places.elsewhere(repo):
        why_not = unreadable(place.path)
        where = f"{place.where} ({files.short_path(place.path)})"
        if why_not is None:
            tell(f"{reference.name}: found in {where}")
            return place
        tell(f"{reference.name}: passed over in {where}: {why_not}")
    return None


def unreadable(path: Path) -> str | None:
    """Why the engine cannot run a model; None where it can. Looks at headers only."""
    try:
        open_checkpoint(path).close()
    except Error as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def is_offline() -> bool:
    """Whether the environment forbids to ask the Hub, as its own library reads it."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


def _packed_by_name(reference: names.Reference, weights: str | None) -> packed.Packed | None:
    """A copy whose source is gone."""
    if reference.revision != "main" or reference.file is not None:
        return None
    for copy in packed.all_packed():
        if (copy.name, copy.weights) == (reference.repo, weights or "published"):
            return copy
    return None


def _offline(reference: names.Reference) -> Error:
    return Error(
        f"{reference.name}: expected it on this machine, because downloads are off (--offline or "
        f"HF_HUB_OFFLINE); found none in {files.short_path(places.hub_cache())}, nor in the "
        f"folders of LM Studio, llama.cpp and Ollama",
        field="model",
    )
