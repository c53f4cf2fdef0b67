"""Which replica gets a request."""

import json

import pytest

from gptoss.server.front.router import (
    CHAT,
    COMPLETIONS,
    MAX_KEYS,
    PIECE,
    RESPONSES,
    Router,
    survey,
)


def keys(path, **body):
    return survey(path, json.dumps(body).encode())[0]


def shared(first, second):
    """How many of the first keys are the same."""
    same = [a == b for a, b in zip(first, second, strict=False)]
    assert same == sorted(same, reverse=True)  # after a difference nothing is the same again
    return sum(same)


USER, ANSWER, NEXT = (
    {"role": role, "content": content}
    for role, content in (("user", "Hello"), ("assistant", "Good day."), ("user", "And now?"))
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def test_a_conversation_begins_as_its_first_turns_did():
    first = keys(CHAT, messages=[USER])
    later = keys(CHAT, messages=[USER, ANSWER, NEXT], temperature=0.5, stream=True)
    assert len(first) == 1 and len(later) == 3
    assert shared(first, later) == 1
    assert shared(first, keys(CHAT, messages=[NEXT])) == 0
    items = [{"type": "message", **message} for message in (USER, ANSWER, NEXT)]
    first, later = keys(RESPONSES, input="Hello"), keys(RESPONSES, input=items)
    assert len(first) == 1 and len(later) == 3 and shared(first, later) == 1


def test_tools_effort_and_instructions_stand_before_the_messages():
    plain = keys(CHAT, messages=[USER])
    assert shared(plain, keys(CHAT, messages=[USER], tools=TOOLS)) == 0
    assert shared(plain, keys(CHAT, messages=[USER], reasoning_effort="high")) == 0
    with_tools = keys(CHAT, messages=[USER], tools=TOOLS)
    assert shared(with_tools, keys(CHAT, messages=[NEXT], tools=TOOLS)) == 1
    told = keys(RESPONSES, input="Hello", instructions="Be brief.")
    assert shared(told, keys(RESPONSES, input="Bye", instructions="Be brief.")) == 1
    assert shared(told, keys(RESPONSES, input="Hello", instructions="Be long.")) == 0


def test_long_texts_share_their_prefix():
    text = "".join(f"{i} " for i in range(1000))
    first, other = keys(COMPLETIONS, prompt=text + "end"), keys(COMPLETIONS, prompt=text + "stop")
    assert len(first) == len(text) // PIECE + 1
    assert shared(first, other) == len(first) - 1
    message = {"role": "user", "content": text}
    changed = {"role": "user", "content": text[:-4] + "x"}
    first, other = keys(CHAT, messages=[message]), keys(CHAT, messages=[changed])
    assert shared(first, other) == len(first) - 1 > 2


def test_prompts_of_ids_and_of_several():
    ids = keys(COMPLETIONS, prompt=list(range(300)))
    assert shared(ids, keys(COMPLETIONS, prompt=[*range(299), 7])) == len(ids) - 1
    assert ids == keys(COMPLETIONS, prompt=[list(range(300)), [1]])
    assert keys(COMPLETIONS, prompt="One") == keys(COMPLETIONS, prompt=["One", "Two"])


def test_keys_of_a_request_are_bounded():
    assert len(keys(COMPLETIONS, prompt="word " * PIECE * MAX_KEYS)) == MAX_KEYS


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, "/tokenize"])
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"messages": 5, "prompt": {}, "input": 1}',
     b'{"prompt": [null, 3]}', b'{"prompt": [[]], "messages": [[]]}'],
)  # fmt: skip
def test_what_makes_no_sense_has_hardly_a_key(path, data):
    assert len(survey(path, data)[0]) <= 1


def test_texts_that_are_no_unicode():
    data = b'{"prompt": "\\ud800", "messages": ["\\ud800"]}'
    assert survey(COMPLETIONS, data)[0] and survey(CHAT, data)[0]


A, B, C = b"a", b"b", b"c"


def test_the_longest_known_prefix_chooses():
    router = Router(2, 10)
    assert router.take([A]) == 0
    router.release(0)
    assert router.take([B]) == 1  # of idle ones, the one that was chosen longest ago
    router.release(1)
    for _ in range(3):
        assert router.take([A, C]) == 0
        router.release(0)
    assert router.take([B, C]) == 0  # C is longer than B, and 0 was its last


def test_strangers_go_where_least_runs():
    router = Router(3, 10)
    assert [router.take([bytes([i])]) for i in range(9)] == [0, 1, 2] * 3
    router.release(1)
    assert router.take() == 1


def test_a_hot_prefix_spills_over():
    router = Router(4, 1000)
    for _ in range(100):
        assert router.take([A]) is not None
        assert max(router.running) <= 1.25 * sum(router.running) / 4 + 1
    assert min(router.running) > 10


def test_a_busy_replica_keeps_shorter_prefixes_in_play():
    router = Router(3, 10)
    router.take([A])
    router.release(0)
    router.take([B])
    router.release(1)
    router._home[C] = 0
    for _ in range(3):
        router.running[0] += 1
    assert router.take([B, C]) == 1  # 0 knows more of it, and is busy


def test_full_ones_and_those_that_are_down_get_nothing():
    router = Router(2, 2)
    assert [router.take([A]) for _ in range(4)].count(0) == 2
    assert router.running == [2, 2] and router.take([A]) is None
    assert router.pick() is not None  # small questions are not counted
    router.release(0)
    router.set_up(0, False)
    assert router.take([A]) is None
    router.set_up(0, True)
    assert router.take([A], excluded={0}) is None
    assert router.take([A]) == 0
    router.set_up(0, False)
    router.set_up(1, False)
    assert router.pick() is None


def test_what_a_replica_had_read_ends_with_it():
    router = Router(2, 10)
    assert router.take([A]) == 0
    router.release(0)
    router.set_up(0, False)
    router.set_up(0, True)
    assert router.take([B]) == 1
    router.release(1)
    assert router.take([C]) == 0
    router.release(0)
    assert router.take([A]) == 1  # no longer known: the one whose turn it is


def test_few_are_remembered():
    router = Router(2, 10, entries=2)
    for key, replica in ((A, 0), (B, 1), (C, 0)):
        assert router.take([key]) == replica
        router.release(replica)
    assert len(router._home) == 2
    assert router.take([B]) == 1  # known
    router.release(1)
    assert router.take([A]) == 0  # forgotten: the turn is 0's
