"""Everything that models have been seen to write, and noise: nothing is lost, nothing fails."""

import re

import pytest
from byte_vocabulary import NAMES, WORDS, Bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from parsing import fields, take

from gptoss import Error
from gptoss.chat.harmony import HarmonyParser


def parse(written):
    return take(written)[0]


def essence(written):
    messages, ends = take(written)
    return [(m.channel, m.recipient, m.content, end) for m, end in zip(messages, ends, strict=True)]


def test_thinking_and_an_answer():
    written = (
        "<|channel|>analysis<|message|>Let me see.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Four.<|return|>"
    )
    assert essence(written) == [
        ("analysis", None, "Let me see.", "end"),
        ("final", None, "Four.", "return"),
    ]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (" to=functions.weather<|channel|>commentary <|constrain|>json", "<|constrain|>json"),
        ("<|channel|>commentary to=functions.weather <|constrain|>json", "<|constrain|>json"),
        ("<|channel|>commentary to=functions.weather<|constrain|>json", "<|constrain|>json"),
        ("<|channel|>commentary to=functions.weather json", "json"),
        ("<|channel|>commentary to=functions.weather code", "code"),
        ("<|channel|>commentary to=functions.weather", None),
        # A field that comes twice, or in another's place.
        (" to=functions.weather<|channel|>commentary to=functions.weather", None),
        ("<|channel|>commentary to=functions.weather<|channel|>commentary", None),
        ("<|channel|>commentary to=functions.weather<|channel|>final", None),
        (" to=functions.weather<|channel|>commentary<|channel|>commentary json", "json"),
        ("<|channel|>commentary<|channel|>commentary to=functions.weather", None),
        ("<|channel|>analysis<|channel|>commentary to=functions.weather json", "json"),
        ("<|channel|>commentary json to=functions.weather", "json"),
        ("<|channel|>commentary<|constrain|>json to=functions.weather", "<|constrain|>json"),
        ("<|constrain|>json<|channel|>commentary to=functions.weather", "<|constrain|>json"),
        ("<|channel|>commentary to=functions.weather json<|constrain|>json", "<|constrain|>json"),
        ("<|channel|>commentary to=functions.weather code <|constrain|>json",
         "code <|constrain|>json"),
        ("<|channel|>commentary to=functions.weather<|constrain|><|constrain|>json",
         "<|constrain|>json"),
        ("<|channel|>commentary to=functions.<|constrain|>functions.weather", None),
        ("<|channel|>commentary <|constrain|>functions.weather", None),
        # A blank too few or too many, or no to=.
        ("<|channel|>commentaryto=functions.weather", None),
        ("<|channel|>commentary to= functions.weather json", "json"),
        ("<|channel|>commentary functions.weather json", "json"),
        ("  to=functions.weather<|channel|> commentary", None),
        # A channel that is left out, misspelt or unknown.
        (" to=functions.weather json", "json"),
        ("<|channel|>comment to=functions.weather", None),
        ("<|channel|>?commentary to=functions.weather", None),
        ("<|channel|>Commentary to=functions.weather", None),
        ("<|channel|><|channel|>commentary to=functions.weather", None),
        ("<|start|>assistantcommentary to=functions.weather", None),
        ("<|start|><|start|>assistant to=functions.weather<|channel|>commentary", None),
        ("assistant to=functions.weather<|channel|>commentary", None),
        # <|message|> that comes too early.
        ("<|channel|>commentary to=functions.weather<|message|><|constrain|>json",
         "<|constrain|>json"),
        ("<|channel|>commentary to=functions.weather<|message|><|channel|>commentary", None),
    ],
)  # fmt: skip
def test_calls(header, kind):
    """The recipient stands before or after the channel; models write both, and worse."""
    wanted = ("assistant", "commentary", "functions.weather", kind)
    (message,), ends = take(header + '<|message|>{"city": "Oslo"}<|call|>')
    assert fields(message) == wanted and message.is_call
    assert message.content == '{"city": "Oslo"}' and ends == ["call"]
    # Without arguments, with <|message|> and without, whatever the end.
    for end in ("<|message|><|call|>", "<|call|>", "<|return|>", "<|end|>"):
        (message,), _ = take(header + end)
        assert fields(message) == wanted and message.content == "{}"
    # Cut: of a header nothing was written, wherever it is. A word that may be text is text.
    tokens = WORDS.encode(header)
    for cut in range(1, len(tokens) + 1):
        messages, _ = take(tokens[:cut])
        if not header.startswith("assistant"[:cut]) or cut > len("assistant"):
            assert not any(message.content for message in messages)
            assert not messages or WORDS.special_tokens["<|message|>"] in tokens[:cut]
    (message,), ends = take(header + '<|message|>{"ci')
    assert fields(message) == wanted and message.content == '{"ci' and ends == [None]
    (message,), ends = take(header + "<|message|>")
    assert fields(message) == wanted and message.content == "" and ends == [None]


@pytest.mark.parametrize("channel", ["analysis", "commentary", "final"])
@pytest.mark.parametrize(
    "recipient",
    ["functions.f", "functions.Web Search", "functions.a b c", "functions.", "functions.mcp.s.read",
     "functions.é-1", "browser.search", "container.exec", "python", "f"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["", " json", " code", "<|constrain|>json", " <|constrain|>json"])
def test_names_are_kept_as_they_are(channel, recipient, kind):
    for header in (f"<|channel|>{channel} to={recipient}{kind}",
                   f" to={recipient}<|channel|>{channel}{kind}"):  # fmt: skip
        (message,) = parse(header + "<|message|>{}<|call|>")
        assert fields(message) == ("assistant", channel, recipient, kind.strip() or None)
        assert message.is_call
        assert parse(header) == []


@pytest.mark.parametrize("recipient", ["assistant", "user", "all"])
def test_what_is_for_no_tool_is_no_call(recipient):
    (message,) = parse(f"<|channel|>commentary to={recipient}<|message|>Hello<|end|>")
    assert not message.is_call and message.recipient == recipient and message.content == "Hello"
    assert parse(f"<|channel|>commentary to={recipient}<|end|>") == []
    # As gpt-oss writes now and then: the header begins anew.
    (message,) = parse(f"<|channel|>commentary to={recipient}<|channel|>analysis<|message|>Hm")
    assert message.channel == "analysis" and message.content == "Hm"


@pytest.mark.parametrize(
    "call",
    [
        '<|channel|>commentary to=functions.f {"a": 1}',
        '<|channel|>commentary to=functions.f{"a": 1}',
        '<|channel|>commentary to=functions.f json{"a": 1}',
        '<|channel|>commentary to=functions.f<|constrain|>json{"a": 1}',
        '<|channel|>commentary to=functions.f <|constrain|>json {"a": 1}',
        '<|start|>assistant to=functions.f {"a": 1}',
        '<|start|>assistant to=functions.f<|channel|>commentary {"a": 1}',
        '<|channel|>commentary to=functions.f<|message|><|constrain|>json{"a": 1}',
    ],
)
def test_arguments_without_message(call):
    (message,), ends = take(call + "<|call|>")
    assert message.recipient == "functions.f" and message.is_call and ends == ["call"]
    assert message.content.removeprefix(" json").strip() == '{"a": 1}'


@pytest.mark.parametrize("author", ["user", "user:ann", "system", "developer", "tool",
                                    "functions.f", "browser.search", "python", "bash"])  # fmt: skip
def test_authors_other_than_the_assistant(author):
    """What they say is not the answer, and the answer goes on behind it."""
    written = (
        "<|channel|>final<|message|>one<|end|>"
        f"<|start|>{author}<|message|>theirs<|end|>"
        f"<|start|>{author} to=assistant<|channel|>commentary<|message|>theirs<|end|>"
        "<|start|>assistant<|channel|>final<|message|>two<|return|>"
    )
    assert [fields(m) for m in parse(written)] == [
        ("assistant", "final", None, None),
        (author, None, None, None),
        (author, "commentary", "assistant", None),
        ("assistant", "final", None, None),
    ]
    assert [m.content for m in parse(written) if m.is_answer] == ["one", "two"]


def test_messages_of_a_kind_stay_several():
    written = "<|start|>assistant".join(
        f"<|channel|>{channel}<|message|>{i}<|end|>"
        for i, channel in enumerate(["analysis", "analysis", "commentary", "final", "final"])
    )
    assert [(m.channel, m.content) for m in parse(written)] == [
        ("analysis", "0"), ("analysis", "1"), ("commentary", "2"), ("final", "3"), ("final", "4"),
    ]  # fmt: skip


def test_an_answer_that_goes_on():
    (message,), ends = take("more<|return|>", continues=True)
    assert fields(message) == ("assistant", "final", None, None)
    assert message.content == "more" and ends == ["return"]
    assert take("", continues=True)[1] == [None]
    messages, ends = take("more<|channel|>final<|message|>x", continues=True)
    assert [m.content for m in messages] == ["more", "x"] and ends == ["end", None]
    messages, _ = take("<|channel|>analysis<|message|>x<|end|>", continues=True)
    assert [(m.channel, m.content) for m in messages] == [("final", ""), ("analysis", "x")]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        # A refusal without a channel is an answer.
        ("<|message|>I cannot do that.<|return|>", [("final", "I cannot do that.")]),
        # <|return|> after <|end|>: the answer is whole.
        ("<|channel|>final<|message|>Yes.<|end|><|return|>", [("final", "Yes.")]),
        ("<|channel|>final<|message|>Yes.<|end|><|start|>assistant<|return|>", [("final", "Yes.")]),
        # No header at all, or what looks like the beginning of one.
        ("user", [("final", "user")]),
        ("The<|return|>", [("final", "The")]),
        (" to<|return|>", [("final", " to")]),
        ("User is a word.", [("final", "User is a word.")]),
        ("user is a word.", [("final", "user is a word.")]),
        ("to=5 is a word.", [("final", "to=5 is a word.")]),
        ("\n", [("final", "\n")]),
        (" to", []),
        (" to=functions.f", []),
        # Text between messages, or instead of a channel.
        ("<|channel|>analysis<|message|>a<|end|> 364 <|start|>assistant<|channel|>final<|message|>",
         [("analysis", "a"), ("final", " 364 "), ("final", "")]),
        ("<|channel|>??<|end|>", [("final", "??")]),
        ("<|channel|>commentary 2?<|end|>", [("commentary", " 2?")]),
        ("<|constrain|>write: edit the file now.<|end|>",
         [("final", "write: edit the file now.")]),
        ("Hello there, friend.<|return|>", [("final", "Hello there, friend.")]),
        (" Hello there, friend.<|return|>", [("final", " Hello there, friend.")]),
        ("<|start|>assistant Hello there.<|return|>", [("final", " Hello there.")]),
        ("<|start|>assistantHello there.<|return|>", [("final", "Hello there.")]),
        ("assistantship<|return|>", [("final", "assistantship")]),
        # <|message|> forgotten after the channel.
        ("<|channel|>final The answer is 4.<|return|>", [("final", " The answer is 4.")]),
        ("<|channel|>analysis We think.<|end|>", [("analysis", " We think.")]),
        # A channel of an unknown or a longer name.
        ("<|channel|>finalcommentary<|message|>x<|end|>", [("final", "x")]),
        ("<|channel|>speech<|message|>x<|end|>", [("final", "x")]),
        ("<|channel|>analysis<|channel|>final<|message|>x<|end|>", [("final", "x")]),
        # A message that the next header ends.
        (
            "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b",
            [("analysis", "a"), ("final", "b")],
        ),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
         [("analysis", "a"), ("final", "b")]),
        # Noise inside a message.
        ("<|channel|>final<|message|>a<|message|>b<|startoftext|>c<|return|>", [("final", "abc")]),
        # Cut by max_tokens: in a message, in a header, in its name.
        ("<|channel|>final<|message|>half an ans", [("final", "half an ans")]),
        ("<|channel|>final<|message|>a<|end|><|start|>assis", [("final", "a")]),
        ("<|channel|>final<|constrain|>json", []),
        ("<|channel|>final<|message|>a<|end|><|start|>functions.f to=assi", [("final", "a")]),
        ("<|channel|>ana", []),
        ("<|channel|>analysis", []),
        ("", []),
        # An empty message is one.
        ("<|channel|>final<|message|><|return|>", [("final", "")]),
    ],
)  # fmt: skip
def test_what_models_get_wrong(written, wanted):
    assert [(m.channel, m.content) for m in parse(written)] == wanted


def test_a_header_that_never_ends_is_text():
    text = "assistant to=" + "x" * 300
    (message,) = parse(text + "<|return|>")
    assert message.channel == "final" and message.recipient is None and message.content == text
    (message,) = parse("<|channel|>commentary to=" + "x" * 300 + "<|return|>")
    assert message.recipient is None and message.content == " to=" + "x" * 300
    (message,) = parse("<|channel|>analysis a b c d e f<|return|>")
    assert message.channel == "analysis" and message.content == " a b c d e f"


def test_text_shows_before_the_header_would_have_ended():
    parser = HarmonyParser(WORDS)
    pieces = [piece for token in WORDS.encode("It rains. " * 8) for piece in parser.push(token)]
    assert "".join(piece.text for piece in pieces).startswith("It rains. It rains.")


def test_bytes_that_are_no_utf8_stay_in_their_message():
    head, tail = WORDS.encode("<|channel|>final<|message|>a"), WORDS.encode("b")
    (message,) = parse([*head, 0xE2, 0x82, *tail, 0xFF, WORDS.special_tokens["<|return|>"]])
    assert message.content == "a\ufffdb\ufffd"
    euro = [*head, *"€".encode()]
    assert parse(euro[:-1])[0].content == "a\ufffd"
    assert parse(euro)[0].content == "a€"


def test_ids_that_map_to_nothing():
    tokens = WORDS.encode("<|channel|>final<|message|>a")
    assert essence([*tokens, WORDS.nothing, 98]) == [("final", None, "ab", None)]


def test_a_vocabulary_without_harmony():
    class Poor(Bytes):
        special_tokens = {"<|start|>": 256}  # noqa: RUF012

    with pytest.raises(Error, match=re.escape("lacks <|end|>")):
        HarmonyParser(Poor())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 256 + len(NAMES)), max_size=80))
def test_any_tokens(tokens):
    """Nothing raises, and the pieces are the messages (checked in parse)."""
    parse(tokens)


WORD = st.text("abc é€", min_size=1, max_size=12)
TURN = st.tuples(st.sampled_from(["analysis", "commentary", "final"]), WORD)


@settings(max_examples=200, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=5))
def test_what_is_well_formed_comes_out(turns):
    written = "<|start|>assistant".join(
        f"<|channel|>{channel}<|message|>{text}<|end|>" for channel, text in turns
    )
    assert [(m.channel, m.content) for m in parse(written)] == turns


@pytest.mark.parametrize(
    "header, recipient",
    [
        ("to=assistant to=functions.f", "functions.f"),
        ("to=functions.f to=assistant", "functions.f"),
        ("to=functions. to=functions.f", "functions.f"),
        ("to=user to=assistant", "user"),
        ("to= to=user", "user"),
    ],
)
def test_of_several_recipients_the_first_that_is_a_tool(header, recipient):
    (message,), _ = take(f"<|channel|>commentary {header}<|message|>{{}}<|call|>")
    assert message.recipient == recipient
