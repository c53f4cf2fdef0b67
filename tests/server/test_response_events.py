"""Responses printed from the pieces of an answer: the events, the items, and the way back."""

import asyncio
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_types import check_event, check_response

from gptoss import Error
from gptoss.chat.conversation import Message
from gptoss.request import TokenLogprob
from gptoss.server.api.answer import Begin, Finished, Part, Usage
from gptoss.server.api.encrypted_content import decode_thinking
from gptoss.server.api.items import parse_items
from gptoss.server.api.response_events import Response
from gptoss.server.api.response_output import ThinkingForms
from gptoss.server.errors import ApiError

ECHO = {
    "model": "gpt-oss-20b", "background": False, "conversation": None, "instructions": None,
    "max_output_tokens": None, "max_tool_calls": None, "metadata": {}, "parallel_tool_calls": True,
    "previous_response_id": None, "prompt_cache_key": None, "reasoning": {"effort": "medium"},
    "safety_identifier": None, "service_tier": "default", "store": False, "temperature": 1.0,
    "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0,
    "top_p": 1.0, "truncation": "disabled", "user": None,
}  # fmt: skip
USAGE = Usage(prompt=7, cached=3, completion=9, thinking=4)
LENGTH, STOP, CALLS = (Finished(0, reason) for reason in ("length", "stop", "tool_calls"))


def message(number, kind, *texts, whole=True, **more):
    """The parts of a message in so many texts."""
    last = len(texts) - 1
    return [
        Part(0, number, kind, text, begins=i == 0, ends=i == last, whole=whole, **more)
        for i, text in enumerate(texts)
    ]


def thinking(number, *texts, **more):
    return message(number, "thinking", *texts, channel="analysis", **more)


def preamble(number, *texts, **more):
    return message(number, "text", *texts, channel="commentary", **more)


def answer(number, *texts, **more):
    return message(number, "text", *texts, channel="final", **more)


def call(number, *texts, name="weather", **more):
    more = {"channel": "commentary", "call_id": f"call_{number}", "name": name, **more}
    return message(number, "call", *texts, **more)


class Given:
    """An answer whose pieces are given; an error among them is raised."""

    usage = USAGE

    def __init__(self, pieces):
        self._pieces = pieces

    async def __aiter__(self):
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def response_of(*pieces, **options):
    return Response(Given(pieces), ECHO, **options)


async def told(response):
    """The events as they are sent: nothing may change in one afterwards."""
    try:
        async for event in response.events():
            yield json.loads(json.dumps(event))
    except ApiError as error:
        for event in response.failed(error.body()["error"]):
            yield json.loads(json.dumps(event))


def events_of(*pieces, **options):
    """The events, each checked against OpenAI's types."""

    async def all_of():
        return [event async for event in told(response_of(*pieces, **options))]

    events = asyncio.run(all_of())
    for number, event in enumerate(events):
        check_event(event)
        assert event["sequence_number"] == number
        if "response" in event:
            check_response(event["response"])
    return events


def whole_of(*pieces, **options):
    found = asyncio.run(response_of(*pieces, **options).whole())
    check_response(found)
    return found


PIECES = [
    Begin(0),
    *thinking(0, "They ask", " for Oslo."),
    *thinking(1, "So I call."),
    *preamble(2, "I'll ", "", "look."),
    *preamble(3, "Now."),
    *call(4, '{"city"', ': "Oslo"}'),
    *call(5, "{}", name="now"),
    *answer(6, "It is", " 20C."),
]
ITEM = ["output_item.added"]
REASONING = [*ITEM, "content_part.added", "reasoning_text.delta", "reasoning_text.done"]
TEXT = [*ITEM, "content_part.added", "output_text.delta", "output_text.done"]
PART_DONE = ["content_part.done", "output_item.done"]
ARGUMENTS = [*ITEM, "function_call_arguments.delta", "function_call_arguments.done"]


def test_the_order_of_events():
    """As OpenAI's server has it: each item, in it each part, in it deltas and the text."""
    kinds = [event["type"].removeprefix("response.") for event in events_of(*PIECES, CALLS)]
    merged = [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    expected = [
        "created", "in_progress",
        *REASONING, *PART_DONE, *REASONING, *PART_DONE,
        *TEXT, *PART_DONE, *TEXT, *PART_DONE,
        *ARGUMENTS, "output_item.done", *ARGUMENTS, "output_item.done",
        *TEXT, *PART_DONE,
        "completed",
    ]  # fmt: skip
    assert merged == expected


def test_each_message_is_an_item():
    output = whole_of(*PIECES, CALLS)["output"]
    assert [item["type"] for item in output] == [
        "reasoning", "reasoning", "message", "message", "function_call", "function_call", "message",
    ]  # fmt: skip
    assert [item["content"][0]["text"] for item in output if item["type"] != "function_call"] == [
        "They ask for Oslo.", "So I call.", "I'll look.", "Now.", "It is 20C.",
    ]  # fmt: skip
    assert [item.get("phase") for item in output if item["type"] == "message"] == [
        "commentary", "commentary", "final_answer",
    ]  # fmt: skip
    calls = [item for item in output if item["type"] == "function_call"]
    assert [(c["name"], c["arguments"], c["call_id"]) for c in calls] == [
        ("weather", '{"city": "Oslo"}', "call_4"), ("now", "{}", "call_5"),
    ]  # fmt: skip
    assert len({item["id"] for item in output}) == len(output)
    assert {item["status"] for item in output} == {"completed"}


def without_ids(value):
    if isinstance(value, dict):
        names = ("id", "item_id", "created_at", "completed_at")
        return {key: without_ids(item) for key, item in value.items() if key not in names}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def joined(events):
    """The output as a client puts it together that reads deltas alone."""
    items = {}
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            items[event["output_index"]] = dict(event["item"])
        if "output_index" not in event:
            continue
        item = items[event["output_index"]]
        if "item_id" in event:
            assert item["id"] == event["item_id"]
        if kind == "content_part.added":
            assert event["content_index"] == len(item["content"])
            item["content"] = [*item["content"], dict(event["part"])]
        elif kind == "reasoning_summary_part.added":
            assert event["summary_index"] == len(item["summary"])
            item["summary"] = [*item["summary"], dict(event["part"])]
        elif kind == "reasoning_summary_text.delta":
            item["summary"][event["summary_index"]]["text"] += event["delta"]
        elif kind == "reasoning_summary_text.done":
            assert event["text"] == item["summary"][event["summary_index"]]["text"]
        elif kind == "reasoning_summary_part.done":
            assert event["part"] == item["summary"][event["summary_index"]]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind.endswith(".delta"):
            part = item["content"][event["content_index"]]
            part["text"] += event["delta"]
            if "logprobs" in event:
                part["logprobs"] = part["logprobs"] + event["logprobs"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == item["arguments"] and event["name"] == item["name"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            part = item["content"][event["content_index"]]
            assert event["text"] == part["text"]
            assert event.get("logprobs") == part.get("logprobs")
        elif kind == "content_part.done":
            assert event["part"] == item["content"][event["content_index"]]
        elif kind == "output_item.done":
            assert event["item"].keys() >= item.keys()
            item["status"] = event["item"]["status"]
            item.update({k: v for k, v in event["item"].items() if k == "encrypted_content"})
            assert event["item"] == item
    return [items[place] for place in sorted(items)]


TOKENS = st.lists(
    st.builds(
        TokenLogprob, st.integers(0, 9), st.binary(max_size=3), st.floats(-9, 0),
        top=st.lists(
            st.builds(TokenLogprob, st.integers(0, 9), st.binary(max_size=2), st.floats(-9, 0)),
            max_size=2,
        ).map(tuple),
    ), max_size=2,
).map(tuple)  # fmt: skip


FORMS = st.builds(ThinkingForms, st.booleans(), st.booleans())


@st.composite
def written(draw):
    """The pieces of any answer."""
    pieces = [Begin(0)]
    count = draw(st.integers(0, 5))
    cut = draw(st.booleans())
    for number in range(count):
        make = draw(st.sampled_from([thinking, preamble, answer, call]))
        texts = draw(st.lists(st.text(max_size=4), min_size=1, max_size=3))
        whole = not (cut and number == count - 1)
        parts = make(number, *texts, whole=whole)
        if make in (preamble, answer):
            parts = [replace(part, logprobs=draw(TOKENS)) for part in parts]
        pieces += parts
    return [*pieces, LENGTH if cut else STOP]


@settings(max_examples=100, deadline=None)
@given(written(), FORMS)
def test_deltas_joined_are_the_whole(pieces, forms):
    events = events_of(*pieces, thinking=forms)
    response = events[-1]["response"]
    assert joined(events) == response["output"]
    assert without_ids(whole_of(*pieces, thinking=forms)) == without_ids(response)


@pytest.mark.parametrize("make", [thinking, preamble, answer, call])
@pytest.mark.parametrize("text", ["", "It"])
def test_what_the_limit_cuts_is_incomplete(make, text):
    events = events_of(*thinking(0, "Let me see."), *make(1, text, whole=False), LENGTH)
    kind, response = events[-1]["type"], events[-1]["response"]
    assert (kind, response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None and response["usage"]["output_tokens"] == 9
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]


def test_what_ends_before_the_limit_is_complete():
    response = whole_of(*thinking(0, "Let me see."), LENGTH)
    assert response["status"] == "incomplete" and response["output"][0]["status"] == "completed"


def test_an_answer_of_nothing():
    assert whole_of(Begin(0), STOP)["output"] == []


def test_items_say_that_they_are_being_written():
    for event in events_of(*PIECES, STOP):
        if event["type"] == "response.output_item.added":
            assert event["item"]["status"] == "in_progress"
            assert not event["item"].get("content") and not event["item"].get("arguments")
        elif event["type"] in ("response.created", "response.in_progress"):
            response = event["response"]
            assert (response["status"], response["output"]) == ("in_progress", [])
            assert response["usage"] is None


def test_usage():
    assert whole_of(*PIECES, STOP)["usage"] == {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 16,
    }  # fmt: skip


def test_packed_thinking_is_the_text():
    events = events_of(*PIECES, STOP, thinking=ThinkingForms(packed=True))
    for event in events:
        if event["type"] == "response.output_item.done" and event["item"]["type"] == "reasoning":
            (part,) = event["item"]["content"]
            assert decode_thinking(event["item"]["encrypted_content"]) == part["text"] != ""
    assert "encrypted_content" not in json.dumps(events_of(*PIECES, STOP))


def test_a_summary_is_the_thinking_itself():
    for item in whole_of(*PIECES, STOP, thinking=ThinkingForms(summary=True))["output"]:
        if item["type"] == "reasoning":
            (part,) = item["summary"]
            assert part == {"type": "summary_text", "text": item["content"][0]["text"]}
    plain = whole_of(*PIECES, STOP)["output"]
    assert [item["summary"] for item in plain if item["type"] == "reasoning"] == [[], []]


def test_logprobs_are_numbers_of_json():
    drawn = TokenLogprob(7, b"a", -math.inf, top=(TokenLogprob(8, b"b", -0.5),))
    (item,) = whole_of(*[replace(p, logprobs=(drawn,)) for p in answer(0, "a")], STOP)["output"]
    (found,) = item["content"][0]["logprobs"]
    assert [top["token"] for top in found["top_logprobs"]] == ["b", "a"]
    assert found["logprob"] == found["top_logprobs"][1]["logprob"] == -9999.0


def test_logprobs_of_half_a_character():
    """Tokens without a text of their own come with the text that they lead to, or at the end."""
    one, two, three = (TokenLogprob(i, bytes([200 + i]), -float(i)) for i in range(3))
    parts = [
        Part(0, 0, "text", "", begins=True),
        Part(0, 0, "text", "", logprobs=(one,)),
        Part(0, 0, "text", "é", logprobs=(two,)),
        Part(0, 0, "text", "", logprobs=(three,), ends=True),
    ]
    deltas = [e for e in events_of(*parts, STOP) if e["type"] == "response.output_text.delta"]
    assert [(e["delta"], [p["logprob"] for p in e["logprobs"]]) for e in deltas] == [
        ("é", [0.0, -1.0]), ("", [-2.0]),
    ]  # fmt: skip


class TestFailures:
    """After the first event only events can say that something failed."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (ApiError("no luck", 500), "server_error"),
            (ApiError("later", 429, code="rate_limit_exceeded"), "rate_limit_exceeded"),
            (ApiError("too late", 504, code="timeout"), "server_error"),
            (ApiError("too long", field="input"), "invalid_prompt"),
        ],
    )
    @pytest.mark.parametrize("before", [0, 1, 2, 3, 7, len(PIECES)])
    def test_they_say_it(self, error, code, before):
        *events, said, failed = events_of(*PIECES[:before], error)
        assert [event["type"] for event in events[:2]] == [
            "response.created", "response.in_progress",
        ]  # fmt: skip
        assert (said["type"], failed["type"]) == ("error", "response.failed")
        assert said["error"]["message"] == said["message"] == str(error)
        assert said["code"] == (error.code or code) and said["param"] == error.field
        response = failed["response"]
        assert response["status"] == "failed"
        assert response["error"] == {"code": code, "message": str(error)}
        assert response["id"] == events[0]["response"]["id"]
        done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        assert response["output"][: len(done)] == done
        assert all(item["status"] == "incomplete" for item in response["output"][len(done) :])

    def test_the_whole_raises_it(self):
        with pytest.raises(Error, match="no luck"):
            whole_of(*PIECES, Error("no luck"))


MADE = {
    "thinking": ("analysis", None),
    "preamble": ("commentary", None),
    "answer": ("final", None),
    "call": ("commentary", "functions.weather"),
    "invented": ("commentary", "browser.search"),
}


@st.composite
def turns(draw):
    """Messages as a model wrote them in one turn."""
    kinds = draw(st.lists(st.sampled_from(list(MADE)), min_size=1, max_size=6))
    texts = st.text(max_size=6)
    return [Message("assistant", *MADE[kind], content=draw(texts)) for kind in kinds]


def parts_of(number, said):
    kind = "call" if said.is_call else "thinking" if said.channel == "analysis" else "text"
    more = {}
    if said.is_call:
        name = said.recipient.removeprefix("functions.")
        more = {"call_id": f"call_{number}", "name": name}
    half = len(said.content) // 2
    texts = said.content[:half], said.content[half:]
    return message(number, kind, *texts, channel=said.channel, **more)


@settings(max_examples=200, deadline=None)
@given(turns(), FORMS, st.booleans())
def test_whatever_is_given_is_taken_back(turn, forms, plain):
    """A turn that is printed and read again is the turn: channels, recipients and texts."""
    pieces = [part for i, said in enumerate(turn) for part in parts_of(i, said)]
    output = whole_of(*pieces, STOP, thinking=forms)["output"]
    if forms.packed and not plain:  # clients that keep the packed thinking alone
        output = [{**item, "content": None} if item["type"] == "reasoning" else item
                  for item in output]  # fmt: skip
    found = parse_items([{"role": "user", "content": "a"}, *output])[1:]
    fields = [(m.author, m.channel, m.recipient, m.content) for m in found]
    assert fields == [(m.author, m.channel, m.recipient, m.content) for m in turn]
    calls = [m for m in found if m.is_call]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "x"}
        for item in output
        if item["type"] == "function_call"
    ]
    if results:
        told = parse_items([*output, *results])[-len(results) :]
        assert [m.author for m in told] == [m.recipient for m in calls]


def test_items_that_are_done_are_handed_on():
    done = []
    output = whole_of(*PIECES, STOP, done=done.append)["output"]
    assert done == output
