"""The programs behind the figures of docs/benchmarks.md run, and report what they say they do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WORK

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(tool: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / tool, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WORK,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_beside_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "out.json"
    contestants = ["gptoss f32", "transformers f32", "transformers gpt2 f32"]
    size = ("--length", 32, "--batch-tokens", 64, "--steps", 1, "--rounds", 1, "--threads", 1)
    printed = run("bench/train.py", *size, "--json", out, "--only", *contestants)
    results = json.loads(out.read_text())["results"]
    assert list(results) == contestants and all(name in printed for name in contestants)
    for rounds in results.values():
        assert rounds[0]["tokens_per_s"] > 0 and rounds[0]["peak_mb"] > 100
    counts = [rounds[0]["parameters"] for rounds in results.values()]
    assert counts[0] == counts[1], "the same geometry"


def test_study_of_nano_against_gpt2(prepared: Path, tmp_path: Path) -> None:
    size = ("--tokens", 2048, "--batch-tokens", 512, "--seeds", 0, "--threads", 1)
    printed = run("tools/claim.py", "--data", prepared, "--out", tmp_path, *size)
    report = json.loads((tmp_path / "claim.json").read_text())
    ours, theirs = (report[name] for name in ("gpt-oss", "GPT-2"))
    assert [len(found["runs"]) for found in (ours, theirs)] == [1, 1]
    assert [point["tokens"] for point in ours["runs"][0]] == [
        point["tokens"] for point in theirs["runs"][0]
    ]
    active = [found["parameters"]["blocks"] for found in (ours, theirs)]
    assert active[0] == pytest.approx(active[1], rel=0.01), "equal active parameters"
    assert "difference" in printed and (tmp_path / "claim.png").exists()
