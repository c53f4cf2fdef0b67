"""The forced model, which other tests trust: what it writes is what was asked for."""

from __future__ import annotations

import enum
import json
from typing import Annotated, Literal

import httpx
import pytest
from forced_model import ANSWER, BUILT_IN, PREAMBLE, THINKING, forced_app
from pydantic import BaseModel, Field
from serving import serving
from vocabularies import o200k_path
from waiting import PATIENCE


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    name: Annotated[str, Field(min_length=2, max_length=40)]
    price: float
    color: Color = Color.RED
    note: str | None = None
    parts: list[Item] = []


class Order(BaseModel):
    items: Annotated[list[Item], Field(min_length=1)]
    counts: dict[str, int]
    kind: Literal["home", "shop"]
    percent: Annotated[int, Field(ge=-5, le=5)]
    where: tuple[float, float]
    first: int | str
    extra: dict


@pytest.fixture(scope="module")
def ask():
    """ask(the user's words, **request) → the first choice."""
    o200k_path()  # skips where it is not there
    with forced_app() as app, serving(app) as address:

        def ask(text, **request):
            asked = [{"role": "user", "content": text}, *request.pop("behind", ())]
            body = {"model": "gpt-oss-20b", "messages": asked, **request}
            answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=PATIENCE)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]

        yield ask


def tools(*names, schema=None):
    return [
        {"type": "function", "function": {"name": name, "parameters": schema}} for name in names
    ]


def called(choice):
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning"] == THINKING
    (call,) = choice["message"]["tool_calls"]
    return call["function"]["name"], json.loads(call["function"]["arguments"])


def test_it_answers(ask):
    for words in ({}, {"tools": tools("f")}):
        choice = ask("!answer", **words)
        assert choice["message"]["content"] == ANSWER and choice["finish_reason"] == "stop"
        assert choice["message"]["reasoning"] == THINKING


def test_it_calls_the_first_tool_or_the_one_that_is_named(ask):
    assert called(ask("", tools=tools("f", "g")))[0] == "f"
    assert called(ask("!call g", tools=tools("f", "g")))[0] == "g"
    choice = ask("!preamble", tools=tools("f"))
    assert choice["message"]["content"] == PREAMBLE and called(choice)[0] == "f"


def test_it_calls_once_and_then_answers(ask):
    message = ask("", tools=tools("f"))["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "yes"}
    choice = ask("", behind=[message, result], tools=tools("f"))
    assert choice["message"]["content"] == ANSWER
    choice = ask("", behind=[message, result], tools=tools("f"), tool_choice="required")
    assert called(choice)[0] == "f"


def test_it_calls_what_nobody_declared(ask):
    name, arguments = called(ask("!builtin", tools=tools("f")))
    assert (name, arguments) == (BUILT_IN, {"query": "x"})


def test_it_is_free_where_it_should_be(ask):
    texts = {ask("!real", max_tokens=8, seed=seed)["message"]["content"] for seed in range(2)}
    assert len(texts) == 2


def test_it_calls_tools_whose_schemas_no_grammar_can_hold(ask):
    names = {"type": "object", "propertyNames": {"pattern": "^a"}, "additionalProperties": True}
    parts = [{"properties": {name: {"type": "boolean"}}, "required": [name]} for name in "ab"]
    both = {"type": "object", "allOf": parts}
    schema = {
        "type": "object",
        "properties": {"names": names, "set": {"uniqueItems": True}, "both": both},
        "required": ["names", "set", "both"],
        "not": {"required": ["x"]},
    }
    _, arguments = called(ask("", tools=tools("f", schema=schema)))
    assert set(arguments) == {"names", "set", "both"} and {"a", "b"} <= set(arguments["both"])


@pytest.mark.parametrize("seed", range(2))
def test_arguments_and_answers_fit_their_schemas(ask, seed):
    schema = Order.model_json_schema()
    _, arguments = called(ask("", tools=tools("f", schema=schema), seed=seed))
    Order.model_validate(arguments)
    form = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema}}
    Order.model_validate_json(ask("", response_format=form, seed=seed)["message"]["content"])
    anything = ask("", response_format={"type": "json_object"}, seed=seed)
    assert isinstance(json.loads(anything["message"]["content"]), dict)
    choice = ask("", structured_outputs={"choice": ["yes", "no"]}, seed=seed)
    assert choice["message"]["content"] in ("yes", "no")
