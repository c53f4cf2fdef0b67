"""Whole preparations: what they write, what they refuse, and how they go on after a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss import files
from gptoss.cli import main
from gptoss.errors import Error
from gptoss.train.data import END_OF_TEXT, Cleaning, clean, is_validation, open_data, prepare
from gptoss.train.data import collect as collecting
from gptoss.train.data import shards as sharding
from gptoss.train.data.workers import in_order, pool

from .conftest import STORIES

NO_FORK = not hasattr(os, "fork")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents(folder: Path, split: str, text: str | None = None) -> list[str]:
    """Out of the shards again."""
    data = open_data(folder)
    ids = [
        np.fromfile(folder / shard["file"], data.index["dtype"])
        for shard in data.shards(split, text)
    ]
    flat = np.concatenate(ids).tolist() if ids else []
    return data.tokenizer.decode(flat).split(END_OF_TEXT)[:-1]


def numbered(count: int, first: int = 0) -> list[str]:
    """Stories that are not near duplicates."""
    rng = np.random.default_rng(first)
    return [
        f"Story {n}: " + " ".join(f"w{w}" for w in rng.integers(0, 3000, 40))
        for n in range(first, first + count)
    ]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """100 stories, 8 of them twice, 4 nearly twice, 3 too short."""
    stories = numbered(100)
    stories += [*stories[:8], *(story + " more" for story in stories[20:24]), "a", " ", "b"]
    path = tmp_path / "numbered.txt"
    path.write_text(f"\n{END_OF_TEXT}\n".join(stories))
    return path


def test_what_is_written(text: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = prepare(
        [text],
        tmp_path / "out",
        tokenizer="characters",
        validation=0.1,
        block_bytes=4000,
        progress=lambda *at: told.append(at),
    )
    assert report["documents_read"] == 115 and report["documents"] == 100
    assert report["dropped"] == {
        "empty": 1,
        "exact duplicate": 8,
        "near duplicate": 4,
        "short": 2,
    }
    expected = {clean(story) for story in numbered(100)}
    train, held_out = (documents(tmp_path / "out", s) for s in ("train", "validation"))
    assert set(held_out) == {d for d in expected if is_validation(d, 0.1)} and held_out
    assert set(train) == expected - set(held_out) and len(train) + len(held_out) == 100
    size = sum(len(d.encode()) for d in expected)
    assert report["bytes"] == size and report["tokens"] == size + 100  # ASCII: one id a byte
    assert report["bytes_per_token"] == pytest.approx(size / (size + 100))
    data = open_data(tmp_path / "out")
    data.verify()
    assert len(data.shards("train")) > 3 and data.index["report"] == report
    assert data.digest == report["digest"] and report["vocab_size"] == 265
    (row, other) = report["texts"]
    assert (row["text"], row["split"], row["documents"]) == ("numbered", "train", len(train))
    assert other["tokens"] == data.tokens("validation")
    assert not (tmp_path / "out" / "unfinished").exists()
    assert {what for what, _, _ in told} == {"reading", "learning the vocabulary", "tokenising"}
    assert told[-1] == ("tokenising", size, size)


@pytest.mark.parametrize("validation", [0.0, 1e-9, 0.1])
def test_documents_keep_their_order(text: Path, tmp_path: Path, validation: float) -> None:
    """Even where the one that is held out was found late, or had to be chosen."""
    options: dict[str, Any] = {"tokenizer": "characters", "block_bytes": 4000}
    prepare([text], tmp_path / "out", validation=validation, **options)
    held_out = documents(tmp_path / "out", "validation")
    stories = [clean(story) for story in numbered(100)]
    assert documents(tmp_path / "out", "train") == [s for s in stories if s not in held_out]
    assert held_out == [s for s in stories if s in held_out]
    if validation == 1e-9:  # none by its hash: the lowest of the first block
        assert len(held_out) == 1 and held_out[0] in stories[:20]


@pytest.mark.parametrize("count", [1, 3])
def test_something_is_left_to_train_on(tmp_path: Path, count: int) -> None:
    """Even where the hashes of all documents say that they are held out."""
    text = tmp_path / "few.txt"
    text.write_text(f"\n{END_OF_TEXT}\n".join(numbered(count)))
    prepare([text], tmp_path / "out", tokenizer="characters", validation=0.999999)
    assert all(is_validation(clean(story), 0.999999) for story in numbered(count))
    assert len(documents(tmp_path / "out", "train")) == max(1, count - 1)
    assert len(documents(tmp_path / "out", "validation")) == min(1, count - 1)


def test_split_depends_on_the_document_alone() -> None:
    stories = [f"document {n}" for n in range(4000)]
    held_out = [d for d in stories if is_validation(d, 0.05)]
    assert 140 < len(held_out) < 260
    assert set(held_out) <= {d for d in stories if is_validation(d, 0.06)}
    assert not any(is_validation(d, 0) for d in stories)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_few_documents_are_split_too(tmp_path: Path, count: int) -> None:
    path = tmp_path / "few.txt"
    path.write_text(END_OF_TEXT.join(numbered(count)))
    for share in (0.0, 1e-9, 0.05):
        out = tmp_path / f"out{share}"
        prepare([path], out, tokenizer="characters", validation=share)
        held_out = documents(out, "validation")
        train = documents(out, "train")
        assert sorted([*train, *held_out]) == sorted(numbered(count)) and train
        assert bool(held_out) == (share > 0 and count > 1)
        if held_out:  # that with the lowest hash, and so the one a larger share would take first
            assert held_out == [min(numbered(count), key=collecting.share_of)]


def test_sources_of_all_kinds(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    stories = numbered(40)
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "b.txt").write_text(END_OF_TEXT.join(stories[:10]))
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": s}) for s in stories[10:20]))
    table = pyarrow.table({"text": stories[20:30]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": s}) for s in stories[25:]))
    places = [folder, tmp_path / "c.parquet", tmp_path / "d.jsonl"]
    report = prepare(places, tmp_path / "out", tokenizer="characters", validation=0)
    assert open_data(tmp_path / "out").texts == ("many", "c", "d")
    assert documents(tmp_path / "out", "train", "many") == stories[10:20] + stories[:10]
    assert documents(tmp_path / "out", "train", "c") == stories[20:30]
    # duplicates are dropped across texts
    assert documents(tmp_path / "out", "train", "d") == stories[30:]
    assert report["dropped"] == {"exact duplicate": 5}


def test_a_dataset_of_the_hub(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path | None]] = []

    def resolve(place: str, cache: Path | None, progress: Any) -> list[Path]:
        asked.append((place, cache))
        return [text]

    monkeypatch.setattr("gptoss.train.data.hub.resolve", resolve)
    prepare(["owner/Tales:en"], tmp_path / "out", tokenizer="characters", cache=tmp_path)
    assert open_data(tmp_path / "out").texts == ("Tales",)
    assert asked == [("owner/Tales:en", tmp_path)]


def test_weights_and_samples_change_the_vocabulary(tmp_path: Path) -> None:
    for name, word in (("a", "banana"), ("b", "orchid")):
        (tmp_path / name).write_text(END_OF_TEXT.join(f"{word} " * 30 + s for s in numbered(9)))

    def learned(**options: Any) -> bytes:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        places = [tmp_path / "a", tmp_path / "b"]
        prepare(places, out, vocab_size=280, near_duplicates=False, **options)
        return (out / "tokenizer.tiktoken").read_bytes()

    plain = learned()
    assert learned(weights=[1, 1]) == plain != learned(weights=[1, 9])
    assert learned(weights=[0, 1]) not in (plain, learned(weights=[1, 0]))
    assert learned(learn_bytes=3000) != plain


def test_processes_change_nothing(text: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        prepare([text], tmp_path / str(workers), vocab_size=300, block_bytes=3000, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(Error, match="workers: expected them to live, found that one has died"):
        with pool(2) as executor:
            list(in_order(executor, os._exit, [1, 1]))


# Interruptions.


def run(text: Path, out: Path) -> dict[str, Any]:
    more = text.with_name("more.txt")
    if not more.exists():
        more.write_text(END_OF_TEXT.join(numbered(60, 90)))
    return prepare([text, more], out, tokenizer="characters", validation=0.02, block_bytes=3000)


def killed(work: Callable[[], object]) -> bool:
    """Runs `work` in a process of its own; whether SIGKILL has ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.skipif(NO_FORK, reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("where", "name", "calls"),
    [
        (collecting._Text, "add", (1, 2, 20, 21, 99, 120, 150)),
        (collecting, "write_json", (1, 2, 9, 20)),
        (collecting, "_to_disk", (1, 7, 30)),
        (sharding, "load_tokenizer", (1,)),
        (sharding, "write_json", (1, 2, 7)),
        (sharding, "write_in_one_piece", (1, 4)),
    ],
)
def test_a_killed_preparation_goes_on(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    calls: tuple[int, ...],
) -> None:
    monkeypatch.setattr(collecting, "BATCH", 4)
    monkeypatch.setattr(collecting, "SAVE_EVERY", 3)
    report = run(text, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    real = getattr(where, name)
    out = tmp_path / "killed"
    for call in calls:  # each goes on with what the last has left

        def deadly(*args: Any, last: int = call, made: list[int] = [], **more: Any) -> Any:  # noqa: B006
            made.append(1)
            if len(made) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        def attempt(deadly: Any = deadly) -> None:
            setattr(where, name, deadly)
            run(text, out)

        made_before = sum(path.stat().st_size for path in out.rglob("*")) if out.exists() else 0
        if killed(attempt):
            assert not (out / "data.json").exists()
            with pytest.raises(Error, match="found nothing; make it with"):
                open_data(out)
        assert sum(path.stat().st_size for path in out.rglob("*")) >= made_before * 0.5
    assert run(text, out) == report
    assert contents(out) == expected


def test_finished_work_is_not_done_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "BATCH", 4)
    monkeypatch.setattr(collecting, "SAVE_EVERY", 3)
    seen: list[str] = []
    real = collecting.clean

    def counted(document: str) -> str:
        seen.append(document)
        if len(seen) == 60:
            raise KeyboardInterrupt
        return real(document)

    monkeypatch.setattr(collecting, "clean", counted)
    with pytest.raises(KeyboardInterrupt):
        run(text, tmp_path / "out")
    run(text, tmp_path / "out")
    assert len(seen) == 60 + 175 - 48  # what came after the last save, at 48, is done twice
    before = contents(tmp_path / "out")
    run(text, tmp_path / "out")  # nothing left to do
    assert len(seen) == 187 and contents(tmp_path / "out") == before


def test_a_full_disk(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(text, tmp_path / "whole")
    out = tmp_path / "full"
    real = os.fsync
    failures = 0
    for room in (0, 1, 3, 6, 9, 11, 13, 17, 22):
        left = room

        def fsync(file: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fsync)
            try:
                run(text, out)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failures += 1
                assert not (out / "data.json").exists()
    assert failures >= 5
    run(text, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_damaged_shard_is_made_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("gptoss.train.data.preparation._finish", lambda *_: {})
        run(text, out)
    first, second = sorted(out.glob("*.bin"))[:2]
    first.write_bytes(b"\0" * first.stat().st_size)
    second.unlink()
    run(text, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_damaged_unfinished_folder(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "BATCH", 4)
    monkeypatch.setattr(collecting, "SAVE_EVERY", 3)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(collecting._Text, "close", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(text, out)
    (out / "unfinished" / "seen.bin").write_bytes(b"")
    with pytest.raises(Error, match="seen.bin: expected .* bytes or more, found 0; delete"):
        run(text, out)


# What is refused.


def test_other_arguments_do_not_mix(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("gptoss.train.data.preparation._finish", lambda *_: {})
        prepare([text], out, tokenizer="characters")
    with pytest.raises(Error, match="expected the arguments and sources that this preparation"):
        prepare([text], out, tokenizer="characters", validation=0.2)
    prepare([text], out, tokenizer="characters")
    with pytest.raises(Error, match="expected a new or empty folder, found other prepared data"):
        prepare([text], out, tokenizer="characters", validation=0.2)
    text.write_text("changed")
    with pytest.raises(Error, match="found other prepared data"):
        prepare([text], out, tokenizer="characters")


def test_nothing_of_others_is_touched(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(Error, match="expected a new or empty folder, found files in it"):
        prepare([text], out)
    (out / "data.json").write_text("{")
    with pytest.raises(Error, match="found other prepared data"):
        prepare([text], out)
    assert (out / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("")
    with pytest.raises((Error, OSError)):
        prepare([text], tmp_path / "file")


def test_another_vocabulary_in_the_same_place(text: Path, tmp_path: Path) -> None:
    """Nothing of the first may be remembered when a folder is deleted and made again."""
    import shutil

    out = tmp_path / "out"
    for size in (300, 280):
        prepare([text], out, vocab_size=size)
        assert sorted(documents(out, "train"))[0].startswith("Story")
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found 0 documents of which none is left .none was read."),
        (b"tiny", "found 1 documents of which none is left .short 1."),
        (b"\n \n", "none is left"),
        (bytes(range(256)) * 20, "expected text, found binary data"),
    ],
)
def test_texts_without_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(Error, match=message):
        prepare([tmp_path / "a.txt"], tmp_path / "out")
    assert not (tmp_path / "out" / "data.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 50_000}, r"vocab_size: expected at most \d+ .all that this text gives."),
        ({"vocab_size": 100}, "vocab_size: expected at least 265"),
        ({"tokenizer": "wordpiece"}, "tokenizer: expected one of bpe"),
        ({"validation": 1.0}, "validation: expected 0 <= validation < 1, found 1.0"),
        ({"validation": float("nan")}, "validation: expected"),
        ({"weights": [1, 2]}, r"weights: expected 1 whole numbers from 0, found \[1, 2\]"),
        ({"weights": [-1]}, "weights: expected"),
        ({"near_duplicates": 1.5}, "near_duplicates: expected a similarity from 0 to 1"),
        ({"near_duplicates": float("nan")}, "near_duplicates: expected"),
        ({"workers": 0}, "workers: expected 1 or more, found 0"),
        ({"block_bytes": 0}, "block_bytes: expected 1 or more"),
        ({"separator": ""}, "separator: expected a text, found an empty one"),
        ({"cleaning": Cleaning(min_chars=10_000)}, "none is left .short 114, empty 1."),
    ],
)
def test_options_that_cannot_be(
    text: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Error, match=message):
        prepare([text], tmp_path / "out", **options)


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    for places, message in (
        ([], "sources: expected at least one"),
        ([tmp_path / "missing.txt"], "missing.txt: expected a file, a folder, or a dataset"),
    ):
        with pytest.raises(Error, match=message):
            prepare(places, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The command.


def test_command_line(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    options = ["--vocab-size", "320", "--validation", "0.1", "--near-duplicates", "0"]
    options += ["--min-chars", "150", "--drop-prefix", "Source.", "--workers", "1"]
    assert main(["data", "prepare", str(stories), "--out", out, *options]) == 0
    printed = capsys.readouterr().out
    assert f"documents   {len(STORIES)} read, " in printed and "vocabulary  320 ids" in printed
    assert "stories  train " in printed and f"written to {out}" in printed
    assert main(["data", "info", out, "--verify"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tokenizer   bpe\n") and shown.split("\n")[1] == printed.split("\n")[0]
    assert main(["data", "info", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["vocab_size"] == 320 and report == open_data(Path(out)).index["report"]


def test_command_line_with_words(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "out"), "--tokenizer", "words", "--vocab-size", "30"]
    options += ["--near-duplicates", "0", "--workers", "1"]
    assert main(["data", "prepare", str(stories), *options]) == 0
    data = open_data(tmp_path / "out")
    ids = np.concatenate(
        [np.fromfile(tmp_path / "out" / s["file"], np.uint16) for s in data.index["shards"]]
    )
    share = (ids == 0).mean()
    assert 0.05 < share < 1
    assert f"unknown     {share:.2%} of the tokens are <unk>" in capsys.readouterr().out


def test_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing.txt")
    assert main(["data", "prepare", missing, "--out", str(tmp_path / "out")]) == 1
    assert f"gptoss: error: {missing}: expected a file" in capsys.readouterr().err
    assert main(["data", "info", str(tmp_path)]) == 1
    assert "expected prepared data, found nothing" in capsys.readouterr().err
    for wrong in (["data"], ["data", "prepare", "x"], ["data", "prepare", "x", "--weights", "a"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
