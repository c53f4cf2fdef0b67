"""Requests that are the client's mistake: told so by name, never an error of the server."""

import asyncio
import json

import httpx
import openai
import pytest
from fake_engine import settle
from serving import serving
from test_structured import BundledHarmony

from gptoss.server.api import app as server

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
GOOD = {
    CHAT: {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2},
    COMPLETIONS: {"prompt": "Once", "max_tokens": 2},
    RESPONSES: {"input": "Once", "max_output_tokens": 2},
}


@pytest.fixture(scope="module", params=["plain", "harmony"])
def send(request, engine):
    """send(path, data) → the answer. An exception that a route does not handle is raised."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "harmony":
            patch.setattr(server, "load_chat", BundledHarmony)
        app = server.create_app(engine, server.ServerOptions("nano"))

    async def post(path, data):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(
                path, content=data, headers={"Content-Type": "application/json"}
            )

    yield lambda path, data: asyncio.run(post(path, data))
    settle(engine)


def answered(send, path, body):
    """(whole, streamed) answers. None is an error of the server, nor breaks off."""
    for stream in (False, True):
        found = send(path, json.dumps({**body, "stream": stream}).encode())
        assert found.status_code in (200, 400), found.text
        if found.status_code == 200 and stream:
            events = [line for line in found.text.splitlines() if line.startswith("data: ")]
            last = events[-1] if path == RESPONSES else events.pop()
            ended = json.loads(last[6:])["type"] if path == RESPONSES else last[6:]
            assert ended in ("[DONE]", "response.completed", "response.incomplete")
            assert not any('"error": {' in event for event in events)
        else:
            error = found.json().get("error")
            assert (found.status_code == 200) == (not error)
        yield found


LONE = "cut \ud83d here"  # what JavaScript makes of half an emoji
TOOL = {"type": "function", "function": {"name": "f", "description": LONE, "parameters": {
    "type": "object", "properties": {LONE: {"description": LONE, "type": "string"}}}}}  # fmt: skip
FLAT = {"type": "function", **TOOL["function"]}
CALL = {"id": LONE, "type": "function", "function": {"name": "f", "arguments": LONE}}
HISTORY = [
    {"role": "system", "content": LONE},
    {"role": "user", "name": LONE, "content": [{"type": "text", "text": LONE}]},
    {"role": "assistant", "content": None, "reasoning": LONE, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": LONE, "content": LONE},
]
ITEMS = [
    {"role": "user", "content": LONE},
    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": LONE}]},
    {"type": "function_call", "call_id": LONE, "name": "f", "arguments": LONE},
    {"type": "function_call_output", "call_id": LONE, "output": LONE},
]
HALVES = [
    (CHAT, {"messages": [{"role": "user", "content": LONE}]}),
    (CHAT, {"messages": HISTORY}),
    (CHAT, {"tools": [TOOL]}),
    (CHAT, {"stop": LONE}),
    (CHAT, {"user": LONE, "metadata": {LONE: LONE}, LONE: 5}),
    (COMPLETIONS, {"prompt": LONE}),
    (COMPLETIONS, {"prompt": ["a", LONE], "stop": LONE}),
    (RESPONSES, {"input": LONE}),
    (RESPONSES, {"input": ITEMS}),
    (RESPONSES, {"instructions": LONE}),
    (RESPONSES, {"metadata": {LONE: LONE}, "user": LONE}),
    (RESPONSES, {"tools": [FLAT]}),
    *(
        (path, {"structured_outputs": {kind: LONE}})
        for path in GOOD
        for kind in ("regex", "grammar")
    ),
]


@pytest.mark.parametrize(("path", "more"), HALVES)
def test_half_a_character(send, path, more):
    """It is U+FFFD, as everywhere, or refused; and what is echoed can be sent."""
    for found in answered(send, path, {**GOOD[path], **more}):
        found.content.decode()


DIGITS = 10**400
WRONG = [
    *((path, {name: DIGITS}) for path in GOOD for name in
      ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed", "top_k")),
    *((path, {"logit_bias": {"5": DIGITS}}) for path in GOOD),
    *((path, {"logit_bias": {"9" * 400: 1}}) for path in GOOD),
    *((path, {name: 1e-46}) for path in GOOD for name in ("top_p",)),
    *((path, {"response_format": kind}) for path in (CHAT, COMPLETIONS)
      for kind in ("json_object", "text", 5, [])),
    *((path, {"structured_outputs": {"json": schema}}) for path in GOOD for schema in
      ({"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                       "$ref": "#/$defs/a"})),
    *((CHAT, {"messages": [{"role": "user", "content": "a"},
                           {"role": "tool", "tool_call_id": name, "content": "b"}]})
      for name in ({}, [], 5, None, True, "x", {"a": [1]})),
    *((RESPONSES, {"input": [{"type": "reasoning", "content": content}]})
      for content in (5, True, 1.5)),
    *((path, {"tools": [{"type": "function", "name": "f", "strict": True,
                         "parameters": {"$ref": "#"}}]}) for path in (CHAT, RESPONSES)),
    (CHAT, {"tool_choice": {"type": "allowed_tools", "allowed_tools": 5}}),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": {}}}}),
    (CHAT, {"stream_options": "usage"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "more"), WRONG)
def test_what_is_refused_has_a_name(send, path, more):
    """Before anything is generated, though it would be met behind thinking."""
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    for found in answered(send, path, {**GOOD[path], **more}):
        assert found.status_code == 400
        error = found.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"], error["message"]


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["metadata", "tools", "temperature", "whatever"])
def test_numbers_that_json_has_not(send, path, word, name):
    tools = '[{"type": "function", "name": "f", "parameters": {"maximum": X}}]'
    value = {"tools": tools, "metadata": '{"a": X}'}.get(name, "X").replace("X", word)
    data = json.dumps(GOOD[path])[:-1] + f', "{name}": {value}}}'
    assert send(path, data.encode()).status_code == 400


@pytest.mark.parametrize("path", GOOD)
def test_what_is_nested_too_deep(send, path):
    deep = "[" * 900 + "]" * 900  # json reads it; not everything that comes after it does
    for name in ("tools", "messages", "input", "metadata", "tool_choice", "logit_bias", "stop"):
        data = json.dumps(GOOD[path])[:-1] + f', "{name}": {deep}}}'
        assert send(path, data.encode()).status_code in (200, 400)
    schema = '{"items":' * 900 + "{}" + "}" * 900
    tool = '[{"type": "function", "name": "f", "strict": true, "parameters": X}]'.replace(
        "X", schema
    )
    for name, value in (("tools", tool), ("guided_json", schema)):
        data = json.dumps(GOOD[path])[:-1] + f', "{name}": {value}}}'
        assert send(path, data.encode()).status_code in (200, 400)


@pytest.fixture(scope="module")
def client(engine):
    with serving(server.create_app(engine, server.ServerOptions("nano"))) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            yield client


LONG = "a " * 5000


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda c: c.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": LONG}]), "messages"),
        (lambda c: c.completions.create(model="nano", prompt=LONG), "prompt"),
        (lambda c: c.responses.create(model="nano", input=LONG), "input"),
    ],
)  # fmt: skip
def test_a_prompt_that_is_too_long_is_known_by_its_code(client, engine, ask, field):
    """And by the words that clients look for as well."""
    with pytest.raises(openai.BadRequestError) as error:
        ask(client)
    assert error.value.code == "context_length_exceeded" and error.value.param == field
    length = engine.info()["context_length"]
    for words in (f"this model's maximum context length is {length} tokens", "prompt is too long"):
        assert words in str(error.value)


def test_a_bug_is_not_the_clients_mistake(engine, monkeypatch):
    def broken(*given):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(server, "ChatRequest", broken)
    with serving(server.create_app(engine, server.ServerOptions("nano"))) as address:
        assert httpx.post(address + CHAT, json=GOOD[CHAT]).status_code == 500


@pytest.mark.parametrize("kind", [RecursionError, UnicodeError, OverflowError])
def test_what_nobody_saw_coming_is_refused(engine, monkeypatch, kind):
    def beyond(*given):
        raise kind("too deep")

    monkeypatch.setattr(server, "ChatRequest", beyond)
    with serving(server.create_app(engine, server.ServerOptions("nano"))) as address:
        answer = httpx.post(address + CHAT, json=GOOD[CHAT])
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("body: ")
        assert httpx.get(f"{address}/health").json()["running"] == 0
