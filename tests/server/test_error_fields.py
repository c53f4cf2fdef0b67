"""Which field of a request is at fault, as the API's `param` says it, whatever the words."""

import asyncio
import pickle

import httpx
import pytest
from fake_engine import settle
from test_structured import BundledHarmony

from gptoss import Error
from gptoss.server.api import app as server
from gptoss.server.errors import ApiError

GOOD = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Once"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Once", "max_tokens": 2},
    "/v1/responses": {"input": "Once", "max_output_tokens": 2},
}
CHAT, COMPLETIONS, RESPONSES = GOOD
ALL = tuple(GOOD)
FUNCTION = {"type": "function", "function": {"name": "f"}}
NO_SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}
TOO_LONG = "a " * 5000

# (where, the field that is at fault, the value that it is given beside a good request's fields).
SAMPLING = [
    *[(ALL, "temperature", value) for value in (-1, "hot", True, 1000)],
    *[(ALL, "top_p", value) for value in (0, 2, "x")],
    *[(ALL, "top_k", value) for value in (-2, 1.5)],
    *[(ALL, "min_p", value) for value in (-1, 2)],
    *[(ALL, "presence_penalty", value) for value in (-3, "x")],
    *[(ALL, "frequency_penalty", value) for value in (3, [])],
    *[(ALL, "repetition_penalty", value) for value in (0, 1000)],
    *[(ALL, "seed", value) for value in (-(1 << 63) - 1, 1 << 64, "x")],
    *[(ALL, "logit_bias", value) for value in (5, {"x": 1}, {"-1": 1}, {"1": "x"}, {"1": 1000})],
    (ALL, "logit_bias", {"100000": 1}),  # an id that this model has not
    (ALL, "stop", ["x"] * 50),
    (ALL, "stop", 5),
    (ALL, "priority", "high"),
    ((CHAT, COMPLETIONS), "n", 0),
    ((CHAT, COMPLETIONS), "n", 1000),
    ((CHAT, COMPLETIONS), "ignore_eos", "yes"),
    ((CHAT, COMPLETIONS), "max_tokens", -2),
    ((CHAT,), "max_completion_tokens", -2),
    ((RESPONSES,), "max_output_tokens", "many"),
    ((COMPLETIONS,), "logprobs", 1000),
    ((COMPLETIONS,), "logprobs", "x"),
]
OTHERS = [
    (ALL, "stream", "yes"),
    ((CHAT, COMPLETIONS), "stream_options", 5),
    ((COMPLETIONS,), "echo", "yes"),
    ((COMPLETIONS,), "suffix", "x"),
    ((CHAT,), "functions", [1]),
    ((RESPONSES,), "previous_response_id", "x"),
    *[((COMPLETIONS,), "prompt", value) for value in ([], 5, [10**9], [[]], TOO_LONG)],
    *[((COMPLETIONS,), "prompt", ["Once", value]) for value in (TOO_LONG, [10**9])],
    *[((CHAT,), "messages", value) for value in ([], 5, [5], [{"role": "x"}])],
    *[
        ((CHAT,), "messages", [{"role": "user", "content": value}])
        for value in (None, 5, [{"type": "image_url"}], TOO_LONG)
    ],
    *[((RESPONSES,), "input", value) for value in ([], 5, [5], TOO_LONG, [{"role": "x"}])],
    ((RESPONSES,), "input", [{"role": "user", "content": 5}]),
    ((RESPONSES,), "instructions", 5),
    *[
        ((CHAT, RESPONSES), "tools", value)
        for value in (5, [5], [{"type": "function"}], [FUNCTION] * 2)
    ],
    ((CHAT, RESPONSES), "tool_choice", "always"),
    *[((CHAT,), "reasoning_effort", value) for value in ("huge", 5)],
    ((RESPONSES,), "reasoning", 5),
    ((RESPONSES,), "text", 5),
]  # fmt: skip
FORMS = [
    *[((CHAT, COMPLETIONS), "response_format", value) for value in ({"type": "x"}, NO_SCHEMA)],
    *[((CHAT, COMPLETIONS), "guided_grammar", value) for value in ("x", "start: <|no|>")],
    ((CHAT, COMPLETIONS), "guided_regex", "("),
    ((CHAT, COMPLETIONS), "guided_choice", []),
    ((CHAT, COMPLETIONS), "guided_json", {"type": "x"}),
    ((COMPLETIONS,), "guided_json", {"$ref": "#"}),
]
# (where, the field at fault, what is sent beside a good request's fields).
TOGETHER = [
    ((CHAT,), "top_logprobs", {"logprobs": True, "top_logprobs": 1000}),
    ((RESPONSES,), "reasoning.effort", {"reasoning": {"effort": "huge"}}),
    ((CHAT,), "tools", {"tool_choice": "required"}),
]
FORMS_TOGETHER = [
    (ALL, "structured_outputs.regex", {"structured_outputs": {"regex": "("}}),
    (ALL, "structured_outputs.grammar", {"structured_outputs": {"grammar": "start: <|no|>"}}),
    ((RESPONSES,), "text.format", {"text": {"format": {"type": "x"}}}),
    (
        (RESPONSES,),
        "text.format",
        {"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
    ),
]
STRICT = {
    "type": "function",
    "name": "f",
    "strict": True,
    "parameters": {"type": "x"},
    "function": {"name": "f", "strict": True, "parameters": {"type": "x"}},
}


def cases(single, together):
    return [
        *((path, field, {field: value}) for where, field, value in single for path in where),
        *((path, field, sent) for where, field, sent in together for path in where),
    ]


@pytest.fixture(scope="module", params=["plain", "harmony"])
def ask(request, engine):
    """ask(path, body) → what is wrong with it."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "harmony":
            patch.setattr(server, "load_chat", BundledHarmony)
        app = server.create_app(engine, server.ServerOptions("nano"))

    async def post(path, body):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post(path, json=body)

    def ask(path, body):
        answer = asyncio.run(post(path, body))
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]

    ask.chat = request.param
    yield ask
    settle(engine)


@pytest.fixture(params=["as worded", "reworded"])
def worded(request, monkeypatch):
    """Nothing may depend on the words of a message."""
    if request.param == "reworded":

        def init(error, message="", *, field=None, code=None):
            ValueError.__init__(error, "so geht das nicht")
            error.field, error.code = field, code

        monkeypatch.setattr(Error, "__init__", init)
    return request.param


@pytest.mark.parametrize(("path", "field", "sent"), cases(SAMPLING + OTHERS, TOGETHER))
def test_the_field_at_fault(ask, worded, path, field, sent):
    error = ask(path, {**GOOD[path], **sent})
    assert error["param"] == field and error["type"] == "invalid_request_error"
    assert "so geht das nicht" in error["message"] or worded == "as worded"


@pytest.mark.parametrize(("path", "field", "sent"), cases(FORMS, FORMS_TOGETHER))
def test_the_field_that_asks_for_a_form(ask, worded, path, field, sent):
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    assert ask(path, {**GOOD[path], **sent})["param"] == field


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_tools(ask, worded, path):
    """Of strict schemas, and for a model that cannot call any."""
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    assert ask(path, {**GOOD[path], "tools": [STRICT]})["param"] == "tools"


def test_messages_name_the_field_that_was_sent(ask):
    """Though the engine has another name for it."""
    for path, field, message in (
        (RESPONSES, "max_output_tokens", "max_output_tokens: expected an integer"),
        (COMPLETIONS, "max_tokens", "max_tokens: expected an integer"),
    ):
        assert ask(path, {**GOOD[path], field: -2})["message"].startswith(message)


def test_an_error_that_travels_between_processes():
    error = ApiError("come again", 429, field="prompt", code="later", headers={"Retry-After": "1"})
    found = pickle.loads(pickle.dumps(error))
    assert found.body() == error.body() and found.body()["error"]["param"] == "prompt"
    assert (found.status, found.headers) == (429, {"Retry-After": "1"})
