"""The vocabulary inside a GGUF file encodes as the files beside a checkpoint do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import Size, o200k_path, texts, tiny_config, tiny_ranks, write_tiny

from gptoss.errors import Error
from gptoss.gguf.types import I32, TEXT, U32
from gptoss.gguf.writer import encode_header
from gptoss.tokenizer import Tokenizer, copy_tokenizer_files, load_tokenizer
from gptoss.tokenizer.gguf import gguf_metadata
from gptoss.tokenizer.load import load_vocabulary
from gptoss.tokenizer.vocabulary import HARMONY_SIZE, O200K_PATTERN, harmony

SIZE = 280


def write_metadata(path: Path, metadata: list[tuple[str, int, Any]]) -> Path:
    path.write_bytes(encode_header(metadata, []))
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer of the published rank file, and that of a GGUF file with the vocabulary as
    llama.cpp's converter writes it: names of added tokens up to 200018, `[PAD…]` after them."""
    path = o200k_path()
    vocabulary = harmony(path.read_bytes(), str(path), HARMONY_SIZE)
    found = {key: (kind, value) for key, kind, value in gguf_metadata(vocabulary)}
    file = tmp_path_factory.mktemp("published") / "vocabulary.gguf"
    writer = GGUFWriter(file, "gpt-oss")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    tokens = found["tokenizer.ggml.tokens"][1]
    kinds = found["tokenizer.ggml.token_type"][1]
    for token in range(200_019, HARMONY_SIZE):
        tokens[token], kinds[token] = f"[PAD{token}]", TokenType.UNUSED
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(found["tokenizer.ggml.merges"][1])
    writer.add_eos_token_id(200_002)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Tokenizer(vocabulary), load_tokenizer(file, Size(HARMONY_SIZE))


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_the_published_vocabulary_encodes_equally(
    published: tuple[Tokenizer, Tokenizer], text: str
) -> None:
    beside, inside = published
    assert inside.encode(text) == beside.encode(text)
    names = ("<|start|>", "<|end|>", "<|return|>", "<|endofprompt|>")
    joined = text.join(names)
    assert inside.encode(joined, names) == beside.encode(joined, names)
    ids = inside.encode(text)
    assert inside.decode(ids) == beside.decode(ids)


def test_the_published_vocabulary_ends_where_it_did(
    published: tuple[Tokenizer, Tokenizer],
) -> None:
    beside, inside = published
    assert inside.eos_ids == beside.eos_ids == {200_002, 200_012}
    assert inside.conversation_format is None
    assert inside.special_tokens["<|reserved_200017|>"] == 200_017


def own(tmp_path: Path, **changes: Any) -> Path:
    """A vocabulary of one's own, written and read, with other values for some keys."""
    vocabulary = load_vocabulary(write_tiny(tmp_path), Size(SIZE))
    metadata = gguf_metadata(vocabulary)
    metadata = [
        (key, kind, changes.pop(key.rpartition(".")[2], value)) for key, kind, value in metadata
    ]
    assert not changes
    return write_metadata(tmp_path / "own.gguf", [e for e in metadata if e[2] is not None])


@settings(max_examples=100, deadline=None)
@given(text=texts, allowed=st.sampled_from([(), "all"]))
def test_a_vocabulary_of_ones_own_is_written_and_read(
    tmp_path_factory: pytest.TempPathFactory, text: str, allowed: Any
) -> None:
    directory = tmp_path_factory.mktemp("own")
    inside = load_tokenizer(own(directory), Size(SIZE))
    beside = load_tokenizer(directory, Size(SIZE))
    text += "<|endoftext|>"
    assert inside.encode(text, allowed) == beside.encode(text, allowed)
    assert inside.eos_ids == beside.eos_ids
    assert inside.special_tokens == beside.special_tokens


def test_conversation_format_is_kept(tmp_path: Path) -> None:
    write_tiny(tmp_path, config={**tiny_config(), "conversation_format": "none"})
    vocabulary = load_vocabulary(tmp_path, Size(SIZE))
    file = write_metadata(tmp_path / "own.gguf", gguf_metadata(vocabulary))
    assert load_tokenizer(file, Size(SIZE)).conversation_format == "none"


def test_a_pattern_of_its_own_is_kept_and_runs_in_llama_cpp(tmp_path: Path) -> None:
    """Which refuses a file with a name that it does not know, and has none for this pattern."""
    pattern = r" ?\p{L}+| ?\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]"
    write_tiny(tmp_path, config={**tiny_config(), "pattern": pattern})
    metadata = gguf_metadata(load_vocabulary(tmp_path, Size(SIZE)))
    assert {key: value for key, _, value in metadata}["tokenizer.ggml.pre"] == "gpt-2"
    file = write_metadata(tmp_path / "own.gguf", metadata)
    inside, beside = load_tokenizer(file, Size(SIZE)), load_tokenizer(tmp_path, Size(SIZE))
    text = "the 12345 and, then"
    assert inside.encode(text) == beside.encode(text)


@pytest.mark.parametrize("from_zero", [True, False])
def test_ollamas_padding_is_nobodys(tmp_path: Path, from_zero: bool) -> None:
    """Ollama marks ids beyond the vocabulary as tokens of the user, and counts them from 0."""
    vocabulary = load_vocabulary(write_tiny(tmp_path), Size(SIZE))
    found = {key: value for key, _, value in gguf_metadata(vocabulary)}
    kinds, tokens = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.tokens"]
    unused = [token for token, kind in enumerate(kinds) if kind == 5]
    assert len(unused) > 1
    for number, token in enumerate(unused):
        kinds[token], tokens[token] = 4, f"[PAD{number if from_zero else token}]"
    path = own(tmp_path, token_type=kinds, tokens=tokens)
    tokenizer = load_tokenizer(path, Size(SIZE))
    for token in unused:
        assert tokenizer.decode(tokenizer.encode(tokens[token])) == tokens[token]
        assert not {*unused} & {*tokenizer.encode(tokens[token])}
    assert "tokenizer.tiktoken" in copy_tokenizer_files(path, tmp_path, Size(SIZE))


@pytest.mark.parametrize(
    ("architecture", "pre", "good"),
    [
        ("gpt-oss", "gpt-4o", True),
        ("gpt-oss", "default", False),
        ("gpt-oss", "qwen2", False),
        ("gptoss", "default", True),
        ("gptoss", "gpt-2", True),
        ("gptoss", "llama-bpe", True),
        ("gptoss", None, True),
    ],
)
def test_the_pre_tokenizer_is_known_by_name(
    tmp_path: Path, architecture: str, pre: str | None, good: bool
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    vocabulary = load_vocabulary(write_tiny(tmp_path), Size(SIZE))
    metadata = [
        (key, kind, value)
        for key, kind, value in gguf_metadata(vocabulary)
        if key not in ("tokenizer.ggml.pre", "gptoss.tokenizer.pattern")
    ]
    metadata.append(("general.architecture", TEXT, architecture))
    if pre is not None:
        metadata.append(("tokenizer.ggml.pre", TEXT, pre))
    path = write_metadata(tmp_path / "own.gguf", metadata)
    if good:
        assert load_vocabulary(path, Size(SIZE)).pattern == O200K_PATTERN
    else:
        with pytest.raises(Error, match=r"tokenizer\.ggml\.pre: expected 'gpt-4o'"):
            load_vocabulary(path, Size(SIZE))
    assert len(ranks) == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model: expected 'gpt2'"),
        ({"tokens": ["a"]}, "expected text and as many values of token_type, found 1 and 280"),
        ({"merges": ["t h", "h e", "t he"]}, "merges: expected .* found no such merge"),
        ({"merges": ["t", "h"]}, r"merges\[0\]: expected a pair of tokens"),
        ({"token_type": [6] * 280}, r"token_type\[0\]: expected 1 to 5, found 6"),
        ({"token_type": [5] * 280}, "expected a vocabulary, found no tokens"),
        ({"eos_token_id": 280}, "eos_token_id: expected an id below 280, found 280"),
    ],
)
def test_what_cannot_be_a_vocabulary_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Error, match=message):
        load_tokenizer(own(tmp_path, **changes), Size(SIZE))


def test_a_token_that_merging_does_not_lead_to_cannot_be_written(tmp_path: Path) -> None:
    ranks = {**tiny_ranks(), b"qqqq": 279}
    from vocabularies import rank_lines

    config = tiny_config()
    config["special_tokens"] = {"<|endoftext|>": 278}
    for token in range(len(tiny_ranks()), 278):
        ranks[b"\x00" * (token - 200)] = token
    directory = write_tiny(tmp_path, rank_lines(ranks), config)
    with pytest.raises(Error, match="expected one that merging leads to"):
        gguf_metadata(load_vocabulary(directory, Size(SIZE)))


def test_tokens_that_no_merge_makes_are_decoded_only(tmp_path: Path) -> None:
    path = own(tmp_path, merges=["t h", "h e"])
    vocabulary = load_vocabulary(path, Size(SIZE))
    tokenizer = Tokenizer(vocabulary)
    the = next(token for token, octets in vocabulary.unreachable.items() if octets == b" the")
    assert tokenizer.decode([the]) == " the"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"
    assert the not in tokenizer.encode(" the")
    again = write_metadata(tmp_path / "again.gguf", gguf_metadata(vocabulary))
    assert load_vocabulary(again, Size(SIZE)).token_table() == vocabulary.token_table()
    with pytest.raises(Error, match="which no text is encoded to"):
        copy_tokenizer_files(path, tmp_path, Size(SIZE))


def test_types_of_the_metadata(tmp_path: Path) -> None:
    """As llama.cpp reads them."""
    vocabulary = load_vocabulary(write_tiny(tmp_path), Size(SIZE))
    kinds = {key.rpartition(".")[2]: kind for key, kind, _ in gguf_metadata(vocabulary)}
    assert kinds["tokens"] == kinds["merges"] == TEXT
    assert (kinds["token_type"], kinds["eos_token_id"]) == (I32, U32)
