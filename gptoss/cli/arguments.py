"""The arguments of the command line: names, help, and what they turn into."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gptoss import __version__
from gptoss.errors import shown
from gptoss.sampling import SamplingParams

Command = Callable[[argparse.Namespace, argparse.ArgumentParser], int]


class CommandModule(Protocol):
    """A file of this folder that says all about one command of the training side."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options; imports nothing heavy."""

    def run(self, arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        """Carry it out; the exit code."""


_WEIGHTS = ["published", "q8"]
_WEIGHTS_HELP = "attention and unembedding as published (bf16), or in 8 bits"
_LAYOUTS = ["original", "huggingface", "huggingface-bf16"]
_MODEL = 'a checkpoint directory or file, or "synthetic:gpt-oss-20b?layers=4"'
_UNITS = {
    **dict.fromkeys(("", "b"), 1),
    **{unit: 1000**i for i, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**i for i, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**i for i, unit in enumerate("kmgt", start=1)},
}


def build_parser(
    run: Mapping[str, Command], modules: Sequence[CommandModule] = ()
) -> argparse.ArgumentParser:
    """The whole command line; `run` maps the name of a command to what carries it out.

    `modules` bring their own arguments.
    """
    # Before the command or behind it: SUPPRESS keeps the second from undoing the first.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser = argparse.ArgumentParser(
        prog="gptoss", description="Run gpt-oss models on your own machine.", parents=[common]
    )
    parser.add_argument("--version", action="version", version=f"gptoss {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run[name])
        return made

    _add_generate(command("generate", "Continue a text."))

    show = command("info", "Describe a model, or this installation.")
    show.add_argument("model", nargs="?", metavar="MODEL", help=_MODEL)
    show.add_argument("--tensors", action="store_true", help="list every tensor")
    show.add_argument("--json", action="store_true", help="print JSON")

    change = command("convert", "Write a checkpoint in another layout.")
    change.add_argument("source", metavar="SRC", help=_MODEL)
    change.add_argument("destination", metavar="DST", help="a new or empty directory")
    change.add_argument(
        "--layout",
        required=True,
        choices=[*_LAYOUTS, "packed"],
        help="a published one, or the CPU engine's own, which starts at once",
    )
    change.add_argument(
        "--weights",
        choices=_WEIGHTS,
        help=f"with --layout packed: {_WEIGHTS_HELP} (default: published)",
    )
    change.add_argument(
        "--experts", choices=["mxfp4"], help="pack the experts of a bf16 checkpoint"
    )
    change.add_argument(
        "--rule",
        choices=["mx", "mse"],
        default="mx",
        help="block scales by the MX specification, or of least squared error (default: mx)",
    )

    make = command("synth", "Write a checkpoint of exact geometry and random weights.")
    make.add_argument("preset", metavar="PRESET", help="gpt-oss-20b, gpt-oss-120b or tiny")
    make.add_argument("destination", metavar="DST", help="a new or empty directory")
    for option, text in (
        ("--layers", "layers instead of the preset's"),
        ("--experts", "experts instead of the preset's"),
        ("--vocab", "vocabulary instead of the preset's"),
        ("--seed", "of the random weights (default: 0)"),
    ):
        make.add_argument(option, type=_whole, metavar="N", help=text)
    make.add_argument("--layout", choices=_LAYOUTS, default="original")

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
    add("-m", "--model", help=f"{_MODEL}; without it, the bundled model")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--activation", default="bf16", choices=["bf16", "f32"], help="default: bf16")
    add("--weights", choices=_WEIGHTS, help=f"{_WEIGHTS_HELP} (default: as the model has them)")
    add("--kv", default="bf16", choices=["bf16", "int8"], help="keys and values (default: bf16)")
    add("--kv-bytes", type=_size, metavar="SIZE", help="memory for keys and values, such as 2GiB")
    add("--threads", type=_whole, metavar="N", help="default: one per core")
    add(
        "--tensor-parallel",
        type=_whole,
        default=1,
        metavar="N",
        help="GPUs that hold a part of the model each (default: 1)",
    )
    add("--no-prefix-cache", action="store_true", help="compute every prompt from its beginning")
    add("--no-speculation", action="store_true", help="do not guess repetitions ahead")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    default = SamplingParams()
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="the text; without it, standard input is read")
    add("--file", metavar="F", help="read the prompt from a file")

    add_model(parser)

    sampling = parser.add_argument_group("sampling")
    add = sampling.add_argument
    add(
        "--max-tokens",
        type=_whole_or_none,
        default=default.max_tokens,
        metavar="N",
        help=f'or "none": up to the end of the context (default: {default.max_tokens})',
    )
    for option, kind, text in (
        ("temperature", float, "0 takes the most likely token"),
        ("top-k", _whole, "keep the N most likely tokens; 0 keeps all"),
        ("top-p", float, "keep the most likely tokens up to this probability"),
        ("min-p", float, "drop tokens less likely than this part of the best"),
        ("repetition-penalty", float, "divide logits of tokens seen"),
        ("presence-penalty", float, "subtract from logits of tokens in the output"),
        ("frequency-penalty", float, "the same for each occurrence"),
    ):
        value = getattr(default, option.replace("-", "_"))
        name = "N" if kind is _whole else "X"
        add(
            f"--{option}",
            type=kind,
            default=value,
            metavar=name,
            help=f"{text} (default: {value:g})",
        )
    add("--seed", type=_whole, metavar="N", help="repeat a run (default: random)")
    add(
        "--logit-bias",
        action=_AddBias,
        metavar="ID=X",
        help="add X to the logit of a token; may be given often",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before it; may be given often",
    )
    add(
        "--stop-token-ids",
        type=_whole,
        nargs="+",
        default=[],
        metavar="ID",
        help="end at these tokens",
    )
    add("--ignore-eos", action="store_true", help="go on past the model's end tokens")
    add("--n", type=_whole, default=1, metavar="N", help="write N completions (default: 1)")

    form = parser.add_argument_group(
        "form", "what the text must be, in full (needs the extra grammar)"
    ).add_mutually_exclusive_group()
    add = form.add_argument
    add("--json-schema", metavar="F", help="JSON that fits the schema in this file")
    add("--regex", metavar="PATTERN", help="text that matches all of a regular expression")
    add("--choice", action="append", metavar="TEXT", help="one of several; may be given often")
    add("--lark", metavar="F", help="text of the Lark grammar in this file")

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--echo", action="store_true", help="print the prompt before its continuation")
    add("--stats", action="store_true", help="print speeds to standard error at the end")
    add("--no-stream", dest="stream", action="store_false", help="do not print token by token")
    add("--json", action="store_true", help="print one JSON object per completion")
    add("--logprobs", type=_whole, metavar="N", help="with --json: of each token and the best N")


class _AddBias(argparse.Action):
    """Collects ID=X into a dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        token, _, bias = str(values).partition("=")
        try:
            pair = {int(token): float(bias)}
        except ValueError:
            parser.error(f"{option_string}: expected ID=X, such as 17=-100, found {values!r}")
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **pair})


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {shown(text)}") from None


def _whole_or_none(text: str) -> int | None:
    return None if text == "none" else _whole(text)


def _size(text: str) -> int:
    """Bytes: "500MB", "2GiB", "1.5g"; single letters are powers of 1024."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)", text.strip().lower())
    # A float holds a number of 20 digits, which is more than any memory.
    if match is None or match[2] not in _UNITS or len(match[1]) > 20:
        raise argparse.ArgumentTypeError(
            f"expected a size such as 500MB or 2GiB, found {shown(text)}"
        )
    return int(float(match[1]) * _UNITS[match[2]])
