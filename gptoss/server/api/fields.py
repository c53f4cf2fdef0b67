"""Whose a request is, and what they may ask for."""

from __future__ import annotations

import json
from asyncio import AbstractEventLoop
from dataclasses import dataclass

from gptoss.server.errors import ApiError


@dataclass(frozen=True)
class Caller:
    """Who asks, and the event loop that the answer is read in.

    client: tells callers apart. priorities: the least and the most that it may ask for. isolated:
    whether the prefix cache has nothing of others' for it.
    """

    loop: AbstractEventLoop
    client: str = ""
    priorities: tuple[int, int] = (-1000, 1000)
    isolated: bool = False

    def priority(self, asked: int) -> int:
        """What it asks for. Raises ApiError where it may not."""
        least, most = self.priorities
        if not least <= asked <= most:
            raise ApiError(
                f"priority: expected {least} to {most}, as this server allows (gptoss serve "
                f"--priority), found {asked}",
                field="priority",
            )
        return asked

    def salt(self, asked: str | None) -> str:
        """What keeps its part of the prefix cache apart. asked: by the request itself."""
        return (
            json.dumps([self.client if self.isolated else None, asked])
            if (self.isolated or asked)
            else ""
        )
