"""/v1/responses, by OpenAI's own client."""

import json

import httpx
import openai
import pytest
from scripted import ANSWER, CALL, THINKING, scene
from serving import serving

from gptoss import Error, SamplingParams
from gptoss.server.api.app import ServerOptions, create_app

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}


@pytest.fixture
def ask(engine, monkeypatch):
    """ask(written, **request) → the response; ask.scene.chat.asked: what the model was shown."""
    with scene(engine, monkeypatch) as made:

        def ask(written, *, finish="stop", **request):
            request = {"input": "Two and two?", **request}
            return made.client(written, finish).responses.create(model="gpt-oss-20b", **request)

        ask.scene = made
        yield ask


def test_thinking_and_an_answer(ask):
    found = ask(THINKING + ANSWER, instructions="Be brief.", reasoning={"effort": "low"})
    assert found.status == "completed" and found.output_text == "It is four."
    thinking, message = found.output
    assert thinking.type == "reasoning" and thinking.content[0].text == "Let me see."
    assert message.role == "assistant" and message.status == "completed"
    assert found.usage.input_tokens == 7 and found.usage.output_tokens_details.reasoning_tokens > 10
    shown = ask.scene.chat.asked[-1]
    assert [m.content for m in shown.messages] == ["Be brief.", "Two and two?"]
    assert shown.effort == "low"


def test_the_same_streamed(ask):
    events = list(ask(THINKING + ANSWER, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    for what in ("output_item", "content_part"):
        added, done = kinds.count(f"response.{what}.added"), kinds.count(f"response.{what}.done")
        assert added == done == 2

    def said(kind):
        return "".join(event.delta for event in events if event.type == f"response.{kind}.delta")

    assert said("reasoning_text") == "Let me see." and said("output_text") == "It is four."
    assert events[-1].response.output_text == "It is four."
    places = [e.output_index for e in events if e.type == "response.output_text.delta"]
    assert set(places) == {1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_answer(ask, stream):
    found = ask(THINKING + CALL, tools=[TOOL], stream=stream)
    if stream:
        events = list(found)
        kind = "response.function_call_arguments.delta"
        assert "".join(e.delta for e in events if e.type == kind) == '{"a": 2}'
        found = events[-1].response
    thinking, call = found.output
    assert (call.type, call.name, call.arguments) == ("function_call", "add", '{"a": 2}')
    asked = [
        {"role": "user", "content": "Two and two?"},
        thinking.model_dump(exclude_none=True),
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "4"},
    ]
    ask(ANSWER, input=asked, tools=[TOOL])
    shown = ask.scene.chat.asked[-1].messages
    assert [m.role for m in shown] == ["user", "assistant", "assistant", "tool"]
    assert shown[1].thinking == "Let me see." and shown[2].calls[0].arguments == '{"a": 2}'
    assert shown[3].call_id == call.call_id and shown[3].content == "4"


def test_an_answer_that_was_cut(ask):
    found = ask("<|channel|>final<|message|>It is", finish="length", max_output_tokens=5)
    assert found.status == "incomplete" and found.output_text == "It is"
    assert found.incomplete_details.reason == "max_output_tokens"


def test_a_model_that_was_not_taught_it(engine):
    wanted = engine.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=9))[0]
    with (
        serving(create_app(engine, ServerOptions("nano"))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client,
    ):
        found = client.responses.create(
            model="nano", input="Once upon a time", temperature=0, max_output_tokens=9
        )
    assert found.output_text == wanted.text and found.status == "incomplete"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input: expected a string or a list of items"),
        ({"input": [5]}, "input[0]: expected a message"),
        ({"input": [{"type": "image"}]}, "input[0]: expected a message"),
        ({"input": [{"type": "reasoning", "content": [5]}]}, "input[0].content: expected parts"),
        ({"input": "a", "reasoning": 5}, "reasoning: expected an object"),
        ({"input": "a", "text": 5}, "text: expected an object"),
        (
            {"input": "a", "text": {"format": {"type": "json_schema"}}},
            "format.schema: expected",
        ),
        ({"input": "a", "previous_response_id": "x"}, "previous_response_id: this server cannot"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type: expected function"),
    ],
)
def test_what_cannot_be_answered_is_named(engine, body, message):
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        answer = httpx.post(f"{address}/v1/responses", json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_a_step_that_fails_ends_the_events_with_an_error(engine, before_step):
    def fails(*arrays):
        raise Error("no luck")

    before_step(engine, fails)
    with serving(create_app(engine, ServerOptions("nano"))) as address:
        body = {"input": "a", "stream": True}
        answer = httpx.post(f"{address}/v1/responses", json=body)
    name, data = answer.text.strip().split("\n\n")[-1].split("\n")
    found = json.loads(data.removeprefix("data: "))
    assert name == "event: error" and found["type"] == "error" and found["message"] == "no luck"
