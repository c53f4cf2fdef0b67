"""What a model writes, as chat completions say it: the same whole and streamed, whatever it is."""

import pytest
from chatting import TOOL, ask, joined, printed
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ANSWER, CALL, THINKING, WORDS

START = "<|start|>assistant"


def message(channel, text, end="<|end|>", to=""):
    return f"<|channel|>{channel}{to}<|message|>{text}{end}"


def several(*messages):
    return START.join(messages)


def test_thinking_under_both_of_its_names():
    whole, chunks = printed(THINKING + ANSWER)
    said = whole["choices"][0]["message"]
    assert said["reasoning"] == said["reasoning_content"] == "Let me see."
    thinking = [c["choices"][0]["delta"] for c in chunks if "reasoning" in c["choices"][0]["delta"]]
    assert "".join(delta["reasoning"] for delta in thinking) == "Let me see."
    assert all(delta["reasoning_content"] == delta["reasoning"] for delta in thinking)


def test_thinking_that_nobody_wants():
    whole, chunks = printed(THINKING + ANSWER, include_reasoning=False)
    assert "reasoning" not in str(whole["choices"]) + str([c["choices"] for c in chunks])
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 10
    assert joined(chunks)[0].content == "It is four."


def test_what_strict_clients_look_for():
    whole, chunks = printed(ANSWER)
    (choice,) = whole["choices"]
    assert choice["message"]["refusal"] is None and choice["message"]["annotations"] == []
    assert choice["logprobs"] is None
    marks = {each["system_fingerprint"] for each in (whole, *chunks)}
    assert len(marks) == 1 and marks.pop().startswith("fp_")


@pytest.mark.parametrize("tools", [[TOOL], []], ids=["with tools", "without"])
def test_messages_of_a_kind_stay_apart(tools):
    written = several(
        message("analysis", "First."),
        message("analysis", "Second."),
        message("commentary", "Let me check."),
        message("analysis", ""),
        message("analysis", "Third."),
        message("final", "It is sunny.", "<|return|>"),
    )
    (said,) = ask(written, tools=tools)
    assert said.content == "Let me check.\n\nIt is sunny."
    assert said.thinking == "First.\n\nSecond.\n\nThird."


def test_an_empty_message_leaves_no_blank_lines():
    written = several(message("commentary", ""), message("final", "Yes."), message("final", ""))
    assert ask(written)[0].content == "Yes."


@pytest.mark.parametrize(
    "header", ["user", "functions.f to=assistant<|channel|>commentary", "tool"]
)
def test_what_others_are_made_to_say_is_not_the_answer(header):
    """The model speaks for the user, or for a tool."""
    others = f"<|start|>{header}<|message|>RESULT<|end|>{START}"
    written = message("final", "one") + others + message("final", "two", "<|return|>")
    (said,) = ask(written, tools=[TOOL], logprobs=True)
    assert said.content == "one\n\ntwo" and not said.calls and said.finish == "stop"
    assert b"".join(said.logprobs) == b"onetwo"


def calls_of(said):
    return [tuple(call) for call in said.calls]


TWO = several(CALL.replace("<|call|>", "<|end|>"), CALL.replace("2", "3"))


def of_json(name, arguments, end="<|call|>"):
    header = f"commentary to={name} <|constrain|>json"
    return message(header, arguments, end)


@pytest.mark.parametrize(
    ("written", "called"),
    [
        (CALL, [("add", '{"a": 2}')]),
        (TWO, [("add", '{"a": 2}'), ("add", '{"a": 3}')]),
        # A call without arguments has an empty object of them, not nothing.
        (of_json("functions.add", ""), [("add", "{}")]),
        (message("commentary", "", "<|call|>", " to=functions.add"), [("add", "{}")]),
        ("<|channel|>commentary to=functions.add <|constrain|>json<|call|>", [("add", "{}")]),
        (several(of_json("functions.add", "", "<|end|>"), CALL),
         [("add", "{}"), ("add", '{"a": 2}')]),
        # A second channel, before the recipient or behind it.
        (message("commentary to=functions.add<|channel|>commentary", '{"a": 2}', "<|call|>"),
         [("add", '{"a": 2}')]),
        # Names that the model makes up are given as they are.
        (of_json("browser.search", '{"query": "x"}'), [("browser.search", '{"query": "x"}')]),
        (of_json("functions.mcp.srv.read", "{}"), [("mcp.srv.read", "{}")]),
        (message("analysis to=python code", "2 + 2", "<|call|>"), [("python", "2 + 2")]),
    ],
)  # fmt: skip
def test_calls(written, called):
    (said,) = ask(THINKING + written, tools=[TOOL], return_token_ids=True)
    assert calls_of(said) == called and said.finish == "tool_calls"
    assert said.content == "" and said.thinking == "Let me see."


def test_a_preamble_is_not_the_call():
    (said,) = ask(several(message("commentary", "I add."), CALL), tools=[TOOL])
    assert (said.content, calls_of(said)) == ("I add.", [("add", '{"a": 2}')])


@pytest.mark.parametrize("options", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_where_nothing_can_be_called_a_call_is_text(options):
    (said,) = ask(THINKING + CALL, **options)
    assert (said.content, said.calls, said.finish) == ('{"a": 2}', [], "stop")
    assert ask(of_json("functions.add", ""), **options)[0].content == ""


def test_no_second_call_where_one_is_asked_for():
    (said,) = ask(TWO, tools=[TOOL], parallel_tool_calls=False)
    assert calls_of(said) == [("add", '{"a": 2}')] and said.finish == "tool_calls"
    assert len(ask(TWO, tools=[TOOL], parallel_tool_calls=True)[0].calls) == 2


CUT = [
    THINKING + CALL,
    several(message("commentary", "I add."), TWO),
    TWO,
    of_json("functions.add", ""),
    of_json("browser.search", '{"query": "x"}'),
    message("analysis to=python code", "2 + 2", "<|call|>"),
    " to=functions.add<|channel|>commentary<|channel|>commentary <|constrain|>json<|message|>{}"
    "<|call|>",
]


@pytest.mark.parametrize("written", CUT)
def test_what_the_limit_cuts_is_never_said_to_be_whole(written):
    """Wherever it cuts: in a header, in arguments, between two calls, before the last token."""
    whole = ask(written, tools=[TOOL])[0]
    assert whole.finish == "tool_calls"
    for tokens in range(1, len(WORDS.encode(written))):
        (said,) = ask(written, finish="length", tokens=tokens, tools=[TOOL], return_token_ids=True)
        assert said.finish == "length" and len(said.token_ids) == tokens
        assert whole.content.startswith(said.content)
        assert whole.thinking.startswith(said.thinking)
        # Nothing is invented: no arguments out of a header, no object that nobody wrote.
        assert len(said.calls) <= len(whole.calls)
        for (name, arguments), (wanted, all_of_them) in zip(said.calls, whole.calls, strict=False):
            assert name == wanted and all_of_them.startswith(arguments)


@pytest.mark.parametrize("end", ["", "<|end|>"])
def test_a_call_that_nothing_ended_is_not_whole(end):
    """A stop token of the client's ends it, though the engine says "stop"."""
    half = of_json("functions.add", '{"a": ', end="")
    assert ask(half, tools=[TOOL])[0].finish == "length"
    whole = of_json("functions.add", '{"a": 2}', end=end)
    assert ask(whole, tools=[TOOL])[0].finish == "tool_calls"


STOPPED = [
    # (what is written, stop, content, thinking, finish)
    (THINKING + ANSWER, ["four"], "It is ", "Let me see.", "stop"),
    (THINKING.replace("see", "four") + ANSWER, ["four"], "It is ", "Let me four.", "stop"),
    (THINKING + ANSWER, ["final", "channel", "Let"], "It is four.", "Let me see.", "stop"),
    (ANSWER, ["four.!"], "It is four.", "", "stop"),
    # No stop string begins in one message and ends in the next.
    (several(message("commentary", "ab"), message("final", "cd")), ["bc"], "ab\n\ncd", "", "stop"),
    (several(message("commentary", "ab"), message("final", "bc")), ["bc"], "ab\n\n", "", "stop"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "stop", "content", "thinking", "finish"), STOPPED)
def test_stop_strings_end_text_for_the_user(written, stop, content, thinking, finish):
    (said,) = ask(written, stop=stop, logprobs=True)
    assert (said.content.rstrip("\n"), said.thinking) == (content.rstrip("\n"), thinking)
    assert said.finish == finish
    assert b"".join(said.logprobs).decode() == said.content.replace("\n\n", "")


def test_stop_strings_are_not_looked_for_in_calls():
    (said,) = ask(CALL, stop=["a"], tools=[TOOL])
    assert calls_of(said) == [("add", '{"a": 2}')] and said.finish == "tool_calls"


def test_numbers_of_tokens_with_every_chunk():
    options = {"include_usage": True, "continuous_usage_stats": True}
    written = THINKING + ANSWER
    whole, chunks = printed(written, stream_options=options)  # which only the stream is told
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == len(WORDS.encode(written))
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    del options["continuous_usage_stats"]
    _, chunks = printed(written, stream_options=options)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    _, chunks = printed(written)
    assert all("usage" not in chunk for chunk in chunks)


def test_ids_of_tokens():
    written = THINKING + ANSWER
    whole, chunks = printed(written, return_token_ids=True, n=2)
    assert whole["prompt_token_ids"] == chunks[0]["prompt_token_ids"] == [0] * 7
    assert all("prompt_token_ids" not in chunk for chunk in chunks[1:])
    for choice in whole["choices"]:
        assert choice["token_ids"] == WORDS.encode(written)
    whole, chunks = printed(written)
    assert "token_ids" not in str(whole) + str(chunks)


# Anything that a model may write: well-formed messages, pieces of them in any order, bytes.
CHANNELS = st.sampled_from(["analysis", "commentary", "final", "comment", ""])
RECIPIENTS = st.sampled_from(
    ["", " to=functions.add", " to=browser.search", " to=assistant", " to=functions.", " to="]
)
TEXTS = st.text('ab{}" \n.é四\U0001f600', max_size=8)
ENDS = st.sampled_from(["<|end|>", "<|call|>", "<|return|>", ""])
MESSAGES = st.builds(
    lambda channel, to, kind, text, end: message(f"{channel}{to}{kind}", text, end),
    CHANNELS, RECIPIENTS, st.sampled_from(["", " <|constrain|>json", " code"]), TEXTS, ENDS,
)  # fmt: skip
PIECES = MESSAGES | TEXTS | CHANNELS | RECIPIENTS | st.sampled_from(
    [START, "<|start|>user", "<|start|>functions.f to=assistant", "<|channel|>", "<|message|>",
     "<|constrain|>", "<|end|>", "<|call|>", "<|return|>", "<|endoftext|>"]
)  # fmt: skip
WRITTEN = st.lists(MESSAGES, max_size=4).map(START.join) | st.lists(PIECES, max_size=10).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(
    written=WRITTEN.filter(WORDS.encode),
    finish=st.sampled_from(["stop", "length"]),
    cut=st.none() | st.integers(1, 80),
    tools=st.sampled_from([[], [TOOL]]),
    stop=st.lists(st.text('ab{}" \n', min_size=1, max_size=3), max_size=2),
    n=st.integers(1, 2),
    one_call=st.booleans(),
)
def test_a_stream_says_what_the_whole_answer_says(written, finish, cut, tools, stop, n, one_call):
    """`ask` compares them, and checks each object; what is left holds for any answer."""
    for said in ask(
        written,
        finish=finish,
        tokens=cut,
        tools=tools,
        stop=stop,
        n=n,
        logprobs=True,
        return_token_ids=True,
        parallel_tool_calls=not one_call,
    ):
        assert said.finish in ("stop", "length", "tool_calls")
        assert (said.finish == "tool_calls") <= bool(said.calls)
        assert said.calls == [] or tools
        assert not one_call or len(said.calls) <= 1 or said.finish == "length"
        tokens = WORDS.encode(written)[:cut]
        assert said.token_ids == tokens[: len(said.token_ids)]
        if not stop and not one_call:
            assert said.token_ids == tokens
            if finish == "length":
                assert said.finish == "length"
        # Log-probabilities are those of the text, of all of it.
        if "\ufffd" not in said.content:
            assert b"".join(said.logprobs).decode() == said.content.replace("\n\n", "") or (
                "\n" in written or stop
            )
