"""`gptoss chat`: messages out of lines, commands, what is kept of a conversation."""

import json
import os
import subprocess
import sys

import pytest
from byte_vocabulary import WORDS
from waiting import WORK

from gptoss import Engine, Error, SamplingParams
from gptoss.chat.conversation import Message
from gptoss.chat.formats import HarmonyChat, load_chat
from gptoss.chat.harmony import HarmonyParser
from gptoss.chat.render import Rendered
from gptoss.cli.chat import Session, command, read_messages
from gptoss.request.result import Delta


def messages(*lines):
    left = iter(lines)

    def read(_):
        try:
            line = next(left)
        except StopIteration:
            raise EOFError from None
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    return list(read_messages(read))


def test_lines():
    assert messages("a", "", "  ", " b ") == ["a", "b"]
    assert messages("a\\", "b\\", "c", "d") == ["a\nb\nc", "d"]
    assert messages('"""a', "", 'b"""', "c") == ["a\n\nb", "c"]
    assert messages('"""a"""', "c") == ["a", "c"]
    assert messages("a\\", KeyboardInterrupt, "b") == ["b"]
    assert messages('"""a') == []


@pytest.fixture(scope="module")
def engine():
    with Engine(kv_bytes=8 << 20, threads=1) as engine:
        yield engine


@pytest.fixture
def session(engine):
    params = SamplingParams(max_tokens=8, temperature=0)
    return Session(engine, load_chat(engine.tokenizer), params)


def test_an_answer_goes_on_with_the_conversation(session, engine):
    written = "".join(text for _, text in session.answer("Once upon a time"))
    assert written and session.messages == [
        Message("user", content="Once upon a time"),
        Message("assistant", "final", content=written),
    ]
    (again,) = engine.generate("Once upon a time", session.params)
    assert again.text == written
    list(session.answer("The end."))
    assert [m.role for m in session.messages] == ["user", "assistant"] * 2


def test_what_was_written_before_a_stop_stays(session):
    answer = session.answer("Once upon a time")
    _, first = next(answer)
    answer.close()
    assert session.messages[-1] == Message("assistant", "final", content=first)


def test_old_messages_go_when_there_is_no_room(session, engine):
    room = engine.info()["context_length"] - 8
    long = "The dog ran. " * 150
    for _ in range(4):
        list(session.answer(long))
    prompt = session._prompt()
    assert room - 500 < len(prompt) <= room
    before = list(session.messages)
    with pytest.raises(Error, match=f"expected at most {room} tokens"):
        list(session.answer("The dog ran. " * 600))
    assert session.messages == before


def test_commands(session, capsys, tmp_path):
    assert not command(session, "hello /reset")
    assert command(session, "/system Be brief.") and session.system == "Be brief."
    assert command(session, "/system")
    assert capsys.readouterr().out == "Be brief.\n"
    session.messages.append(Message("user", content="Ü"))
    command(session, f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert [m["content"] for m in saved["messages"]] == ["Be brief.", "Ü"]
    command(session, "/reset")
    assert session.messages == [] and session.system == "Be brief."
    command(session, "/effort high")
    assert session.effort == "high"
    for wrong, message in [
        ("/effort extreme", "one of low, medium, high"),
        ("/save", "name of a file"),
        (f"/save {tmp_path}/no/where", "/save .*where"),
        ("/dance", "found /dance"),
    ]:
        with pytest.raises(Error, match=message):
            command(session, wrong)
    with pytest.raises(EOFError):
        command(session, "/quit")


class Scripted:
    """An engine that writes what it is told to, and the harmony of single bytes."""

    def __init__(self, written):
        self.words, self.written = WORDS, written

    def info(self):
        return {"context_length": 1000}

    def stream(self, prompt, params):
        from contextlib import nullcontext

        return nullcontext(Delta("", (token,)) for token in self.words.encode(self.written))


class OfBytes(HarmonyChat):
    def __init__(self, words):
        self.words, self.seen = words, []

    def parser(self, continues=None):
        return HarmonyParser(self.words, continues)

    def render(self, conversation):
        self.seen.append(conversation.messages)
        return Rendered([(False, "?")], WORDS)


def test_thinking_is_told_apart_and_remembered():
    engine = Scripted(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
        "<|channel|>final<|message|>Yes.<|return|>"
    )
    chat = OfBytes(engine.words)
    session = Session(engine, chat, SamplingParams(), "Be brief.")
    pieces = list(session.answer("Well?"))
    assert "".join(text for channel, text in pieces if channel == "analysis") == "hm"
    assert "".join(text for channel, text in pieces if channel == "final") == "Yes."
    assert session.messages[1:] == [
        Message("assistant", "analysis", content="hm"),
        Message("assistant", "final", content="Yes."),
    ]
    list(session.answer("Sure?"))
    assert [m.role for m in chat.seen[-1]] == ["system", "user", "assistant", "assistant", "user"]


def test_a_preamble_is_no_part_of_the_answer():
    engine = Scripted(
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Yes.<|return|>"
    )
    session = Session(engine, OfBytes(engine.words), SamplingParams())
    list(session.answer("Well?"))
    assert [(m.channel, m.content) for m in session.messages[1:]] == [
        ("commentary", "I look."),
        ("final", "Yes."),
    ]


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX", "en_US.UTF-8"])
def test_bytes_that_are_no_text_do_not_end_a_conversation(locale, tmp_path):
    saved = tmp_path / "saved.json"
    done = subprocess.run(
        [sys.executable, "-m", "gptoss", "chat", "--max-tokens", "4", "--temperature", "0"],
        input=b"caf\xe9 \xf0\x9f\nOnce upon a time\n/save " + str(saved).encode() + b"\n",
        capture_output=True, timeout=WORK, env={**os.environ, "LC_ALL": locale},
    )  # fmt: skip
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    said = [m["content"] for m in json.loads(saved.read_text("utf-8"))["messages"]]
    assert said[0].startswith("caf\ufffd") and said[2] == "Once upon a time"


def test_the_program():
    lines = "/help\nOnce upon a time\n/dance\n/quit\nnever read\n"
    done = subprocess.run(
        [sys.executable, "-m", "gptoss", "chat", "--max-tokens", "8", "--temperature", "0"],
        input=lines, capture_output=True, text=True, timeout=WORK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "/effort LEVEL" in done.stdout and len(done.stdout.splitlines()) >= 6
    assert "was not taught conversations" in done.stderr and "found /dance" in done.stderr
    assert "Traceback" not in done.stderr
