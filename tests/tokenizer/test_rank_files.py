"""Finding a vocabulary, and every way in which a rank file can be wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import Size, rank_lines, tiny_config, tiny_ranks, write_tiny

from gptoss import Error
from gptoss.model.config import ModelConfig
from gptoss.tokenizer import vocabulary
from gptoss.tokenizer.load import load_tokenizer

PUBLISHED = Size(201088)
URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and none of the vocabularies this machine may hold."""

    def unreachable(*args: Any, **options: Any) -> Any:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("tiktoken.load.read_file", unreachable)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for name in ("TIKTOKEN_ENCODINGS_BASE", "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


# Where vocabularies are found.


def test_a_vocabulary_of_ones_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny(tmp_path), Size(272))
    reference = tiktoken.Encoding(
        "tiny",
        pat_str=tiny_config()["pattern"],
        mergeable_ranks=tiny_ranks(),
        special_tokens=tiny_config()["special_tokens"],
    )
    for text in ("the thing and the other", "  é\n\n12345", "in<|endoftext|>", ""):
        assert tokenizer.encode(text) == reference.encode(text, disallowed_special=())
        assert tokenizer.encode(text, "all") == reference.encode(text, allowed_special="all")
    assert tokenizer.eos_ids == {tokenizer.special_tokens["<|endoftext|>"]}


def test_eos_token_may_be_null(tmp_path: Path) -> None:
    config = {**tiny_config(), "eos_token": None}
    assert load_tokenizer(write_tiny(tmp_path, config=config), Size(272)).eos_ids == frozenset()


@pytest.mark.parametrize("said", [None, "none", "harmony"])
def test_conversation_format(tmp_path: Path, said: str | None) -> None:
    config = {**tiny_config(), "conversation_format": said}
    assert (
        load_tokenizer(write_tiny(tmp_path, config=config), Size(272)).conversation_format == said
    )
    assert load_tokenizer(write_tiny(tmp_path), Size(272)).conversation_format is None


@pytest.mark.parametrize("said", [None, "none", "harmony"])
def test_conversation_format_of_o200k(tmp_path: Path, o200k_file: Path, said: str | None) -> None:
    shutil.copy(o200k_file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"conversation_format": said}))
    assert load_tokenizer(tmp_path, PUBLISHED).conversation_format == said


@pytest.mark.parametrize("wrong", ["Harmony", "", 5, [], {}, True])
def test_a_conversation_format_that_is_none(tmp_path: Path, wrong: Any) -> None:
    config = {**tiny_config(), "conversation_format": wrong}
    with pytest.raises(
        Error, match=r"tokenizer_config.json: conversation_format: expected harmony"
    ):
        load_tokenizer(write_tiny(tmp_path, config=config), Size(272))


def test_special_tokens_may_lie_between_ranks(tmp_path: Path) -> None:
    ranks = {token: rank + 1 for token, rank in tiny_ranks().items()}
    config = {"pattern": tiny_config()["pattern"], "special_tokens": {"<|endoftext|>": 0}}
    tokenizer = load_tokenizer(write_tiny(tmp_path, rank_lines(ranks), config), Size(300))
    assert tokenizer.encode("a<|endoftext|>", "all") == [98, 0]
    assert tokenizer.token_bytes(0) == b"<|endoftext|>"


def test_a_real_configuration_serves(tmp_path: Path) -> None:
    config = ModelConfig(1, 4, 272, 32, 32, 8, 2, 1)
    assert load_tokenizer(write_tiny(tmp_path), config).vocab_size == 272


@pytest.mark.parametrize("name", ["o200k_base.tiktoken", "tokenizer.tiktoken", "any.tiktoken"])
def test_o200k_beside_the_checkpoint(tmp_path: Path, o200k_file: Path, name: str) -> None:
    shutil.copy(o200k_file, tmp_path / name)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|return|>"}')  # not ours
    tokenizer = load_tokenizer(tmp_path, PUBLISHED)
    assert tokenizer.encode("hello world<|end|>", "all") == [24912, 2375, 200007]


def test_encodings_base_as_openai_harmony_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, o200k_file: Path
) -> None:
    shutil.copy(o200k_file, tmp_path / "o200k_base.tiktoken")
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    assert load_tokenizer(None, PUBLISHED).encode("hello world") == [24912, 2375]
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(o200k_file))  # the file itself will do
    assert load_tokenizer(tmp_path / "empty", PUBLISHED).vocab_size == 201088


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_tiktokens_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, o200k_file: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    shutil.copy(o200k_file, tmp_path / hashlib.sha1(URL.encode()).hexdigest())
    assert load_tokenizer(None, PUBLISHED).encode("hello world") == [24912, 2375]


def test_tiktokens_own_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, o200k_file: Path
) -> None:
    """With a network: asked for once, then kept in the cache and found there."""
    data = o200k_file.read_bytes()

    class Answer:
        def close(self) -> None: ...

    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Answer())
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: data if path == URL else b"")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    (tmp_path / hashlib.sha1(URL.encode()).hexdigest()).write_bytes(b"half a downlo")
    assert load_tokenizer(None, PUBLISHED).encode("hello world") == [24912, 2375]
    assert (tmp_path / hashlib.sha1(URL.encode()).hexdigest()).read_bytes() == data


def test_a_download_of_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Answer:
        def close(self) -> None: ...

    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Answer())
    monkeypatch.setattr("tiktoken.load.read_file", lambda path: b"<html>log in first</html>")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(Error, match="The download failed: Hash mismatch"):
        load_tokenizer(None, PUBLISHED)


# When there is none.


def test_nothing_at_hand_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        load_tokenizer(tmp_path, PUBLISHED)
    message = str(caught.value)
    for part in (URL, "o200k_base.tiktoken", "tokenizer.json", str(tmp_path)):
        assert part in message
    assert "TIKTOKEN_ENCODINGS_BASE" in message and "no network in tests" in message
    assert "\n" not in message


@pytest.mark.parametrize("somewhere", [True, False])
def test_a_model_without_a_vocabulary(tmp_path: Path, somewhere: bool) -> None:
    with pytest.raises(Error, match=r"no tokenizer for this model of 512 tokens: put .*json") as e:
        load_tokenizer(tmp_path if somewhere else None, Size(512))
    assert (str(tmp_path) if somewhere else "beside the checkpoint") in str(e.value)


def test_encodings_base_with_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"IQ== 0\n")
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    with pytest.raises(Error, match=r"TIKTOKEN_ENCODINGS_BASE.*expected sha256 446a.*found"):
        load_tokenizer(None, PUBLISHED)


def test_encodings_base_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path / "nowhere"))
    with pytest.raises(Error, match="set TIKTOKEN_ENCODINGS_BASE to the folder that holds"):
        load_tokenizer(None, PUBLISHED)


def test_a_damaged_o200k(tmp_path: Path, o200k_file: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(o200k_file.read_bytes()[:-1000])
    with pytest.raises(Error, match=r"expected o200k_base.tiktoken \(sha256 446a.*found another"):
        load_tokenizer(tmp_path, PUBLISHED)


def test_o200k_for_a_model_too_small_for_it(tmp_path: Path, o200k_file: Path) -> None:
    shutil.copy(o200k_file, tmp_path / "o200k_base.tiktoken")
    with pytest.raises(Error, match="below the model's vocab_size 4096, found 199997"):
        load_tokenizer(tmp_path, Size(4096))
    with pytest.raises(Error, match=r"special token '.*below the model's vocab_size 201000"):
        load_tokenizer(tmp_path, Size(201000))


def test_several_rank_files(tmp_path: Path) -> None:
    for name in ("a.tiktoken", "b.tiktoken"):
        (tmp_path / name).write_bytes(b"IQ== 0\n")
    with pytest.raises(Error, match=r"one rank file .* found a\.tiktoken, b\.tiktoken"):
        load_tokenizer(tmp_path, Size(512))
    write_tiny(tmp_path)  # tokenizer.tiktoken goes first
    assert load_tokenizer(tmp_path, Size(272)).vocab_size == 272


def test_unreadable_and_absurdly_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Error, match=f"{tmp_path}: cannot be read: "):
        vocabulary.read_bytes(tmp_path)  # a directory
    monkeypatch.setattr(vocabulary, "_FILE_LIMIT", 1000)
    with pytest.raises(Error, match="tokenizer.tiktoken: expected at most 1000 bytes, found more"):
        load_tokenizer(write_tiny(tmp_path), Size(300))


# Rank files that are wrong, each named with its line.


def _lines(**changes: bytes) -> list[bytes]:
    """The tiny vocabulary's lines with some replaced: line_5=b"…" is the fifth."""
    lines = rank_lines(tiny_ranks())
    for key, line in changes.items():
        lines[int(key.removeprefix("line_")) - 1] = line
    return lines


WRONG = {
    "bad_base64": (_lines(line_3=b"A!== 2"), r"line 3: expected a token in base64, found b'A!=='"),
    "bad_padding": (_lines(line_3=b"A 2"), r"line 3: expected a token in base64"),
    "no_token": (_lines(line_3=b" 2"), r"line 3: expected a token in base64 and its rank"),
    "no_rank": (_lines(line_3=b"Ag=="), r"line 3: expected the token's rank.*found b''"),
    "rank_not_a_number": (_lines(line_3=b"Ag== two"), r"line 3: expected the token's rank"),
    "negative_rank": (_lines(line_3=b"Ag== -2"), r"line 3: expected the token's rank"),
    "fractional_rank": (_lines(line_3=b"Ag== 2.0"), r"line 3: expected the token's rank"),
    "endless_rank": (_lines(line_3=b"Ag== " + b"9" * 5000), r"line 3: expected the token's rank"),
    "three_fields": (_lines(line_3=b"Ag== 2 2"), r"line 3: expected the token's rank"),
    "token_twice": (_lines(line_3=b"AA== 2"), r"line 3: the token b'\\x00' is in line 1 already"),
    "rank_twice": (_lines(line_3=b"Ag== 0"), r"line 3: the rank 0 is in line 1 already"),
    "gap": (_lines(line_269=b"IGFuZA== 280"), r"every rank up to 280, found none for 268"),
    "byte_missing": (_lines(line_256=b"YWJj 255"), r"each of the 256 bytes, found none for 0xff"),
    "bytes_missing": (rank_lines({b"a": 0}), r"0x07 and 247 more"),
    "empty": ([], r"expected a token and its rank in each line, found none"),
    "binary": ([bytes(range(256))], r"line 1: expected a token"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rank_files(tmp_path: Path, case: str) -> None:
    lines, message = WRONG[case]
    with pytest.raises(Error, match=message) as caught:
        load_tokenizer(write_tiny(tmp_path, lines), Size(300))
    assert "tokenizer.tiktoken" in str(caught.value)


def test_more_tokens_than_the_model_has_ids(tmp_path: Path) -> None:
    with pytest.raises(Error, match="below the model's vocab_size 268, found 268 for b' and'"):
        load_tokenizer(write_tiny(tmp_path), Size(268))
    with pytest.raises(Error, match=r"special token '<\|start\|>er'.*vocab_size 271, found 271"):
        load_tokenizer(tmp_path, Size(271))


def test_blank_lines_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    lines = [line + b"\r" for line in rank_lines(tiny_ranks())]
    assert load_tokenizer(write_tiny(tmp_path, [b"", *lines, b"", b""]), Size(272))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_rank_files_give_errors_only(data: st.DataObject) -> None:
    """Only Error may come out, wherever bytes are changed, cut or added."""
    whole = bytearray(b"\n".join(rank_lines(tiny_ranks())))
    at = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(0, 40))
    whole[at : at + length] = data.draw(st.binary(max_size=20))
    try:
        ranks = vocabulary.parse_ranks(bytes(whole), "file")
        vocabulary.Vocabulary("file", 300, ranks, ".", {}, {}, frozenset())
    except Error as error:
        assert str(error).startswith("file")


# Descriptions that are wrong.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": None}, r"pattern: expected text, found None"),
        ({"pattern": "("}, r"pattern: expected a regular expression, found '\('"),
        ({"pattern": r"\w+"}, r"leaves out '\\x00'"),
        ({"pattern": r"[ -~]+"}, r"leaves out"),
        ({"pattern": r"[^😀]+"}, r"leaves out '😀'"),
        ({"pattern": ""}, r"the pattern cannot split"),
        ({"pattern": "a*"}, r"the pattern cannot split"),
        ({"special_tokens": []}, r"special_tokens: expected an object, found \[\]"),
        ({"special_tokens": {"<|endoftext|>": "269"}}, r"expected a token id, found '269'"),
        ({"special_tokens": {"<|endoftext|>": True}}, r"expected a token id, found True"),
        ({"special_tokens": {"<|endoftext|>": -1}}, r"expected a token id, found -1"),
        ({"special_tokens": {"<|endoftext|>": 1 << 70}}, r"below the model's vocab_size 300"),
        ({"special_tokens": {"<|endoftext|>": 5}}, r"an id of its own, found 5, the id of.*x05"),
        ({"special_tokens": {"<|endoftext|>": 269, "b": 269}}, r"and 'b' have the same id 269"),
        ({"special_tokens": {"<|endoftext|>": 269, "": 270}}, r"special token '': expected a name"),
        ({"special_tokens": {"<|endoftext|>": 269, "\ud800": 270}}, r"valid, non-empty text"),
        ({"eos_token": "<|nothing|>"}, r"eos_token: expected one of special_tokens or null"),
        ({"eos_token": ["<|endoftext|>"]}, r"eos_token: expected one of special_tokens"),
        ({"bos_token": 269}, r"bos_token: expected one of special_tokens or null, found 269"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message) as caught:
        load_tokenizer(write_tiny(tmp_path, config={**tiny_config(), **changes}), Size(300))
    assert str(tmp_path) in str(caught.value)


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    config = {**tiny_config(), "patern": 1}
    with pytest.warns(UserWarning, match="tokenizer_config.json: unknown keys ignored: 'patern'"):
        load_tokenizer(write_tiny(tmp_path, config=config), Size(300))


def test_a_description_that_is_not_json(tmp_path: Path) -> None:
    (write_tiny(tmp_path) / "tokenizer_config.json").write_text("{")
    with pytest.raises(Error, match=r"tokenizer_config.json: expected JSON"):
        load_tokenizer(tmp_path, Size(300))


def test_a_rank_file_without_a_description(tmp_path: Path) -> None:
    (write_tiny(tmp_path) / "tokenizer_config.json").unlink()
    with pytest.raises(Error, match=r"expected o200k_base.tiktoken.*needs tokenizer_config.json"):
        load_tokenizer(tmp_path, Size(300))


def test_dump_is_what_parse_reads() -> None:
    ranks = tiny_ranks()
    assert vocabulary.parse_ranks(vocabulary.dump_ranks(ranks), "x") == ranks
    assert vocabulary.dump_ranks(ranks).splitlines()[256] == base64.b64encode(b"th") + b" 256"
