"""Documents out of files, cleaned and filtered."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.errors import Error
from gptoss.train.data import sources
from gptoss.train.data.cleaning import Cleaning, clean, objection, symbol_ratio
from gptoss.train.data.dedup import NONE, Seen, digest, record, shingles, signature
from gptoss.train.data.sources import Reading, find_files, names_of, read_documents

END = "<|endoftext|>"
PARAGRAPH = "The fox went out on a chilly night and prayed to the moon to give him light.\n"


def read(path: Path, **how: str) -> list[str]:
    return list(read_documents(path, Reading(**how)))


def parquet(path: Path, **columns: list[object]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


# Text.


@settings(max_examples=80, deadline=None)
@given(
    documents=st.lists(st.text("ab|<\n", max_size=12), min_size=1, max_size=6),
    separator=st.sampled_from([END, "|", "\n\n", "|<|", "ab"]),
    chunk=st.integers(1, 7),
)
def test_splitting_a_stream(documents: list[str], separator: str, chunk: int) -> None:
    """However the parts break it, a text is split as str.split would."""
    text = separator.join(documents)
    parts = (text[at : at + chunk] for at in range(0, len(text), chunk))
    *first, last = text.split(separator)
    assert list(sources._split(parts, separator)) == first + ([last] if last.strip() else [])


def test_documents_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 10)
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeffone\r\n{END}\r\ntwo\n{END}\nthree\n{END}\n".encode())
    assert read(path) == ["one\n", "\ntwo\n", "\nthree\n"]
    assert [d.strip() for d in read(path, separator="e")] == [
        "on",
        "<|",
        "ndoft",
        "xt|>\ntwo\n<|",
        "ndoft",
        "xt|>\nthr",
        "",
        "<|",
        "ndoft",
        "xt|>",
    ]


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 1000)
    path = tmp_path / "a.txt"
    path.write_text(f"{PARAGRAPH}{END}\n" * 500)
    told: list[float] = []
    assert len(list(read_documents(path, Reading(), told.append))) == 500
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 10


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["a", "b b", " ", "\n", "\n\n", "word" * 5]), max_size=120),
    size=st.integers(3, 12),
    chunk=st.integers(1, 50),
)
def test_cutting_a_text_without_separators(parts: list[str], size: int, chunk: int) -> None:
    text = "".join(parts)
    stream = (text[at : at + chunk] for at in range(0, len(text), chunk))
    pieces = list(sources._cut(stream, size))
    joined = "".join(pieces)
    assert text.startswith(joined) and not text[len(joined) :].strip()  # nothing lost but blanks
    assert all(size <= len(piece) <= 4 * size for piece in pieces[:-1])
    assert pieces == list(sources._cut(iter([text]), size))


def test_a_long_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    scenes = [f"Scene {n}.\n" + PARAGRAPH * 8 for n in range(200)]
    path = tmp_path / "play.txt"
    path.write_text("\n\n".join(scenes))
    pieces = read(path)
    assert 20 <= len(pieces) <= 40
    assert all(piece.strip().startswith("Scene") for piece in pieces)
    assert "".join(pieces) == "\n\n".join(scenes)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("utf-8", "naïve 東京"), ("utf-8-sig", "été"), ("utf-16", "東京 é"), ("cp1252", "“naïve”")],
)
def test_encodings(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f"{text}\n{END}\n{text}".encode(encoding))
    assert [d.strip() for d in read(path)] == [text, text]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "noname", "a.txt.gz"])
def test_binary_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = np.random.default_rng(0).bytes(5000)
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(Error, match=f"{name}: expected text, found binary data"):
        read(path)


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(b"")
        assert read(tmp_path / name) == []


# JSON lines, Parquet, gzip.


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "x": 1}\n\n{"text": "two\\nlines", "story": "s"}\n')
    assert read(path) == ["one", "two\nlines"]
    with pytest.raises(Error, match=r"a.jsonl:1: expected text in field 'story', found nothing; "):
        read(path, field="story")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut o', "expected a JSON object, found"),
        ("[1]", r"expected a JSON object, found \[1\]"),
        ('{"text": 3}', "expected text in field 'text', found 3; the fields are text"),
        ('{"story": "x"}', "expected text in field 'text', found nothing; the fields are story"),
        ('{"text": "\xff"}', "expected a JSON object, found .*decode"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(Error, match=rf"a.jsonl:2: {message}"):
        read(path)


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["one", "two", None, "four"], n=[1, 2, 3, 4])
    assert read(path) == ["one", "two", "", "four"]
    with pytest.raises(Error, match="expected a column 'story', found text, n"):
        read(path, field="story")
    with pytest.raises(Error, match="column 'n': expected strings, found int64"):
        read(path, field="n")
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[20:], b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(Error, match="expected a whole Parquet file, found"):
            read(path)


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": f"{n} {PARAGRAPH}"}) + "\n" for n in range(500))
    whole = gzip.compress(lines.encode())
    path.write_bytes(whole)
    assert len(read(path)) == 500
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for content in (whole[:-30], bytes(damaged), b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(Error, match=r"a.jsonl.gz: expected a whole gzip file|a.jsonl.gz:\d+:"):
            read(path)


def test_folders_and_names(tmp_path: Path) -> None:
    for name in ("b/two.txt", "a.jsonl.gz", "b/one.parquet", "notes.pdf", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)]
    assert found == ["a.jsonl.gz", "b/one.parquet", "b/two.txt"]
    assert find_files(tmp_path / "notes.pdf") == [tmp_path / "notes.pdf"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match="expected files .*, found none"):
        find_files(tmp_path / "empty")
    with pytest.raises(Error, match="found nothing there"):
        find_files(tmp_path / "missing.txt")
    places = ["x/a.txt", "y/a.jsonl.gz", "o/Tiny.Stories:train", "o/S@v1:en/train", str(tmp_path)]
    names = names_of(places)
    assert names[:4] == ["a", "a-2", "Tiny-Stories", "S"]
    assert len(set(names)) == 5


# Cleaning.


def test_cleaning() -> None:
    messy = "She said, \u201cIt\u2019s late.\u201d  \r\n\r\n\r\n\r\nAnd\x00  then"
    assert (
        clean(messy + "\u2028they\x7f went.\t \n")
        == 'She said, "It\'s late."\n\nAnd then\nthey went.'
    )
    assert clean("rÃ©sumÃ© â€” naÃ¯ve") == "résumé — naïve"  # UTF-8 read as something else
    assert clean("lone \ud800 half") == "lone \ufffd half"
    assert clean("a &amp; b &lt;i&gt;") == "a &amp; b &lt;i&gt;"  # maybe meant like that
    assert clean(" \n\t ") == ""


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_what_is_clean_stays(text: str) -> None:
    once = clean(text)
    assert once.encode() is not None and once == once.strip()
    assert not any(ord(char) < 32 and char not in "\n\t" for char in once)
    assert "\n\n\n" not in once and "  " not in once


def test_objections() -> None:
    limits = Cleaning(min_chars=10, max_chars=100, max_symbols=0.3, drop_prefixes=("Source.",))
    for text, reason in {
        "": "empty",
        "short": "short",
        "x" * 101: "long",
        "Source. The book of dun cow": "prefix",
        "@@@@ #### <<>> {{}} ab": "symbols",
        "A good text, isn't it?": None,
        "東京は日本の首都です、ね。東京は": None,
    }.items():
        assert objection(text, limits) == reason, text
    assert objection("x" * 101, Cleaning(min_chars=10)) is None
    assert symbol_ratio("ab@#") == 0.5


# Duplicates.


def test_exact_duplicates() -> None:
    seen = Seen(near=0)
    assert seen.objection(digest("One  story."), NONE) is None
    assert seen.objection(digest("one story.\n"), NONE) == "exact duplicate"
    assert seen.objection(digest("One story!"), NONE) is None


def words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"w{n}" for n in rng.integers(0, 10_000, count)]


def look(seen: Seen, text: list[str]) -> str | None:
    joined = " ".join(text)
    return seen.objection(digest(joined), signature(joined))


def test_near_duplicates() -> None:
    originals = [words(200, seed) for seed in range(60)]
    seen = Seen(0.8)
    assert [look(seen, text) for text in originals] == [None] * 60
    # one word in the middle changes 5 of 196 shingles: Jaccard 191 / 201 = 0.95
    one_word = [[*text[:100], "new", *text[101:]] for text in originals]
    assert [look(seen, text) for text in one_word].count("near duplicate") >= 57
    # half a text: 0.5 or less
    halves = [text[:100] + words(100, 1000 + n) for n, text in enumerate(originals)]
    assert [look(seen, text) for text in halves] == [None] * 60


def test_signatures_estimate_the_share_of_common_shingles() -> None:
    text = words(300, 1)
    for keep in (300, 250, 150, 0):
        other = text[:keep] + words(300 - keep, 2)
        a, b = shingles(" ".join(text)), shingles(" ".join(other))
        estimate = (signature(" ".join(text)) == signature(" ".join(other))).mean()
        assert abs(estimate - len(a & b) / len(a | b)) < 4 * 0.0625  # 4 × the largest deviation


def test_what_is_seen_can_be_written_down() -> None:
    texts = [" ".join(words(40, seed)) for seed in range(1500)]
    for near in (0.8, 0.0):
        marks = [(digest(text), signature(text) if near else NONE) for text in texts]
        one, other = Seen(near), Seen(near)
        for mark in marks[:1200]:
            assert one.objection(*mark) is None
        other.load(b"".join(itertools.starmap(record, marks[:1200])))
        assert len(other) == len(one) == 1200
        for mark in marks:
            assert other.objection(*mark) == one.objection(*mark)


def test_short_texts_are_compared_whole() -> None:
    assert shingles("Two words") == {b"two words"}
    assert shingles("") == {b""}
