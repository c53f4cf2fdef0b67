"""Stop strings across token borders."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.engine.text import StopMatcher, TextStream


class BytesDecoder:
    """Ids are bytes; incomplete UTF-8 is held back."""

    def __init__(self):
        self._held = b""

    def push(self, token):
        self._held += bytes([token])
        try:
            text = self._held.decode()
        except UnicodeDecodeError:
            return ""
        self._held = b""
        return text

    def flush(self):
        text, self._held = self._held.decode(errors="replace"), b""
        return text


def run(pieces, stop):
    matcher, out = StopMatcher(stop), ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
        if stopped:
            return out, True
    return out + matcher.flush(), False


def naive(text, stop):
    for end in range(len(text) + 1):
        met = [s for s in stop if text[:end].endswith(s)]
        if met:
            return text[: end - max(map(len, met))], True
    return text, False


@given(
    text=st.text("ab\n", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
)
def test_outcome_does_not_depend_on_the_cuts(text, cuts, stop):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert run(pieces, tuple(stop)) == naive(text, stop)


def test_possible_beginning_is_held_back_and_then_passed_on():
    matcher = StopMatcher(("\n\nUser:",))
    assert matcher.push("Hello.\n") == ("Hello.", False)
    assert matcher.push("\nUse") == ("", False)
    assert matcher.push("ful") == ("\n\nUseful", False)


def test_nothing_is_held_back_without_stop_strings():
    assert StopMatcher(()).push("abc") == ("abc", False)


@pytest.mark.parametrize("stop", [("b", "abc"), ("abc", "b")])
def test_the_string_that_ends_first_counts(stop):
    assert run(["xabc"], stop) == ("xa", True)


def test_of_those_that_end_together_the_longest_counts():
    assert run(["xabc"], ("c", "abc", "bc")) == ("x", True)


def test_stop_string_inside_a_character_cut_in_two():
    stream = TextStream(BytesDecoder(), ("é",))
    assert [stream.push(b) for b in "aé".encode()] == [("a", False), ("", False), ("", True)]


def test_finish_passes_on_held_text_and_broken_bytes():
    stream = TextStream(BytesDecoder(), ("xyz",))
    for b in b"axy\xc3":
        stream.push(b)
    assert stream.finish() == ("xy\ufffd", False)


def test_stop_string_completed_by_the_last_bytes():
    stream = TextStream(BytesDecoder(), ("b\ufffd",))
    assert [stream.push(b) for b in b"ab\xc3"] == [("a", False), ("", False), ("", False)]
    assert stream.finish() == ("", True)
