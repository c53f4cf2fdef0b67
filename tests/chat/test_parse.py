"""`gptoss.chat.parse`: whatever is written, whole, cut or in any pieces."""

import re

import numpy as np
import pytest
from byte_vocabulary import WORDS, Bytes
from conversations import cases
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parsing import check_pieces, fields, take

from gptoss import Error
from gptoss.chat import (
    call_name,
    call_recipient,
    dump_messages,
    message_segments,
    parse,
    parse_messages,
    render,
)
from gptoss.chat.conversation import Message
from gptoss.chat.harmony import CONSTRAIN, REQUIRED, MarkedParser
from gptoss.chat.header import Header
from gptoss.tokenizer import HARMONY_SIZE

SPECIAL = re.compile("(" + "|".join(map(re.escape, WORDS.special_tokens)) + ")")


# What models write, in any order.
MARKS = st.sampled_from([*REQUIRED, *REQUIRED, "<|endoftext|>", "<|startoftext|>"])
HEADER_WORDS = st.sampled_from(
    ["assistant", "user", "functions.f", "analysis", "commentary", "final", "json", "code", " json",
     " to=functions.f", "to=functions.g", " to=functions.Web Search", " to=python", " to=user",
     " to=", "functions.", " ", "\n", "??", "t", " to", "assis", '{"a": 1}', "é", "The", " end."]
)  # fmt: skip
PARTS = st.lists(MARKS | HEADER_WORDS | st.text("abc é€", max_size=8), max_size=24)

# Messages as a well-behaved model writes them.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: "<|" not in text
)
NAMES = st.from_regex(r"functions\.[A-Za-z0-9_-]{1,12}", fullmatch=True)
CHANNELS = st.sampled_from(["analysis", "commentary", "final"])
SAID = st.builds(Message, st.just("assistant"), CHANNELS, content=TEXT)
CALLED = st.builds(
    Message, st.just("assistant"), st.just("commentary"), NAMES,
    st.sampled_from([None, "json", "code", f"{CONSTRAIN}json"]), TEXT.filter(str.strip),
)  # fmt: skip
RESULT = st.builds(Message, NAMES, st.just("commentary"), st.just("assistant"), content=TEXT)
ASKED = st.builds(Message, st.sampled_from(["user", "developer"]), content=TEXT)
CONVERSATIONS = st.lists(SAID | CALLED | RESULT | ASKED, min_size=1, max_size=5)


def written(message, recipient_first=True):
    """In harmony."""
    recipient = f" to={message.recipient}" if message.recipient else ""
    channel = f"<|channel|>{message.channel}" if message.channel else ""
    kind = f" {message.content_type}" if message.content_type else ""
    fields = recipient + channel if recipient_first else channel + recipient
    end = "<|call|>" if message.is_call else "<|end|>"
    return f"<|start|>{message.author}{fields}{kind}<|message|>{message.content}{end}"


@settings(max_examples=150, deadline=None)
@given(CONVERSATIONS, st.booleans())
def test_what_is_well_formed_comes_out(messages, recipient_first):
    text = "".join(written(message, recipient_first) for message in messages)
    assert parse(text) == messages
    assert parse(WORDS.encode(text), WORDS) == messages
    assert parse(text.removeprefix("<|start|>assistant")) == messages


@settings(max_examples=100, deadline=None)
@given(messages=CONVERSATIONS, recipient_first=st.booleans())
def test_what_openais_library_reads(published, openais, messages, recipient_first):
    ids = published.encode("".join(written(m, recipient_first) for m in messages), "all")
    theirs = [
        (m.author.name or m.author.role.value, m.channel, m.recipient, m.content_type,
         "".join(part.text for part in m.content))
        for m in openais.parse_messages_from_completion_tokens(ids)
    ]  # fmt: skip
    assert theirs == [(*fields(m), m.content) for m in parse(ids, published)]


@settings(max_examples=150, deadline=None)
@given(CONVERSATIONS, st.data())
def test_a_cut_of_what_is_well_formed(messages, data):
    """Wherever it is, in a header too: what was whole is whole, and nothing is made up."""
    tokens = WORDS.encode("".join(map(written, messages)))
    cut = data.draw(st.integers(0, len(tokens)))
    found, ends = take(tokens[:cut])
    whole = [WORDS.encode(written(message)) for message in messages]
    complete = 0
    while complete < len(messages) and len(whole[complete]) <= cut:
        cut -= len(whole[complete])
        complete += 1
    assert found[:complete] == messages[:complete]
    begun = (
        complete < len(messages) and WORDS.special_tokens["<|message|>"] in whole[complete][:cut]
    )
    assert len(found) == complete + begun
    if begun:
        assert fields(found[-1]) == fields(messages[complete]) and ends[-1] is None
        content = whole[complete][:cut][
            whole[complete].index(WORDS.special_tokens["<|message|>"]) :
        ]
        assert found[-1].content == bytes(content[1:]).decode(errors="replace")


@settings(max_examples=300, deadline=None)
@given(PARTS, st.data())
@example(["assistant", " to=functions.f", "<|channel|>"], None)
def test_whatever_is_written(parts, data):
    """It is parsed, loses no text, and is the same in any pieces and from tokens."""
    text = "".join(parts)
    messages = parse(text)
    assert parse(WORDS.encode(text), WORDS) == messages
    assert take(text)[0] == messages  # byte by byte, and its pieces
    for message in messages:
        assert message.channel in ("analysis", "commentary", "final", None)
        assert message.channel is not None or not message.from_model
        assert not SPECIAL.search(message.content)
    check_nothing_is_lost(text, parse(text + "<|end|>"))
    if data is not None:
        parser = MarkedParser()
        pieces = []
        for i, part in enumerate(SPECIAL.split(text)):
            if i % 2:
                pieces += parser.special(part)
                continue
            while part:
                at = data.draw(st.integers(1, len(part)))
                pieces += parser.text(part[:at])
                part = part[at:]
        pieces += parser.finish()
        assert parser.messages == messages
        check_pieces(pieces, messages)


NAMING = ("<|channel|>", "<|start|>")


def check_nothing_is_lost(text, messages):
    """Letters that no word of a header has are in a content or a field, as often as in the text.

    But for those in the names of channels and of authors who say nothing, and where a recipient's
    name stands.
    """
    kept = "".join(
        f"{m.author} {m.channel} {m.recipient} {m.content_type} {m.content}\n" for m in messages
    )
    letters, token = "", ""
    for i, part in enumerate(SPECIAL.split(text.replace("<|startoftext|>", ""))):
        if i % 2:
            token = part
        elif not re.search(r"to=|functions\.", part):
            letters += re.sub(r"^\s*\S+", "", part) if token in NAMING else part
    for letter in "é€?{1Tb":
        assert kept.count(letter) >= letters.count(letter), (letter, text, messages)


@settings(max_examples=200, deadline=None)
@given(PARTS, st.data())
def test_a_cut_of_anything(parts, data):
    """Messages that were whole before the cut are in the whole as they are."""
    tokens = WORDS.encode("".join(parts))
    cut = data.draw(st.integers(0, len(tokens)))
    before, whole = take(tokens[:cut])[0], take(tokens)[0]
    assert len(before) <= len(whole) + 1
    assert before[:-1] == whole[: max(len(before) - 1, 0)]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_special_tokens_is_the_answer(text):
    if "<|" in text or re.fullmatch(r"|(assistant)?( +(to?)?|\s*to=.*)", text, re.DOTALL):
        return  # the beginning of a header
    for found in (parse(text), parse(WORDS.encode(text), WORDS)):
        assert found == [Message("assistant", "final", content=text)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, WORDS.nothing), max_size=80))
def test_any_tokens(tokens):
    assert parse(tokens, WORDS) == take(tokens)[0]


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(
        st.integers(0, HARMONY_SIZE - 1)
        | st.sampled_from([200002, 200003, *range(200005, 200013)]),
        max_size=40,
    ),
    parts=PARTS,
)
def test_any_tokens_of_the_published_vocabulary(published, tokens, parts):
    assert parse(tokens) == take(tokens, published)[0]
    text = "".join(parts)
    ids = published.encode(text, allowed_special=set(WORDS.special_tokens))
    assert parse(ids) == parse(np.array(ids, np.int32), published) == parse(text)
    assert take(ids, published)[0] == parse(text)


def test_the_prompts_last_tokens_may_stand_before_it():
    text = "<|channel|>final<|message|>Four.<|return|>"
    wanted = [Message("assistant", "final", content="Four.")]
    assert parse(text) == parse("<|start|>assistant" + text) == wanted
    assert parse("<|start|>assistant") == parse("") == parse([], WORDS) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a\ud83d b", "a\ufffd b"), ("\ude00", "\ufffd"), ("a\ud83d\ude00", "a\U0001f600"),
     ("\ude00\ud83d", "\ufffd\ufffd")],
)  # fmt: skip
def test_halves_of_characters(text, wanted):
    assert [m.content for m in parse(text)] == [wanted]
    assert [m.content for m in parse("<|message|>" + text, WORDS)] == [wanted]


def test_special_tokens_that_mean_nothing():
    text = "<|channel|>final<|message|>a<|reserved_200014|>b<|endofprompt|><|nothing|>"
    assert [m.content for m in parse(text)] == ["ab<|nothing|>"]
    # A vocabulary of its own has its own.
    (message,) = parse(text, WORDS)
    assert message.content == "a<|reserved_200014|>b<|endofprompt|><|nothing|>"


@pytest.mark.parametrize(
    "wrong",
    [None, 5, b"text", 1.5, [1.5], ["a"], [None], [-1], [WORDS.vocab_size], [True], [2**80]],
)
def test_what_is_neither_text_nor_tokens(wrong):
    with pytest.raises(Error, match="parse: expected"):
        parse(wrong, WORDS)


def test_a_vocabulary_without_harmony():
    class Poor(Bytes):
        special_tokens = {"<|start|>": 256}  # noqa: RUF012

    for it in ("text", [1]):
        with pytest.raises(Error, match=re.escape("lacks <|end|>")):
            parse(it, Poor())


def test_long_texts():
    """A header without an end is given up; marks without text do not add up. Were that quadratic,
    this would not end.
    """
    for text in ("a" * 300_000, "to=" * 100_000, "<|channel|>" * 30_000, " " * 300_000,
                 "<|channel|><|constrain|>" * 15_000, "<|channel|>x<|constrain|>" * 15_000,
                 "<|start|>assistant" * 15_000, "<|message|><|channel|>" * 15_000):  # fmt: skip
        plain = re.sub(r"<\|\w+\|>", "", text)
        assert sum(len(message.content) for message in parse(text)) <= len(plain)


# Back again: what was written is a conversation's history.


@settings(max_examples=150, deadline=None)
@given(CONVERSATIONS)
def test_what_is_well_formed_is_rendered_as_it_was_written(messages):
    messages = [message for message in messages if message.role != "developer"]
    assert "".join(
        text for message in messages for _, text in message_segments(message)
    ) == "".join(map(written, messages))
    answers = [i for i, message in enumerate(messages) if message.is_answer]
    kept = [
        message
        for i, message in enumerate(messages)
        if message.channel != "analysis" or i > max(answers, default=-1)
    ]
    if messages:
        prompt = render(parse("".join(map(written, messages)))).text
        assert prompt.endswith("<|end|>" + "".join(map(written, kept)) + "<|start|>assistant")


def answered(messages):
    """As a client sends it back that ran every call: one message for the whole answer."""
    calls, results, texts, thoughts = [], [], [], []
    for number, message in enumerate(messages):
        if message.is_call:
            name = message.recipient.removeprefix("functions.")
            function = {"name": name, "arguments": message.content}
            calls.append({"id": f"call_{number}", "type": "function", "function": function})
            results.append({"role": "tool", "tool_call_id": f"call_{number}", "content": "done"})
        elif message.from_model:
            (thoughts if message.channel == "analysis" else texts).append(message.content)
    content = "\n\n".join(texts)
    answer = {"role": "assistant", "content": content or (None if calls else "")}
    answer |= {"reasoning": "\n\n".join(thoughts)} if thoughts else {}
    answer |= {"tool_calls": calls} if calls else {}
    return [answer, *results]


@settings(max_examples=100, deadline=None)
@given(PARTS)
def test_whatever_was_written_can_be_sent_back(published, parts):
    messages = parse("".join(parts))
    asked = {"role": "user", "content": "Hi"}
    for history in (answered(messages), dump_messages(messages), messages):
        rendered = render([asked, *history], tokenizer=published)
        assert published.decode(rendered.ids) == rendered.text
        for message in messages:
            if message.from_model and message.channel != "analysis":
                assert message.content in rendered.text
            if message.is_call and history is not messages:  # which stay as they are
                assert f" to={call_recipient(call_name(message.recipient))}<" in rendered.text


@settings(max_examples=200, deadline=None)
@given(CONVERSATIONS | PARTS.map(lambda parts: parse("".join(parts))))
def test_messages_in_the_chat_form_and_back(messages):
    """All but what that form has no word for: it is the same from the second time on."""
    if not messages:
        return
    found = parse_messages(dump_messages(messages))
    said = [m for m in messages if m.content or m.is_call or not m.from_model]
    assert [m.content for m in found] == [
        m.content or "{}" if m.is_call else m.content for m in said
    ]
    assert [m.role for m in found] == [m.role for m in said]
    assert [m.is_call for m in found] == [m.is_call for m in said]
    for before, after in zip(said, found, strict=True):
        if before.is_call:
            assert call_name(after.recipient) == call_name(before.recipient)
        elif before.role == "tool":
            assert call_name(after.author) == call_name(before.author)
        elif before.channel in ("analysis", "final"):
            assert after.channel in (before.channel, "commentary")
    assert not found or parse_messages(dump_messages(found)) == found


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_chat_form_comes_back_whole(case):
    messages = parse_messages(case.all_raw())
    assert parse_messages(dump_messages(messages)) == messages


def test_marks_without_end_and_nothing_behind_them():
    header = Header()
    for mark in ("<|channel|>", "<|constrain|>") * 5000:
        header.mark(mark)
    assert header.add("") == ""
