"""Answers that must have a form, through OpenAI's client; the bundled model writes them.

It has harmony's special tokens, and was never taught what they are for: whatever comes out in form
is the grammar's doing.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from fake_engine import settle
from pydantic import BaseModel
from serving import serving

from gptoss.chat.formats import HarmonyChat
from gptoss.server.api import app as server

pytest.importorskip("llguidance", reason="the extra grammar is missing")

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "parameters": CITY, "strict": True}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": CLOCK}]
ASKED = [{"role": "user", "content": "What will the weather be?"}]


class BundledHarmony(HarmonyChat):
    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def prompt(self, messages, options):
        names = set(self._tokenizer.special_tokens)
        text = "".join(f"<|start|>{m.role}<|message|>{m.content}<|end|>" for m in messages)
        return self._tokenizer.encode(text + "<|start|>assistant", allowed_special=names)


@pytest.fixture(scope="module")
def address(engine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "load_chat", BundledHarmony)
        app = server.create_app(engine, server.ServerOptions("nano"))
    with serving(app) as address:
        yield address


@pytest.fixture
def client(address, engine):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client
    settle(engine)


def likely_ends(engine):
    """Such a model would think for ever: messages and strings are made to end."""
    special = engine.tokenizer.special_tokens
    return {str(special["<|end|>"]): 50, str(engine.tokenizer.encode('"')[0]): 6}


def ask(client, engine, seed=1, **request):
    request = {"messages": ASKED, "model": "nano", "max_tokens": 400, "seed": seed, **request}
    return client.chat.completions.create(logit_bias=likely_ends(engine), **request)


def of_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


def check_city(text):
    found = json.loads(text)
    assert set(found) == {"city", "days"} and 1 <= found["days"] <= 9
    assert re.fullmatch("[A-Z][a-z]{2,8}", found["city"])


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_an_answer_that_fits_a_schema(client, engine, seed):
    done = ask(client, engine, seed, response_format=of_schema(CITY))
    (choice,) = done.choices
    assert choice.finish_reason == "stop"
    check_city(choice.message.content)


def test_the_same_streamed(client, engine):
    chunks = list(ask(client, engine, response_format=of_schema(CITY), stream=True))
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check_city(content)


def test_the_clients_own_parser(client, engine):
    class City(BaseModel):
        city: str
        days: int

    done = client.chat.completions.parse(
        model="nano", messages=ASKED, response_format=City, seed=5, max_tokens=400,
        logit_bias=likely_ends(engine),
    )  # fmt: skip
    assert isinstance(done.choices[0].message.parsed, City)


def test_any_json_object(client, engine):
    ends = {str(engine.tokenizer.encode(letter)[0]): 15 for letter in '}"'}
    bias = {**likely_ends(engine), **ends}
    done = client.chat.completions.create(
        model="nano", messages=ASKED, response_format={"type": "json_object"}, seed=2,
        max_tokens=400, logit_bias=bias,
    )  # fmt: skip
    assert isinstance(json.loads(done.choices[0].message.content), dict)


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"guided_regex": r"\d{3}-[a-f]{2}"}, r"\d{3}-[a-f]{2}"),
        ({"guided_choice": ["sun", "rain"]}, "sun|rain"),
        ({"guided_grammar": 'start: ("ab" | "cd"){3}'}, "(ab|cd){3}"),
        ({"structured_outputs": {"regex": "x{2,4}"}}, "x{2,4}"),
        ({"guided_json": {"enum": [1, 2]}}, "1|2"),
    ],
)
def test_other_forms(client, engine, form, fits):
    done = ask(client, engine, extra_body=form)
    assert re.fullmatch(fits, done.choices[0].message.content)
    done = client.completions.create(model="nano", prompt="Once", extra_body=form, max_tokens=60)
    assert re.fullmatch(fits, done.choices[0].text)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_must_be(client, engine, seed, stream):
    named = {"type": "function", "function": {"name": "weather"}}
    done = ask(client, engine, seed, tools=TOOLS, tool_choice=named, stream=stream)
    if stream:
        calls = [c for chunk in done for c in chunk.choices[0].delta.tool_calls or ()]
        assert calls[0].function.name == "weather"
        check_city("".join(call.function.arguments for call in calls))
        return
    (choice,) = done.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather"
    check_city(call.function.arguments)


def test_any_call_that_must_be(client, engine):
    ends = {str(engine.tokenizer.encode(letter)[0]): 15 for letter in '}"'}
    bias = {**likely_ends(engine), **ends}
    names = set()
    for seed in range(6):
        done = client.chat.completions.create(
            model="nano", messages=ASKED, tools=TOOLS, tool_choice="required", seed=seed,
            max_tokens=400, logit_bias=bias, temperature=2,
        )  # fmt: skip
        (call,) = done.choices[0].message.tool_calls
        assert isinstance(json.loads(call.function.arguments), dict)
        names.add(call.function.name)
    assert names <= {"weather", "clock"}


def test_strict_arguments_where_it_may_answer_as_well(client, engine):
    for seed in range(4):
        done = ask(client, engine, seed, tools=TOOLS[:1], temperature=2)
        for call in done.choices[0].message.tool_calls or ():
            check_city(call.function.arguments)
        if not done.choices[0].message.tool_calls:
            assert done.choices[0].finish_reason in ("stop", "length")


def test_responses(client, engine):
    shape = {"type": "json_schema", "name": "it", "schema": CITY, "strict": True}
    more = {"seed": 1, "logit_bias": likely_ends(engine)}
    done = client.responses.create(
        model="nano", input="Weather?", text={"format": shape}, max_output_tokens=400,
        extra_body=more,
    )  # fmt: skip
    check_city(done.output_text)
    assert done.text.format.type == "json_schema"
    tool = {"type": "function", **WEATHER}
    done = client.responses.create(
        model="nano", input="Weather?", tools=[tool], max_output_tokens=400, extra_body=more,
        tool_choice={"type": "function", "name": "weather"},
    )  # fmt: skip
    (call,) = [item for item in done.output if item.type == "function_call"]
    check_city(call.arguments)


def test_an_answer_that_is_cut_says_so(client, engine):
    done = ask(client, engine, response_format=of_schema(CITY), max_tokens=12)
    assert done.choices[0].finish_reason == "length"


BOMB = {"allOf": [{"anyOf": [{"required": [f"p{i}_{j}"]} for j in range(6)]} for i in range(12)]}


@pytest.mark.parametrize(
    ("form", "param", "message"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format", "found 'yaml'"),
        ({"response_format": "json"}, "response_format", "expected type text"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "expected a JSON schema"),
        ({"response_format": of_schema({"type": "x"})}, "response_format", "Invalid type"),
        ({"response_format": of_schema(BOMB)}, "response_format", "too large"),
        ({"guided_regex": "("}, "guided_regex", "regex"),
        ({"guided_choice": []}, "guided_choice", "expected 1 to"),
        ({"guided_grammar": "x"}, "guided_grammar", "grammar"),
        ({"guided_grammar": "start: <|no|>"}, "guided_grammar", "unknown special token"),
        ({"structured_outputs": 5}, "structured_outputs", "expected an object"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "expected one of them"),
        ({"tool_choice": "required"}, "tools", "found none"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "found 'always'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
         "tool_choice", "expected one of weather, clock, found 'x'"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": 5}},
         "tool_choice", "expected a list"),
        ({"tools": [{"type": "function", "function": {**WEATHER, "strict": "yes"}}]},
         "tools", "strict: expected true or false"),
        ({"tools": [{"type": "function", "function": {**WEATHER, "parameters": BOMB}}]},
         "tools", "too large"),
        ({"priority": "high"}, "priority", "expected an integer"),
        ({"priority": 10**6}, "priority", "expected an integer"),
    ],
)  # fmt: skip
def test_forms_that_are_none(address, form, param, message):
    answer = httpx.post(f"{address}/v1/chat/completions", json={"messages": ASKED, **form})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"] and error["param"] == param
    assert len(error["message"]) < 1500


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_bombs_do_not_hold_up_others(client, address, engine):
    """Schemas that would cost too much come beside a stream, which goes on."""
    bombs = [
        BOMB,
        nested(300),
        {"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"},
        {"anyOf": [{"const": "x" * 50 + str(i)} for i in range(2000)]},
    ]
    stream = client.chat.completions.create(
        model="nano", messages=ASKED, stream=True, max_tokens=300, temperature=0,
        logit_bias=likely_ends(engine), extra_body={"guided_regex": "[a-z ]{3000}"},
    )  # fmt: skip
    next(stream)
    with ThreadPoolExecutor(4) as pool:
        statuses = [
            each.status_code
            for each in pool.map(
                lambda bomb: httpx.post(
                    f"{address}/v1/chat/completions",
                    json={"messages": ASKED, "response_format": of_schema(bomb), "max_tokens": 3},
                ),
                bombs,
            )
        ]  # fmt: skip
    assert set(statuses) <= {200, 400} and statuses[0] == statuses[1] == 400
    assert sum(len(c.choices[0].delta.content or "") for c in stream if c.choices) > 100


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_limit_cuts(client, engine, stream):
    """Wherever it does, it is not said to be whole."""
    whole = ask(client, engine, tools=TOOLS, tool_choice="required").choices[0]
    assert whole.finish_reason == "tool_calls"
    (called,) = whole.message.tool_calls
    json.loads(called.function.arguments)
    begun = 0
    for limit in range(1, 40, 3):
        done = ask(
            client, engine, tools=TOOLS, tool_choice="required", max_tokens=limit, stream=stream
        )
        if stream:
            choices = [chunk.choices[0] for chunk in done if chunk.choices]
            calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
            arguments, finish = "".join(call.function.arguments for call in calls), choices[-1]
        else:
            calls, finish = done.choices[0].message.tool_calls or (), done.choices[0]
            arguments = "".join(call.function.arguments for call in calls)
        if finish.finish_reason == "tool_calls":
            assert json.loads(arguments) == json.loads(called.function.arguments)
            break
        assert finish.finish_reason == "length"
        assert called.function.arguments.startswith(arguments)
        begun += bool(calls)
    assert begun


def test_a_form_that_costs_too_much_is_the_requests_fault(engine):
    from starlette.testclient import TestClient

    from gptoss.server.api.app import ServerOptions, create_app

    body = {"prompt": "a", "max_tokens": 4, "structured_outputs": {"regex": "(a{1000}){1000}"}}
    with TestClient(create_app(engine, ServerOptions("nano"))) as client:
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "structured_outputs.regex"
