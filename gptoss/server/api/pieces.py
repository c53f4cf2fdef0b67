"""What an answer is made of while it is written: typed pieces that every surface prints its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptoss.request import TokenLogprob

Kind = Literal["thinking", "text", "call"]
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Begin:
    """A choice's first token has come."""

    choice: int


@dataclass(frozen=True)
class Part:
    """New text of one message of a choice.

    Attributes:
        choice: which of the answers.
        number: which message of that answer, from 0; two messages of a kind are never one.
        kind: thinking, text for the user, or the arguments of a call.
        text: what is new; may be empty where a message begins or ends.
        channel: that the model wrote it in: "analysis", "commentary" or "final".
        begins, ends: whether it is the message's first part, its last.
        whole: with `ends`, whether the model ended the message; False: it was cut.
        call_id, name: of a call, in all its parts.
        logprobs: of the tokens of this text, where asked for.
        token_ids: those that came since the choice's last piece, headers and ends among them.
    """

    choice: int
    number: int
    kind: Kind
    text: str
    channel: str = "final"
    begins: bool = False
    ends: bool = False
    whole: bool = True
    call_id: str = ""
    name: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A choice is done.

    reason: "length" where the limit cut it, calls or not; "tool_calls" where it ended with whole
    calls; else "stop". token_ids: as of a `Part`.
    """

    choice: int
    reason: Finish
    token_ids: tuple[int, ...] = ()


Piece = Begin | Part | Finished


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. thinking: those of the completion that were thinking."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    thinking: int = 0
