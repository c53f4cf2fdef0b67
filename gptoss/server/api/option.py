"""What one option of a request is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gptoss.request import Grammar
from gptoss.server.api.option_values import anything, asks_nothing

Route = Literal["chat", "responses", "completions", "tokenize", "detokenize"]
Verdict = Literal["done", "mapped", "refused"]

CHAT: tuple[Route, ...] = ("chat",)
RESPONSES: tuple[Route, ...] = ("responses",)
COMPLETIONS: tuple[Route, ...] = ("completions",)
TOKENIZE: tuple[Route, ...] = ("tokenize",)
DETOKENIZE: tuple[Route, ...] = ("detokenize",)
BOTH: tuple[Route, ...] = ("chat", "completions")
CONVERSATIONS: tuple[Route, ...] = ("chat", "responses")
ANSWERS: tuple[Route, ...] = ("chat", "responses", "completions")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as it stands in a request; with dots where it stands inside of other objects.
        routes: those that have it.
        verdict: "done": it does what its author says; "mapped": it is taken, and does what `says`
            tells; "refused": a value that asks for anything is an error.
        says: what it does, or why not, in one line.
        of: whose it is.
        read: checks a value that is not null and returns what is meant by it; raises ApiError.
        default: what it is where it is missing or null.
        param: the parameter of `SamplingParams` that it sets. Of several options that set the same
            one, the first in the table counts.
        form: what the answer must be, of a value that was read; None: it is no such option.
        harmless: of one that is refused: whether a value asks for nothing.
    """

    name: str
    routes: tuple[Route, ...]
    verdict: Verdict
    says: str
    of: str = "OpenAI"
    read: Callable[[Any, str], Any] = anything
    default: Any = None
    param: str | None = None
    form: Callable[[Any, str], Grammar | None] | None = None
    harmless: Callable[[Any], bool] = asks_nothing
