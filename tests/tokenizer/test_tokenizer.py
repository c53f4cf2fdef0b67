"""Encoding against tiktoken, special tokens, decoding, streaming."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import Size, texts, tiktoken_harmony, write_tiny

from gptoss import Error
from gptoss.tokenizer.load import load_tokenizer
from gptoss.tokenizer.tokenizer import StreamDecoder, Tokenizer
from gptoss.tokenizer.vocabulary import harmony

HARMONY = {
    "<|startoftext|>": 199998,
    "<|endoftext|>": 199999,
    "<|return|>": 200002,
    "<|constrain|>": 200003,
    "<|channel|>": 200005,
    "<|start|>": 200006,
    "<|end|>": 200007,
    "<|message|>": 200008,
    "<|call|>": 200012,
    "<|endofprompt|>": 200018,
    "<|reserved_200000|>": 200000,
    "<|reserved_201087|>": 201087,
}


@pytest.fixture(scope="session")
def published(o200k_file: Path) -> tiktoken.Encoding:
    return tiktoken_harmony(o200k_file)


@pytest.fixture(scope="session")
def o200k(o200k_file: Path) -> Tokenizer:
    return Tokenizer(harmony(o200k_file.read_bytes(), str(o200k_file), 201088))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tiny(tmp_path_factory.mktemp("tiny")), Size(280))


# Against tiktoken.


@settings(max_examples=400, deadline=None)
@given(text=texts)
def test_encodes_as_tiktoken_does(
    o200k: Tokenizer, published: tiktoken.Encoding, text: str
) -> None:
    ids = o200k.encode(text)
    assert ids == published.encode(text, disallowed_special=())
    assert o200k.decode(ids) == text
    assert o200k.encode(text, "all") == published.encode(text, allowed_special="all")
    allowed = {"<|end|>"}
    assert o200k.encode(text, allowed) == published.encode(
        text, allowed_special=allowed, disallowed_special=()
    )


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 201087), max_size=20))
def test_decodes_as_tiktoken_does(
    o200k: Tokenizer, published: tiktoken.Encoding, ids: list[int]
) -> None:
    ids = [token for token in ids if token != 200018]  # has two names: either is right
    assert o200k.decode(ids) == published.decode(ids)
    assert [o200k.token_bytes(token) for token in ids] == published.decode_tokens_bytes(ids)


def test_special_tokens_are_tiktokens(o200k: Tokenizer, published: tiktoken.Encoding) -> None:
    assert o200k.special_tokens == published._special_tokens
    assert HARMONY.items() <= o200k.special_tokens.items()
    assert o200k.vocab_size == published.n_vocab == 201088
    assert o200k.eos_ids == {200002, 200012}
    assert o200k.decode([200018]) == "<|endofprompt|>"
    assert o200k.encode("<|reserved_200018|><|endofprompt|>", "all") == [200018, 200018]


def test_known_tokens(o200k: Tokenizer) -> None:
    assert o200k.encode("hello world") == [24912, 2375]
    assert o200k.encode("") == []
    assert o200k.encode("x<|end|>", ["<|end|>"]) == [87, 200007]
    assert 200007 not in o200k.encode("x<|end|>")


def test_many_threads_at_once(o200k: Tokenizer) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 200
    expected, found = o200k.encode(text), []
    threads = [threading.Thread(target=lambda: found.append(o200k.encode(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# Long stretches without a break. Tokens are tiktoken's as long as tiktoken survives.


@pytest.mark.parametrize("unit", ["a", " ", "\n", "\t", "A", "9", ".", "中", "\u0301", "a ", "\n "])
def test_long_runs(o200k: Tokenizer, published: tiktoken.Encoding, unit: str) -> None:
    text = unit * 100_000 + "x"
    started = time.monotonic()
    ids = o200k.encode(text)
    assert time.monotonic() - started < 5
    assert o200k.decode(ids) == text
    assert ids == published.encode_ordinary(text)


@pytest.mark.parametrize("blank", [" ", "\t", "\u00a0", "\u3000"])
def test_runs_of_blanks_that_tiktoken_gives_up_on(o200k: Tokenizer, blank: str) -> None:
    text = "head" + blank * 1_200_000 + "tail" + blank * 1_200_000
    ids = o200k.encode(text)
    assert o200k.decode(ids) == text
    assert ids[0] == o200k.encode("head")[0]


def test_long_ordinary_text_is_not_cut(o200k: Tokenizer, published: tiktoken.Encoding) -> None:
    text = "word and   words,\n\n" * 40_000
    assert o200k.encode(text) == published.encode_ordinary(text)


# Surrogates: half characters that a str may hold and UTF-8 may not.


def test_surrogate_pairs_join_and_lone_ones_are_replaced(tiny: Tokenizer) -> None:
    assert tiny.encode("\ud83d\ude00") == tiny.encode("😀")
    for text in ("\ud800", "a\ud800b", "\udc00", "\ud800\ud800", "b\udfff", "\udc00\ud800"):
        replaced = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
        assert tiny.decode(tiny.encode(text)) == replaced
        assert tiny.decode(tiny.encode("<|start|>" + text, "all")) == "<|start|>" + replaced


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(categories=["Cs", "Ll", "Zs", "So"]), max_size=20))
def test_surrogates_as_tiktoken_does(
    o200k: Tokenizer, published: tiktoken.Encoding, text: str
) -> None:
    assert o200k.encode(text) == published.encode(text, disallowed_special=())


# Special tokens, on a vocabulary of one's own.


def test_special_tokens_in_text_are_plain_unless_allowed(tiny: Tokenizer) -> None:
    assert tiny.special_tokens == {"<|endoftext|>": 269, "<|start|>": 270, "<|start|>er": 271}
    assert tiny.eos_ids == {269}
    text = "the<|start|>er<|endoftext|>"
    assert max(tiny.encode(text)) < 269
    assert tiny.decode(tiny.encode(text)) == text
    assert tiny.encode(text, "all") == [258, 271, 269]  # the longest name wins
    assert tiny.encode(text, {"<|start|>"})[:3] == [258, 270, 261]
    assert tiny.encode(text, ("<|endoftext|>",))[-1] == 269
    assert tiny.encode("", "all") == []


@pytest.mark.parametrize("allowed", ["<|start|>", {"<|nothing|>"}, ["", "<|start|>"]])
def test_unknown_special_tokens_are_refused(tiny: Tokenizer, allowed: object) -> None:
    with pytest.raises(Error, match="allowed_special"):
        tiny.encode("text", allowed)  # type: ignore[arg-type]


def test_only_text_is_encoded(tiny: Tokenizer) -> None:
    with pytest.raises(Error, match="expected str, found bytes"):
        tiny.encode(b"bytes")  # type: ignore[arg-type]


# Decoding.


def test_ids_that_map_to_nothing(tiny: Tokenizer) -> None:
    assert tiny.vocab_size == 280
    for token in (272, 279, 280, 10**12):
        assert tiny.token_bytes(token) == b""
    assert tiny.decode([116, 275, 10**9, 104]) == "th"
    with pytest.raises(Error, match="expected 0 or more, found -1"):
        tiny.token_bytes(-1)
    with pytest.raises(Error, match="expected 0 or more"):
        tiny.decode([-5])


def test_numpy_ids(tiny: Tokenizer) -> None:
    np = pytest.importorskip("numpy")
    assert tiny.decode(np.array([256, 101], np.int32)) == "the"


def test_invalid_bytes_become_replacement_characters(tiny: Tokenizer) -> None:
    assert tiny.decode([0xFF, 0x61, 0xE4, 0xB8]) == "\ufffda\ufffd"


# Streaming.


def streamed(decoder: StreamDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.push(token) for token in ids), decoder.flush()]


def test_characters_come_whole(tiny: Tokenizer) -> None:
    ids = list("a中😀".encode())
    assert streamed(tiny.stream(), ids) == ["a", "", "", "中", "", "", "", "😀", ""]
    assert streamed(tiny.stream(), ids[:-1])[-2:] == ["", "\ufffd"]


def test_bytes_that_never_become_a_character(tiny: Tokenizer) -> None:
    assert streamed(tiny.stream(), [0xE4, 0x61]) == ["", "\ufffda", ""]
    assert streamed(tiny.stream(), [0xFF, 0x62]) == ["\ufffd", "b", ""]


def test_a_decoder_can_be_used_again(tiny: Tokenizer) -> None:
    decoder = tiny.stream()
    assert streamed(decoder, [0xE4]) == ["", "\ufffd"]
    assert streamed(decoder, [0xB8, 0x61]) == ["\ufffd", "a", ""]
    other = tiny.stream()
    assert [decoder.push(0xE4), other.push(0x61)] == ["", "a"]


def _bytes_of(tiny: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(tiny.token_bytes(token) for token in ids)


# Bytes that begin, continue and break UTF-8 in every way, with whole tokens and holes between.
_bytes = st.one_of(
    st.sampled_from([0xC2, 0xC3, 0xE0, 0xE4, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF]),
    st.sampled_from([0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1]),
    st.integers(0, 300),
)


@settings(max_examples=1000, deadline=None)
@given(ids=st.lists(_bytes, max_size=24))
def test_streaming_loses_and_changes_nothing(tiny: Tokenizer, ids: list[int]) -> None:
    pieces = streamed(tiny.stream(), ids)
    assert "".join(pieces) == _bytes_of(tiny, ids).decode("utf-8", "replace")
    assert "".join(pieces) == tiny.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=30))
def test_streaming_shows_no_half_characters(tiny: Tokenizer, text: str) -> None:
    """Of valid text every prefix that is shown is a prefix of the text."""
    shown = ""
    decoder = tiny.stream()
    for byte in text.encode():
        shown += decoder.push(byte)
        assert text.startswith(shown)
    assert shown + decoder.flush() == text


def test_every_pair_and_triple_of_leading_bytes(tiny: Tokenizer) -> None:
    edges = [
        0x41,
        0x7F,
        0x80,
        0x9F,
        0xA0,
        0xBF,
        0xC1,
        0xC2,
        0xDF,
        0xE0,
        0xED,
        0xEF,
        0xF0,
        0xF4,
        0xF5,
    ]
    for a in edges:
        for b in edges:
            for c in edges:
                for ids in ([a, b, c], [a, b, c, 0x80], [a, b, c, 0x41]):
                    assert "".join(streamed(tiny.stream(), ids)) == bytes(ids).decode(
                        "utf-8", "replace"
                    )


def test_repr_names_the_file(tiny: Tokenizer) -> None:
    assert "tokenizer.tiktoken: 280 ids" in repr(tiny)
