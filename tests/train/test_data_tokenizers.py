"""Vocabularies made for training, and how the engine reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss import tokenizer as engine
from gptoss.errors import Error
from gptoss.tokenizer import vocabulary
from gptoss.train.data import SPECIAL, load_tokenizer
from gptoss.train.data.tokenizers import PATTERN, Files, Words, make_tokenizer, train_bpe

from .conftest import STORIES

TEXTS = [*STORIES[:40], "Große Füchse fraßen naïve Wörter: „ach!“", "東京 3 bears’ 12345 é"]


class Size(NamedTuple):
    """Stands for a model's config."""

    vocab_size: int


def save(files: Files, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.content.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """kind → a folder with a vocabulary of that kind, and its size."""
    sizes = {"bpe": 330, "characters": None, "words": 60}
    made = {kind: make_tokenizer(kind, TEXTS, size) for kind, size in sizes.items()}
    base = tmp_path_factory.mktemp("vocabularies")
    return {kind: (save(files, base / kind), files.vocab_size) for kind, files in made.items()}


def in_engine(place: tuple[Path, int]) -> engine.Tokenizer:
    return engine.load_tokenizer(place[0], Size(place[1]))


@pytest.mark.parametrize("kind", ["bpe", "characters", "words"])
def test_special_tokens_are_the_last(folders: dict[str, tuple[Path, int]], kind: str) -> None:
    folder, size = folders[kind]
    found = load_tokenizer(folder)
    assert found.vocab_size == size
    assert [found.special[name] for name in SPECIAL] == list(range(size - len(SPECIAL), size))
    # names of special tokens are text like any other
    assert not set(found.encode("a <|endoftext|> b")) & set(found.special.values())


def test_sizes(folders: dict[str, tuple[Path, int]]) -> None:
    assert folders["bpe"][1] == 330
    wide = {char for text in TEXTS for char in text if ord(char) > 127}
    assert folders["characters"][1] == 256 + len(wide) + len(SPECIAL)
    assert folders["words"][1] == 60


@pytest.mark.parametrize("kind", ["bpe", "characters"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80) | st.sampled_from(TEXTS))
def test_any_text_comes_back_in_the_engine(
    folders: dict[str, tuple[Path, int]], kind: str, text: str
) -> None:
    ours, theirs = load_tokenizer(folders[kind][0]), in_engine(folders[kind])
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids) == text
    assert theirs.eos_ids == {ours.special["<|endoftext|>"]}
    assert theirs.special_tokens == ours.special


def test_characters_are_one_token_each(folders: dict[str, tuple[Path, int]]) -> None:
    found = load_tokenizer(folders["characters"][0])
    for text in TEXTS:
        assert len(found.encode(text)) == len(text)
        assert [found.decode([token]) for token in found.encode(text)] == list(text)
    assert len(found.encode("한")) == 3  # never seen: its bytes


def test_rank_file_encodes_as_the_tokenizer_it_was_trained_with(
    folders: dict[str, tuple[Path, int]],
) -> None:
    """tiktoken with our rank file against Hugging Face's BPE with its own merges."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=321, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    found = in_engine(folders["bpe"])
    for text in [*TEXTS, "It's 12345 o'clock,\n\n  isn't it?  \n", "naïve 東京 🦊 \t x"]:
        assert found.encode(text) == trained.encode(text).ids


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=80) | st.sampled_from(TEXTS))
def test_words_lose_what_they_do_not_know(folders: dict[str, tuple[Path, int]], text: str) -> None:
    found = load_tokenizer(folders["words"][0])
    pieces = Words.pieces(text)
    assert "".join(pieces) == text
    known = json.loads((folders["words"][0] / "words.json").read_text(encoding="utf-8"))
    expected = "".join(piece if piece in known else "<unk>" for piece in pieces)
    assert found.decode(found.encode(text)) == expected


def test_most_frequent_words_are_kept() -> None:
    files = make_tokenizer("words", [" b b b a a c c d"], len(SPECIAL) + 4)
    assert json.loads(files.content["words.json"]) == ["<unk>", " b", " a", " c"]


def test_the_published_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for the file of 3.6 MB, where the engine looks for it."""
    data = vocabulary.dump_ranks({bytes([byte]): byte for byte in range(256)})
    (tmp_path / vocabulary.O200K_FILE).write_bytes(data)
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    monkeypatch.setattr(vocabulary, "is_o200k", lambda found: found == data)
    files = make_tokenizer("o200k_harmony", TEXTS, None)
    assert files == Files({}, 201_088)
    found = load_tokenizer("o200k_harmony")
    assert found.vocab_size == 201_088 and found.special["<|endoftext|>"] == 199_999
    assert found.decode(found.encode("東京!")) == "東京!"
    (tmp_path / "run").mkdir()  # nothing but the name is needed beside a run
    assert load_tokenizer(tmp_path / "run").special == found.special


def endless(text: str) -> Iterable[str]:
    return [text] * 3


@pytest.mark.parametrize(
    ("kind", "texts", "size", "message"),
    [
        ("bpe", TEXTS, 264, "vocab_size: expected at least 265 .256 bytes and 9 special tokens."),
        ("bpe", endless("aaaa"), 300, r"expected at most 26\d .all that this text gives., found"),
        ("bpe", [], 300, "expected at most 265"),
        ("words", TEXTS, 10, "vocab_size: expected at least 11, found 10"),
        ("characters", TEXTS, 400, "vocab_size: expected none, characters give their own"),
        ("o200k_harmony", TEXTS, 400, "vocab_size: expected none, o200k_harmony has its own"),
        ("syllables", TEXTS, 400, "tokenizer: expected one of bpe, .*; found 'syllables'"),
    ],
)
def test_sizes_that_cannot_be(kind: str, texts: Iterable[str], size: int, message: str) -> None:
    with pytest.raises(Error, match=message):
        make_tokenizer(kind, texts, size)


def test_smallest_vocabulary_is_bytes() -> None:
    ranks = train_bpe(TEXTS, 265)
    assert sorted(ranks, key=lambda token: ranks[token]) != []
    assert set(ranks) == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize("content", ["{", '["a"]', '["<unk>", "a", "a"]', '["<unk>", 3]', "3"])
def test_broken_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(Error, match="words.json: expected a JSON list"):
        load_tokenizer(tmp_path)


def test_broken_config(folders: dict[str, tuple[Path, int]], tmp_path: Path) -> None:
    folder = folders["bpe"][0]
    (tmp_path / "tokenizer.tiktoken").write_bytes((folder / "tokenizer.tiktoken").read_bytes())
    for content in ("{", "[]", '{"special_tokens": {}}', '{"special_tokens": {"a": "b"}}'):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(Error, match="tokenizer_config.json: expected special_tokens"):
            load_tokenizer(tmp_path)
