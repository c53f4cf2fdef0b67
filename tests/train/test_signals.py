"""SIGTERM and SIGHUP while a run, or a model of one, is being written: nothing half written."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gptoss.cli import main
from gptoss.model import ModelConfig
from gptoss.train.run.trainer import Trainer

from ..stopped import partials, stop, while_writing
from .test_settings import TINY
from .test_trainer import QUICK

TERM, HUP = signal.SIGTERM, signal.SIGHUP


@pytest.fixture(scope="module")
def run(
    small_config: ModelConfig, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a short run."""
    out = tmp_path_factory.mktemp("run")
    Trainer(small_config, QUICK, prepared, out).run(quiet=True)
    return out


@pytest.fixture(scope="module")
def tuned(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short fine-tuning run, of texts."""
    out = tmp_path_factory.mktemp("tuned")
    texts = out / "texts.txt"
    texts.write_text("Once upon a time there was a little dog who lived in a house.\n" * 40)
    given = ["finetune", str(run), "--data", str(texts), "--out", str(out / "run")]
    assert main([*given, "--method", "text", "--steps", "1", "--length", "32"]) == 0
    return out


@pytest.mark.parametrize(("kind", "number"), [("run", TERM), ("run", HUP), ("tuned", TERM)])
def test_export(run: Path, tuned: Path, tmp_path: Path, kind: str, number: signal.Signals) -> None:
    source = run if kind == "run" else tuned / "run"
    before = sorted(source.rglob("*"))
    process = while_writing(tmp_path, "export", source, tmp_path / "out", "--rule", "mx")
    assert stop(process, number)[0] == 128 + number
    assert list(tmp_path.iterdir()) == []
    assert sorted(source.rglob("*")) == before


def test_train(prepared: Path, tmp_path: Path) -> None:
    """SIGTERM ends a run after the step instead: tests/train/test_settings.py."""
    settings = tmp_path / "tiny.json"
    settings.write_text(json.dumps({"preset": "nano-cpu", **TINY}))
    out = tmp_path / "run"
    out.mkdir()
    process = while_writing(out, "train", "--config", settings, "--data", prepared, "--out", out)
    assert stop(process, HUP)[0] == 128 + HUP
    assert partials(out) == []


def test_finetune(run: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    given = ("--data", tuned / "texts.txt", "--out", out, "--method", "text", "--steps", 1)
    process = while_writing(out, "finetune", run, *given, "--length", 32)
    assert stop(process, TERM)[0] == 128 + TERM
    assert partials(out) == []
