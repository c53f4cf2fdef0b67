"""Other people's clients against the server: whole answers, streams, loops of calls, errors.

Each client is a program that reports, for each API and check, what it made of the server's answers
(python/reporting.py, javascript/reporting.mjs). Behind the server is a forced model, so it is known
what the client should have got, and what the model was shown when the client came back.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import environments
import pytest
from forced_model import ANSWER, PREAMBLE, THINKING, forced_app
from serving import serving
from vocabularies import o200k_path
from waiting import WORK

HERE = Path(__file__).parent
WEATHER = "It rains."
QUIET = {  # nothing is downloaded, nothing is told to anybody
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "PYTHONWARNINGS": "ignore",
}
TEXTS = ("plain", "streamed", "summary")
LOOPS = ("tools", "tools_streamed", "preamble")
ALL = ("plain", "streamed", *LOOPS, "undeclared", "structured", "too_long")
AGENT = (*ALL, "history")


@dataclass(frozen=True)
class Client:
    """A program, and what is peculiar to its client.

    Attributes:
        environment: of Python, or "javascript"; None: that of the tests.
        checks: by API.
        hides: of the checks those ("api/check", "api/*") where the client does not show the
            thinking that it got.
        forgets: those where it does not send thinking back, though the model needs it.
        too_long: the class of its error for a prompt that is longer than the context.
        undeclared: the class of its error for a call of a tool that it does not have; None: it
            tells the model.
    """

    program: str
    environment: str | None
    checks: dict[str, tuple[str, ...]]
    hides: tuple[str, ...] = ()
    forgets: tuple[str, ...] = ()
    too_long: str = "BadRequestError"
    undeclared: str | None = None


CLIENTS = [
    Client(
        "openai_python.py",
        None,
        {"chat": ALL, "responses": (*ALL, "encrypted")},
    ),
    Client(
        "openai_agents.py",
        "agents",
        dict.fromkeys(("chat", "responses"), AGENT),
        undeclared="ModelBehaviorError",
    ),
    Client(
        "langchain_agents.py",
        "agents",
        {
            "chat": (*AGENT, "structured_by_call", "parallel"),
            "responses": (
                *ALL,
                "history",
                "structured_by_call",
                "parallel",
                "summary",
                "encrypted",
            ),
        },
        hides=("chat/plain", "chat/streamed", "responses/streamed"),
        forgets=("chat/*", "responses/tools_streamed"),
        too_long="ContextOverflowError",
    ),
    Client(
        "pydantic_ai_agents.py",
        "agents",
        dict.fromkeys(("chat", "responses"), (*AGENT, "structured_by_call")),
        too_long="ModelHTTPError",
    ),
    Client(
        "litellm_router.py",
        "routers",
        {"chat": ALL, "hosted_vllm": ALL, "responses": ("plain", "streamed", "tools", "too_long")},
        hides=("responses/streamed",),
        too_long="ContextWindowExceededError",
    ),
    Client(
        "instructor_models.py",
        "routers",
        {
            "tools": ("structured_by_call",),
            "tools_strict": ("structured_by_call",),
            "json_schema": ("structured", "structured_streamed"),
            "responses_tools": ("structured_by_call",),
        },
    ),
    Client(
        "openai_javascript.mjs",
        "javascript",
        {"chat": ALL, "responses": ALL},
        forgets=("chat/tools_streamed",),  # its helper keeps the last piece alone
    ),
    Client(
        "openai_agents.mjs",
        "javascript",
        dict.fromkeys(("chat", "responses"), AGENT),
        undeclared="ModelBehaviorError",
    ),
    Client(
        "vercel_ai.mjs",
        "javascript",
        {
            "responses": (*AGENT, "summary", "encrypted"),
            "chat": AGENT,
            "compatible": AGENT,
        },
        hides=("responses/plain", "responses/streamed", "chat/plain", "chat/streamed"),
        forgets=("chat/*",),
        too_long="AI_APICallError",
    ),
]


def cases():
    found = []
    for client in CLIENTS:
        marks = [pytest.mark.clients] if client.environment else []
        for api, checks in client.checks.items():
            for check in checks:
                name = f"{client.program.replace('.', '-')}-{api}-{check}"
                found.append(pytest.param(client, api, check, id=name, marks=marks))
    return found


@dataclass
class Served:
    """The server, and what programs reported that ran against it."""

    address: str
    prompts: list[str]  # that the model was shown
    reports: dict[str, dict] = field(default_factory=dict)

    def report(self, client):
        if client.program not in self.reports:
            command = [*command_of(client), self.address]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=WORK, env={**os.environ, **QUIET}
            )
            assert done.returncode == 0, done.stderr
            self.reports[client.program] = json.loads(done.stdout.splitlines()[-1])
        return self.reports[client.program]


def command_of(client):
    if client.environment == "javascript":
        return ["node", str(environments.javascript() / client.program)]
    python = environments.python(client.environment) if client.environment else sys.executable
    return [python, str(HERE / "python" / client.program)]


@pytest.fixture(scope="module")
def served():
    o200k_path()  # skips where it is not there
    with forced_app() as app, serving(app) as address:
        yield Served(address, app.state.chat.prompts)


def test_the_page_names_the_versions_that_are_tried():
    page = (environments.ROOT / "docs" / "clients.md").read_text()
    for name, version in environments.versions().items():
        name = re.escape(name.partition("[")[0])
        row = re.search(rf"^\| {name}( \(.*?\))? \| {re.escape(version)} \|", page, re.MULTILINE)
        assert row or name == "zod", f"{name} {version}"  # zod is a part of others' programs


@pytest.mark.parametrize(("client", "api", "check"), cases())
def test_client(served, client, api, check):
    where = f"{api}/{check}"
    found = served.report(client)[where]
    if check == "too_long":
        assert client.too_long in found["error"], found
        return
    if check == "undeclared" and client.undeclared:
        assert client.undeclared in found["error"], found
        return
    assert "error" not in found, found
    if check in TEXTS:
        assert found["text"] == ANSWER
        hidden = listed(where, client.hides)
        assert (found.get("thinking") or "") == ("" if hidden else THINKING)
        assert check != "streamed" or found["tokens"] > len(ANSWER.split())
    elif check == "parallel":
        assert found["texts"] == [ANSWER] * 3
    elif check.startswith("structured"):
        assert isinstance(found["value"]["city"], str) and isinstance(found["value"]["days"], int)
    else:
        assert found["text"] == ANSWER
        called = ["browser.search"] if check == "undeclared" else ["get_weather"]
        assert found["called"] == called + ["get_time"] * (check == "history")
        seen = [text for text in served.prompts if f"{client.program}/{where}: " in text]
        of_loop(seen[1], client, where)
        if check == "history":
            of_second_turn(seen[-1], kept=not listed(where, client.forgets))


def of_second_turn(prompt, kept):
    """Thinking stays until the answer that it led to, and no longer."""
    first, _, second = prompt.rpartition("<|start|>user")
    assert f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|end|>" in first
    assert "to=functions.get_weather" in first and "to=functions.get_time" in second
    assert THINKING not in first and (THINKING in second) == kept


def listed(where, places):
    return any(fnmatch(where, place) for place in places)


def of_loop(prompt, client, where):
    """What the model must be shown once a tool has answered."""
    name = "browser.search" if where.endswith("undeclared") else "functions.get_weather"
    behind = prompt.rpartition("<|start|>user")[2]
    assert f"to={name}" in behind
    said = "" if where.endswith("undeclared") else WEATHER
    assert f"<|start|>{name} to=assistant" in behind and said in behind
    assert (THINKING in behind) != listed(where, client.forgets)
    if where.endswith("preamble"):
        assert f"<|channel|>commentary<|message|>{PREAMBLE}" in behind
