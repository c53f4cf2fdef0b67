"""`gptoss chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss.cli.arguments import add_model
from gptoss.errors import Error

if TYPE_CHECKING:
    from gptoss.chat import Conversation, HarmonyChat, Message, PlainChat
    from gptoss.engine import Engine
    from gptoss.request import SamplingParams

NAME = "chat"
HELP = "Talk to a model."

_HELP = """\
A line is a message. It goes on in the next line behind \\, or from \"\"\" to \"\"\".
/reset            forget the conversation     /system TEXT   instructions (none: show them)
/effort LEVEL     low, medium or high         /save FILE     the conversation as JSON
/help             this                        /quit          or Ctrl-D
Ctrl-C stops an answer; what was written of it stays."""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""

    add_model(parser, first=True)
    add_conversation(parser)


def add_conversation(parser: argparse.ArgumentParser) -> None:
    """How the model answers: what `make_session` reads."""
    add = parser.add_argument_group("conversation").add_argument
    add("--system", metavar="TEXT", default="", help="instructions for the model")
    add("--effort", default="medium", choices=["low", "medium", "high"], help="of reasoning")
    add("--hide-thinking", action="store_true", help="show answers only")
    add("--max-tokens", type=int, default=2048, metavar="N", help="of an answer (default: 2048)")
    add("--temperature", type=float, default=1.0, metavar="X", help="default: 1")
    add("--top-p", type=float, default=1.0, metavar="X", help="default: 1")
    add("--seed", type=int, metavar="N", help="makes answers repeatable")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Read messages and print answers until the end of the input."""
    from gptoss.cli.opening import open_engine

    params = sampling(arguments, parser, NAME)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    # A byte that is no UTF-8 must not end the conversation.
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if terminal:
        _edit_lines()
    with open_engine(arguments) as engine:
        session = make_session(engine, params, arguments)
        if terminal:
            print(f"{arguments.model_name}. /help tells what there is, Ctrl-D ends.")
        if session.chat.name == "plain":
            print(
                "This model was not taught conversations: it goes on with what you write.",
                file=sys.stderr,
            )
        show = Printer(terminal, not arguments.hide_thinking)
        for text in read_messages(lambda prompt: input(prompt if terminal else "")):
            try:
                if not command(session, text):
                    _answer(session, text, show)
            except EOFError:
                break
            except Error as error:
                print(f"gptoss: error: {error}", file=sys.stderr)
    return 0


def sampling(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, command: str
) -> SamplingParams:
    """What `add_conversation` says of sampling; a value out of range is an error of the command."""
    from gptoss.request import SamplingParams

    try:
        return SamplingParams(
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
    except Error as error:
        parser.error(f"{command}: {error}")


def make_session(engine: Engine, params: SamplingParams, arguments: argparse.Namespace) -> Session:
    """A conversation that has not begun."""
    from gptoss.chat import load_chat

    return Session(engine, load_chat(engine.tokenizer), params, arguments.system, arguments.effort)


def read_messages(read_line: Callable[[str], str]) -> Iterator[str]:
    """Messages out of lines: see _HELP. Empty ones are left out; ends with the input."""
    while True:
        try:
            line = read_line("> ")
            if line.startswith('"""'):
                lines = [line[3:]]
                while not lines[-1].endswith('"""'):
                    lines.append(read_line(". "))
                lines[-1] = lines[-1][:-3]
            else:
                lines = [line]
                while lines[-1].endswith("\\"):
                    lines[-1] = lines[-1][:-1]
                    lines.append(read_line(". "))
        except EOFError:
            return
        except KeyboardInterrupt:  # the line is given up, not the conversation
            print()
            continue
        text = "\n".join(lines).strip()
        if text:
            yield text


def command(session: Session, text: str) -> bool:
    """Carry out a command; False for a text that is not one. EOFError: the end is wanted."""
    if not text.startswith("/"):
        return False
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if name == "/reset":
        session.messages.clear()
    elif name == "/system":
        if rest:
            session.system = rest
        else:
            print(session.system or "(no instructions)")
    elif name == "/effort":
        session.set_effort(rest)
    elif name == "/save":
        session.save(Path(rest))
    elif name == "/help":
        print(_HELP)
    elif name in ("/quit", "/exit"):
        raise EOFError
    else:
        raise Error(f"expected /help, /reset, /system, /effort, /save or /quit, found {name}")
    return True


class Session:
    """A conversation with a model, of `Message`s as the model wrote them."""

    def __init__(
        self,
        engine: Any,
        chat: HarmonyChat | PlainChat,
        params: SamplingParams,
        system: str = "",
        effort: str = "medium",
    ) -> None:
        self.engine = engine
        self.chat = chat
        self.params = params
        self.system = system
        self.messages: list[Message] = []
        self.set_effort(effort)

    def set_effort(self, effort: str) -> None:
        from gptoss.chat import Conversation

        Conversation((), effort=effort)  # which checks it
        self.effort = effort

    def save(self, path: Path) -> None:
        """All of it as JSON, as OpenAI's API has it: {"messages": […]}."""
        from gptoss.chat import dump_messages

        if not path.name:
            raise Error("/save: expected the name of a file")
        messages = dump_messages([*self._instructions(), *self.messages])
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise Error(f"/save {path}: {error.strerror}") from None

    def answer(self, text: str) -> Iterator[tuple[str, str]]:
        """(channel, new text) while the model writes. A stop in between keeps what was written."""
        from gptoss.chat import HarmonyChat, Message, valid_text

        self.messages.append(Message("user", content=valid_text(text)))
        prompt = self._prompt()
        write = self._in_harmony if isinstance(self.chat, HarmonyChat) else self._plainly
        yield from write(prompt)

    def _plainly(self, prompt: list[int]) -> Iterator[tuple[str, str]]:
        from gptoss.chat import FINAL, Message

        written = ""
        try:
            with self.engine.stream(prompt, self.params) as stream:
                for delta in stream:
                    if delta.text:
                        written += delta.text
                        yield FINAL, delta.text
        finally:
            self.messages.append(Message("assistant", FINAL, content=written))

    def _in_harmony(self, prompt: list[int]) -> Iterator[tuple[str, str]]:
        from gptoss.chat import FINAL, HarmonyChat

        assert isinstance(self.chat, HarmonyChat)
        parser = self.chat.parser()
        try:
            with self.engine.stream(prompt, self.params) as stream:
                for delta in stream:
                    for token in delta.token_ids:
                        for piece in parser.push(token):
                            if piece.message.from_model:
                                yield piece.message.channel or FINAL, piece.text
            for piece in parser.finish():
                if piece.message.from_model:
                    yield piece.message.channel or FINAL, piece.text
        finally:
            # What somebody else says is not the model's to write.
            self.messages += [m for m in parser.messages if m.from_model and m.content]

    def _prompt(self) -> list[int]:
        """As much of the conversation as leaves room for an answer: old messages go first.

        Raises Error when not even the last message fits; it is forgotten then.
        """
        room = self.engine.info()["context_length"] - min(self.params.max_tokens or 1, 256)
        first = 0
        while True:
            ids = self.chat.render(self._conversation(first)).ids
            if len(ids) <= room:
                return ids
            later = [i for i in range(first + 1, len(self.messages))
                     if self.messages[i].role == "user"]  # fmt: skip
            if not later:
                self.messages.pop()
                raise Error(
                    f"message: expected at most {room} tokens (the model's context less room for "
                    f"an answer), found {len(ids)} with its instructions"
                )
            first = later[0]

    def _conversation(self, first: int) -> Conversation:
        from gptoss.chat import Conversation

        messages = (*self._instructions(), *self.messages[first:])
        return Conversation(messages, effort=self.effort, today=date.today())

    def _instructions(self) -> list[Message]:
        from gptoss.chat import Message, valid_text

        return [Message("system", content=valid_text(self.system))] if self.system else []


class Printer:
    """Answers as they come; thinking before them, dimmed where that shows."""

    def __init__(self, terminal: bool, thinking: bool) -> None:
        self._dim, self._plain = (_DIM, _PLAIN) if terminal else ("", "")
        self._thinking = thinking

    def __call__(self, pieces: Iterator[tuple[str, str]]) -> None:
        last = ""
        try:
            for channel, text in pieces:
                if channel == "analysis" and not self._thinking:
                    continue
                if channel != last:
                    print(end="\n\n" if last else "")
                    print(self._dim if channel == "analysis" else self._plain, end="")
                    last = channel
                print(text, end="", flush=True)
        finally:
            print(self._plain, flush=True)


def _answer(session: Session, text: str, show: Printer) -> None:
    pieces = session.answer(text)
    try:
        show(pieces)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]


def _edit_lines() -> None:
    try:
        import readline  # noqa: F401  # input() then knows arrow keys and a history
    except ImportError:
        pass
