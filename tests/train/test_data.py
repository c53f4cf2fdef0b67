"""Rows of tokens, and the folder they come from."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.errors import Error
from gptoss.train.data import Batch, TextRows, load_tokenizer, open_data

END = 9999


def stream(folder: Path, lengths: list[int], name: str = "x.bin", dtype: str = "uint16") -> Path:
    """Documents of the given lengths, whose tokens are all different."""
    ids: list[int] = []
    for length in lengths:
        ids += [*range(len(ids), len(ids) + length), END]
    path = folder / name
    np.array(ids, dtype).tofile(path)
    return path


def whole(rows: TextRows, epoch: int = 0) -> Batch:
    """All rows of an epoch."""
    batch, *place = rows.batch(epoch, 0, len(rows.rows(epoch)))
    assert place == [epoch + 1, 0]
    return batch


def pairs(batch: Batch) -> Counter[tuple[int, int]]:
    counted = batch.targets >= 0
    found = zip(batch.tokens[counted].tolist(), batch.targets[counted].tolist(), strict=True)
    return Counter(found)


def check_row(tokens: Any, targets: Any, positions: Any, documents: Any) -> None:
    """Each piece of a row stands by itself, and the rest of the row is filler."""
    filler = documents < 0
    assert (targets[filler] == -1).all() and (tokens[filler] == END).all()
    used = int((~filler).sum())
    assert not filler[:used].any()  # pieces first, then filler
    assert (np.diff(documents[:used]) >= 0).all()
    for number in range(documents.max() + 1):
        place = np.flatnonzero(documents == number)
        assert len(place) and (np.diff(place) == 1).all()
        assert positions[place].tolist() == list(range(len(place)))
        # a target is the next token of the piece; tokens count up within a document
        assert (targets[place[:-1]] == tokens[place[1:]]).all()
        own = tokens[place]
        own = own[1:] if own[0] == END else own  # a mark may only stand first
        assert END not in own.tolist() and (np.diff(own) == 1).all()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=12),
    length=st.integers(2, 33),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_an_epoch_predicts_every_token_once(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    length: int,
    shuffle: bool,
    seed: int,
) -> None:
    if not any(lengths):
        lengths[0] = 1
    path = stream(tmp_path_factory.mktemp("rows"), lengths)
    rows = TextRows([(path, 1)], length, END, seed=seed, shuffle=shuffle)
    ids = np.fromfile(path, np.uint16).astype(int)
    expected = Counter((int(a), int(b)) for a, b in itertools.pairwise(ids) if a != END)
    starts = {int(b) for a, b in itertools.pairwise([END, *ids]) if a == END and b != END}
    for epoch in range(2):
        batch = whole(rows, epoch)
        assert batch.tokens.dtype == batch.targets.dtype == np.int64
        found = pairs(batch)
        openings = Counter({p: n for p, n in found.items() if p[0] == END})
        assert found - openings == expected
        assert {p[1] for p in openings} <= starts and max(openings.values(), default=0) <= 1
        assert shuffle or not openings
        arrays = (batch.tokens, batch.targets, batch.positions, batch.documents)
        for row in zip(*arrays, strict=True):
            check_row(*row)
        assert (batch.documents[:, 0] == 0).all()  # no empty rows
        if not shuffle:
            assert (batch.documents < 0).sum() < length  # filler in the last row alone


def test_one_opening_in_four_is_marked(tmp_path: Path) -> None:
    rows = TextRows([(stream(tmp_path, [6] * 1000), 1)], 16, END)
    marked = sum(n for p, n in pairs(whole(rows)).items() if p[0] == END)
    assert 200 < marked < 300


def test_the_end_is_a_target_and_never_an_input_within(tmp_path: Path) -> None:
    rows = TextRows([(stream(tmp_path, [5, 9, 30, 7]), 1)], 16, END, shuffle=False)
    batch = whole(rows)
    assert (batch.targets == END).sum() == 4
    assert (batch.tokens[batch.documents >= 0] != END).all()


def test_texts_are_repeated(tmp_path: Path) -> None:
    a, b = stream(tmp_path, [20]), stream(tmp_path, [30], "y.bin")
    once = pairs(whole(TextRows([(a, 1), (b, 1)], 16, END, shuffle=False)))
    more = pairs(whole(TextRows([(a, 3), (b, 1)], 16, END, shuffle=False)))
    of_a = pairs(whole(TextRows([(a, 1)], 16, END, shuffle=False)))
    assert more - once == of_a + of_a
    none = pairs(whole(TextRows([(a, 0), (b, 1)], 16, END, shuffle=False)))
    assert none == once - of_a


def test_wide_ids(tmp_path: Path) -> None:
    ids = np.array([200_000, 199_998, 70_000, 199_999], np.uint32)
    ids.tofile(tmp_path / "w.bin")
    rows = TextRows([(tmp_path / "w.bin", 1)], 4, 199_999, shuffle=False, dtype="uint32")
    (row,) = whole(rows).tokens.tolist()
    assert row == [200_000, 199_998, 70_000, 199_999]


def test_batches_continue_from_any_place(tmp_path: Path) -> None:
    path = stream(tmp_path, [40, 100, 7, 300])
    one = TextRows([(path, 1)], 16, END, seed=5)
    epoch, row, seen = 0, 0, []
    for _ in range(25):
        batch, epoch, row = one.batch(epoch, row, 3)
        seen.append((batch, epoch, row))
    assert epoch >= 2
    for at in (4, 13):
        other = TextRows([(path, 1)], 16, END, seed=5)
        _, epoch, row = seen[at]
        batch, epoch, row = other.batch(epoch, row, 3)
        for name in ("tokens", "targets", "positions", "documents"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(seen[at + 1][0], name))
        assert (epoch, row) == seen[at + 1][1:]


def test_a_batch_may_span_epochs(tmp_path: Path) -> None:
    rows = TextRows([(stream(tmp_path, [31]), 1)], 16, END)
    per_epoch = len(rows.rows(0))
    batch, epoch, row = rows.batch(0, 0, 5 * per_epoch + 1)
    assert len(batch.tokens) == 5 * per_epoch + 1 and epoch in (5, 6) and row < per_epoch + 1


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    path = stream(tmp_path, [400, 300])
    first = whole(TextRows([(path, 1)], 16, END)).tokens
    for other in (
        whole(TextRows([(path, 1)], 16, END), 1).tokens,
        whole(TextRows([(path, 1)], 16, END, seed=1)).tokens,
    ):
        assert first.shape != other.shape or (first != other).any()


def test_sequential_covers_all_rows(tmp_path: Path) -> None:
    rows = TextRows([(stream(tmp_path, [40, 9, 100]), 1)], 16, END, shuffle=False)
    parts = [batch.tokens for batch in rows.sequential(4)]
    assert [len(p) for p in parts[:-1]] == [4] * (len(parts) - 1)
    np.testing.assert_array_equal(np.concatenate(parts), whole(rows).tokens)


def test_empty_data_is_refused(tmp_path: Path) -> None:
    rows = TextRows([(stream(tmp_path, [0]), 1)], 16, END)
    with pytest.raises(Error, match="no tokens"):
        rows.batch(0, 0, 1)


# The folder.


def test_what_the_folder_says(prepared: Path) -> None:
    data = open_data(prepared)
    special = data.tokenizer.special
    assert data.vocab_size == data.tokenizer.vocab_size == 320
    assert data.end_of_text == special["<|endoftext|>"] == 312
    assert data.stop_ids == (312, special["<|return|>"], special["<|call|>"]) == (312, 313, 319)
    assert data.texts == ("stories",) and len(data.digest) == 64
    assert data.tokens("train") + data.tokens("validation") == data.index["report"]["tokens"]
    assert 1 < data.bytes_per_token("train") < 8
    assert data.bytes_per_token("train", "stories") == data.bytes_per_token("train")
    data.verify()
    for wrong in (lambda: data.tokens("test"), lambda: data.tokens("train", "poems")):
        with pytest.raises(Error, match="expected"):
            wrong()
    with pytest.raises(Error, match="texts: expected some of stories; found 'poems'"):
        data.rows("train", 16, texts=("poems",))


def test_stories_are_seen_from_position_zero(prepared: Path) -> None:
    """A prompt has no mark before it, so training must show openings without one."""
    data = open_data(prepared)
    batch = whole(data.rows("train", 64))
    first = data.tokenizer.encode("Once")[0]
    assert ((batch.tokens == first) & (batch.positions == 0)).sum() > 20


def test_the_tokenizer_travels_alone(prepared: Path, tmp_path: Path) -> None:
    open_data(prepared).copy_tokenizer(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.tiktoken",
        "tokenizer_config.json",
    }
    text = "Once upon a time, naïve 東京"
    copied = load_tokenizer(tmp_path)
    assert copied.encode(text) == load_tokenizer(prepared).encode(text)
    assert copied.vocab_size == 320


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


SHARD = "stories.train.0000.bin"


def test_damage_is_found(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-2])
    with pytest.raises(Error, match=f"{SHARD}: expected {len(content)} bytes, found"):
        open_data(folder)
    (folder / SHARD).write_bytes(content[:-2] + b"\x01\x00")
    with pytest.raises(Error, match=f"{SHARD}: expected sha256"):
        open_data(folder).verify()
    (folder / SHARD).unlink()
    with pytest.raises(Error, match="found nothing"):
        open_data(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "expected prepared data of format 1, found 7"),
        ({"dtype": "float64"}, "dtype: expected uint16 or uint32, found 'float64'"),
        ({"vocab_size": "many"}, "vocab_size: expected int, found 'many'"),
        ({"shards": [{}]}, r"shards\[0\]: file: expected str, found None"),
        ({"shards": ["x"]}, r"shards\[0\]: expected a JSON object, found 'x'"),
    ],
)
def test_foreign_folders(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(Error, match=message):
        open_data(folder)


def test_no_way_out_of_the_folder(folder: Path) -> None:
    path = folder / "data.json"
    index = json.loads(path.read_text())
    index["shards"][0]["file"] = "../x.bin"
    path.write_text(json.dumps(index))
    with pytest.raises(Error, match="expected shards beside it, found '../x.bin'"):
        open_data(folder)


def test_not_a_folder_of_data(tmp_path: Path) -> None:
    with pytest.raises(Error, match="found nothing; make it with `gptoss data prepare"):
        open_data(tmp_path / "none")
    for text in ("{", "[]", '{"vocab_size": 3}'):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(Error, match=r"data.json: expected"):
            open_data(tmp_path)
