"""`gptoss run`: talk to a model, or ask it one thing."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from gptoss.cli import chat
from gptoss.cli.arguments import Parser, SetModel, add_first_model, add_model
from gptoss.errors import Error

if TYPE_CHECKING:
    from gptoss.cli.chat import Session

NAME = "run"
HELP = "Talk to a model, or ask it one thing; fetches it when it is not here."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    if isinstance(parser, Parser):
        parser.intermixed = True
    add_first_model(parser, action=_ModelOrWord)
    add_model(parser)
    parser.add_argument(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help="one message, answered on standard output; what is piped in follows it. Without "
        "either, a conversation begins",
    )
    chat.add_conversation(parser)


class _ModelOrWord(SetModel):
    """The first argument: MODEL, or where -m names that, the first word of PROMPT."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, "model_given", None) is None:
            super().__call__(parser, namespace, values, option_string)
        else:
            namespace.first_word = [values]


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """A conversation, or one answer; the exit code."""
    from gptoss.cli.opening import open_engine

    params = chat.sampling(arguments, parser, NAME)
    text = _message([*getattr(arguments, "first_word", []), *arguments.prompt])
    if text is None:
        return chat.run(arguments, parser)
    if not text.strip():
        parser.error("run: expected a message in PROMPT or on standard input, found an empty one")
    terminal = sys.stdout.isatty()
    with open_engine(arguments) as engine:
        session = chat.make_session(engine, params, arguments)
        # Into a pipe or a file goes the answer alone.
        show = chat.Printer(terminal, terminal and not arguments.hide_thinking)
        show(session.answer(text))
        _say_why_empty(session)
    return 0


def _message(words: list[str]) -> str | None:
    """PROMPT and what is piped in, or None for neither."""
    parts = []
    if words:
        try:
            # Bytes of the command line that are not text in this locale are lone surrogates.
            parts.append(os.fsencode(" ".join(words)).decode())
        except UnicodeDecodeError as error:
            found = error.object[error.start]
            raise Error(f"PROMPT: expected UTF-8, found byte {found:#04x}") from None
    if _is_piped():
        piped = sys.stdin.buffer.read().decode(errors="replace")
        if piped.strip() or not parts:
            parts.append(piped)
    return "\n\n".join(parts) if parts else None


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file; /dev/null and a service's socket are neither."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not of the system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _say_why_empty(session: Session) -> None:
    """The model may have thought until its tokens were used up."""
    answered = any(m.role == "assistant" and m.channel != "analysis" for m in session.messages)
    if not answered:
        print(
            f"gptoss: the model thought and did not answer: --max-tokens (now "
            f"{session.params.max_tokens}) gives it room, --effort low asks for less thinking",
            file=sys.stderr,
        )
