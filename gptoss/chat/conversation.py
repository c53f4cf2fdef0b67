"""A conversation, as every part of gptoss has it: what requests are read into and prompts made of.

It is the model's own view (the harmony format): thinking, an answer, a call of a tool and what the
tool said are messages of their own, told apart by author, channel and recipient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from gptoss.errors import Error, shown

ANALYSIS, COMMENTARY, FINAL = "analysis", "commentary", "final"
CHANNELS = (ANALYSIS, COMMENTARY, FINAL)
ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
BUILT_IN_TOOLS = ("browser", "python")
FUNCTIONS = "functions."  # the namespace of tools that a request declares


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        author: "system", "developer", "user" or "assistant"; any other name is a tool's, such as
            "functions.weather", whose result this is. ":name" behind a role names a person.
        channel: of the assistant "analysis" (thinking), "commentary" (calls, and what is said
            before them) or "final" (the answer); of a tool "commentary". None: none is written.
        recipient: whom it is for: of a call the tool, such as "functions.weather".
        content_type: such as "json"; "<|constrain|>json" is written with the special token.
        content: the text.
        call_id: of a call, and of its result, what binds them; None where nobody asked for one.
        weight: 0 for an assistant's message that training shows and does not teach.
    """

    author: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    content: str = ""
    call_id: str | None = None
    weight: int = 1

    @property
    def role(self) -> str:
        """One of ROLES."""
        name = self.author.partition(":")[0]
        return name if name in ROLES else "tool"

    @property
    def from_model(self) -> bool:
        return self.role == "assistant"

    @property
    def is_call(self) -> bool:
        """Whether the model asks a tool something."""
        return self.from_model and self.recipient not in (None, "assistant", "all", "user")

    @property
    def is_answer(self) -> bool:
        """Whether it is what the model has to say in the end."""
        return self.from_model and not self.is_call and self.channel in (FINAL, None)


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: its JSON schema, or None.

    strict: whether arguments must fit the schema; otherwise they are what the model writes.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class Conversation:
    """Messages, and what the model is told besides.

    Attributes:
        messages: in order. Those of "system" and "developer" are instructions; the system message
            of harmony itself is made of the fields below.
        tools: functions that are declared.
        effort: of reasoning: "low", "medium" or "high".
        today: the date that the model is told; None: none.
        built_in: the built-in tools that are declared: "browser", "python" or both.
        continues: whether the model is to continue the last message, an assistant's.

    Raises:
        Error: effort or built_in is none of these.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    effort: str = "medium"
    today: date | None = None
    built_in: tuple[str, ...] = ()
    continues: bool = False

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise Error(
                f"reasoning effort: expected one of {', '.join(EFFORTS)}, found "
                f"{shown(self.effort)}",
                field="reasoning_effort",
            )
        for name in self.built_in:
            if name not in BUILT_IN_TOOLS:
                raise Error(
                    f"built-in tool: expected one of {', '.join(BUILT_IN_TOOLS)}, found "
                    f"{shown(name)}",
                    field="built_in",
                )


def settled(messages: Sequence[Message]) -> list[Message]:
    """The same messages, each of the assistant's in a channel.

    What has none is a preamble where a call follows before anybody else speaks, and else an answer:
    clients send a turn as one message or as several.
    """
    found: list[Message] = []
    calls_follow = False
    for message in reversed(messages):
        if not message.from_model:
            calls_follow = False
        elif message.is_call:
            calls_follow = True
        elif message.channel is None:
            message = replace(message, channel=COMMENTARY if calls_follow else FINAL)
        found.append(message)
    return found[::-1]
