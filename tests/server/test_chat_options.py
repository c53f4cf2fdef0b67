"""Options of chat completions that other servers have: messages that go on, and held calls."""

import pytest
from chatting import TOOL, OfBytes, ask, joined, printed
from scripted import ANSWER, CALL, WORDS, Scripted

from gptoss import Error
from gptoss.chat import HarmonyChat
from gptoss.server.api.chat_completions import ChatRequest
from gptoss.server.api.fields import Caller

GOES_ON = [
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "It is"},
]


def conversation(**body):
    """What the model is shown."""
    chat = OfBytes()
    printed(ANSWER, chat=chat, **body)
    return chat.asked[-1]


def rendered(**body):
    """The engine, after a request with the real renderer."""
    made = Scripted(ANSWER)
    ChatRequest(made, HarmonyChat(WORDS), body, Caller(None), "scripted")
    return made


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
def test_a_message_that_is_gone_on_with(more):
    """Its beginning has no header any more; what follows it, if anything does, has one."""
    options = {"messages": GOES_ON, "continue_final_message": True, **more}
    assert conversation(**options).continues
    (said,) = ask(" four.<|return|>", logprobs=True, **options)
    assert said.content == " four." and b"".join(said.logprobs) == b" four."
    (said,) = ask(" four.<|end|><|start|>assistant" + CALL, tools=[TOOL], **options)
    assert said.content == " four." and said.calls == [["add", '{"a": 2}']]
    assert not conversation(messages=GOES_ON).continues


def test_thinking_that_is_gone_on_with():
    thinking = [GOES_ON[0], {"role": "assistant", "reasoning": "It"}]
    options = {"messages": thinking, "continue_final_message": True}
    (said,) = ask(" must be.<|end|><|start|>assistant" + ANSWER, **options)
    assert (said.thinking, said.content) == (" must be.", "It is four.")
    assert ask(" must be.<|end|><|start|>assistant" + ANSWER, echo=True, **options)[0] == said


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (GOES_ON[:1], "continue_final_message"),
        ([*GOES_ON, {"role": "user", "content": "?"}], "continue_final_message"),
        ([GOES_ON[0], {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "function": {"name": "add", "arguments": "{"}}]}],
         "continue_final_message"),
    ],
)  # fmt: skip
def test_what_cannot_be_gone_on_with(messages, field):
    with pytest.raises(Error) as error:
        rendered(messages=messages, continue_final_message=True)
    assert error.value.field == field


def test_what_a_message_that_goes_on_can_still_be_held_to():
    pytest.importorskip("llguidance", reason="the extra grammar is missing")
    options = {"continue_final_message": True, "messages": GOES_ON}
    digits = {"structured_outputs": {"regex": "[0-9]+"}}
    assert "/[0-9]+/" in rendered(**options, **digits).params.grammar.source
    assert rendered(**options, tools=[TOOL]).params.grammar is None
    with pytest.raises(Error, match="tool_choice: expected auto or none") as error:
        rendered(**options, tools=[TOOL], tool_choice="required")
    assert error.value.field == "tool_choice"
    options["messages"] = [GOES_ON[0], {"role": "assistant", "reasoning": "It"}]
    with pytest.raises(Error, match="message that goes on is thinking") as error:
        rendered(**options, **digits)
    assert error.value.field == "structured_outputs.regex"


def test_what_is_gone_on_with_comes_first_where_it_is_wanted():
    options = {"messages": GOES_ON, "continue_final_message": True, "echo": True}
    assert ask(" four.<|return|>", **options)[0].content == "It is four."
    _, chunks = printed(" four.<|return|>", n=2, **options)
    assert {said.content for said in joined(chunks).values()} == {"It is four."}
    # Of somebody else nothing is repeated.
    assert ask(ANSWER, echo=True)[0].content == "It is four."


@pytest.mark.parametrize("continues", [True, False, None])
@pytest.mark.parametrize("adds", [True, False, None])
def test_a_message_of_its_own_or_the_last_one(continues, adds):
    options = {"continue_final_message": continues, "add_generation_prompt": adds}
    if adds is not None and adds == bool(continues):
        with pytest.raises(Error, match="add_generation_prompt: expected") as error:
            printed(ANSWER, messages=GOES_ON, **options)
        assert error.value.field == "add_generation_prompt"
    else:
        assert conversation(messages=GOES_ON, **options).continues == bool(continues)


@pytest.mark.parametrize(
    ("more", "held"),
    [
        ({}, True),
        ({"allow_undeclared_calls": False}, True),
        ({"allow_undeclared_calls": True}, False),
    ],
)
def test_calls_are_held_to_declared_tools_unless_they_are_not_to_be(more, held):
    chat = OfBytes()
    printed(CALL, chat=chat, tools=[TOOL], **more)
    assert chat.held is held


@pytest.mark.parametrize(
    "name",
    [
        "continue_final_message", "add_generation_prompt", "echo", "include_reasoning",
        "return_token_ids", "parallel_tool_calls", "allow_undeclared_calls", "stream", "logprobs",
    ],
)  # fmt: skip
def test_flags_are_true_or_false(name):
    for value in ("true", 1, [], {}):
        with pytest.raises(Error, match=f"^{name}: expected true or false") as error:
            printed(ANSWER, **{name: value})
        assert error.value.field == name
