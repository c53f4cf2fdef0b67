"""An engine as the command line asks for it."""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss.cli.arguments import engine_options
from gptoss.cli.progress import Progress, human_bytes
from gptoss.errors import Error
from gptoss.files import short_path

if TYPE_CHECKING:
    from gptoss import Engine
    from gptoss.engine import EngineOptions
    from gptoss.hub import Found


def locate(
    model: str | None,
    *,
    offline: bool = False,
    weights: str | None = None,
    packed_too: bool = False,
) -> Found:
    """The files of a model that a user named; says on standard error where they are, and shows the
    progress of a download.
    """
    from gptoss.hub import find

    with Progress("downloading", rate=True) as progress:
        return find(
            model,
            offline=offline or None,
            weights=weights,
            packed_too=packed_too,
            tell=lambda line: progress.say(f"gptoss: {line}"),
            progress=progress,
        )


def open_engine(arguments: argparse.Namespace, *, show: bool = True) -> Engine:
    """The model that `arguments.add_model` named, with a bar while it loads if `show`."""
    from gptoss.engine import Engine

    options = engine_options(arguments)
    packed_too = runs_on_cpu(options)
    found = locate(
        arguments.model,
        offline=getattr(arguments, "offline", False),
        weights=options.weights,
        packed_too=packed_too,
    )
    arguments.model_name = found.name
    if found.fetched and show and packed_too:
        _offer_packed(found, arguments.model, options.weights or "published")
    with Progress("loading") as progress:
        options = replace(options, model=found.model)
        return _interruptible(lambda: Engine.from_options(options, progress if show else None))


def runs_on_cpu(options: EngineOptions) -> bool:
    """Whether a packed copy will do, which the CPU engine alone reads."""
    if options.device != "auto":
        return options.device == "cpu"

    from gptoss.engine import choose_device
    from gptoss.native import _core

    return choose_device(options.device, _core.backends()) == "cpu"


def _interruptible(load: Callable[[], Engine]) -> Engine:
    """What `load` returns. It runs in another thread: Ctrl-C would otherwise wait for the core to
    finish the tensor at hand, which takes seconds from a slow disk.
    """
    result: Future[Engine] = Future()

    def run() -> None:
        try:
            result.set_result(load())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return result.result()


def _offer_packed(found: Found, model: str, weights: str) -> None:
    """Ask whether a copy is wanted that starts at once; where nobody can be asked, say how.

    model: as the user named it.
    """
    from gptoss.checkpoint import open_checkpoint

    with open_checkpoint(found.model) as source:
        if source.panels is not None:
            return
        size = human_bytes(source.nbytes)
    command = f"gptoss pull {shlex.quote(model)} --pack{'' if weights == 'published' else ' q8'}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        print(
            f"gptoss: to start within seconds next time ({size} more): {command}", file=sys.stderr
        )
        return
    print(f"Keep a packed copy too ({size}), so that later starts take seconds? [y/N] ",
          end="", file=sys.stderr, flush=True)  # fmt: skip
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        assert found.repo is not None
        try:
            kept = keep_packed(Path(found.model), found.repo, weights)
        except (Error, OSError) as error:  # the model is here, and runs without it
            kept = f"not kept: {error}"
        print(f"gptoss: {kept}", file=sys.stderr)
    else:
        print(f"gptoss: not kept; at any time: {command}", file=sys.stderr)


def keep_packed(path: Path, repo: str, weights: str) -> str:
    """A packed copy of a model, unless there is one; what to say of it."""
    from gptoss import hub

    copy = hub.packed_copy(path, weights)
    if copy is None:
        with Progress("packing") as progress:
            copy = hub.pack(path, repo, weights, progress)
    return f"packed ({weights}): {short_path(copy.folder)}, {human_bytes(copy.nbytes)}"
