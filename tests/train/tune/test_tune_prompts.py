"""What is trained is what is served: the same prompts, over generated conversations."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import gptoss
from gptoss.chat import Conversation, HarmonyChat, parse, parse_messages, parse_tools
from gptoss.tokenizer import Tokenizer
from gptoss.train.data.tokenizers import BytePairs, load_tokenizer
from gptoss.train.tune.conversations import Teacher
from gptoss.train.tune.forms import Reader

NANO = Path(gptoss.__file__).parent / "bundled" / "nano"


@cache
def tokenizer() -> Tokenizer:
    found = load_tokenizer(NANO)
    assert isinstance(found, BytePairs)
    return found.inner


texts = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(["<|end|>", "<|start|>assistant", " to=functions.f", "a\nb", "\ud83d", "…"]),
)
names = st.sampled_from(["get_weather", "search", "python", "browser.open"])


@st.composite
def turns(draw: Any, count: int) -> list[dict[str, Any]]:
    """A question, calls with their results, and mostly an answer."""
    found: list[dict[str, Any]] = [{"role": "user", "content": draw(texts)}]
    weight = draw(st.sampled_from([None, 1, 0]))
    for step in range(draw(st.integers(0, 2))):
        calls = [
            {"id": f"c{count}.{step}.{n}", "function": {"name": name, "arguments": draw(texts)}}
            for n, name in enumerate(draw(st.lists(names, min_size=1, max_size=2)))
        ]
        said = draw(st.one_of(st.none(), st.just(""), texts))
        message = {"role": "assistant", "weight": weight, "tool_calls": calls, "content": said}
        if draw(st.booleans()):
            message["thinking"] = draw(texts)
        if said and draw(st.booleans()):  # as clients send it that have a message for each item
            found += [{**message, "tool_calls": None}, {**message, "content": "", "thinking": None}]
        else:
            found.append(message)
        for call in draw(st.permutations(calls)):
            found.append({"role": "tool", "tool_call_id": call["id"], "content": draw(texts)})
    if draw(st.integers(0, 9)) or len(found) == 1:
        answer = {"role": "assistant", "weight": weight, "content": draw(texts)}
        if draw(st.booleans()):
            answer["reasoning"] = draw(texts)
        found.append(answer)
    return found


@st.composite
def rows(draw: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for role in draw(st.lists(st.sampled_from(["system", "developer"]), max_size=2)):
        messages.append({"role": role, "content": draw(texts)})
    for number in range(draw(st.integers(1, 3))):
        messages += draw(turns(number))
        if draw(st.integers(0, 9)) == 0:
            messages.append({"role": "developer", "content": draw(texts)})
    row: dict[str, Any] = {"messages": messages}
    if draw(st.booleans()):
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
        function = {"name": "get_weather", "description": draw(texts), "parameters": parameters}
        row["tools"] = [{"type": "function", "function": function}]
    if draw(st.booleans()):
        row["reasoning_effort"] = draw(st.sampled_from(["low", "medium", "high"]))
    return row


def served(row: dict[str, Any], messages: list[dict[str, Any]], today: Any) -> list[int]:
    """The prompt that a server makes of these messages of the row."""
    tools = parse_tools(row.get("tools"))
    parsed = parse_messages(messages, [tool.name for tool in tools])
    effort = row.get("reasoning_effort", "medium")
    conversation = Conversation(tuple(parsed), tuple(tools), effort, today)
    return HarmonyChat(tokenizer()).render(conversation).ids


def asked(row: dict[str, Any], today: Any) -> list[list[int]]:
    """Every prompt at which the model of this conversation was about to write what is learned."""
    found, messages = [], row["messages"]
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or message["weight"] == 0:
            continue
        if messages[number - 1]["role"] != "assistant":
            found.append(served(row, messages[:number], today))
        calls = message.get("tool_calls") or []
        for count in range(1, len(calls)):  # it stops after each
            begun = {**message, "tool_calls": calls[:count]}
            found.append(served(row, [*messages[:number], begun], today))
    return found


def stretches(example: Any) -> list[tuple[list[int], list[int]]]:
    """(what stands before, what is learned) of each stretch that is learned."""
    learned = example.targets >= 0
    begins = np.flatnonzero(learned & ~np.r_[False, learned[:-1]])
    ends = np.flatnonzero(learned & ~np.r_[learned[1:], False])
    return [
        (example.tokens[: begin + 1].tolist(), example.targets[begin : end + 1].tolist())
        for begin, end in zip(begins, ends, strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(rows())
def test_prompts_are_those_that_the_server_makes(row: dict[str, Any]) -> None:
    if not any(m["role"] == "assistant" and m["weight"] != 0 for m in row["messages"]):
        return
    (conversation,) = Reader().read(row, "f:1").conversations
    teacher = Teacher(BytePairs(tokenizer()))
    found = [pair for e in teacher.examples(conversation, "f:1") for pair in stretches(e)]
    assert [before for before, _ in found] == asked(row, conversation.today)

    # And what is learned is, to the server's parser, what the row says.
    written = [message for _, ids in found for message in parse(ids, tokenizer())]
    expected = [m for m in conversation.messages if m.from_model and m.weight]
    fields = [(m.author, m.channel, m.recipient, m.content) for m in written]
    assert fields == [(m.author, m.channel, m.recipient, m.content) for m in expected]
    special = tokenizer().special_tokens
    ends = {special["<|return|>"], special["<|call|>"], special["<|end|>"]}
    assert all(ids[-1] in ends for _, ids in found)
