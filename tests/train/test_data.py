"""Texts to tokens to rows."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.train import data


def test_documents_are_cleaned_and_scraps_dropped(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    story = (
        "She said, \u201cIt\u2019s late.\u201d  \r\n\r\n\r\n\r\nAnd  then they all went home, " * 2
    )
    text.write_text(f"{story}\n{data.END_OF_TEXT}\n32\n{data.END_OF_TEXT}\n", encoding="utf-8")
    (document,) = data.read_documents(text)
    assert document.startswith('She said, "It\'s late."\n\nAnd then they')


def test_split_depends_on_the_document_alone() -> None:
    documents = [f"document {n}" for n in range(4000)]
    held_out = [d for d in documents if data.is_validation(d, 0.05)]
    assert 140 < len(held_out) < 260
    assert held_out == [d for d in documents if data.is_validation(d, 0.05)]
    assert set(held_out) <= {d for d in documents if data.is_validation(d, 0.06)}


def test_prepared_files(stories: Path, prepared: Path) -> None:
    encoding = data.load_encoding(prepared)
    assert encoding.n_vocab == 320
    documents = data.read_documents(stories)
    index = json.loads((prepared / data.INDEX_FILE).read_text())
    for entry in index["files"]:
        ids = np.fromfile(prepared / f"stories.{entry['split']}.bin", np.uint16)
        assert len(ids) == entry["tokens"]
        text = encoding.decode(ids.tolist())
        parts = text.split(data.END_OF_TEXT)[:-1]
        assert len(parts) == entry["documents"] > 0
        held_out = entry["split"] == "val"
        assert parts == [d for d in documents if data.is_validation(d, 0.1) == held_out]


def test_rank_file_encodes_as_the_tokenizer_it_was_trained_with(stories: Path) -> None:
    """tiktoken with our rank file against Hugging Face's BPE with its own merges."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    documents = data.read_documents(stories)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(data.PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=319,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ranks = data.train_bpe(documents, 320)
    assert sorted(ranks.values()) == list(range(319))
    assert {bytes([b]) for b in range(256)} <= set(ranks)
    encoding = data.tiktoken.Encoding(
        "test", pat_str=data.PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    for text in [*documents[:10], "It's 12345 o'clock,\n\n  isn't it?  \n", "naïve 東京 🦊 \t x"]:
        assert encoding.encode_ordinary(text) == trained.encode(text).ids


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(prepared_encoding: data.tiktoken.Encoding, text: str) -> None:
    assert prepared_encoding.decode(prepared_encoding.encode_ordinary(text)) == text


@pytest.fixture(scope="module")
def prepared_encoding(prepared: Path) -> data.tiktoken.Encoding:
    return data.load_encoding(prepared)


def stream(tmp_path: Path, lengths: list[int], end: int = 9999) -> Path:
    """Documents of the given lengths, whose tokens are all different."""
    ids: list[int] = []
    for length in lengths:
        ids += [*range(len(ids), len(ids) + length), end]
    path = tmp_path / "x.bin"
    np.array(ids, np.uint16).tofile(path)
    return path


def pairs(rows: data.PackedRows, epoch: int) -> Counter[tuple[int, int]]:
    batch = rows.build(rows.rows(epoch))
    counted = batch.targets >= 0
    return Counter(
        zip(batch.tokens[counted].tolist(), batch.targets[counted].tolist(), strict=True)
    )


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_predicts_every_token_once(tmp_path: Path, shuffle: bool) -> None:
    path = stream(tmp_path, [1, 5, 16, 17, 40, 100, 3, 64])
    rows = data.PackedRows([(path, 1)], 16, 9999, seed=3, shuffle=shuffle)
    ids = np.fromfile(path, np.uint16).astype(int)
    expected = Counter((int(a), int(b)) for a, b in itertools.pairwise(ids) if a != 9999)
    starts = [0, *(np.flatnonzero(ids == 9999)[:-1] + 1)]
    opened = 0
    for epoch in range(5):
        found = pairs(rows, epoch)
        openings = Counter({p: n for p, n in found.items() if p[0] == 9999})
        assert found - openings == expected
        opened += openings.total()
        assert {p[1] for p in openings} <= {int(ids[s]) for s in starts}
    assert (0 < opened < 5 * len(starts)) if shuffle else opened == 0


def test_positions_restart_with_each_piece(tmp_path: Path) -> None:
    path = stream(tmp_path, [5, 9, 30, 7, 7])
    rows = data.PackedRows([(path, 2)], 16, 9999, seed=1)
    batch = rows.build(rows.rows(0))
    for positions, documents in zip(batch.positions, batch.documents, strict=True):
        for number in set(documents.tolist()) - {-1}:
            place = np.flatnonzero(documents == number)
            assert (np.diff(place) == 1).all()
            assert positions[place].tolist() == list(range(len(place)))


def test_stories_are_seen_from_position_zero(prepared: Path) -> None:
    """A prompt has no mark before it, so training must show openings without one."""
    encoding = data.load_encoding(prepared)
    rows = data.PackedRows([(prepared / "stories.train.bin", 1)], 64, encoding.eot_token)
    batch = rows.build(rows.rows(0))
    first = encoding.encode_ordinary("Once")[0]
    assert ((batch.tokens == first) & (batch.positions == 0)).sum() > 20


def test_batches_continue_from_any_place(tmp_path: Path) -> None:
    path = stream(tmp_path, [40, 100, 7, 300])
    one = data.PackedRows([(path, 1)], 16, 9999, seed=5)
    epoch, row, seen = 0, 0, []
    for _ in range(25):
        batch, epoch, row = one.batch(epoch, row, 3)
        seen.append((batch.tokens, epoch, row))
    assert epoch >= 2
    for at in (4, 13):
        other = data.PackedRows([(path, 1)], 16, 9999, seed=5)
        _, epoch, row = seen[at]
        batch, epoch, row = other.batch(epoch, row, 3)
        np.testing.assert_array_equal(batch.tokens, seen[at + 1][0])
        assert (epoch, row) == seen[at + 1][1:]


def test_epochs_differ(tmp_path: Path) -> None:
    rows = data.PackedRows([(stream(tmp_path, [400, 300]), 1)], 16, 9999)
    first, second = (rows.build(rows.rows(n)).tokens for n in (0, 1))
    assert first.shape != second.shape or (first != second).any()


def test_empty_data_is_refused(tmp_path: Path) -> None:
    rows = data.PackedRows([(stream(tmp_path, [0]), 1)], 16, 9999)
    with pytest.raises(data.Error, match="no tokens"):
        rows.batch(0, 0, 1)
