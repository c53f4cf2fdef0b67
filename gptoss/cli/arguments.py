"""The arguments of the command line: names, help, and what they turn into."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Protocol

from gptoss import __version__
from gptoss.errors import shown


class CommandModule(Protocol):
    """A file of this folder that says all about one command."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options; imports nothing heavy."""

    def run(self, arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        """Carry it out; the exit code."""


WEIGHTS = ["published", "q8"]
WEIGHTS_HELP = "attention and unembedding as published (bf16), or in 8 bits"
LAYOUTS = ["original", "huggingface", "huggingface-bf16"]
MODEL = 'a checkpoint directory or file, or "synthetic:gpt-oss-20b?layers=4"'
_UNITS = {
    **dict.fromkeys(("", "b"), 1),
    **{unit: 1000**i for i, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**i for i, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**i for i, unit in enumerate("kmgt", start=1)},
}


def build_parser(modules: Sequence[CommandModule]) -> argparse.ArgumentParser:
    """The whole command line, a command a module, in this order."""
    # Before the command or behind it: SUPPRESS keeps the second from undoing the first.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser = argparse.ArgumentParser(
        prog="gptoss", description="Run gpt-oss models on your own machine.", parents=[common]
    )
    parser.add_argument("--version", action="version", version=f"gptoss {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    for module in modules:
        made = commands.add_parser(
            module.NAME, help=module.HELP, description=module.HELP, parents=[common]
        )
        made.set_defaults(run=module.run)
        module.add_arguments(made)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it runs: what `open_engine` takes."""
    model = parser.add_argument_group("model")
    add = model.add_argument
    add("-m", "--model", help=f"{MODEL}; without it, the bundled model")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--activation", default="bf16", choices=["bf16", "f32"], help="default: bf16")
    add("--weights", choices=WEIGHTS, help=f"{WEIGHTS_HELP} (default: as the model has them)")
    add("--kv", default="bf16", choices=["bf16", "int8"], help="keys and values (default: bf16)")
    add("--kv-bytes", type=size, metavar="SIZE", help="memory for keys and values, such as 2GiB")
    add("--threads", type=whole, metavar="N", help="default: one per core")
    add(
        "--tensor-parallel",
        type=whole,
        default=1,
        metavar="N",
        help="GPUs that hold a part of the model each (default: 1)",
    )
    add("--no-prefix-cache", action="store_true", help="compute every prompt from its beginning")
    add("--no-speculation", action="store_true", help="do not guess repetitions ahead")


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {shown(text)}") from None


def whole_or_none(text: str) -> int | None:
    return None if text == "none" else whole(text)


def size(text: str) -> int:
    """Bytes: "500MB", "2GiB", "1.5g"; single letters are powers of 1024."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)", text.strip().lower())
    # A float holds a number of 20 digits, which is more than any memory.
    if match is None or match[2] not in _UNITS or len(match[1]) > 20:
        raise argparse.ArgumentTypeError(
            f"expected a size such as 500MB or 2GiB, found {shown(text)}"
        )
    return int(float(match[1]) * _UNITS[match[2]])
