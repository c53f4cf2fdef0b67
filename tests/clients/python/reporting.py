"""What every client is asked for, and how its program reports what it got.

    python CLIENT.py ADDRESS

prints a line of JSON: for each API and check either what the client made of the answer, or the
class of the error that it raised and what that says.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.argv[0]).name
ADDRESS = f"{sys.argv[1]}/v1"
KEY = "none"
MODEL = "gpt-oss-20b"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = "It rains."  # what the tool says
AGAIN = "Again. !call get_time"  # what the user says in a second turn
WORDS = {  # for the forced model
    "tools": "!call get_weather",
    "tools_streamed": "!call get_weather",
    "encrypted": "!call get_weather",
    "history": "!call get_weather",
    "preamble": "!call get_weather !preamble",
    "undeclared": "!builtin",
    "structured": "!answer",
    "too_long": "much " * 140_000,
}


class Report:
    """Runs checks as they are defined.

    found: by API and check.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self._loop = asyncio.new_event_loop()  # one, as clients keep connections

    def __call__(self, api: str, check: str) -> Callable[[Callable[[str], Any]], None]:
        """A decorator for a function of the user's text, whose result is reported."""

        def run(function: Callable[[str], Any]) -> None:
            text = f"{PROGRAM}/{api}/{check}: {WORDS.get(check, '')}"
            try:
                found = function(text)
                if inspect.isawaitable(found):
                    found = self._loop.run_until_complete(found)
            except Exception as error:
                names = [each.__name__ for each in type(error).__mro__]
                found = {"error": names, "says": str(error)[:500]}
            self.found[f"{api}/{check}"] = found

        return run

    def print(self) -> None:
        print(json.dumps(self.found))
