"""From files to rows: what is kept, what is held out, and how sequences share a row."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.chat import REQUIRED
from gptoss.errors import Error
from gptoss.train.tune import examples
from gptoss.train.tune.conversations import Example
from gptoss.train.tune.examples import Examples, Rows


class Bytes:
    """A vocabulary of bytes."""

    vocab_size = 256 + 1 + len(REQUIRED)

    def __init__(self, special: tuple[str, ...] = ("<|endoftext|>", *REQUIRED)) -> None:
        self.special = {name: 256 + n for n, name in enumerate(special)}

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Any) -> str:
        names = {token: name for name, token in self.special.items()}
        return b"".join(names[n].encode() if n > 255 else bytes([n]) for n in ids).decode()


def read_examples(*arguments: Any, raw: bool = True, **options: Any) -> Examples:
    """Short ones: with no system message of harmony's."""
    return examples.read_examples(*arguments, raw=raw, **options)


BYTES = Bytes()
END = BYTES.special["<|endoftext|>"]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def sequences(*sizes: int) -> list[tuple[Example, ...]]:
    """Of these lengths, with tokens that tell which sequence they are of."""
    return [
        (Example(np.full(size, n + 1, np.int64), np.full(size, n + 101, np.int64)),)
        for n, size in enumerate(sizes)
    ]


def test_rows_hold_whole_sequences_apart_from_each_other() -> None:
    items = sequences(5, 3, 7, 2, 8, 1)
    rows = Rows(items, 8, seed=0)
    picked = rows.rows(0)
    assert sorted(index for row in picked for index in row) == list(range(6))
    batch = rows.build(picked)
    for r, row in enumerate(picked):
        for number, index in enumerate(row):
            where = batch.documents[r] == number
            size = len(items[index][0])
            assert where.sum() == size
            assert batch.tokens[r, where].tolist() == [index + 1] * size
            assert batch.targets[r, where].tolist() == [index + 101] * size
            assert batch.positions[r, where].tolist() == list(range(size))
    filler = batch.documents < 0
    assert (batch.targets[filler] == -1).all()
    assert (~filler).sum() == 26


def test_pairs_lie_in_one_row() -> None:
    single = sequences(3, 2, 4, 1)
    pairs = [(single[0][0], single[1][0]), (single[2][0], single[3][0])]
    batch = Rows(pairs, 5, seed=0, shuffle=False).build([[0], [1]])
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    items = sequences(*[3] * 20)
    rows = Rows(items, 8, seed=5)
    assert rows.rows(0) != rows.rows(1)
    assert rows.rows(1) == Rows(items, 8, seed=5).rows(1) != Rows(items, 8, seed=6).rows(1)


def test_going_on_from_any_place_takes_the_same_rows() -> None:
    items = sequences(*[3] * 11)
    rows = Rows(items, 7, seed=1)
    whole, epoch, row = rows.take(0, 0, 15)  # 6 rows an epoch
    first, e, r = rows.take(0, 0, 4)
    second, e, r = Rows(items, 7, seed=1).take(e, r, 11)
    assert first + second == whole
    assert (e, r) == (epoch, row) == (2, 3)


def test_too_long_is_left_out_and_counted(jsonl: Callable[..., Path]) -> None:
    path = jsonl(chat("a", "b"), chat("a", "b" * 200))
    found = read_examples(path, "sft", BYTES, 64, validation=0)
    assert len(found.train) == 1 and found.dropped == 1
    assert "1 longer than a row left out" in str(found)


def test_too_long_is_cut_at_its_end(jsonl: Callable[..., Path]) -> None:
    path = jsonl(chat("a", "b"), chat("a", "b" * 200))
    found = read_examples(path, "sft", BYTES, 64, validation=0, truncate=True)
    cut = found.train[1][0]
    assert len(cut) == 64 and found.truncated == 1 and found.dropped == 0
    assert BYTES.special["<|return|>"] not in cut.targets
    # cut before the answer begins: nothing is left to learn
    only_question = jsonl(chat("a", "b"), chat("a" * 200, "b"))
    assert read_examples(only_question, "sft", BYTES, 64, 0, truncate=True).dropped == 1


def test_texts_are_cut_into_pieces_and_end(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcdefgh\n<|endoftext|>\nxy\n<|endoftext|>\n")
    found = read_examples(path, "text", BYTES, 5, validation=0)
    pieces = [item[0] for item in found.train]
    assert [bytes(p.tokens.tolist()).decode() for p in pieces] == ["abcde", "fgh", "xy"]
    assert [p.targets.tolist()[-1] for p in pieces] == [ord("f"), END, END]
    assert all((p.targets[:-1] == p.tokens[1:]).all() for p in pieces)


def test_texts_in_json_lines(jsonl: Callable[..., Path]) -> None:
    found = read_examples(jsonl({"text": "ab"}, {"text": "c"}), "text", BYTES, 9, validation=0)
    assert [item[0].tokens.tolist() for item in found.train] == [[97, 98], [99]]


def test_held_out_by_content(jsonl: Callable[..., Path]) -> None:
    records = [chat(f"question {n}", "answer") for n in range(200)]
    some = read_examples(jsonl(*records), "sft", BYTES, 99, validation=0.2)
    turned = read_examples(jsonl(*reversed(records)), "sft", BYTES, 99, validation=0.2)
    assert 20 <= len(some.held_out) <= 60
    assert len(some.held_out) + len(some.train) == 200

    def texts(items: Any) -> set[bytes]:
        return {item[0].tokens.tobytes() for item in items}

    assert texts(some.held_out) == texts(turned.held_out)
    assert not texts(some.held_out) & texts(some.train)


def test_preferences(jsonl: Callable[..., Path]) -> None:
    path = jsonl(
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": {"role": "assistant", "content": "bad", "thinking": "hm"},
        },
    )
    found = read_examples(path, "dpo", BYTES, 99, validation=0)
    (good, bad), (again, thoughtful) = found.train
    assert np.array_equal(good.tokens, again.tokens)
    assert np.array_equal(good.targets, again.targets)
    written = good.targets[good.targets >= 0].tolist()
    assert written[-5:] == [*b"good", BYTES.special["<|return|>"]]
    assert bad.targets[bad.targets >= 0].tolist()[-4:-1] == [*b"bad"]
    assert len(thoughtful) > len(bad)


@pytest.mark.parametrize(
    ("text", "method", "message"),
    [
        ("", "sft", "expected at least one example, found an empty file"),
        ("\n\n", "sft", "expected at least one example"),
        ('{"messages": ', "sft", ":1: expected JSON"),
        ('\n{"messages": [1]}', "sft", ":2: messages[0]: expected an object"),
        ("[1]", "sft", ": record 1: expected a JSON object"),
        ("{}", "sft", ":1: expected messages or another form (docs/finetuning.md"),
        ('{"text": "a"}', "sft", "found the keys text"),
        ('{"messages": null}', "sft", "found the keys none"),
        ('{"messages": "hi"}', "sft", ":1: messages: expected a list"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}', "sft", "found one for dpo"),
        ('{"messages": []}', "dpo", "found one for sft"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "sft", "expected an assistant"),
        ('{"prompt": "a", "chosen": "b"}', "dpo", "expected chosen and rejected"),
        ('{"prompt": "a", "chosen": 1, "rejected": "b"}', "dpo", ":1: chosen: messages: expected"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "dpo", "found the same one twice"),
        (
            '{"prompt": "a", "chosen": {"role": "user", "content": "b"}, "rejected": "c"}',
            "dpo",
            "chosen: expected assistant messages",
        ),
        ('{"txt": "a"}', "text", "expected text in field 'text'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, method: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(Error, match=re.escape(message)) as error:
        read_examples(path, method, BYTES, 99, validation=0)
    assert str(error.value).startswith(str(path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"messages": "\xff"}\n')
    with pytest.raises(Error, match="data.jsonl:1: expected UTF-8"):
        read_examples(path, "sft", BYTES, 99, validation=0)


def test_everything_too_long(jsonl: Callable[..., Path]) -> None:
    with pytest.raises(Error, match="at most 64 tokens.*1 longer than a row.*--truncate"):
        read_examples(jsonl(chat("a", "b" * 200)), "sft", BYTES, 64, validation=0)


def test_vocabulary_without_what_is_needed(jsonl: Callable[..., Path]) -> None:
    poor = Bytes(("<|endoftext|>",))
    with pytest.raises(Error, match=re.escape("lacks <|start|>")):
        read_examples(jsonl(chat("a", "b")), "sft", poor, 64, validation=0)
    read_examples(jsonl({"text": "ab"}), "text", poor, 64, validation=0)
    with pytest.raises(Error, match="expected the special token"):
        read_examples(jsonl({"text": "ab"}), "text", Bytes(()), 64, 0)
