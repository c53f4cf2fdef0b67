"""Tokenizer files written to do harm: a result or an Error, and in time that follows their size."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import Size, rank_lines, tiny_config, tiny_ranks, write_tiny

from gptoss import Error
from gptoss.tokenizer import load_tokenizer
from gptoss.tokenizer.byte_level import BYTES, merge_to_two

from ..hostile import damaged

BYTE_LEVEL = {byte: chr(code) for code, byte in BYTES.items() if byte < 256}
SAME_HASH = (1 << 61) - 1  # multiples of it have one hash value


def written(token: bytes) -> str:
    """`token` in the printable characters of tokenizer.json."""
    return "".join(BYTE_LEVEL.get(byte, chr(byte)) for byte in token)


def tokenizer_json(*tokens: bytes, merges: list[list[str]] | None = None) -> dict[str, Any]:
    """The 256 bytes and then `tokens`."""
    ranks = [bytes([byte]) for byte in range(256)] + list(tokens)
    end = len(ranks)
    return {
        "version": "1.0",
        "truncation": None,
        "normalizer": None,
        "added_tokens": [
            {"id": end, "content": "<|end|>", "special": True, "lstrip": False},
            {"id": end + 1, "content": "<plain>", "special": False, "rstrip": False},
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": r" ?\S+|\s+"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "vocab": {written(token): rank for rank, token in enumerate(ranks)},
            "merges": merges or [],
        },
    }


def load(directory: Path, data: Any, size: int = 400) -> Any:
    (directory / "tokenizer.json").write_text(json.dumps(data))
    return load_tokenizer(directory, Size(size))


# Long tokens.


def merged_by_search(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What `merge_to_two` says, by looking through all pairs for each merge."""
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        sums = [ranks.get(a + b) for a, b in pairwise(parts)]
        known = [rank for rank in sums if rank is not None]
        if not known:
            break
        at = sums.index(min(known))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


pieces = st.binary(max_size=16).map(lambda data: bytes(b"abc"[byte % 3] for byte in data))


@settings(max_examples=500, deadline=None)
@given(
    token=pieces,
    tokens=st.lists(pieces.filter(len), max_size=40, unique=True).flatmap(st.permutations),
)
def test_merging_is_what_a_search_of_all_pairs_gives(token: bytes, tokens: list[bytes]) -> None:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    assert merge_to_two(token, ranks) == merged_by_search(token, ranks)


class Counting(dict[bytes, int]):
    """Counts the bytes that are looked up."""

    looked_up = 0

    def get(self, key: bytes, default: Any = None) -> Any:
        self.looked_up += len(key)
        return super().get(key, default)


@pytest.mark.parametrize("powers", [1, 14])
def test_merging_looks_up_bytes_in_proportion_to_the_token(powers: int) -> None:
    """Of "aa" alone, or of a token for each power of two."""
    ranks = Counting({b"a" * (1 << power): power for power in range(powers + 1)})
    size = 1 << 15
    assert len(merge_to_two(b"a" * size, ranks)) == max(2, size >> powers)
    assert ranks.looked_up < size * 6 * (powers + 1)


def test_a_token_of_300_000_bytes(tmp_path: Path) -> None:
    """In the square of its length it would take half a day."""
    data = tokenizer_json(b"aa", b"a" * 300_000, merges=[["a", "a"]])
    with pytest.raises(Error, match=r"expected b'aa' \+ b'aa'.* and 149994 more → b'aaa") as caught:
        load(tmp_path, data)
    assert len(str(caught.value)) < 1000


# Integers that share a hash value: dictionaries of them take time in the square of their number.


def test_added_tokens_with_ids_of_one_hash_value(tmp_path: Path) -> None:
    data = tokenizer_json()
    data["added_tokens"] = [
        {"id": SAME_HASH * number, "content": f"<{number}>"} for number in range(1, 200_000)
    ]
    with pytest.raises(Error, match=r"added_tokens\[0\]: expected content \(text\) and id"):
        load(tmp_path, data)


def test_tokens_with_ids_of_one_hash_value(tmp_path: Path) -> None:
    data = tokenizer_json()
    data["model"]["vocab"] = {f"a{number}": SAME_HASH * number for number in range(1, 200_000)}
    with pytest.raises(Error, match=r"model.vocab: 'a1': expected a token id, found 2305843009"):
        load(tmp_path, data)


def test_special_tokens_with_ids_of_one_hash_value(tmp_path: Path) -> None:
    special = {f"<{number}>": SAME_HASH * number for number in range(1, 200_000)}
    config = {**tiny_config(), "special_tokens": special, "eos_token": "<1>"}
    with pytest.raises(Error, match=r"special token '<1>': expected an id below the model's"):
        load_tokenizer(write_tiny(tmp_path, config=config), Size(300))


def test_long_names_of_special_tokens(tmp_path: Path) -> None:
    """A regular expression of alternatives with a long common prefix compiles slowly."""
    special = {"x" * 2_000_000: 269, "x" * 2_000_000 + "y": 270}
    config = {**tiny_config(), "special_tokens": special, "eos_token": None}
    with pytest.raises(Error, match=r"expected a name of at most 1024 characters, found 2000000"):
        load_tokenizer(write_tiny(tmp_path, config=config), Size(300))


# Values of any type.


@pytest.mark.parametrize("token", [[], {}, None, "269", 1.5, [269]])
def test_the_end_token_has_an_id_of_a_wrong_type(tmp_path: Path, token: Any) -> None:
    config = {**tiny_config(), "special_tokens": {"x": token}, "eos_token": "x"}
    with pytest.raises(Error, match=r"special_tokens: 'x': expected a token id, found") as caught:
        load_tokenizer(write_tiny(tmp_path, config=config), Size(300))
    assert "tokenizer_config.json" in str(caught.value)


def only_errors(directory: Path, size: int) -> None:
    """Read what is there, and use it if it can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unknown keys
        try:
            tokenizer = load_tokenizer(directory, Size(size))
            text = "The other\n<|end|><plain>"
            assert tokenizer.decode(tokenizer.encode(text, "all")) == text
            assert all(type(token) is int for token in tokenizer.eos_ids)
        except Error as error:
            assert str(directory) in str(error)


@settings(max_examples=400, deadline=None)
@given(config=damaged(tiny_config()))
def test_any_value_in_the_description_of_a_rank_file(
    tmp_path_factory: pytest.TempPathFactory, config: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp() / "rank-file"
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.tiktoken").write_bytes(b"\n".join(rank_lines(tiny_ranks())))
    (directory / "tokenizer_config.json").write_bytes(config)
    only_errors(directory, 300)


MERGES = [["t", "h"], ["th", "e"], [written(b" "), "the"]]


@settings(max_examples=400, deadline=None)
@given(
    data=damaged(tokenizer_json(b"th", b"the", b" the", merges=MERGES)),
    config=st.one_of(
        st.just(b'{"eos_token": "<|end|>"}'),
        damaged({"eos_token": "<|end|>", "bos_token": None}),
        damaged({"eos_token": {"content": "<|end|>", "special": True}}),
    ),
)
def test_any_value_in_tokenizer_json(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, config: bytes
) -> None:
    directory = tmp_path_factory.getbasetemp() / "tokenizer-json"
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_bytes(data)
    (directory / "tokenizer_config.json").write_bytes(config)
    only_errors(directory, 400)


def test_the_examples_are_read(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_json(b"th", b"the", b" the", merges=MERGES))
    assert tokenizer.encode(" the<|end|>", "all") == [258, 259]
