"""Settings, the changes that people make to them, and the command that takes them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss.cli import main
from gptoss.errors import Error
from gptoss.train.run.overrides import from_options, from_table, read_file
from gptoss.train.run.presets import get_preset
from gptoss.train.run.settings import Settings
from gptoss.train.run.state import CHECKPOINT_FILE, load_state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected 1 to"),
        ({"steps": 1.5}, "steps: expected a whole number, found 1.5"),
        ({"steps": 10, "warmup": 11}, "warmup: expected 0 <= warmup <= steps, found 11 of 10"),
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16, found 'float16'"),
        ({"schedule": "linear"}, "schedule: expected one of cosine, constant, wsd"),
        ({"batch_tokens": 1000}, "multiple of the row length 512, found 1000"),
        ({"learning_rate": math.nan}, "learning_rate: expected 0 to 1000, found nan"),
        ({"clip": 10**400}, "clip: expected a number, found an integer of 1329 bits"),
        ({"steps": 10**400}, "steps: expected 1 to 1e.09, found 1000"),
        ({"spike": 0.5}, "spike: expected more than 1, or 0 for never, found 0.5"),
        ({"compile": 1}, "compile: expected true or false, found 1"),
        ({"texts": "a:0"}, "texts: expected names such as a:2,b:1, found 'a:0'"),
        ({"texts": "a,a"}, "texts: expected names"),
        ({"ema": 1.0}, "ema: expected 0 to 0.999999"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        Settings(**changes)


def test_settings_take_whole_numbers_for_numbers_and_tables_for_texts() -> None:
    settings = Settings(clip=2, texts={"a": 2, "b": 1})
    assert type(settings.clip) is float
    assert settings.repeats == {"a": 2, "b": 1}
    assert Settings(texts=settings.texts) == dataclasses.replace(settings, clip=1.0)
    assert Settings(texts="a, b:3").repeats == {"a": 1, "b": 3}
    assert Settings().repeats == {}


def test_options_have_the_kind_of_what_they_change() -> None:
    options = ["steps=7", "clip=2", "compile=yes", "norm=layer", "hidden-size=64", "texts=a:2,b"]
    found = from_options([*options, "eos_token_ids=1,2"], get_preset("nano"))
    assert found == {
        "steps": 7,
        "clip": 2.0,
        "compile": True,
        "norm": "layer",
        "hidden_size": 64,
        "texts": "a:2,b",
        "eos_token_ids": (1, 2),
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rat=1", "--set: expected learning_rate or .*found 'learning_rat'"),
        ("xyz=1", "--set: expected one of balance, .*z_loss; found 'xyz'"),
        ("steps", "--set: expected NAME=VALUE, found 'steps'"),
        ("steps=1.5", "steps: expected a whole number, found '1.5'"),
        ("clip=much", "clip: expected a number, found 'much'"),
        ("sinks=maybe", "sinks: expected true or false, found 'maybe'"),
        ("eos_token_ids=a", "eos_token_ids: expected a list of whole numbers, found 'a'"),
    ],
)
def test_options_that_make_no_sense(option: str, message: str) -> None:
    with pytest.raises(Error, match=message):
        from_options([option], get_preset("nano"))


def test_files_of_both_kinds(tmp_path: Path) -> None:
    table = {
        "preset": "nano",
        "steps": 5,
        "settings": {"clip": 2},
        "architecture": {"sinks": False},
    }
    (tmp_path / "a.json").write_text(json.dumps(table))
    assert read_file(tmp_path / "a.json") == table
    assert from_table(table, get_preset("nano"), "a") == {"steps": 5, "clip": 2, "sinks": False}
    if sys.version_info >= (3, 11):
        text = 'preset = "nano"\nsteps = 5\n[settings]\nclip = 2\n[architecture]\nsinks = false\n'
        (tmp_path / "a.toml").write_text(text)
        assert read_file(tmp_path / "a.toml") == table


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "a.json: "),
        ("a.json", "[1]", "expected a table of names and values, found"),
        ("a.yaml", "", "expected a file that ends with .toml or .json"),
        ("a.json", '{"stepz": 1}', "a.json: expected steps.*found 'stepz'"),
        ("a.json", '{"settings": {"sinks": true}}', "a.json: settings: expected .*'sinks'"),
        ("a.json", '{"settings": 3}', "settings: expected a table, found 3"),
        ("a.json", '{"dropout": "much"}', "dropout: expected a number, found 'much'"),
        pytest.param(
            "a.toml",
            "steps = ",
            "a.toml: ",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib"),
        ),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(Error, match=message):
        from_table(read_file(tmp_path / name), get_preset("nano"), name)


def test_toml_without_a_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.toml").write_text("steps = 1")
    with pytest.raises(Error, match="pip install tomli; JSON works everywhere"):
        read_file(tmp_path / "a.toml")


TINY = {
    "architecture": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
    "settings": {
        "steps": 6,
        "batch_tokens": 128,
        "length": 64,
        "long_length": 64,
        "warmup": 2,
        "validate_every": 3,
        "save_every": 2,
        "sample_tokens": 4,
        "dtype": "float32",
    },
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({"preset": "nano-cpu", **TINY}))
    return path


def test_command_trains_goes_on_and_repeats(
    prepared: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["train", "--config", str(config), "--data", str(prepared), "--out", str(out)]
    assert main([*given, "--set", "balance=0.02"]) == 0
    printed = capsys.readouterr().out
    assert "6 steps of 128 tokens, on cpu" in printed
    assert "step 6/6  loss" in printed
    assert "validation: stories" in printed
    assert main(["train", "--out", str(out), "--set", "steps=8"]) == 0
    found = capsys.readouterr()
    assert "going on after step 6\nchanged from here on: steps = 8\n" in found.out
    assert "warning: the learning rate jumps" in found.err
    about = json.loads((out / "config.json").read_text())
    assert about["settings"]["balance"] == 0.02
    assert about["architecture"]["vocab_size"] == 320
    # a run's own description is a config file: the same run again
    again = tmp_path / "again"
    assert main(["train", "--config", str(out / "config.json"), "--out", str(again)]) == 0
    losses = [
        [json.loads(line).get("loss") for line in (run / "log.jsonl").read_text().splitlines()[:1]]
        for run in (out, again)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminate"]
)
def test_a_signal_ends_the_run_after_the_step(
    prepared: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    from gptoss.train.run.trainer import Trainer

    take = Trainer.train_step

    def train_step(self: Trainer) -> dict[str, Any]:
        if self.step == 2:
            os.kill(os.getpid(), number)
        return take(self)

    before = signal.getsignal(number)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    out = tmp_path / "run"
    given = ["train", "--config", str(config), "--data", str(prepared), "--out", str(out)]
    assert main([*given, "--set", "save_every=6"]) == code
    assert "stopped after step 3, which is saved" in capsys.readouterr().err
    assert load_state(out / CHECKPOINT_FILE)["step"] == 3
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "giant"], "preset: expected one of nano,"),
        ([], "train: expected --preset, or a run to go on with in"),
        (["--preset", "nano", "--set", "vocab_size=500"], "vocab_size: expected 320 as in"),
        (["--preset", "nano", "--set", "texts=tales"], "texts: expected some of stories, found"),
        (["--preset", "nano", "--data", "nowhere"], "nowhere: expected a file, a folder"),
        (["--preset", "nano", "--config", "none.json"], "none.json"),
        (["--preset", "nano", "--device", "tpu"], "device: expected auto, cpu or cuda, found"),
        (["--preset", "nano", "--set", "long_length=32000"], "expected at least 32000 tokens"),
        (
            ["--preset", "gpt2-style", "--set", "initial_context_length=512"],
            "length: expected at most 512 learned positions, found 1024",
        ),
    ],
)
def test_command_says_what_is_wrong(
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = ["train", "--data", str(prepared), "--out", str(tmp_path / "run"), *arguments]
    assert main(given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gptoss: error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_the_guide_names_every_setting_with_its_default() -> None:
    guide = Path(__file__).parents[2] / "docs" / "training.md"
    rows = [line.split("|") for line in guide.read_text(encoding="utf-8").splitlines()]
    told = {
        name.strip(" `"): value.strip()
        for _, names, values, *_ in (row for row in rows if len(row) == 5)
        for name, value in zip(names.split(","), values.split(","), strict=True)
    }
    plain = {True: "true", False: "false", "": "all once"}
    for field in dataclasses.fields(Settings):
        if type(field.default) in (int, float):
            assert float(told[field.name]) == field.default, field.name
        else:
            assert told[field.name] == plain.get(field.default, field.default), field.name
