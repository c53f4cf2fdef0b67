"""`gptoss pull`, `gptoss list`, `gptoss rm`: the models on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss.cli.arguments import add_offline
from gptoss.cli.progress import Progress, human_bytes
from gptoss.errors import Error
from gptoss.files import short_path


@dataclass
class _Command:
    """A module of one command, for a file that holds several."""

    NAME: str
    HELP: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, argparse.ArgumentParser], int]


def _add_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="gpt-oss-20b, owner/name, hf:owner/name@rev")
    parser.add_argument(
        "--pack",
        nargs="?",
        const="published",
        choices=["published", "q8"],
        help="also keep a copy that the CPU engine starts from at once: exact, or with attention "
        "and unembedding in 8 bits (default: published)",
    )
    add_offline(parser)


def _pull(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from gptoss import hub
    from gptoss.cli.opening import keep_packed, locate

    reference = hub.parse(arguments.model)
    if reference.repo is None:
        parser.error(f"pull: expected a model of the Hub, found {arguments.model}")
    if arguments.offline or hub.is_offline():
        path = Path(locate(arguments.model, offline=True).model)
    else:
        # Asks what is new, unlike the other commands, which are content with what is here.
        with Progress("downloading", rate=True) as progress:
            say = progress.say
            path = hub.fetch(reference, lambda line: say(f"gptoss: {line}"), progress).path
    why_not = hub.unreadable(path)
    if why_not is not None:
        raise Error(f"{path}: {why_not}")
    print(f"{reference.name}: {short_path(path)}")
    if arguments.pack:
        print(keep_packed(path, reference.repo, arguments.pack))
    return 0


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    rows = list(_rows())
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = [("MODEL", "SIZE", "WHERE", "PATH")]
    table += [
        (row["name"], human_bytes(row["bytes"]), row["where"], short_path(Path(row["path"])))
        for row in rows
    ]
    widths = [max(len(line[i]) for line in table) for i in range(3)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[3]]))
    return 0


def _rows() -> list[dict[str, Any]]:
    from gptoss import hub
    from gptoss.checkpoint import BUNDLED_MODEL

    found = [("nano", "gptoss, bundled", BUNDLED_MODEL, hub.Place(BUNDLED_MODEL, "", "").nbytes)]
    found += [(hub.title(p), p.where, p.path, p.nbytes) for p in hub.everything()]
    found += [
        (hub.listed(copy.name), f"gptoss, packed {copy.weights}", copy.folder, copy.nbytes)
        for copy in hub.all_packed()
    ]
    keys = ("name", "where", "path", "bytes")
    return [dict(zip(keys, (n, w, str(p), b), strict=True)) for n, w, p, b in found]


def _add_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name that `gptoss list` shows")


def _rm(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from gptoss import hub

    reference = hub.parse(arguments.model)
    if reference.repo is None:
        parser.error(
            f"rm: expected a model of the Hub, found {arguments.model}; what gptoss did not "
            f"download it does not remove"
        )
    if reference.file is not None or reference.revision != "main":
        parser.error(
            f"rm: expected a whole repository, as {hub.listed(reference.repo)}, found "
            f"{arguments.model}"
        )
    removed = hub.remove(reference.repo)
    for line in removed.kept:
        print(f"kept: {line}")
    others = [place for place in hub.everything() if hub.is_of(place, reference.repo)]
    for place in others:
        print(f"kept: {short_path(place.path)}: {place.where} has it, not gptoss")
    if not removed.paths:
        raise Error(f"{reference.name}: expected something that gptoss downloaded, found nothing")
    print(f"{reference.name}: removed {human_bytes(removed.nbytes)}")
    return 0


PULL = _Command("pull", "Download a model, or bring it up to date.", _add_pull, _pull)
LIST = _Command(
    "list", "List the models on this machine, whichever tool put them there.", _add_list, _list
)
RM = _Command("rm", "Remove what gptoss downloaded or packed.", _add_rm, _rm)
