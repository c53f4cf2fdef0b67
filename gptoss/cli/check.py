"""`gptoss check`: does this model run well here? One block to paste into an issue."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss.cli.arguments import (
    add_engine_options,
    add_model_names,
    engine_options,
)
from gptoss.cli.progress import Progress
from gptoss.engine.options import OPTIONS
from gptoss.errors import Error

if TYPE_CHECKING:
    from gptoss.eval.outcome import Result

NAME = "check"
HELP = "Examine a model on this machine: files, numbers, words, speed."
_LEFT_OUT = ("model", "speculation", "overlap", "prefix_cache", "max_batch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_names(parser, "the bundled model")
    parser.add_argument(
        "--quick", action="store_true", help="leave out what takes longer than a minute or two"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to this file")
    names = [name for name in OPTIONS if name not in _LEFT_OUT]
    add_engine_options(parser.add_argument_group("how the model runs"), names)


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss check`: 0 where all is well, 1 where something failed."""
    from gptoss.eval.outcome import run_checks
    from gptoss.eval.plan import plan
    from gptoss.eval.report import anonymous, block, describe
    from gptoss.eval.session import Session

    target: Path | None = arguments.json
    if target is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
        parser.error(f"check: --json: expected a file in a folder that is there, found {target}")
    arguments.model = find_model(arguments)
    with Progress("reading") as progress:
        lines = _Lines(progress, anonymous)
        session = Session(engine_options(arguments), lines.say, progress)
        checks = plan(session, arguments.quick)
        results, interrupted = run_checks(
            checks, quick=arguments.quick, begin=lines.begin, end=lines.end
        )
    found = describe(session, results)
    found["interrupted"] = interrupted
    print(block(found), flush=True)
    if target is not None:
        _write(target, found)
    if interrupted:
        print("Interrupted: the rest was not reached.", file=sys.stderr)
        raise KeyboardInterrupt  # ends at once, without waiting for a step in progress
    session.close()
    failed = found["failed"]
    verdict = f"FAILED: {', '.join(failed)}." if failed else "Nothing failed."
    print(f"{verdict} The block above can be pasted into an issue as it is.", file=sys.stderr)
    return 1 if failed else 0


class _Lines:
    """What is told on standard error while the checks run."""

    def __init__(self, progress: Progress, shown: Callable[[str], str]) -> None:
        self._progress = progress
        self._shown = shown
        self._waiting = ""  # on a terminal: the name of the check that runs

    def say(self, line: str) -> None:
        """A line of its own."""
        self._progress.clear()
        blank = "\r" + " " * len(self._waiting) + "\r" if self._waiting else ""
        self._waiting = ""
        print(f"{blank}{self._shown(line)}", file=sys.stderr, flush=True)

    def begin(self, name: str) -> None:
        """A check begins; what it finds takes the place of this."""
        if sys.stderr.isatty():
            self._waiting = f"{name} …"
            print(self._waiting, end="", file=sys.stderr, flush=True)

    def end(self, result: Result) -> None:
        """A check has ended."""
        self.say(f"{result.name:<14} {result.verdict:<7} {result.seconds:6.1f} s  {result.line}")


def find_model(arguments: argparse.Namespace) -> str:
    """The model as the engine takes it: a path, or "synthetic:…". Raises Error."""
    from gptoss.cli.opening import locate

    return str(locate(arguments.model, offline=arguments.offline).model)


def _write(target: Path, found: dict[str, object]) -> None:
    from gptoss.files import reason, write_in_one_piece

    text = json.dumps(found, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    try:
        write_in_one_piece(target, lambda file: file.write(text.encode()))
    except OSError as error:
        raise Error(f"--json: {target}: cannot be written: {reason(error)}") from None
