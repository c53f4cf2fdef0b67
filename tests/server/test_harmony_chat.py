"""Thinking, answers and calls as OpenAI's client gets them; the model writes what it is told."""

import pytest
from scripted import ANSWER, CALL, THINKING, scene


@pytest.fixture
def ask(engine, monkeypatch):
    """ask(written, **request) → the answer; ask.scene.chat.asked: what the model was shown."""
    with scene(engine, monkeypatch) as made:

        def ask(written, *, finish="stop", **request):
            messages = [{"role": "user", "content": "Two and two?"}]
            return made.client(written, finish).chat.completions.create(
                model="gpt-oss-20b", messages=request.pop("messages", messages), **request
            )

        ask.scene = made
        yield ask


def streamed(chunks):
    """What the deltas of the first choice say together."""
    whole = {"content": "", "reasoning_content": "", "calls": {}, "finish": None}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta
            whole["content"] += delta.content or ""
            whole["reasoning_content"] += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or ():
                mine = whole["calls"].setdefault(call.index, {"arguments": ""})
                mine["arguments"] += call.function.arguments
                if call.id:
                    assert call.type == "function"
                    mine |= {"id": call.id, "name": call.function.name}
            whole["finish"] = choice.finish_reason or whole["finish"]
    return whole


def test_thinking_and_an_answer(ask):
    done = ask(THINKING + ANSWER)
    message = done.choices[0].message
    assert message.content == "It is four." and message.reasoning_content == "Let me see."
    assert done.choices[0].finish_reason == "stop" and not message.tool_calls
    assert done.usage.prompt_tokens == 7
    thinking = done.usage.completion_tokens_details.reasoning_tokens
    assert 11 <= thinking < done.usage.completion_tokens


def test_the_same_streamed(ask):
    found = streamed(ask(THINKING + ANSWER, stream=True))
    assert found["content"] == "It is four." and found["reasoning_content"] == "Let me see."
    assert found["finish"] == "stop" and not found["calls"]


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("stream", [False, True])
def test_calls(ask, stream):
    two = THINKING + CALL.replace("<|call|>", "<|end|><|start|>assistant") + CALL.replace("2", "3")
    answer = ask(two, tools=[TOOL], stream=stream)
    if stream:
        found = streamed(answer)
        calls = [found["calls"][i] for i in range(2)]
        finish, content = found["finish"], found["content"]
    else:
        message = answer.choices[0].message
        calls = [{"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
                 for call in message.tool_calls]  # fmt: skip
        finish, content = answer.choices[0].finish_reason, message.content or ""
    assert [call["arguments"] for call in calls] == ['{"a": 2}', '{"a": 3}']
    assert [call["name"] for call in calls] == ["add", "add"]
    assert len({call["id"] for call in calls}) == 2
    assert finish == "tool_calls" and content == ""


def test_tools_are_declared_unless_they_are_not_wanted(ask):
    ask(ANSWER, tools=[TOOL], reasoning_effort="high")
    options = ask.scene.chat.asked[-1]
    assert [tool.name for tool in options.tools] == ["add"] and options.effort == "high"
    ask(ANSWER, tools=[TOOL], tool_choice="none")
    assert ask.scene.chat.asked[-1].tools == ()


def test_a_conversation_with_a_call_comes_back_as_it_was(ask):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    ask(ANSWER, messages=messages, tools=[TOOL])
    shown = ask.scene.chat.asked[-1].messages
    _, thinking, call, result = shown
    assert (thinking.channel, thinking.content) == ("analysis", "hm")
    assert (call.recipient, call.call_id) == ("functions.add", "c1")
    assert (result.author, result.call_id) == ("functions.add", "c1")


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_are_looked_for_in_the_answer_alone(ask, stream):
    written = THINKING.replace("Let me see.", "four or final") + ANSWER
    answer = ask(written, stop=["four", "final"], stream=stream)
    if stream:
        found = streamed(answer)
        content, thinking, finish = found["content"], found["reasoning_content"], found["finish"]
    else:
        message = answer.choices[0].message
        content, thinking = message.content, message.reasoning_content
        finish = answer.choices[0].finish_reason
    assert (content, thinking, finish) == ("It is ", "four or final", "stop")
    assert ask.scene.engine.params.stop_strings == ()


def test_what_looked_like_a_stop_string_is_given_at_the_end(ask):
    assert ask(ANSWER, stop=["four.!"]).choices[0].message.content == "It is four."


def test_logprobs_are_those_of_the_answer(ask):
    found = ask(THINKING + ANSWER, logprobs=True).choices[0].logprobs
    assert "".join(token.token for token in found.content) == "It is four."


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_tokens_that_are_part_of_a_character(ask, stream):
    text = "四, naïve"
    written = THINKING + ANSWER.replace("It is four.", text)
    answer = ask(written, logprobs=True, stop=["naive"], stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    found = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert b"".join(bytes(token.bytes) for token in found) == text.encode()


def test_logprobs_of_an_answer_that_has_no_header(ask):
    found = ask("I will not.<|return|>", logprobs=True).choices[0].logprobs
    assert "".join(token.token for token in found.content) == "I will not."


def test_an_answer_that_was_cut(ask):
    done = ask(THINKING + "<|channel|>final<|message|>It is", finish="length")
    assert done.choices[0].message.content == "It is"
    assert done.choices[0].finish_reason == "length"


def test_a_refusal_without_a_header(ask):
    assert ask("<|message|>I will not.<|return|>").choices[0].message.content == "I will not."


def test_choices(ask):
    done = ask(THINKING + ANSWER, n=3)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert {choice.message.content for choice in done.choices} == {"It is four."}
