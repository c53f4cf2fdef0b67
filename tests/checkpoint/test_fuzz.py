"""The fuzzer itself: a short run, and that a case can be repeated by its number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from waiting import WORK

SCRIPT = Path(__file__).parents[2] / "tools" / "fuzz" / "fuzz_checkpoint.py"


def fuzz(tmp_path: Path, *options: str) -> str:
    command = [sys.executable, str(SCRIPT), *options, "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WORK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "kept").exists()
    return done.stdout


@pytest.mark.skipif(not SCRIPT.exists(), reason="tools/ is not part of this copy")
def test_only_errors_come_out_of_mutated_checkpoints(tmp_path: Path) -> None:
    assert "1500 cases: " in fuzz(tmp_path, "--seed", "7", "--cases", "1500", "--seconds", "200")
    first = fuzz(tmp_path, "--seed", "7", "--case", "3")
    assert "case 3: " in first
    second = fuzz(tmp_path, "--seed", "7", "--case", "3")
    assert first.split(": ")[-1] == second.split(": ")[-1]
