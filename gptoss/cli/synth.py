"""`gptoss synth`: write a checkpoint of random weights."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gptoss.cli.arguments import LAYOUTS, whole
from gptoss.cli.convert import print_written
from gptoss.cli.progress import Progress

if TYPE_CHECKING:
    pass


NAME = "synth"
HELP = "Write a checkpoint of exact geometry and random weights."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="gpt-oss-20b, gpt-oss-120b or tiny")
    parser.add_argument("destination", metavar="DST", help="a new or empty directory")
    for option, text in (
        ("--layers", "layers instead of the preset's"),
        ("--experts", "experts instead of the preset's"),
        ("--vocab", "vocabulary instead of the preset's"),
        ("--seed", "of the random weights (default: 0)"),
    ):
        parser.add_argument(option, type=whole, metavar="N", help=text)
    parser.add_argument("--layout", choices=LAYOUTS, default="original")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss synth`."""
    from gptoss.checkpoint import open_checkpoint, write_checkpoint

    options = {
        key: getattr(arguments, key)
        for key in ("layers", "experts", "vocab", "seed")
        if getattr(arguments, key) is not None
    }
    query = "&".join(f"{key}={value}" for key, value in options.items())
    spec = f"synthetic:{arguments.preset}" + (f"?{query}" if query else "")
    with open_checkpoint(spec) as source, Progress(f"writing {arguments.destination}") as progress:
        files = write_checkpoint(
            source, arguments.destination, layout=arguments.layout, progress=progress
        )
    print_written(arguments.destination, files)
    return 0
