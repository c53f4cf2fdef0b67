"""Pieces of answers, before any surface prints them."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ANSWER, CALL, THINKING, WORDS, OfBytes
from test_chat_answers import WRITTEN

from gptoss import Error
from gptoss.request import Delta
from gptoss.server.api.answer import Answer, Begin, Finished, Part, Usage


class Texts:
    """A stream of choices, one token of each after the other; each text ends with its finish."""

    prompt_tokens = 3

    def __init__(self, *texts, harmony=True):
        self.choices, self.cancelled = len(texts), False
        self.timings = []
        self._left = [
            [
                Delta(
                    "" if harmony else chr(token), (token,), finish if last else None, index=index
                )
                for last, token in marked(WORDS.encode(text))
            ]
            for index, (text, finish) in enumerate(texts)
        ]

    def cancel(self):
        self.cancelled = True

    end = cancel

    def fail(self, error):
        self._left = [[error], *self._left]

    async def __aiter__(self):
        while any(self._left) and not self.cancelled:
            for index, deltas in enumerate(self._left):
                if not deltas:
                    continue
                delta = deltas.pop(0)
                if isinstance(delta, Error):
                    raise delta
                if not deltas:
                    self.timings.append(SimpleNamespace(cached_tokens=index + 1))
                yield delta


def marked(tokens):
    return [(place == len(tokens) - 1, token) for place, token in enumerate(tokens)]


def pieces_of(answer):
    async def run():
        return [piece async for piece in answer]

    return asyncio.run(run())


def of(choice, pieces):
    return [piece for piece in pieces if piece.choice == choice]


def harmony(*texts, **options):
    return Answer([Texts(*texts)], parser=OfBytes().parser, **options)


def text_of(parts, kind):
    return "".join(part.text for part in parts if isinstance(part, Part) and part.kind == kind)


def test_choices_end_one_by_one():
    """A stop string in one of them leaves the other alone; met in both, it ends the work."""
    other = "<|channel|>final<|message|>" + "x" * 200 + " four, and more" * 20 + "<|return|>"
    answer = harmony((ANSWER, "stop"), (other, "length"), stop=("four",))
    pieces = pieces_of(answer)
    assert text_of(of(0, pieces), "text") == "It is "
    assert text_of(of(1, pieces), "text") == "x" * 200 + " "
    for choice in (0, 1):
        first, *_, last = of(choice, pieces)
        assert first == Begin(choice) and isinstance(last, Finished) and last.reason == "stop"
        assert sum(isinstance(piece, Finished) for piece in of(choice, pieces)) == 1
    assert answer.streams[0].cancelled


def test_choices_of_several_prompts_are_counted_through():
    streams = [
        Texts(("ab", "stop"), ("c", "length"), harmony=False),
        Texts(("d", "stop"), ("ef", "length"), harmony=False),
    ]
    answer = Answer(streams)
    pieces = pieces_of(answer)
    assert [text_of(of(i, pieces), "text") for i in range(4)] == ["ab", "c", "d", "ef"]
    reasons = {p.choice: p.reason for p in pieces if isinstance(p, Finished)}
    assert reasons == {0: "stop", 1: "length", 2: "stop", 3: "length"}
    assert all(part.number == 0 for part in pieces if isinstance(part, Part))
    assert answer.usage == Usage(prompt=6, cached=2, completion=6, thinking=0)


def test_usage_counts_what_was_thought():
    answer = harmony((THINKING + ANSWER, "stop"), (ANSWER, "stop"))
    pieces_of(answer)
    thought = len(WORDS.encode("Let me see.<|end|>"))
    tokens = len(WORDS.encode(THINKING + ANSWER)) + len(WORDS.encode(ANSWER))
    assert answer.usage == Usage(prompt=3, cached=1, completion=tokens, thinking=thought)


def test_an_error_comes_behind_what_was_written():
    answer = harmony((ANSWER, "stop"))
    answer.fail(Error("no luck"))
    with pytest.raises(Error, match="no luck"):
        pieces_of(answer)


@pytest.mark.parametrize("can_call", [True, False])
@settings(max_examples=200, deadline=None)
@given(written=WRITTEN.filter(WORDS.encode), finish=st.sampled_from(["stop", "length"]))
def test_messages_begin_and_end_once(can_call, written, finish):
    pieces = pieces_of(harmony((written, finish), can_call=can_call))
    assert pieces[0] == Begin(0) and isinstance(pieces[-1], Finished)
    parts = pieces[1:-1]
    messages = {}
    for part in parts:
        messages.setdefault(part.number, []).append(part)
    assert list(messages) == list(range(len(messages)))
    for number, own in messages.items():
        assert [part.begins for part in own] == [True] + [False] * (len(own) - 1)
        assert [part.ends for part in own] == [False] * (len(own) - 1) + [True]
        assert len({(part.kind, part.channel, part.name, part.call_id) for part in own}) == 1
        if own[0].kind == "call":
            assert can_call and own[0].call_id
            if own[-1].whole and own[0].name != "python":
                assert "".join(part.text for part in own)
        assert own[-1].whole or number == len(messages) - 1
    ids = [part.call_id for part in parts if part.begins and part.kind == "call"]
    assert len(set(ids)) == len(ids)
    tokens = [token for piece in pieces[1:] for token in piece.token_ids]
    assert tokens == WORDS.encode(written)
    last = parts[-1] if parts else None
    if pieces[-1].reason == "tool_calls":
        calls = [part for part in parts if part.kind == "call" and part.ends]
        assert finish == "stop" and calls and all(part.whole for part in calls)
    elif finish == "length":
        assert pieces[-1].reason == "length"
    if last is not None and last.kind == "call" and not last.whole:
        assert pieces[-1].reason == "length"


def test_a_call_has_its_name_in_all_its_parts():
    pieces = pieces_of(harmony((THINKING + CALL, "stop"), can_call=True))
    calls = [part for part in pieces[1:-1] if part.kind == "call"]
    assert {part.name for part in calls} == {"add"} and len({part.call_id for part in calls}) == 1
    assert {part.channel for part in calls} == {"commentary"}
    assert "".join(part.text for part in calls) == '{"a": 2}'
