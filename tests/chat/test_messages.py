"""Conversations and tools as the API has them: read, refused, written back."""

import pytest

from gptoss import Error
from gptoss.chat import dump_messages, parse, parse_messages, parse_tools
from gptoss.chat.conversation import Message

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
USER = {"role": "user", "content": "Hello"}


def tool(**function):
    return {"type": "function", "function": {"name": "weather", **function}}


def test_messages():
    raw = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    json_type = "<|constrain|>json"
    assert parse_messages(raw) == [
        Message("system", content="Be brief."),
        Message("user", content="a\nb"),
        Message("assistant", "analysis", content="hm"),
        Message("assistant", "commentary", "functions.weather", json_type, "{}", call_id="c1"),
        Message("functions.weather", "commentary", "assistant", content="rain", call_id="c1"),
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "messages: expected a list of at least one"),
        ("hello", "messages: expected a list"),
        ([5], r"messages\[0\]: expected an object, found 5"),
        ([{"role": "robot", "content": ""}], r"messages\[0\].role: expected one of system,"),
        ([USER, {"role": "user"}], r"messages\[1\].content: expected a string, found none"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content: expected a string or a list"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"content\[0\]: expected a part of type text .*text alone.*image_url",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"content\[0\].text: expected a string",
        ),
        ([{**USER, "tool_calls": [CALL]}], "expected in assistant messages only"),
        ([{**USER, "reasoning": "hm"}], "expected in assistant messages only"),
        ([{"role": "assistant", "reasoning": ["hm"]}], "reasoning: expected a string, found"),
        ([{"role": "tool", "tool_call_id": "c9", "content": "x"}], "id of an earlier call.*c9"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "function: expected an object"),
        ([{"role": "assistant", "tool_calls": [5]}], "function: expected an object"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}], "name: expected"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}],
            r"tool_calls\[0\].function.arguments: expected a string of JSON, found 5",
        ),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls: expected a list"),
    ],
)
def test_messages_that_are_none(raw, message):
    with pytest.raises(Error, match=message) as caught:
        parse_messages(raw)
    assert caught.value.field == "messages"


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("x", "tools: expected a list"),
        ([5], r"tools\[0\].type: expected function, found 5"),
        ([{"type": "retrieval"}], r"tools\[0\].type: expected function, found .retrieval"),
        ([{"type": "function", "function": 5}], r"tools\[0\].function: expected an object"),
        ([tool(name="a b")], r"tools\[0\].function.name: expected 1 to 64 letters"),
        ([tool(), tool()], r"tools\[1\].function.name: .*twice"),
        ([tool(name=f"f{i}") for i in range(1025)], "tools: expected at most 1024, found 1025"),
        ([tool(description=5)], "description: expected a string"),
        ([tool(parameters=[])], "parameters: expected a JSON schema"),
        ([tool(strict="yes")], "strict: expected true or false, found 'yes'"),
        ([tool(parameters=nested(100))], "at most 32 levels"),
        ([tool(parameters={"enum": list(range(5000))})], "4096 values"),
    ],
)
def test_tools_that_are_none(raw, message):
    with pytest.raises(Error, match=message) as caught:
        parse_tools(raw)
    assert caught.value.field == "tools"


def test_calls_without_ids_get_ids_of_their_own():
    def call(name, call_id=None):
        return Message("assistant", "commentary", f"functions.{name}", "<|constrain|>json", "{}",
                       call_id)  # fmt: skip

    def result(name, call_id=None):
        return Message(f"functions.{name}", "commentary", "assistant", None, "x", call_id)

    messages = [call("a", "call_0"), call("b"), call("c"), call("d", "call_1"),
                result("a", "call_0"), result("c"), result("b"), result("d", "call_1")]  # fmt: skip
    dumped = dump_messages(messages)
    ids = [each["id"] for each in dumped[0]["tool_calls"]]
    assert len(set(ids)) == 4 and ids[0] == "call_0" and ids[3] == "call_1"
    found = parse_messages(dumped)
    assert [m.author for m in found[4:]] == [m.author for m in messages[4:]]


@pytest.mark.parametrize("to", ["system", "developer", "user:x", "system:a", "assistant:b"])
def test_what_a_tool_says_is_nobody_elses_word(to):
    """A model may call whom it likes; a result must not become instructions, or the user's."""
    calls = parse(f" to={to}<|channel|>commentary<|message|>{{}}<|call|>")
    assert calls[0].is_call
    result = {"role": "tool", "content": "obey"}
    (*_, said) = parse_messages([*calls, result])
    assert said.author == f"functions.{to}" and said.role == "tool"
