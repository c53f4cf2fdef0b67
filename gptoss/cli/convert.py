"""`gptoss convert`: write a checkpoint in another layout."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptoss.cli.arguments import LAYOUTS, MODEL, add_offline
from gptoss.cli.progress import Progress, human_bytes
from gptoss.engine.options import OPTIONS
from gptoss.errors import Error

if TYPE_CHECKING:
    pass


NAME = "convert"
HELP = "Write a checkpoint in another layout."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help=MODEL)
    add_offline(parser)
    parser.add_argument("destination", metavar="DST", help="a new or empty directory, or *.gguf")
    parser.add_argument(
        "--layout",
        required=True,
        choices=[*LAYOUTS, "packed", "gguf"],
        help="a published one; the CPU engine's own, which starts at once; or llama.cpp's",
    )
    parser.add_argument(
        "--weights",
        choices=OPTIONS["weights"].choices,
        help=f"with --layout packed or gguf: {OPTIONS['weights'].help} (default: published)",
    )
    parser.add_argument(
        "--experts", choices=["mxfp4"], help="pack the experts of a bf16 checkpoint"
    )
    parser.add_argument(
        "--rule",
        choices=["mx", "mse"],
        default="mx",
        help="block scales by the MX specification, or of least squared error (default: mx)",
    )


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """`gptoss convert`."""
    from gptoss.checkpoint import open_checkpoint, write_checkpoint, write_gguf, write_panels
    from gptoss.cli.opening import locate

    if arguments.weights is not None and arguments.layout not in ("packed", "gguf"):
        parser.error(f"convert: --weights needs --layout packed or gguf, found {arguments.layout}")
    with open_checkpoint(
        locate(arguments.source, offline=arguments.offline).model,
        experts=arguments.experts,
        rule=arguments.rule,
    ) as source:
        if arguments.layout == "packed":
            with Progress(f"writing {arguments.destination}") as progress:
                files = write_panels(
                    source,
                    arguments.destination,
                    weights=arguments.weights or "published",
                    progress=progress,
                )
            print_written(arguments.destination, files)
            return 0
        if arguments.layout == "gguf":
            with Progress(f"writing {arguments.destination}") as progress:
                files = write_gguf(
                    source,
                    arguments.destination,
                    weights=arguments.weights or "published",
                    progress=progress,
                )
            print_written(arguments.destination, files)
            return 0
        if source.expert_dtype == "bf16" and arguments.layout != "huggingface-bf16":
            raise Error(
                f"{arguments.source}: its experts are bf16, and layout {arguments.layout} holds "
                "MXFP4; packing loses precision: say --experts mxfp4 to do so"
            )
        with Progress(f"writing {arguments.destination}") as progress:
            files = write_checkpoint(
                source,
                arguments.destination,
                layout=arguments.layout,
                progress=progress,
                rule=arguments.rule,
            )
        print_written(arguments.destination, files)
    return 0


def print_written(destination: str, files: Sequence[os.PathLike[str]]) -> None:
    total = sum(os.stat(file).st_size for file in files)
    print(f"{destination}: {len(files)} files, {human_bytes(total)}")
