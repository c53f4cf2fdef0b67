"""A text file to a model that the engine runs, in one command; and every way that can go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss.cli import main

SMALL = [
    *("--set", "num_hidden_layers=2", "--set", "hidden_size=32", "--set", "intermediate_size=32"),
    *("--set", "head_dim=16", "--set", "num_attention_heads=4", "--set", "num_key_value_heads=2"),
    *("--set", "steps=6", "--set", "warmup=2", "--set", "batch_tokens=256", "--set", "length=64"),
    *("--set", "long_length=64", "--set", "validation_rows=2", "--set", "sample_tokens=3"),
]


@pytest.fixture(scope="module")
def poem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text without separators, some kilobytes long."""
    path: Path = tmp_path_factory.mktemp("poem") / "poem.txt"
    lines = [
        f"The {a} {b} went over the {c},\nand never came back to the {d}.\n"
        for a in ("old", "young", "red", "blue")
        for b in ("fox", "wolf", "bird")
        for c in ("hill", "river", "bridge")
        for d in ("house", "wood", "town")
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_text_to_model(poem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["train", "--preset", "shakespeare", "--data", str(poem), "--out", str(out), *SMALL]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"gptoss generate -m {out / 'model'}" in printed and "MXFP4" in printed
    assert json.loads((out / "data" / "data.json").read_text())["tokenizer"] == "characters"
    pytest.importorskip("gptoss.native._core", reason="the compiled core is not built")
    assert main(["generate", "-m", str(out / "model"), "The old", "--max-tokens", "5"]) == 0
    assert (
        main(["viz", "all", str(out), "--text", "The old fox", "--out", str(tmp_path / "v")]) == 0
    )
    assert {"curves.png", "tokens.html"} <= {path.name for path in (tmp_path / "v").iterdir()}
    # again: nothing is left to do, and what is there stays
    before = (out / "model" / "model.safetensors").read_bytes()
    assert main(["train", "--out", str(out)]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (out / "model" / "model.safetensors").read_bytes() == before


def test_byte_pairs_for_a_text_of_this_size(poem: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "--preset", "nano-cpu", "--data", str(poem), "--out", str(out), *SMALL]
    assert main([*command, "--no-export", "--set", "positions=learned"]) == 1, "no 512 in this text"
    assert not (out / "data" / "data.json").exists()


def test_other_architectures_train_and_are_not_exported(
    poem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["train", "--preset", "shakespeare", "--data", str(poem), "--out", str(out), *SMALL]
    assert main([*command, "--set", "norm=layer", "--quiet"]) == 0
    assert "not exported" in capsys.readouterr().out
    assert (out / "state.pt").exists() and not (out / "model").exists()


def test_nothing_held_out_is_not_measured(
    poem: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(poem.read_text()[:400].replace("\n\n", "\n"))
    out = tmp_path / "run"
    command = ["train", "--preset", "shakespeare", "--data", str(path), "--out", str(out), *SMALL]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "not validated" in captured.err and "not measured" in captured.out
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "none is left"),
        (b"\x00\x01\x02" * 1000, "found binary data"),
        (b"Too short to learn from, and only one line of it. " * 2, "tokens to train on"),
    ],
)
def test_texts_that_teach_nothing(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    out = tmp_path / "run"
    command = ["train", "--preset", "shakespeare", "--data", str(path), "--out", str(out), *SMALL]
    assert main([*command, "--set", "length=128", "--set", "long_length=128"]) == 1
    assert message in capsys.readouterr().err
    assert not (out / "state.pt").exists()


def test_texts_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["train", "--preset", "shakespeare", "--out", str(tmp_path / "run")]
    assert main([*common, "--data", str(tmp_path / "no.txt")]) == 1
    assert "found nothing there" in capsys.readouterr().err
