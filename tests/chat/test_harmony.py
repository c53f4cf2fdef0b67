"""Everything that models have been seen to write, and noise: nothing is lost, nothing fails."""

import re

import pytest
from byte_vocabulary import NAMES, WORDS, Bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss import Error
from gptoss.chat.harmony import HarmonyParser


def parse(written):
    tokens = WORDS.encode(written) if isinstance(written, str) else written
    parser = HarmonyParser(WORDS)
    pieces = [piece for token in tokens for piece in parser.push(token)]
    pieces += parser.finish()
    for message in parser.messages:
        mine = [piece for piece in pieces if piece.message is message]
        assert "".join(piece.text for piece in mine) == message.content
        assert [piece.begins for piece in mine] == [True] + [False] * (len(mine) - 1)
        assert [piece.ends for piece in mine] == [False] * (len(mine) - 1) + [True]
    return parser.messages


def essence(written):
    return [(m.channel, m.recipient, m.content, m.ended_by) for m in parse(written)]


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
    "header",
    [
        " to=functions.weather<|channel|>commentary <|constrain|>json",
        "<|channel|>commentary to=functions.weather <|constrain|>json",
        "<|channel|>commentary to=functions.weather<|constrain|>json",
        "<|channel|>commentary to=functions.weather json",
    ],
)
def test_calls(header):
    """The recipient stands before or after the channel; models write both."""
    (message,) = parse(header + '<|message|>{"city": "Oslo"}<|call|>')
    assert message.is_call and message.recipient == "functions.weather"
    assert message.content_type == "json" and message.content == '{"city": "Oslo"}'
    assert message.channel == "commentary" and message.ended_by == "call"


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        # A refusal without a channel is an answer.
        ("<|message|>I cannot do that.<|return|>", [("final", "I cannot do that.")]),
        # <|return|> after <|end|>: the answer is whole.
        ("<|channel|>final<|message|>Yes.<|end|><|return|>", [("final", "Yes.")]),
        ("<|channel|>final<|message|>Yes.<|end|><|start|>assistant<|return|>", [("final", "Yes.")]),
        # No header at all, or an author alone.
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
    (message,) = parse("assistant to=" + "x" * 300 + "<|return|>")
    assert message.channel == "final" and set(message.content) == {"x"}
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
