"""The arguments of the command line: names, help, and what they turn into."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from gptoss import __version__
from gptoss.engine.options import OPTIONS, EngineOptions, Option
from gptoss.errors import Error, shown
from gptoss.files import parse_size


class CommandModule(Protocol):
    """A file of this folder that defines one command."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options; imports nothing heavy."""

    def run(self, arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
        """Carry it out; the exit code."""


LAYOUTS = ["original", "huggingface", "huggingface-bf16"]
MODEL = OPTIONS["model"].help


class Parser(argparse.ArgumentParser):
    """One whose errors are not lost below a page of usage.

    intermixed: options may stand between the arguments, where one of them takes several words.
    commands: the names of those below this one.
    """

    intermixed = False
    commands: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not self.intermixed:
            return super().parse_known_args(args, namespace)
        self.intermixed = False  # which comes back here
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.intermixed = True

    def error(self, message: str) -> NoReturn:
        command, _, rest = message.partition(": ")
        # A command that finds its options at odds names itself, as it has the parser of all.
        prog = self.prog
        if rest and command in self.commands:
            prog, message = f"{prog} {command}", rest
        print(f"{prog}: error: {message}", file=sys.stderr)
        print(f"{prog} --help lists what there is.", file=sys.stderr)
        raise SystemExit(2)


def build_parser(modules: Sequence[CommandModule]) -> argparse.ArgumentParser:
    """The whole command line: one command per module, in this order."""
    # Before the command or after it: SUPPRESS keeps the second from undoing the first.
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser = Parser(
        prog="gptoss", description="Run gpt-oss models on your own machine.", parents=[common]
    )
    parser.add_argument("--version", action="version", version=f"gptoss {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    parser.commands = tuple(module.NAME for module in modules)
    for module in modules:
        made = commands.add_parser(
            module.NAME, help=module.HELP, description=module.HELP, parents=[common]
        )
        made.set_defaults(run=module.run)
        module.add_arguments(made)
    return parser


def add_model(parser: argparse.ArgumentParser, *, first: bool = False) -> None:
    """Which model, and how it runs: what `engine_options` reads.

    first: it may be named by the first argument, MODEL, as well as by -m.
    """
    if first:
        add_first_model(parser)
    group = parser.add_argument_group("model")
    add_engine_options(group)
    add_offline(group)


def add_first_model(
    parser: argparse.ArgumentParser,
    default: str | None = "the bundled model",
    action: type[argparse.Action] | None = None,
) -> None:
    """MODEL by its place, beside an option -m. default: what its absence means, in words."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        action=action or SetModel,
        default=argparse.SUPPRESS,  # what -m has set stays
        help=MODEL if default is None else f"{MODEL} (default: {default})",
    )


def add_model_names(parser: argparse.ArgumentParser, default: str | None) -> None:
    """MODEL by its place or by -m, for commands without the engine's other options."""
    add_first_model(parser, default)
    parser.add_argument("-m", "--model", metavar="MODEL", action=SetModel, help="the same")
    add_offline(parser)


def add_offline(group: Any) -> None:
    """Whether a model may be downloaded."""
    group.add_argument(
        "--offline", action="store_true", help="download nothing; so does HF_HUB_OFFLINE=1"
    )


class SetModel(argparse.Action):
    """The model, from its place or from an option, not from both."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = getattr(namespace, "model_given", None)
        if given is not None:
            parser.error(f"expected one model, found {given} and {values}")
        namespace.model_given = namespace.model = values


def add_engine_options(
    group: Any, names: Iterable[str] = OPTIONS, defaults: Mapping[str, Any] | None = None
) -> None:
    """Arguments for fields of `EngineOptions`, each under the field's name.

    group: a parser or a group of one. defaults: where they are not the engine's.
    """
    for name in names:
        option = OPTIONS[name]
        default = (defaults or {}).get(name, option.default)
        flag = f"--{name.replace('_', '-')}"
        example = ", such as 2GiB" if option.kind == "bytes" else ""
        unset = option.unset if default is None else default
        text = f"{option.help}{example} (default: {unset})"
        if option.kind == "switch" and default is True:
            group.add_argument(
                f"--no-{flag[2:]}", action="store_false", dest=name, help=option.disable
            )
        elif option.kind == "switch":
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=text
            )
        else:
            flags = ["-m", flag] if name == "model" else [flag]
            more = {"action": SetModel, "metavar": "MODEL"} if name == "model" else {}
            group.add_argument(*flags, default=default, help=text, **_value(option), **more)


def _value(option: Option) -> dict[str, Any]:
    """How the value of an option is read, and what `--help` calls it."""
    match option.kind:
        case "choice":
            return {"choices": option.choices}
        case "count":
            return {"type": whole, "metavar": "N"}
        case "bytes":
            return {"type": size, "metavar": "SIZE"}
        case _:
            return {}


def engine_options(arguments: argparse.Namespace) -> EngineOptions:
    """What `add_engine_options` put there. Raises Error for a value out of range."""
    return EngineOptions(
        **{name: value for name, value in vars(arguments).items() if name in OPTIONS}
    )


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {shown(text)}") from None


def whole_or_none(text: str) -> int | None:
    return None if text == "none" else whole(text)


def size(text: str) -> int:
    """Bytes, as `files.parse_size` reads them."""
    try:
        return parse_size(text)
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None
