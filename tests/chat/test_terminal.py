"""`gptoss chat`: messages out of lines, commands, what is kept of a conversation."""

import json
import subprocess
import sys

import pytest
from byte_vocabulary import WORDS

from gptoss import Engine, Error, SamplingParams
from gptoss.chat.formats import HarmonyChat, load_chat
from gptoss.chat.harmony import HarmonyParser
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
        {"role": "user", "content": "Once upon a time"},
        {"role": "assistant", "content": written},
    ]
    (again,) = engine.generate("Once upon a time", session.params)
    assert again.text == written
    list(session.answer("The end."))
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_what_was_written_before_a_stop_stays(session):
    answer = session.answer("Once upon a time")
    _, first = next(answer)
    answer.close()
    assert session.messages[-1] == {"role": "assistant", "content": first}


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
    session.messages.append({"role": "user", "content": "Ü"})
    command(session, f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert [m["content"] for m in saved["messages"]] == ["Be brief.", "Ü"]
    command(session, "/reset")
    assert session.messages == [] and session.system == "Be brief."
    command(session, "/effort high")
    assert session._options.effort == "high"
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

    def parser(self):
        return HarmonyParser(self.words)

    def prompt(self, messages, options):
        self.seen.append(messages)
        return [0]


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
    assert session.messages[-1] == {"role": "assistant", "content": "Yes.", "reasoning": "hm"}
    list(session.answer("Sure?"))
    assert [m.role for m in chat.seen[-1]] == ["system", "user", "assistant", "user"]


def test_the_program():
    lines = "/help\nOnce upon a time\n/dance\n/quit\nnever read\n"
    done = subprocess.run(
        [sys.executable, "-m", "gptoss", "chat", "--max-tokens", "8", "--temperature", "0"],
        input=lines, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "/effort LEVEL" in done.stdout and len(done.stdout.splitlines()) >= 6
    assert "was not taught conversations" in done.stderr and "found /dance" in done.stderr
    assert "Traceback" not in done.stderr
