"""Requests with any value in any field: answered or refused with a reason; never a server error."""

import asyncio
import json

import httpx
import pytest
from fake_engine import settle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_structured import BundledHarmony

from gptoss.server.api import app as server

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize"]

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
schema = st.sampled_from(
    [{"type": "string"}, {"type": "x"}, {}, {"enum": ["a"]}, {"$ref": "#"}, {"not": {}}, True, None]
)
function = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from(["f", "g", "", "f f", 5]), "parameters": schema,
                  "strict": st.booleans() | anything, "description": anything},
)  # fmt: skip
tool = anything | st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "x"])}, optional={"function": function, "name": anything}
)
part = anything | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "image_url", "x"])}, optional={"text": anything}
)
call = anything | st.fixed_dictionaries(
    {}, optional={"id": anything, "type": st.just("function"), "function": function}
)
message = anything | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "developer", "x"])},
    optional={"content": st.text(max_size=9) | st.lists(part, max_size=2) | anything,
              "tool_calls": st.lists(call, max_size=2) | anything, "tool_call_id": anything,
              "name": anything, "reasoning_content": anything},
)  # fmt: skip
item = message | st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "reasoning", "function_call", "function_call_output"])},
    optional={"content": anything, "output": anything, "call_id": anything, "name": anything,
              "arguments": anything, "role": st.just("user")},
)  # fmt: skip
form = anything | st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
    optional={"json_schema": st.fixed_dictionaries({}, optional={"schema": schema}) | anything,
              "schema": schema},
)  # fmt: skip
choice = st.sampled_from(["auto", "none", "required", "x"]) | anything | st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "allowed_tools"])},
    optional={"function": function, "tools": st.lists(tool, max_size=2), "mode": anything},
)  # fmt: skip
body = st.fixed_dictionaries(
    {"max_tokens": st.just(2), "max_output_tokens": st.just(2)},
    optional={
        "messages": st.lists(message, max_size=3) | anything,
        "input": st.lists(item, max_size=3) | st.text(max_size=5) | anything,
        "prompt": st.text(max_size=5) | st.lists(st.integers(0, 5000), max_size=4) | anything,
        "tokens": st.lists(st.integers(-1, 5000), max_size=4) | anything,
        "tools": st.lists(tool, max_size=2) | anything,
        "tool_choice": choice,
        "response_format": form,
        "text": st.fixed_dictionaries({}, optional={"format": form}) | anything,
        "guided_regex": st.sampled_from(["a", "(", "[a-z]{2}"]) | anything,
        "guided_choice": st.lists(st.text(max_size=3), max_size=3) | anything,
        "guided_grammar": st.sampled_from(['start: "a"', "start:", "x"]) | anything,
        "structured_outputs": st.fixed_dictionaries({}, optional={"json": schema}) | anything,
        "stream": st.booleans() | anything,
        "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()})
        | anything,
        "n": st.integers(-1, 3) | anything,
        "stop": st.lists(st.text(max_size=3), max_size=3) | anything,
        "logprobs": st.booleans() | st.integers(-1, 5) | anything,
        "top_logprobs": st.integers(-1, 5) | anything,
        "logit_bias": st.dictionaries(st.integers(-1, 5000).map(str), st.floats(), max_size=2)
        | anything,
        "temperature": st.floats(-1, 3) | anything,
        "top_p": anything,
        "seed": st.integers() | anything,
        "priority": st.integers(-5, 5) | anything,
        "reasoning_effort": st.sampled_from(["low", "x"]) | anything,
        "reasoning": anything,
        "instructions": anything,
        "model": st.sampled_from(["nano", "x"]) | anything,
        "metadata": anything,
    },
)


@pytest.fixture(scope="module", params=["plain", "harmony"])
def ask(request, engine):
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "harmony":
            patch.setattr(server, "load_chat", BundledHarmony)
        app = server.create_app(engine, server.ServerOptions("nano"))

    async def post(path, content):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(
                path, content=content, headers={"Content-Type": "application/json"}
            )

    loop = asyncio.new_event_loop()
    yield lambda path, content: loop.run_until_complete(post(path, content))
    loop.close()
    settle(engine)


GOOD = {
    "messages": [{"role": "user", "content": "Once"}], "prompt": "Once", "input": "Once",
    "tokens": [5, 6], "max_tokens": 2, "max_output_tokens": 2,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
}  # fmt: skip


@st.composite
def nearly_good(draw):
    """A request that could be answered, but for a field or two."""
    wild = draw(body)
    names = draw(st.lists(st.sampled_from(sorted(wild)), max_size=2))
    left_out = draw(st.sampled_from(["tools", "tools", *GOOD]))
    good = {name: value for name, value in GOOD.items() if name != left_out}
    return {**good, **{name: wild[name] for name in names}}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), request=nearly_good() | body)
def test_any_fields(ask, path, request):
    if path == "/v1/responses" and request.get("prompt") == GOOD["prompt"]:
        del request["prompt"]  # refused there
    answer = ask(path, json.dumps(request).encode())
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"] and len(error["message"]) < 2000
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert '"server_error"' not in answer.text


@settings(max_examples=100, deadline=None)
@given(path=st.sampled_from(PATHS), content=st.binary(max_size=60))
def test_any_bytes(ask, path, content):
    assert ask(path, content).status_code == 400
