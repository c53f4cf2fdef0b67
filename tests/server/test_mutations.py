"""Requests that are nearly right, as clients with bugs send them: what is wrong with one is said to
its client, and leaves neither a traceback nor a word of it in the log.
"""

import asyncio
import copy
import json
import logging
import random

import httpx
import pytest
from fake_engine import settle
from test_structured import BundledHarmony

from gptoss.server.api import app as module
from gptoss.server.log import OneLine

CANARY = "canary7f3a"  # in every text that is sent
TOOL = {"name": f"f_{CANARY}", "description": CANARY, "parameters": {"type": "object"}}
BODIES = [
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 2}),
    ("/v1/completions", {"prompt": [CANARY, "b"], "n": 2, "max_tokens": 1, "logprobs": 2,
                         "stop": [CANARY], "logit_bias": {"5": 1}, "seed": 3}),
    ("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 2, "stream": True, "echo": True,
                         "structured_outputs": {"regex": "[a-c]+"}, "temperature": 0.5}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": CANARY}],
                              "max_completion_tokens": 2, "top_p": 0.9}),
    ("/v1/chat/completions", {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": CANARY}]},
            {"role": "user", "content": CANARY},
            {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {
                "name": f"f_{CANARY}", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": CANARY},
        ],
        "tools": [{"type": "function", "function": TOOL}], "max_tokens": 2, "stream": True,
        "stream_options": {"include_usage": True}, "metadata": {"a": CANARY}}),
    ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": CANARY}], "max_tokens": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "object", "properties": {CANARY: {"enum": [CANARY, 1]}}}}}}),
    ("/v1/responses", {"input": CANARY, "max_output_tokens": 2, "instructions": CANARY}),
    ("/v1/responses", {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": CANARY}]},
            {"type": "function_call", "call_id": "c1", "name": f"f_{CANARY}", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": CANARY},
        ],
        "tools": [{"type": "function", **TOOL}], "max_output_tokens": 2, "stream": True,
        "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}}),
    ("/tokenize", {"messages": [{"role": "user", "content": CANARY}]}),
]  # fmt: skip
ATOMS = [
    None, True, False, 0, -1, 1.5, 10**400, -(10**30), 1e308, 1e-320, 2**63, "", CANARY,
    CANARY + "\ud800", "\x00\x1b[2J\u202e", "٣", [], {}, [[]], [CANARY], {CANARY: CANARY},
    {"type": CANARY}, {"$ref": "#"}, [{"role": "user"}], [None] * 40, "(" * 300,
]  # fmt: skip
KEYS = [
    *(CANARY, "role", "content", "type", "name", "n", "stop", "tools", "stream", "echo"),
    *("logprobs", "top_logprobs", "prompt_logprobs", "priority", "cache_salt", "min_p"),
    *("guided_regex", "guided_grammar", "guided_choice", "tool_choice", "response_format"),
]
LENGTHS = {"max_tokens", "max_completion_tokens", "max_output_tokens"}
NUMBERS = (b"NaN", b"Infinity", b"-0", b"1e400", b"0x1", b"01")


def places(value, path=()):
    """The ways to each value in it."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value) if isinstance(value, list) else inner:
        yield from places(each, (*path, key))


def mutated(chance, body):
    """A body that differs in a few places; as bytes."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice([1, 1, 2, 3])):
        path = chance.choice([each for each in places(body) if each and each[-1] not in LENGTHS])
        outer = body
        for key in path[:-1]:
            outer = outer[key]
        change = chance.randrange(5)
        if change == 0:
            del outer[path[-1]]
        elif change == 1 and isinstance(outer, list):
            outer.extend(copy.deepcopy(outer[path[-1]]) for _ in range(chance.choice([1, 70])))
        elif change == 2 and isinstance(outer, dict):
            outer[chance.choice(KEYS)] = copy.deepcopy(chance.choice(ATOMS))
        elif change == 3:
            other = chance.choice(chance.choice(BODIES)[1:])
            outer[path[-1]] = copy.deepcopy(chance.choice([*other.values(), other]))
        else:
            outer[path[-1]] = copy.deepcopy(chance.choice(ATOMS))
        if not any(True for each in places(body) if each and each[-1] not in LENGTHS):
            break
    data = json.dumps(body, ensure_ascii=chance.random() < 0.8).encode("utf-8", "surrogatepass")
    if chance.random() < 0.1:
        at = chance.randrange(len(data))
        noise = chance.choice([*NUMBERS, bytes([chance.randrange(256)])])
        damaged = data[:at] + noise + data[at + chance.randrange(3) :]
        if all(name.encode() in damaged for name in LENGTHS & body.keys()):
            data = damaged  # else the answer is as long as the model's context
    return data


@pytest.fixture(scope="module")
def ask(engine):
    pytest.importorskip("llguidance")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_chat", BundledHarmony)
        app = module.create_app(engine, module.ServerOptions("nano"))

    async def post(path, content):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            headers = {"Content-Type": "application/json"}
            return await client.post(path, content=content, headers=headers)

    loop = asyncio.new_event_loop()
    yield lambda path, content: loop.run_until_complete(post(path, content))
    loop.close()
    settle(engine)


def held(ask, seeds):
    """Ask what these seeds make of the bodies."""
    written = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: written.append(OneLine().format(record))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for seed in seeds:
            path, body = BODIES[seed % len(BODIES)]
            data = mutated(random.Random(seed), body)
            answer = ask(path, data)
            told = (seed, path, data, answer.text)
            assert answer.status_code in (200, 400, 404, 413), told
            assert '"server_error"' not in answer.text, told
            if answer.status_code != 200:
                assert answer.json()["error"]["message"], told
            assert not any("    " in line or CANARY in line for line in written), (told, written)
    finally:
        root.removeHandler(handler)


def test_the_bodies_are_valid(ask):
    for path, body in BODIES:
        answer = ask(path, json.dumps(body).encode())
        assert answer.status_code == 200 and '"error": {' not in answer.text, answer.text


def test_a_few_mutations(ask):
    held(ask, range(360))


@pytest.mark.slow
def test_many_mutations(ask):
    held(ask, range(1000, 10_000))
